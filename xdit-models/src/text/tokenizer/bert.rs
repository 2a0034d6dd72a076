//! BERT's word pieces. Mirrors transformers' `models/bert/tokenization_bert.py`.

use std::path::Path;

use serde::Deserialize;
use tokenizers::decoders::wordpiece::WordPiece as Spelling;
use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;

use super::built::{Tokenizer, finish};
use super::error::TokenizerError;
use super::file::File;
use super::settings::{Defaults, Ends, Settings};
use super::whole::{TokenizerJson, check_ids};

const DEFAULTS: Defaults = Defaults {
    ends: Ends::ClsSep,
    start: Some("[CLS]"),
    end: "[SEP]",
    unk: "[UNK]",
    pad: "[PAD]",
    mask: Some("[MASK]"),
};

/// How a piece starts that does not start a word.
const PREFIX: &str = "##";

#[derive(Deserialize)]
struct Model {
    vocab: Vocab,
}

/// From a `tokenizer.json`.
pub fn from_json(file: &File, mut settings: Settings) -> Result<Tokenizer, TokenizerError> {
    let mut whole = file.json::<TokenizerJson<Model>>()?;
    whole.fill(&mut settings);
    let model = whole.model;
    build(&file.path, model.vocab, settings)
}

/// From a `vocab.txt`: a piece in each line, of which those of equal pieces count that come last.
pub fn from_vocab(file: &File, settings: Settings) -> Result<Tokenizer, TokenizerError> {
    let pieces = file.text()?.lines().map(|line| line.trim_end().to_owned());
    build(&file.path, pieces.zip(0..).collect(), settings)
}

fn build(path: &Path, vocab: Vocab, settings: Settings) -> Result<Tokenizer, TokenizerError> {
    let refused = |source| TokenizerError::Refused { path: path.into(), source };
    check_ids(path, &vocab)?;
    let named = settings.named(DEFAULTS)?;
    let model = WordPiece::builder()
        .vocab(vocab)
        .unk_token(named.unk_text().into())
        .continuing_subword_prefix(PREFIX.into())
        .build()
        .map_err(refused)?;
    let letters = BertNormalizer::new(
        true,
        settings.tokenize_chinese_chars(),
        settings.strip_accents(),
        settings.do_lower_case(),
    );

    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_normalizer(Some(letters)).map_err(refused)?;
    inner.with_pre_tokenizer(Some(BertPreTokenizer));
    inner.with_decoder(Some(Spelling::new(PREFIX.into(), true)));
    finish(inner, true, path, settings, named)
}
