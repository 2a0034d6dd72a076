//! The weights of a component.

use std::path::PathBuf;

use super::names::is_variant;
use super::pipeline::PipelineFolder;
use super::shard_index::WeightIndex;
use super::source::Source;
use super::weight_files::{Variants, WeightFiles};
use crate::checkpoint::{LoadError, Weights, foreign_name, shown};

/// Largest index of shards. Real ones have a line of about 100 bytes for each tensor.
const MAX_INDEX: u64 = 25 << 20;

impl PipelineFolder {
    /// Opens the weights of `component`, reading headers only.
    ///
    /// Which files these are is told by [`WeightFiles::find`]; where the preferred ones are incomplete or broken, the
    /// component's others of the same variant serve, and [`Weights::notes`] says so. [`Weights::variant`] and
    /// [`Weights::files`] tell what it came to.
    ///
    /// # Errors
    ///
    /// Fails if the pipeline has no such component, if there are no weights under any of the known names, if shards
    /// are missing, or as [`Weights::open`].
    pub fn weights(&self, component: &str, variant: Option<&str>) -> Result<Weights, LoadError> {
        let component = self.component(component)?;
        let folder = &component.name;
        if let Some(variant) = variant
            && !is_variant(variant)
        {
            return Err(LoadError::Variant { variant: shown(variant) });
        }
        let exists = |file: &str| self.exists(&format!("{folder}/{file}"));
        let sets = WeightFiles::find(&component.library, variant, exists)
            .map_err(|looked_for| self.no_weights(folder, looked_for))?;
        let open = |set: &WeightFiles| self.open_set(folder, set).map(|weights| (weights, set.file.clone()));
        let ((mut weights, used), refused) = WeightFiles::first_good(&sets, open)?;
        for error in refused {
            weights.note(format!("{error}; {folder}/{used} is used instead"));
        }
        Ok(weights)
    }

    /// The variants that `component` has weights of.
    ///
    /// # Errors
    ///
    /// Fails if the pipeline has no such component.
    pub fn variants(&self, component: &str) -> Result<Variants, LoadError> {
        let component = self.component(component)?;
        let files = self.files(&component.name);
        Ok(Variants::of(&component.library, files.iter().map(String::as_str)))
    }

    fn open_set(&self, folder: &str, set: &WeightFiles) -> Result<Weights, LoadError> {
        let mut weights = if set.sharded {
            let rel = format!("{folder}/{}", set.file);
            let path = self.path(&rel);
            let index = WeightIndex::parse(&path, &self.source.text(&rel, MAX_INDEX)?)?;
            let shards = index.existing_shards(&path, |shard| self.exists(&format!("{folder}/{shard}")))?;
            let mut weights = self.open_files(folder, &shards)?;
            if let Some(note) = index.superfluous(&path, &weights) {
                weights.note(note);
            }
            weights
        } else {
            self.open_files(folder, &[&set.file])?
        };
        weights.set_variant(set.variant.clone());
        Ok(weights)
    }

    fn open_files(&self, folder: &str, files: &[&str]) -> Result<Weights, LoadError> {
        let rels = files.iter().map(|file| format!("{folder}/{file}"));
        match &self.source {
            Source::Dir(_) => {
                let paths: Vec<_> = rels.map(|rel| self.path(&rel)).collect();
                Weights::open(folder, &paths)
            }
            Source::Embedded(_) => {
                let open = |rel: String| Ok((self.path(&rel), self.source.embedded(&rel)?));
                let files: Vec<(PathBuf, _)> = rels.map(open).collect::<Result<_, LoadError>>()?;
                Weights::from_static(folder, &files)
            }
        }
    }

    /// Why there are no weights in `folder` under the names that were looked for, as exactly as its files tell.
    fn no_weights(&self, folder: &str, looked_for: Vec<String>) -> LoadError {
        let files = self.files(folder);
        let path = self.path(folder);
        if let Some(other) = files.iter().find(|file| file.ends_with(".safetensors")) {
            let single = |name: &String| name.ends_with(".safetensors");
            let looked_for = looked_for.into_iter().filter(single).collect();
            return LoadError::OtherNames { path, found: shown(other), looked_for };
        }
        let foreign = files.iter().find_map(|file| foreign_name(&path.join(file)));
        foreign.unwrap_or(LoadError::NoWeights { path, looked_for })
    }
}
