//! Samplers: how a prediction moves the latents one step on.

mod flow_match_euler;

use burn::tensor::Tensor;

pub use flow_match_euler::{FlowMatchEuler, FlowMatchEulerConfig, TimeShift, calculate_shift};

/// A sampler set up for a number of steps. It does not advance by itself: the step is an argument and the history the
/// caller's, so that any part of the tokens can be stepped at any time.
pub trait Sampler {
    /// The time that the model is told at each step, in `[0, 1000]`, f32 as upstream keeps it.
    fn timesteps(&self) -> &[f32];

    /// What unit normal noise is multiplied by to be the starting latents; `init_noise_sigma` upstream.
    fn initial_scale(&self) -> f32 {
        1.0
    }

    /// What the model is shown for `latents` at step `i`; `scale_model_input` upstream.
    fn model_input(&self, _i: usize, latents: Tensor<3>) -> Tensor<3> {
        latents
    }

    /// Whether step `i` adds new noise, which [`Rows::noise`] must then bring.
    fn needs_noise(&self, _i: usize) -> bool {
        false
    }

    /// Step `i` of these tokens; returns their new latents, `[batch, tokens, channels]`, f32.
    ///
    /// - `history`: what this function left there for the same tokens at the steps before; empty at the first
    fn step(&self, i: usize, rows: Rows, history: &mut History) -> Tensor<3>;
}

/// Any subset of the tokens, to be stepped; each tensor `[batch, tokens, channels]`, f32.
pub struct Rows {
    /// What they are now.
    pub latents: Tensor<3>,
    /// What the model says of them.
    pub prediction: Tensor<3>,
    /// New unit normal noise for them, where [`Sampler::needs_noise`].
    pub noise: Option<Tensor<3>>,
}

/// What a multistep sampler remembers of a set of tokens: predictions of earlier steps, the latest last.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Each `[batch, tokens, channels]`, f32
    pub predictions: Vec<Tensor<3>>,
}

/// What only flow matching takes from a pipeline.
#[derive(Debug, Clone, Default)]
pub struct Flow {
    /// The pipeline's own noise levels, one per step.
    pub sigmas: Option<Vec<f64>>,
    /// Image tokens, for the dynamic shift.
    pub n_tokens: usize,
}

/// TEMP
pub fn from_config(config: &serde_json::Value, n_steps: usize, flow: Flow) -> Result<Box<dyn Sampler>, SamplerError> {
    let config: FlowMatchEulerConfig = serde_json::from_value(config.clone()).map_err(|_| SamplerError::Conflict)?;
    let mu = calculate_shift(flow.n_tokens, &config);
    Ok(Box::new(FlowMatchEuler::new(&config, n_steps, flow.sigmas.as_deref(), Some(mu))?))
}

/// What is wrong with a scheduler's configuration or with the number of steps.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SamplerError {
    /// There must be something to do.
    #[error("num_inference_steps is 0")]
    NoSteps,
    /// More than can be meant.
    #[error("num_inference_steps is {n_steps}, more than {max}")]
    TooManySteps {
        /// What was asked for.
        n_steps: usize,
        /// The largest number that is accepted.
        max: usize,
    },
    /// Each step starts from one sigma.
    #[error("{n_sigmas} sigmas for {n_steps} steps")]
    Length {
        /// How many sigmas there are.
        n_sigmas: usize,
        /// How many steps there are.
        n_steps: usize,
    },
    /// Sigma 1 has no timestep.
    #[error("num_train_timesteps is 0")]
    NoTrainTimesteps,
    /// The configuration needs a shift that depends on the number of tokens.
    #[error("use_dynamic_shifting needs the number of image tokens")]
    NoShift,
    /// An option that is not built.
    #[error("scheduler option {option} is not supported")]
    Unsupported {
        /// Its name in `scheduler_config.json`.
        option: &'static str,
    },
    /// Options that exclude each other.
    #[error("only one of use_karras_sigmas, use_exponential_sigmas and use_beta_sigmas can be set")]
    Conflict,
    /// The numbers of the configuration lead nowhere.
    #[error("the scheduler's configuration yields sigma {sigma} at step {step} of {n_steps}")]
    NotFinite {
        /// What came out.
        sigma: f32,
        /// Where.
        step: usize,
        /// Of how many.
        n_steps: usize,
    },
}
