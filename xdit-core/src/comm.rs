//! How ranks talk: the seam that `xdit-comm` fills, and the typed collectives that are written once on top of it.
//!
//! A back end fills [`Communicator`], which knows of flat [`Part`]s only. Everyone else calls the methods of
//! `dyn Communicator`: `all_to_all`, `all_gather`, `all_reduce`, `broadcast`, `scatter`, `gather`, `rotate`, `send`,
//! `recv`, `barrier`.

mod call;
mod collectives;
mod error;
mod part;
mod stats;

pub use call::Call;
pub use collectives::{Posted, Sent, even_sizes};
pub use error::{Cause, CommError};
pub use part::Part;
pub use stats::{Stats, Traffic};

use burn::tensor::Device;

/// A rank's handle on one group. Every member calls the same collectives in the same order; a group of one is no
/// special case.
///
/// A rank that fails ends every operation of every rank of the world: none waits for it longer than it takes to notice,
/// and all name it. So does one that drops its handle, once another needs it in that group. No wait is longer than the
/// back end's deadline.
///
/// Ranks are numbered within the group here, and within the world in errors.
pub trait Communicator: Send {
    /// This rank's number in the group.
    fn rank(&self) -> usize;

    /// The number of ranks in the group.
    fn size(&self) -> usize;

    /// This rank's number in the world, by which errors call it.
    fn world_rank(&self) -> usize;

    /// Where received tensors land.
    fn device(&self) -> &Device;

    /// Sends `parts[i]` to rank `i`; returns what each rank sent here, in rank order. Parts may differ in length, and be
    /// empty.
    ///
    /// # Errors
    /// A peer that failed, left, kept silent or called something else; a number of parts that is not [`Self::size`].
    fn exchange(&self, call: Call, parts: Vec<Part>) -> Result<Vec<Part>, CommError>;

    /// Starts to send to rank `to`, which may be this rank; never waits. Messages between two ranks arrive in the order
    /// in which they were posted.
    ///
    /// # Errors
    /// A peer that failed, or left the group; a rank that is not in it.
    fn post_send(&self, call: Call, to: usize, part: Part) -> Result<Box<dyn Pending<()>>, CommError>;

    /// Starts to receive the next message of rank `from`, which may be this rank; never waits. Who drops the handle
    /// drops the message.
    ///
    /// # Errors
    /// A peer that failed; a rank that is not in the group.
    fn post_recv(&self, call: Call, from: usize) -> Result<Box<dyn Pending<Part>>, CommError>;

    /// The members that call this with the same `color` become a group, in the order of their `key`s, then of their
    /// ranks here. Its statistics start at nothing.
    ///
    /// # Errors
    /// As [`Self::exchange`].
    fn split(&self, color: usize, key: usize) -> Result<Box<dyn Communicator>, CommError>;

    /// What this rank sent to others in this group since it began, or since [`Self::reset_stats`].
    fn stats(&self) -> Stats;

    /// Forgets what was sent.
    fn reset_stats(&self);

    /// Ends every operation of every rank of the world, as this rank cannot go on; `reason` is one line. The first failure
    /// stands. To return with an error suffices where the handle is dropped with it; a thread that panics while another
    /// owns its handle is not noticed without this.
    fn abort(&self, reason: &str);
}

/// An operation that was started.
pub trait Pending<T>: Send {
    /// Waits until it is over.
    ///
    /// # Errors
    /// A peer that failed, left, kept silent or sent something else.
    fn wait(self: Box<Self>) -> Result<T, CommError>;
}
