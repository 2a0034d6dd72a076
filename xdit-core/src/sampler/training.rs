//! The noise that a model was trained with, and what it predicts: what DDIM, DDPM, DPM-Solver and Euler share.

use burn::tensor::Tensor;
use serde::Deserialize;

use super::SamplerError;
use super::flag::flag;
use super::spacing::{TimestepSpacing, check_steps};

/// The part of `scheduler_config.json` that says how the training's noise grew, with upstream's defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Training {
    /// Timesteps of the training.
    pub num_train_timesteps: usize,
    /// Variance of the noise of the first timestep.
    pub beta_start: f64,
    /// Variance of the noise of the last.
    pub beta_end: f64,
    /// What is between them.
    pub beta_schedule: BetaSchedule,
    /// All variances, instead.
    pub trained_betas: Option<Vec<f32>>,
    /// Whether the last timestep is made to be noise alone, arXiv 2305.08891.
    #[serde(deserialize_with = "flag")]
    pub rescale_betas_zero_snr: bool,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            rescale_betas_zero_snr: false,
        }
    }
}

/// How variances grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly.
    Linear,
    /// Their roots do.
    ScaledLinear,
    /// So that the signal falls as a squared cosine.
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredCosine,
}

/// More timesteps than any training has.
const MAX_TRAIN: usize = 1 << 20;

impl Training {
    /// The share of the signal that is left at each timestep (`alphas_cumprod`), f32 as upstream keeps it.
    pub(super) fn signal(&self) -> Result<Vec<f32>, SamplerError> {
        let n = self.trained_betas.as_ref().map_or(self.num_train_timesteps, Vec::len);
        if n == 0 || n != self.num_train_timesteps || n > MAX_TRAIN {
            return Err(SamplerError::NoTrainTimesteps { n_train: self.num_train_timesteps, n_betas: n });
        }
        let betas: Vec<f32> = match (&self.trained_betas, self.beta_schedule) {
            (Some(betas), _) => betas.clone(),
            (None, BetaSchedule::Linear) => linspace_f32(self.beta_start as f32, self.beta_end as f32, n),
            (None, BetaSchedule::ScaledLinear) => {
                let roots = linspace_f32(self.beta_start.sqrt() as f32, self.beta_end.sqrt() as f32, n);
                roots.into_iter().map(|x| x * x).collect()
            }
            (None, BetaSchedule::SquaredCosine) => {
                let left = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
                let at = |i: usize| i as f64 / n as f64;
                (0..n).map(|i| (1.0 - left(at(i + 1)) / left(at(i))).min(0.999) as f32).collect()
            }
        };
        let mut signal = products(betas.iter().map(|beta| 1.0 - beta));
        if self.rescale_betas_zero_snr {
            let roots: Vec<f32> = signal.iter().map(|x| x.sqrt()).collect();
            let (first, last) = (roots[0], roots[n - 1]);
            let scale = first / (first - last);
            let squares: Vec<f32> = roots.iter().map(|x| ((x - last) * scale).powi(2)).collect();
            // back to variances, as upstream, which rounds
            let alpha = |i: usize| if i == 0 { squares[0] } else { squares[i] / squares[i - 1] };
            signal = products((0..n).map(|i| 1.0 - (1.0 - alpha(i))));
        }
        match signal.iter().position(|x| !(0.0..=1.0).contains(x)) {
            Some(step) => Err(SamplerError::NotFinite { sigma: signal[step], step, n_steps: n }),
            None => Ok(signal),
        }
    }

    /// As [`signal`](Self::signal), for samplers that divide by the last one: it is never quite zero.
    pub(super) fn signal_above_zero(&self) -> Result<Vec<f32>, SamplerError> {
        let mut signal = self.signal()?;
        if let Some(last) = signal.last_mut().filter(|_| self.rescale_betas_zero_snr) {
            *last = 2.0_f32.powi(-24);
        }
        Ok(signal)
    }
}

/// Timesteps that a sampler takes from the training's table.
pub(super) struct Taken {
    /// The whole table, see [`Training::signal`].
    pub signal: Vec<f32>,
    /// Where in it each step starts, the noisiest first.
    pub at: Vec<usize>,
}

