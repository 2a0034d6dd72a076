//! One file, into the cache.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::cache::{RepoCache, is_whole, length};
use super::client::{Client, Content, Failure};
use super::error::{HubError, TRIES};
use super::event::{DownloadEvent, Watch, go_on};
use super::listing::RemoteFile;
use super::verify;

/// How often the one who watches is told of bytes.
const TICK: Duration = Duration::from_millis(100);

/// Fetches files of one commit.
pub(super) struct Downloader<'a> {
    pub client: &'a Client,
    pub cache: &'a RepoCache,
    pub commit: &'a str,
    /// The pause before the first retry; it doubles with each.
    pub pause: Duration,
}

impl Downloader<'_> {
    /// Makes sure that `file` is in the snapshot, whole, and gives its path there.
    pub fn download(&self, file: &RemoteFile, watch: &mut Watch<'_>) -> Result<PathBuf, HubError> {
        let path = self.cache.snapshot(self.commit).join(&file.path);
        if !is_whole(&path, file.size) {
            self.fetch(file, watch)?;
            self.cache.place(file, self.commit).map_err(|error| HubError::Io(path.clone(), error))?;
        }
        go_on(watch(progress(file, file.size)))?;
        Ok(path)
    }

    /// Makes sure that the content of `file` is in the cache.
    fn fetch(&self, file: &RemoteFile, watch: &mut Watch<'_>) -> Result<(), HubError> {
        let (blob, part) = (self.cache.blob(file), self.cache.part(file));
        if is_whole(&blob, file.size) {
            return Ok(());
        }
        let broken = |error| HubError::Io(part.clone(), error);
        fs::create_dir_all(blob.parent().unwrap_or(&blob)).map_err(broken)?;
        let _lock = self.lock(file, watch)?;
        if is_whole(&blob, file.size) {
            return Ok(());
        }
        // Twice: a partial file of an earlier call may be at fault, and then a server.
        let mut damaged = None;
        for _ in 0..2 {
            self.complete(file, &part, watch)?;
            let hash = verify::hash(&part, file, |_| go_on(watch(progress(file, file.size))));
            let found = hash.map_err(broken)??;
            if found.as_ref().is_none_or(|found| *found == file.blob) {
                return fs::rename(&part, &blob).map_err(broken);
            }
            fs::remove_file(&part).map_err(broken)?;
            damaged = found;
        }
        let (found, expected) = (damaged.unwrap_or_default(), file.blob.clone());
        Err(HubError::Damaged { file: file.path.clone(), found, expected })
    }

    /// Waits until no other program fetches this content.
    fn lock(&self, file: &RemoteFile, watch: &mut Watch<'_>) -> Result<Option<File>, HubError> {
        let lock = self.cache.lock(file).map_err(|error| HubError::Io(self.cache.part(file), error))?;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Some(lock)),
                Err(fs::TryLockError::WouldBlock) => {
                    go_on(watch(progress(file, length(&self.cache.part(file)).min(file.size))))?;
                    std::thread::sleep(TICK);
                }
                // Some file systems have no locks.
                Err(fs::TryLockError::Error(_)) => return Ok(None),
            }
        }
    }

    /// Adds to `part` until it has the size of `file`.
    fn complete(&self, file: &RemoteFile, part: &Path, watch: &mut Watch<'_>) -> Result<(), HubError> {
        let mut tries = 0;
        loop {
            let before = length(part);
            if before == file.size && (before > 0 || is_whole(part, 0)) {
                return Ok(());
            }
            let (reason, wait) = match self.attempt(file, part, watch) {
                Ok(()) => continue,
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(reason, wait)) => (reason, wait),
            };
            let done = length(part);
            tries = if done > before { 1 } else { tries + 1 };
            if tries >= TRIES {
                let (file, size) = (file.path.clone(), file.size);
                return Err(HubError::Incomplete { file, done, size, reason });
            }
            go_on(watch(DownloadEvent::Retry { file: &file.path, reason: &reason }))?;
            let pause = wait.unwrap_or_default().max(self.pause * (1 << (tries - 1)));
            sleep(pause, || go_on(watch(progress(file, done))))?;
        }
    }

    /// One request for what is missing. Returns when the server has no more to say.
    fn attempt(&self, file: &RemoteFile, part: &Path, watch: &mut Watch<'_>) -> Result<(), Failure> {
        let broken = |error| Failure::Final(HubError::Io(part.into(), error));
        // What is longer than the file is not a part of it.
        let have = Some(length(part)).filter(|have| *have < file.size).unwrap_or(0);
        let mut out = File::options().create(true).write(true).truncate(false).open(part).map_err(broken)?;
        if file.size == 0 {
            return out.set_len(0).map_err(broken);
        }
        let Content { start, mut bytes } = self.client.content(self.commit, file, have, None)?;
        if start > have {
            return Err(Failure::Passing(format!("bytes from {start} on came, not from {have}"), None));
        }
        // A server may send the whole in place of the rest.
        cut(&mut out, start).map_err(broken)?;
        let (mut done, mut told) = (start, Instant::now());
        let mut buffer = vec![0; 1 << 18];
        loop {
            let n = bytes.read(&mut buffer).map_err(|error| Failure::Passing(error.to_string(), None))?;
            done += n as u64;
            if done > file.size {
                return Err(Failure::Passing(format!("more than {} bytes came", file.size), None));
            }
            out.write_all(&buffer[..n]).map_err(broken)?;
            if n == 0 || told.elapsed() >= TICK {
                told = Instant::now();
                go_on(watch(progress(file, done))).map_err(Failure::Final)?;
            }
            if n == 0 && done < file.size {
                return Err(Failure::Passing(format!("the connection closed after {done} bytes"), None));
            }
            if n == 0 {
                return out.sync_data().map_err(broken);
            }
        }
    }
}

fn progress(file: &RemoteFile, done: u64) -> DownloadEvent<'_> {
    DownloadEvent::Progress { file: &file.path, done, size: file.size }
}

/// Ends `file` at `len`, which is where it goes on.
fn cut(file: &mut File, len: u64) -> io::Result<()> {
    use std::io::{Seek, SeekFrom};
    // A device has no length, and says what is wrong when it is written to.
    if file.metadata()?.is_file() {
        file.set_len(len)?;
        file.seek(SeekFrom::Start(len))?;
    }
    Ok(())
}

/// Sleeps, and looks up now and then.
pub(super) fn sleep<E>(time: Duration, mut look: impl FnMut() -> Result<(), E>) -> Result<(), E> {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        std::thread::sleep(left.min(TICK));
        look()?;
    }
    Ok(())
}
