//! Pipelines by their id on the Hugging Face hub: through the `hf-hub` crate, into the cache that the Python
//! libraries use too.
//!
//! Only what a pipeline needs is taken: `model_index.json`, `xdit.json` if there is one, and for each component its
//! configuration, its tokenizer and one set of safetensors. A download that was cut is taken up where it ended.
//!
//! The crate has no timeouts, appends whatever a server answers, and panics at some answers. Hence each file is
//! fetched in a thread that is watched, is tried again, and counts only with the size that the hub lists. What cannot
//! be mended from outside: the crate trusts no certificates but the built-in ones, sends the token to the content
//! servers that the hub names, and does not continue the partial files of the Python libraries, only its own.

mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;
use xdit_core::checkpoint::LoadError;
use xdit_core::observer::{Observer, Phase};

/// Largest list of files, in bytes. A repository of ten thousand files has about two million.
const MAX_LISTING: u64 = 64 << 20;
/// Tries without a single new byte before a download is given up.
const TRIES: u32 = 5;
/// How often a download is looked at.
const TICK: Duration = Duration::from_millis(100);

/// What happens while a pipeline is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DownloadEvent<'a> {
    /// What there is to do. Comes once the sizes are known, and not at all if nothing is missing.
    Plan {
        /// Files that are missing or incomplete.
        files: usize,
        /// Their sizes together, in bytes.
        bytes: u64,
    },
    /// A file grows. Comes about ten times a second, and at last with `done == size`; for the indexes that the plan
    /// is made of, before it.
    Progress {
        /// The file's path in the repository.
        file: &'a str,
        /// Bytes that are there, those of earlier tries among them.
        done: u64,
        /// The file's size in bytes.
        size: u64,
    },
    /// A download failed and is taken up again where it ended.
    Retry {
        /// The file's path in the repository.
        file: &'a str,
        /// What went wrong.
        reason: &'a str,
    },
    /// The hub cannot be reached; the copy in the cache is used as it is.
    UsingCache {
        /// Why it cannot be reached.
        reason: &'a str,
    },
}

/// Why a pipeline cannot be fetched. Each message is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The id is not of the form `name` or `organisation/name`.
    #[error("{0:?} is not the id of a repository such as \"black-forest-labs/FLUX.1-schnell\"")]
    RepoId(String),
    /// The revision is not a branch, a tag or a commit.
    #[error("{0:?} is not the name of a revision")]
    Revision(String),
    /// Nothing says where the cache is.
    #[error("no place for the cache: none of HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, HOME is set")]
    NoHome,
    /// The hub says that this address does not exist.
    #[error("{0} does not exist")]
    NotFound(String),
    /// The hub wants to know who asks for this address, or does not let them in: status 401 or 403.
    #[error("{0}: access denied (status {1}); it may not exist, or need HF_TOKEN and its terms accepted")]
    Denied(String, u16),
    /// This address does not answer, for this reason, and the cache is no help, for that one.
    #[error("{0} cannot be reached: {1}; {2}")]
    Unreachable(String, String, String),
    /// This address gives an answer that the hub would not give; what is wrong with it.
    #[error("{0} gives no useful answer: {1}")]
    Answer(String, String),
    /// A file stays incomplete after several tries.
    #[error("{file}: {done} of {size} bytes after {TRIES} tries without progress: {reason}")]
    Incomplete {
        /// The file's path in the repository.
        file: String,
        /// Bytes that are there.
        done: u64,
        /// The file's size in bytes.
        size: u64,
        /// What went wrong at the last try.
        reason: String,
    },
    /// The one who watches has stopped it.
    #[error("the download is cancelled; the next call continues it")]
    Cancelled,
    /// This repository is no diffusers pipeline.
    #[error("{0} is not a pipeline: it has no model_index.json")]
    NotAPipeline(String),
    /// A component has weights, but not as safetensors.
    #[error("{repo}: {component} has no safetensors, only {found}")]
    NoSafetensors {
        /// The repository.
        repo: String,
        /// The component.
        component: String,
        /// A file that it has.
        found: String,
    },
    /// Offline, and the cache does not have it all.
    #[error("{repo} is not complete in the cache at {}: no {}", dir.display(), missing.join(", "))]
    NotCached {
        /// The repository.
        repo: String,
        /// The folder looked into.
        dir: PathBuf,
        /// The files looked for that are missing there.
        missing: Vec<String>,
    },
    /// This file or folder of the cache cannot be read or written.
    #[error("{path}: {1}", path = .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// A file of the pipeline is not what it should be.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// Downloads what the cache lacks of the pipeline `repo` (`"organisation/name"`) at `revision` (a branch, a tag or a
