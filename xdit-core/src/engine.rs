//! The denoising loop, written once for every model, sampler and attention strategy.

use burn::tensor::Tensor;

use crate::comm::CommError;
use crate::dit::{Attention, Ctx, Dit, Inputs, Places, TextEmbeddings};
use crate::observer::{Observer, Phase};
use crate::sampler::{History, Rows, Sampler};

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
    #[error("latents hold {n_bad} non-finite values of {n} after {n_steps} steps; try --dtype bf16 or f32")]
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
    /// `[batch, img_tokens, channels]`, f32, scaled as the sampler starts
    pub noise: Tensor<3>,
    /// Row and column of each token.
    pub positions: &'a [[usize; 2]],
    /// The encoded prompt.
    pub text: &'a TextEmbeddings,
    /// For guidance-distilled models.
    pub guidance: Option<f32>,
    /// Classifier-free guidance, where it is wanted.
    pub cfg: Option<Cfg<'a>>,
}

/// Classifier-free guidance: `negative + scale (positive - negative)`.
pub struct Cfg<'a> {
    /// The encoded negative prompt.
    pub negative: &'a TextEmbeddings,
    /// 1 is no guidance.
    pub scale: f32,
}

/// Runs all steps of `sampler` and returns the final latents, `[batch, img_tokens, channels]`, f32.
///
/// # Errors
/// A rank that failed, a cancelled request, latents that are not finite.
pub fn denoise(
    dit: &dyn Dit,
    attn: &mut dyn Attention,
    sampler: &dyn Sampler,
    request: Denoise<'_>,
    observer: &mut dyn Observer,
) -> Result<Tensor<3>, EngineError> {
    let Denoise { noise, positions, text, guidance, cfg } = request;
    let timesteps = sampler.timesteps();
    let n_steps = timesteps.len();
    let places = dit.place(positions, text.txt.dims()[1]);
    // a negative prompt may have another number of tokens
    let negative = cfg.map(|cfg| (dit.place(positions, cfg.negative.txt.dims()[1]), cfg));
    let mut ctx = Ctx { attn };

    let mut latents = noise;
    let mut history = History::default();
    observer.begin(Phase::Denoise, "steps", n_steps as u64);
    for (step, timestep) in timesteps.iter().enumerate() {
        let time = timestep / 1000.0;
        let mut predict = |text: &TextEmbeddings, places: &Places| {
            forward(dit, &mut ctx, Inputs { latents: latents.clone(), places, time, text, guidance })
        };
        let mut noise = predict(text, &places)?;
        if let Some((places, Cfg { negative, scale })) = &negative {
            let negative = predict(negative, places)?;
            noise = negative.clone() + (noise - negative) * *scale;
        }
        latents = sampler.step(step, Rows { latents, prediction: noise, noise: None }, &mut history);
        observer.latents(step, &latents);
        if observer.advance(Phase::Denoise, step as u64 + 1).is_break() {
            return Err(EngineError::Cancelled { step: step + 1, n_steps });
        }
    }
    check_finite(&latents, n_steps)?;
    observer.end(Phase::Denoise);
    Ok(latents)
}

/// One pass through all blocks: the model's prediction, `[batch, img_tokens, channels]`, f32.
///
/// # Errors
/// A rank that failed.
pub fn forward(dit: &dyn Dit, ctx: &mut Ctx<'_>, inputs: Inputs<'_>) -> Result<Tensor<3>, CommError> {
    let (mut x, cond) = dit.embed(inputs);
    for i in 0..dit.spec().n_blocks {
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
