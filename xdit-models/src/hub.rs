//! Pipelines by their id on the Hugging Face hub: downloaded once, into the cache that the Python libraries use too.
//!
//! Only what a pipeline needs is taken: `model_index.json`, and for each component its configuration, its tokenizer
//! and one set of safetensors. The cache's layout (`models--org--name/{blobs,refs,snapshots}`), the names of
//! incomplete files and the locks are those of `huggingface_hub`, so either continues what the other began.
//!
//! This speaks HTTP itself instead of through the `hf-hub` crate: that crate's 0.5 has no timeouts and appends
//! a whole answer to a partial file when a server ignores `Range`; its 1.0 cannot resume and brings 300 crates.

mod cache;
mod plan;
mod remote;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use xdit_core::checkpoint::LoadError;

use cache::RepoCache;
use remote::{Listing, Remote};

/// What happens while a pipeline is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DownloadEvent<'a> {
    /// What there is to do. Comes once the sizes are known, and not at all if nothing is missing.
    Plan {
        /// Files to download.
        files: usize,
        /// Their sizes together, in bytes, without what is already there from an earlier try.
        bytes: u64,
    },
    /// A file grows. Comes at least once for each file, and at last with `done == size`.
    Progress {
        /// The file's path in the repository.
        file: &'a str,
        /// Bytes that are there.
        done: u64,
        /// The file's size in bytes.
        size: u64,
    },
    /// The connection broke and is taken up again where it ended.
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
    #[error("{repo:?} is not the id of a repository such as \"black-forest-labs/FLUX.1-schnell\"")]
    RepoId {
        /// The id.
        repo: String,
    },
    /// The revision is not a branch, a tag or a commit.
    #[error("{revision:?} is not the name of a revision")]
    Revision {
        /// The revision.
        revision: String,
    },
    /// Neither `HF_HOME` nor `HOME` says where the cache is.
    #[error("no place for the cache: none of HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, HOME is set")]
    NoHome,
    /// The file named by `SSL_CERT_FILE` holds no certificates.
    #[error("{}: no certificates in PEM form", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
    },
    /// The hub says that it does not exist.
    #[error("{url} does not exist")]
    NotFound {
        /// The address asked.
        url: String,
    },
    /// The hub wants to know who asks, or does not let them in.
    #[error(
        "{repo}: access denied (status {status}); it may not exist, or need HF_TOKEN and its terms accepted at {page}"
    )]
    Denied {
        /// The repository.
        repo: String,
        /// The HTTP status, 401 or 403.
        status: u16,
        /// The repository's page.
        page: String,
    },
    /// An answer that is no success.
    #[error("{url} answers with status {status}")]
    Status {
        /// The address asked.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// No answer.
    #[error("{url}: {source}")]
    Request {
        /// The address asked.
        url: String,
        /// What went wrong.
        source: Box<ureq::Error>,
    },
    /// The hub's list of files is not what it should be.
    #[error("{url}: not a list of files: {reason}")]
    Listing {
        /// The address asked.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file stays incomplete after several tries.
    #[error("{file}: {done} of {size} bytes after {tries} tries without progress: {reason}")]
    Incomplete {
        /// The file's path in the repository.
        file: String,
        /// Bytes that are there.
        done: u64,
        /// The file's size in bytes.
        size: u64,
        /// Tries since the last byte.
        tries: u32,
        /// What went wrong at the last one.
        reason: String,
    },
    /// A server sends more of a file than there is, or another part than was asked for.
    #[error("{file}: the server sends something else than its {size} bytes")]
    WrongSize {
        /// The file's path in the repository.
        file: String,
        /// The size that the hub lists, in bytes.
        size: u64,
    },
    /// The repository is no diffusers pipeline.
    #[error("{repo} is not a pipeline: it has no model_index.json")]
    NotAPipeline {
        /// The repository.
        repo: String,
    },
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
        /// What is missing there.
        missing: Vec<String>,
    },
    /// Another process holds the lock of a file and does not get on.
    #[error("{}: locked by another process, and its download does not grow", path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
    },
    /// The cache cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file of the pipeline is not what it should be.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// Where to fetch from and where to.
#[derive(Clone)]
pub struct Hub {
    /// The server, `"https://huggingface.co"`.
    pub endpoint: String,
    /// The folder of all cached repositories.
    pub cache: PathBuf,
    /// Sent to the endpoint, and to no other server that it redirects to.
    pub token: Option<String>,
    /// Use only what the cache has.
    pub offline: bool,
    /// Certificate authorities to trust instead of the built-in ones: a file in PEM form.
    pub certificates: Option<PathBuf>,
    /// How long a server may stay silent.
    pub timeout: Duration,
    /// The pause before the first retry; it doubles with each.
    pub retry_pause: Duration,
}

/// Without the token, which is a secret.
impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

