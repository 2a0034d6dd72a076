//! A read-only tree of files, on disk or in the program.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::names::is_inside;
use crate::checkpoint::{LoadError, foreign_text, shown};

/// A read-only tree of files.
#[derive(Debug, Clone)]
pub enum Source {
    /// A folder on disk.
    Dir(PathBuf),
    /// Files that are part of the program.
    Embedded(&'static [EmbeddedFile]),
}

/// A file that is part of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddedFile {
    /// Path below the root, with `/`: `"transformer/config.json"`.
    pub path: &'static str,
    /// The content.
    pub bytes: &'static [u8],
}

impl Source {
    /// Where `rel` is, for messages. The root is `""`.
    pub(super) fn path(&self, rel: &str) -> PathBuf {
        match self {
            Self::Dir(root) => join(root, rel),
            Self::Embedded(_) => join(Path::new("(built-in)"), rel),
        }
    }

    /// Whether there is a file `rel`.
    pub(super) fn exists(&self, rel: &str) -> bool {
        if !is_inside(rel) {
            return false;
        }
        match self {
            Self::Dir(root) => root.join(rel).is_file(),
            Self::Embedded(files) => files.iter().any(|file| file.path == rel),
        }
    }

    /// The names of the files in the folder `rel`, sorted; none if there is no such folder.
    pub(super) fn list(&self, rel: &str) -> Vec<String> {
        let mut names: Vec<String> = match self {
            Self::Dir(root) => {
                let entries = std::fs::read_dir(root.join(rel)).into_iter().flatten().flatten();
                let files = entries.filter(|entry| entry.path().is_file());
                files.filter_map(|entry| entry.file_name().into_string().ok()).collect()
            }
            Self::Embedded(files) => {
                let inside = |file: &EmbeddedFile| file.path.strip_prefix(rel)?.strip_prefix('/').map(String::from);
                files.iter().filter_map(inside).filter(|name| !name.contains('/')).collect()
            }
        };
        names.sort_unstable();
        names
    }

    /// The bytes of the built-in file `rel`.
    pub(super) fn embedded(&self, rel: &str) -> Result<&'static [u8], LoadError> {
        let file = match self {
            Self::Embedded(files) => files.iter().find(|file| file.path == rel),
            Self::Dir(_) => None,
        };
        file.map(|file| file.bytes).ok_or_else(|| LoadError::NoFile { path: self.path(rel) })
    }

    /// The text of the file `rel`, of at most `max` bytes.
    pub(super) fn text(&self, rel: &str, max: u64) -> Result<Cow<'static, str>, LoadError> {
        let not_utf8 = |source| LoadError::Utf8 { path: self.path(rel), source };
        match self.read(rel, max)? {
            Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(not_utf8),
            Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).map_err(|error| not_utf8(error.utf8_error())),
        }
    }

    /// Checks by its first bytes that the file `rel` is no pointer or web page.
    pub(super) fn check_head(&self, rel: &str) -> Result<(), LoadError> {
        let Self::Dir(_) = self else { return Ok(()) };
        let path = self.path(rel);
        let mut head = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(1024).read_to_end(&mut head));
        read.map_err(|source| LoadError::Io { path: path.clone(), source })?;
        foreign_text(&path, &head).map_or(Ok(()), Err)
    }

    /// The bytes of the file `rel`, of which there are at most `max`.
    pub(super) fn read(&self, rel: &str, max: u64) -> Result<Cow<'static, [u8]>, LoadError> {
        if !is_inside(rel) {
            return Err(LoadError::FileName { path: self.path(""), name: shown(rel) });
        }
        let path = self.path(rel);
        let bytes = match self {
            Self::Dir(_) => Cow::Owned(read_at_most(&path, max)?),
            Self::Embedded(_) => Cow::Borrowed(self.embedded(rel)?),
        };
        if bytes.len() as u64 > max {
            return Err(LoadError::TooLarge { path, max });
        }
        match foreign_text(&path, &bytes) {
            Some(error) => Err(error),
            None => Ok(bytes),
        }
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
