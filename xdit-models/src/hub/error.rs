//! Why a pipeline cannot be fetched.

use std::io;
use std::path::PathBuf;

use xdit_core::checkpoint::LoadError;

/// Tries without a single new byte before a download is given up.
pub(super) const TRIES: u32 = 5;

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
    /// An environment variable has a value that cannot be used.
    #[error("{name} is {value:?}, expected {expected}")]
    Setting {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// Nothing says where the cache is.
    #[error("no place for the cache: none of HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, HOME is set")]
    NoHome,
    /// The hub says that this address does not exist.
    #[error("{0} does not exist")]
    NotFound(String),
    /// The repository exists, the revision does not.
    #[error("{url} does not exist: the repository has no revision {revision:?}")]
    NoRevision {
        /// The address.
        url: String,
        /// The revision asked for.
        revision: String,
    },
    /// The hub wants to know who asks for this address, or does not let them in: status 401 or 403.
    #[error("{url}: access denied (status {status}); {advice}")]
    Denied {
        /// The address.
        url: String,
        /// The status.
        status: u16,
        /// What to do.
        advice: String,
    },
    /// The hub asks to wait for longer than is worth waiting.
    #[error("{url}: too many requests (status 429); {}", match seconds {
        Some(seconds) => format!("try again in {seconds} s, or with a token in HF_TOKEN"),
        None => "try again later, or with a token in HF_TOKEN".into(),
    })]
    TooMany {
        /// The address.
        url: String,
        /// How long to wait, if the hub says so.
        seconds: Option<u64>,
    },
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
    /// A file came whole, twice, and yet is not what the hub lists.
    #[error("{file}: what came has the hash {found}, the hub lists {expected}")]
    Damaged {
        /// The file's path in the repository.
        file: String,
        /// The hash of what came.
        found: String,
        /// The hash that the hub lists.
        expected: String,
    },
    /// The disk has not the space for what is missing.
    #[error("{repo} needs {needed} more bytes in {}, which has {free} left; HF_HUB_CACHE says where to put them", dir.display())]
    Space {
        /// The repository.
        repo: String,
        /// The cache.
        dir: PathBuf,
        /// Bytes that are missing.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The one who watches has stopped it.
    #[error("the download is cancelled; the next call continues it")]
    Cancelled,
    /// This repository is no diffusers pipeline.
    #[error("{0} is not a pipeline: it has no model_index.json")]
    NotAPipeline(String),
    /// This repository is a pipeline of a class that is of no use.
    #[error("{repo} holds a {class:?}, which is not supported; supported are {supported}")]
    Class {
        /// The repository.
        repo: String,
        /// Its class.
        class: String,
        /// What there is.
        supported: String,
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
