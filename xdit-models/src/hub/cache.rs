//! The layout of the cache, which is that of `huggingface_hub`: contents under their hashes, and for each commit a
//! folder of links to them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::listing::{RemoteFile, is_commit};
use super::settings::Settings;

/// One repository's part of the cache.
pub(super) struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
    symlinks: bool,
}

impl RepoCache {
    pub fn new(settings: &Settings, id: &str) -> Self {
        let name = format!("models--{}", id.replace('/', "--"));
        let (folder, locks) = (settings.cache.join(&name), settings.cache.join(".locks").join(&name));
        Self { folder, locks, symlinks: settings.symlinks }
    }

    /// The folder of files at a commit; that of all commits for `""`.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Where a content is, whole.
    pub fn blob(&self, file: &RemoteFile) -> PathBuf {
        self.folder.join("blobs").join(&file.blob)
    }

    /// Where a content grows.
    pub fn part(&self, file: &RemoteFile) -> PathBuf {
        self.folder.join("blobs").join(format!("{}.part", file.blob))
    }

    /// The commit that `revision` was when it was fetched last.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.into());
        }
        let commit = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(commit.trim()).filter(|commit| is_commit(commit)).map(String::from)
    }

    /// Notes that `revision` is `commit`.
    pub fn set_commit(&self, revision: &str, commit: &str) -> io::Result<()> {
        if self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        let new = path.with_extension(format!("{}.tmp", std::process::id()));
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        fs::write(&new, commit).and_then(|()| fs::rename(&new, &path))
    }

    /// Puts the content of `file`, which is there, into the folder of `commit`.
    pub fn place(&self, file: &RemoteFile, commit: &str) -> io::Result<()> {
        let path = self.snapshot(commit).join(&file.path);
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        // A link to nothing, or to something else.
        let _ = fs::remove_file(&path);
        if self.symlinks && link(file, &path).is_ok() {
            return Ok(());
        }
        match fs::hard_link(self.blob(file), &path) {
            Ok(()) => Ok(()),
            Err(_) => fs::copy(self.blob(file), &path).map(|_| ()),
        }
    }

    /// The lock that other programs respect while they fetch this content; open, not yet taken.
    pub fn lock(&self, file: &RemoteFile) -> io::Result<File> {
        fs::create_dir_all(&self.locks)?;
        File::options().create(true).append(true).open(self.locks.join(format!("{}.lock", file.blob)))
    }
}

/// The file's length, zero if there is none.
pub(super) fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

/// Whether there is a file of this length, which may be zero.
pub(super) fn is_whole(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == size)
}

fn link(file: &RemoteFile, path: &Path) -> io::Result<()> {
    let up = "../".repeat(2 + file.path.matches('/').count());
    let target = format!("{up}blobs/{}", file.blob);
    #[cfg(unix)]
    return std::os::unix::fs::symlink(target, path);
    #[cfg(not(unix))]
    {
        let _ = (target, path);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Bytes that are free where `path` is or will be, if the system tells.
pub(super) fn free_space(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    return path.ancestors().filter(|path| !path.as_os_str().is_empty()).find_map(|path| {
        let stats = rustix::fs::statvfs(path).ok()?;
        Some(stats.f_bavail.saturating_mul(stats.f_frsize))
    });
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}
