//! A pipeline folder as diffusers lays it out: `model_index.json` and a subfolder for each component.
//!
//! [`PipelineFolder`] finds and checks files, it does not know what a component means. The folder is either on disk
//! or built into the program ([`Source`]); both go through the same code.

mod weight_files;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Component as PathPart, Path, PathBuf};

use serde::Deserialize;
use serde::de::{DeserializeOwned, Error as _};
use serde_json::Value;

pub use weight_files::{WeightFiles, WeightIndex, base_names};

use crate::checkpoint::{LoadError, Weights, shown};

/// Largest JSON configuration. Real ones have a few kilobytes.
const MAX_CONFIG: u64 = 16 << 20;
/// Largest index of shards. Real ones have a line of about 100 bytes for each tensor.
const MAX_INDEX: u64 = 100 << 20;
/// Largest text file. The tokenizers of large vocabularies have tens of megabytes.
const MAX_TEXT: u64 = 256 << 20;

/// A read-only tree of files.
#[derive(Debug, Clone)]
pub enum Source {
    /// A folder on disk.
    Dir(PathBuf),
    /// Files that are part of the program.
    Embedded(&'static [EmbeddedFile]),
}

/// A file that is part of the program.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddedFile {
    /// Path below the root, with `/`: `"transformer/config.json"`.
    pub path: &'static str,
    /// The content.
    pub bytes: &'static [u8],
}

/// An entry of `model_index.json` that names a class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// The entry's key and the subfolder's name, `"text_encoder_2"`.
    pub name: String,
    /// The Python package of the class, `"transformers"`.
    pub library: String,
    /// The class, `"T5EncoderModel"`.
    pub class: String,
}

/// An open pipeline folder.
#[derive(Debug, Clone)]
pub struct PipelineFolder {
    source: Source,
    class_name: String,
    components: BTreeMap<String, Component>,
    absent: Vec<String>,
    extra: BTreeMap<String, Value>,
}

impl PipelineFolder {
    /// Reads the folder's `model_index.json`.
    ///
    /// # Errors
    ///
    /// Fails if there is none or if an entry has a form that pipelines do not use.
    pub fn open(source: Source) -> Result<Self, LoadError> {
        const INDEX: &str = "model_index.json";
        let mut folder = Self {
            source,
            class_name: String::new(),
            components: BTreeMap::new(),
            absent: Vec::new(),
            extra: BTreeMap::new(),
        };
        if !folder.exists(INDEX) {
            return Err(LoadError::NotAPipeline { path: folder.path("") });
        }
        let path = folder.path(INDEX);
        let entries: BTreeMap<String, Value> = folder.json(INDEX, MAX_CONFIG)?;
        for (key, value) in entries {
            folder.entry(&path, key, value)?;
        }
        if folder.class_name.is_empty() {
            return Err(LoadError::IndexEntry {
                path,
                key: shown("_class_name"),
                found: "absent".into(),
                expected: "the name of a pipeline class",
            });
        }
        Ok(folder)
    }

    /// Sorts one entry of `model_index.json` into its place.
    fn entry(&mut self, path: &Path, key: String, value: Value) -> Result<(), LoadError> {
        let refused = |key: &str, value: &Value, expected| LoadError::IndexEntry {
            path: path.into(),
            key: shown(key),
            found: shown(&value.to_string()),
            expected,
        };
        match value {
            Value::String(name) if key == "_class_name" => self.class_name = name,
            value if key == "_class_name" => {
                return Err(refused(&key, &value, "the name of a pipeline class"));
            }
            // Underscored keys are notes of the library that wrote the file.
            value if key.starts_with('_') => {
                self.extra.insert(key, value);
            }
            Value::Array(pair) => match pair.as_slice() {
                [Value::Null, Value::Null] => self.absent.push(key),
                [Value::String(library), Value::String(class)] if is_component_name(&key) => {
                    let component = Component { name: key.clone(), library: library.clone(), class: class.clone() };
                    self.components.insert(key, component);
                }
                [Value::String(_), Value::String(_)] => {
                    return Err(refused(&key, &Value::Array(pair), "the name of a subfolder"));
                }
                _ => {
                    let expected = "[\"library\", \"Class\"] or [null, null]";
                    return Err(refused(&key, &Value::Array(pair), expected));
                }
            },
            Value::Object(_) => return Err(refused(&key, &value, "a component or a plain value")),
            scalar => {
                self.extra.insert(key, scalar);
            }
        }
        Ok(())
    }

