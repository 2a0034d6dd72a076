//! Convolutions, group norms and upsampling of feature maps in memory with the channels innermost.

use std::sync::{Mutex, PoisonError};

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::gemm::{Mat, gemm};
use super::simd::{self, vectorised};
use super::{Host, buffer, tensor};
use crate::ops::conv::{Conv2d, GroupNorm};

/// See [`Conv2d`]. `None` for other kernels than 1x1 and 3x3.
pub fn conv2d(x: &Tensor<4>, conv: &Conv2d, residual: Option<&Tensor<4>>) -> Option<Tensor<4>> {
    let x = Pixels::of(x)?;
    let residual = match residual {
        Some(residual) => Some(Pixels::of(residual)?),
        None => None,
    };
    let [c_out, c_in, k, _] = conv.weight.dims();
    assert_eq!(x.channels, c_in, "channels");
    let weight = Host::rows_of(&conv.weight.clone().reshape([c_out, c_in * k * k]))?;
    let bias = Host::rows_of(&conv.bias)?;
    let (weight, bias) = (&weight.slice()[..c_out * c_in * k * k], &bias.slice()[..c_out]);
    let mut out = buffer(x.batch * x.height * x.width * c_out);
    match k {
        1 => pointwise(&mut out, &x, weight, bias, residual.as_ref()),
        3 => winograd(&mut out, &x, weight, bias, residual.as_ref()),
        _ => return None,
    }
    Some(tensor(out, [x.batch, x.height, x.width, c_out], x.host.dtype).permute([0, 3, 1, 2]))
}

/// A feature map whose pixels are slices.
struct Pixels {
    host: Host,
    batch: usize,
    height: usize,
    width: usize,
    channels: usize,
}

impl Pixels {
    fn of(x: &Tensor<4>) -> Option<Self> {
        let [batch, channels, height, width] = x.dims();
        let host = Host::rows_of(&x.clone().permute([0, 2, 3, 1]))?;
        Some(Self { host, batch, height, width, channels })
    }

    #[inline(always)]
    fn at(&self, b: usize, y: usize, x: usize) -> &[f32] {
        let s = &self.host.strides;
        let at = b * s[0] as usize + y * s[1] as usize + x * s[2] as usize;
        &self.host.slice()[at..at + self.channels]
    }
}

/// A 1x1 convolution: one product for each strip of rows.
fn pointwise(out: &mut [f32], x: &Pixels, weight: &[f32], bias: &[f32], residual: Option<&Pixels>) {
    let (c_in, c_out, width) = (x.channels, bias.len(), x.width);
    let weight = Mat::packed(weight, c_out, c_in);
    out.par_chunks_mut(width * c_out).enumerate().for_each(|(row, out)| {
        let (b, y) = (row / x.height, row % x.height);
        let at = b * x.host.strides[0] as usize + y * x.host.strides[1] as usize;
        let pixel_stride = x.host.strides[2] as usize;
        let pixels =
            Mat { data: &x.host.slice()[at..], rows: width, cols: c_in, row_stride: pixel_stride, col_stride: 1 };
        gemm(out, false, 1.0, pixels, weight.transposed());
        for (i, out) in out.chunks_exact_mut(c_out).enumerate() {
            out.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            if let Some(residual) = residual {
                out.iter_mut().zip(residual.at(b, y, i)).for_each(|(y, r)| *y += r);
            }
        }
    });
}

/// Output pixels of a tile along a side, and the input pixels that they depend on.
const TILE: usize = 4;
const PATCH: usize = 6;
const POINTS: usize = PATCH * PATCH;
/// Channels that are transformed at once.
const LANES: usize = 16;
type Lanes = [f32; LANES];

/// Floats of a task's transformed tiles before and after the products: they should stay in the shared cache.
const TASK_FLOATS: usize = 2 << 20;

