//! Who does what when in a pipeline of stages (PipeFusion, arXiv 2405.14430, section 4).
//!
//! A pure function: the engine carries out what it says.

mod timeline;

pub use timeline::{Flight, Span, Timeline};

/// What is computed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Work {
    /// The sampler's step.
    pub step: usize,
    /// The patch; the whole picture in warm-up where absent.
    pub patch: Option<usize>,
}

impl Work {
    /// Whether this is the first that its step computes.
    pub fn is_first(self) -> bool {
        self.patch.is_none_or(|patch| patch == 0)
    }
}

/// What a message holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Payload {
    /// Hidden states, to the next stage.
    Hidden,
    /// Latents, from the last stage to the first.
    Latents,
}

/// A message between stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Message {
    /// What it holds.
    pub payload: Payload,
    /// What its receiver needs it for; the whole picture's latents may be for all patches of a step.
    pub work: Work,
}

/// One thing that a stage does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Waits for a message.
    Receive {
        /// The stage that sends it.
        from: usize,
        /// What it is.
        message: Message,
    },
    /// Runs its blocks.
    Compute(Work),
    /// Sends what it has just made.
    Send {
        /// The stage that it goes to.
        to: usize,
        /// What it is.
        message: Message,
    },
    /// Guidance and the sampler's step, on the last stage.
    Step(Work),
}

impl Action {
    /// The step that it belongs to. Latents belong to the step that needs them.
    pub fn step(&self) -> usize {
        match self {
            Self::Receive { message, .. } | Self::Send { message, .. } => message.work.step,
            Self::Compute(work) | Self::Step(work) => work.step,
        }
    }
}

/// A picture's way through the stages. All numbers but the warm-up's are at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Stages.
    pub n_stages: usize,
    /// Patches of the steps after the warm-up.
    pub n_patches: usize,
    /// Steps.
    pub n_steps: usize,
    /// The first steps, in which the whole picture goes from stage to stage; more than there are steps mean all.
    pub warmup_steps: usize,
}

impl Schedule {
    /// What is computed in a step, in this order.
    pub fn works(&self, step: usize) -> Vec<Work> {
        match step < self.warmup_steps {
            true => vec![Work { step, patch: None }],
            false => (0..self.n_patches).map(|patch| Work { step, patch: Some(patch) }).collect(),
        }
    }

    /// The latents that come back for this work: those of a patch, or of the whole picture with the first patch after the
    /// warm-up. None for the first step, as every rank has the noise that it starts from.
    fn latents_before(&self, work: Work) -> Option<Work> {
        let before = work.step.checked_sub(1)?;
        if before >= self.warmup_steps {
            return Some(work);
        }
        work.is_first().then_some(Work { patch: None, ..work })
    }

