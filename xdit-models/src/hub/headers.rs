//! A pipeline without the bytes of its weights: enough to say what it holds and needs.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use xdit_core::observer::Observer;

use super::cache::is_whole;
use super::client::{Client, Failure};
use super::download::Downloader;
use super::error::{HubError, TRIES};
use super::event::{DownloadEvent, Watch, go_on};
use super::fetch::{Found, Hub, observed};
use super::listing::RemoteFile;
use super::wanted::Wanted;

/// Bytes that most headers fit in.
const FIRST: u64 = 512 << 10;
/// No file has a longer header.
const MAX_HEADER: u64 = 25_000_000;

/// A folder whose configurations are whole, and whose weights may be headers alone.
#[derive(Debug)]
pub enum Headers {
    /// The cache has it all.
    Cached(PathBuf),
    /// Made for the occasion. Weights have their header and their size, but no content.
    Temporary(TempDir),
}

impl Headers {
    /// The folder.
    pub fn path(&self) -> &Path {
        match self {
            Self::Cached(path) => path,
            Self::Temporary(dir) => dir.path(),
        }
    }
}

/// A pipeline's configurations and the headers of its weights, as [`fetch`](super::fetch()) would get them whole. The
/// folder lasts as long as what is returned.
///
/// # Errors
/// As [`fetch_observed`](super::fetch_observed).
pub fn fetch_headers(wanted: Wanted<'_>, observer: &mut dyn Observer) -> Result<Headers, HubError> {
    Hub::from_env()?.fetch_headers(wanted, observer)
}

impl Hub {
    pub fn fetch_headers(&self, wanted: Wanted<'_>, observer: &mut dyn Observer) -> Result<Headers, HubError> {
        observed(wanted.id, observer, |watch| match self.find(wanted, watch)? {
            Err(dir) => Ok(Headers::Cached(dir)),
            Ok(found) => self.without_content(&found, watch).map(Headers::Temporary),
        })
    }

    fn without_content(&self, found: &Found, watch: &mut Watch<'_>) -> Result<TempDir, HubError> {
        let Found { client, cache, listing, needed } = found;
        let downloader = Downloader { client, cache, commit: &listing.commit, pause: self.pause };
        let dir = tempfile::tempdir().map_err(|error| HubError::Io(std::env::temp_dir(), error))?;
        for file in needed {
            let path = dir.path().join(&file.path);
            let broken = |error| HubError::Io(path.clone(), error);
            fs::create_dir_all(path.parent().unwrap_or(&path)).map_err(broken)?;
            let whole = cache.snapshot(&listing.commit).join(&file.path);
            if file.path.ends_with(".safetensors") && !is_whole(&whole, file.size) {
                let header = header(client, &listing.commit, file, watch)?;
                sparse(&path, &header, file.size).map_err(broken)?;
            } else {
                let whole = downloader.download(file, watch)?;
                let whole = fs::canonicalize(&whole).map_err(broken)?;
                copy_or_link(&whole, &path).map_err(broken)?;
            }
        }
        Ok(dir)
    }
}

/// The header of a checkpoint, with the length before it, or as much of the file as there is.
fn header(client: &Client, commit: &str, file: &RemoteFile, watch: &mut Watch<'_>) -> Result<Vec<u8>, HubError> {
    let read = |n: u64| client.content(commit, file, 0, Some(n - 1))?.exactly(0, n as usize);
    let mut n = FIRST.min(file.size.max(1));
    let mut tries = 0;
    loop {
        match read(n) {
            Ok(bytes) => {
                let len = bytes.first_chunk::<8>().map_or(0, |len| u64::from_le_bytes(*len));
                // One that is longer than it may be is judged when it is opened.
                let all = 8 + len.min(MAX_HEADER).min(file.size.saturating_sub(8));
                if all <= n {
                    return Ok(bytes);
                }
                n = all;
            }
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Passing(reason, _)) => {
                tries += 1;
                if tries == TRIES {
                    let (file, size) = (file.path.clone(), n);
                    return Err(HubError::Incomplete { file, done: 0, size, reason });
                }
                go_on(watch(DownloadEvent::Retry { file: &file.path, reason: &reason }))?;
            }
        }
    }
}

/// A file of `size` that begins with `start` and has nothing more on the disk.
fn sparse(path: &Path, start: &[u8], size: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(start)?;
    file.set_len(size)
}

fn copy_or_link(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(unix)]
    if std::os::unix::fs::symlink(from, to).is_ok() {
        return Ok(());
    }
    fs::copy(from, to).map(|_| ())
}
