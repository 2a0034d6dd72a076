//! A tokenizer that is built, and what it makes of prompts.

use std::ops::Range;
use std::path::Path;

use super::error::TokenizerError;
use super::settings::{Named, Settings, Side};
use super::token::Token;

/// The tokenizer of one text encoder.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialIds,
    /// Whether a sequence starts with [`SpecialIds::bos`].
    starts: bool,
    padding: Side,
    truncation: Side,
    settings: Settings,
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
    /// What is not in the vocabulary, where there is such a token.
    pub unk: Option<u32>,
}

/// A prompt's tokens with padding on one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// As many as were asked for.
    pub ids: Vec<u32>,
    /// Which of them are not padding.
    pub tokens: Range<usize>,
    /// The part of the prompt for which there was no room, as its tokens spell it; diffusers warns with it.
    pub cut: Option<String>,
}

impl Encoded {
    /// For each id, whether it is a token of the prompt and not padding.
    pub fn seen(&self) -> Vec<bool> {
        (0..self.ids.len()).map(|i| self.tokens.contains(&i)).collect()
    }

    /// `attention_mask`: 1 for tokens of the prompt, 0 for padding.
    pub fn mask(&self) -> Vec<u32> {
        (0..self.ids.len()).map(|i| u32::from(self.tokens.contains(&i))).collect()
    }
}

impl Tokenizer {
    /// The ids of tokens that have a meaning of their own.
    pub fn special(&self) -> SpecialIds {
        self.special
    }

    /// The most tokens of a text, where the files say: `model_max_length`.
    ///
    /// # Errors
    /// What is no number of tokens.
    pub fn model_max_length(&self) -> Result<Option<usize>, TokenizerError> {
        self.settings.model_max_length()
    }

    /// `tokenizer(prompt, padding="max_length", max_length=max_length, truncation=True)`
    ///
    /// A prompt that is too long loses its last tokens, or its first where the files say so; start and end always stay.
    ///
    /// # Errors
    /// A `max_length` below the number of special tokens.
    pub fn encode(&self, prompt: &str, max_length: usize) -> Result<Encoded, TokenizerError> {
        let path = &self.settings.path;
        let n_special = if self.starts { 2 } else { 1 };
        let Some(room) = max_length.checked_sub(n_special) else {
            return Err(TokenizerError::MaxLength { path: path.clone(), max_length, n_special });
        };
        let refused = |source| TokenizerError::Refused { path: path.clone(), source };
        let encoding = self.inner.encode_fast(prompt, false).map_err(refused)?;
        let (all, room) = (encoding.get_ids(), room.min(encoding.len()));
        let (kept, cut) = match self.truncation {
            Side::Right => all.split_at(room),
            Side::Left => {
                let (cut, kept) = all.split_at(all.len() - room);
                (kept, cut)
            }
        };
        let cut = if cut.is_empty() { None } else { Some(self.spell(cut).map_err(refused)?) };

        let n = kept.len() + n_special;
        let padding = vec![self.special.pad; max_length - n];
        let start = if self.padding == Side::Left { padding.len() } else { 0 };
        let mut ids = Vec::with_capacity(max_length);
        if self.padding == Side::Left {
            ids.extend_from_slice(&padding);
        }
        ids.extend(self.special.bos.filter(|_| self.starts));
        ids.extend_from_slice(kept);
        ids.push(self.special.eos);
        if self.padding == Side::Right {
            ids.extend_from_slice(&padding);
        }
        Ok(Encoded { ids, tokens: start..start + n, cut })
    }

    /// The token of this id, for messages.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
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

/// Adds the tokens of `settings` to a model with its pipeline, and finds the special ones.
pub fn finish(
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
        unk: named.unk.as_ref().map(id).transpose()?,
    };
    let [padding, truncation] = settings.sides()?;
    Ok(Tokenizer { inner, special, starts, padding, truncation, settings })
}
