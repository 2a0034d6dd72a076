use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use super::error::shown;
use super::header::{self, Place};
use super::map::Bytes;
use super::{Dtype, LoadError};

/// The tensors of one component, by name, over one or several safetensors files.
///
/// Opening maps the files and reads their headers; a tensor's bytes are read when a [`Loader`](super::Loader) asks
/// for it. A `Weights` can be shared by threads.
#[derive(Debug)]
pub struct Weights {
    component: String,
    variant: Option<String>,
    files: Vec<PathBuf>,
    bytes: Vec<Bytes>,
    tensors: BTreeMap<String, Stored>,
    notes: Vec<String>,
}

/// A tensor and the index of its file.
#[derive(Debug)]
pub(super) struct Stored {
    pub file: usize,
    pub place: Place,
}

/// What a header says of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorInfo<'a> {
    /// Type of the elements in the file.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// Size in the file.
    pub bytes: u64,
    /// The file.
    pub file: &'a Path,
}

/// How much of a checkpoint is of one dtype.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DtypeTotal {
    /// Tensors.
    pub tensors: usize,
    /// Elements.
    pub params: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Weights {
    /// Opens the safetensors `files` of `component`, a name for error messages. Reads headers only.
    ///
    /// # Errors
    ///
    /// Fails if a file cannot be opened, or if its header is not exactly what safetensors prescribes. Of tensors that
    /// share a name in several files the last one counts, as in diffusers and transformers; a [note](Self::notes)
    /// says so.
    pub fn open(component: &str, files: &[PathBuf]) -> Result<Self, LoadError> {
        let files =
            files.iter().map(|path| Ok((path.clone(), Bytes::open(path)?))).collect::<Result<_, LoadError>>()?;
        Self::new(component, files)
    }

    /// The safetensors files `(name, bytes)` that are part of the program.
    ///
    /// # Errors
    ///
    /// As [`Weights::open`].
    pub fn from_static(component: &str, files: &[(PathBuf, &'static [u8])]) -> Result<Self, LoadError> {
        let files = files.iter().map(|(path, bytes)| (path.clone(), Bytes::Static(bytes))).collect();
        Self::new(component, files)
    }

    fn new(component: &str, opened: Vec<(PathBuf, Bytes)>) -> Result<Self, LoadError> {
        let (files, bytes): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
        let mut tensors = BTreeMap::new();
        let mut repeated = Vec::new();
        for (file, (path, bytes)) in files.iter().zip(&bytes).enumerate() {
            for (name, place) in header::parse(path, bytes.as_slice())? {
                match tensors.entry(name) {
                    Entry::Vacant(free) => {
                        free.insert(Stored { file, place });
                    }
                    Entry::Occupied(mut taken) => {
                        repeated.push((shown(taken.key()), taken.get().file, file));
                        taken.insert(Stored { file, place });
                    }
                }
            }
        }
        let name = |file: usize| files[file].file_name().unwrap_or_default().display();
        let note = repeated.first().map(|(tensor, first, last)| {
            let n = repeated.len();
            let (first, last) = (name(*first), name(*last));
            format!(
                "{component}: {n} tensors are in two files, {tensor} in {first} and {last} for one; the last counts"
            )
        });
        let notes = note.into_iter().collect();
        Ok(Self { component: component.into(), variant: None, files, bytes, tensors, notes })
    }

    /// What is unusual about the files and yet no error, a line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    pub(crate) fn set_variant(&mut self, variant: Option<String>) {
        self.variant = variant;
    }

    /// The component's name, `"transformer"`.
    pub fn component(&self) -> &str {
        &self.component
    }

    /// The variant whose files these are, `None` for the plain ones. It may differ from the one asked for: a
    /// component that lacks it is read from its plain files, one that has nothing else from its `bf16` or `fp16`.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// The files, in the order in which they were opened.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// What is known of a tensor without reading it.
    pub fn info(&self, name: &str) -> Option<TensorInfo<'_>> {
        let stored = self.tensors.get(name)?;
        Some(TensorInfo {
            dtype: stored.place.dtype,
            shape: &stored.place.shape,
            bytes: stored.place.range.len() as u64,
            file: &self.files[stored.file],
        })
    }

    /// A tensor's bytes as they are in the file: row-major, little-endian, not aligned.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        let stored = self.tensors.get(name)?;
        Some(&self.bytes[stored.file].as_slice()[stored.place.range.clone()])
    }

    /// Elements of all tensors together.
    pub fn n_params(&self) -> u64 {
        self.dtypes().values().map(|total| total.params).sum()
    }

    /// Bytes of all tensors together, in the files.
    pub fn n_bytes(&self) -> u64 {
        self.dtypes().values().map(|total| total.bytes).sum()
    }

    /// How much there is of each dtype.
    pub fn dtypes(&self) -> BTreeMap<Dtype, DtypeTotal> {
        let mut totals = BTreeMap::<Dtype, DtypeTotal>::new();
        for Stored { place, .. } in self.tensors.values() {
            let total = totals.entry(place.dtype).or_default();
            total.tensors += 1;
            // A header is refused if this product overflows.
            total.params += place.shape.iter().product::<usize>() as u64;
            total.bytes += place.range.len() as u64;
        }
        totals
    }

    pub(super) fn stored(&self, name: &str) -> Option<(&str, &Stored)> {
        let (name, stored) = self.tensors.get_key_value(name)?;
        Some((name, stored))
    }

    pub(super) fn file_of(&self, stored: &Stored) -> &Path {
        &self.files[stored.file]
    }

    pub(super) fn bytes_of(&self, stored: &Stored) -> &Bytes {
        &self.bytes[stored.file]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &[u8] =
        b"\x38\0\0\0\0\0\0\0{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}  \0\0\x80\x3f";

    #[test]
    fn tells_what_is_there_without_reading_it() {
        let weights = Weights::from_static("vae", &[("a".into(), ONE)]).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["w"]);
        assert_eq!((weights.n_params(), weights.n_bytes()), (1, 4));
        assert_eq!(weights.dtypes()[&Dtype::F32].tensors, 1);
        let info = weights.info("w").unwrap();
        assert_eq!((info.shape, info.file), (&[1][..], Path::new("a")));
        assert_eq!(weights.bytes("w"), Some(&1f32.to_le_bytes()[..]));
        assert!(weights.info("v").is_none());
    }

    /// Ranks are threads that read from the same `Weights`.
    #[test]
    fn threads_can_share_it() {
        fn shared<T: Send + Sync>() {}
        shared::<Weights>();
    }

    /// As diffusers and transformers do, whatever the index says.
    #[test]
    fn of_one_name_in_two_files_the_last_counts() {
        let two = [&ONE[..ONE.len() - 4], &2f32.to_le_bytes()].concat().leak();
        let files = [("x/a".into(), ONE), ("x/b".into(), two as &[u8])];
        let weights = Weights::from_static("vae", &files).unwrap();
        assert_eq!(weights.bytes("w"), Some(&2f32.to_le_bytes()[..]));
        assert_eq!((weights.n_params(), weights.n_bytes()), (1, 4));
        assert_eq!(weights.notes(), ["vae: 1 tensors are in two files, \"w\" in a and b for one; the last counts"]);
    }

    #[test]
    fn a_folder_is_not_a_checkpoint() {
        let error = Weights::open("vae", &[std::env::temp_dir()]).unwrap_err();
        assert!(matches!(error, LoadError::NotAFile { .. }), "{error}");
    }
}
