//! How ranks that share a picture end it early, all behind the same step.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Why a picture ends before its last step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Somebody asked for it.
    Cancelled,
    /// Latents that are no numbers any more.
    NotFinite {
        /// The step, from 0.
        step: usize,
        /// NaN and infinite values among those that one rank holds.
        n_bad: usize,
        /// Values that it holds.
        n: usize,
    },
}

/// Shared by the ranks of a picture. What belongs to a step is done by all of them or by none, messages included, so that
/// their communicators stay of use for the next picture.
#[derive(Debug, Default)]
pub struct Halt(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// One more than the latest step that a rank has entered.
    entered: usize,
    /// The first step that nobody enters any more.
    end: Option<usize>,
    reason: Option<Reason>,
}

impl Halt {
    /// Ends the picture before the next step that nobody has entered yet. The first reason stands.
    pub fn ask(&self, reason: Reason) {
        let mut state = self.lock();
        let entered = state.entered;
        state.end.get_or_insert(entered);
        state.reason.get_or_insert(reason);
    }

    /// Whether a rank may do something that belongs to `step`; if one may, all may.
    pub fn enter(&self, step: usize) -> bool {
        let mut state = self.lock();
        if state.end.is_some_and(|end| step >= end) {
            return false;
        }
        state.entered = state.entered.max(step + 1);
        true
    }

    /// Whether some of `n_steps` steps are not done, the same on all ranks that have done what they may.
    pub fn is_short_of(&self, n_steps: usize) -> bool {
        self.lock().end.is_some_and(|end| end < n_steps)
    }

    /// Why it ended, and after how many steps, if it was asked to.
    pub fn reason(&self) -> Option<(Reason, usize)> {
        let state = self.lock();
        Some((state.reason.clone()?, state.end?))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_one_rank_entered_is_done_by_all() {
        let halt = Halt::default();
        assert!(halt.enter(0) && halt.enter(1));
        halt.ask(Reason::Cancelled);
        halt.ask(Reason::NotFinite { step: 1, n_bad: 1, n: 2 });
        // a rank that is behind does what the others did
        assert!(halt.enter(1) && !halt.enter(2));
        assert_eq!(halt.reason(), Some((Reason::Cancelled, 2)));
        assert!(halt.is_short_of(3) && !halt.is_short_of(2));
    }

    #[test]
    fn one_that_was_asked_before_it_began_does_nothing() {
        let halt = Halt::default();
        halt.ask(Reason::Cancelled);
        assert!(!halt.enter(0));
        assert_eq!(halt.reason(), Some((Reason::Cancelled, 0)));
    }
}
