//! What happens while a pipeline is fetched.

use std::ops::ControlFlow;

use super::error::HubError;

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
    /// A file grows. Comes about ten times a second while bytes come, and at last with `done == size`; for the indexes
    /// that the plan is made of, before it.
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
    /// The hub gives no answer that helps; the copy in the cache is used as it is.
    UsingCache {
        /// What is wrong with the hub.
        reason: &'a str,
    },
}

/// Who is told of the events, and may break.
pub(super) type Watch<'a> = dyn FnMut(DownloadEvent<'_>) -> ControlFlow<()> + 'a;

/// The error that the one who watches has stopped it.
pub(super) fn go_on(flow: ControlFlow<()>) -> Result<(), HubError> {
    if flow.is_break() { Err(HubError::Cancelled) } else { Ok(()) }
}
