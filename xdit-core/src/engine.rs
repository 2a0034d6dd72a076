//! The denoising loop, written once for every model, sampler and attention strategy.

mod working;

use std::ops::Range;

use burn::tensor::Tensor;

use self::working::Working;
use crate::comm::{CommError, Communicator};
use crate::dit::{Attention, Ctx, Dit, Inputs, Streams, TextEmbeddings, TokenGrid};
use crate::observer::{Observer, Phase};
use crate::sampler::Sampler;
use crate::schedule::{Action, Schedule};

/// Why denoising ended without latents.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A rank failed.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// The observer asked for it.
    #[error("cancelled at step {step} of {n_steps}")]
    Cancelled {
        /// Steps that were done.
        step: usize,
        /// Steps that were asked for.
        n_steps: usize,
    },
    /// The arithmetic overflowed, as half precision does where a checkpoint was not made for it.
    #[error("latents hold {n_bad} non-finite values of {n} after {n_steps} steps; try bf16 or f32")]
    NotFinite {
        /// NaN and infinite values.
        n_bad: usize,
        /// Values in all.
        n: usize,
        /// Steps that were done.
        n_steps: usize,
    },
    /// The device could not give the latents back.
    #[error("reading the latents from the device failed: {0}")]
    Read(String),
}

/// One picture (or one batch of equal size) to denoise.
pub struct Denoise<'a> {
    /// Unit normal noise to start from, `[batch, img_tokens, channels]`, f32
    pub noise: Tensor<3>,
    /// More of it, for samplers that add some at each step; all of the picture's tokens too.
    pub more_noise: &'a mut dyn FnMut() -> Tensor<3>,
    /// The picture in tokens.
    pub grid: TokenGrid,
    /// Its height and width in pixels.
    pub size: [usize; 2],
    /// The encoded prompt.
    pub text: &'a TextEmbeddings,
    /// For guidance-distilled models.
    pub guidance: Option<f32>,
    /// Classifier-free guidance, where it is wanted.
    pub cfg: Option<Cfg<'a>>,
}

/// Classifier-free guidance: `negative + scale (positive - negative)`.
#[derive(Clone, Copy)]
pub struct Cfg<'a> {
    /// The encoded negative prompt.
    pub negative: &'a TextEmbeddings,
    /// 1 is no guidance.
    pub scale: f32,
    /// How far the result is brought back to the positive prediction's standard deviation, 0 to 1 (arXiv 2305.08891,
    /// section 3.4).
    pub rescale: f32,
    /// Guidance away from what the model says without some of its blocks.
    pub skip_layers: Option<&'a SkipLayers>,
}

/// Skip-layer guidance: adds `scale (positive - positive without the blocks)`, as Stable Diffusion 3.5 does.
#[derive(Debug, Clone, PartialEq)]
pub struct SkipLayers {
    /// The blocks.
    pub blocks: Vec<usize>,
    /// How much.
    pub scale: f32,
    /// From which part of the steps on, 0 to 1, itself excluded.
    pub start: f64,
    /// Up to which part of the steps, itself excluded.
    pub stop: f64,
}

impl SkipLayers {
    /// Whether it takes place at this step; never behind the last one.
    pub fn at(&self, step: usize, n_steps: usize) -> bool {
        let (at, n) = (step as f64, n_steps as f64);
        step < n_steps && at > n * self.start && at < n * self.stop
    }
}

/// A rank's share in one picture: whom it shares it with, and how its attention finds their keys.
pub struct Team<'a> {
    /// The ranks that share the picture's tokens, in the order of their bands. Each holds one band of every patch, as even
    /// as can be, and of the text tokens where the model's blocks change them.
    pub sequence: &'a dyn Communicator,
    /// How many of them, neighbours, trade heads.
    pub ulysses: usize,
    /// The ranks that share classifier-free guidance: the first predicts with the prompt, the second with the negative one.
    pub cfg: &'a dyn Communicator,
    /// The stages that share the blocks, the first one first.
    pub stages: &'a dyn Communicator,
    /// This stage's blocks.
    pub blocks: Range<usize>,
    /// Patches that the stages work on at once; one where there is one stage.
    pub n_patches: usize,
    /// Steps in which the stages work on the whole picture, one after the other.
    pub warmup_steps: usize,
    /// The attention of this rank's tokens.
    pub attn: &'a mut dyn Attention,
}

