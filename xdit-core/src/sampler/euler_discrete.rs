//! `EulerDiscreteScheduler`: Euler steps along the noise level, Karras et al. 2022 (arXiv 2206.00364), without churn.
//!
//! Mirrors `src/diffusers/schedulers/scheduling_euler_discrete.py`.

use burn::tensor::Tensor;
use serde::Deserialize;

use super::flag::flag;
use super::spacing::{Respacing, TimestepSpacing, check_steps, linspace};
use super::training::{PredictionType, Training, interpolate, sigmas, timestep_of};
use super::{History, Sampler, SamplerError, Tokens};

/// `scheduler_config.json`, with upstream's defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct EulerDiscreteConfig {
    /// The training's noise.
    #[serde(flatten)]
    pub training: Training,
    /// What the model predicts.
    pub prediction_type: PredictionType,
    /// Where noise levels between those of the training lie.
    pub interpolation_type: Interpolation,
    /// Karras et al. 2022, equation 5.
    #[serde(deserialize_with = "flag")]
    pub use_karras_sigmas: bool,
    /// Evenly spaced logarithms.
    #[serde(deserialize_with = "flag")]
    pub use_exponential_sigmas: bool,
    /// Quantiles of the beta distribution with both parameters 0.6, arXiv 2407.12173.
    #[serde(deserialize_with = "flag")]
    pub use_beta_sigmas: bool,
    /// The least of the noise levels of those three.
    pub sigma_min: Option<f64>,
    /// The largest of them.
    pub sigma_max: Option<f64>,
    /// Which timesteps are taken.
    pub timestep_spacing: TimestepSpacing,
    /// Added to `leading` timesteps.
    pub steps_offset: usize,
    /// `discrete`; `continuous` is not built.
    pub timestep_type: TimestepType,
    /// Where the last step ends.
    pub final_sigmas_type: FinalSigmas,
}

/// Where noise levels between those of the training lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// On lines between them.
    Linear,
    /// On one line between the logarithms of the first and the last.
    LogLinear,
}

/// What the model is told of the noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimestepType {
    /// A timestep of the training.
    Discrete,
    /// The logarithm of the noise level; not built.
    Continuous,
}

/// Where the last step ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmas {
    /// Without noise.
    Zero,
    /// With the noise of the training's first timestep.
    SigmaMin,
}

impl Default for EulerDiscreteConfig {
    fn default() -> Self {
        Self {
            training: Training::default(),
            prediction_type: PredictionType::Epsilon,
            interpolation_type: Interpolation::Linear,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            sigma_min: None,
            sigma_max: None,
            timestep_spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
            timestep_type: TimestepType::Discrete,
            final_sigmas_type: FinalSigmas::Zero,
        }
    }
}

/// The sampler.
#[derive(Debug, Clone)]
pub struct EulerDiscrete {
    prediction_type: PredictionType,
    initial_scale: f32,
    sigmas: Vec<f32>,
    timesteps: Vec<f32>,
}

impl EulerDiscrete {
    /// # Errors
    /// No steps or more than the training had; options that are not built or exclude each other; noise levels that
    /// are not finite.
    pub fn new(config: &EulerDiscreteConfig, n_steps: usize) -> Result<Self, SamplerError> {
        let respacing =
            Respacing::chosen(config.use_karras_sigmas, config.use_exponential_sigmas, config.use_beta_sigmas)?;
        if config.timestep_type == TimestepType::Continuous {
            return Err(SamplerError::Unsupported { option: "timestep_type" });
        }
        let table = sigmas(&config.training.signal_above_zero()?);
        let n_train = table.len();
        check_steps(n_steps, n_train)?;
        let logs: Vec<f32> = table.iter().map(|s| s.ln()).collect();
        // f32 already here
        let spaced = config.timestep_spacing.timesteps(n_train, n_steps, config.steps_offset);
        let mut timesteps: Vec<f64> = spaced.into_iter().map(|t| f64::from(t as f32)).collect();
        let mut levels: Vec<f64> = match config.interpolation_type {
            Interpolation::Linear => timesteps.iter().map(|t| interpolate(&table, *t)).collect(),
            Interpolation::LogLinear => {
                let (most, least) = (f64::from(logs[n_train - 1]), f64::from(logs[0]));
                linspace(most, least, n_steps + 1).map(|x| f64::from((x as f32).exp())).collect()
            }
        };
        if let Some(respacing) = respacing {
            let max = config.sigma_max.unwrap_or(levels[0]);
            let min = config.sigma_min.unwrap_or(levels[levels.len() - 1]);
            levels = respacing.between(max, min, n_steps);
            timesteps = levels.iter().map(|s| timestep_of(*s, &logs)).collect();
        }
        let mut sigmas: Vec<f32> = levels.iter().map(|s| *s as f32).collect();
        sigmas.push(match config.final_sigmas_type {
            FinalSigmas::Zero => 0.0,
            FinalSigmas::SigmaMin => table[0],
        });
        // a step divides by its noise level
        if let Some(step) = sigmas[..timesteps.len()].iter().position(|s| !s.is_finite() || *s <= 0.0) {
            return Err(SamplerError::NotFinite { sigma: sigmas[step], step, n_steps });
        }
        let max = sigmas.iter().copied().fold(0.0, f32::max);
        let initial_scale = match config.timestep_spacing {
            TimestepSpacing::Leading => (max * max + 1.0).sqrt(),
            _ => max,
        };
        let timesteps = timesteps.iter().map(|t| *t as f32).collect();
        Ok(Self { prediction_type: config.prediction_type, initial_scale, sigmas, timesteps })
    }

    /// Noise levels: one per step, and the last step's end.
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }
}

impl Sampler for EulerDiscrete {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn initial_scale(&self) -> f32 {
        self.initial_scale
    }

    fn model_input(&self, i: usize, latents: Tensor<3>) -> Tensor<3> {
        let sigma = self.sigmas[i];
        latents / (sigma * sigma + 1.0).sqrt()
    }

    fn step(&self, i: usize, tokens: Tokens, _history: &mut History) -> Tensor<3> {
        let Tokens { latents, prediction, .. } = tokens;
        let (sigma, next) = (self.sigmas[i], self.sigmas[i + 1]);
        let picture = match self.prediction_type {
            PredictionType::Sample => prediction,
            PredictionType::Epsilon => latents.clone() - prediction * sigma,
            PredictionType::VPrediction => {
                let square = sigma * sigma + 1.0;
                prediction * (-sigma / square.sqrt()) + latents.clone() / square
            }
        };
        let slope = (latents.clone() - picture) / sigma;
        latents + slope * (next - sigma)
    }
}
