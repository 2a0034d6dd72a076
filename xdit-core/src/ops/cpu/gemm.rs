//! Matrix products through the `gemm` crate.

use std::marker::PhantomData;
use std::ops::Range;

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::rows::apply_activation;
use super::simd::vectorised;
use super::{Host, buffer, tensor};
use crate::ops::linear::{Activation, Linear};

/// Products that the `gemm` crate adds up in one go whatever the size of the result.
const LONGEST_SUM: usize = 512;
/// Elements of a result for which it may take a kernel of its own.
const SMALLEST: usize = 16 * 16;

/// A read-only matrix in memory: `at(i, j) = data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl Mat<'_> {
    /// Row-major without gaps.
    pub fn packed(data: &[f32], rows: usize, cols: usize) -> Mat<'_> {
        Mat { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The same memory, rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    fn check(&self) {
        if self.rows > 0 && self.cols > 0 {
            let last = (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride;
            assert!(last < self.data.len(), "matrix reaches {last}, storage has {}", self.data.len());
        }
    }
}

/// `out = alpha a b` or `out += alpha a b`, on the calling thread.
///
/// - `out`: row-major, `[a.rows, b.cols]`
pub fn gemm(out: &mut [f32], add: bool, alpha: f32, a: Mat<'_>, b: Mat<'_>) {
    let (rows, cols) = (a.rows, b.cols);
    assert_eq!(out.len(), rows * cols, "size of the result");
    Tile { start: out.as_mut_ptr(), rows, cols, stride: cols, _borrow: PhantomData }.gemm(add, alpha, a, b);
}

/// See [`crate::ops::linear_cat`].
pub fn dense<const D: usize>(xs: &[Tensor<D>], layer: &Linear, act: Activation) -> Option<Tensor<D>> {
    let hosts = xs.iter().map(Host::rows_of).collect::<Option<Vec<_>>>()?;
    let strides = hosts.iter().map(Host::row_stride).collect::<Option<Vec<_>>>()?;
    let weight = Host::of(&layer.weight)?;
    let bias = layer.bias.as_ref().and_then(Host::rows_of);

    let mut dims = xs[0].dims();
    let (m, n) = (hosts[0].n_rows(), layer.d_out());
    // A lone token would take another path through the product; a second one keeps its bits those that it has among
    // others. Vectors (of times, of pooled text) are alone on every rank.
    if D == 3 && m == 1 {
        let twice = xs.iter().map(|x| Tensor::cat(vec![x.clone(), x.clone()], 1)).collect::<Vec<_>>();
        return Some(dense(&twice, layer, act)?.narrow(1, 0, 1));
    }
    dims[D - 1] = n;
    let mut out = buffer(m * n);
    let inputs: Vec<_> = hosts.iter().zip(strides).collect();
    tiles(&mut out, m, n, |tile, rows, cols| {
        let mut at = 0;
        for (x, stride) in &inputs {
            let k = x.dims[D - 1];
            let a = Mat {
                data: &x.slice()[rows.start * stride..],
                rows: rows.len(),
                cols: k,
                row_stride: *stride,
                col_stride: 1,
            };
            let (out_step, in_step) = (weight.strides[0] as usize, weight.strides[1] as usize);
            let w = Mat {
                data: &weight.slice()[cols.start * out_step + at * in_step..],
                rows: cols.len(),
                cols: k,
                row_stride: out_step,
                col_stride: in_step,
            };
            tile.gemm(at > 0, 1.0, a, w.transposed());
            at += k;
        }
        assert_eq!(at, weight.dims[1], "input features");
        let bias = bias.as_ref().map(|b| &b.slice()[cols]);
        vectorised(
            #[inline(always)]
            || {
                for i in 0..tile.rows {
                    let row = tile.row(i);
                    if let Some(bias) = bias {
                        row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
                    }
                    apply_activation(row, act);
                }
            },
        );
    });
    Some(tensor(out, dims, hosts[0].dtype))
}

/// Calls `f(tile, its rows, its columns)` on disjoint tiles that cover a row-major `m x n` matrix, one per thread.
///
/// A product packs both its operands, so the cut is along the side that makes the threads pack less in sum. No tile
/// has a single row unless the matrix has (see the invariant of this module).
fn tiles(out: &mut [f32], m: usize, n: usize, f: impl Fn(&mut Tile<'_>, Range<usize>, Range<usize>) + Sync) {
    assert_eq!(out.len(), m * n);
    if out.is_empty() {
        return;
    }
    let threads = rayon::current_num_threads();
    if m > 2 * threads && m + threads * n < threads * m + n {
        let height = m.div_ceil(threads).next_multiple_of(8);
        let height = if m % height == 1 { height + 1 } else { height };
        out.par_chunks_mut(height * n).enumerate().for_each(|(i, out)| {
            let rows = out.len() / n;
            let mut tile = Tile { start: out.as_mut_ptr(), rows, cols: n, stride: n, _borrow: PhantomData };
            f(&mut tile, i * height..i * height + rows, 0..n);
        });
    } else {
        let width = n.div_ceil(threads).next_multiple_of(16);
        let matrix = Tile { start: out.as_mut_ptr(), rows: m, cols: n, stride: n, _borrow: PhantomData };
        (0..n.div_ceil(width)).into_par_iter().for_each(|i| {
            let cols = i * width..n.min((i + 1) * width);
            f(&mut matrix.columns(cols.clone()), 0..m, cols);
        });
    }
}

/// A part of a row-major matrix that is being written.
struct Tile<'a> {
    start: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
    _borrow: PhantomData<&'a mut [f32]>,
}

#[allow(unsafe_code)]
// SAFETY: a tile is an exclusive borrow of its elements, as `&mut [f32]` is; `tiles` hands out disjoint ones.
unsafe impl Send for Tile<'_> {}
#[allow(unsafe_code)]
// SAFETY: through a shared reference only `columns` is reachable, whose caller keeps the parts disjoint.
unsafe impl Sync for Tile<'_> {}

#[allow(unsafe_code)]
impl Tile<'_> {
    /// Columns `cols`; the caller never asks for one column twice.
    fn columns(&self, cols: Range<usize>) -> Tile<'_> {
        assert!(cols.start < cols.end && cols.end <= self.cols);
        // SAFETY: inside the matrix by the assertion.
        let start = unsafe { self.start.add(cols.start) };
        Tile { start, rows: self.rows, cols: cols.len(), stride: self.stride, _borrow: PhantomData }
    }

    #[inline(always)]
    fn row(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows);
        // SAFETY: row `i` lies inside the matrix; the tile is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(i * self.stride), self.cols) }
    }

    /// The tile becomes `alpha a b`, or grows by it, on the calling thread.
    ///
    /// How the `gemm` crate adds up the products of an element depends on the size of the result in two ways, which
    /// are both kept from it here (see the invariant of this module): it cuts long sums differently for small results,
    /// and takes another kernel for very small ones whose operands both lie along the sum.
    fn gemm(&mut self, add: bool, alpha: f32, a: Mat<'_>, b: Mat<'_>) {
        assert_eq!(a.cols, b.rows, "inner dimensions");
        assert_eq!((a.rows, b.cols), (self.rows, self.cols), "dimensions of the result");
        for from in (0..a.cols).step_by(LONGEST_SUM) {
            let k = LONGEST_SUM.min(a.cols - from);
            let a = Mat { data: &a.data[from * a.col_stride..], cols: k, ..a };
            let b = Mat { data: &b.data[from * b.row_stride..], rows: k, ..b };
            if self.rows > 1 && self.rows * self.cols <= SMALLEST && a.col_stride == 1 && b.row_stride == 1 {
                let columns: Vec<f32> =
                    (0..k).flat_map(|j| (0..a.rows).map(move |i| a.data[i * a.row_stride + j])).collect();
                let a = Mat { data: &columns, row_stride: 1, col_stride: a.rows, ..a };
                self.gemm_at_once(add || from > 0, alpha, a, b);
            } else {
                self.gemm_at_once(add || from > 0, alpha, a, b);
            }
        }
    }

    fn gemm_at_once(&mut self, add: bool, alpha: f32, a: Mat<'_>, b: Mat<'_>) {
        a.check();
        b.check();
        if self.rows == 0 || self.cols == 0 {
            return;
        }
        // SAFETY: the checks above keep every access inside its memory; the tile is borrowed exclusively, so it
        // overlaps neither operand; every bit pattern is an f32.
        unsafe {
            gemm::gemm(
                a.rows,
                b.cols,
                a.cols,
                self.start,
                1,
                self.stride as isize,
                add,
                a.data.as_ptr(),
                a.col_stride as isize,
                a.row_stride as isize,
                b.data.as_ptr(),
                b.col_stride as isize,
                b.row_stride as isize,
                1.0,
                alpha,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}
