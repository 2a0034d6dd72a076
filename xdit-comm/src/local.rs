//! Ranks are threads of one process.
//!
//! Tensors of Burn are `Send`: a message is a handle that lies in a table of the world until its receiver takes it, and
//! no element is copied unless ranks have different devices. All that threads wait for is in that table, behind one
//! lock and one condition variable, and the first failure is recorded there: so whoever waits learns of it at once.

mod rank;
mod shared;
mod state;

use std::sync::Arc;
use std::time::Duration;

use burn::tensor::Device;
use xdit_core::comm::Communicator;

use rank::Rank;
use shared::Shared;
use state::State;

/// How long a rank waits for another unless told otherwise.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// `n` ranks that all compute on the CPU, to be moved to threads of their own. Dropping one is leaving.
pub fn world(n: usize) -> Vec<Box<dyn Communicator>> {
    World::new(vec![Device::flex(); n]).communicators()
}

/// A world to be made.
#[derive(Debug, Clone)]
pub struct World {
    devices: Vec<Device>,
    deadline: Duration,
}

impl World {
    /// One rank per device; devices may occur more than once.
    pub fn new(devices: Vec<Device>) -> Self {
        Self { devices, deadline: DEADLINE }
    }

    /// Sets how long a rank waits for another in one operation, [`DEADLINE`] unless set.
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// The ranks' handles, in rank order.
    pub fn communicators(self) -> Vec<Box<dyn Communicator>> {
        let Self { devices, deadline } = self;
        let shared = Arc::new(Shared::new(State::new(devices.len()), deadline));
        let members: Arc<[usize]> = (0..devices.len()).collect();
        let rank = |(rank, device)| -> Box<dyn Communicator> {
            Box::new(Rank::new(Arc::clone(&shared), 0, Arc::clone(&members), rank, device))
        };
        devices.into_iter().enumerate().map(rank).collect()
    }
}