/// A 3x3 convolution as in Lavin & Gray, "Fast algorithms for convolutional neural networks" (2016), F(4x4, 3x3): a
/// quarter of the multiplications. Patches of 6x6 input pixels are transformed to 36 values, which are independent:
/// for each, tiles times channels times weights is a matrix product. Another transform gives the tile's 4x4 pixels.
fn winograd(out: &mut [f32], x: &Pixels, weight: &[f32], bias: &[f32], residual: Option<&Pixels>) {
    let (c_in, c_out) = (x.channels, bias.len());
    let (height, width) = (x.height, x.width);
    if out.is_empty() {
        return;
    }
    let (k, n) = (c_in.next_multiple_of(LANES), c_out.next_multiple_of(LANES));
    let weight = transform_weight(weight, c_in, c_out);
    let bias: Vec<f32> = bias.iter().copied().chain(std::iter::repeat(0.0)).take(n).collect();

    let (tile_rows, tile_cols) = (height.div_ceil(TILE), width.div_ceil(TILE));
    let tiles_at_once = (TASK_FLOATS / (POINTS * (k + n))).next_multiple_of(8).max(8);
    let per_thread = (x.batch * tile_rows).div_ceil(rayon::current_num_threads());
    let strip = tiles_at_once.div_ceil(tile_cols).min(per_thread).min(tile_rows);
    let tiles_at_once = tiles_at_once.min(strip * tile_cols);

    // tasks own whole rows of one picture, so that their results are slices
    let strips: Vec<_> = out
        .chunks_exact_mut(height * width * c_out)
        .enumerate()
        .flat_map(|(b, picture)| {
            picture.chunks_mut(strip * TILE * width * c_out).enumerate().map(move |(i, rows)| (b, i * strip, rows))
        })
        .collect();
    // one pair of buffers per thread; rayon's `for_each_init` would make one per split
    let buffers = Mutex::new(Vec::new());
    strips.into_par_iter().for_each(|(b, first_row, out)| {
        let spare = buffers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (mut patches, mut products) =
            spare.unwrap_or_else(|| (buffer(POINTS * tiles_at_once * k), buffer(POINTS * tiles_at_once * n)));
        let n_tiles = out.len().div_ceil(TILE * width * c_out) * tile_cols;
        for from in (0..n_tiles).step_by(tiles_at_once) {
            let m = tiles_at_once.min(n_tiles - from);
            let place = |t: usize| ((from + t) / tile_cols, (from + t) % tile_cols * TILE);
            vectorised(
                #[inline(always)]
                || {
                    for t in 0..m {
                        let (row, left) = place(t);
                        transform_patch(&mut patches, m, t, k, x, b, (first_row + row) * TILE, left);
                    }
                },
            );
            for point in 0..POINTS {
                let a = Mat::packed(&patches[point * m * k..(point + 1) * m * k], m, k);
                let w = Mat::packed(&weight[point * k * n..(point + 1) * k * n], k, n);
                gemm(&mut products[point * m * n..(point + 1) * m * n], false, 1.0, a, w);
            }
            vectorised(
                #[inline(always)]
                || {
                    for t in 0..m {
                        let (row, left) = place(t);
                        let top = row * TILE;
                        for first in (0..c_out).step_by(LANES) {
                            let tile = transform_product(&products, m, t, n, first);
                            let lanes = LANES.min(c_out - first);
                            for (i, tile) in tile.iter().enumerate() {
                                for (j, values) in tile.iter().enumerate() {
                                    let (y, x) = (top + i, left + j);
                                    if (y * width + x) * c_out >= out.len() || x >= width {
                                        continue;
                                    }
                                    let mut values = add(*values, *lanes_at(&bias, first));
                                    if let Some(residual) = residual {
                                        let pixel = residual.at(b, first_row * TILE + y, x);
                                        values = add(values, load(&pixel[first..]));
                                    }
                                    let at = (y * width + x) * c_out + first;
                                    out[at..at + lanes].copy_from_slice(&values[..lanes]);
                                }
                            }
                        }
                    }
                },
            );
        }
        buffers.lock().unwrap_or_else(PoisonError::into_inner).push((patches, products));
    });
}

/// `[36, in, out]`, both padded to whole lanes, from `[out, in, 3, 3]`: `G w G^T`.
fn transform_weight(weight: &[f32], c_in: usize, c_out: usize) -> Vec<f32> {
    let (k, n) = (c_in.next_multiple_of(LANES), c_out.next_multiple_of(LANES));
    let mut all = buffer(POINTS * k * n);
    // a row of `all` is one point and one input channel; tasks take a channel of all points
    let mut by_channel: Vec<Vec<&mut [f32]>> = (0..k).map(|_| Vec::with_capacity(POINTS)).collect();
    for (i, row) in all.chunks_exact_mut(n).enumerate() {
        by_channel[i % k].push(row);
    }
    by_channel.truncate(c_in);
    by_channel.par_chunks_mut(8).enumerate().for_each(|(task, channels)| {
        vectorised(
            #[inline(always)]
            || {
                for first in (0..c_out).step_by(LANES) {
                    let lanes = LANES.min(c_out - first);
                    for (i, rows) in channels.iter_mut().enumerate() {
                        let mut w = [[[0.0; LANES]; 3]; 3];
                        let filters = weight[first * c_in * 9..].chunks(c_in * 9).take(lanes);
                        for (lane, filter) in filters.enumerate() {
                            for (tap, value) in filter[(task * 8 + i) * 9..][..9].iter().enumerate() {
                                w[tap / 3][tap % 3][lane] = *value;
                            }
                        }
                        // first along the rows, then along the columns
                        let half: [[Lanes; PATCH]; 3] = w.map(spread);
                        for j in 0..PATCH {
                            let column = spread([half[0][j], half[1][j], half[2][j]]);
                            for (i, values) in column.iter().enumerate() {
                                rows[i * PATCH + j][first..first + LANES].copy_from_slice(values);
                            }
                        }
                    }
                }
            },
        );
    });
    all
}

