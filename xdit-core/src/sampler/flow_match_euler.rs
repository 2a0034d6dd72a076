//! `FlowMatchEulerDiscreteScheduler`: Euler steps along the flow from noise (sigma 1) to data (sigma 0).
//!
//! Mirrors `src/diffusers/schedulers/scheduling_flow_match_euler_discrete.py`, with its roundings: sigmas that a
//! pipeline passes in are f32 from the start, the scheduler's own are f64 until the end.

use burn::tensor::Tensor;
use serde::Deserialize;

use super::{Sampler, SamplerError};

/// `scheduler_config.json`, with upstream's defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct FlowMatchEulerConfig {
    /// Timestep of sigma 1.
    pub num_train_timesteps: usize,
    /// Fixed shift towards noise; 1 is none.
    pub shift: f64,
    /// Shift by the number of image tokens instead.
    pub use_dynamic_shifting: bool,
    /// Shift at `base_image_seq_len` tokens.
    pub base_shift: f64,
    /// Shift at `max_image_seq_len` tokens.
    pub max_shift: f64,
    /// Tokens of `base_shift`.
    pub base_image_seq_len: usize,
    /// Tokens of `max_shift`.
    pub max_image_seq_len: usize,
    /// Whether the flow runs the other way.
    pub invert_sigmas: bool,
    /// Sigma that the last step starts from.
    pub shift_terminal: Option<f64>,
    /// Karras et al. 2022, equation 5.
    pub use_karras_sigmas: bool,
    /// Evenly spaced logarithms.
    pub use_exponential_sigmas: bool,
    /// Quantiles of a beta distribution; not built yet.
    pub use_beta_sigmas: bool,
    /// The form of the dynamic shift.
    pub time_shift_type: TimeShift,
    /// New noise at each step; not built yet.
    pub stochastic_sampling: bool,
}

/// The form of the dynamic shift.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeShift {
    /// By `e^mu`.
    Exponential,
    /// By `mu`.
    Linear,
}

impl Default for FlowMatchEulerConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: 0.5,
            max_shift: 1.15,
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
            invert_sigmas: false,
            shift_terminal: None,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            time_shift_type: TimeShift::Exponential,
            stochastic_sampling: false,
        }
    }
}

/// The dynamic shift `mu` for a picture of `n_tokens` image tokens, as the pipelines compute it.
pub fn calculate_shift(n_tokens: usize, config: &FlowMatchEulerConfig) -> f64 {
    let (base, max) = (config.base_image_seq_len as f64, config.max_image_seq_len as f64);
    let slope = (config.max_shift - config.base_shift) / (max - base);
    n_tokens as f64 * slope + (config.base_shift - slope * base)
}

/// The sampler.
#[derive(Debug, Clone)]
pub struct FlowMatchEuler {
    sigmas: Vec<f32>,
    timesteps: Vec<f32>,
}