    /// What a stage does, in this order.
    pub fn actions(&self, stage: usize) -> Vec<Action> {
        let last = self.n_stages - 1;
        let latents = |work| Message { payload: Payload::Latents, work };
        let mut actions = Vec::new();
        for work in (0..self.n_steps).flat_map(|step| self.works(step)) {
            let message = Message { payload: Payload::Hidden, work };
            if stage > 0 {
                actions.push(Action::Receive { from: stage - 1, message });
            } else if last > 0 {
                let came = self.latents_before(work).map(|work| Action::Receive { from: last, message: latents(work) });
                actions.extend(came);
            }
            actions.push(Action::Compute(work));
            if stage < last {
                actions.push(Action::Send { to: stage + 1, message });
                continue;
            }
            actions.push(Action::Step(work));
            if last > 0 && work.step + 1 < self.n_steps {
                actions.push(Action::Send { to: 0, message: latents(Work { step: work.step + 1, ..work }) });
            }
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashMap, HashSet};

    fn schedule() -> impl Strategy<Value = Schedule> {
        (1..9_usize, 1..13_usize, 1..7_usize, 0..8_usize).prop_map(|(n_stages, n_patches, n_steps, warmup_steps)| {
            Schedule { n_stages, n_patches, n_steps, warmup_steps }
        })
    }

    proptest! {
        /// `timeline` also fails where stages wait for each other for ever.
        #[test]
        fn the_timeline_is_as_long_as_the_formula_says(schedule in schedule()) {
            let timeline = schedule.timeline(0.0);
            prop_assert_eq!(timeline.makespan, schedule.makespan() as f64);
            let busy: f64 = timeline.spans.iter().map(|span| span.end - span.start).sum();
            let bubble = 1.0 - busy / (timeline.makespan * schedule.n_stages as f64);
            prop_assert!((bubble - schedule.bubble()).abs() < 1e-12);
        }

        #[test]
        fn every_message_has_one_sender_and_one_receiver_in_the_same_order(schedule in schedule()) {
            let (mut sent, mut received) = (HashMap::new(), HashMap::new());
            for stage in 0..schedule.n_stages {
                for action in schedule.actions(stage) {
                    match action {
                        Action::Send { to, message } => sent.entry((stage, to)).or_insert_with(Vec::new).push(message),
                        Action::Receive { from, message } => {
                            received.entry((from, stage)).or_insert_with(Vec::new).push(message);
                        }
                        _ => {}
                    }
                }
            }
            prop_assert_eq!(&sent, &received);
            for messages in sent.values() {
                let distinct: HashSet<_> = messages.iter().collect();
                prop_assert_eq!(distinct.len(), messages.len());
            }
            let warmup = schedule.warmup_steps.min(schedule.n_steps);
            let displaced = schedule.n_steps - warmup;
            let last = schedule.n_stages - 1;
            for stage in 0..last {
                prop_assert_eq!(sent[&(stage, stage + 1)].iter().filter(|m| m.payload == Payload::Hidden).count(),
                    warmup + displaced * schedule.n_patches);
            }
            if last > 0 {
                // one for each step of the warm-up, the patches for each other step, but none after the last step
                let back = sent.get(&(last, 0)).map_or(0, Vec::len);
                let last_step = if displaced > 0 { schedule.n_patches } else { 1 };
                prop_assert_eq!(back, warmup + displaced * schedule.n_patches - last_step);
            }
        }

        #[test]
        fn work_is_done_in_order_and_after_what_it_needs(schedule in schedule(), latency in 0..3_u8) {
            let latency = f64::from(latency) / 2.0;
            let timeline = schedule.timeline(latency);
            let end: HashMap<(usize, Work), f64> =
                timeline.spans.iter().map(|span| ((span.stage, span.work), span.end)).collect();
            let n_works: usize = (0..schedule.n_steps).map(|step| schedule.works(step).len()).sum();
            prop_assert_eq!(end.len(), n_works * schedule.n_stages);
            let last = schedule.n_stages - 1;
            for span in &timeline.spans {
                let Work { step, patch } = span.work;
                if span.stage > 0 {
                    prop_assert!(span.start >= end[&(span.stage - 1, span.work)] + latency);
                } else if step > 0 {
                    let before = end.get(&(last, Work { step: step - 1, patch }));
                    let before = before.or_else(|| end.get(&(last, Work { step: step - 1, patch: None })));
                    let way = if last > 0 { latency } else { 0.0 };
                    prop_assert!(span.start >= before.expect("the step before") + way);
                }
            }
            // sent when it exists: at the end of a span of its sender
            for flight in &timeline.flights {
                prop_assert!(timeline.spans.iter().any(|span| span.stage == flight.from && span.end == flight.sent));
                prop_assert!(timeline.spans.iter().any(|span| span.stage == flight.to && span.start == flight.taken));
            }
        }
    }

    #[test]
    fn two_stages_by_hand() {
        let schedule = Schedule { n_stages: 2, n_patches: 2, n_steps: 2, warmup_steps: 1 };
        let work = |step, patch| Work { step, patch };
        let hidden = |work| Message { payload: Payload::Hidden, work };
        let latents = |work| Message { payload: Payload::Latents, work };
        assert_eq!(
            schedule.actions(0),
            [
                Action::Compute(work(0, None)),
                Action::Send { to: 1, message: hidden(work(0, None)) },
                Action::Receive { from: 1, message: latents(work(1, None)) },
                Action::Compute(work(1, Some(0))),
                Action::Send { to: 1, message: hidden(work(1, Some(0))) },
                Action::Compute(work(1, Some(1))),
                Action::Send { to: 1, message: hidden(work(1, Some(1))) },
            ]
        );
        assert_eq!(schedule.makespan(), 4 + 3);
    }
}
