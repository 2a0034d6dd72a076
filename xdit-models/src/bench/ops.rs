//! How fast a device does one operation: the same functions that models are written in.

use std::fmt::{self, Display};
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Distribution, ExecutionError, FloatDType, Tensor};
use xdit_core::checkpoint::Quantization;
use xdit_core::dit::attention_scale;
use xdit_core::ops::{Linear, attention};

use crate::bench::work;

/// How long a batch of launches takes, about: long beside the host's wait for it.
const BATCH: Duration = Duration::from_millis(50);
const MOST_LAUNCHES: usize = 200;
const N_BATCHES: usize = 20;
/// After so long there are no more batches, if there are enough for a median.
const PATIENCE: Duration = Duration::from_secs(5);
const FEWEST_BATCHES: usize = 3;

/// An operation and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// `[m, k] -> [m, n]`, with a bias.
    Linear {
        /// Rows.
        m: usize,
        /// Input features.
        k: usize,
        /// Output features.
        n: usize,
    },
    /// One picture's attention.
    Attention {
        /// Heads.
        heads: usize,
        /// Tokens that look.
        queries: usize,
        /// Tokens that are looked at.
        keys: usize,
        /// Channels of a head.
        head_dim: usize,
    },
}

/// Seconds of one launch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Of all batches.
    pub median: f64,
    /// Of the fastest batch.
    pub best: f64,
}

impl Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linear { m, k, n } => write!(f, "linear {m} x {k} x {n}"),
            Self::Attention { heads, queries, keys, head_dim } => {
                write!(f, "attention {heads} x {queries} x {keys} x {head_dim}")
            }
        }
    }
}

impl Op {
    /// A square product, whose rate is what others are compared with.
    pub fn square(n: usize) -> Self {
        Self::Linear { m: n, k: n, n }
    }

    /// Floating-point operations.
    pub fn flops(&self) -> f64 {
        match *self {
            Self::Linear { m, k, n } => work::linear(m, k.saturating_mul(n)).total(),
            Self::Attention { heads, queries, keys, head_dim } => {
                work::attention(queries, keys, heads.saturating_mul(head_dim)).total()
            }
        }
    }

    /// Bytes of its inputs and its result.
    ///
    /// - `size`: bytes of a number
    pub fn bytes(&self, size: usize) -> u64 {
        let product = |numbers: &[usize]| numbers.iter().fold(size as u64, |all, n| all.saturating_mul(*n as u64));
        let parts = match *self {
            // the weight is put in order once
            Self::Linear { m, k, n } => vec![product(&[m, k]), product(&[2, k, n]), product(&[m, n])],
            Self::Attention { heads, queries, keys, head_dim } => {
                vec![product(&[2, heads, queries, head_dim]), product(&[2, heads, keys, head_dim])]
            }
        };
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// Whether it has a weight that is kept so.
    pub fn quantises(&self, kind: Quantization) -> bool {
        matches!(*self, Self::Linear { k, n, .. } if kind.serves([n, k]))
    }

    /// Measures it with random numbers: batches of launches, after each of which the device is waited for.
    ///
    /// - `quantization`: of its weight, where it [has](Self::quantises) such a one and so does the device
    ///
    /// # Errors
    /// What the device says.
    pub fn time(
        &self,
        device: &Device,
        dtype: FloatDType,
        quantization: Option<Quantization>,
    ) -> Result<Rate, ExecutionError> {
        let options = || (device, DType::from(dtype));
        let unit = Distribution::Normal(0.0, 1.0);
        match *self {
            Self::Linear { m, k, n } => {
                let weight = Tensor::<2>::random([n, k], unit, options());
                let bias = Some(Tensor::<1>::zeros([n], options()));
                let layer = quantization.and_then(|kind| Linear::quantised(&weight, bias.clone(), kind));
                let layer = layer.unwrap_or_else(|| Linear::new(weight, bias));
                let x = Tensor::<2>::random([m, k], unit, options());
                rate(device, || layer.forward(x.clone()))
            }
            Self::Attention { heads, queries, keys, head_dim } => {
                // token by token in memory, as projections leave them
                let random = |n| Tensor::<4>::random([1, n, heads, head_dim], unit, options()).swap_dims(1, 2);
                let (q, k, v) = (random(queries), random(keys), random(keys));
                let scale = attention_scale(head_dim);
                rate(device, || attention(q.clone(), k.clone(), v.clone(), None, scale).out)
            }
        }
    }
}

fn rate<const D: usize>(device: &Device, launch: impl Fn() -> Tensor<D>) -> Result<Rate, ExecutionError> {
    let batch = |n: usize| {
        let start = Instant::now();
        // the last result lives until the device is done
        let last = (0..n).map(|_| launch()).last();
        device.sync()?;
        drop(last);
        Ok(start.elapsed())
    };
    // kernels are compiled and chosen first; what failed says so when it is read
    launch().slice(std::array::from_fn::<_, D, _>(|_| 0..1)).try_into_data()?;
    let once = batch(1)?;
    let n = (BATCH.as_secs_f64() / once.as_secs_f64().max(1e-9)) as usize;
    let n = n.clamp(1, MOST_LAUNCHES);
    let (start, mut seconds) = (Instant::now(), Vec::new());
    while seconds.len() < N_BATCHES && (seconds.len() < FEWEST_BATCHES || start.elapsed() < PATIENCE) {
        seconds.push(batch(n)?.as_secs_f64() / n as f64);
    }
    seconds.sort_by(f64::total_cmp);
    Ok(Rate { median: seconds[seconds.len() / 2], best: seconds[0] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_counted_and_timed() {
        let linear = Op::Linear { m: 2, k: 3, n: 5 };
        assert_eq!((linear.flops(), linear.bytes(4)), (60.0, 4 * (6 + 30 + 10)));
        let attention = Op::Attention { heads: 24, queries: 4608, keys: 4608, head_dim: 128 };
        assert_eq!((attention.flops() / 1e9).round(), 261.0);
        assert_eq!(Op::square(usize::MAX).bytes(4), u64::MAX);
        for op in [Op::square(32), Op::Attention { heads: 2, queries: 5, keys: 7, head_dim: 8 }] {
            let rate = op.time(&Device::flex(), FloatDType::F32, None).expect("a rate");
            assert!(rate.best > 0.0 && rate.median >= rate.best, "{rate:?}");
        }
        assert!(Op::square(32).quantises(Quantization::Fp8));
        assert!(!linear.quantises(Quantization::Fp8) && !attention.quantises(Quantization::Fp8));
    }
}