impl<'a> Team<'a> {
    /// One device.
    pub fn alone(dit: &dyn Dit, comm: &'a dyn Communicator, attn: &'a mut dyn Attention) -> Self {
        let blocks = 0..dit.spec().n_blocks;
        Self { sequence: comm, ulysses: 1, cfg: comm, stages: comm, blocks, n_patches: 1, warmup_steps: 0, attn }
    }
}

/// Runs all steps of `sampler` and returns the final latents, `[batch, img_tokens, channels]`, f32, on every rank.
///
/// # Errors
/// A rank that failed, a cancelled request, latents that are not finite.
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

    let mut work = Working::new(dit, team, sampler, request, n_patches, &actions)?;
    observer.begin(Phase::Denoise, "steps", n_steps as u64);
    for action in actions {
        let done = match action {
            Action::Receive { message, .. } => {
                work.receive(message)?;
                None
            }
            Action::Send { to, message } => {
                work.send(to, message)?;
                None
            }
            Action::Compute(part) => {
                work.compute(part)?;
                (stage + 1 < n_stages).then_some(part)
            }
            Action::Step(part) => {
                work.step(part)?;
                Some(part)
            }
        };
        if let Some(part) = done.filter(|part| part.patch.is_none_or(|patch| patch + 1 == n_patches)) {
            work.show(part.step, observer);
            if observer.advance(Phase::Denoise, part.step as u64 + 1).is_break() {
                return Err(EngineError::Cancelled { step: part.step + 1, n_steps });
            }
        }
    }
    let latents = work.finish()?;
    check_finite(&latents, n_steps)?;
    observer.end(Phase::Denoise);
    Ok(latents)
}

fn guide(
    positive: Tensor<3>,
    negative: Tensor<3>,
    cfg: &Cfg<'_>,
    sequence: &dyn Communicator,
) -> Result<Tensor<3>, CommError> {
    let guided = negative.clone() + (positive.clone() - negative) * cfg.scale;
    if cfg.rescale == 0.0 {
        return Ok(guided);
    }
    // the ratio of standard deviations over each whole picture
    let spread = |x: &Tensor<3>| -> Result<Tensor<3>, CommError> {
        let x = sequence.all_gather(x.clone(), 1)?;
        let centred = x.clone() - x.mean_dim(2).mean_dim(1);
        Ok((centred.clone() * centred).mean_dim(2).mean_dim(1).sqrt())
    };
    let rescaled = guided.clone() * (spread(&positive)? / spread(&guided)?);
    Ok(rescaled * cfg.rescale + guided * (1.0 - cfg.rescale))
}

/// One pass through all blocks but those of `skip`: the model's prediction, `[batch, img_tokens, channels]`, f32.
///
/// # Errors
/// A rank that failed.
pub fn forward(
    dit: &dyn Dit,
    ctx: &mut Ctx<'_>,
    latents: Tensor<3>,
    inputs: Inputs<'_>,
    skip: &[usize],
) -> Result<Tensor<3>, CommError> {
    let cond = dit.condition(inputs);
    let mut x = Streams::new(Some(dit.embed_txt(inputs.text)), dit.embed_img(latents, inputs.places));
    for i in (0..dit.spec().n_blocks).filter(|i| !skip.contains(i)) {
        x = dit.block(ctx, i, x, &cond)?;
    }
    Ok(dit.head(x, &cond))
}

fn check_finite(latents: &Tensor<3>, n_steps: usize) -> Result<(), EngineError> {
    let data = latents.clone().try_into_data().map_err(|e| EngineError::Read(e.to_string()))?;
    let values = data.try_to_vec::<f32>().map_err(|e| EngineError::Read(e.to_string()))?;
    match values.iter().filter(|x| !x.is_finite()).count() {
        0 => Ok(()),
        n_bad => Err(EngineError::NotFinite { n_bad, n: values.len(), n_steps }),
    }
}
