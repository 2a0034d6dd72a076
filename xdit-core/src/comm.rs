//! How ranks talk: the seam that `xdit-comm` fills, and the typed collectives that are written once on top of it.
//!
//! A back end fills [`Communicator`], which knows of flat [`Part`]s only; it may replace collectives by its own. Everyone
//! else calls the methods of `dyn Communicator`: `all_to_all`, `all_gather`, `all_reduce`, `broadcast`, `scatter`, `gather`,
//! `trade`, `post_trade`, `rotate`, `send`, `recv`, `barrier`.
//!
//! Nothing says on the way how large a tensor is: receivers know, and say so.

mod call;
mod collectives;
mod error;
mod parts;
mod stats;
#[cfg(feature = "cuda")]
mod views;
#[cfg(not(feature = "cuda"))]
#[path = "comm/no_views.rs"]
mod views;
mod whole;

pub use call::Call;
pub use collectives::{Posted, Sent, Span, Trade, even_sizes};
pub use error::{Cause, CommError};
pub use parts::{Data, Form, Part};
pub use stats::{Stats, Traffic};
#[cfg(feature = "cuda")]
pub use views::Views;
pub use views::{Offer, Place, reach_each_other};

use burn::tensor::Device;

/// A rank's handle on one group. Every member calls the same collectives in the same order; a group of one is no
/// special case.
///
/// A rank that fails ends every operation of every rank of the world: none waits for it longer than it takes to notice,
/// and all name it. So does one that drops its handle, once another needs it in that group, and one that is silent: that
/// gives no sign of life for as long as the back end's deadline while another waits for it. Every call is a sign of life,
/// and so is [`beat`](Self::beat). A back end that runs many ranks in one process watches from those that wait; it needs
/// no thread for that.
///
/// Communicators outlive a request that all ranks end at the same point, with no message under way;
/// [`abort`](Self::abort) is for those that end otherwise.
///
/// Ranks are numbered within the group here, and within the world in errors.
///
/// To wait need not mean that the host waits, here as in [`Pending::wait`]: after a call has returned, whatever this
/// thread has its device do next comes after the data.
pub trait Communicator: Send {
    /// This rank's number in the group.
    fn rank(&self) -> usize;

    /// The number of ranks in the group.
    fn size(&self) -> usize;

    /// This rank's number in the world, by which errors call it.
    fn world_rank(&self) -> usize;

    /// Where received tensors land.
    fn device(&self) -> &Device;

    /// Which of its process's devices that is: ranks of equal slots share memory. One device may be listed several times
    /// and be several devices then, as in tests without GPUs.
    fn slot(&self) -> usize;

    /// Sends `parts[i]` to rank `i`; returns what each rank sent here, in rank order. Parts may differ in length, and be
    /// empty.
    ///
    /// - `forms`: what each rank sends here
    ///
    /// # Errors
    /// A peer that failed, left, kept silent, called something else or sent something else than was expected; a number of
    /// parts or forms that is not [`Self::size`].
    fn exchange(&self, call: Call, parts: Vec<Part>, forms: &[Form]) -> Result<Vec<Part>, CommError>;

    /// Starts [`Self::exchange`], for who has other work meanwhile. Several may be on their way, and are waited for in the
    /// order in which they were posted. A back end that cannot do so has exchanged when this returns.
    ///
    /// - `places`: where what comes is to be, if the caller knows: memory on this rank's device for each part, of the forms'
    ///   shapes and not yet written. `None` is returned for what is there in the end; back ends may leave places alone
    ///
    /// # Errors
    /// As [`Self::exchange`].
    fn post_exchange(
        &self,
        call: Call,
        parts: Vec<Part>,
        forms: Vec<Form>,
        places: Option<Vec<Part>>,
    ) -> Result<Box<dyn Pending<Vec<Option<Part>>>>, CommError> {
        drop(places);
        Ok(Box::new(Over(self.exchange(call, parts, &forms)?.into_iter().map(Some).collect())))
    }

    /// Whether what is posted travels while this rank's device computes. Who cuts messages up to hide some of them behind work
    /// asks first: elsewhere it would only make more of them.
    fn hides(&self) -> bool {
        false
    }

