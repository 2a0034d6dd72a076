//! `DPMSolverMultistepScheduler`: DPM-Solver (arXiv 2206.00927) and DPM-Solver++ (arXiv 2211.01095), which remember the
//! predictions of up to two earlier steps.
//!
//! Mirrors `src/diffusers/schedulers/scheduling_dpmsolver_multistep.py`, whose scalars are f32.

use burn::tensor::Tensor;
use serde::Deserialize;

use super::euler_discrete::FinalSigmas;
use super::flag::flag;
use super::spacing::{Respacing, TimestepSpacing, check_steps, linspace};
use super::training::{PredictionType, Training, interpolate, sigmas, timestep_of};
use super::{History, Sampler, SamplerError, Tokens};

/// `scheduler_config.json`, with upstream's defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct DpmSolverMultistepConfig {
    /// The training's noise.
    #[serde(flatten)]
    pub training: Training,
    /// Steps that a step looks at, itself included: 1 to 3.
    pub solver_order: usize,
    /// What the model predicts.
    pub prediction_type: PredictionType,
    /// Dynamic thresholding; not built, as it needs the whole picture.
    #[serde(deserialize_with = "flag")]
    pub thresholding: bool,
    /// Which equation is solved.
    pub algorithm_type: Algorithm,
    /// How the second order is.
    pub solver_type: Solver,
    /// Whether the last steps, if there are less than 15, look at fewer earlier ones.
    #[serde(deserialize_with = "flag")]
    pub lower_order_final: bool,
    /// Whether the last step looks at none.
    #[serde(deserialize_with = "flag")]
    pub euler_at_final: bool,
    /// Karras et al. 2022, equation 5.
    #[serde(deserialize_with = "flag")]
    pub use_karras_sigmas: bool,
    /// Evenly spaced logarithms.
    #[serde(deserialize_with = "flag")]
    pub use_exponential_sigmas: bool,
    /// Quantiles of the beta distribution with both parameters 0.6, arXiv 2407.12173.
    #[serde(deserialize_with = "flag")]
    pub use_beta_sigmas: bool,
    /// Evenly spaced logarithms of all of the training's noise levels.
    #[serde(deserialize_with = "flag")]
    pub use_lu_lambdas: bool,
    /// Flow matching; not built, `FlowMatchEulerDiscreteScheduler` is.
    #[serde(deserialize_with = "flag")]
    pub use_flow_sigmas: bool,
    /// Where the last step ends.
    pub final_sigmas_type: FinalSigmas,
    /// Timesteps of less signal than this (logarithm of signal over noise) are cut off.
    pub lambda_min_clipped: f64,
    /// Predicted variances; not built, as pipelines throw them away.
    pub variance_type: Option<String>,
    /// Which timesteps are taken.
    pub timestep_spacing: TimestepSpacing,
    /// Added to `leading` timesteps.
    pub steps_offset: usize,
}

/// Which equation is solved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Algorithm {
    /// For the noise.
    #[serde(rename = "dpmsolver")]
    Dpm,
    /// For the picture.
    #[serde(rename = "dpmsolver++", alias = "deis")]
    DpmPlusPlus,
    /// For the noise, with new noise at each step.
    #[serde(rename = "sde-dpmsolver")]
    SdeDpm,
    /// For the picture, with new noise at each step.
    #[serde(rename = "sde-dpmsolver++")]
    SdeDpmPlusPlus,
}

/// How the second order is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Solver {
    /// With the slope in the middle.
    #[serde(alias = "logrho", alias = "bh1", alias = "bh2")]
    Midpoint,
    /// With the slopes at both ends.
    Heun,
}

impl Default for DpmSolverMultistepConfig {
    fn default() -> Self {
        Self {
            training: Training::default(),
            solver_order: 2,
            prediction_type: PredictionType::Epsilon,
            thresholding: false,
            algorithm_type: Algorithm::DpmPlusPlus,
            solver_type: Solver::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            use_lu_lambdas: false,
            use_flow_sigmas: false,
            final_sigmas_type: FinalSigmas::Zero,
            lambda_min_clipped: f64::NEG_INFINITY,
            variance_type: None,
            timestep_spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
        }
    }
}

