//! Ranks are threads of one process.
//!
//! Tensors of Burn are `Send`: a message is a handle that lies in a table of the world until its receiver takes it, and
//! no element is copied unless ranks have different devices: NVIDIA GPUs that reach each other's memory fetch it from there,
//! in the order of their streams, and other devices copy it before a message counts as received.

use std::sync::Arc;
use std::time::Duration;

use burn::tensor::Device;
use xdit_core::comm::{Communicator, reach_each_other};

use crate::world::rank::Rank;
use crate::world::shared::Shared;

/// How long a rank waits for another that gives no sign of life, unless told otherwise.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// `n` ranks that all compute on the CPU, to be moved to threads of their own. Dropping one is leaving.
pub fn world(n: usize) -> Vec<Box<dyn Communicator>> {
    World::new(vec![Device::flex(); n]).communicators()
}

/// A world to be made.
#[derive(Debug, Clone)]
pub struct World {
    /// By rank, with the slot.
    devices: Vec<(Device, usize)>,
    deadline: Duration,
}

impl World {
    /// One rank per device. Devices that are equal are one.
    pub fn new(devices: Vec<Device>) -> Self {
        let slot = |device: &Device| devices.iter().position(|other| other == device).unwrap_or(0);
        let slots = devices.iter().map(slot).collect::<Vec<_>>();
        Self { devices: devices.into_iter().zip(slots).collect(), deadline: DEADLINE }
    }

    /// One rank per device, and each of them is a device of its own, even where they are equal: nothing is shared among
    /// them, and what they send each other is copied.
    pub fn apart(devices: Vec<Device>) -> Self {
        Self {
            devices: devices.into_iter().enumerate().map(|(slot, device)| (device, slot)).collect(),
            deadline: DEADLINE,
        }
    }

    /// Sets how long a rank waits for another that gives no sign of life, [`DEADLINE`] unless set.
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// The ranks' handles, in rank order.
    pub fn communicators(self) -> Vec<Box<dyn Communicator>> {
        let Self { devices, deadline } = self;
        let (all, slots): (Vec<_>, Vec<_>) = devices.iter().cloned().unzip();
        let shared = Arc::new(Shared::new(slots, reach_each_other(&all), deadline));
        let members: Arc<[usize]> = (0..devices.len()).collect();
        let rank = |(rank, (device, _))| -> Box<dyn Communicator> {
            Box::new(Rank::new(Arc::clone(&shared), 0, Arc::clone(&members), rank, device))
        };
        devices.into_iter().enumerate().map(rank).collect()
    }
}