impl Training {
    /// As DDIM and DDPM take them, in whole numbers.
    pub(super) fn take(
        &self,
        spacing: TimestepSpacing,
        offset: usize,
        prediction: PredictionType,
        n_steps: usize,
    ) -> Result<Taken, SamplerError> {
        let signal = self.signal()?;
        let n_train = signal.len();
        check_steps(n_steps, n_train)?;
        let whole = |t: f64| match t.round_ties_even() {
            t if t >= 0.0 && (t as usize) < n_train => Ok(t as usize),
            timestep => Err(SamplerError::Timestep { timestep, n_train }),
        };
        let at = spacing.timesteps(n_train, n_steps, offset).into_iter().map(whole).collect::<Result<Vec<_>, _>>()?;
        prediction.check(at.iter().map(|t| signal[*t]), n_steps)?;
        Ok(Taken { signal, at })
    }
}

/// torch's `linspace` in f32: from both ends to the middle.
fn linspace_f32(from: f32, to: f32, n: usize) -> Vec<f32> {
    let step = (to - from) / (n.max(2) - 1) as f32;
    (0..n).map(|i| if i < n / 2 { from + step * i as f32 } else { to - step * (n - i - 1) as f32 }).collect()
}

/// torch's `cumprod`, which multiplies in f64.
fn products(factors: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut product = 1.0_f64;
    factors
        .map(|factor| {
            product *= f64::from(factor);
            product as f32
        })
        .collect()
}

/// The noise levels of a signal: standard deviation of the noise over that of the signal.
pub(super) fn sigmas(signal: &[f32]) -> Vec<f32> {
    signal.iter().map(|a| ((1.0 - a) / a).sqrt()).collect()
}

/// The table's value at a timestep between two of it, numpy's `interp`.
pub(super) fn interpolate(table: &[f32], at: f64) -> f64 {
    let last = table.len() - 1;
    let low = (at.max(0.0) as usize).min(last);
    let (from, to) = (f64::from(table[low]), f64::from(table[(low + 1).min(last)]));
    (to - from) * (at - low as f64).clamp(0.0, 1.0) + from
}

/// The timestep of a noise level, between two of the training where it falls between them (`_sigma_to_t`).
///
/// - `logs`: logarithms of the training's noise levels, the least noisy first
pub(super) fn timestep_of(sigma: f64, logs: &[f32]) -> f64 {
    let log = sigma.max(1e-10).ln();
    let reached = logs.iter().filter(|x| log >= f64::from(**x)).count();
    let low = reached.saturating_sub(1).min(logs.len().saturating_sub(2));
    let high = (low + 1).min(logs.len() - 1);
    let from = f64::from(logs[low]);
    let along = ((from - log) / f64::from(logs[low] - logs[high])).clamp(0.0, 1.0);
    (1.0 - along) * low as f64 + along * high as f64
}

/// What a model predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// The picture.
    #[serde(alias = "original_sample")]
    Sample,
    /// The velocity, arXiv 2202.00512.
    VPrediction,
}

impl PredictionType {
    /// Whether a prediction at timesteps with these shares of the signal says what picture and noise are.
    pub(super) fn check(self, signal: impl Iterator<Item = f32>, n_steps: usize) -> Result<(), SamplerError> {
        for (step, share) in signal.enumerate() {
            // no noise to be predicted; or noise alone, from which no picture follows
            if share >= 1.0 || (share <= 0.0 && self == Self::Epsilon) {
                return Err(SamplerError::NotFinite { sigma: ((1.0 - share) / share).sqrt(), step, n_steps });
            }
        }
        Ok(())
    }

    /// The picture that a prediction means.
    ///
    /// - `signal`, `noise`: what picture and noise were multiplied by
    pub(super) fn picture(self, latents: &Tensor<3>, prediction: Tensor<3>, signal: f32, noise: f32) -> Tensor<3> {
        match self {
            Self::Epsilon => (latents.clone() - prediction * noise) / signal,
            Self::Sample => prediction,
            Self::VPrediction => latents.clone() * signal - prediction * noise,
        }
    }

    /// The noise that a prediction means.
    pub(super) fn noise(self, latents: &Tensor<3>, prediction: Tensor<3>, signal: f32, noise: f32) -> Tensor<3> {
        match self {
            Self::Epsilon => prediction,
            Self::Sample => (latents.clone() - prediction * signal) / noise,
            Self::VPrediction => prediction * signal + latents.clone() * noise,
        }
    }
}