impl FlowMatchEuler {
    /// - `sigmas`: the pipeline's own, `n_steps` of them, before any shift; else evenly spaced ones
    /// - `mu`: the dynamic shift, see [`calculate_shift`]
    ///
    /// # Errors
    /// No steps; options that are not built or exclude each other; sigmas that are not finite.
    pub fn new(
        config: &FlowMatchEulerConfig,
        n_steps: usize,
        sigmas: Option<&[f64]>,
        mu: Option<f64>,
    ) -> Result<Self, SamplerError> {
        let choices = [config.use_karras_sigmas, config.use_exponential_sigmas, config.use_beta_sigmas];
        if choices.iter().filter(|set| **set).count() > 1 {
            return Err(SamplerError::Conflict);
        }
        for (set, option) in
            [(config.use_beta_sigmas, "use_beta_sigmas"), (config.stochastic_sampling, "stochastic_sampling")]
        {
            if set {
                return Err(SamplerError::Unsupported { option });
            }
        }
        if n_steps == 0 {
            return Err(SamplerError::NoSteps);
        }

        // every operation on f32 arrays upstream rounds to f32
        let single = sigmas.is_some();
        let round = |x: f64| if single { f64::from(x as f32) } else { x };
        let train = config.num_train_timesteps as f64;
        let fixed = |sigma: f64| {
            let shift = round(config.shift);
            round(round(shift * sigma) / round(1.0 + round(round(config.shift - 1.0) * sigma)))
        };
        let mut values: Vec<f64> = match sigmas {
            Some(sigmas) => sigmas.iter().map(|s| round(*s)).collect(),
            None => {
                // of the training schedule, which is f32 and shifted once already
                let end = |t: f64| {
                    let sigma = f64::from((t / train) as f32);
                    let shifted = config.shift * sigma / (1.0 + (config.shift - 1.0) * sigma);
                    f64::from(if config.use_dynamic_shifting { sigma } else { shifted } as f32)
                };
                linspace(end(train) * train, end(1.0) * train, n_steps).map(|t| t / train).collect()
            }
        };
        if config.use_dynamic_shifting {
            let mu = mu.ok_or(SamplerError::NoShift)?;
            let by = round(match config.time_shift_type {
                TimeShift::Exponential => mu.exp(),
                TimeShift::Linear => mu,
            });
            values.iter_mut().for_each(|s| *s = round(by / round(by + round(round(1.0 / *s) - 1.0))));
        } else {
            values.iter_mut().for_each(|s| *s = fixed(*s));
        }
        if let (Some(terminal), Some(last)) = (config.shift_terminal.filter(|t| *t != 0.0), values.last()) {
            let scale = round(round(1.0 - last) / round(1.0 - terminal));
            values.iter_mut().for_each(|s| *s = round(1.0 - round(round(1.0 - *s) / scale)));
        }
        let (max, min) = (values[0], values[n_steps - 1]);
        if config.use_karras_sigmas {
            let (max, min) = (max.powf(1.0 / 7.0), min.powf(1.0 / 7.0));
            values = linspace(0.0, 1.0, n_steps).map(|ramp| (max + ramp * (min - max)).powi(7)).collect();
        } else if config.use_exponential_sigmas {
            values = linspace(max.ln(), min.ln(), n_steps).map(f64::exp).collect();
        }

        let mut sigmas: Vec<f32> = values.iter().map(|s| *s as f32).collect();
        if config.invert_sigmas {
            sigmas.iter_mut().for_each(|s| *s = 1.0 - *s);
        }
        if let Some(step) = sigmas.iter().position(|s| !s.is_finite()) {
            return Err(SamplerError::NotFinite { sigma: sigmas[step], step, n_steps });
        }
        let timesteps = sigmas.iter().map(|s| s * train as f32).collect();
        sigmas.push(if config.invert_sigmas { 1.0 } else { 0.0 });
        Ok(Self { sigmas, timesteps })
    }

    /// Noise levels: one per step, and the last step's end.
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }
}

/// numpy's `linspace` with both ends.
fn linspace(from: f64, to: f64, n: usize) -> impl Iterator<Item = f64> {
    let step = (to - from) / (n - 1).max(1) as f64;
    (0..n).map(move |i| if i > 0 && i + 1 == n { to } else { from + i as f64 * step })
}

impl Sampler for FlowMatchEuler {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn step(&self, i: usize, latents: Tensor<3>, prediction: Tensor<3>) -> Tensor<3> {
        latents + prediction * (self.sigmas[i + 1] - self.sigmas[i])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_cannot_work_are_refused() {
        let config = FlowMatchEulerConfig { use_dynamic_shifting: true, ..Default::default() };
        assert_eq!(FlowMatchEuler::new(&config, 4, None, None).err(), Some(SamplerError::NoShift));
        assert_eq!(FlowMatchEuler::new(&config, 0, None, Some(1.0)).err(), Some(SamplerError::NoSteps));
        let config = FlowMatchEulerConfig { use_beta_sigmas: true, ..Default::default() };
        let error = FlowMatchEuler::new(&config, 4, None, None).err();
        assert_eq!(error, Some(SamplerError::Unsupported { option: "use_beta_sigmas" }));
    }

    #[test]
    fn the_shift_is_linear_in_the_tokens() {
        let config = FlowMatchEulerConfig::default();
        assert!((calculate_shift(256, &config) - 0.5).abs() < 1e-12);
        assert!((calculate_shift(4096, &config) - 1.15).abs() < 1e-12);
    }
}
