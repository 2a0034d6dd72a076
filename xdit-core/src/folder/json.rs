//! JSON as Python writes it.

use std::borrow::Cow;
use std::path::Path;

use serde::de::{DeserializeOwned, Error as _};
use serde_json::Value;

use crate::checkpoint::LoadError;

/// Parses the `text` of the file `path`.
pub(super) fn from_json<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, LoadError> {
    serde_json::from_str(&finite(text)).map_err(|source| LoadError::Json { path: path.into(), source })
}

/// A component's configuration; the message names the field and the line.
///
/// - `is_diffusers`: whether the file may say which of its values are another class's defaults
pub(super) fn config_from_json<T: DeserializeOwned>(
    path: &Path,
    text: &str,
    is_diffusers: bool,
) -> Result<T, LoadError> {
    let text = finite(text);
    let refused = |source| LoadError::Json { path: path.into(), source };
    let mut config: Value = serde_json::from_str(&text).map_err(refused)?;
    if is_diffusers {
        config = without_defaults(config);
    }
    serde_path_to_error::deserialize(config).map_err(|error| {
        // once more from the text, for a message with the field and the line
        let again = serde_path_to_error::deserialize::<_, T>(&mut serde_json::Deserializer::from_str(&text));
        refused(serde_json::Error::custom(again.err().map_or(error.to_string(), |error| error.to_string())))
    })
}

/// Without what the file says to be another class's defaults, in whose place this class's own are taken.
fn without_defaults(mut config: Value) -> Value {
    if let Some(config) = config.as_object_mut() {
        let names = config.remove("_use_default_values");
        for name in names.iter().filter_map(Value::as_array).flatten().filter_map(Value::as_str) {
            config.remove(name);
        }
    }
    config
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
