//! `DDPMScheduler`: arXiv 2006.11239, with new noise at every step but the last.
//!
//! Mirrors `src/diffusers/schedulers/scheduling_ddpm.py`.

use burn::tensor::Tensor;
use serde::Deserialize;

use super::flag::flag;
use super::spacing::TimestepSpacing;
use super::training::{PredictionType, Taken, Training};
use super::{History, Sampler, SamplerError, Tokens};

/// `scheduler_config.json`, with upstream's defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct DdpmConfig {
    /// The training's noise.
    #[serde(flatten)]
    pub training: Training,
    /// Variance of the noise that is added; `null`, as other classes write it, is `fixed_small`.
    pub variance_type: Option<VarianceType>,
    /// Whether the predicted picture is kept within `clip_sample_range`.
    #[serde(deserialize_with = "flag")]
    pub clip_sample: bool,
    /// Its largest magnitude.
    pub clip_sample_range: f64,
    /// What the model predicts.
    pub prediction_type: PredictionType,
    /// Dynamic thresholding; not built, as it needs the whole picture.
    #[serde(deserialize_with = "flag")]
    pub thresholding: bool,
    /// Which timesteps are taken.
    pub timestep_spacing: TimestepSpacing,
    /// Added to `leading` timesteps.
    pub steps_offset: usize,
}

/// Variance of the noise that is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceType {
    /// The posterior's.
    FixedSmall,
    /// The same by way of its logarithm.
    FixedSmallLog,
    /// The step's own.
    FixedLarge,
    /// The logarithm of it, whose root upstream takes; not built.
    FixedLargeLog,
    /// Predicted by the model; not built, as pipelines throw it away.
    Learned,
    /// Predicted by the model; not built, as pipelines throw it away.
    LearnedRange,
}

impl Default for DdpmConfig {
    fn default() -> Self {
        Self {
            training: Training::default(),
            variance_type: None,
            clip_sample: true,
            clip_sample_range: 1.0,
            prediction_type: PredictionType::Epsilon,
            thresholding: false,
            timestep_spacing: TimestepSpacing::Leading,
            steps_offset: 0,
        }
    }
}

/// The sampler.
#[derive(Debug, Clone)]
pub struct Ddpm {
    config: DdpmConfig,
    timesteps: Vec<f32>,
    steps: Vec<Step>,
}

/// One step's numbers.
#[derive(Debug, Clone, Copy)]
struct Step {
    signal: f32,
    noise: f32,
    // what the predicted picture and the latents are multiplied by
    picture: f32,
    latents: f32,
    // standard deviation of the new noise; none at timestep 0
    added: Option<f32>,
}

impl Ddpm {
    /// # Errors
    /// No steps or more than the training had; options that are not built; timesteps that the training did not have.
    pub fn new(config: &DdpmConfig, n_steps: usize) -> Result<Self, SamplerError> {
        if config.thresholding {
            return Err(SamplerError::Unsupported { option: "thresholding" });
        }
        let variance_type = config.variance_type.unwrap_or(VarianceType::FixedSmall);
        match variance_type {
            VarianceType::FixedSmall | VarianceType::FixedSmallLog | VarianceType::FixedLarge => {}
            _ => return Err(SamplerError::Unsupported { option: "variance_type" }),
        }
        let Taken { signal: all, at } =
            config.training.take(config.timestep_spacing, config.steps_offset, config.prediction_type, n_steps)?;
        let steps = (0..at.len()).map(|i| {
            let (now, next) = (all[at[i]], at.get(i + 1).map_or(1.0, |t| all[*t]));
            let (noise, next_noise, kept) = (1.0 - now, 1.0 - next, now / next);
            let new = 1.0 - kept;
            let small = (next_noise / noise * new).max(1e-20);
            let variance = if variance_type == VarianceType::FixedLarge { new } else { small };
            Step {
                signal: now.sqrt(),
                noise: noise.sqrt(),
                picture: next.sqrt() * new / noise,
                latents: kept.sqrt() * next_noise / noise,
                added: (at[i] > 0).then(|| variance.sqrt()),
            }
        });
        let steps: Vec<_> = steps.collect();
        Ok(Self { config: config.clone(), timesteps: at.iter().map(|t| *t as f32).collect(), steps })
    }
}

impl Sampler for Ddpm {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn needs_noise(&self, i: usize) -> bool {
        self.steps[i].added.is_some()
    }

    fn step(&self, i: usize, tokens: Tokens, _history: &mut History) -> Tensor<3> {
        let (Tokens { latents, prediction, noise }, step) = (tokens, self.steps[i]);
        let mut picture = self.config.prediction_type.picture(&latents, prediction, step.signal, step.noise);
        if self.config.clip_sample {
            picture = picture.clamp(-self.config.clip_sample_range, self.config.clip_sample_range);
        }
        let mean = picture * step.picture + latents * step.latents;
        match (step.added, noise) {
            (Some(deviation), Some(noise)) => mean + noise * deviation,
            _ => mean,
        }
    }
}