    /// Starts to send to rank `to`, which may be this rank; never waits. Messages between two ranks arrive in the order
    /// in which they were posted.
    ///
    /// # Errors
    /// A peer that failed, or left the group; a rank that is not in it.
    fn post_send(&self, call: Call, to: usize, part: Part) -> Result<Box<dyn Pending<()>>, CommError>;

    /// Starts to receive the next message of rank `from`, which may be this rank; never waits.
    ///
    /// To post is to take the next message. Who drops the handle throws that message away, whether it is there already or
    /// comes later, and the next receive gets the one after it. So each receive that is posted must be met by a send, even
    /// in a request that is cut short: what will not be sent must not be posted.
    ///
    /// - `form`: what it sends
    ///
    /// # Errors
    /// A peer that failed; a rank that is not in the group.
    fn post_recv(&self, call: Call, from: usize, form: Form) -> Result<Box<dyn Pending<Part>>, CommError>;

    /// Every rank's part, in rank order, on every rank.
    ///
    /// - `forms`: of every rank's part
    ///
    /// # Errors
    /// As [`Self::exchange`].
    fn all_gather_parts(&self, call: Call, part: Part, forms: &[Form]) -> Result<Vec<Part>, CommError> {
        self.exchange(call, vec![part; self.size()], forms)
    }

    /// The sum of every rank's part, on every rank, with equal bits. Halves are added in f32 and rounded once.
    ///
    /// # Errors
    /// As [`Self::exchange`].
    fn all_reduce_part(&self, call: Call, part: Part) -> Result<Part, CommError> {
        whole::all_reduce(self, call, part)
    }

    /// The part of rank `root`, which alone has one, on every rank.
    ///
    /// # Errors
    /// As [`Self::exchange`].
    fn broadcast_part(&self, call: Call, root: usize, part: Option<Part>, form: Form) -> Result<Part, CommError> {
        whole::scatter(self, call, root, part.map(|part| vec![part; self.size()]), form)
    }

    /// Waits for every rank.
    ///
    /// # Errors
    /// As [`Self::exchange`].
    fn barrier(&self) -> Result<(), CommError> {
        let n = self.size();
        self.exchange(Call::bare("barrier", &[]), vec![Part::nothing(); n], &vec![Form::nothing(); n])?;
        Ok(())
    }

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

    /// A sign of life, for a rank that computes while its peers wait: after each block, after each tile. Costs no more than
    /// a look at the clock.
    fn beat(&self);

    /// Ends every operation of every rank of the world, as this rank cannot go on; `reason` is one line. The first failure
    /// stands. To return with an error suffices where the handle is dropped with it; a thread that panics while another
    /// owns its handle is not noticed without this.
    fn abort(&self, reason: &str);

    /// Ends every rank's operations because of this rank's mistake: else the others would wait until it drops its handle.
    fn refuse(&self, error: CommError) -> CommError {
        self.abort(&error.to_string());
        error
    }

    /// Refuses a rank that is not in the group.
    ///
    /// # Errors
    /// [`CommError::NoSuchRank`]
    fn check_peer(&self, op: &'static str, peer: usize) -> Result<(), CommError> {
        let (rank, size) = (self.world_rank(), self.size());
        match peer < size {
            true => Ok(()),
            false => Err(self.refuse(CommError::NoSuchRank { rank, op, peer, size })),
        }
    }
}

/// An operation that was started.
pub trait Pending<T>: Send {
    /// Waits until it is over for this thread: what the thread then has this rank's device do sees the data that came, and
    /// may overwrite what was sent. The host may get here before the device does, as where the back end has the
    /// device's stream wait. So who calls this reads no tensor on the host to find out.
    ///
    /// # Errors
    /// A peer that failed, left, kept silent or sent something else.
    fn wait(self: Box<Self>) -> Result<T, CommError>;
}

/// What was over when it was posted.
struct Over<T>(T);

impl<T: Send> Pending<T> for Over<T> {
    fn wait(self: Box<Self>) -> Result<T, CommError> {
        Ok(self.0)
    }
}
