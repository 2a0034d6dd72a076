//! Tokenizers as pipeline folders bring them: `tokenizer.json`, or CLIP's `vocab.json` and `merges.txt`, or T5's
//! `spiece.model` alone.
//!
//! The latter two are written out as the `tokenizer.json` that transformers makes of them (`CLIPTokenizer` and
//! `T5Tokenizer`), so that the `tokenizers` crate does all the work.

mod spiece;

use std::path::PathBuf;

use serde_json::{Value, json};
use tokenizers::{Tokenizer as Inner, TruncationParams};
use xdit_core::checkpoint::LoadError;
use xdit_core::folder::PipelineFolder;

/// What is wrong with a tokenizer's files.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// None of the known forms is there.
    #[error("{} holds no tokenizer: none of {looked_for} is there", folder.display())]
    NoFiles {
        /// The component's folder.
        folder: PathBuf,
        /// The files that would do.
        looked_for: &'static str,
    },
    /// A file's content is not a tokenizer.
    #[error("{}: {message}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The padding token is not in the vocabulary.
    #[error("{}: the padding token {token:?} is not in the vocabulary", folder.display())]
    NoPad {
        /// The component's folder.
        folder: PathBuf,
        /// The token.
        token: String,
    },
    /// A text could not be tokenized.
    #[error("cannot tokenize a prompt: {0}")]
    Encode(String),
}

/// Text to ids of a fixed number.
pub struct Tokenizer {
    inner: Inner,
    pad: u32,
    limit: usize,
}

/// A tokenized text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Exactly as many as the tokenizer's limit: the text's, then padding.
    pub ids: Vec<u32>,
    /// How many are not padding.
    pub n_tokens: usize,
    /// The end of the text, where it was longer than the limit.
    pub cut: Option<String>,
}

impl Tokenizer {
    /// The tokenizer of `component`, cutting and padding to `limit` ids as `padding="max_length", truncation=True` does.
    ///
    /// # Errors
    /// Files that are missing or are no tokenizer.
    pub fn open(folder: &PipelineFolder, component: &str, limit: usize) -> Result<Self, TokenizerError> {
        let file = |name: &str| format!("{component}/{name}");
        let has = |name: &str| folder.exists(&file(name));
        let corrupt = |name: &str, message: String| TokenizerError::Corrupt { path: folder.path(&file(name)), message };
        let object = |name: &str| -> Result<Value, TokenizerError> {
            Ok(if has(name) { folder.config(component, name)? } else { Value::Null })
        };
        let (config, special) = (object("tokenizer_config.json")?, object("special_tokens_map.json")?);
        let token = |key: &str, default: &str| {
            [&config, &special].into_iter().find_map(|from| token_text(&from[key])).unwrap_or(default).to_owned()
        };

        let (name, bytes, default_pad) = if has("tokenizer.json") {
            let clip = config["tokenizer_class"].as_str().is_some_and(|class| class.starts_with("CLIP"));
            let default_pad = if clip { "<|endoftext|>" } else { "<pad>" };
            ("tokenizer.json", folder.bytes(&file("tokenizer.json"))?.into_owned(), default_pad)
        } else if has("vocab.json") && has("merges.txt") {
            let vocab: Value = folder.config(component, "vocab.json")?;
            let merges = folder.read_text(&file("merges.txt"))?;
            let (bos, eos) = (token("bos_token", "<|startoftext|>"), token("eos_token", "<|endoftext|>"));
            let json = clip(vocab, &merges, &bos, &eos).map_err(|message| corrupt("vocab.json", message))?;
            ("vocab.json", json.to_string().into_bytes(), "<|endoftext|>")
        } else if has("spiece.model") {
            let model = spiece::Model::parse(&folder.bytes(&file("spiece.model"))?)
                .map_err(|message| corrupt("spiece.model", message))?;
            let extra_ids = config["extra_ids"].as_u64().unwrap_or(100).min(10_000);
            let json = t5(&model, extra_ids, &token("eos_token", "</s>"))
                .map_err(|message| corrupt("spiece.model", message))?;
            ("spiece.model", json.to_string().into_bytes(), "<pad>")
        } else {
            let looked_for = "tokenizer.json, vocab.json + merges.txt, spiece.model";
            return Err(TokenizerError::NoFiles { folder: folder.path(component), looked_for });
        };

        let mut inner = Inner::from_bytes(bytes).map_err(|e| corrupt(name, e.to_string()))?;
        inner.with_padding(None);
        let truncation = TruncationParams { max_length: limit, ..Default::default() };
        inner.with_truncation(Some(truncation)).map_err(|e| corrupt(name, e.to_string()))?;
        let pad = token("pad_token", default_pad);
        let pad = inner
            .token_to_id(&pad)
            .ok_or_else(|| TokenizerError::NoPad { folder: folder.path(component), token: pad })?;
        Ok(Self { inner, pad, limit })
    }

