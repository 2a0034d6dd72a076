//! Why there is no world of processes.

/// Why this process is not in a world.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// MPI can be started once.
    #[error("MPI was started before in this process")]
    Started,
    /// MPI was built without threads.
    #[error("this MPI does not let one thread of several call it (MPI_THREAD_FUNNELED)")]
    Threads,
    /// It takes no messages.
    #[error("MPI refuses to receive from rank {peer}")]
    Refused {
        /// From whom.
        peer: usize,
    },
    /// The system gave no thread, or the courier ended.
    #[error("no thread for MPI: {reason}")]
    NoThread {
        /// What the system said.
        reason: String,
    },
}
