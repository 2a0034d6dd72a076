//! Whether the cache has a pipeline.

use std::path::{Path, PathBuf};

use xdit_core::checkpoint::LoadError;
use xdit_core::folder::{Component, PipelineFolder, Source};

use super::cache::RepoCache;
use super::error::HubError;

/// The cached folder of `repo` at `revision`, if it is complete.
pub(super) fn cached(
    cache: &RepoCache,
    repo: &str,
    revision: &str,
    variant: Option<&str>,
) -> Result<PathBuf, HubError> {
    const INDEX: &str = "model_index.json";
    let not_cached = |dir: PathBuf, missing| HubError::NotCached { repo: repo.into(), dir, missing };
    let Some(commit) = cache.commit_of(revision) else {
        return Err(not_cached(cache.snapshot(""), vec![format!("{INDEX} of {revision}")]));
    };
    let dir = cache.snapshot(&commit);
    let folder = match PipelineFolder::open(Source::Dir(dir.clone())) {
        Err(LoadError::NotAPipeline { .. }) => return Err(not_cached(dir, vec![INDEX.into()])),
        folder => folder?,
    };
    let check = |component| check_component(&folder, &dir, component, variant).err();
    let missing: Vec<_> = folder.components().filter_map(check).collect();
    if missing.is_empty() {
        return Ok(dir);
    }
    Err(not_cached(dir, missing))
}

/// Looks for a component's files; fails with those that are missing.
fn check_component(
    folder: &PipelineFolder,
    dir: &Path,
    component: &Component,
    variant: Option<&str>,
) -> Result<(), String> {
    let name = &component.name;
    let is_empty = std::fs::read_dir(dir.join(name)).map_or(true, |mut files| files.next().is_none());
    if !component.is_model() {
        // A safety checker or the like that was not asked for may have had no small files at all.
        let needed = ["tokenizer", "scheduler"].iter().any(|start| name.starts_with(start));
        return if is_empty && needed { Err(format!("{name}/")) } else { Ok(()) };
    }
    if is_empty {
        return Err(format!("{name}/"));
    }
    if !folder.exists(&format!("{name}/config.json")) {
        return Err(format!("{name}/config.json"));
    }
    match folder.weights(name, variant) {
        Ok(_) => Ok(()),
        Err(LoadError::NoWeights { looked_for, .. }) => Err(format!("{name}/{}", looked_for.join(" or "))),
        Err(LoadError::NoShard { shard, .. }) => Err(format!("{name}/{}", shard.trim_matches('"'))),
        Err(error) => Err(format!("{name}/ as it should be ({error})")),
    }
}