/// commit; `main` by default) and gives its folder.
///
/// With a `variant` such as `"fp16"` its weights are taken, and the plain ones of components that lack it. If the hub
/// cannot be reached and the cache has all that is needed, that is used. The environment is that of the Python
/// libraries: `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_ENDPOINT`, and `HF_HUB_OFFLINE`, with which
/// no connection is tried.
///
/// # Errors
/// A repository that does not exist, refuses, or is no pipeline in safetensors; a connection that fails for good; a
/// cache that cannot be written, or that is incomplete when offline.
pub fn fetch(
    repo: &str,
    revision: Option<&str>,
    variant: Option<&str>,
    progress: &mut dyn FnMut(DownloadEvent<'_>),
) -> Result<PathBuf, HubError> {
    Hub::from_vars(|name| std::env::var(name).ok())?.fetch(repo, revision, variant, &mut |event| {
        progress(event);
        ControlFlow::Continue(())
    })
}

/// [`fetch`] as [`Phase::Download`], in bytes. The phase does not begin if nothing is missing.
///
/// # Errors
/// As [`fetch`]; also if the observer breaks.
pub fn fetch_observed(
    repo: &str,
    revision: Option<&str>,
    variant: Option<&str>,
    observer: &mut dyn Observer,
) -> Result<PathBuf, HubError> {
    Hub::from_vars(|name| std::env::var(name).ok())?.fetch_observed(repo, revision, variant, observer)
}

/// Who is told of the events, and may break.
type Watch<'a> = dyn FnMut(DownloadEvent<'_>) -> ControlFlow<()> + 'a;

/// A file of a repository.
struct RemoteFile {
    /// Path in the repository.
    path: String,
    /// Name of its content in the cache: the SHA-256 of large files, git's id of small ones.
    blob: String,
    /// Size in bytes.
    size: u64,
}

/// The files of a repository at one commit.
struct Listing {
    commit: String,
    files: Vec<RemoteFile>,
}

impl Listing {
    fn file(&self, path: &str) -> Option<&RemoteFile> {
        self.files.iter().find(|file| file.path == path)
    }
}

/// Where to fetch from and where to.
struct Hub {
    endpoint: String,
    cache: Cache,
    token: Option<String>,
    offline: bool,
    /// How long a server may stay silent.
    timeout: Duration,
    /// The pause before the first retry; it doubles with each.
    pause: Duration,
}

