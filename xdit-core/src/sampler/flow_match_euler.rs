//! `FlowMatchEulerDiscreteScheduler`: Euler steps along the flow from noise (sigma 1) to data (sigma 0).
//!
//! Mirrors `src/diffusers/schedulers/scheduling_flow_match_euler_discrete.py`, with its roundings: sigmas that a
//! pipeline passes in are f32 from the start, the scheduler's own are f64 until the end.

use burn::tensor::Tensor;
use serde::Deserialize;

use super::flag::flag;
use super::spacing::{Respacing, check_steps, linspace};
use super::{History, Sampler, SamplerError, Tokens};

/// `scheduler_config.json`, with upstream's defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct FlowMatchEulerConfig {
    /// Timestep of sigma 1.
    pub num_train_timesteps: usize,
    /// Fixed shift towards noise; 1 is none.
    pub shift: f64,
    /// Shift by the number of image tokens instead.
    #[serde(deserialize_with = "flag")]
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
    #[serde(deserialize_with = "flag")]
    pub invert_sigmas: bool,
    /// Sigma that the last step starts from.
    pub shift_terminal: Option<f64>,
    /// Karras et al. 2022, equation 5.
    #[serde(deserialize_with = "flag")]
    pub use_karras_sigmas: bool,
    /// Evenly spaced logarithms.
    #[serde(deserialize_with = "flag")]
    pub use_exponential_sigmas: bool,
    /// Quantiles of the beta distribution with both parameters 0.6, arXiv 2407.12173.
    #[serde(deserialize_with = "flag")]
    pub use_beta_sigmas: bool,
    /// Not this class's, but `FluxPipeline` asks for it whatever the class: then the sampler's own noise levels are taken
    /// instead of the pipeline's.
    #[serde(deserialize_with = "flag")]
    pub use_flow_sigmas: bool,
    /// The form of the dynamic shift.
    pub time_shift_type: TimeShift,
    /// New noise at each step; not built, since upstream's pipelines draw it from the process-wide generator, so that
    /// no seed fixes it.
    #[serde(deserialize_with = "flag")]
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
            use_flow_sigmas: false,
            time_shift_type: TimeShift::Exponential,
            stochastic_sampling: false,
        }
    }
}

impl FlowMatchEulerConfig {
    /// After the fixed shift; `single`: of f32 numbers.
    fn shifted(&self, sigma: f64, single: bool) -> f64 {
        let round = |x| rounded(x, single);
        let shift = round(self.shift);
        round(round(shift * sigma) / round(1.0 + round(round(self.shift - 1.0) * sigma)))
    }

    /// Evenly spaced noise levels between the ends of the training schedule, which is f32 and shifted once already.
    fn between_ends(&self, n_steps: usize) -> Vec<f64> {
        let train = self.num_train_timesteps as f64;
        let end = |t: f64| {
            let sigma = rounded(t / rounded(train, true), true);
            if self.use_dynamic_shifting { sigma } else { self.shifted(sigma, true) }
        };
        linspace(end(train) * train, end(1.0) * train, n_steps).map(|t| t / train).collect()
    }
}

