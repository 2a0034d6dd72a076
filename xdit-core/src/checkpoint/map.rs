//! The bytes of a checkpoint file: mapped, so that only what is read takes memory, or built in.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

use super::LoadError;

/// A checkpoint file's bytes.
#[derive(Debug)]
pub(super) enum Bytes {
    Mapped {
        map: Mmap,
        #[cfg(all(unix, feature = "cuda"))]
        file: File,
    },
    Static(&'static [u8]),
}

impl Bytes {
    /// Maps `path` without reading it.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let failed = |source| LoadError::Io { path: path.into(), source };
        // Asked before opening: opening a pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(LoadError::NotAFile { path: path.into() });
        }
        let file = File::open(path).map_err(failed)?;
        Ok(Self::Mapped {
            map: map(&file).map_err(failed)?,
            #[cfg(all(unix, feature = "cuda"))]
            file,
        })
    }

    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped { map, .. } => map,
            Self::Static(bytes) => bytes,
        }
    }

    /// Reads what begins at `at` into `part` without touching the map: no page of the file becomes this process's.
    #[cfg(feature = "cuda")]
    pub fn read_at(&self, at: usize, part: &mut [u8]) -> io::Result<()> {
        #[cfg(unix)]
        if let Self::Mapped { file, .. } = self {
            return std::os::unix::fs::FileExt::read_exact_at(file, part, at as u64);
        }
        part.copy_from_slice(&self.as_slice()[at..at + part.len()]);
        Ok(())
    }

    /// Tells the system that `range` is about to be read.
    pub fn will_need(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Self::Mapped { map, .. } = self {
            // Only a hint: a system that refuses it reads as well.
            let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Tells the system that this process is done with `range`: resident memory stays that of the tensors alone.
    pub fn done_with(&self, range: Range<usize>) {
        if let Self::Mapped { map, .. } = self {
            drop_pages(map, range);
        }
    }
}

/// Maps a file read-only.
///
/// Sound as long as nobody changes the file under the map, which Rust cannot check; every reader of safetensors
/// makes the same assumption. Nothing here keeps a reference that relies on two reads giving the same bytes: headers
/// are parsed into owned numbers and tensors are copied, so a file that is rewritten meanwhile gives wrong numbers.
/// One that is cut short meanwhile ends the process (SIGBUS), as it does in every program that maps files.
#[allow(unsafe_code)]
fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: see above.
    unsafe { Mmap::map(file) }
}

/// Unmaps the pages of `range`; the next read of them takes them from the file again.
///
/// The advice is only dangerous on private or anonymous maps, where it changes what is read next. This map is shared
/// and read-only, so the pages come back with the same bytes.
#[cfg(unix)]
#[allow(unsafe_code)]
fn drop_pages(map: &Mmap, range: Range<usize>) {
    // SAFETY: see above. The range lies in the map, since it was sliced out of it before.
    let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
}

#[cfg(not(unix))]
fn drop_pages(_: &Mmap, _: Range<usize>) {}
