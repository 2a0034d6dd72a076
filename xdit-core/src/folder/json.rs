//! JSON as Python writes it.

use std::borrow::Cow;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::checkpoint::LoadError;

/// Parses the `text` of the file `path`.
pub(super) fn from_json<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, LoadError> {
    serde_json::from_str(&finite(text)).map_err(|source| LoadError::Json { path: path.into(), source })
}

/// Python's `json` writes infinities by name, which is not JSON; schedulers' configurations hold some. The largest
/// numbers stand for them here.
fn finite(text: &str) -> Cow<'_, str> {
    if !text.contains("Infinity") {
        return Cow::Borrowed(text);
    }
    // outside of strings; what a backslash comes before ends none
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(c) = rest.chars().next() {
        if !in_string && rest.starts_with("Infinity") {
            out.push_str("1e308");
            rest = &rest["Infinity".len()..];
            continue;
        }
        let mut n = c.len_utf8();
        match c {
            '"' => in_string = !in_string,
            '\\' if in_string => n += rest[n..].chars().next().map_or(0, char::len_utf8),
            _ => {}
        }
        out.push_str(&rest[..n]);
        rest = &rest[n..];
    }
    Cow::Owned(out)
}
