//! `DDIMScheduler`: arXiv 2010.02502, without noise (`eta` 0) as pipelines call it.
//!
//! Mirrors `src/diffusers/schedulers/scheduling_ddim.py`.

use burn::tensor::Tensor;
use serde::Deserialize;

use super::flag::flag;
use super::spacing::TimestepSpacing;
use super::training::{PredictionType, Taken, Training};
use super::{History, Sampler, SamplerError, Tokens};

/// `scheduler_config.json`, with upstream's defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct DdimConfig {
    /// The training's noise.
    #[serde(flatten)]
    pub training: Training,
    /// Whether the predicted picture is kept within `clip_sample_range`.
    #[serde(deserialize_with = "flag")]
    pub clip_sample: bool,
    /// Its largest magnitude.
    pub clip_sample_range: f64,
    /// Whether the last step ends without any noise, or with that of the training's first timestep.
    #[serde(deserialize_with = "flag")]
    pub set_alpha_to_one: bool,
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

impl Default for DdimConfig {
    fn default() -> Self {
        Self {
            training: Training::default(),
            clip_sample: true,
            clip_sample_range: 1.0,
            set_alpha_to_one: true,
            prediction_type: PredictionType::Epsilon,
            thresholding: false,
            timestep_spacing: TimestepSpacing::Leading,
            steps_offset: 0,
        }
    }
}

/// The sampler.
#[derive(Debug, Clone)]
pub struct Ddim {
    config: DdimConfig,
    eta: f32,
    timesteps: Vec<f32>,
    // the signal's share at each step, and after it
    signal: Vec<[f32; 2]>,
}

impl Ddim {
    /// - `eta`: how much of DDPM's noise is added, 0 to 1
    ///
    /// # Errors
    /// No steps or more than the training had; options that are not built; timesteps that the training did not have.
    pub fn new(config: &DdimConfig, n_steps: usize, eta: f32) -> Result<Self, SamplerError> {
        if config.thresholding {
            return Err(SamplerError::Unsupported { option: "thresholding" });
        }
        let Taken { signal: all, at } =
            config.training.take(config.timestep_spacing, config.steps_offset, config.prediction_type, n_steps)?;
        let last = if config.set_alpha_to_one { 1.0 } else { all[0] };
        // whatever the spacing, the step is taken to be this long
        let ratio = all.len() / n_steps;
        let next = |t: usize| t.checked_sub(ratio).map_or(last, |t| all[t]);
        let timesteps = at.iter().map(|t| *t as f32).collect();
        let signal = at.into_iter().map(|t| [all[t], next(t)]).collect();
        Ok(Self { config: config.clone(), eta, timesteps, signal })
    }
}

impl Sampler for Ddim {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn needs_noise(&self, _i: usize) -> bool {
        self.eta > 0.0
    }

    fn step(&self, i: usize, tokens: Tokens, _history: &mut History) -> Tensor<3> {
        let Tokens { latents, prediction, noise } = tokens;
        let [now, next] = self.signal[i];
        let (signal, deviation) = (now.sqrt(), (1.0 - now).sqrt());
        let kind = self.config.prediction_type;
        let direction = kind.noise(&latents, prediction.clone(), signal, deviation);
        let mut picture = kind.picture(&latents, prediction, signal, deviation);
        if self.config.clip_sample {
            picture = picture.clamp(-self.config.clip_sample_range, self.config.clip_sample_range);
        }
        let variance = (1.0 - next) / (1.0 - now) * (1.0 - now / next);
        let added = self.eta * variance.sqrt();
        let moved = picture * next.sqrt() + direction * (1.0 - next - added * added).sqrt();
        match noise {
            Some(noise) if self.eta > 0.0 => moved + noise * added,
            _ => moved,
        }
    }
}
