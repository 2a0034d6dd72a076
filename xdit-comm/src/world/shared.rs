//! Waiting for what other threads do to the [`State`].

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use xdit_core::comm::{Call, Cause, CommError, Form};

use super::clock::Clock;
#[cfg(feature = "mpi")]
use super::state::Away;
use super::state::{Letter, Slot, State, Suspect};

pub struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    clock: Arc<Clock>,
    deadline: Duration,
    /// Of each rank.
    slots: Vec<usize>,
    /// Whether the ranks' devices fetch from each other what is sent, without the host.
    fetches: bool,
    /// Who brings what others are to hear, where ranks are processes.
    courier: OnceLock<Thread>,
}

impl Shared {
    /// - `slots`: of each rank
    /// - `fetches`: whether the ranks' devices reach each other's memory
    pub fn new(slots: Vec<usize>, fetches: bool, deadline: Duration) -> Self {
        let clock = Arc::new(Clock::new(slots.len()));
        let state = Mutex::new(State::new(slots.len(), Arc::clone(&clock)));
        Self { state, changed: Condvar::new(), clock, deadline, slots, fetches, courier: OnceLock::new() }
    }

    /// The table of rank `me` of `n`, of which all others are other processes; the calling thread is its courier.
    #[cfg(feature = "mpi")]
    pub fn apart(n: usize, me: usize, deadline: Duration) -> Self {
        let shared = Self::new(vec![0; n], false, deadline);
        shared.lock().away = Some(Away { me, news: Vec::new(), ends: false });
        let _ = shared.courier.set(std::thread::current());
        shared
    }

    /// Which device a rank has.
    pub fn slot(&self, rank: usize) -> usize {
        self.slots[rank]
    }

    /// Whether a rank's device fetches what another sends it.
    pub fn fetches(&self, from: usize, to: usize) -> bool {
        self.fetches && self.slots[from] != self.slots[to]
    }

    /// Looks at the state or changes it; who waits looks again, and the courier as well.
    pub fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let result = f(&mut self.lock());
        self.changed.notify_all();
        self.courier.get().map(Thread::unpark);
        result
    }

    /// The courier's [`with`](Self::with): it changed the state only if `f` says so.
    #[cfg(feature = "mpi")]
    pub fn look<T>(&self, f: impl FnOnce(&mut State) -> (T, bool)) -> T {
        let (result, changed) = f(&mut self.lock());
        if changed {
            self.changed.notify_all();
        }
        result
    }

    /// How long a rank may be silent.
    #[cfg(feature = "mpi")]
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Another process says how long `rank` has been quiet.
    #[cfg(feature = "mpi")]
    pub fn quiet(&self, rank: usize, quiet: Duration) {
        self.clock.set(rank, quiet);
    }

    /// How long `rank` has been quiet.
    #[cfg(feature = "mpi")]
    pub fn quiet_for(&self, rank: usize) -> Duration {
        self.clock.last(rank).elapsed()
    }

    /// A sign of life of `rank`.
    pub fn beat(&self, rank: usize) {
        self.clock.beat(rank);
    }

    /// Takes the letters of these slots once they are all there.
    pub fn take(&self, rank: usize, op: &'static str, slots: &[Slot]) -> Result<Vec<Letter>, CommError> {
        self.beat(rank);
        // nobody is silent for long enough before
        let mut look_at = Instant::now() + self.deadline;
        let mut state = self.lock();
        let result = loop {
            let mut complete = true;
            for slot in slots.iter().filter(|slot| !state.letters.contains_key(slot)).copied().collect::<Vec<_>>() {
                state.check_there(slot.group, slot.from);
                complete = false;
            }
            if let Err(e) = state.check(rank, op) {
                break Err(e);
            }
            if complete {
                break Ok(slots.iter().filter_map(|slot| state.letters.remove(slot)).collect());
            }
            state.wait_for(rank, op, slots);
            let now = Instant::now();
            if now >= look_at {
                let suspect = state.suspect(rank);
                look_at = suspect.as_ref().map_or(now, |suspect| suspect.since) + self.deadline;
                if let Some(Suspect { rank: peer, op, .. }) = suspect.filter(|_| now >= look_at) {
                    state.fail(peer, Cause::Silent { op, deadline: self.deadline });
                    continue;
                }
            }
            state = self.changed.wait_timeout(state, look_at - now).unwrap_or_else(PoisonError::into_inner).0;
        };
        state.waited(rank);
        drop(state);
        self.beat(rank);
        if result.is_err() {
            self.with(|_| ());
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

    /// Ends everyone's operations if rank `from` sent something else than `rank` expects.
    pub fn expect(
        &self,
        rank: usize,
        op: &'static str,
        from: usize,
        sent: &Form,
        expected: &Form,
    ) -> Result<(), CommError> {
        if sent.is(expected) {
            return Ok(());
        }
        let (sent, expected) = (Box::new(sent.clone()), Box::new(expected.clone()));
        self.with(|state| {
            state.fail(from, Cause::Unexpected { op, sent, peer: rank, expected });
            state.check(rank, op)
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // a rank that panicked left no change half done
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
