//! Kernels that treat each row (a token, or a head of a token) by itself.

use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use super::host::{Host, buffer, rows_per_task, tensor};
use super::simd::{self, vectorised};
use crate::ops::types::{Activation, Attended, HeadNorm, RopeTable};

/// Calls `f(row index, row of the result)` for all rows of a new tensor, in parallel.
fn map_rows(n_rows: usize, len: usize, f: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut out = buffer(n_rows * len);
    let per_task = rows_per_task(n_rows, len);
    if len > 0 {
        out.par_chunks_mut(per_task * len).enumerate().for_each(|(task, rows)| {
            vectorised(
                #[inline(always)]
                || {
                    for (i, row) in rows.chunks_exact_mut(len).enumerate() {
                        f(task * per_task + i, row);
                    }
                },
            );
        });
    }
    out
}

/// In place; the caller has chosen the instructions.
#[inline(always)]
pub fn apply_activation(row: &mut [f32], act: Activation) {
    match act {
        Activation::Identity => {}
        Activation::GeluTanh => row.iter_mut().for_each(|x| *x = simd::gelu_tanh(*x)),
        Activation::Gelu => row.iter_mut().for_each(|x| *x = gelu_erf(*x)),
        Activation::QuickGelu => row.iter_mut().for_each(|x| *x *= simd::sigmoid(1.702 * *x)),
        Activation::Silu => row.iter_mut().for_each(|x| *x *= simd::sigmoid(*x)),
    }
}

fn gelu_erf(x: f32) -> f32 {
    (0.5 * f64::from(x) * (1.0 + libm::erf(f64::from(x) * std::f64::consts::FRAC_1_SQRT_2))) as f32
}

/// See [`Activation::apply`].
pub fn activation<const D: usize>(x: &Tensor<D>, act: Activation) -> Option<Tensor<D>> {
    let host = Host::rows_of(x)?;
    let out = map_rows(
        host.n_rows(),
        host.dims[D - 1],
        #[inline(always)]
        |i, row| {
            row.copy_from_slice(host.row(i));
            apply_activation(row, act);
        },
    );
    Some(tensor(out, x.dims(), host.dtype))
}

/// See [`crate::ops::modulated_norm`].
pub fn modulated_norm(x: &Tensor<3>, shift: &Tensor<2>, scale: &Tensor<2>, eps: f64) -> Option<Tensor<3>> {
    let (host, shift, scale) = (Host::rows_of(x)?, Host::rows_of(shift)?, Host::rows_of(scale)?);
    let n = x.dims()[1];
    Some(tensor(norm_rows(&host, eps, 1.0, |i| (scale.row(i / n), shift.row(i / n))), x.dims(), host.dtype))
}

/// See [`crate::ops::LayerNorm`].
pub fn layer_norm<const D: usize>(x: &Tensor<D>, weight: &Tensor<1>, bias: &Tensor<1>, eps: f64) -> Option<Tensor<D>> {
    let (host, weight, bias) = (Host::rows_of(x)?, Host::rows_of(weight)?, Host::rows_of(bias)?);
    Some(tensor(norm_rows(&host, eps, 0.0, |_| (weight.row(0), bias.row(0))), x.dims(), host.dtype))
}

/// `(x - mean) / sqrt(var + eps) (plus + scale) + shift` for each row, with the scale and shift of row `i`.
fn norm_rows<'a>(host: &Host, eps: f64, plus: f32, of: impl Fn(usize) -> (&'a [f32], &'a [f32]) + Sync) -> Vec<f32> {
    let d = host.dims[host.dims.len() - 1];
    map_rows(
        host.n_rows(),
        d,
        #[inline(always)]
        |i, out| {
            let row = host.row(i);
            let (scale, shift) = of(i);
            let mean = simd::sum(row, |x| x) / d as f32;
            let var = simd::sum(row, |x| (x - mean) * (x - mean)) / d as f32;
            let inverse = 1.0 / (var + eps as f32).sqrt();
            for (((y, x), scale), shift) in out.iter_mut().zip(row).zip(scale).zip(shift) {
                *y = ((x - mean) * inverse).mul_add(plus + scale, *shift);
            }
        },
    )
}

/// See [`crate::ops::gated_residual`].
pub fn gated_residual(x: &Tensor<3>, gate: &Tensor<2>, y: &Tensor<3>) -> Option<Tensor<3>> {
    let (hx, gate, hy) = (Host::rows_of(x)?, Host::rows_of(gate)?, Host::rows_of(y)?);
    let [_, n, d] = x.dims();
    let out = map_rows(
        hx.n_rows(),
        d,
        #[inline(always)]
        |i, out| {
            let gate = gate.row(i / n);
            for (((out, x), y), gate) in out.iter_mut().zip(hx.row(i)).zip(hy.row(i)).zip(gate) {
                *out = gate.mul_add(*y, *x);
            }
        },
    );
    Some(tensor(out, x.dims(), hx.dtype))
}