impl Hub {
    /// The settings in the environment `var`, of which the crate itself reads but a part.
    fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let var = |name: &str| var(name).map(|value| value.trim().to_string()).filter(|value| !value.is_empty());
        let path = |name: &str| var(name).map(PathBuf::from);
        let home = path("HF_HOME").or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface"))).or_else(|| {
            let user = path("HOME").or_else(|| path("USERPROFILE"))?;
            Some(user.join(".cache/huggingface"))
        });
        let cache = path("HF_HUB_CACHE").or_else(|| Some(home.as_ref()?.join("hub"))).ok_or(HubError::NoHome)?;
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(home?.join("token")));
        let token = var("HF_TOKEN").or_else(|| Some(fs::read_to_string(token_file?).ok()?.trim().to_string()));
        let is_on = |value: String| ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str());
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').into(),
            cache: Cache::new(cache),
            token: token.filter(|token| !token.is_empty()),
            offline: var("HF_HUB_OFFLINE").is_some_and(is_on),
            timeout: Duration::from_secs(60),
            pause: Duration::from_millis(500),
        })
    }

    fn fetch_observed(
        &self,
        repo: &str,
        revision: Option<&str>,
        variant: Option<&str>,
        observer: &mut dyn Observer,
    ) -> Result<PathBuf, HubError> {
        // The bytes of each file, once there is a plan.
        let mut there: Option<BTreeMap<String, u64>> = None;
        let result = self.fetch(repo, revision, variant, &mut |event| {
            match event {
                DownloadEvent::Plan { bytes, .. } => {
                    there = Some(BTreeMap::new());
                    observer.begin(Phase::Download, repo, bytes);
                }
                DownloadEvent::Progress { file, done, .. } => {
                    if let Some(there) = &mut there {
                        there.insert(file.into(), done);
                        return observer.advance(Phase::Download, there.values().sum());
                    }
                }
                DownloadEvent::Retry { file, reason } => observer.warn(&format!("{file}: {reason}; trying again")),
                DownloadEvent::UsingCache { reason } => {
                    observer.warn(&format!("{reason}; using the copy in the cache"))
                }
            }
            ControlFlow::Continue(())
        });
        if there.is_some() {
            observer.end(Phase::Download);
        }
        result
    }

    fn fetch(
        &self,
        id: &str,
        revision: Option<&str>,
        variant: Option<&str>,
        watch: &mut Watch<'_>,
    ) -> Result<PathBuf, HubError> {
        let revision = revision.unwrap_or("main");
        check_names(id, revision)?;
        let repo = |revision: &str| Repo::with_revision(id.into(), RepoType::Model, revision.into());
        let cache = self.cache.repo(repo(revision));
        if self.offline {
            return plan::cached(&cache, id, revision, variant);
        }
        let url = format!("{}/{id}", self.endpoint);
        let api = ApiBuilder::from_cache(self.cache.clone())
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_progress(false)
            // After a failed retry of its own the crate may continue at the wrong place.
            .with_retries(0)
            .with_user_agent("xdit", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| HubError::Answer(url, error.to_string()))?;
        let listing = match self.list(&api, repo(revision)) {
            Err(HubError::Unreachable(url, reason, _)) => {
                return match plan::cached(&cache, id, revision, variant) {
                    Ok(dir) => go_on(watch(DownloadEvent::UsingCache { reason: &reason })).map(|()| dir),
                    Err(error) => Err(HubError::Unreachable(url, reason, error.to_string())),
                };
            }
            listing => listing?,
        };
        // By the commit: a branch may move while this goes on.
        let commit = repo(&listing.commit);
        let mut small = |file: &RemoteFile| {
            let path = self.download(&api, &commit, file, watch)?;
            fs::read_to_string(&path).map_err(|error| HubError::Io(path, error))
        };
        let index = listing.file("model_index.json").ok_or_else(|| HubError::NotAPipeline(id.into()))?;
        let mut files = plan::needed(id, &listing, &small(index)?, variant, &mut small)?;

        let dir = cache.pointer_path(&listing.commit);
        files.retain(|file| length(&dir.join(&file.path)) != file.size);
        if !files.is_empty() {
            let bytes = files.iter().map(|file| file.size).sum();
            go_on(watch(DownloadEvent::Plan { files: files.len(), bytes }))?;
        }
        for file in files {
            self.download(&api, &commit, file, watch)?;
        }
        // Last: what a branch leads to is complete.
        cache.create_ref(&listing.commit).map_err(|error| HubError::Io(dir.clone(), error))?;
        Ok(dir)
    }

    /// The files of the repository, with their sizes.
    fn list(&self, api: &Api, repo: Repo) -> Result<Listing, HubError> {
        #[derive(Deserialize)]
        struct Info {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Sibling {
            rfilename: String,
            size: Option<u64>,
            blob_id: Option<String>,
            lfs: Option<Lfs>,
        }
        #[derive(Deserialize)]
        struct Lfs {
            sha256: String,
        }
        let url = format!("{}/api/{}", self.endpoint, repo.api_url());
        let wrong = |reason: String| HubError::Answer(url.clone(), reason);
        let unreachable = |reason: String| HubError::Unreachable(url.clone(), reason, String::new());
        let request = api.repo(repo).info_request().query("blobs", "true");
        let request = request.config().http_status_as_error(false).timeout_global(Some(self.timeout)).build();
        let mut answer = request.call().map_err(|error| unreachable(error.to_string()))?;
        match answer.status().as_u16() {
            200..=299 => {}
            status => return Err(refusal(&url, status).unwrap_or_else(|| unreachable(format!("status {status}")))),
        }
        let text = answer.body_mut().with_config().limit(MAX_LISTING).read_to_string();
        let info: Info = serde_json::from_str(&text.map_err(|error| unreachable(error.to_string()))?)
            .map_err(|error| wrong(error.to_string()))?;
        if !is_commit(&info.sha) {
            return Err(wrong(format!("{:?} is no commit", info.sha)));
        }
        let mut files = Vec::new();
        for sibling in info.siblings {
            let path = sibling.rfilename;
            // The crate cannot fetch empty files, and nobody needs them.
            if !is_path(&path) || sibling.size == Some(0) {
                continue;
            }
            let blob = sibling.lfs.map(|lfs| lfs.sha256).or(sibling.blob_id);
            let is_id = |id: &String| id.len() >= 8 && id.bytes().all(|b| b.is_ascii_alphanumeric());
            let (Some(blob), Some(size)) = (blob.filter(is_id), sibling.size) else {
                return Err(wrong(format!("no size or no id of {path:?}")));
            };
            files.push(RemoteFile { path, blob, size });
        }
        Ok(Listing { commit: info.sha, files })
    }

    /// Makes sure that `file` is in the snapshot, whole, and gives its path there.
    fn download(
        &self,
        api: &Api,
        commit: &Repo,
        file: &RemoteFile,
        watch: &mut Watch<'_>,
    ) -> Result<PathBuf, HubError> {
        let cache = self.cache.repo(commit.clone());
        let path = cache.pointer_path(commit.revision()).join(&file.path);
        let blob = cache.blob_path(&file.blob);
        let part = blob.with_extension("part");
        let mut tries = 0;
        loop {
            if length(&path) != file.size {
                // A link to nothing, or to something else, would be kept by the crate.
                let _ = fs::remove_file(&path);
                link(file, &blob, &path);
            }
            if length(&path) == file.size {
                go_on(watch(DownloadEvent::Progress { file: &file.path, done: file.size, size: file.size }))?;
                return Ok(path);
            }
            // Of a partial file that is none the crate would ask for the rest, for ever.
            if length(&part) >= file.size {
                let _ = fs::remove_file(&part);
            }
            let before = length(&part);
            let reason = match self.attempt(api, commit, file, &part, watch)? {
                Err(reason) => reason,
                Ok(()) if length(&path) == file.size => continue,
                Ok(()) => {
                    let reason = format!("{} bytes came", length(&path));
                    let _ = fs::canonicalize(&path).and_then(fs::remove_file);
                    reason
                }
            };
            let done = length(&part);
            tries = if done > before { 1 } else { tries + 1 };
            if tries >= TRIES {
                let (file, size) = (file.path.clone(), file.size);
                return Err(HubError::Incomplete { file, done, size, reason });
            }
            go_on(watch(DownloadEvent::Retry { file: &file.path, reason: &reason }))?;
            std::thread::sleep(self.pause * (1 << (tries - 1)));
        }
    }

    /// One download by the crate, continuing `part`. `Ok(Err(reason))` is a failure that may pass.
    fn attempt(
        &self,
        api: &Api,
        commit: &Repo,
        file: &RemoteFile,
        part: &Path,
        watch: &mut Watch<'_>,
    ) -> Result<Result<(), String>, HubError> {
        let repo = api.repo(commit.clone());
        let url = repo.url(&file.path);
        let meter = Meter::default();
        let (sender, result) = channel();
        std::thread::spawn({
            let (name, meter) = (file.path.clone(), meter.clone());
            move || sender.send(repo.download_with_progress(&name, meter))
        });
        let before = length(part);
        let (mut since, mut last) = (Instant::now(), 0);
        let error = loop {
            match result.recv_timeout(TICK) {
                Ok(Ok(_)) => return Ok(Ok(())),
                Ok(Err(error)) => break error,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(HubError::Answer(url, "hf-hub panicked".into()));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let done = meter.done.load(Relaxed);
            if done != last {
                (since, last) = (Instant::now(), done);
            }
            let done = done.max(before).min(file.size);
            let event = DownloadEvent::Progress { file: &file.path, done, size: file.size };
            let silent = since.elapsed() > self.timeout;
            let flow = watch(event);
            if silent || flow.is_break() {
                meter.stop.store(true, Relaxed);
                go_on(flow)?;
                if meter.locked.load(Relaxed) {
                    // The lock is that thread's, which holds it as long as the server says nothing.
                    let _ = fs::remove_file(part.with_extension("lock"));
                }
                return Ok(Err(format!("no byte for {} seconds", self.timeout.as_secs())));
            }
        };
        let reason = error.to_string();
        match error {
            ApiError::IoError(source) if is_local(&source) => Err(HubError::Io(part.into(), source)),
            // The crate gives the status only in words.
            ApiError::RequestError(_) => {
                let status = reason.split_once("http status: ").and_then(|(_, status)| status.parse().ok());
                status.and_then(|status| refusal(&url, status)).map_or(Ok(Err(reason)), Err)
            }
            ApiError::IoError(_) | ApiError::LockAcquisition(_) | ApiError::InvalidResume => Ok(Err(reason)),
            _ => Err(HubError::Answer(url, reason)),
        }
    }
}

/// Counts a download's bytes in the crate's thread, and ends it there.
#[derive(Clone, Default)]
struct Meter {
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    /// Whether the crate has come as far as to lock the file.
    locked: Arc<AtomicBool>,
}

impl Progress for Meter {
    fn init(&mut self, _size: usize, _file: &str) {
        self.done.store(0, Relaxed);
        self.locked.store(true, Relaxed);
    }

    fn update(&mut self, size: usize) {
        if self.stop.load(Relaxed) {
            // The trait has no other way out. It is no panic: no message, and the file stays as it is.
            resume_unwind(Box::new("stopped"));
        }
        self.done.fetch_add(size as u64, Relaxed);
    }

    fn finish(&mut self) {}
}

fn go_on(flow: ControlFlow<()>) -> Result<(), HubError> {
    if flow.is_break() { Err(HubError::Cancelled) } else { Ok(()) }
}

/// The error that a status means, unless it may pass.
fn refusal(url: &str, status: u16) -> Option<HubError> {
    let url = url.into();
    match status {
        404 => Some(HubError::NotFound(url)),
        401 | 403 => Some(HubError::Denied(url, status)),
        408 | 416 | 429 | 500.. => None,
        _ => Some(HubError::Answer(url, format!("status {status}"))),
    }
}

/// Whether the disk is at fault and not the connection.
fn is_local(error: &io::Error) -> bool {
    use ErrorKind::{AlreadyExists, FileTooLarge, NotADirectory, NotFound, PermissionDenied};
    use ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), AlreadyExists | FileTooLarge | NotADirectory | NotFound | PermissionDenied)
        || matches!(error.kind(), QuotaExceeded | ReadOnlyFilesystem | StorageFull)
}

