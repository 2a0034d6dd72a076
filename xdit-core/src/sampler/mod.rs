//! Samplers: how a prediction moves the latents one step on.

mod ddim;
mod ddpm;
mod dpm_solver_multistep;
mod euler_discrete;
mod flag;
mod flow_match_euler;
mod spacing;
mod training;

use burn::tensor::Tensor;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use ddim::{Ddim, DdimConfig};
pub use ddpm::{Ddpm, DdpmConfig, VarianceType};
pub use dpm_solver_multistep::{Algorithm, DpmSolverMultistep, DpmSolverMultistepConfig, Solver};
pub use euler_discrete::{EulerDiscrete, EulerDiscreteConfig, FinalSigmas, Interpolation, TimestepType};
pub use spacing::TimestepSpacing;
pub use training::{BetaSchedule, PredictionType, Training};

pub use flow_match_euler::{FlowMatchEuler, FlowMatchEulerConfig, TimeShift, calculate_shift};

/// A sampler set up for a number of steps. It does not advance by itself: the step is an argument and the history the
/// caller's, so that any part of the tokens can be stepped at any time.
pub trait Sampler: Send + Sync {
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

    /// Whether step `i` adds new noise, which [`Tokens::noise`] must then bring.
    fn needs_noise(&self, _i: usize) -> bool {
        false
    }

    /// Step `i` of these tokens; returns their new latents, `[batch, tokens, channels]`, f32.
    ///
    /// - `history`: what this function left there for the same tokens at the steps before; empty at the first
    fn step(&self, i: usize, tokens: Tokens, history: &mut History) -> Tensor<3>;
}

/// Any subset of the tokens, to be stepped; each tensor `[batch, tokens, channels]`, f32.
pub struct Tokens {
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

/// The sampler of a class with the options of `scheduler_config.json`. The class is the one that `model_index.json` names:
/// as upstream, whatever class the options were written by (`_class_name`), what this one does not know is ignored.
///
/// # Errors
/// A class that is not built; a configuration that does not parse or cannot work.
pub fn from_config(class: &str, config: &Value, n_steps: usize, flow: Flow) -> Result<Box<dyn Sampler>, SamplerError> {
    Ok(match class {
        "FlowMatchEulerDiscreteScheduler" => {
            let config: FlowMatchEulerConfig = parse(class, config)?;
            let mu = calculate_shift(flow.n_tokens, &config);
            let by_exponent = config.use_dynamic_shifting && config.time_shift_type == TimeShift::Exponential;
            if by_exponent && !(mu.exp() as f32).is_finite() {
                return Err(SamplerError::Shift { mu, n_tokens: flow.n_tokens });
            }
            let sigmas = flow.sigmas.filter(|_| !config.use_flow_sigmas);
            Box::new(FlowMatchEuler::new(&config, n_steps, sigmas.as_deref(), Some(mu))?)
        }
        "DDIMScheduler" => Box::new(Ddim::new(&parse(class, config)?, n_steps, 0.0)?),
        "DDPMScheduler" => Box::new(Ddpm::new(&parse(class, config)?, n_steps)?),
        "DPMSolverMultistepScheduler" => Box::new(DpmSolverMultistep::new(&parse(class, config)?, n_steps)?),
        "EulerDiscreteScheduler" => Box::new(EulerDiscrete::new(&parse(class, config)?, n_steps)?),
        other => return Err(SamplerError::UnknownClass { class: other.into(), supported: SUPPORTED.join(", ") }),
    })
}

/// Classes that [`from_config`] builds.
pub const SUPPORTED: &[&str] = &[
    "FlowMatchEulerDiscreteScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
];

fn parse<T: DeserializeOwned>(class: &str, config: &Value) -> Result<T, SamplerError> {
    serde_path_to_error::deserialize(config)
        .map_err(|e| SamplerError::Config { class: class.into(), message: e.to_string() })
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
    /// Nothing that a model could have been trained with.
    #[error(
        "num_train_timesteps is {n_train} and the number of trained_betas {n_betas}; both must be equal, at least 1 and \
         at most 1048576"
    )]
    NoTrainTimesteps {
        /// The former.
        n_train: usize,
        /// The latter; the former where there are none.
        n_betas: usize,
    },
    /// A step that the training did not have.
    #[error("the scheduler's configuration yields timestep {timestep} of {n_train}")]
    Timestep {
        /// What came out.
        timestep: f64,
        /// How many there are.
        n_train: usize,
    },
    /// A scheduler that is not built.
    #[error("scheduler {class:?} is not supported; supported are {supported}")]
    UnknownClass {
        /// Its class.
        class: String,
        /// What there is.
        supported: String,
    },
    /// A configuration that does not parse.
    #[error("{class} config: {message}")]
    Config {
        /// The scheduler's class.
        class: String,
        /// serde's message.
        message: String,
    },
    /// The configuration needs a shift that depends on the number of tokens.
    #[error("use_dynamic_shifting needs the number of image tokens")]
    NoShift,
    /// Upstream divides infinity by infinity there.
    #[error(
        "the scheduler's dynamic shift e^{mu:.1} leaves the range of numbers: {n_tokens} image tokens are too many for it"
    )]
    Shift {
        /// The exponent.
        mu: f64,
        /// Of the picture.
        n_tokens: usize,
    },
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
