//! An open pipeline folder: its components and their configurations.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::json::{config_from_json, from_json};
use super::names::is_component_name;
use super::source::Source;
use crate::checkpoint::{LoadError, shown};

/// Largest JSON configuration. Real ones have a few kilobytes.
const MAX_CONFIG: u64 = 16 << 20;
/// Largest text file. The tokenizers of large vocabularies have tens of megabytes.
const MAX_TEXT: u64 = 256 << 20;

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

impl Component {
    /// Whether a picture needs its weights: it is the denoiser, the decoder or a text encoder, by its name.
    pub fn is_model(&self) -> bool {
        self.name == "vae" || self.name.starts_with("transformer") || self.name.starts_with("text_encoder")
    }
}

/// An open pipeline folder.
#[derive(Debug, Clone)]
pub struct PipelineFolder {
    pub(super) source: Source,
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
        self.source.path(rel)
    }

    /// Whether there is a file `rel`, a path below the root with `/`.
    pub fn exists(&self, rel: &str) -> bool {
        self.source.exists(rel)
    }

    /// The names of the files in the subfolder `rel`, sorted; none if it does not exist.
    pub fn files(&self, rel: &str) -> Vec<String> {
        self.source.list(rel)
    }

    /// The configuration in `file` of the component `component`: `config::<T>("vae", "config.json")`.
    ///
    /// # Errors
    ///
    /// Fails if the pipeline has no such component, or if the file is absent, larger than 16 MiB or not a `T`.
    pub fn config<T: DeserializeOwned>(&self, component: &str, file: &str) -> Result<T, LoadError> {
        let Component { name, library, .. } = self.component(component)?;
        let rel = format!("{name}/{file}");
        config_from_json(&self.path(&rel), &self.source.text(&rel, MAX_CONFIG)?, library == "diffusers")
    }

    /// The text of the file `rel`.
    ///
    /// # Errors
    ///
    /// Fails if it is absent, larger than 256 MiB or not UTF-8.
    pub fn read_text(&self, rel: &str) -> Result<String, LoadError> {
        self.source.text(rel, MAX_TEXT).map(Cow::into_owned)
    }

    /// The bytes of the file `rel`.
    ///
    /// # Errors
    ///
    /// Fails if it is absent or larger than 256 MiB.
    pub fn bytes(&self, rel: &str) -> Result<Cow<'static, [u8]>, LoadError> {
        self.source.read(rel, MAX_TEXT)
    }

    fn json<T: DeserializeOwned>(&self, rel: &str, max: u64) -> Result<T, LoadError> {
        from_json(&self.path(rel), &self.source.text(rel, max)?)
    }
}
