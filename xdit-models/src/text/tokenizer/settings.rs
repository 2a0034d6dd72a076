//! `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`: which tokens are special, which are added,
//! and how sequences are cut and filled up.
//!
//! Every setting that transformers' `TokenizersBackend` and the three classes read is followed or refused. The others
//! play no part there: `add_bos_token` and `add_eos_token`, `add_prefix_space`, `legacy`, `never_split`, `errors`,
//! `tokenizer_class`, and for CLIP and T5 `do_lower_case` and `strip_accents`.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::AddedToken;

use super::error::TokenizerError;
use super::file::File;
use super::shown::shown;
use super::token::{FullToken, InOrder, Token, Tokens, present};

/// A token's role in a file: absent, null, or a token.
type Role = Option<Option<Token>>;

/// The keys of either file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Keys {
    #[serde(deserialize_with = "present")]
    bos_token: Role,
    #[serde(deserialize_with = "present")]
    eos_token: Role,
    #[serde(deserialize_with = "present")]
    unk_token: Role,
    #[serde(deserialize_with = "present")]
    sep_token: Role,
    #[serde(deserialize_with = "present")]
    pad_token: Role,
    #[serde(deserialize_with = "present")]
    cls_token: Role,
    #[serde(deserialize_with = "present")]
    mask_token: Role,
    extra_ids: Option<i64>,
    extra_special_tokens: Option<Tokens>,
    additional_special_tokens: Option<Tokens>,
    added_tokens_decoder: Option<BTreeMap<u32, FullToken>>,
    split_special_tokens: bool,
    do_lower_case: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
    strip_accents: Option<bool>,
    #[serde(deserialize_with = "present")]
    padding_side: Option<Value>,
    #[serde(deserialize_with = "present")]
    truncation_side: Option<Value>,
    #[serde(deserialize_with = "present")]
    model_max_length: Option<Value>,
    max_len: Option<Value>,
    #[serde(deserialize_with = "present")]
    model_input_names: Option<Value>,
    #[serde(flatten)]
    others: InOrder<Value>,
}

/// A side of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Its start.
    #[serde(alias = "Left")]
    Left,
    /// Its end.
    #[default]
    #[serde(alias = "Right")]
    Right,
}

/// Which roles the tokens at the ends of a sequence have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// `bos_token` and `eos_token`.
    BosEos,
    /// `cls_token` and `sep_token`, BERT's.
    ClsSep,
}

/// The tokens of a class, for roles that no file mentions.
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
    pub unk: Option<Token>,
    pub pad: Token,
    /// These and the ones with other roles, in upstream's order.
    pub all: Vec<Token>,
}

impl Named {
    /// What a model is told of texts that it does not know; of none at all as Python writes it.
    pub fn unk_text(&self) -> &str {
        self.unk.as_ref().map_or("None", Token::content)
    }
}

/// What the files say.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The tokenizer's folder, for messages.
    pub path: PathBuf,
    keys: Keys,
    /// `extra_special_tokens`
    extra: Option<Vec<Token>>,
    /// `additional_special_tokens`, where they are not taken for the former
    additional: Option<Vec<Token>>,
    /// Tokens with roles that a model has beside the common ones.
    own_roles: Vec<Token>,
    /// What `tokenizer.json` says, where the configuration does not.
    sides: [Side; 2],
    /// Whether `tokenizer_config.json` lists all added tokens.
    lists_added: bool,
}