/// `G w`
#[inline(always)]
fn spread(w: [Lanes; 3]) -> [Lanes; PATCH] {
    let mut out = [[0.0; LANES]; PATCH];
    for l in 0..LANES {
        let (a, b, c) = (w[0][l], w[1][l], w[2][l]);
        let (sum, far) = (a + c, a + 4.0 * c);
        out[0][l] = a / 4.0;
        out[1][l] = -(sum + b) / 6.0;
        out[2][l] = -(sum - b) / 6.0;
        out[3][l] = (far + 2.0 * b) / 24.0;
        out[4][l] = (far - 2.0 * b) / 24.0;
        out[5][l] = c;
    }
    out
}

/// `B^T d B` of the patch around the tile at `top`, `left`, for all channels: tile `t` of `patches`, `[36, m, k]`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "two places, one in each memory")]
fn transform_patch(patches: &mut [f32], m: usize, t: usize, k: usize, x: &Pixels, b: usize, top: usize, left: usize) {
    // the patch starts one pixel above and left of the tile; beyond the picture are zeros
    let pixel: [[&[f32]; PATCH]; PATCH] = std::array::from_fn(|i| {
        std::array::from_fn(|j| {
            let (y, col) = (top + i, left + j);
            let inside = y >= 1 && y <= x.height && col >= 1 && col <= x.width;
            if inside { x.at(b, y - 1, col - 1) } else { &[][..] }
        })
    });
    for first in (0..k).step_by(LANES) {
        let mut half = [[[0.0; LANES]; PATCH]; PATCH];
        for j in 0..PATCH {
            let column: [Lanes; PATCH] = std::array::from_fn(|i| load(pixel[i][j].get(first..).unwrap_or(&[])));
            let column = mix(column);
            for i in 0..PATCH {
                half[i][j] = column[i];
            }
        }
        for (i, row) in half.into_iter().enumerate() {
            for (j, values) in mix(row).iter().enumerate() {
                let at = ((i * PATCH + j) * m + t) * k + first;
                patches[at..at + LANES].copy_from_slice(values);
            }
        }
    }
}

/// `B^T d`
#[inline(always)]
fn mix(d: [Lanes; PATCH]) -> [Lanes; PATCH] {
    let mut out = [[0.0; LANES]; PATCH];
    for l in 0..LANES {
        let (d0, d1, d2, d3, d4, d5) = (d[0][l], d[1][l], d[2][l], d[3][l], d[4][l], d[5][l]);
        let (even, odd) = (d4 - 4.0 * d2, d3 - 4.0 * d1);
        let (even2, odd2) = (d4 - d2, 2.0 * (d3 - d1));
        out[0][l] = 4.0 * d0 - 5.0 * d2 + d4;
        out[1][l] = even + odd;
        out[2][l] = even - odd;
        out[3][l] = even2 + odd2;
        out[4][l] = even2 - odd2;
        out[5][l] = 4.0 * d1 - 5.0 * d3 + d5;
    }
    out
}

/// `A^T p A` of tile `t` of `products`, `[36, m, n]`, for the channels from `first` on.
#[inline(always)]
fn transform_product(products: &[f32], m: usize, t: usize, n: usize, first: usize) -> [[Lanes; TILE]; TILE] {
    let columns: [[Lanes; TILE]; PATCH] = std::array::from_fn(|j| {
        gather(std::array::from_fn(|i| *lanes_at(products, ((i * PATCH + j) * m + t) * n + first)))
    });
    std::array::from_fn(|i| gather(columns.map(|column| column[i])))
}

/// `A^T p`
#[inline(always)]
fn gather(p: [Lanes; PATCH]) -> [Lanes; TILE] {
    let mut out = [[0.0; LANES]; TILE];
    for l in 0..LANES {
        let (sum, difference) = (p[1][l] + p[2][l], p[1][l] - p[2][l]);
        let (sum2, difference2) = (p[3][l] + p[4][l], p[3][l] - p[4][l]);
        out[0][l] = p[0][l] + sum + sum2;
        out[1][l] = difference + 2.0 * difference2;
        out[2][l] = sum + 4.0 * sum2;
        out[3][l] = difference + 8.0 * difference2 + p[5][l];
    }
    out
}

#[inline(always)]
fn lanes_at(x: &[f32], at: usize) -> &Lanes {
    x[at..].first_chunk().expect("memory is padded to whole lanes")
}

/// The first channels of `x`; zeros where there are none.
#[inline(always)]
fn load(x: &[f32]) -> Lanes {
    match x.first_chunk() {
        Some(lanes) => *lanes,
        None => {
            let mut lanes = [0.0; LANES];
            lanes[..x.len()].copy_from_slice(x);
            lanes
        }
    }
}