/// To f32, if upstream's number is one.
fn rounded(x: f64, single: bool) -> f64 {
    if single { f64::from(x as f32) } else { x }
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
    /// No steps or too many; another number of `sigmas` than steps; options that are not built or exclude each other;
    /// numbers that lead to sigmas which are not finite.
    pub fn new(
        config: &FlowMatchEulerConfig,
        n_steps: usize,
        sigmas: Option<&[f64]>,
        mu: Option<f64>,
    ) -> Result<Self, SamplerError> {
        let respacing =
            Respacing::chosen(config.use_karras_sigmas, config.use_exponential_sigmas, config.use_beta_sigmas)?;
        if config.stochastic_sampling {
            return Err(SamplerError::Unsupported { option: "stochastic_sampling" });
        }
        check_steps(n_steps, usize::MAX)?;
        if let Some(n_sigmas) = sigmas.map(<[f64]>::len).filter(|n| *n != n_steps) {
            return Err(SamplerError::Length { n_sigmas, n_steps });
        }
        if config.num_train_timesteps == 0 {
            return Err(SamplerError::NoTrainTimesteps { n_train: 0, n_betas: 0 });
        }

        // every operation on f32 arrays upstream rounds to f32; f64 and one rounding after it give the same
        let (single, train) = (sigmas.is_some(), config.num_train_timesteps as f64);
        let round = |x: f64| rounded(x, single);
        let mut values: Vec<f64> = match sigmas {
            Some(sigmas) => sigmas.iter().map(|s| round(*s)).collect(),
            None => config.between_ends(n_steps),
        };
        if config.use_dynamic_shifting {
            let mu = mu.ok_or(SamplerError::NoShift)?;
            let by = round(match config.time_shift_type {
                TimeShift::Exponential => mu.exp(),
                TimeShift::Linear => mu,
            });
            values.iter_mut().for_each(|s| *s = round(by / round(by + round(round(1.0 / *s) - 1.0))));
        } else {
            values.iter_mut().for_each(|s| *s = config.shifted(*s, single));
        }
        if let (Some(terminal), Some(last)) = (config.shift_terminal.filter(|t| *t != 0.0), values.last()) {
            let scale = round(round(1.0 - last) / round(1.0 - terminal));
            values.iter_mut().for_each(|s| *s = round(1.0 - round(round(1.0 - *s) / scale)));
        }
        if let Some(respacing) = respacing {
            values = respacing.between(values[0], values[n_steps - 1], n_steps);
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

impl Sampler for FlowMatchEuler {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn step(&self, i: usize, tokens: Tokens, _history: &mut History) -> Tensor<3> {
        tokens.latents + tokens.prediction * (self.sigmas[i + 1] - self.sigmas[i])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(config: FlowMatchEulerConfig, n_steps: usize, sigmas: Option<&[f64]>, mu: Option<f64>) -> SamplerError {
        FlowMatchEuler::new(&config, n_steps, sigmas, mu).expect_err("a refusal")
    }

    #[test]
    fn options_that_cannot_work_are_refused() {
        let plain = FlowMatchEulerConfig::default();
        let dynamic = FlowMatchEulerConfig { use_dynamic_shifting: true, ..plain.clone() };
        assert_eq!(refused(dynamic.clone(), 4, None, None), SamplerError::NoShift);
        assert_eq!(refused(plain.clone(), 0, None, None), SamplerError::NoSteps);
        assert!(matches!(
            refused(plain.clone(), usize::MAX, None, None),
            SamplerError::TooManySteps { n_steps: usize::MAX, .. }
        ));
        let length = SamplerError::Length { n_sigmas: 2, n_steps: 4 };
        assert_eq!(refused(plain.clone(), 4, Some(&[1.0, 0.5]), None), length);
        let config = FlowMatchEulerConfig { num_train_timesteps: 0, ..plain.clone() };
        assert_eq!(refused(config, 1, Some(&[1.0]), None), SamplerError::NoTrainTimesteps { n_train: 0, n_betas: 0 });
        let config = FlowMatchEulerConfig { stochastic_sampling: true, ..plain.clone() };
        assert_eq!(refused(config, 4, None, None), SamplerError::Unsupported { option: "stochastic_sampling" });
        let config = FlowMatchEulerConfig { use_beta_sigmas: true, use_karras_sigmas: true, ..plain.clone() };
        assert_eq!(refused(config, 4, None, None), SamplerError::Conflict);
        for (config, mu) in [
            (FlowMatchEulerConfig { shift: f64::NAN, ..plain }, None),
            (dynamic.clone(), Some(f64::NAN)),
            (dynamic, Some(f64::INFINITY)),
        ] {
            assert!(matches!(refused(config, 4, None, mu), SamplerError::NotFinite { .. }));
        }
    }

    #[test]
    fn the_configuration_has_upstreams_defaults_and_ignores_other_keys() {
        let text = r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "shift_terminal": null}"#;
        let config: FlowMatchEulerConfig = serde_json::from_str(text).expect("a configuration");
        assert_eq!((config.shift, config.num_train_timesteps, config.max_shift), (3.0, 1000, 1.15));
        assert_eq!(config.time_shift_type, TimeShift::Exponential);
        serde_json::from_str::<FlowMatchEulerConfig>(r#"{"time_shift_type": "cubic"}"#).expect_err("no such shift");
    }

    /// diffusers 0.42.1 with torch 2.15: `shift=2.37`, its own sigmas for 5 steps. Rounding the ends of the training
    /// schedule once instead of at every operation changes the last bit.
    #[test]
    fn own_sigmas_are_diffusers_to_the_bit() {
        let config = FlowMatchEulerConfig { shift: 2.37, ..Default::default() };
        let sampler = FlowMatchEuler::new(&config, 5, None, None).expect("a sampler");
        assert_eq!(sampler.sigmas().iter().map(|s| s.to_bits()).collect::<Vec<_>>(), OWN);
        let config = FlowMatchEulerConfig { use_beta_sigmas: true, ..config };
        let sampler = FlowMatchEuler::new(&config, 5, None, None).expect("a sampler");
        assert_eq!(sampler.sigmas().iter().map(|s| s.to_bits()).collect::<Vec<_>>(), BETA);
    }

    const OWN: [u32; 6] = [0x3f80_0000, 0x3f60_8576, 0x3f34_49ca, 0x3ee3_28d0, 0x3bb7_356f, 0];
    const BETA: [u32; 6] = [0x3f80_0000, 0x3f53_46fc, 0x3f00_b735, 0x3e38_9dbd, 0x3bb7_356f, 0];

    #[test]
    fn the_shift_is_linear_in_the_tokens() {
        let config = FlowMatchEulerConfig::default();
        assert!((calculate_shift(256, &config) - 0.5).abs() < 1e-12);
        assert!((calculate_shift(4096, &config) - 1.15).abs() < 1e-12);
    }
}