/// The file's length, zero if there is none.
fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

/// Puts a content that is there already, from another commit, under its name at `path`; the crate would fetch it anew.
fn link(file: &RemoteFile, blob: &Path, path: &Path) {
    #[cfg(unix)]
    if length(blob) == file.size
        && let Some(parent) = path.parent()
    {
        let up = "../".repeat(2 + file.path.matches('/').count());
        let _ = fs::create_dir_all(parent)
            .and_then(|()| std::os::unix::fs::symlink(format!("{up}blobs/{}", file.blob), path));
    }
    #[cfg(not(unix))]
    let _ = (file, blob, path);
}

/// Whether `name` is a commit's hash rather than a branch or a tag.
fn is_commit(name: &str) -> bool {
    name.len() == 40 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether `path` stays below the folder that it is joined to, and in an address is what it is.
fn is_path(path: &str) -> bool {
    path.bytes().all(|b| b.is_ascii_graphic() && !b"\\:?#%".contains(&b))
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Both become parts of addresses and of paths in the cache.
fn check_names(repo: &str, revision: &str) -> Result<(), HubError> {
    let is_name = |name: &str, marks: &[u8]| {
        !name.is_empty()
            && !name.starts_with(['.', '-'])
            && !name.contains("..")
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || marks.contains(&b))
    };
    if repo.len() > 96 || repo.split('/').count() > 2 || !repo.split('/').all(|part| is_name(part, b"-_.")) {
        return Err(HubError::RepoId(repo.into()));
    }
    if revision.len() > 255 || !revision.split('/').all(|part| is_name(part, b"-_.+@=")) {
        return Err(HubError::Revision(revision.into()));
    }
    Ok(())
}
