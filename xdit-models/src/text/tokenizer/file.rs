//! A file that was read.

use std::path::PathBuf;

use serde::de::DeserializeOwned;
use xdit_core::checkpoint::LoadError;

use super::error::TokenizerError;

/// A file that was read.
#[derive(Debug, Clone)]
pub struct File {
    /// Where it is.
    pub path: PathBuf,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl File {
    /// As UTF-8.
    pub fn text(&self) -> Result<&str, TokenizerError> {
        std::str::from_utf8(&self.bytes)
            .map_err(|source| TokenizerError::Load(LoadError::Utf8 { path: self.path.clone(), source }))
    }

    /// As JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, TokenizerError> {
        serde_json::from_slice(&self.bytes).map_err(|source| TokenizerError::Json { path: self.path.clone(), source })
    }
}
