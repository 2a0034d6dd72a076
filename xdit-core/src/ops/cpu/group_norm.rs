//! Group norms of feature maps in memory with the channels innermost.

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use super::host::{Host, buffer, tensor};
use super::pixels::Pixels;
use super::simd::{self, vectorised};
use crate::ops::types::GroupNorm;

/// Pixels whose sums are taken in f32 before they join the others in f64.
const CHUNK: usize = 128;

/// See [`GroupNorm`].
///
/// - `moments`: means and variances where they are given, `[batch, groups, 2]`
pub fn group_norm(x: &Tensor<4>, norm: &GroupNorm, moments: Option<&Tensor<3>>, silu: bool) -> Option<Tensor<4>> {
    let x = Pixels::of(x)?;
    let (weight, bias) = (Host::rows_of(&norm.weight)?, Host::rows_of(&norm.bias)?);
    let given = match moments {
        Some(moments) => Some(Host::rows_of(moments)?),
        None => None,
    };
    let (c, n) = (x.channels, x.height * x.width);
    let mut out = buffer(x.batch * n * c);
    if out.is_empty() {
        return None;
    }
    for (picture, out) in out.chunks_exact_mut(n * c).enumerate() {
        let moments: Vec<_> = match &given {
            Some(given) => {
                let row = |group: usize| given.row(picture * norm.n_groups + group);
                (0..norm.n_groups).map(|group| [row(group)[0].into(), row(group)[1].into()]).collect()
            }
            None => of_groups(&x, picture, norm.n_groups),
        };
        let affine = Affine::of(&moments, norm, weight.row(0), bias.row(0));
        out.par_chunks_mut(CHUNK * c)
            .enumerate()
            .for_each(|(chunk, out)| affine.write(out, &x, picture, chunk * CHUNK, silu));
    }
    Some(x.tensor_like(out, 1, c))
}

/// See [`GroupNorm::moments`].
pub fn moments(x: &Tensor<4>, n_groups: usize) -> Option<Tensor<3>> {
    let x = Pixels::of(x)?;
    let all = (0..x.batch).flat_map(|picture| of_groups(&x, picture, n_groups));
    let values = all.flatten().map(|x| x as f32).collect();
    Some(tensor(values, [x.batch, n_groups, 2], DType::F32))
}

/// Mean and variance of each group of a picture.
fn of_groups(x: &Pixels, picture: usize, n_groups: usize) -> Vec<[f64; 2]> {
    let n = x.height * x.width;
    let chunks: Vec<_> = (0..n.div_ceil(CHUNK))
        .into_par_iter()
        .map(|chunk| Moments::of(x, picture, chunk * CHUNK..n.min((chunk + 1) * CHUNK)))
        .collect();
    let per_group = x.channels / n_groups;
    let n = chunks.iter().map(|chunk| chunk.n).sum::<f64>() * per_group as f64;
    let of_group = |group: usize| {
        let channels = group * per_group..(group + 1) * per_group;
        let mean_of = |f: &dyn Fn(f64, f64, f64) -> f64| {
            let parts = chunks.iter().flat_map(|Moments { n, mean, squares }| {
                channels.clone().map(move |c| f(*n, f64::from(mean[c]), f64::from(squares[c])))
            });
            parts.sum::<f64>() / n
        };
        let mean = mean_of(&|n, mean, _| n * mean);
        [mean, mean_of(&|n, part, squares| squares + n * (part - mean) * (part - mean))]
    };
    (0..n_groups).map(of_group).collect()
}

/// Pixel `i` of a picture, row by row.
#[inline(always)]
fn pixel(x: &Pixels, picture: usize, i: usize) -> &[f32] {
    x.at(picture, i / x.width, i % x.width)
}

/// Of each channel of some pixels.
struct Moments {
    n: f64,
    mean: Vec<f32>,
    /// The sum of squared distances from the mean.
    squares: Vec<f32>,
}

impl Moments {
    fn of(x: &Pixels, picture: usize, pixels: Range<usize>) -> Self {
        let (mut mean, mut squares) = (vec![0.0_f32; x.channels], vec![0.0_f32; x.channels]);
        vectorised(
            #[inline(always)]
            || {
                for i in pixels.clone() {
                    mean.iter_mut().zip(pixel(x, picture, i)).for_each(|(m, x)| *m += x);
                }
                mean.iter_mut().for_each(|m| *m /= pixels.len() as f32);
                for i in pixels.clone() {
                    for ((s, x), m) in squares.iter_mut().zip(pixel(x, picture, i)).zip(&mean) {
                        *s += (x - m) * (x - m);
                    }
                }
            },
        );
        Self { n: pixels.len() as f64, mean, squares }
    }
}

/// The norm of one picture as `x scale + shift` for each channel.
struct Affine {
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl Affine {
    /// - `moments`: mean and variance of each group
    fn of(moments: &[[f64; 2]], norm: &GroupNorm, weight: &[f32], bias: &[f32]) -> Self {
        let c = weight.len();
        let per_group = c / norm.n_groups;
        let (mut scale, mut shift) = (vec![0.0; c], vec![0.0; c]);
        for (group, [mean, var]) in moments.iter().enumerate() {
            let inverse = 1.0 / (var + norm.eps).sqrt();
            for c in group * per_group..(group + 1) * per_group {
                scale[c] = (f64::from(weight[c]) * inverse) as f32;
                shift[c] = (f64::from(bias[c]) - mean * f64::from(weight[c]) * inverse) as f32;
            }
        }
        Self { scale, shift }
    }

    /// Writes the norm of the pixels from `first` on, followed by SiLU if `silu`.
    fn write(&self, out: &mut [f32], x: &Pixels, picture: usize, first: usize, silu: bool) {
        vectorised(
            #[inline(always)]
            || {
                for (i, out) in out.chunks_exact_mut(x.channels).enumerate() {
                    let row = pixel(x, picture, first + i);
                    for (((y, x), scale), shift) in out.iter_mut().zip(row).zip(&self.scale).zip(&self.shift) {
                        *y = x.mul_add(*scale, *shift);
                    }
                    if silu {
                        out.iter_mut().for_each(|y| *y *= simd::sigmoid(*y));
                    }
                }
            },
        );
    }
}
