//! 3x3 convolutions with a quarter of the multiplications.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::gemm::{Mat, gemm};
use super::host::buffer;
use super::pixels::Pixels;
use super::simd::vectorised;

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
///
/// - `above`: rows of `x` before the first that `out` has; it may also end before `x` does
pub fn winograd(out: &mut [f32], x: &Pixels, above: usize, weight: &[f32], bias: &[f32], residual: Option<&Pixels>) {
    let (c_in, c_out) = (x.channels, bias.len());
    if out.is_empty() {
        return;
    }
    let (height, width) = (out.len() / (x.batch * x.width * c_out), x.width);
    let (k, n) = (c_in.next_multiple_of(LANES), c_out.next_multiple_of(LANES));
    let weight = transform_weight(weight, c_in, c_out);
    let bias = bias.iter().copied().chain(std::iter::repeat(0.0)).take(n).collect();

    let (tile_rows, tile_cols) = (height.div_ceil(TILE), width.div_ceil(TILE));
    let tiles_at_once = (TASK_FLOATS / (POINTS * (k + n))).next_multiple_of(8).max(8);
    let per_thread = (x.batch * tile_rows).div_ceil(rayon::current_num_threads());
    let strip = tiles_at_once.div_ceil(tile_cols).min(per_thread).min(tile_rows);
    let tiles_at_once = tiles_at_once.min(strip * tile_cols);

    // tasks own whole rows of one picture, so that their results are slices
    let strips: Vec<_> = out
        .chunks_exact_mut(height * width * c_out)
        .enumerate()
        .flat_map(|(picture, out)| {
            let strips = out.chunks_mut(strip * TILE * width * c_out).enumerate();
            strips.map(move |(i, out)| Strip { picture, first_row: i * strip * TILE, out })
        })
        .collect();
    let convolution = Convolution { x, above, weight, bias, residual, c_out, k, n };
    // one pair of buffers per thread; rayon's `for_each_init` would make one per split
    let buffers = Mutex::new(Vec::new());
    strips.into_par_iter().for_each(|mut strip| {
        let spare = buffers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buffers_here = spare.unwrap_or_else(|| Buffers {
            patches: buffer(POINTS * tiles_at_once * k),
            products: buffer(POINTS * tiles_at_once * n),
        });
        let n_tiles = strip.out.len().div_ceil(TILE * width * c_out) * tile_cols;
        for from in (0..n_tiles).step_by(tiles_at_once) {
            let tiles = from..n_tiles.min(from + tiles_at_once);
            convolution.write(&mut strip, tiles, tile_cols, &mut buffers_here);
        }
        buffers.lock().unwrap_or_else(PoisonError::into_inner).push(buffers_here);
    });
}

/// Rows of one picture of the result, which one task computes.
struct Strip<'a> {
    picture: usize,
    /// The picture's row that `out` starts with.
    first_row: usize,
    /// `[rows, width, out]`
    out: &'a mut [f32],
}

/// A task's transformed tiles before and after the products, `[36, tiles, channels]`.
struct Buffers {
    patches: Vec<f32>,
    products: Vec<f32>,
}

/// What all tasks read.
struct Convolution<'a> {
    x: &'a Pixels,
    /// Rows of `x` before the result's first.
    above: usize,
    /// `[36, k, n]`
    weight: Vec<f32>,
    /// `[n]`
    bias: Vec<f32>,
    residual: Option<&'a Pixels>,
    c_out: usize,
    /// Channels in and out, padded to whole lanes.
    k: usize,
    n: usize,
}

impl Convolution<'_> {
    /// Writes some tiles of a strip, which are counted along its rows of `tile_cols`.
    fn write(&self, strip: &mut Strip<'_>, tiles: Range<usize>, tile_cols: usize, buffers: &mut Buffers) {
        let Buffers { patches, products } = buffers;
        let (m, k, n) = (tiles.len(), self.k, self.n);
        // the strip's row and column of a tile's first pixel
        let place = |t: usize| ((tiles.start + t) / tile_cols * TILE, (tiles.start + t) % tile_cols * TILE);
        vectorised(
            #[inline(always)]
            || {
                for t in 0..m {
                    let (top, left) = place(t);
                    let row = self.above + strip.first_row + top;
                    transform_patch(patches, m, t, k, self.x, strip.picture, row, left);
                }
            },
        );
        for point in 0..POINTS {
            let a = Mat::packed(&patches[point * m * k..(point + 1) * m * k], m, k);
            let w = Mat::packed(&self.weight[point * k * n..(point + 1) * k * n], k, n);
            gemm(&mut products[point * m * n..(point + 1) * m * n], false, 1.0, a, w);
        }
        vectorised(
            #[inline(always)]
            || {
                for t in 0..m {
                    let (top, left) = place(t);
                    for first in (0..self.c_out).step_by(LANES) {
                        self.write_tile(strip, top, left, first, transform_product(products, m, t, n, first));
                    }
                }
            },
        );
    }

    /// Writes what lies inside the picture of the tile at `top`, `left`: the channels from `first` on.
    #[inline(always)]
    fn write_tile(&self, strip: &mut Strip<'_>, top: usize, left: usize, first: usize, tile: [[Lanes; TILE]; TILE]) {
        let (width, c_out) = (self.x.width, self.c_out);
        let lanes = LANES.min(c_out - first);
        for (i, tile) in tile.iter().enumerate() {
            for (j, values) in tile.iter().enumerate() {
                let (y, x) = (top + i, left + j);
                if (y * width + x) * c_out >= strip.out.len() || x >= width {
                    continue;
                }
                let mut values = add(*values, *lanes_at(&self.bias, first));
                if let Some(residual) = self.residual {
                    let pixel = residual.at(strip.picture, strip.first_row + y, x);
                    values = add(values, load(&pixel[first..]));
                }
                let at = (y * width + x) * c_out + first;
                strip.out[at..at + lanes].copy_from_slice(&values[..lanes]);
            }
        }
    }
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