/// See [`crate::ops::merge_attended`].
pub fn merge_attended(a: &Attended, b: &Attended) -> Option<Attended> {
    let by_token = |x: &Tensor<4>| Host::rows_of(&x.clone().swap_dims(1, 2));
    let (out_a, out_b) = (by_token(&a.out)?, by_token(&b.out)?);
    let (lse_a, lse_b) = (Host::rows_of(&a.lse)?, Host::rows_of(&b.lse)?);
    let [batch, h, n, d] = a.out.dims();
    // each output's share of the sum of exponentials; a row that has seen no key yet has none
    let share = |own: f32, other: f32| {
        let max = own.max(other);
        if max == f32::NEG_INFINITY { 0.0 } else { 1.0 / ((own - max).exp() + (other - max).exp()) * (own - max).exp() }
    };
    let out = map_rows(
        batch * n,
        h * d,
        #[inline(always)]
        |token, out| {
            for (head, out) in out.chunks_exact_mut(d).enumerate() {
                let row = (token / n) * h + head;
                let (own, other) = (lse_a.row(row)[token % n], lse_b.row(row)[token % n]);
                let (wa, wb) = (share(own, other), share(other, own));
                let (a, b) = (out_a.row(token * h + head), out_b.row(token * h + head));
                for ((y, a), b) in out.iter_mut().zip(a).zip(b) {
                    *y = a * wa + b * wb;
                }
            }
        },
    );
    let lse = map_rows(batch * h, n, |row, lse| {
        for ((y, a), b) in lse.iter_mut().zip(lse_a.row(row)).zip(lse_b.row(row)) {
            let max = a.max(*b);
            *y = if max == f32::NEG_INFINITY { max } else { max + ((a - max).exp() + (b - max).exp()).ln() };
        }
    });
    Some(Attended {
        out: tensor(out, [batch, n, h, d], DType::F32).swap_dims(1, 2),
        lse: tensor(lse, [batch, h, n], DType::F32),
    })
}

/// See [`crate::ops::norm_rope`]. The result is a view of token-major memory, `[batch, tokens, heads, head_dim]`, the
/// order in which a dense layer writes heads.
pub fn norm_rope(x: &Tensor<4>, norm: &HeadNorm, rope: Option<&RopeTable>) -> Option<Tensor<4>> {
    let by_token = x.clone().swap_dims(1, 2);
    let host = Host::rows_of(&by_token)?;
    let rope = match rope {
        Some(rope) => Some((Host::rows_of(&rope.cos)?, Host::rows_of(&rope.sin)?)),
        None => None,
    };
    let (weight, bias) = match norm {
        HeadNorm::None => (None, None),
        HeadNorm::Rms { weight, .. } => (Some(Host::rows_of(weight)?), None),
        HeadNorm::Layer(norm) => (Some(Host::rows_of(&norm.weight)?), Some(Host::rows_of(&norm.bias)?)),
    };
    let [b, n, h, d] = by_token.dims();
    let (ones, zeros) = (vec![1.0; d], vec![0.0; d]);
    let weight = weight.as_ref().map_or(&ones[..], |w| w.row(0));
    let bias = bias.as_ref().map_or(&zeros[..], |b| b.row(0));
    let out = map_rows(
        b * n,
        h * d,
        #[inline(always)]
        |token, out| {
            for (head, out) in out.chunks_exact_mut(d).enumerate() {
                let row = host.row(token * h + head);
                let (mean, inverse) = match norm {
                    HeadNorm::None => (0.0, 1.0),
                    HeadNorm::Rms { eps, .. } => {
                        (0.0, 1.0 / (simd::sum(row, |x| x * x) / d as f32 + *eps as f32).sqrt())
                    }
                    HeadNorm::Layer(norm) => {
                        let mean = simd::sum(row, |x| x) / d as f32;
                        let var = simd::sum(row, |x| (x - mean) * (x - mean)) / d as f32;
                        (mean, 1.0 / (var + norm.eps as f32).sqrt())
                    }
                };
                for (((y, x), w), b) in out.iter_mut().zip(row).zip(weight).zip(bias) {
                    *y = (x - mean) * inverse * w + b;
                }
                if let Some((cos, sin)) = &rope {
                    let (cos, sin) = (cos.row(token % n), sin.row(token % n));
                    for (pair, (cos, sin)) in out.chunks_exact_mut(2).zip(cos.iter().zip(sin)) {
                        let (even, odd) = (pair[0], pair[1]);
                        pair[0] = even * cos - odd * sin;
                        pair[1] = odd * cos + even * sin;
                    }
                }
            }
        },
    );
    Some(tensor(out, [b, n, h, d], host.dtype).swap_dims(1, 2))
}