impl DpmSolverMultistepConfig {
    fn check(&self) -> Result<Option<Respacing>, SamplerError> {
        let unsupported = |option| Err(SamplerError::Unsupported { option });
        if self.thresholding {
            return unsupported("thresholding");
        }
        if self.use_flow_sigmas {
            return unsupported("use_flow_sigmas");
        }
        // other classes' are none to this one
        if matches!(self.variance_type.as_deref(), Some("learned" | "learned_range")) {
            return unsupported("variance_type");
        }
        // upstream has no third order for this one
        let order = if self.algorithm_type == Algorithm::SdeDpm { 1..=2 } else { 1..=3 };
        if !order.contains(&self.solver_order) {
            return unsupported("solver_order");
        }
        // which divides by the noise that is left
        if matches!(self.algorithm_type, Algorithm::Dpm | Algorithm::SdeDpm)
            && self.final_sigmas_type == FinalSigmas::Zero
        {
            return unsupported("final_sigmas_type");
        }
        Respacing::chosen(self.use_karras_sigmas, self.use_exponential_sigmas, self.use_beta_sigmas)
    }
}

/// The sampler.
#[derive(Debug, Clone)]
pub struct DpmSolverMultistep {
    config: DpmSolverMultistepConfig,
    sigmas: Vec<f32>,
    timesteps: Vec<f32>,
}

/// What picture and noise are multiplied by at a noise level, and the logarithm of their ratio.
#[derive(Debug, Clone, Copy)]
struct Level {
    signal: f32,
    noise: f32,
    lambda: f32,
}

impl Level {
    fn of(sigma: f32) -> Self {
        let signal = 1.0 / (sigma * sigma + 1.0).sqrt();
        let noise = sigma * signal;
        Self { signal, noise, lambda: signal.ln() - noise.ln() }
    }
}

impl DpmSolverMultistep {
    /// # Errors
    /// No steps or more than the training had; options that are not built or exclude each other; noise levels that
    /// are not finite.
    pub fn new(config: &DpmSolverMultistepConfig, n_steps: usize) -> Result<Self, SamplerError> {
        let respacing = config.check()?;
        let signal = config.training.signal_above_zero()?;
        let n_train = signal.len();
        check_steps(n_steps, n_train)?;
        let table = sigmas(&signal);
        let logs: Vec<f32> = table.iter().map(|s| s.ln()).collect();

        let lambda = |a: &f32| f64::from(a.sqrt().ln() - (1.0 - a).sqrt().ln());
        let n_used = signal.iter().filter(|a| lambda(a) >= config.lambda_min_clipped).count();
        let spacing = config.timestep_spacing;
        let mut timesteps = spacing.solver_timesteps(n_train, n_used, n_steps, config.steps_offset);
        let mut levels: Vec<f64> = timesteps.iter().map(|t| interpolate(&table, *t)).collect();
        let (most, least) = (n_train - 1, 0);
        let lu = config.use_lu_lambdas;
        if let Some(respacing) = respacing {
            levels = respacing.between(table[most].into(), table[least].into(), n_steps);
        } else if lu {
            levels = linspace(logs[most].into(), logs[least].into(), n_steps).map(f64::exp).collect();
        }
        if respacing.is_some() || lu {
            timesteps = levels.iter().map(|s| timestep_of(*s, &logs)).collect();
            let rounded = lu || respacing == Some(Respacing::Karras);
            if rounded && config.training.beta_schedule != super::training::BetaSchedule::SquaredCosine {
                timesteps.iter_mut().for_each(|t| *t = t.round_ties_even());
            }
        }
        let mut sigmas: Vec<f32> = levels.iter().map(|s| *s as f32).collect();
        if let Some(step) = sigmas.iter().position(|s| !s.is_finite() || *s <= 0.0) {
            return Err(SamplerError::NotFinite { sigma: sigmas[step], step, n_steps });
        }
        sigmas.push(match config.final_sigmas_type {
            FinalSigmas::Zero => 0.0,
            FinalSigmas::SigmaMin => table[0],
        });
        // whole numbers, cut off where they are not
        let timesteps = timesteps.iter().map(|t| t.trunc() as f32).collect();
        let sampler = Self { config: config.clone(), sigmas, timesteps };
        // a step that looks back divides by its own length in lambda and by those before
        let lambda = |i: usize| Level::of(sampler.sigmas[i]).lambda;
        let stands =
            |i: usize| sampler.order(i) > 1 && (i + 1 - sampler.order(i)..=i).any(|k| lambda(k) == lambda(k + 1));
        match (0..sampler.timesteps.len()).find(|i| stands(*i)) {
            Some(step) => Err(SamplerError::NotFinite { sigma: sampler.sigmas[step], step, n_steps }),
            None => Ok(sampler),
        }
    }

    /// Noise levels: one per step, and the last step's end.
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// How many steps step `i` looks at, itself included.
    fn order(&self, i: usize) -> usize {
        let n = self.timesteps.len();
        let few = self.config.lower_order_final && n < 15;
        let final_is_first = self.config.euler_at_final || few || self.config.final_sigmas_type == FinalSigmas::Zero;
        match self.config.solver_order.min(i + 1) {
            _ if i + 1 == n && final_is_first => 1,
            3 if i + 2 == n && few => 2,
            order => order,
        }
    }

