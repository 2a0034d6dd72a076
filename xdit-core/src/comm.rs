//! How ranks talk: the seam that `xdit-comm` fills.

use burn::tensor::Tensor;

/// Why a rank could not go on. Every rank of a request sees an error that names the rank, the operation and the peer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommError {
    /// A peer did not answer before the deadline.
    #[error("rank {rank}: no answer from rank {peer} in {secs} s during {op}")]
    Timeout {
        /// Who waited.
        rank: usize,
        /// Who was silent.
        peer: usize,
        /// The collective.
        op: &'static str,
        /// The deadline in seconds.
        secs: u64,
    },
    /// A peer failed, or left before the operation was over.
    #[error("rank {rank}: rank {peer} is gone during {op}")]
    PeerGone {
        /// Who noticed.
        rank: usize,
        /// Who left.
        peer: usize,
        /// The collective.
        op: &'static str,
    },
}

/// A rank's handle on one group. Every member calls the same operations in the same order; a group of one is no
/// special case.
pub trait Communicator: Send {
    /// This rank's number in the group.
    fn rank(&self) -> usize;

    /// The number of ranks in the group.
    fn size(&self) -> usize;

    /// Sends `parts[i]` to rank `i`; returns what each rank sent here, in rank order.
    ///
    /// # Errors
    /// A peer that failed, left or kept silent.
    fn exchange(&self, parts: Vec<Tensor<1>>) -> Result<Vec<Tensor<1>>, CommError>;
}