    /// The pipeline's class, `"FluxPipeline"`.
    pub fn class_name(&self) -> &str {
        &self.class_name
    }

    /// The components that are there, sorted by name.
    pub fn components(&self) -> impl ExactSizeIterator<Item = &Component> {
        self.components.values()
    }

    /// The component `name`.
    ///
    /// # Errors
    ///
    /// Fails if the pipeline has none, or has `[null, null]` for it.
    pub fn component(&self, name: &str) -> Result<&Component, LoadError> {
        self.components.get(name).ok_or_else(|| LoadError::NoComponent {
            path: self.path("model_index.json"),
            name: name.into(),
            present: self.components.keys().cloned().collect(),
        })
    }

    /// The names of components that the pipeline leaves out, `[null, null]` in `model_index.json`.
    pub fn absent(&self) -> &[String] {
        &self.absent
    }

    /// An entry of `model_index.json` that is no component, such as `"requires_safety_checker"`.
    pub fn extra(&self, key: &str) -> Option<&Value> {
        self.extra.get(key)
    }

    /// Where `rel` is, for messages. The root is `""`.
    pub fn path(&self, rel: &str) -> PathBuf {
        match &self.source {
            Source::Dir(root) => join(root, rel),
            Source::Embedded(_) => join(Path::new("(built-in)"), rel),
        }
    }

    /// Whether there is a file `rel`, a path below the root with `/`.
    pub fn exists(&self, rel: &str) -> bool {
        if !is_inside(rel) {
            return false;
        }
        match &self.source {
            Source::Dir(root) => root.join(rel).is_file(),
            Source::Embedded(files) => files.iter().any(|file| file.path == rel),
        }
    }

    /// The configuration in `file` of the component `component`: `config::<T>("vae", "config.json")`.
    ///
    /// # Errors
    ///
    /// Fails if the pipeline has no such component, or if the file is absent, larger than 16 MiB or not a `T`.
    pub fn config<T: DeserializeOwned>(&self, component: &str, file: &str) -> Result<T, LoadError> {
        let Component { name, library, .. } = self.component(component)?;
        let rel = format!("{name}/{file}");
        let mut config = self.json(&rel, MAX_CONFIG)?;
        if library == "diffusers" {
            config = without_defaults(config);
        }
        // the message names the field
        serde_path_to_error::deserialize(config)
            .map_err(|error| LoadError::Json { path: self.path(&rel), source: serde_json::Error::custom(error) })
    }

    /// The text of the file `rel`.
    ///
    /// # Errors
    ///
    /// Fails if it is absent, larger than 256 MiB or not UTF-8.
    pub fn read_text(&self, rel: &str) -> Result<String, LoadError> {
        self.text(rel, MAX_TEXT).map(Cow::into_owned)
    }