/// Fetches the pipeline `repo` with the settings of the environment and gives its folder. See [`Hub::fetch`].
///
/// # Errors
///
/// As [`Hub::from_env`] and [`Hub::fetch`].
pub fn fetch(
    repo: &str,
    revision: Option<&str>,
    variant: Option<&str>,
    progress: &mut dyn FnMut(DownloadEvent<'_>),
) -> Result<PathBuf, HubError> {
    Hub::from_env()?.fetch(repo, revision, variant, progress)
}

impl Hub {
    /// The settings that `huggingface_hub` takes from the environment: `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`,
    /// `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`, and `SSL_CERT_FILE`. Proxies are taken from `HTTPS_PROXY` and
    /// its like.
    ///
    /// # Errors
    ///
    /// Fails if there is no home folder to put the cache in.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// [`from_env`](Self::from_env) with another environment.
    ///
    /// # Errors
    ///
    /// As [`from_env`](Self::from_env).
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let var = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let path = |name: &str| var(name).map(PathBuf::from);
        let home = path("HF_HOME").or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface"))).or_else(|| {
            let user = path("HOME").or_else(|| path("USERPROFILE"))?;
            Some(user.join(".cache").join("huggingface"))
        });
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(home.as_ref()?.join("hub")))
            .ok_or(HubError::NoHome)?;
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(home?.join("token")));
        let token = var("HF_TOKEN")
            .or_else(|| var("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| std::fs::read_to_string(token_file?).ok())
            .map(|token| token.trim().to_string())
            .filter(|token| !token.is_empty());
        let is_on = |value: String| matches!(value.trim().to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on");
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Ok(Self {
            endpoint: endpoint.trim().trim_end_matches('/').into(),
            cache,
            token,
            offline: var("HF_HUB_OFFLINE").is_some_and(is_on),
            certificates: path("SSL_CERT_FILE").or_else(|| path("REQUESTS_CA_BUNDLE")),
            timeout: Duration::from_secs(60),
            retry_pause: Duration::from_millis(500),
        })
    }

    /// Downloads what the cache lacks of the pipeline `repo` (`"organisation/name"`) at `revision` (a branch, a tag
    /// or a commit; `main` by default) and gives its folder.
    ///
    /// With a `variant` such as `"fp16"` its weights are taken, and the plain ones of components that lack it; see
    /// [`PipelineFolder::weights`](xdit_core::folder::PipelineFolder::weights). A broken connection is taken up where
    /// it ended, now and in a later call. If the hub cannot be reached and the cache has all that is needed, that is
    /// used; when offline, no connection is tried.
    ///
    /// # Errors
    ///
    /// Fails if the repository does not exist or is no pipeline in safetensors, if the connection fails for good, if
    /// the cache cannot be written, or if offline and the cache is incomplete.
    pub fn fetch(
        &self,
        repo: &str,
        revision: Option<&str>,
        variant: Option<&str>,
        progress: &mut dyn FnMut(DownloadEvent<'_>),
    ) -> Result<PathBuf, HubError> {
        let revision = revision.unwrap_or("main");
        check_repo(repo)?;
        check_revision(revision)?;
        let cache = RepoCache::new(&self.cache, repo);
        if self.offline {
            return plan::complete_snapshot(&cache, repo, revision, variant);
        }
        let remote = Remote::new(self, repo)?;
        let listing = match remote.list(revision) {
            Ok(listing) => listing,
            Err(error) if is_unreachable(&error) => {
                // What is wrong with the cache is of no interest to someone who has not asked for offline use.
                let Ok(dir) = plan::complete_snapshot(&cache, repo, revision, variant) else {
                    return Err(error);
                };
                progress(DownloadEvent::UsingCache { reason: &error.to_string() });
                return Ok(dir);
            }
            Err(error) => return Err(error),
        };
        self.fetch_listed(&remote, &cache, &listing, variant, progress)?;
        cache.set_ref(revision, &listing.commit)?;
        Ok(cache.snapshot(&listing.commit))
    }

    fn fetch_listed(
        &self,
        remote: &Remote<'_>,
        cache: &RepoCache,
        listing: &Listing,
        variant: Option<&str>,
        progress: &mut dyn FnMut(DownloadEvent<'_>),
    ) -> Result<(), HubError> {
        let repo = remote.repo();
        let index = listing.file("model_index.json").ok_or_else(|| HubError::NotAPipeline { repo: repo.into() })?;
        let mut small = |file: &remote::RemoteFile| -> Result<String, HubError> {
            remote.download(cache, &listing.commit, file, progress)?;
            let path = cache.blob(&file.blob);
            std::fs::read_to_string(&path).map_err(|source| HubError::Io { path, source })
        };
        let files = plan::needed(repo, listing, &small(index)?, variant, &mut small)?;

        let missing: Vec<_> = files.into_iter().filter(|file| !cache.has(&listing.commit, file)).collect();
        if !missing.is_empty() {
            let bytes = missing.iter().map(|file| file.size - cache.n_done(file));
            progress(DownloadEvent::Plan { files: missing.len(), bytes: bytes.sum() });
        }
        for file in missing {
            remote.download(cache, &listing.commit, file, progress)?;
            cache.link(&listing.commit, file)?;
        }
        // The index comes last: where it is, the rest is.
        if !cache.has(&listing.commit, index) {
            cache.link(&listing.commit, index)?;
        }
        Ok(())
    }
}

/// Whether the fault is the connection's or the server's, not the request's.
fn is_unreachable(error: &HubError) -> bool {
    match error {
        HubError::Request { .. } => true,
        HubError::Status { status, .. } => *status >= 500 || *status == 429,
        _ => false,
    }
}

fn check_repo(repo: &str) -> Result<(), HubError> {
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(['.', '-'])
            && !name.contains("..")
            && !name.contains("--")
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let parts: Vec<_> = repo.split('/').collect();
    if repo.len() <= 96 && parts.len() <= 2 && parts.into_iter().all(is_name) {
        return Ok(());
    }
    Err(HubError::RepoId { repo: repo.into() })
}

/// A revision becomes part of an address and of a path in the cache.
fn check_revision(revision: &str) -> Result<(), HubError> {
    let is_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && !part.contains("..")
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+@=".contains(&b))
    };
    if revision.len() <= 255 && revision.split('/').all(is_part) {
        return Ok(());
    }
    Err(HubError::Revision { revision: revision.into() })
}
/// stub
pub fn fetch_observed(repo:&str,revision:Option<&str>,variant:Option<&str>,_:&mut dyn xdit_core::observer::Observer)->Result<PathBuf,HubError>{ fetch(repo,revision,variant,&mut |_|{}) }
