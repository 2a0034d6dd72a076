//! Ranks on threads, for tests.

use std::panic;
use std::thread;

use xdit_comm::local::{self, World};
use xdit_core::comm::Communicator;

/// Runs `body` once per rank of a world of `n` threads on the CPU; returns what they returned, in rank order.
///
/// # Panics
/// If a rank panics: with what the lowest of them said.
pub fn on_ranks<T: Send>(n: usize, body: impl Fn(Box<dyn Communicator>) -> T + Sync) -> Vec<T> {
    outcomes(local::world(n), body).into_iter().map(|x| x.unwrap_or_else(|e| panic::resume_unwind(e))).collect()
}

/// [`on_ranks`] in a world of one's own, for tests of ranks that fail: `Err` holds what a panic said.
pub fn on_world<T: Send>(world: World, body: impl Fn(Box<dyn Communicator>) -> T + Sync) -> Vec<thread::Result<T>> {
    outcomes(world.communicators(), body)
}

fn outcomes<T: Send>(
    ranks: Vec<Box<dyn Communicator>>,
    body: impl Fn(Box<dyn Communicator>) -> T + Sync,
) -> Vec<thread::Result<T>> {
    let body = &body;
    thread::scope(|scope| {
        let threads: Vec<_> = ranks.into_iter().map(|comm| scope.spawn(move || body(comm))).collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    })
}
