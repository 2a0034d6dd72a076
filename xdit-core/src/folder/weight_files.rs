//! The names under which diffusers and transformers save weights.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::{from_json, is_file_name};
use crate::checkpoint::{LoadError, Weights, shown};

/// The names that a component's weights may have, without suffix, the likelier one first.
///
/// `library` is that of [`Component`](super::Component). A class that is neither diffusers' nor transformers' lives in
/// some pipeline's own module and is saved the way its base class is.
pub fn base_names(library: &str) -> &'static [&'static str] {
    match library {
        "diffusers" => &["diffusion_pytorch_model"],
        "transformers" => &["model"],
        _ => &["model", "diffusion_pytorch_model"],
    }
}

/// Which files hold a component's weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightFiles {
    /// The checkpoint, or the index that names its shards.
    pub file: String,
    /// Whether `file` is an index.
    pub sharded: bool,
    /// The variant that this is.
    pub variant: Option<String>,
}

impl WeightFiles {
    /// Looks for the weights of one component, given a test for the files of its folder.
    ///
    /// The order is: the variant, the plain files; or without a variant the plain files, `bf16`, `fp16`. A single
    /// file comes before shards.
    ///
    /// # Errors
    ///
    /// Gives the names that it has looked for.
    pub fn find(bases: &[&str], variant: Option<&str>, exists: impl Fn(&str) -> bool) -> Result<Self, Vec<String>> {
        let variants = match variant {
            Some(variant) => [Some(variant), None, None],
            None => [None, Some("bf16"), Some("fp16")],
        };
        let mut looked_for = Vec::new();
        for base in bases {
            for variant in variants {
                let (single, indexes) = match variant {
                    None => (format!("{base}.safetensors"), vec![format!("{base}.safetensors.index.json")]),
                    Some(variant) => (
                        format!("{base}.{variant}.safetensors"),
                        vec![
                            format!("{base}.safetensors.index.{variant}.json"),
                            // As diffusers wrote it before 0.24.
                            format!("{base}.safetensors.{variant}.index.json"),
                            format!("{base}.{variant}.safetensors.index.json"),
                        ],
                    ),
                };
                let variant = variant.map(String::from);
                if exists(&single) {
                    return Ok(Self { file: single, sharded: false, variant });
                }
                if let Some(index) = indexes.iter().find(|index| exists(index)) {
                    return Ok(Self { file: index.clone(), sharded: true, variant });
                }
                for name in std::iter::once(single).chain(indexes) {
                    if !looked_for.contains(&name) {
                        looked_for.push(name);
                    }
                }
            }
        }
        Err(looked_for)
    }
}

/// Whether `variant` can be part of a file's name.
pub(super) fn is_variant(variant: &str) -> bool {
    !variant.is_empty()
        && variant.len() <= 64
        && variant.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// The content of a `*.index.json`: which shard holds which tensor. The shards' names say nothing that is not here.
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

    /// The error that `shard` does not exist.
    pub(super) fn no_shard(&self, path: &Path, shard: &str) -> LoadError {
        let mut of_shard = self.weight_map.iter().filter(|(_, s)| *s == shard);
        let first = of_shard.next().map_or("", |(tensor, _)| tensor);
        LoadError::NoShard {
            index: path.into(),
            shard: shown(shard),
            tensor: shown(first),
            n_tensors: 1 + of_shard.count(),
        }
    }

    /// Checks that every tensor is in the shard that the index names. Shards may hold more.
    pub(super) fn check(&self, path: &Path, weights: &Weights) -> Result<(), LoadError> {
        let mut wrong = self.weight_map.iter().filter(|(tensor, shard)| {
            let file = weights.info(tensor).and_then(|info| info.file.file_name());
            file != Some(shard.as_str().as_ref())
        });
        match wrong.next() {
            None => Ok(()),
            Some((tensor, shard)) => Err(LoadError::NotInShard {
                index: path.into(),
                shard: shown(shard),
                tensor: shown(tensor),
                others: wrong.count(),
            }),
        }
    }
}
