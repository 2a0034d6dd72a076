//! How noise levels and timesteps are spread over the steps, as numpy does it upstream.

use serde::Deserialize;

use super::SamplerError;

/// More steps than anyone takes.
const MAX_STEPS: usize = 1 << 16;
/// It takes about 5.
const MAX_NEWTON: usize = 20;

/// Whether there is a sensible number of steps.
pub(super) fn check_steps(n_steps: usize, max: usize) -> Result<(), SamplerError> {
    let max = max.min(MAX_STEPS);
    match n_steps {
        0 => Err(SamplerError::NoSteps),
        n if n > max => Err(SamplerError::TooManySteps { n_steps, max }),
        _ => Ok(()),
    }
}

/// Noise levels between the largest and the smallest, instead of those that fall to the timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Respacing {
    /// Karras et al. 2022, equation 5.
    Karras,
    /// Evenly spaced logarithms.
    Exponential,
    /// Quantiles of the beta distribution with both parameters 0.6, arXiv 2407.12173.
    Beta,
}

impl Respacing {
    /// The one that is switched on.
    pub fn chosen(karras: bool, exponential: bool, beta: bool) -> Result<Option<Self>, SamplerError> {
        match (karras, exponential, beta) {
            (false, false, false) => Ok(None),
            (true, false, false) => Ok(Some(Self::Karras)),
            (false, true, false) => Ok(Some(Self::Exponential)),
            (false, false, true) => Ok(Some(Self::Beta)),
            _ => Err(SamplerError::Conflict),
        }
    }

    /// `n` noise levels from `max` to `min`.
    pub fn between(self, max: f64, min: f64, n: usize) -> Vec<f64> {
        match self {
            Self::Karras => {
                let (max, min) = (max.powf(1.0 / 7.0), min.powf(1.0 / 7.0));
                linspace(0.0, 1.0, n).map(|ramp| (max + ramp * (min - max)).powf(7.0)).collect()
            }
            Self::Exponential => linspace(max.ln(), min.ln(), n).map(f64::exp).collect(),
            Self::Beta => linspace(0.0, 1.0, n).map(|p| min + beta_quantile(1.0 - p) * (max - min)).collect(),
        }
    }
}

/// Which of the training's timesteps are taken: table 2 of arXiv 2305.08891.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimestepSpacing {
    /// Evenly from the first to the last.
    Linspace,
    /// Every so many from the first on.
    Leading,
    /// Every so many from the last on.
    Trailing,
}

impl TimestepSpacing {
    /// The largest first; `linspace` is not rounded.
    pub(super) fn timesteps(self, n_train: usize, n_steps: usize, offset: usize) -> Vec<f64> {
        let train = n_train as f64;
        match self {
            Self::Linspace => reversed(linspace(0.0, train - 1.0, n_steps)),
            Self::Leading => leading(n_train / n_steps, n_steps, offset),
            Self::Trailing => trailing(train, train / n_steps as f64),
        }
    }

    /// As DPM-Solver has them: one more than there are steps, without the last.
    ///
    /// - `n_used`: timesteps that are left where the noisiest are cut off
    pub(super) fn solver_timesteps(self, n_train: usize, n_used: usize, n_steps: usize, offset: usize) -> Vec<f64> {
        let mut all = match self {
            Self::Linspace => {
                let even = linspace(0.0, n_used as f64 - 1.0, n_steps + 1);
                reversed(even.map(f64::round_ties_even))
            }
            Self::Leading => leading(n_used / (n_steps + 1), n_steps + 1, offset),
            Self::Trailing => return trailing(n_used as f64, n_train as f64 / n_steps as f64),
        };
        all.pop();
        all
    }
}

fn leading(ratio: usize, n: usize, offset: usize) -> Vec<f64> {
    reversed((0..n).map(|i| (i * ratio + offset) as f64))
}

fn trailing(last: f64, ratio: f64) -> Vec<f64> {
    // numpy's `arange` has this many, which rounding can make one more than there are steps
    let n = (last / ratio).ceil() as usize;
    (0..n).map(|i| (last - i as f64 * ratio).round_ties_even() - 1.0).collect()
}

fn reversed(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.reverse();
    values
}

/// numpy's `linspace` with both ends.
pub(super) fn linspace(from: f64, to: f64, n: usize) -> impl Iterator<Item = f64> {
    let step = (to - from) / (n.max(2) - 1) as f64;
    (0..n).map(move |i| if i > 0 && i + 1 == n { to } else { from + i as f64 * step })
}

/// The quantile `p` of the beta distribution with both parameters 0.6, `scipy.stats.beta.ppf(p, 0.6, 0.6)`.
fn beta_quantile(p: f64) -> f64 {
    const A: f64 = 0.6;
    /// The beta function of both parameters.
    const BETA: f64 = 2.415_344_208_002_471_4;
    // symmetric; below a half the series converges fast
    if p > 0.5 {
        return 1.0 - beta_quantile(1.0 - p);
    }
    // Newton's method for u = x^A, in which the distribution is nearly a line
    let mut u = p * A * BETA;
    for _ in 0..MAX_NEWTON {
        let x = u.powf(1.0 / A);
        let (mut sum, mut term, mut k) = (0.0, 1.0, 0.0);
        while term > f64::EPSILON * 1e-2 {
            sum += term / (A + k);
            k += 1.0;
            term *= x * (k - A) / k;
        }
        let next = u - (u * sum / BETA - p) * A * BETA * (1.0 - x).powf(1.0 - A);
        if (next - u).abs() <= f64::EPSILON * u {
            break;
        }
        u = next;
    }
    u.powf(1.0 / A)
}
