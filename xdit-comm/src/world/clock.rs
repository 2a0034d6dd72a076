//! When each rank gave its last sign of life.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub struct Clock {
    start: Instant,
    /// By rank of the world, nanoseconds since the start.
    signs: Box<[AtomicU64]>,
}

impl Clock {
    pub fn new(n_ranks: usize) -> Self {
        Self { start: Instant::now(), signs: (0..n_ranks).map(|_| AtomicU64::new(0)).collect() }
    }

    /// A sign of life of `rank`. Nothing else is ordered by it.
    pub fn beat(&self, rank: usize) {
        // enough nanoseconds for 584 years
        self.signs[rank].store(self.start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }

    /// Another process says when `rank` gave its last one.
    #[cfg(feature = "mpi")]
    pub fn set(&self, rank: usize, quiet: Duration) {
        let at = self.start.elapsed().saturating_sub(quiet);
        self.signs[rank].store(at.as_nanos() as u64, Ordering::Relaxed);
    }

    /// When `rank` gave the last one.
    pub fn last(&self, rank: usize) -> Instant {
        self.start + Duration::from_nanos(self.signs[rank].load(Ordering::Relaxed))
    }
}