#[inline(always)]
fn add(mut a: Lanes, b: Lanes) -> Lanes {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    a
}

/// Pixels whose sums are taken in f32 before they join the others in f64.
const CHUNK: usize = 128;

/// See [`GroupNorm`].
pub fn group_norm(x: &Tensor<4>, norm: &GroupNorm, silu: bool) -> Option<Tensor<4>> {
    let x = Pixels::of(x)?;
    let (weight, bias) = (Host::rows_of(&norm.weight)?, Host::rows_of(&norm.bias)?);
    let (weight, bias) = (weight.row(0), bias.row(0));
    let (c, n) = (x.channels, x.height * x.width);
    let mut out = buffer(x.batch * n * c);
    if out.is_empty() {
        return None;
    }
    let per_group = c / norm.n_groups;
    let pixel = |b: usize, i: usize| x.at(b, i / x.width, i % x.width);
    for (b, out) in out.chunks_exact_mut(n * c).enumerate() {
        // mean and sum of squared distances from it, of each channel of each chunk
        let chunks: Vec<_> = (0..n.div_ceil(CHUNK))
            .into_par_iter()
            .map(|chunk| {
                let pixels = chunk * CHUNK..n.min((chunk + 1) * CHUNK);
                let (mut mean, mut squares) = (vec![0.0_f32; c], vec![0.0_f32; c]);
                vectorised(
                    #[inline(always)]
                    || {
                        for i in pixels.clone() {
                            mean.iter_mut().zip(pixel(b, i)).for_each(|(m, x)| *m += x);
                        }
                        mean.iter_mut().for_each(|m| *m /= pixels.len() as f32);
                        for i in pixels.clone() {
                            for ((s, x), m) in squares.iter_mut().zip(pixel(b, i)).zip(&mean) {
                                *s += (x - m) * (x - m);
                            }
                        }
                    },
                );
                (pixels.len() as f64, mean, squares)
            })
            .collect();

        // y = x * scale + shift
        let (mut scale, mut shift) = (vec![0.0; c], vec![0.0; c]);
        for group in 0..norm.n_groups {
            let channels = group * per_group..(group + 1) * per_group;
            let of_all = |f: &dyn Fn(f64, f64, f64) -> f64| {
                let parts = chunks.iter().flat_map(|(n, mean, squares)| {
                    channels.clone().map(move |c| f(*n, f64::from(mean[c]), f64::from(squares[c])))
                });
                parts.sum::<f64>() / (n * per_group) as f64
            };
            let mean = of_all(&|n, mean, _| n * mean);
            let var = of_all(&|n, part, squares| squares + n * (part - mean) * (part - mean));
            let inverse = 1.0 / (var + norm.eps).sqrt();
            for c in channels.clone() {
                scale[c] = (f64::from(weight[c]) * inverse) as f32;
                shift[c] = (f64::from(bias[c]) - mean * f64::from(weight[c]) * inverse) as f32;
            }
        }

        out.par_chunks_mut(CHUNK * c).enumerate().for_each(|(chunk, out)| {
            vectorised(
                #[inline(always)]
                || {
                    for (i, out) in out.chunks_exact_mut(c).enumerate() {
                        let row = pixel(b, chunk * CHUNK + i);
                        for (((y, x), scale), shift) in out.iter_mut().zip(row).zip(&scale).zip(&shift) {
                            *y = x.mul_add(*scale, *shift);
                        }
                        if silu {
                            out.iter_mut().for_each(|y| *y *= simd::sigmoid(*y));
                        }
                    }
                },
            );
        });
    }
    Some(tensor(out, [x.batch, x.height, x.width, c], x.host.dtype).permute([0, 3, 1, 2]))
}

/// See [`crate::ops::upsample_nearest_2x`].
pub fn upsample_nearest_2x(x: &Tensor<4>) -> Option<Tensor<4>> {
    let x = Pixels::of(x)?;
    let (c, row) = (x.channels, 2 * x.width * x.channels);
    let mut out = buffer(4 * x.batch * x.height * x.width * c);
    if row > 0 {
        out.par_chunks_mut(2 * row).enumerate().for_each(|(i, rows)| {
            let (upper, lower) = rows.split_at_mut(row);
            for (j, pair) in upper.chunks_exact_mut(2 * c).enumerate() {
                let pixel = x.at(i / x.height, i % x.height, j);
                pair[..c].copy_from_slice(pixel);
                pair[c..].copy_from_slice(pixel);
            }
            lower.copy_from_slice(upper);
        });
    }
    Some(tensor(out, [x.batch, 2 * x.height, 2 * x.width, c], x.host.dtype).permute([0, 3, 1, 2]))
}
