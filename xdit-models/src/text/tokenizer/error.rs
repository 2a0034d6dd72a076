//! What can be wrong with a tokenizer.

use std::path::PathBuf;

use xdit_core::checkpoint::LoadError;

use super::charsmap::CharsmapError;
use super::spiece::SpieceError;

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
    /// A setting that has no meaning here.
    #[error("{}: {key}={value} is not supported, only {expected}", path.display())]
    Setting {
        /// The folder.
        path: PathBuf,
        /// Its name in `tokenizer_config.json`.
        key: &'static str,
        /// What stands there, shortened.
        value: String,
        /// What would work.
        expected: &'static str,
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
