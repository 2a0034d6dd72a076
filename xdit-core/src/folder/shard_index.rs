//! The index of a sharded checkpoint.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::json::from_json;
use super::names::is_file_name;
use crate::checkpoint::{LoadError, Weights, shown};

/// The content of a `*.index.json`: which shard holds which tensor. It decides which files are shards and nothing
/// else, as in diffusers and transformers: a tensor may be in another shard than it says, or in none if no model asks
/// for it, and shards may hold more.
#[derive(Debug, Deserialize)]
pub struct WeightIndex {
    weight_map: BTreeMap<String, String>,
}

impl WeightIndex {
    /// Parses the index `text` of the file `path`.
    ///
    /// # Errors
    ///
    /// Fails if it is not an index, names no shard, or names one that is not a safetensors file of the same folder.
    pub fn parse(path: &Path, text: &str) -> Result<Self, LoadError> {
        let index: Self = from_json(path, text)?;
        for shard in index.weight_map.values() {
            if !is_file_name(shard) || !shard.ends_with(".safetensors") {
                return Err(LoadError::FileName { path: path.into(), name: shown(shard) });
            }
        }
        if index.weight_map.is_empty() {
            return Err(LoadError::NoWeights { path: path.into(), looked_for: vec!["weight_map".into()] });
        }
        Ok(index)
    }

    /// The shards' file names, sorted.
    pub fn shards(&self) -> Vec<&str> {
        let mut shards: Vec<_> = self.weight_map.values().map(String::as_str).collect();
        shards.sort_unstable();
        shards.dedup();
        shards
    }

    /// The shards, if all of them are there.
    ///
    /// # Errors
    ///
    /// The first that is not. `path` is the index.
    pub fn existing_shards(&self, path: &Path, exists: impl Fn(&str) -> bool) -> Result<Vec<&str>, LoadError> {
        let shards = self.shards();
        match shards.iter().find(|shard| !exists(shard)) {
            None => Ok(shards),
            Some(shard) => Err(self.no_shard(path, shard)),
        }
    }

    /// The error that `shard` does not exist.
    fn no_shard(&self, path: &Path, shard: &str) -> LoadError {
        let mut of_shard = self.weight_map.iter().filter(|(_, s)| *s == shard);
        let first = of_shard.next().map_or("", |(tensor, _)| tensor);
        LoadError::NoShard {
            index: path.into(),
            shard: shown(shard),
            tensor: shown(first),
            n_tensors: 1 + of_shard.count(),
        }
    }

    /// What to say about the tensors of the index that no shard holds, if there are any. A model that needs one of them
    /// will miss it.
    pub(super) fn superfluous(&self, path: &Path, weights: &Weights) -> Option<String> {
        let mut absent = self.weight_map.keys().filter(|tensor| weights.info(tensor).is_none());
        let first = absent.next()?;
        let n = 1 + absent.count();
        Some(format!("{}: {n} tensors are in none of the shards, {} for one", path.display(), shown(first)))
    }
}