    /// The ids of `text`.
    ///
    /// # Errors
    /// Only what the `tokenizers` crate returns.
    pub fn encode(&self, text: &str) -> Result<Encoded, TokenizerError> {
        let encoding = self.inner.encode(text, true).map_err(|e| TokenizerError::Encode(e.to_string()))?;
        let mut ids = encoding.get_ids().to_vec();
        ids.truncate(self.limit);
        let n_tokens = ids.len();
        ids.resize(self.limit, self.pad);
        let cut = (!encoding.get_overflowing().is_empty()).then(|| {
            let kept = encoding.get_offsets().iter().map(|(_, end)| *end).max().unwrap_or(0);
            text.get(kept..).unwrap_or(text).trim().to_owned()
        });
        Ok(Encoded { ids, n_tokens, cut })
    }
}

/// A token is a string, or an object with the string as its `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

fn special_token(id: u64, content: &str) -> Value {
    json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true })
}

/// `transformers/models/clip/tokenization_clip.py`
fn clip(vocab: Value, merges: &str, bos: &str, eos: &str) -> Result<Value, String> {
    let id = |token: &str| vocab[token].as_u64().ok_or_else(|| format!("the token {token:?} is not in it"));
    let (bos_id, eos_id) = (id(bos)?, id(eos)?);
    let merges: Vec<&str> =
        merges.lines().filter(|line| !line.starts_with("#version") && !line.trim().is_empty()).collect();
    let words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    Ok(json!({
        "version": "1.0",
        "added_tokens": [special_token(bos_id, bos), special_token(eos_id, eos)],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" },
            { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
            { "type": "Lowercase" },
        ]},
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": words }, "behavior": "Removed", "invert": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        ]},
        "post_processor": { "type": "RobertaProcessing", "sep": [eos, eos_id], "cls": [bos, bos_id],
                            "trim_offsets": false, "add_prefix_space": false },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "dropout": null, "unk_token": eos, "continuing_subword_prefix": "",
                   "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
                   "merges": merges },
    }))
}

/// `transformers/models/t5/tokenization_t5.py`, from the sentencepiece model
fn t5(model: &spiece::Model, extra_ids: u64, eos: &str) -> Result<Value, String> {
    let n = model.pieces.len() as u64;
    let extra: Vec<String> = (0..extra_ids).rev().map(|i| format!("<extra_id_{i}>")).collect();
    let position = model.pieces.iter().position(|p| p.text == eos);
    let eos_id = position.ok_or_else(|| format!("the token {eos:?} is not in it"))? as u64;
    let vocab: Vec<Value> = model
        .pieces
        .iter()
        .map(|piece| json!([piece.text, piece.score]))
        .chain(extra.iter().map(|text| json!([text, 0.0])))
        .collect();
    let control = model.pieces.iter().enumerate().filter(|(_, p)| p.is_control || p.is_unknown);
    let added: Vec<Value> = control
        .map(|(id, piece)| special_token(id as u64, &piece.text))
        .chain(extra.iter().enumerate().map(|(i, text)| special_token(n + i as u64, text)))
        .collect();
    let normalizer = match model.charsmap.is_empty() {
        true => Value::Null,
        false => json!({ "type": "Precompiled", "precompiled_charsmap": model.charsmap_base64() }),
    };
    let metaspace = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
    Ok(json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [{ "type": "WhitespaceSplit" }, metaspace] },
        "post_processor": { "type": "TemplateProcessing",
            "single": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "SpecialToken": { "id": eos, "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "SpecialToken": { "id": eos, "type_id": 0 } },
                     { "Sequence": { "id": "B", "type_id": 0 } }, { "SpecialToken": { "id": eos, "type_id": 0 } }],
            "special_tokens": { eos: { "id": eos, "ids": [eos_id], "tokens": [eos] } } },
        "decoder": metaspace,
        "model": { "type": "Unigram", "unk_id": model.unk_id, "vocab": vocab, "byte_fallback": false },
    }))
}
