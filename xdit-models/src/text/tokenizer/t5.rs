//! T5's unigram model over sentencepiece's pieces. Mirrors transformers' `models/t5/tokenization_t5.py`.

use std::path::Path;

use serde::Deserialize;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::Precompiled;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as Steps;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;

use super::charsmap::{self, CharsmapError};
use super::settings::{Defaults, Ends, Settings, Token};
use super::spiece::{Kind, Spiece};
use super::{File, Tokenizer, TokenizerError, TokenizerJson, finish, shown};

const DEFAULTS: Defaults =
    Defaults { ends: Ends::BosEos, start: None, end: "</s>", unk: "<unk>", pad: "<pad>", mask: None };

/// Reserved tokens where the configuration does not say.
const EXTRA_IDS: usize = 100;
/// More reserved tokens than any model has.
const MAX_EXTRA_IDS: usize = 1 << 16;

#[derive(Deserialize)]
struct Model {
    unk_id: Option<usize>,
    vocab: Vec<(String, f64)>,
}

/// From a `tokenizer.json`. Its vocabulary has the reserved tokens already.
pub fn from_json(file: &File, mut settings: Settings) -> Result<Tokenizer, TokenizerError> {
    let TokenizerJson { added_tokens, model, normalizer } = file.json::<TokenizerJson<Model>>()?;
    settings.or_decoder(added_tokens.into_iter().map(|token| (token.id, token.token)).collect());
    settings.or_extra(reserved(&settings)?.map(Token::Text).collect());
    let charsmap = normalizer
        .as_ref()
        .and_then(charsmap::of_normalizer)
        .map(charsmap::from_base64)
        .transpose()
        .map_err(|source| TokenizerError::Charsmap { path: file.path.clone(), source })?;
    build(&file.path, model.vocab, model.unk_id, charsmap.as_deref(), settings)
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
    let mut apart: Vec<Token> = apart.collect();
    // mT5's reserved tokens are pieces
    if !apart.iter().any(|token| token.content().contains("<extra_id_")) {
        apart.extend(reserved(&settings)?.map(Token::Text));
    }
    settings.or_extra(apart);

    let pieces = model.pieces.iter().map(|piece| (piece.text.to_owned(), f64::from(piece.score)));
    // the last reserved token comes first
    let extra: Vec<String> = reserved(&settings)?.collect();
    let vocab = pieces.chain(extra.into_iter().rev().map(|token| (token, 0.0))).collect();
    let charsmap = Some(model.charsmap).filter(|bytes| !bytes.is_empty());
    build(&file.path, vocab, Some(model.unk_id), charsmap, settings)
}

/// `<extra_id_0>` and on.
fn reserved(settings: &Settings) -> Result<impl Iterator<Item = String> + use<>, TokenizerError> {
    let extra_ids = settings.extra_ids().unwrap_or(EXTRA_IDS);
    if extra_ids > MAX_EXTRA_IDS {
        return Err(TokenizerError::ExtraIds { path: settings.path.clone(), extra_ids, max: MAX_EXTRA_IDS });
    }
    Ok((0..extra_ids).map(|i| format!("<extra_id_{i}>")))
}

fn build(
    path: &Path,
    vocab: Vec<(String, f64)>,
    unk_id: Option<usize>,
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
    let named = settings.named(DEFAULTS);
    let unk_id = unk_id.or_else(|| vocab.iter().position(|(token, _)| token == named.unk.content()));
    let model = Unigram::from(vocab, unk_id, false).map_err(refused)?;

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
