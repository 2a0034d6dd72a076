//! Sentencepiece's `precompiled_charsmap`: a double-array trie from UTF-8 bytes to replacements.
//!
//! `u32` length of the trie in bytes, the trie's units of `u32`, then replacements that end with NUL. The crate that
//! looks things up in it trusts every offset, hence [`check`].

use serde_json::Value;

/// What is wrong with a map of characters.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CharsmapError {
    /// Not base64, in a `tokenizer.json`.
    #[error("not base64 at character {at}")]
    Base64 {
        /// Offset in the text.
        at: usize,
    },
    /// The trie is longer than the map, or not made of whole units.
    #[error("a trie of {trie} bytes does not fit the map's {bytes}")]
    Length {
        /// What the map says.
        trie: usize,
        /// Its size.
        bytes: usize,
    },
    /// A unit leads out of the trie.
    #[error("unit {unit} of the trie leads to unit {to} of {units}")]
    Unit {
        /// Index of the unit.
        unit: usize,
        /// Where it leads.
        to: usize,
        /// How many there are.
        units: usize,
    },
    /// A unit's replacement is not one.
    #[error("unit {unit} of the trie has its replacement at {at}, which is not in the {bytes} bytes of them")]
    Replacement {
        /// Index of the unit.
        unit: usize,
        /// Where the replacement should be.
        at: usize,
        /// How many bytes of replacements there are.
        bytes: usize,
    },
    /// The replacements are not text.
    #[error("the replacements are not UTF-8")]
    Utf8,
}

/// The map in a `tokenizer.json`'s `normalizer`, as base64.
pub fn of_normalizer(normalizer: &Value) -> Option<&str> {
    match normalizer.get("normalizers") {
        Some(Value::Array(steps)) => steps.iter().find_map(|step| step.get("precompiled_charsmap")?.as_str()),
        _ => normalizer.get("precompiled_charsmap")?.as_str(),
    }
}

/// Standard base64 with padding.
pub fn from_base64(text: &str) -> Result<Vec<u8>, CharsmapError> {
    let digits = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    let mut bits = 0u32;
    for (at, digit) in digits.bytes().enumerate() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Err(CharsmapError::Base64 { at }),
        };
        bits = bits << 6 | u32::from(value);
        match at % 4 {
            0 => {}
            // 2, 4 and 6 bits are left over
            step => bytes.push((bits >> (6 - 2 * step)) as u8),
        }
    }
    Ok(bytes)
}

/// Whether every path through the trie stays inside it and ends at a replacement.
pub fn check(map: &[u8]) -> Result<(), CharsmapError> {
    let length = |trie| CharsmapError::Length { trie, bytes: map.len() };
    let (head, rest) = map.split_first_chunk::<4>().ok_or_else(|| length(0))?;
    let trie = u32::from_le_bytes(*head) as usize;
    let (units, replacements) = rest.split_at_checked(trie).ok_or_else(|| length(trie))?;
    let (units, ragged) = units.as_chunks::<4>();
    if !ragged.is_empty() || units.is_empty() {
        return Err(length(trie));
    }
    let replacements = std::str::from_utf8(replacements).map_err(|_| CharsmapError::Utf8)?;
    let unit = |i: usize| units.get(i).map(|bytes| u32::from_le_bytes(*bytes) as usize);

    let mut seen = vec![false; units.len()];
    let mut todo = vec![0];
    seen[0] = true;
    while let Some(at) = todo.pop() {
        let outside = |to| CharsmapError::Unit { unit: at, to, units: units.len() };
        let this = unit(at).ok_or_else(|| outside(at))?;
        // darts-clone's layout: 22 bits of offset, one that scales it, one that says whether there is a value
        let base = at ^ ((this >> 10) << ((this & 1 << 9) >> 6));
        if this >> 8 & 1 == 1 {
            let value = unit(base).ok_or_else(|| outside(base))? & 0x7fff_ffff;
            if !replacements.is_char_boundary(value) {
                return Err(CharsmapError::Replacement { unit: at, at: value, bytes: replacements.len() });
            }
        }
        for byte in 1..=255 {
            let child = unit(base ^ byte).ok_or_else(|| outside(base ^ byte))?;
            if child & 0x8000_00ff == byte && !seen[base ^ byte] {
                seen[base ^ byte] = true;
                todo.push(base ^ byte);
            }
        }
    }
    Ok(())
}
