//! When stages would do what: a schedule carried out with given costs.

use std::collections::HashMap;

use super::{Action, Message, Schedule, Work};

/// A stage at work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// Which one.
    pub stage: usize,
    /// On what.
    pub work: Work,
    /// In turns, of which a stage needs one for a patch, and as many as there are patches for a whole picture.
    pub start: f64,
    /// In turns.
    pub end: f64,
}

/// A message on its way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flight {
    /// The stage that sends it.
    pub from: usize,
    /// The stage that gets it.
    pub to: usize,
    /// What it is.
    pub message: Message,
    /// When it is sent, which is when its data exists.
    pub sent: f64,
    /// When its receiver goes on with it, which may be later than it comes.
    pub taken: f64,
}

/// What became of a schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeline {
    /// In the order of their ends, as far as one waits for another.
    pub spans: Vec<Span>,
    /// In the order in which they were taken.
    pub flights: Vec<Flight>,
    /// When the last stage ends.
    pub makespan: f64,
}

impl Schedule {
    /// Carries the schedule out. The sampler's steps take no time.
    ///
    /// - `latency`: turns that a message takes
    ///
    /// # Panics
    /// If stages wait for each other for ever, which none of these schedules lets them.
    pub fn timeline(&self, latency: f64) -> Timeline {
        let actions: Vec<Vec<Action>> = (0..self.n_stages).map(|stage| self.actions(stage)).collect();
        let (mut next, mut clock) = (vec![0; self.n_stages], vec![0.0; self.n_stages]);
        let mut sent: HashMap<(usize, Message), f64> = HashMap::new();
        let (mut spans, mut flights) = (Vec::new(), Vec::new());
        while next.iter().zip(&actions).any(|(next, actions)| *next < actions.len()) {
            let mut moved = false;
            for stage in 0..self.n_stages {
                while let Some(action) = actions[stage].get(next[stage]) {
                    let now: f64 = clock[stage];
                    match *action {
                        Action::Receive { from, message } => {
                            let Some(at) = sent.remove(&(stage, message)) else { break };
                            clock[stage] = now.max(at + latency);
                            flights.push(Flight { from, to: stage, message, sent: at, taken: clock[stage] });
                        }
                        Action::Compute(work) => {
                            let end = now + if work.patch.is_some() { 1.0 } else { self.n_patches as f64 };
                            spans.push(Span { stage, work, start: now, end });
                            clock[stage] = end;
                        }
                        Action::Send { to, message } => {
                            let before = sent.insert((to, message), now);
                            assert!(before.is_none(), "{message:?} was sent twice");
                        }
                        Action::Step(_) => {}
                    }
                    next[stage] += 1;
                    moved = true;
                }
            }
            assert!(moved, "stages wait for each other: {self:?}");
        }
        assert!(sent.is_empty(), "nobody receives {sent:?}");
        let makespan = clock.into_iter().fold(0.0, f64::max);
        Timeline { spans, flights, makespan }
    }

    /// The timeline's makespan without latency: `N M` turns for each step of the warm-up; then `max(M, N)` for each step but
    /// the last, whose patches come out one after the other behind the `N` turns of its first one.
    pub fn makespan(&self) -> usize {
        let Self { n_stages: n, n_patches: m, n_steps, warmup_steps } = *self;
        let warmup = warmup_steps.min(n_steps);
        warmup * n * m
            + match n_steps - warmup {
                0 => 0,
                displaced => (displaced - 1) * n.max(m) + n + m - 1,
            }
    }

    /// The share of the stages' time in which they have nothing to do, without latency. Each works `M` turns a step.
    pub fn bubble(&self) -> f64 {
        1.0 - (self.n_steps * self.n_patches) as f64 / self.makespan() as f64
    }
}
