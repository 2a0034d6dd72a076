//! The denoising loop, written once for every model, sampler and attention strategy.

mod bands;
mod error;
mod guidance;
mod halt;
mod messages;
mod passes;
mod picture;

use burn::tensor::{DType, Tensor};

use self::bands::Bands;
use self::guidance::combine;
use self::messages::Mail;
use self::passes::Passes;
use crate::comm::{CommError, Communicator};
use crate::dit::{Attention, Ctx, Dit, Inputs, Positions, Streams};
use crate::layout::{Shares, TokenLayout};
use crate::observer::{Observer, Phase};
use crate::sampler::Sampler;
use crate::schedule::{Action, Payload, Schedule, Work};

pub use self::error::{EngineError, suspect};
pub use self::guidance::{Cfg, SkipLayers};
pub use self::halt::{Halt, Reason};
pub use self::picture::{Denoise, Team};

/// Runs all steps of `sampler` and returns the final latents, `[batch, img_tokens, channels]`, f32, on every rank. All ranks
/// of the picture have then entered step `n_steps` of its [`Halt`], counted from 0; later ones are free for what they do
/// together with the latents.
///
/// # Errors
/// A rank that failed, a cancelled request, latents that are not finite. The last two leave all communicators as good as
/// they were.
pub fn denoise<'t>(
    dit: &'t dyn Dit,
    team: Team<'t>,
    sampler: &'t dyn Sampler,
    request: Denoise<'_>,
    observer: &mut dyn Observer,
) -> Result<Tensor<3>, EngineError> {
    let n_steps = sampler.timesteps().len();
    let (stage, n_stages) = (team.stages.rank(), team.stages.size());
    let n_patches = if n_stages == 1 { 1 } else { team.n_patches };
    // one stage has nobody to wait for: all its steps are whole
    let warmup_steps = if n_stages == 1 { n_steps } else { team.warmup_steps };
    let actions = Schedule { n_stages, n_patches, n_steps, warmup_steps }.actions(stage);

    let (halt, stages) = (team.halt, team.stages);
    observer.begin(Phase::Denoise, "steps", n_steps as u64);
    let mut run = Run::new(dit, team, sampler, request, n_patches, &actions)?;
    // what all steps share has been computed
    if observer.advance(Phase::Denoise, 0).is_break() {
        halt.ask(Reason::Cancelled);
    }
    for action in actions {
        // what belongs to a step is done by all ranks or by none
        if !halt.enter(action.step()) {
            continue;
        }
        let done = run.act(action, observer)?;
        if let Some(part) = done.filter(|part| part.patch.is_none_or(|patch| patch + 1 == n_patches)) {
            run.show(part.step, observer);
            if observer.advance(Phase::Denoise, part.step as u64 + 1).is_break() {
                halt.ask(Reason::Cancelled);
            }
        }
    }
    if halt.is_short_of(n_steps) {
        run.mail.finish()?;
        return Err(halted(halt, dit.dtype(), n_steps));
    }
    let latents = run.finish(stages)?;
    // that there is a picture is agreed like a step: what its ranks do with it they do all or none
    if !halt.enter(n_steps) {
        return Err(halted(halt, dit.dtype(), n_steps));
    }
    observer.end(Phase::Denoise);
    Ok(latents)
}

fn halted(halt: &Halt, dtype: DType, n_steps: usize) -> EngineError {
    match halt.reason() {
        Some((Reason::NotFinite { step, n_bad, n }, _)) => {
            EngineError::NotFinite { dtype, n_bad, n, step: step + 1, n_steps }
        }
        Some((Reason::Cancelled, done)) => EngineError::Cancelled { step: done, n_steps },
        None => EngineError::Cancelled { step: 0, n_steps },
    }
}

/// Carries out the actions of a schedule.
struct Run<'t, 'r> {
    team: Team<'t>,
    sampler: &'t dyn Sampler,
    request: Denoise<'r>,
    passes: Passes<'t, 'r>,
    bands: Bands<'t>,
    mail: Mail<'t>,
    /// Came from the stage before, or goes to the next one; of each pass.
    streams: Vec<Streams>,
}

impl<'t, 'r> Run<'t, 'r> {
    fn new(
        dit: &'t dyn Dit,
        team: Team<'t>,
        sampler: &'t dyn Sampler,
        mut request: Denoise<'r>,
        n_patches: usize,
        actions: &[Action],
    ) -> Result<Self, CommError> {
        let layout = TokenLayout::new(request.grid, n_patches);
        let noise = (request.noise)();
        let passes = Passes::new(dit, &team, sampler.timesteps(), &request, &layout, noise.dims()[0]);
        let shares = Shares::new(&layout, 0, team.sequence.size(), team.ulysses);
        let bands = Bands::new(sampler, shares, team.sequence.rank(), noise);
        let mail = Mail::new(team.stages, team.halt, dit.dtype(), actions);
        let mut run = Self { team, sampler, request, passes, bands, mail, streams: Vec::new() };
        run.post()?;
        Ok(run)
    }

