//! The denoising loop, written once for every model, sampler and attention strategy.

use std::ops::Range;

use burn::tensor::Tensor;

use crate::comm::{CommError, Communicator, even_sizes};
use crate::dit::{Attention, Ctx, Dit, Inputs, Places, TextEmbeddings, TokenGrid};
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
    fn at(&self, step: usize, n_steps: usize) -> bool {
        let (step, n) = (step as f64, n_steps as f64);
        step > n * self.start && step < n * self.stop
    }
}

/// A rank's share in one picture: whom it shares it with, and how its attention finds their keys.
pub struct Team<'a> {
    /// The ranks that share the picture's tokens, in the order of their bands. Each holds one band of the image tokens,
    /// as even as can be, and of the text tokens where the model's blocks change them.
    pub sequence: &'a dyn Communicator,
    /// The ranks that share classifier-free guidance: the first predicts with the prompt, the second with the negative one.
    pub cfg: &'a dyn Communicator,
    /// The attention of this rank's tokens.
    pub attn: &'a mut dyn Attention,
}

/// Runs all steps of `sampler` and returns the final latents, `[batch, img_tokens, channels]`, f32, on every rank.
///
/// # Errors
/// A rank that failed, a cancelled request, latents that are not finite.
pub fn denoise(
    dit: &dyn Dit,
    team: Team<'_>,
    sampler: &dyn Sampler,
    request: Denoise<'_>,
    observer: &mut dyn Observer,
) -> Result<Tensor<3>, EngineError> {
    let Denoise { noise, more_noise, grid, size, text, guidance, cfg } = request;
    let Team { sequence, cfg: branches, attn } = team;
    let timesteps = sampler.timesteps();
    let n_steps = timesteps.len();
    let img = band(sequence, grid.n_tokens());
    let cut = |x: Tensor<3>| x.narrow(1, img.start, img.len());
    let positive = Prompt::new(dit, grid, sequence, text);
    let negative = cfg.map(|cfg| Prompt::new(dit, grid, sequence, cfg.negative));
    let mut ctx = Ctx { attn };

    let mut latents = match sampler.initial_scale() {
        1.0 => cut(noise),
        scale => cut(noise) * scale,
    };
    let mut history = History::default();
    observer.begin(Phase::Denoise, "steps", n_steps as u64);
    for (step, timestep) in timesteps.iter().copied().enumerate() {
        let input = sampler.model_input(step, latents.clone());
        let mut predict = |prompt: &Prompt, skip: &[usize]| {
            let Prompt { text, places } = prompt;
            forward(dit, &mut ctx, Inputs { latents: input.clone(), places, timestep, text, guidance, size }, skip)
        };
        let prediction = match (&negative, cfg) {
            (Some(negative), Some(cfg)) => {
                // the prompts are dealt out, and every branch gets all predictions
                let mine = [&positive, negative].into_iter().skip(branches.rank()).step_by(branches.size());
                let mine = mine.map(|prompt| predict(prompt, &[])).collect::<Result<_, _>>()?;
                let both = branches.all_gather(Tensor::cat(mine, 0), 0)?;
                let batch = both.dims()[0] / 2;
                let (with, without) = (both.clone().narrow(0, 0, batch), both.narrow(0, batch, batch));
                let guided = guide(with.clone(), without, &cfg, sequence)?;
                match cfg.skip_layers.filter(|skip| skip.at(step, n_steps)) {
                    Some(skip) => guided + (with - predict(&positive, &skip.blocks)?) * skip.scale,
                    None => guided,
                }
            }
            _ => predict(&positive, &[])?,
        };
        let noise = sampler.needs_noise(step).then(|| cut(more_noise()));
        latents = sampler.step(step, Rows { latents, prediction, noise }, &mut history);
        observer.latents(step, &latents);
        if observer.advance(Phase::Denoise, step as u64 + 1).is_break() {
            return Err(EngineError::Cancelled { step: step + 1, n_steps });
        }
    }
    let latents = sequence.all_gather(latents, 1)?;
    check_finite(&latents, n_steps)?;
    observer.end(Phase::Denoise);
    Ok(latents)
}

/// This rank's band of `n` tokens.
fn band(sequence: &dyn Communicator, n: usize) -> Range<usize> {
    let sizes = even_sizes(n, sequence.size());
    let start = sizes[..sequence.rank()].iter().sum();
    start..start + sizes[sequence.rank()]
}

/// This rank's share of an encoded prompt.
struct Prompt {
    text: TextEmbeddings,
    places: Places,
}

impl Prompt {
    fn new(dit: &dyn Dit, grid: TokenGrid, sequence: &dyn Communicator, text: &TextEmbeddings) -> Self {
        let n_txt = text.txt.n_tokens();
        let txt = if dit.spec().joint { band(sequence, n_txt) } else { 0..n_txt };
        let places = dit.place(grid, n_txt).band(txt.clone(), band(sequence, grid.n_tokens()));
        Self { text: TextEmbeddings { txt: text.txt.band(txt), ..text.clone() }, places }
    }
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
pub fn forward(dit: &dyn Dit, ctx: &mut Ctx<'_>, inputs: Inputs<'_>, skip: &[usize]) -> Result<Tensor<3>, CommError> {
    let (mut x, cond) = dit.embed(inputs);
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
