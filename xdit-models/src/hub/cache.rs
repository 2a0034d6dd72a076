//! The folder of one repository in the cache, laid out as `huggingface_hub` does it.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::HubError;
use super::remote::RemoteFile;

/// `models--org--name` with `blobs/<id>` (contents), `snapshots/<commit>/<path>` (links to them) and
/// `refs/<revision>` (commits).
#[derive(Debug)]
pub(super) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub fn new(cache: &Path, repo: &str) -> Self {
        let folder = format!("models--{}", repo.replace('/', "--"));
        Self { root: cache.join(&folder), locks: cache.join(".locks").join(folder) }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub fn blob(&self, id: &str) -> PathBuf {
        self.root.join("blobs").join(id)
    }

    /// Where a blob grows until it is whole.
    pub fn incomplete(&self, id: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{id}.incomplete"))
    }

    /// Whether the snapshot has this file, whole.
    pub fn has(&self, commit: &str, file: &RemoteFile) -> bool {
        let path = self.snapshot(commit).join(&file.path);
        std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == file.size)
    }

    /// Whether the blob is there, whole.
    pub fn has_blob(&self, file: &RemoteFile) -> bool {
        std::fs::metadata(self.blob(&file.blob)).is_ok_and(|meta| meta.len() == file.size)
    }

    /// How many bytes of the file's content are there, at most its size.
    pub fn n_done(&self, file: &RemoteFile) -> u64 {
        if self.has_blob(file) {
            return file.size;
        }
        let len = std::fs::metadata(self.incomplete(&file.blob)).map_or(0, |meta| meta.len());
        if len > file.size { 0 } else { len }
    }

    /// The commit that `revision` was at when it was last fetched.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.into());
        }
        let commit = std::fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        let commit = commit.trim();
        is_commit(commit).then(|| commit.to_string())
    }

    pub fn set_ref(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if revision == commit {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        create_parent(&path)?;
        std::fs::write(&path, commit).map_err(|source| HubError::Io { path, source })
    }

    /// Puts the blob, which is there, under its name in the snapshot.
    pub fn link(&self, commit: &str, file: &RemoteFile) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(&file.path);
        create_parent(&path)?;
        let failed = |source| HubError::Io { path: path.clone(), source };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        // Relative, so that the cache can be moved or mounted elsewhere.
        let up = "../".repeat(2 + file.path.matches('/').count());
        let relative = format!("{up}blobs/{}", file.blob);
        match symlink(Path::new(&relative), &path) {
            Ok(()) => Ok(()),
            // Another process has been faster with the same link.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            // Windows lets not everyone make links, and some file systems have none.
            Err(_) => {
                let blob = self.blob(&file.blob);
                std::fs::hard_link(&blob, &path).or_else(|_| std::fs::copy(&blob, &path).map(|_| ())).map_err(failed)
            }
        }
    }

    /// Takes the lock of a blob, waiting as long as the process that holds it gets on with its download.
    pub fn lock(&self, id: &str, patience: Duration) -> Result<File, HubError> {
        let path = self.locks.join(format!("{id}.lock"));
        create_parent(&path)?;
        let failed = |source| HubError::Io { path: path.clone(), source };
        let lock = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        let len = || std::fs::metadata(self.incomplete(id)).map_or(0, |meta| meta.len());
        let (mut since, mut last) = (Instant::now(), len());
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
                Err(TryLockError::WouldBlock) => {}
            }
            let now = len();
            if now != last {
                (since, last) = (Instant::now(), now);
            }
            if since.elapsed() > patience {
                return Err(HubError::Locked { path });
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Whether `name` is a commit's hash rather than a branch or a tag.
pub(super) fn is_commit(name: &str) -> bool {
    name.len() == 40 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

pub(super) fn create_parent(path: &Path) -> Result<(), HubError> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    std::fs::create_dir_all(parent).map_err(|source| HubError::Io { path: parent.into(), source })
}

#[cfg(unix)]
fn symlink(to: &Path, at: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(to, at)
}

#[cfg(windows)]
fn symlink(to: &Path, at: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(to, at)
}
