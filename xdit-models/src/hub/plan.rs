//! Which files of a repository a pipeline needs, and whether the cache has them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hf_hub::CacheRepo;
use serde_json::Value;
use xdit_core::checkpoint::LoadError;
use xdit_core::folder::{Component, PipelineFolder, Source, WeightFiles, WeightIndex, base_names};

use super::{HubError, Listing, RemoteFile, is_commit};

/// The files to have besides `model_index.json`, whose text is `index`. `read` gives the text of a small file.
pub(super) fn needed<'a>(
    repo: &str,
    listing: &'a Listing,
    index: &str,
    variant: Option<&str>,
    read: &mut dyn FnMut(&RemoteFile) -> Result<String, HubError>,
) -> Result<Vec<&'a RemoteFile>, HubError> {
    let mut files: Vec<_> = listing.file("xdit.json").into_iter().collect();
    for (name, library) in components(index)? {
        let in_folder = |file: &'a RemoteFile| {
            let rest = file.path.strip_prefix(&name)?.strip_prefix('/')?;
            (!rest.contains('/')).then_some((rest, file))
        };
        let folder: BTreeMap<&str, &RemoteFile> = listing.files.iter().filter_map(in_folder).collect();
        files.extend(folder.iter().filter(|(name, _)| is_small(name)).map(|(_, file)| *file));
        let bases = base_names(&library);
        match WeightFiles::find(bases, variant, |file| folder.contains_key(file)) {
            Err(_) => {
                let other = folder.keys().find(|name| is_other_weights(bases, name));
                if let Some(found) = other {
                    return Err(HubError::NoSafetensors {
                        repo: repo.into(),
                        component: name.clone(),
                        found: (*found).into(),
                    });
                }
            }
            Ok(found) => {
                let file = folder[found.file.as_str()];
                files.push(file);
                if found.sharded {
                    let path = Path::new(&file.path);
                    let index = WeightIndex::parse(path, &read(file)?)?;
                    for shard in index.shards() {
                        let shard = folder
                            .get(shard)
                            .ok_or_else(|| LoadError::NoFile { path: format!("{name}/{shard}").into() })?;
                        files.push(shard);
                    }
                }
            }
        }
    }
    Ok(files)
}

/// Name and library of the components in a `model_index.json`. Its other entries are judged when it is opened.
fn components(index: &str) -> Result<Vec<(String, String)>, HubError> {
    let entries: BTreeMap<String, Value> =
        serde_json::from_str(index).map_err(|source| LoadError::Json { path: "model_index.json".into(), source })?;
    let component = |(name, value): (String, Value)| {
        let library = value.as_array()?.first()?.as_str()?.to_string();
        Some((name, library))
    };
    Ok(entries.into_iter().filter_map(component).collect())
}

/// Configurations and what tokenizers are made of, without the indexes of weights.
fn is_small(name: &str) -> bool {
    let is_index = name.contains(".index.") && name.ends_with(".json");
    !is_index && [".json", ".txt", ".model", ".jinja"].iter().any(|suffix| name.ends_with(suffix))
}

/// Whether `name` is a component's weights in a format that is not read here.
fn is_other_weights(bases: &[&str], name: &str) -> bool {
    let is_base = bases.iter().chain(&["pytorch_model"]).any(|base| name.starts_with(base));
    is_base && (name.ends_with(".bin") || name.ends_with(".safetensors"))
}

/// The cached folder of `repo` at `revision`, if it is complete.
pub(super) fn cached(
    cache: &CacheRepo,
    repo: &str,
    revision: &str,
    variant: Option<&str>,
) -> Result<PathBuf, HubError> {
    const INDEX: &str = "model_index.json";
    let not_cached = |dir: PathBuf, missing| HubError::NotCached { repo: repo.into(), dir, missing };
    let dir = if is_commit(revision) {
        cache.pointer_path(revision)
    } else {
        let index = cache.get(INDEX);
        let dir = index.as_deref().and_then(Path::parent);
        dir.ok_or_else(|| not_cached(cache.pointer_path(""), vec![format!("{INDEX} of {revision}")]))?.to_path_buf()
    };
    let folder = match PipelineFolder::open(Source::Dir(dir.clone())) {
        Err(LoadError::NotAPipeline { .. }) => return Err(not_cached(dir, vec![INDEX.into()])),
        folder => folder?,
    };
    let mut missing = Vec::new();
    for component in folder.components() {
        if let Err(what) = check_component(&folder, &dir, component, variant) {
            missing.push(what);
        }
    }
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
    if is_empty {
        return Err(format!("{name}/"));
    }
    // What has a config.json has weights, except tokenizers and their like, which sometimes carry a stray one.
    let class = &component.class;
    let no_model = ["Tokenizer", "Processor", "Extractor", "Scheduler"];
    if no_model.iter().any(|part| class.contains(part)) {
        return Ok(());
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
