//! Which files of a repository a pipeline needs.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use xdit_core::checkpoint::LoadError;
use xdit_core::folder::{Component, Variants, WeightFiles, WeightIndex};

use super::error::HubError;
use super::listing::{Listing, RemoteFile};
use super::wanted::Wanted;

/// A component's files by their names in its folder.
type Folder<'a> = BTreeMap<&'a str, &'a RemoteFile>;

/// The files to have besides `model_index.json`, whose text is `index`. `read` gives the text of a small file.
pub(super) fn needed<'a>(
    wanted: &Wanted<'_>,
    listing: &'a Listing,
    index: &str,
    read: &mut dyn FnMut(&RemoteFile) -> Result<String, HubError>,
) -> Result<Vec<&'a RemoteFile>, HubError> {
    let Wanted { id: repo, variant, .. } = *wanted;
    let components = components(wanted, index)?;
    if let Some(variant) = variant {
        check_variant(repo, listing, &components, variant)?;
    }
    let mut files: Vec<_> = listing.file("xdit.json").into_iter().collect();
    for component in &components {
        let folder = folder(listing, &component.name);
        files.extend(folder.iter().filter(|(name, _)| is_small(name)).map(|(_, file)| *file));
        if component.is_model() {
            files.extend(weights(repo, component, &folder, variant, read)?);
        }
    }
    Ok(files)
}

fn folder<'a>(listing: &'a Listing, component: &str) -> Folder<'a> {
    let in_folder = |file: &'a RemoteFile| {
        let rest = file.path.strip_prefix(component)?.strip_prefix('/')?;
        (!rest.contains('/')).then_some((rest, file))
    };
    listing.files.iter().filter_map(in_folder).collect()
}

/// The files of a component's weights: by the same rule as where they are opened, of what the repository has.
fn weights<'a>(
    repo: &str,
    component: &Component,
    folder: &Folder<'a>,
    variant: Option<&str>,
    read: &mut dyn FnMut(&RemoteFile) -> Result<String, HubError>,
) -> Result<Vec<&'a RemoteFile>, HubError> {
    let name = &component.name;
    let Ok(sets) = WeightFiles::find(&component.library, variant, |file| folder.contains_key(file)) else {
        let is_weights =
            |name: &&&str| [".bin", ".safetensors", ".gguf", ".ckpt", ".pt"].iter().any(|end| name.ends_with(end));
        return match folder.keys().find(is_weights) {
            Some(found) => {
                Err(HubError::NoSafetensors { repo: repo.into(), component: name.clone(), found: (*found).into() })
            }
            None => Ok(Vec::new()),
        };
    };
    let read = std::cell::RefCell::new(read);
    let files_of = |set: &WeightFiles| {
        let file = folder[set.file.as_str()];
        if !set.sharded {
            return Ok(vec![file]);
        }
        let path = Path::new(&file.path);
        let text = (read.borrow_mut())(file)?;
        let index = WeightIndex::parse(path, &text)?;
        let shards = index.existing_shards(path, |shard| folder.contains_key(shard))?;
        Ok(std::iter::once(file).chain(shards.into_iter().map(|shard| folder[shard])).collect())
    };
    // What was wrong with the preferred set is said when the folder is opened.
    WeightFiles::first_good(&sets, files_of).map(|(files, _): (_, Vec<HubError>)| files)
}

/// A variant that no component has is an error before anything large is fetched.
fn check_variant(repo: &str, listing: &Listing, components: &[Component], variant: &str) -> Result<(), HubError> {
    let of = |component: &Component| {
        let folder = folder(listing, &component.name);
        (component.name.clone(), Variants::of(&component.library, folder.keys().copied()))
    };
    let all: Vec<_> = components.iter().filter(|component| component.is_model()).map(of).collect();
    let no_variant = |present| LoadError::NoVariant { path: repo.into(), variant: variant.into(), present };
    Variants::lacking(&all, variant).map(|_| ()).map_err(|present| no_variant(present).into())
}

/// The components in a `model_index.json`, if its class is of use. Its other entries are judged when it is opened.
fn components(wanted: &Wanted<'_>, index: &str) -> Result<Vec<Component>, HubError> {
    let entries: BTreeMap<String, Value> =
        serde_json::from_str(index).map_err(|source| LoadError::Json { path: "model_index.json".into(), source })?;
    let class = entries.get("_class_name").and_then(Value::as_str).unwrap_or_default();
    if !wanted.classes.is_empty() && !wanted.classes.contains(&class) {
        let supported = wanted.classes.join(", ");
        return Err(HubError::Class { repo: wanted.id.into(), class: class.into(), supported });
    }
    let component = |(name, value): (String, Value)| {
        let [library, class] = value.as_array()?.as_slice() else { return None };
        Some(Component { name, library: library.as_str()?.into(), class: class.as_str()?.into() })
    };
    Ok(entries.into_iter().filter_map(component).collect())
}

/// Configurations and what tokenizers are made of, without the indexes of weights.
fn is_small(name: &str) -> bool {
    let is_index = name.contains(".index.") && name.ends_with(".json");
    !is_index && [".json", ".txt", ".model", ".jinja"].iter().any(|suffix| name.ends_with(suffix))
}
