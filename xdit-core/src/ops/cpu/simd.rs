//! Elementwise functions written so that the compiler vectorises them, run with the widest instructions the CPU has.

use std::sync::LazyLock;

use pulp::Arch;

static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);

/// Runs `f` compiled for the CPU at hand; what `f` calls must be `#[inline(always)]` to profit.
#[inline(always)]
pub fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    ARCH.dispatch(f)
}

/// `e^x` to about 1 ulp; 0 below -87.3 and finite above 88.7 (clamped), NaN stays NaN.
///
/// Cephes' `expf`: `x = n ln 2 + r`, a polynomial for `e^r`, `n` added to the exponent bits. The rounding to `n` adds
/// and subtracts 1.5 * 2^23, which leaves `n` in the low bits of the sum.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.7);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-0.693_359_4, clamped);
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = r.mul_add(1.987_569_1e-4, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r * r, r) + 1.0;
    let y = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits().wrapping_shl(23)));
    if x < -87.3 { 0.0 } else { y }
}

/// `1 / (1 + e^-x)`
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `x (1 + tanh(u)) / 2` is `x sigmoid(2u)`.
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769_2;
    x * sigmoid(TWICE_SQRT_2_OVER_PI * (0.044_715 * x * x).mul_add(x, x))
}

/// The sum of `f(x)` with eight running sums, in an order that depends on the length alone.
#[inline(always)]
pub fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let chunks = x.chunks_exact(16);
    let tail: f32 = chunks.remainder().iter().map(|x| f(*x)).sum();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += f(*x);
        }
    }
    lanes.iter().sum::<f32>() + tail
}

/// The largest value; `-inf` of nothing.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = x.chunks_exact(16);
    let tail = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    lanes.iter().copied().fold(tail, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        for i in -87_000..=88_000 {
            let x = i as f32 * 1e-3;
            let want = f64::from(x).exp();
            let error = (f64::from(exp(x)) - want).abs() / want;
            assert!(error < 2.4e-7, "exp({x}) = {} with relative error {error:e}", exp(x));
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn gelu_keeps_its_tails() {
        assert_eq!(gelu_tanh(50.0), 50.0);
        assert!(gelu_tanh(-50.0).abs() < 1e-30);
        assert_eq!(gelu_tanh(0.0), 0.0);
    }
}