    /// The bytes of the file `rel`.
    ///
    /// # Errors
    ///
    /// Fails if it is absent or larger than 256 MiB.
    pub fn bytes(&self, rel: &str) -> Result<Cow<'static, [u8]>, LoadError> {
        self.read(rel, MAX_TEXT)
    }

    /// Opens the weights of `component`, reading headers only.
    ///
    /// With a `variant` such as `"fp16"`, its files are preferred, and the plain ones taken where the component has
    /// not got it, as diffusers does. Without one, the plain ones are preferred, and `bf16` or `fp16` taken where
    /// there is nothing else. [`Weights::variant`] and [`Weights::files`] tell what it came to.
    ///
    /// # Errors
    ///
    /// Fails if the pipeline has no such component, if there are no weights under any of the known names, if the
    /// index of a sharded checkpoint does not fit its shards, or as [`Weights::open`].
    pub fn weights(&self, component: &str, variant: Option<&str>) -> Result<Weights, LoadError> {
        let component = self.component(component)?;
        let folder = &component.name;
        if let Some(variant) = variant
            && !weight_files::is_variant(variant)
        {
            return Err(LoadError::Variant { variant: shown(variant) });
        }
        let exists = |file: &str| self.exists(&format!("{folder}/{file}"));
        let bases = base_names(&component.library);
        let found = WeightFiles::find(bases, variant, exists)
            .map_err(|looked_for| LoadError::NoWeights { path: self.path(folder), looked_for })?;
        if !found.sharded {
            let weights = self.open_files(folder, &[&found.file])?;
            return Ok(weights.with_variant(found.variant));
        }
        let index_rel = format!("{folder}/{}", found.file);
        let index_path = self.path(&index_rel);
        let index = WeightIndex::parse(&index_path, &self.text(&index_rel, MAX_INDEX)?)?;
        let shards = index.shards();
        for shard in &shards {
            if !exists(shard) {
                return Err(index.no_shard(&index_path, shard));
            }
        }
        let weights = self.open_files(folder, &shards)?;
        index.check(&index_path, &weights)?;
        Ok(weights.with_variant(found.variant))
    }

    fn open_files(&self, folder: &str, files: &[&str]) -> Result<Weights, LoadError> {
        let rels = files.iter().map(|file| format!("{folder}/{file}"));
        match &self.source {
            Source::Dir(_) => {
                let paths: Vec<_> = rels.map(|rel| self.path(&rel)).collect();
                Weights::open(folder, &paths)
            }
            Source::Embedded(_) => {
                let files: Vec<_> =
                    rels.map(|rel| Ok((self.path(&rel), self.embedded(&rel)?))).collect::<Result<_, LoadError>>()?;
                Weights::from_static(folder, &files)
            }
        }
    }

    fn embedded(&self, rel: &str) -> Result<&'static [u8], LoadError> {
        let file = match &self.source {
            Source::Embedded(files) => files.iter().find(|file| file.path == rel),
            Source::Dir(_) => None,
        };
        file.map(|file| file.bytes).ok_or_else(|| LoadError::NoFile { path: self.path(rel) })
    }

    fn json<T: DeserializeOwned>(&self, rel: &str, max: u64) -> Result<T, LoadError> {
        let text = self.text(rel, max)?;
        serde_json::from_str(&finite(&text)).map_err(|source| LoadError::Json { path: self.path(rel), source })
    }

    fn text(&self, rel: &str, max: u64) -> Result<Cow<'static, str>, LoadError> {
        let not_utf8 = |source| LoadError::Utf8 { path: self.path(rel), source };
        match self.read(rel, max)? {
            Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(not_utf8),
            Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).map_err(|error| not_utf8(error.utf8_error())),
        }
    }

    fn read(&self, rel: &str, max: u64) -> Result<Cow<'static, [u8]>, LoadError> {
        if !is_inside(rel) {
            return Err(LoadError::FileName { path: self.path(""), name: shown(rel) });
        }
        let path = self.path(rel);
        let bytes = match &self.source {
            Source::Dir(_) => Cow::Owned(read_at_most(&path, max)?),
            Source::Embedded(_) => Cow::Borrowed(self.embedded(rel)?),
        };
        if bytes.len() as u64 > max {
            return Err(LoadError::TooLarge { path, max });
        }
        Ok(bytes)
    }
}

/// `root/rel`, without the slash that `Path::join` puts before nothing.
fn join(root: &Path, rel: &str) -> PathBuf {
    if rel.is_empty() { root.into() } else { root.join(rel) }
}

/// The content of `path`, and no more than `max + 1` bytes of it.
fn read_at_most(path: &Path, max: u64) -> Result<Vec<u8>, LoadError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => LoadError::NoFile { path: path.into() },
        _ => LoadError::Io { path: path.into(), source },
    };
    let meta = std::fs::metadata(path).map_err(failed)?;
    if !meta.is_file() {
        return Err(LoadError::NotAFile { path: path.into() });
    }
    let mut bytes = Vec::new();
    // A file may grow, and some have no length at all: what is read is limited, not only what is announced.
    File::open(path).and_then(|file| file.take(max + 1).read_to_end(&mut bytes)).map_err(failed)?;
    Ok(bytes)
}

/// Whether `rel` is a path that cannot lead out of the root.
fn is_inside(rel: &str) -> bool {
    !rel.is_empty()
        && !rel.contains(['\\', ':', '\0'])
        && Path::new(rel).components().all(|part| matches!(part, PathPart::Normal(_)))
}

/// Whether `name` is a single part of a path.
fn is_file_name(name: &str) -> bool {
    is_inside(name) && !name.contains('/')
}

/// Whether `name` can be a component's: it becomes a folder's name and part of messages.
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

fn is_component_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Parses the `text` of the file `path`.
fn from_json<'a, T: Deserialize<'a>>(path: &Path, text: &'a str) -> Result<T, LoadError> {
    serde_json::from_str(text).map_err(|source| LoadError::Json { path: path.into(), source })
}

#[cfg(test)]
mod tests;
