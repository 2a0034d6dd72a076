//! T5's unigram model over sentencepiece's pieces. Mirrors transformers' `models/t5/tokenization_t5.py`.

use std::path::Path;

use serde::Deserialize;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::Precompiled;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as Steps;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;

use super::built::{Tokenizer, finish};
use super::charsmap::{self, CharsmapError};
use super::error::TokenizerError;
use super::file::File;
use super::settings::{Defaults, Ends, Settings};
use super::shown::shown;
use super::spiece::{Kind, Spiece};
use super::token::Token;
use super::whole::TokenizerJson;

const DEFAULTS: Defaults =
    Defaults { ends: Ends::BosEos, start: None, end: "</s>", unk: "<unk>", pad: "<pad>", mask: None };

/// Reserved tokens where the configuration does not say.
const EXTRA_IDS: usize = 100;
/// More reserved tokens than any model has.
const MAX_EXTRA_IDS: usize = 1 << 16;

/// Upstream's, whatever the files say.
const UNK_ID: usize = 2;

#[derive(Deserialize)]
struct Model {
    vocab: Vec<(String, f64)>,
}

/// From a `tokenizer.json`. Its vocabulary has the reserved tokens already.
pub fn from_json(file: &File, mut settings: Settings) -> Result<Tokenizer, TokenizerError> {
    let mut whole = file.json::<TokenizerJson<Model>>()?;
    whole.fill(&mut settings);
    add_reserved(&mut settings)?;
    let charsmap = whole
        .normalizer
        .as_ref()
        .and_then(charsmap::of_normalizer)
        .map(charsmap::from_base64)
        .transpose()
        .map_err(|source| TokenizerError::Charsmap { path: file.path.clone(), source })?;
    build(&file.path, whole.model.vocab, charsmap.as_deref(), settings)
}

/// From a `spiece.model`.
pub fn from_spiece(file: &File, mut settings: Settings) -> Result<Tokenizer, TokenizerError> {
    let model =
        Spiece::parse(&file.bytes).map_err(|source| TokenizerError::Spiece { path: file.path.clone(), source })?;
    // control and user-defined pieces are found in a prompt as they stand
    let apart = model.pieces.iter().filter_map(|piece| match piece.kind {
        Kind::Control => Some(Token::Text(piece.text.into())),
        Kind::UserDefined => Some(Token::as_it_stands(piece.text)),
        Kind::Other => None,
    });
    *settings.additional() = Some(apart.collect());
    add_reserved(&mut settings)?;

    let pieces = model.pieces.iter().map(|piece| (piece.text.to_owned(), f64::from(piece.score)));
    // the last reserved token comes first
    let extra: Vec<String> = reserved(&settings)?.collect();
    let vocab = pieces.chain(extra.into_iter().rev().map(|token| (token, 0.0))).collect();
    let charsmap = Some(model.charsmap).filter(|bytes| !bytes.is_empty());
    build(&file.path, vocab, charsmap, settings)
}

/// `<extra_id_0>` and on.
fn reserved(settings: &Settings) -> Result<impl Iterator<Item = String> + use<>, TokenizerError> {
    let extra_ids = settings.extra_ids().unwrap_or(EXTRA_IDS);
    if extra_ids > MAX_EXTRA_IDS {
        return Err(TokenizerError::ExtraIds { path: settings.path.clone(), extra_ids, max: MAX_EXTRA_IDS });
    }
    Ok((0..extra_ids).map(|i| format!("<extra_id_{i}>")))
}

/// Adds the reserved tokens to the additional ones, unless they are there: mT5's are pieces.
fn add_reserved(settings: &mut Settings) -> Result<(), TokenizerError> {
    let reserved: Vec<_> = reserved(settings)?.map(Token::Text).collect();
    let there = settings.additional().get_or_insert_default();
    match there.iter().filter(|token| token.content().contains("<extra_id_")).count() {
        0 => there.extend(reserved),
        n if !reserved.is_empty() && n != reserved.len() => {
            let value = format!("{} with {n} reserved tokens among the special ones", reserved.len());
            return Err(settings.refuse("extra_ids", &value, "as many as there are, or 0"));
        }
        _ => {}
    }
    Ok(())
}

fn build(
    path: &Path,
    vocab: Vec<(String, f64)>,
    charsmap: Option<&[u8]>,
    settings: Settings,
) -> Result<Tokenizer, TokenizerError> {
    let refused = |source| TokenizerError::Refused { path: path.into(), source };
    let broken = |source| TokenizerError::Charsmap { path: path.into(), source };
    // an empty piece is found everywhere, and a score that is not finite cannot be compared
    if let Some(index) = vocab.iter().position(|(token, score)| token.is_empty() || !score.is_finite()) {
        let (token, score) = (shown(&vocab[index].0), vocab[index].1);
        return Err(TokenizerError::Piece { path: path.into(), index, token, score });
    }
    let named = settings.named(DEFAULTS)?;
    let model = Unigram::from(vocab, Some(UNK_ID), false).map_err(refused)?;

    let spaces = Metaspace::new('▁', PrependScheme::Always, true);
    let words: Vec<PreTokenizerWrapper> = vec![WhitespaceSplit.into(), spaces.clone().into()];

    let mut inner = tokenizers::Tokenizer::new(model);
    if let Some(bytes) = charsmap {
        charsmap::check(bytes).map_err(broken)?;
        let map = Precompiled::from(bytes).map_err(|_| broken(CharsmapError::Utf8))?;
        inner.with_normalizer(Some(map)).map_err(refused)?;
    }
    inner.with_pre_tokenizer(Some(Steps::new(words)));
    inner.with_decoder(Some(spaces));
    finish(inner, false, path, settings, named)
}
