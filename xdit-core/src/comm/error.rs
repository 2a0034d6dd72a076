//! Why ranks could not go on.

use std::time::Duration;

use super::{Call, Form};

/// Why a rank could not go on. Ranks are numbers in the world, not in a sub-group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommError {
    /// A rank failed. All ranks of the world name the same one with the same cause, whoever noticed it first.
    #[error("rank {rank}: {op} ended because rank {peer} {cause}")]
    PeerFailed {
        /// Whose operation ended.
        rank: usize,
        /// The operation.
        op: &'static str,
        /// Who failed.
        peer: usize,
        /// How.
        cause: Cause,
    },
    /// Sizes that do not make up the dimension to be split, or that are not one per rank.
    #[error("rank {rank}: {op} cannot split {n} into {sizes:?} for {size} ranks")]
    Sizes {
        /// Who asked for it.
        rank: usize,
        /// The operation.
        op: &'static str,
        /// What there is to split.
        n: usize,
        /// One per rank.
        sizes: Vec<usize>,
        /// Ranks of the group.
        size: usize,
    },
    /// A rank that is not in the group.
    #[error("rank {rank}: {op} with rank {peer} of a group of {size}")]
    NoSuchRank {
        /// Who asked for it.
        rank: usize,
        /// The operation.
        op: &'static str,
        /// Number in the group.
        peer: usize,
        /// Ranks of the group.
        size: usize,
    },
    /// The root has nothing to send.
    #[error("rank {rank}: {op} from this rank without a tensor")]
    NoTensor {
        /// The root.
        rank: usize,
        /// The operation.
        op: &'static str,
    },
    /// A tensor did not reach this rank's device.
    #[error("rank {rank}: {op} got a tensor of rank {peer} that could not be copied: {reason}")]
    Copy {
        /// Whose device it is.
        rank: usize,
        /// The operation.
        op: &'static str,
        /// Who sent it.
        peer: usize,
        /// What the device said.
        reason: String,
    },
}

/// How a rank failed; reads on after "rank 3".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// Its thread panicked.
    #[error("panicked in or after {op}")]
    Panicked {
        /// The last operation it called.
        op: &'static str,
    },
    /// It dropped its handle on the group while others needed it.
    #[error("left after {op}")]
    Left {
        /// The last operation it called.
        op: &'static str,
    },
    /// It said that it cannot go on.
    #[error("gave up after {op}: {reason}")]
    Aborted {
        /// The last operation it called.
        op: &'static str,
        /// Why, one line.
        reason: String,
    },
    /// Another waited for it, and it gave no sign of life for as long as the deadline.
    #[error("did not come to {op} and gave no sign of life for {deadline:?}")]
    Silent {
        /// What it should have come to.
        op: &'static str,
        /// How long was waited.
        deadline: Duration,
    },
    /// It sent something else than its receiver expected.
    #[error("sent {sent} in {op} where rank {peer} expected {expected}")]
    Unexpected {
        /// The operation.
        op: &'static str,
        /// What it sent.
        sent: Box<Form>,
        /// The receiver.
        peer: usize,
        /// What that one expected.
        expected: Box<Form>,
    },
    /// What another process says of it, or the transport.
    #[error("{text}")]
    Told {
        /// Reads on after "rank 3".
        text: String,
        /// Whether its process is gone, so that it says nothing itself.
        dead: bool,
    },
    /// It called something else than another member of the group.
    #[error("called {call} where rank {peer} called {peer_call}")]
    Mismatch {
        /// What it called.
        call: Box<Call>,
        /// The other member.
        peer: usize,
        /// What that one called.
        peer_call: Box<Call>,
    },
}
