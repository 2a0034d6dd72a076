//! CLIP's byte-level byte-pair encoding. Mirrors transformers' `models/clip/tokenization_clip.py`.

use std::path::Path;

use serde::Deserialize;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Lowercase, NFC, NormalizerWrapper, Replace, Sequence};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as Steps;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, normalizers::replace::ReplacePattern};

use super::built::{Tokenizer, finish};
use super::error::TokenizerError;
use super::file::File;
use super::settings::{Defaults, Ends, Settings};
use super::shown::shown;
use super::whole::{TokenizerJson, check_ids};

const DEFAULTS: Defaults = Defaults {
    ends: Ends::BosEos,
    start: Some("<|startoftext|>"),
    end: "<|endoftext|>",
    unk: "<|endoftext|>",
    pad: "<|endoftext|>",
    mask: None,
};

/// What a word is.
const WORD: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

#[derive(Deserialize)]
struct Model {
    vocab: Vocab,
    merges: Vec<Merge>,
}

/// Older files have a text with a space.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Text(String),
    Pair(String, String),
}

/// From a `tokenizer.json`.
pub fn from_json(file: &File, mut settings: Settings) -> Result<Tokenizer, TokenizerError> {
    let mut whole = file.json::<TokenizerJson<Model>>()?;
    whole.fill(&mut settings);
    let model = whole.model;
    let mut merges = Vec::with_capacity(model.merges.len());
    for (i, merge) in model.merges.into_iter().enumerate() {
        merges.push(match merge {
            Merge::Pair(left, right) => (left, right),
            Merge::Text(text) => split(file, i + 1, &text)?,
        });
    }
    build(&file.path, &file.path, model.vocab, merges, settings)
}

/// From `vocab.json` and `merges.txt`.
pub fn from_vocab(vocab: &File, merges: &File, settings: Settings) -> Result<Tokenizer, TokenizerError> {
    let lines = merges.text()?.lines().filter(|line| !line.starts_with("#version"));
    let rules = lines.enumerate().map(|(i, line)| split(merges, i + 1, line)).collect::<Result<Vec<_>, _>>()?;
    build(&vocab.path, &merges.path, vocab.json()?, rules, settings)
}

fn split(file: &File, number: usize, merge: &str) -> Result<(String, String), TokenizerError> {
    match merge.split_once(' ') {
        Some((left, right)) if !right.contains(' ') => Ok((left.into(), right.into())),
        _ => Err(TokenizerError::Merge { path: file.path.clone(), number, merge: shown(merge) }),
    }
}

fn build(
    vocab_path: &Path,
    merges_path: &Path,
    vocab: Vocab,
    merges: Vec<(String, String)>,
    settings: Settings,
) -> Result<Tokenizer, TokenizerError> {
    let refused = |source| TokenizerError::Refused { path: vocab_path.into(), source };
    check_ids(vocab_path, &vocab)?;
    // the builder copies each merge into a buffer of the longest token's length
    let known = |(left, right): &(String, String)| {
        vocab.contains_key(left) && vocab.contains_key(right) && vocab.contains_key(&format!("{left}{right}"))
    };
    if let Some(i) = merges.iter().position(|merge| !known(merge)) {
        let merge = shown(&format!("{} {}", merges[i].0, merges[i].1));
        return Err(TokenizerError::Merge { path: merges_path.into(), number: i + 1, merge });
    }
    let named = settings.named(DEFAULTS)?;
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .end_of_word_suffix("</w>".into())
        .unk_token(named.unk_text().into())
        .build()
        .map_err(refused)?;

    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(refused)?;
    let steps: Vec<NormalizerWrapper> = vec![NFC.into(), spaces.into(), Lowercase.into()];
    let words = Split::new(SplitPattern::Regex(WORD.into()), SplitDelimiterBehavior::Removed, true).map_err(refused)?;
    let words: Vec<PreTokenizerWrapper> = vec![words.into(), ByteLevel::new(false, true, true).into()];

    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_normalizer(Some(Sequence::new(steps))).map_err(refused)?;
    inner.with_pre_tokenizer(Some(Steps::new(words)));
    inner.with_decoder(Some(ByteLevel::default()));
    finish(inner, true, vocab_path, settings, named)
}
