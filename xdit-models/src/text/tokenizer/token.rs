//! Tokens as configurations write them.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use tokenizers::AddedToken;

/// A token as configurations write it.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Token {
    /// Special, and found in the prompt before it is normalised.
    Text(String),
    /// With flags.
    Full(FullToken),
}

/// A token with flags; those that are missing are unset.
#[derive(Debug, Clone, Deserialize)]
pub struct FullToken {
    pub(super) content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl Token {
    /// Of `added_tokens.json`, which has no flags.
    pub fn plain(content: String, special: bool) -> FullToken {
        FullToken { content, single_word: false, lstrip: false, rstrip: false, normalized: Some(!special), special }
    }

    /// Found in the prompt before it is normalised, and not special.
    pub fn as_it_stands(content: &str) -> Self {
        Self::Full(FullToken {
            content: content.into(),
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: Some(false),
            special: false,
        })
    }

    /// Its text.
    pub fn content(&self) -> &str {
        match self {
            Self::Text(content) => content,
            Self::Full(full) => &full.content,
        }
    }
}

impl From<Token> for AddedToken {
    fn from(token: Token) -> Self {
        match token {
            Token::Text(content) => AddedToken::from(content, true),
            Token::Full(full) => AddedToken::from(full.content, full.special)
                .normalized(full.normalized.unwrap_or(!full.special))
                .single_word(full.single_word)
                .lstrip(full.lstrip)
                .rstrip(full.rstrip),
        }
    }
}

/// A list, or a map from a name to a token.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Tokens {
    /// Tokens.
    List(Vec<Token>),
    /// Tokens of which each has a role of its own.
    Map(InOrder<Token>),
}

/// A map in the order of its file: ids are given out in that order.
#[derive(Debug, Clone)]
pub struct InOrder<T>(pub Vec<(String, T)>);

impl<T> Default for InOrder<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for InOrder<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: DeserializeOwned> Visitor<'de> for Entries<T> {
            type Value = InOrder<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    all.push(entry);
                }
                Ok(InOrder(all))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// A value that is there, though it be null.
pub fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}