impl Settings {
    /// Reads the files that are there.
    ///
    /// - `added`: `added_tokens.json`
    pub fn new(
        path: PathBuf,
        config: Option<&File>,
        map: Option<&File>,
        added: Option<&File>,
    ) -> Result<Self, TokenizerError> {
        let mut keys: Keys = config.map(File::json).transpose()?.unwrap_or_default();
        let lists_added = keys.added_tokens_decoder.is_some();
        let mut own_roles = tokens_of(&keys.others);
        let mut extra = list(keys.extra_special_tokens.take(), &mut own_roles);
        let mut additional = list(keys.additional_special_tokens.take(), &mut own_roles);
        if extra.as_ref().is_none_or(Vec::is_empty) {
            extra = additional.take().or(extra);
        }
        // added_tokens_decoder replaced both other files
        if !lists_added {
            if let Some(map) = map {
                let mut map: Keys = map.json()?;
                own_roles.extend(tokens_of(&map.others));
                keys.take_roles(&mut map);
                if let Some(more) = list(map.extra_special_tokens.take(), &mut own_roles) {
                    let all = extra.get_or_insert_default();
                    let new: Vec<_> =
                        more.into_iter().filter(|t| all.iter().all(|a| a.content() != t.content())).collect();
                    all.extend(new);
                }
                additional = list(map.additional_special_tokens.take(), &mut own_roles).or(additional);
            }
            if let Some(added) = added {
                let special: HashSet<&str> = keys
                    .roles()
                    .into_iter()
                    .flatten()
                    .flatten()
                    .chain(extra.iter().flatten())
                    .map(Token::content)
                    .collect();
                let ids: BTreeMap<String, u32> = added.json()?;
                let decoder = ids.into_iter().map(|(content, id)| {
                    let special = special.contains(content.as_str());
                    (id, Token::plain(content, special))
                });
                keys.added_tokens_decoder = Some(decoder.collect());
            }
        }
        let settings = Self { path, keys, extra, additional, own_roles, sides: [Side::Right; 2], lists_added };
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), TokenizerError> {
        self.side("padding_side", &self.keys.padding_side, Side::Right)?;
        self.side("truncation_side", &self.keys.truncation_side, Side::Right)?;
        match &self.keys.model_input_names {
            Some(names) if !names.as_array().is_some_and(|all| all.iter().any(|name| name == "attention_mask")) => {
                Err(self.refuse("model_input_names", &names.to_string(), "a list with \"attention_mask\""))
            }
            _ => Ok(()),
        }
    }

    fn side(&self, key: &'static str, given: &Option<Value>, default: Side) -> Result<Side, TokenizerError> {
        match given.as_ref().map(|value| (value, value.as_str())) {
            None => Ok(default),
            Some((_, Some("left"))) => Ok(Side::Left),
            Some((_, Some("right"))) => Ok(Side::Right),
            Some((value, _)) => Err(self.refuse(key, &value.to_string(), "\"left\" and \"right\"")),
        }
    }

    /// The error that names a setting.
    pub fn refuse(&self, key: &'static str, value: &str, expected: &'static str) -> TokenizerError {
        TokenizerError::Setting { path: self.path.clone(), key, value: shown(value), expected }
    }

    /// Where padding goes, and where what is too long is cut.
    pub fn sides(&self) -> Result<[Side; 2], TokenizerError> {
        let [padding, truncation] = self.sides;
        Ok([
            self.side("padding_side", &self.keys.padding_side, padding)?,
            self.side("truncation_side", &self.keys.truncation_side, truncation)?,
        ])
    }

    /// The most tokens of a text, where the files say.
    ///
    /// # Errors
    /// What is no number of tokens; the class may not need it.
    pub fn model_max_length(&self) -> Result<Option<usize>, TokenizerError> {
        /// transformers writes 10^30 for no limit, and takes anything beyond this for it.
        const NO_LIMIT: f64 = 1e20;
        let given = self.keys.model_max_length.as_ref().or(self.keys.max_len.as_ref());
        match given.map(|value| (value, value.as_f64())) {
            None | Some((Value::Null, _)) => Ok(None),
            Some((_, Some(n))) if n > NO_LIMIT => Ok(None),
            Some((_, Some(n))) if n >= 1.0 && n.fract() == 0.0 => Ok(Some(n as usize)),
            Some((value, _)) => Err(self.refuse("model_max_length", &value.to_string(), "a positive whole number")),
        }
    }

