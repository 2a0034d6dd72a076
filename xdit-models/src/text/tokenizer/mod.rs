//! Prompts to token ids, as transformers' `BertTokenizer`, `CLIPTokenizer` and `T5Tokenizer` do it.
//!
//! transformers 5 has one pipeline for each class and takes vocabulary, merges, character map and added tokens from
//! whichever files there are: `tokenizer.json`, else `vocab.txt`, `vocab.json` with `merges.txt` or `spiece.model`. So
//! does [`Tokenizer::open`]; a normaliser or template that a `tokenizer.json` describes plays no part, here as there.
//!
//! Everything that comes from a file is checked before it reaches the `tokenizers` crate, some of whose constructors
//! trust it.

mod bert;
mod charsmap;
mod clip;
mod settings;
mod spiece;
mod t5;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::models::bpe::Vocab;
use xdit_core::checkpoint::LoadError;
use xdit_core::folder::PipelineFolder;

use settings::{Named, Settings, Token};

pub use charsmap::CharsmapError;
pub use spiece::SpieceError;

/// The tokenizer of one text encoder.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialIds,
    /// Whether a sequence starts with [`SpecialIds::bos`].
    starts: bool,
    path: PathBuf,
}

/// The ids of tokens that have a meaning of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialIds {
    /// Start of a sequence, BERT's `[CLS]`; T5 has none.
    pub bos: Option<u32>,
    /// End of a sequence, BERT's `[SEP]`.
    pub eos: u32,
    /// What fills a sequence up to its length. CLIP's is often the end token.
    pub pad: u32,
    /// What is not in the vocabulary.
    pub unk: u32,
}

/// A prompt's tokens, padded on the right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// As many as were asked for.
    pub ids: Vec<u32>,
    /// How many of them are not padding.
    pub n_tokens: usize,
    /// The part of the prompt for which there was no room, as its tokens spell it; diffusers warns with it.
    pub cut: Option<String>,
}

impl Encoded {
    /// For each id, whether it is a token of the prompt and not padding.
    pub fn seen(&self) -> Vec<bool> {
        (0..self.ids.len()).map(|i| i < self.n_tokens).collect()
    }

    /// `attention_mask`: 1 for tokens of the prompt, 0 for padding.
    pub fn mask(&self) -> Vec<u32> {
        (0..self.ids.len()).map(|i| u32::from(i < self.n_tokens)).collect()
    }
}

/// A tokenizer's files that cannot be used, or a length that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A file that is not there or cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// No way to build this one.
    #[error("{component}: no tokenizer of class {found:?}, expected BertTokenizer, CLIPTokenizer or T5Tokenizer")]
    UnknownClass {
        /// The component's name.
        component: String,
        /// Its class.
        found: String,
    },
    /// Nothing to build a tokenizer from.
    #[error("{} has no vocabulary, looked for {looked_for}", path.display())]
    NoVocabulary {
        /// The tokenizer's folder.
        path: PathBuf,
        /// Names of files.
        looked_for: &'static str,
    },
    /// Not the JSON that it should be.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// serde's message, with line and column.
        source: serde_json::Error,
    },
    /// A rule of a byte-pair encoding that does not fit its vocabulary.
    #[error("{}: merge {number} is {merge:?}, expected two tokens that make a third", path.display())]
    Merge {
        /// The file.
        path: PathBuf,
        /// Which one, from 1.
        number: usize,
        /// What stands there, shortened.
        merge: String,
    },
    /// An id that no embedding table has room for.
    #[error("{}: token {token:?} has the id {id}, beyond {max}", path.display())]
    TokenId {
        /// The file.
        path: PathBuf,
        /// The token, shortened.
        token: String,
        /// Its id.
        id: u32,
        /// The largest id that is accepted.
        max: u32,
    },
    /// A token of a unigram model without text or without a usable score.
    #[error("{}: token {index} is {token:?} with score {score}", path.display())]
    Piece {
        /// The file.
        path: PathBuf,
        /// Which one, from 0.
        index: usize,
        /// Its text, shortened.
        token: String,
        /// Its score, a log probability.
        score: f64,
    },
    /// Not a sentencepiece model, or a broken one.
    #[error("{}: {source}", path.display())]
    Spiece {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SpieceError,
    },
    /// A broken map of characters.
    #[error("{}: precompiled_charsmap: {source}", path.display())]
    Charsmap {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: CharsmapError,
    },
    /// A special token that is in no vocabulary and cannot be added.
    #[error("{}: no special token {token:?}", path.display())]
    NoToken {
        /// The file.
        path: PathBuf,
        /// Its text.
        token: String,
    },
    /// An absurd number of reserved tokens.
    #[error("{}: extra_ids is {extra_ids}, more than {max}", path.display())]
    ExtraIds {
        /// The folder.
        path: PathBuf,
        /// What is asked for.
        extra_ids: usize,
        /// The largest number that is accepted.
        max: usize,
    },
    /// The `tokenizers` crate refuses what the files say, or fails at a text.
    #[error("{}: {source}", path.display())]
    Refused {
        /// The file or folder.
        path: PathBuf,
        /// Its message.
        source: tokenizers::Error,
    },
    /// Not even the special tokens fit.
    #[error("{}: {max_length} tokens leave no room for the {n_special} that every sequence has", path.display())]
    MaxLength {
        /// The folder.
        path: PathBuf,
        /// The length asked for.
        max_length: usize,
        /// Start and end tokens.
        n_special: usize,
    },
}