    /// Starts to receive the next message.
    fn post(&mut self) -> Result<(), CommError> {
        let Some(message) = self.mail.to_post() else { return Ok(()) };
        match message.payload {
            Payload::Latents => self.mail.post_latents(self.bands.shape(message.work.patch)),
            Payload::Hidden => {
                let shapes = self.passes.shapes(message.work, &self.team, self.team.blocks.start);
                self.mail.post_streams(&shapes, self.passes.n_branches(message.work.step))
            }
        }
    }

    /// Returns the work that is done now.
    fn act(&mut self, action: Action, observer: &mut dyn Observer) -> Result<Option<Work>, EngineError> {
        let is_last = self.team.stages.rank() + 1 == self.team.stages.size();
        match action {
            Action::Receive { message, .. } => {
                match message.payload {
                    Payload::Latents => self.bands.set(message.work.patch, self.mail.receive_latents()?),
                    Payload::Hidden => {
                        let shapes = self.passes.shapes(message.work, &self.team, self.team.blocks.start);
                        self.streams = self.mail.receive_streams(&shapes)?;
                    }
                }
                self.post()?;
                Ok(None)
            }
            Action::Compute(work) => {
                let is_first_stage = self.team.stages.rank() == 0;
                let latents = is_first_stage.then(|| self.sampler.model_input(work.step, self.bands.of(work.patch)));
                let (inbox, halt) = (std::mem::take(&mut self.streams), self.team.halt);
                let mut progress = |done, total| {
                    if observer.blocks(work.step, done, total).is_break() {
                        halt.ask(Reason::Cancelled);
                    }
                };
                self.streams = self.passes.compute(&mut self.team, work, latents, inbox, &mut progress)?;
                Ok((!is_last).then_some(work))
            }
            Action::Send { to, message } => {
                match message.payload {
                    Payload::Latents => self.mail.send_latents(to, self.bands.of(message.work.patch))?,
                    Payload::Hidden => {
                        let streams = std::mem::take(&mut self.streams);
                        self.mail.send_streams(to, streams, self.passes.takes_txt_along(message.work))?;
                    }
                }
                Ok(None)
            }
            Action::Step(work) => {
                self.step(work)?;
                Ok(Some(work))
            }
        }
    }

    /// Guidance and the sampler's step, on the last stage.
    fn step(&mut self, work: Work) -> Result<(), EngineError> {
        let mut predictions = self.passes.predict(work.step, std::mem::take(&mut self.streams));
        let skipped = predictions.split_off(self.passes.n_mine()).pop();
        let skipped = skipped.zip(self.passes.skip_layers(work.step));
        let Team { cfg, sequence, halt, .. } = &self.team;
        let prediction =
            combine(predictions, skipped, self.request.cfg.as_ref(), *cfg, *sequence, &self.bands.sizes(work.patch))?;
        self.bands.step(work, prediction, &mut *self.request.noise);
        self.bands.check_finite(work, halt)
    }

    /// Lets the observer see this rank's latents, where they are at hand.
    fn show(&self, step: usize, observer: &mut dyn Observer) {
        if self.team.stages.rank() + 1 == self.team.stages.size() {
            observer.latents(step, &self.bands.of(None));
        }
    }

    /// The whole picture's latents, on every rank.
    fn finish(self, stages: &dyn Communicator) -> Result<Tensor<3>, CommError> {
        self.mail.finish()?;
        let (last, shape) = (stages.size() - 1, self.bands.whole_shape());
        let whole = match stages.rank() == last {
            true => Some(self.bands.gather(self.team.sequence)?),
            false => None,
        };
        stages.broadcast(last, whole, shape, DType::F32)
    }
}

/// One pass through all blocks but those of `skip`, on one device: the model's prediction,
/// `[batch, img_tokens, channels]`, f32.
///
/// # Errors
/// What the attention strategy returns.
pub fn forward(
    dit: &dyn Dit,
    attn: &mut dyn Attention,
    positions: &Positions,
    latents: Tensor<3>,
    inputs: Inputs<'_>,
    skip: &[usize],
) -> Result<Tensor<3>, CommError> {
    let cond = &dit.condition(inputs)[0];
    let txt = dit.embed_txt(inputs.text, cond, positions);
    let mut x = Streams::new(Some(txt), dit.embed_img(latents, positions));
    for i in (0..dit.spec().n_blocks).filter(|i| !skip.contains(i)) {
        x = dit.block(&mut Ctx { attn: &mut *attn, positions }, i, x, cond)?;
    }
    Ok(dit.head(x, cond))
}
