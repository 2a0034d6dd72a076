//! `tokenizer.json`, and what is checked of every vocabulary.

use std::path::Path;

use serde::Deserialize;
use tokenizers::models::bpe::Vocab;

use super::error::TokenizerError;
use super::settings::{Settings, Side};
use super::shown::shown;
use super::token::FullToken;

/// A `tokenizer.json` with a model of its own kind.
#[derive(Deserialize)]
pub struct TokenizerJson<M> {
    #[serde(default)]
    added_tokens: Vec<NumberedToken>,
    /// How texts are normalised; of T5's alone something is taken.
    pub normalizer: Option<serde_json::Value>,
    padding: Option<Directed>,
    truncation: Option<Directed>,
    /// The vocabulary.
    pub model: M,
}

/// How sequences are filled up or cut. Callers give another length, but the side stays.
#[derive(Deserialize)]
struct Directed {
    direction: Option<Side>,
}

impl<M> TokenizerJson<M> {
    /// Hands what a configuration may leave to this file over to `settings`.
    pub fn fill(&mut self, settings: &mut Settings) {
        let side = |part: &Option<Directed>| part.as_ref().and_then(|part| part.direction);
        let sides = [side(&self.padding), side(&self.truncation)];
        settings.or_whole(self.added_tokens.drain(..).map(|token| (token.id, token.token)), sides);
    }
}

/// An entry of `added_tokens`.
#[derive(Deserialize)]
pub struct NumberedToken {
    id: u32,
    #[serde(flatten)]
    token: FullToken,
}

/// The largest id that is accepted, far beyond any vocabulary.
const MAX_ID: u32 = 1 << 24;

/// Sees to it that an embedding table has room for every token.
pub fn check_ids(path: &Path, vocab: &Vocab) -> Result<(), TokenizerError> {
    match vocab.iter().find(|(_, id)| **id > MAX_ID) {
        Some((token, id)) => {
            Err(TokenizerError::TokenId { path: path.into(), token: shown(token), id: *id, max: MAX_ID })
        }
        None => Ok(()),
    }
}
