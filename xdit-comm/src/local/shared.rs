//! Waiting for what other threads do to the [`State`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use xdit_core::comm::{Call, Cause, CommError};

use super::state::{Letter, Slot, State};

pub struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    deadline: Duration,
    start: Instant,
    /// Of each rank, milliseconds from the start to its last sign of life.
    beats: Vec<AtomicU64>,
    /// Of each rank.
    slots: Vec<usize>,
}

impl Shared {
    /// - `slots`: of each rank
    pub fn new(slots: Vec<usize>, deadline: Duration) -> Self {
        let n_ranks = slots.len();
        Self {
            slots,
            state: Mutex::new(State::new(n_ranks)),
            changed: Condvar::new(),
            deadline,
            start: Instant::now(),
            beats: (0..n_ranks).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Which device a rank has.
    pub fn slot(&self, rank: usize) -> usize {
        self.slots[rank]
    }

    /// A sign of life of a rank.
    pub fn beat(&self, rank: usize) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.beats[rank].store(now, Ordering::Relaxed);
    }

    /// How long a rank may go on without a sign of life, for one that has waited since `since`.
    fn patience(&self, rank: usize, since: Instant) -> Option<Duration> {
        let beat = self.start + Duration::from_millis(self.beats[rank].load(Ordering::Relaxed));
        self.deadline.checked_sub(beat.max(since).elapsed()).filter(|left| !left.is_zero())
    }

    /// Looks at the state or changes it; who waits looks again.
    pub fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let result = f(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Takes the letters of these slots once they are all there.
    pub fn take(&self, rank: usize, op: &'static str, slots: &[Slot]) -> Result<Vec<Letter>, CommError> {
        self.beat(rank);
        let since = Instant::now();
        let mut state = self.lock();
        let result = loop {
            let absent: Vec<_> = slots.iter().filter(|slot| !state.letters.contains_key(slot)).collect();
            for slot in &absent {
                state.check_there(slot.group, slot.from);
            }
            if let Err(e) = state.check(rank, op) {
                break Err(e);
            }
            let Some(first) = absent.first() else {
                break Ok(slots.iter().filter_map(|slot| state.letters.remove(slot)).collect());
            };
            state.wait_for(rank, first.from, op);
            // it is the one at the end of those who wait for each other that keeps all of them waiting
            let (peer, op) = state.culprit(rank).unwrap_or((first.from, op));
            match self.patience(peer, since) {
                Some(left) => {
                    state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                }
                None => state.fail(peer, Cause::Silent { op, deadline: self.deadline }),
            }
        };
        state.waited(rank);
        drop(state);
        if result.is_err() {
            self.changed.notify_all();
        }
        result
    }

    /// Ends everyone's operations if the members of a group called different things; all of them find the same pair.
    pub fn agree(&self, rank: usize, calls: &[(usize, &Call)]) -> Result<(), CommError> {
        let pairs = (0..calls.len()).flat_map(|j| (0..j).map(move |i| (calls[i], calls[j])));
        match pairs.into_iter().find(|((_, a), (_, b))| !a.agrees(b)) {
            None => Ok(()),
            Some(((peer, theirs), (culprit, its))) => {
                let cause = Cause::Mismatch { call: Box::new(its.clone()), peer, peer_call: Box::new(theirs.clone()) };
                let mine = calls.iter().find(|(member, _)| *member == rank).map_or(its.op, |(_, call)| call.op);
                self.with(|state| {
                    state.fail(culprit, cause);
                    state.check(rank, mine)
                })
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // a rank that panicked left no change half done
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