    /// How many reserved tokens there are.
    pub fn extra_ids(&self) -> Option<usize> {
        self.keys.extra_ids.map(|n| usize::try_from(n).unwrap_or(0))
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

    /// Takes from `tokenizer.json` the sides, and the flags of added tokens if `tokenizer_config.json` says none.
    pub fn or_whole(&mut self, tokens: impl Iterator<Item = (u32, FullToken)>, sides: [Option<Side>; 2]) {
        self.sides = sides.map(Option::unwrap_or_default);
        if !self.lists_added {
            self.keys.added_tokens_decoder.get_or_insert_default().extend(tokens);
        }
    }

    /// The additional special tokens, to be changed by a class that adds some of its own.
    pub fn additional(&mut self) -> &mut Option<Vec<Token>> {
        &mut self.additional
    }
    /// The tokens that have a role.
    ///
    /// # Errors
    /// A role that a sequence cannot do without, and that is null.
    pub fn named(&self, defaults: Defaults) -> Result<Named, TokenizerError> {
        let [bos, eos, unk, sep, pad, cls, mask] = self.keys.roles();
        let or = |role: &Role, default: Option<&str>| match role {
            Some(given) => given.clone(),
            None => default.map(|text| Token::Text(text.into())),
        };
        let must = |key: &'static str, token: Option<Token>| token.ok_or_else(|| self.refuse(key, "null", "a token"));
        let (unk, mask) = (or(unk, Some(defaults.unk)), or(mask, defaults.mask));
        let pad = must("pad_token", or(pad, Some(defaults.pad)))?;
        let (start, end) = match defaults.ends {
            Ends::BosEos => (or(bos, defaults.start), must("eos_token", or(eos, Some(defaults.end)))?),
            Ends::ClsSep => (or(cls, defaults.start), must("sep_token", or(sep, Some(defaults.end)))?),
        };
        if defaults.start.is_some() && start.is_none() {
            let key = if defaults.ends == Ends::BosEos { "bos_token" } else { "cls_token" };
            return Err(self.refuse(key, "null", "a token"));
        }
        let (first, last, filler) = (start.clone(), Some(end.clone()), Some(pad.clone()));
        let all = match defaults.ends {
            Ends::BosEos => [first, last, unk.clone(), or(sep, None), filler, or(cls, None), mask],
            Ends::ClsSep => [or(bos, None), or(eos, None), unk.clone(), last, filler, first, mask],
        };
        Ok(Named {
            start,
            end,
            unk,
            pad,
            all: all.into_iter().flatten().chain(self.own_roles.iter().cloned()).collect(),
        })
    }

    /// Every token that is looked for in a prompt before the model sees it, in the order in which ids are given out.
    ///
    /// Of equal tokens with different flags the last counts, as `TokenizersBackend.__init__` has it: old files write
    /// CLIP's end token with flags and the padding that equals it without.
    pub fn added(&self, named: &Named) -> Vec<AddedToken> {
        let named = &named.all;
        let decoder = self.keys.added_tokens_decoder.clone().unwrap_or_default();
        let in_decoder: HashSet<&str> = decoder.values().map(|full| full.content.as_str()).collect();
        let extra = self.extra.as_ref().or(self.additional.as_ref());
        let others = named.iter().chain(extra.into_iter().flatten());
        let others = others.filter(|token| !in_decoder.contains(token.content()));

        let all = decoder.values().cloned().map(Token::Full).chain(others.cloned());
        let mut added: Vec<AddedToken> = all.map(Into::into).collect();
        for token in &mut added {
            token.special |= named.iter().any(|named| named.content() == token.content);
        }
        added
    }
}

impl Keys {
    /// In upstream's order: that of `SPECIAL_TOKENS_ATTRIBUTES`.
    fn roles(&self) -> [&Role; 7] {
        let Self { bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token, .. } = self;
        [bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token]
    }

    /// What the map says counts.
    fn take_roles(&mut self, map: &mut Self) {
        for (role, given) in [
            (&mut self.bos_token, &mut map.bos_token),
            (&mut self.eos_token, &mut map.eos_token),
            (&mut self.unk_token, &mut map.unk_token),
            (&mut self.sep_token, &mut map.sep_token),
            (&mut self.pad_token, &mut map.pad_token),
            (&mut self.cls_token, &mut map.cls_token),
            (&mut self.mask_token, &mut map.mask_token),
        ] {
            if given.is_some() {
                *role = given.take();
            }
        }
    }
}

/// The tokens among keys that have no meaning of their own: roles that only this model has.
fn tokens_of(others: &InOrder<Value>) -> Vec<Token> {
    let own =
        others.0.iter().filter(|(key, value)| key.ends_with("_token") && (value.is_string() || value.is_object()));
    own.filter_map(|(_, value)| Token::deserialize(value).ok()).collect()
}

/// The tokens of a list; those of a map are roles.
fn list(tokens: Option<Tokens>, own_roles: &mut Vec<Token>) -> Option<Vec<Token>> {
    match tokens? {
        Tokens::List(list) => Some(list),
        Tokens::Map(map) => {
            own_roles.extend(map.0.into_iter().map(|(_, token)| token));
            None
        }
    }
}
