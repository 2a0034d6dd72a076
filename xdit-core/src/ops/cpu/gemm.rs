//! Matrix products through the `gemm` crate.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

/// Products that the `gemm` crate adds up in one go whatever the size of the result.
pub const LONGEST_SUM: usize = 512;
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

/// Calls `f(tile, its rows, its columns)` on disjoint tiles that cover a row-major `m x n` matrix, in parallel.
///
/// Tiles are at most `width` columns wide, and low enough to give each thread some. No tile has a single row unless
/// the matrix has (see the invariant of this module).
pub fn tiles(
    out: &mut [f32],
    [m, n]: [usize; 2],
    width: usize,
    f: impl Fn(&mut Tile<'_>, Range<usize>, Range<usize>) + Sync,
) {
    /// A tile's columns of this many rows stay in the cache until the last product has been added to them.
    const HEIGHT: usize = 256;
    assert_eq!(out.len(), m * n);
    if out.is_empty() {
        return;
    }
    let across = n.div_ceil(width);
    let down = (4 * rayon::current_num_threads()).div_ceil(across).min(m / 32).max(m.div_ceil(HEIGHT));
    let matrix = Tile { start: out.as_mut_ptr(), rows: m, cols: n, stride: n, _borrow: PhantomData };
    (0..across * down).into_par_iter().for_each(|i| {
        let (row, col) = (i % down, i / down * width);
        let (rows, cols) = (row * m / down..(row + 1) * m / down, col..n.min(col + width));
        f(&mut matrix.shared_part(rows.clone(), cols.clone()), rows, cols);
    });
}

/// A part of a row-major matrix that is being written.
pub struct Tile<'a> {
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
// SAFETY: through a shared reference only `shared_part` is reachable, whose caller keeps the parts disjoint.
unsafe impl Sync for Tile<'_> {}

#[allow(unsafe_code)]
impl Tile<'_> {
    /// Rows `rows` of columns `cols`.
    pub fn part(&mut self, rows: Range<usize>, cols: Range<usize>) -> Tile<'_> {
        self.shared_part(rows, cols)
    }

    /// As [`Tile::part`]; the caller never holds two parts that overlap.
    fn shared_part(&self, rows: Range<usize>, cols: Range<usize>) -> Tile<'_> {
        assert!(rows.start < rows.end && rows.end <= self.rows);
        assert!(cols.start < cols.end && cols.end <= self.cols);
        // SAFETY: inside the matrix by the assertions.
        let start = unsafe { self.start.add(rows.start * self.stride + cols.start) };
        Tile { start, rows: rows.len(), cols: cols.len(), stride: self.stride, _borrow: PhantomData }
    }

    /// The number of rows.
    pub fn n_rows(&self) -> usize {
        self.rows
    }

    #[inline(always)]
    pub fn row(&mut self, i: usize) -> &mut [f32] {
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

    /// As [`Tile::gemm`], in one go: for at most [`LONGEST_SUM`] products of each element.
    pub fn gemm_at_once(&mut self, add: bool, alpha: f32, a: Mat<'_>, b: Mat<'_>) {
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