    fn is_plus_plus(&self) -> bool {
        matches!(self.config.algorithm_type, Algorithm::DpmPlusPlus | Algorithm::SdeDpmPlusPlus)
    }
}

impl Sampler for DpmSolverMultistep {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn needs_noise(&self, _i: usize) -> bool {
        matches!(self.config.algorithm_type, Algorithm::SdeDpm | Algorithm::SdeDpmPlusPlus)
    }

    fn step(&self, i: usize, tokens: Tokens, history: &mut History) -> Tensor<3> {
        let Tokens { latents, prediction, noise } = tokens;
        let (from, to) = (Level::of(self.sigmas[i]), Level::of(self.sigmas[i + 1]));
        let kind = self.config.prediction_type;
        let converted = match self.is_plus_plus() {
            true => kind.picture(&latents, prediction, from.signal, from.noise),
            false => kind.noise(&latents, prediction, from.signal, from.noise),
        };
        history.predictions.push(converted);
        let n = history.predictions.len();
        if n > self.config.solver_order {
            history.predictions.remove(0);
        }

        let h = to.lambda - from.lambda;
        let factors = Factors::new(&self.config, from, to, h, self.order(i));
        let latest = |back: usize| history.predictions[history.predictions.len() - 1 - back].clone();
        let mut x = latents * factors.latents + latest(0) * factors.value;
        // slopes of the prediction over lambda, in steps of h
        let ratio =
            |back: usize| (Level::of(self.sigmas[i + 1 - back]).lambda - Level::of(self.sigmas[i - back]).lambda) / h;
        match self.order(i) {
            1 => {}
            2 => x = x + (latest(0) - latest(1)) * (1.0 / ratio(1)) * factors.slope,
            _ => {
                let (r0, r1) = (ratio(1), ratio(2));
                let near = (latest(0) - latest(1)) * (1.0 / r0);
                let far = (latest(1) - latest(2)) * (1.0 / r1);
                let bend = near.clone() - far;
                let slope = near + bend.clone() * (r0 / (r0 + r1));
                x = x + slope * factors.slope + bend * (1.0 / (r0 + r1)) * factors.bend;
            }
        }
        match noise {
            Some(noise) if self.needs_noise(i) => x + noise * factors.noise,
            _ => x,
        }
    }
}

/// What a step multiplies the latents, the prediction, its first and second derivative and the new noise by.
struct Factors {
    latents: f32,
    value: f32,
    slope: f32,
    bend: f32,
    noise: f32,
}

impl Factors {
    fn new(config: &DpmSolverMultistepConfig, from: Level, to: Level, h: f32, order: usize) -> Self {
        // the second order of `midpoint` takes half of the value's factor; all else integrates the line
        let half = order == 2 && config.solver_type == Solver::Midpoint;
        let (up, down, twice) = (h.exp(), (-h).exp(), (-2.0 * h).exp());
        match config.algorithm_type {
            Algorithm::DpmPlusPlus => Self {
                latents: to.noise / from.noise,
                value: -(to.signal * (down - 1.0)),
                slope: match half {
                    true => -0.5 * (to.signal * (down - 1.0)),
                    false => to.signal * ((down - 1.0) / h + 1.0),
                },
                bend: -(to.signal * ((down - 1.0 + h) / (h * h) - 0.5)),
                noise: 0.0,
            },
            Algorithm::Dpm => Self {
                latents: to.signal / from.signal,
                value: -(to.noise * (up - 1.0)),
                slope: match half {
                    true => -0.5 * (to.noise * (up - 1.0)),
                    false => -(to.noise * ((up - 1.0) / h - 1.0)),
                },
                bend: -(to.noise * ((up - 1.0 - h) / (h * h) - 0.5)),
                noise: 0.0,
            },
            Algorithm::SdeDpmPlusPlus => Self {
                latents: to.noise / from.noise * down,
                value: to.signal * (1.0 - twice),
                slope: match half {
                    true => 0.5 * (to.signal * (1.0 - twice)),
                    false => to.signal * ((1.0 - twice) / (-2.0 * h) + 1.0),
                },
                bend: to.signal * ((1.0 - twice - 2.0 * h) / (4.0 * h * h) - 0.5),
                noise: to.noise * (1.0 - twice).sqrt(),
            },
            Algorithm::SdeDpm => Self {
                latents: to.signal / from.signal,
                value: -2.0 * (to.noise * (up - 1.0)),
                slope: match half {
                    true => -(to.noise * (up - 1.0)),
                    false => -2.0 * (to.noise * ((up - 1.0) / h - 1.0)),
                },
                bend: 0.0,
                noise: to.noise * ((2.0 * h).exp() - 1.0).sqrt(),
            },
        }
    }
}