/// The largest id that is accepted, far beyond any vocabulary.
const MAX_ID: u32 = 1 << 24;

impl Tokenizer {
    /// Builds the tokenizer of `component` from its files in `folder`.
    ///
    /// # Errors
    /// A class other than BERT's, CLIP's and T5's, files that are missing or broken.
    pub fn open(folder: &PipelineFolder, component: &str) -> Result<Self, TokenizerError> {
        let class = &folder.component(component)?.class;
        let at = |file: &str| format!("{component}/{file}");
        let file = |name: &str| -> Result<Option<File>, TokenizerError> {
            let rel = at(name);
            if !folder.exists(&rel) {
                return Ok(None);
            }
            Ok(Some(File { path: folder.path(&rel), bytes: folder.bytes(&rel)?.into_owned() }))
        };
        let missing = |looked_for| TokenizerError::NoVocabulary { path: folder.path(component), looked_for };
        let settings = Settings::new(
            folder.path(component),
            file("tokenizer_config.json")?.as_ref(),
            file("special_tokens_map.json")?.as_ref(),
        )?;
        let whole = file("tokenizer.json")?;
        match class.strip_suffix("Fast").unwrap_or(class) {
            "BertTokenizer" => {
                if let Some(whole) = whole {
                    return bert::from_json(&whole, settings);
                }
                match file("vocab.txt")? {
                    Some(vocab) => bert::from_vocab(&vocab, settings),
                    None => Err(missing("tokenizer.json, vocab.txt")),
                }
            }
            "CLIPTokenizer" => {
                if let Some(whole) = whole {
                    return clip::from_json(&whole, settings);
                }
                match (file("vocab.json")?, file("merges.txt")?) {
                    (Some(vocab), Some(merges)) => clip::from_vocab(&vocab, &merges, settings),
                    _ => Err(missing("tokenizer.json, vocab.json with merges.txt")),
                }
            }
            "T5Tokenizer" | "MT5Tokenizer" => {
                if let Some(whole) = whole {
                    return t5::from_json(&whole, settings);
                }
                match file("spiece.model")? {
                    Some(spiece) => t5::from_spiece(&spiece, settings),
                    None => Err(missing("tokenizer.json, spiece.model")),
                }
            }
            _ => Err(TokenizerError::UnknownClass { component: component.into(), found: class.clone() }),
        }
    }

    /// The ids of tokens that have a meaning of their own.
    pub fn special(&self) -> SpecialIds {
        self.special
    }

