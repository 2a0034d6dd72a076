//! `tokenizer_config.json` and `special_tokens_map.json`: which tokens are special, and which are added.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use serde::Deserialize;
use tokenizers::AddedToken;

use super::{File, TokenizerError};

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
    content: String,
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

/// The keys of either file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Keys {
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    unk_token: Option<Token>,
    sep_token: Option<Token>,
    pad_token: Option<Token>,
    cls_token: Option<Token>,
    mask_token: Option<Token>,
    extra_ids: Option<usize>,
    extra_special_tokens: Option<Tokens>,
    additional_special_tokens: Option<Tokens>,
    added_tokens_decoder: Option<BTreeMap<u32, FullToken>>,
    split_special_tokens: bool,
    do_lower_case: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
    strip_accents: Option<bool>,
}

/// A list, or a map from a name to a token.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Tokens {
    List(Vec<Token>),
    Map(BTreeMap<String, Token>),
}

/// Which roles the tokens at the ends of a sequence have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// `bos_token` and `eos_token`.
    BosEos,
    /// `cls_token` and `sep_token`, BERT's.
    ClsSep,
}

/// The tokens of a class, for roles that no file fills.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    pub ends: Ends,
    pub start: Option<&'static str>,
    pub end: &'static str,
    pub unk: &'static str,
    pub pad: &'static str,
    pub mask: Option<&'static str>,
}

/// The tokens that have a role.
#[derive(Debug, Clone)]
pub struct Named {
    pub start: Option<Token>,
    pub end: Token,
    pub unk: Token,
    pub pad: Token,
    /// These and the ones with other roles, in upstream's order.
    pub all: Vec<Token>,
}

/// What both files say.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The tokenizer's folder, for messages.
    pub path: PathBuf,
    keys: Keys,
    extra: Option<Vec<Token>>,
}

impl Settings {
    /// Reads the files that are there.
    pub fn new(path: PathBuf, config: Option<&File>, map: Option<&File>) -> Result<Self, TokenizerError> {
        let mut keys: Keys = config.map(File::json).transpose()?.unwrap_or_default();
        let mut extra = keys.extra_special_tokens.take().or(keys.additional_special_tokens.take());
        // the map is what added_tokens_decoder replaced
        if keys.added_tokens_decoder.is_none()
            && let Some(map) = map
        {
            let map: Keys = map.json()?;
            keys.bos_token = map.bos_token.or(keys.bos_token);
            keys.eos_token = map.eos_token.or(keys.eos_token);
            keys.unk_token = map.unk_token.or(keys.unk_token);
            keys.sep_token = map.sep_token.or(keys.sep_token);
            keys.pad_token = map.pad_token.or(keys.pad_token);
            keys.cls_token = map.cls_token.or(keys.cls_token);
            keys.mask_token = map.mask_token.or(keys.mask_token);
            extra = extra.or(map.extra_special_tokens).or(map.additional_special_tokens);
        }
        let extra = extra.map(|tokens| match tokens {
            Tokens::List(list) => list,
            Tokens::Map(map) => map.into_values().collect(),
        });
        Ok(Self { path, keys, extra })
    }

    /// How many reserved tokens there are.
    pub fn extra_ids(&self) -> Option<usize> {
        self.keys.extra_ids
    }

    /// Whether special tokens in a prompt are plain text.
    pub fn split_special_tokens(&self) -> bool {
        self.keys.split_special_tokens
    }

    /// BERT's: whether case does not count.
    pub fn do_lower_case(&self) -> bool {
        self.keys.do_lower_case.unwrap_or(true)
    }

    /// BERT's: whether every Chinese character is a word.
    pub fn tokenize_chinese_chars(&self) -> bool {
        self.keys.tokenize_chinese_chars.unwrap_or(true)
    }

    /// BERT's: whether accents do not count; as [`do_lower_case`](Self::do_lower_case) if the files do not say.
    pub fn strip_accents(&self) -> Option<bool> {
        self.keys.strip_accents
    }

    /// Takes the flags of added tokens from `tokenizer.json`, if `tokenizer_config.json` says none.
    pub fn or_decoder(&mut self, decoder: BTreeMap<u32, FullToken>) {
        self.keys.added_tokens_decoder.get_or_insert(decoder);
    }

    /// Takes the class's additional tokens, if the files list none.
    pub fn or_extra(&mut self, extra: Vec<Token>) {
        self.extra.get_or_insert(extra);
    }

    /// The tokens that have a role.
    pub fn named(&self, defaults: Defaults) -> Named {
        let Keys { bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token, .. } = &self.keys;
        let maybe = |token: &Option<Token>, default: Option<&str>| {
            token.clone().or_else(|| default.map(|text| Token::Text(text.into())))
        };
        let or = |token: &Option<Token>, default: &str| token.clone().unwrap_or_else(|| Token::Text(default.into()));
        let (unk, pad) = (or(unk_token, defaults.unk), or(pad_token, defaults.pad));
        let mask = maybe(mask_token, defaults.mask);
        let (start, end) = match defaults.ends {
            Ends::BosEos => (maybe(bos_token, defaults.start), or(eos_token, defaults.end)),
            Ends::ClsSep => (maybe(cls_token, defaults.start), or(sep_token, defaults.end)),
        };
        let (first, last) = (start.clone(), Some(end.clone()));
        let (u, p) = (Some(unk.clone()), Some(pad.clone()));
        let all = match defaults.ends {
            Ends::BosEos => [first, last, u, sep_token.clone(), p, cls_token.clone(), mask],
            Ends::ClsSep => [bos_token.clone(), eos_token.clone(), u, last, p, first, mask],
        };
        Named { start, end, unk, pad, all: all.into_iter().flatten().collect() }
    }

    /// Every token that is looked for in a prompt before the model sees it, in the order in which ids are given out.
    ///
    /// Of equal tokens with different flags the last counts, as `TokenizersBackend.__init__` has it: old files write
    /// CLIP's end token with flags and the padding that equals it without.
    pub fn added(&self, named: &Named) -> Vec<AddedToken> {
        let named = &named.all;
        let decoder = self.keys.added_tokens_decoder.clone().unwrap_or_default();
        let in_decoder: HashSet<&str> = decoder.values().map(|full| full.content.as_str()).collect();
        let others = named.iter().chain(self.extra.iter().flatten());
        let others = others.filter(|token| !in_decoder.contains(token.content()));

        let all = decoder.values().cloned().map(Token::Full).chain(others.cloned());
        let mut added: Vec<AddedToken> = all.map(Into::into).collect();
        for token in &mut added {
            token.special |= named.iter().any(|named| named.content() == token.content);
        }
        added
    }
}
