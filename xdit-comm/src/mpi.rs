//! Ranks are processes, started by mpirun or srun, on CPUs.
//!
//! Each process has a table of its own for what its rank waits for, and a courier: a thread that alone calls MPI, moves
//! letters between the tables and tells what concerns all: who failed, who left, who waits for whom, who gave a sign of
//! life. It moves them while ranks compute, since MPI goes on inside its own calls only, and sleeps between looks, since
//! MPI's own waiting takes a whole core. Groups are known to the tables alone and take nothing of MPI.
//!
//! Nobody relies on the launcher to notice a death. Processes of one host look whether the others are there, and one that
//! is not heard of for [`LOST`] is taken for dead.

mod courier;
mod error;
mod home;
mod message;
mod peer;
mod request;

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use burn::tensor::Device;
use xdit_core::comm::Communicator;

use crate::world::rank::Rank;
use crate::world::shared::Shared;
use courier::Courier;
pub use courier::LOST;
pub use error::JoinError;
use request::Link;

/// This process as one rank of a world. [`finish`](Self::finish) is to be its last word.
pub struct Process {
    shared: Arc<Shared>,
    rank: usize,
    size: usize,
    ended: Receiver<()>,
}

impl Process {
    /// Every process that the launcher started must come here.
    ///
    /// - `deadline`: how long a rank may give no sign of life while another waits for it, if its process is alive
    ///
    /// # Errors
    /// An MPI that cannot be used.
    pub fn join(deadline: Duration) -> Result<Self, JoinError> {
        let (joined, news) = mpsc::channel();
        let (ends, ended) = mpsc::channel();
        let run = move || {
            let link = match Link::start() {
                Ok(link) => link,
                Err(error) => return drop(joined.send(Err(error))),
            };
            let (rank, size) = (link.rank, link.size);
            let shared = Arc::new(Shared::apart(size, rank, deadline));
            let courier = match Courier::new(link, Arc::clone(&shared)) {
                Ok(courier) => courier,
                Err(error) => return drop(joined.send(Err(error))),
            };
            let _ = joined.send(Ok((shared, rank, size)));
            courier.run();
            let _ = ends.send(());
        };
        let failed = |reason: String| JoinError::NoThread { reason };
        thread::Builder::new().name("MPI".into()).spawn(run).map_err(|e| failed(e.to_string()))?;
        let (shared, rank, size) = news.recv().map_err(|e| failed(e.to_string()))??;
        Ok(Self { shared, rank, size, ended })
    }

    /// This process's rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Processes that the launcher started together, as MPI sees it.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The rank's handle on the world. There is one.
    pub fn communicator(&self) -> Box<dyn Communicator> {
        let members = (0..self.size).collect();
        Box::new(Rank::new(Arc::clone(&self.shared), 0, members, self.rank, Device::flex()))
    }

    /// Ends every operation of every rank, as this one cannot go on; `reason` is one line. The first failure stands.
    pub fn abort(&self, reason: &str) {
        self.shared.with(|state| state.abort(self.rank, reason));
    }

    /// Waits until all have come here, or until those who are alive know of the failure. The process must end soon after:
    /// where one failed MPI cannot be ended in order, and launchers wait for its processes.
    pub fn finish(self) {
        self.shared.with(|state| {
            if let Some(away) = &mut state.away {
                away.ends = true;
            }
        });
        // an error is the end as well
        let _ = self.ended.recv();
    }
}
