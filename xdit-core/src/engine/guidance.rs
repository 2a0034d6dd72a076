//! Classifier-free guidance, and what is put on top of it.

use burn::tensor::Tensor;

use crate::comm::{CommError, Communicator};
use crate::dit::TextEmbeddings;

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
    /// It takes place after this part of the steps, 0 to 1.
    pub start: f64,
    /// And before this part of them.
    pub stop: f64,
}

impl SkipLayers {
    /// Whether it takes place at this step; never behind the last one.
    pub fn at(&self, step: usize, n_steps: usize) -> bool {
        let (at, n) = (step as f64, n_steps as f64);
        step < n_steps && at > n * self.start && at < n * self.stop
    }
}

/// What a step makes of its predictions, `[batch, img_tokens, channels]`.
///
/// - `mine`: of this rank's prompts
/// - `skipped`: of the pass without the blocks of `skip_layers`, where that takes place at this step
/// - `branches`: the ranks that share the prompts
/// - `sequence`: the ranks that share the tokens
/// - `bands`: how many each of them holds
pub(super) fn combine(
    mine: Vec<Tensor<3>>,
    skipped: Option<(Tensor<3>, &SkipLayers)>,
    cfg: Option<&Cfg<'_>>,
    branches: &dyn Communicator,
    sequence: &dyn Communicator,
    bands: &[usize],
) -> Result<Tensor<3>, CommError> {
    let mine = crate::ops::cat(mine, 0);
    let Some(cfg) = cfg else { return Ok(mine) };
    // every branch gets all predictions
    let (n_mine, n_ranks) = (mine.dims()[0], branches.size());
    let both = branches.all_gather(mine, 0, &vec![n_mine; n_ranks])?;
    let batch = both.dims()[0] / 2;
    let (with, without) = (both.clone().narrow(0, 0, batch), both.narrow(0, batch, batch));
    let guided = guide(with.clone(), without, cfg, sequence, bands)?;
    Ok(match skipped {
        Some((skipped, skip)) => guided + (with - skipped) * skip.scale,
        None => guided,
    })
}

fn guide(
    positive: Tensor<3>,
    negative: Tensor<3>,
    cfg: &Cfg<'_>,
    sequence: &dyn Communicator,
    bands: &[usize],
) -> Result<Tensor<3>, CommError> {
    let guided = negative.clone() + (positive.clone() - negative) * cfg.scale;
    if cfg.rescale == 0.0 {
        return Ok(guided);
    }
    // the ratio of standard deviations over each whole picture
    let spread = |x: &Tensor<3>| -> Result<Tensor<3>, CommError> {
        let x = sequence.all_gather(x.clone(), 1, bands)?;
        let centred = x.clone() - x.mean_dim(2).mean_dim(1);
        Ok((centred.clone() * centred).mean_dim(2).mean_dim(1).sqrt())
    };
    let rescaled = guided.clone() * (spread(&positive)? / spread(&guided)?);
    Ok(rescaled * cfg.rescale + guided * (1.0 - cfg.rescale))
}