    /// `tokenizer(prompt, padding="max_length", max_length=max_length, truncation=True)`
    ///
    /// A prompt that is too long loses its last tokens; the end token always stays.
    ///
    /// # Errors
    /// A `max_length` below the number of special tokens.
    pub fn encode(&self, prompt: &str, max_length: usize) -> Result<Encoded, TokenizerError> {
        let n_special = if self.starts { 2 } else { 1 };
        let Some(room) = max_length.checked_sub(n_special) else {
            return Err(TokenizerError::MaxLength { path: self.path.clone(), max_length, n_special });
        };
        let refused = |source| TokenizerError::Refused { path: self.path.clone(), source };
        let encoding = self.inner.encode_fast(prompt, false).map_err(refused)?;
        let (kept, cut) = encoding.get_ids().split_at(room.min(encoding.len()));
        let cut = if cut.is_empty() { None } else { Some(self.spell(cut).map_err(refused)?) };

        let mut ids = Vec::with_capacity(max_length);
        ids.extend(self.special.bos.filter(|_| self.starts));
        ids.extend_from_slice(kept);
        ids.push(self.special.eos);
        let n_tokens = ids.len();
        ids.resize(max_length, self.special.pad);
        Ok(Encoded { ids, n_tokens, cut })
    }

    /// The text of tokens, as transformers' `decode` without `clean_up_tokenization_spaces`.
    fn spell(&self, ids: &[u32]) -> tokenizers::Result<String> {
        let text = self.inner.decode(ids, false)?;
        let suffix = match self.inner.get_model() {
            tokenizers::ModelWrapper::BPE(bpe) => bpe.end_of_word_suffix.as_deref(),
            _ => None,
        };
        Ok(match suffix {
            // Python strips the separators U+001C to U+001F as well
            Some(suffix) => text
                .replace(suffix, " ")
                .trim_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c))
                .into(),
            None => text,
        })
    }
}

/// A file that was read.
#[derive(Debug, Clone)]
struct File {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl File {
    fn text(&self) -> Result<&str, TokenizerError> {
        std::str::from_utf8(&self.bytes)
            .map_err(|source| TokenizerError::Load(LoadError::Utf8 { path: self.path.clone(), source }))
    }

    fn json<T: DeserializeOwned>(&self) -> Result<T, TokenizerError> {
        serde_json::from_slice(&self.bytes).map_err(|source| TokenizerError::Json { path: self.path.clone(), source })
    }
}

/// The part of `text` that fits a message.
fn shown(text: &str) -> String {
    const MOST: usize = 40;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text.into(),
    }
}

/// Sees to it that an embedding table has room for every token.
fn check_ids(path: &Path, vocab: &Vocab) -> Result<(), TokenizerError> {
    match vocab.iter().find(|(_, id)| **id > MAX_ID) {
        Some((token, id)) => {
            Err(TokenizerError::TokenId { path: path.into(), token: shown(token), id: *id, max: MAX_ID })
        }
        None => Ok(()),
    }
}

/// A `tokenizer.json` with a model of its own kind.
#[derive(Deserialize)]
struct TokenizerJson<M> {
    #[serde(default)]
    added_tokens: Vec<NumberedToken>,
    normalizer: Option<serde_json::Value>,
    model: M,
}

/// An entry of `added_tokens`.
#[derive(Deserialize)]
struct NumberedToken {
    id: u32,
    #[serde(flatten)]
    token: settings::FullToken,
}

/// Adds the tokens of `settings` to a model with its pipeline, and finds the special ones.
fn finish(
    mut inner: tokenizers::Tokenizer,
    starts: bool,
    path: &Path,
    settings: Settings,
    named: Named,
) -> Result<Tokenizer, TokenizerError> {
    let refused = |source| TokenizerError::Refused { path: path.into(), source };
    inner.add_tokens(settings.added(&named)).map_err(refused)?;
    inner.set_encode_special_tokens(settings.split_special_tokens());
    let id = |token: &Token| {
        let known = inner.token_to_id(token.content());
        known.ok_or_else(|| TokenizerError::NoToken { path: path.into(), token: token.content().into() })
    };
    let special = SpecialIds {
        bos: named.start.as_ref().map(id).transpose()?,
        eos: id(&named.end)?,
        pad: id(&named.pad)?,
        unk: id(&named.unk)?,
    };
    Ok(Tokenizer { inner, special, starts, path: settings.path })
}

#[cfg(test)]
mod tests;
