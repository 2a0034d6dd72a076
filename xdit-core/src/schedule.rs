//! Who does what when in a pipeline of stages (PipeFusion, arXiv 2405.14430, section 4).
//!
//! A pure function: the engine carries out what it says.

/// What is computed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Work {
    /// The sampler's step.
    pub step: usize,
    /// The patch; the whole picture in warm-up where absent.
    pub patch: Option<usize>,
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

    /// What a stage does, in this order.
    pub fn actions(&self, stage: usize) -> Vec<Action> {
        let last = self.n_stages - 1;
        let latents = |work| Message { payload: Payload::Latents, work };
        let mut actions = Vec::new();
        for work in (0..self.n_steps).flat_map(|step| self.works(step)) {
            let message = Message { payload: Payload::Hidden, work };
            // every rank has the noise that the first step starts from; a whole picture came at once
            let before = match work.step.checked_sub(1) {
                Some(step) if step < self.warmup_steps => work.patch.is_none_or(|patch| patch == 0).then_some(None),
                Some(_) => Some(work.patch),
                None => None,
            };
            if stage > 0 {
                actions.push(Action::Receive { from: stage - 1, message });
            } else if let Some(patch) = before.filter(|_| last > 0) {
                actions.push(Action::Receive { from: last, message: latents(Work { patch, ..work }) });
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
