//! Dense layers, whose weights lie in the order in which the `gemm` crate reads them.

use std::ops::Range;

use burn::tensor::{DType, Device, Element, Tensor, TensorData, bf16, f16};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::gemm::{LONGEST_SUM, Mat, Tile, tiles};
use super::host::{Host, buffer, flex_of, tensor, tensor_of};
use super::rows::apply_activation;
use super::simd::vectorised;
use crate::ops::types::Activation;

/// Output features of a panel: what the widest kernel of the `gemm` crate computes at once (AVX-512's).
const PANEL: usize = 64;
/// Output features that a task computes: their weights for [`LONGEST_SUM`] input features stay in a core's cache.
const WIDTH: usize = 2 * PANEL;
/// Rows that a product computes at once: with more the `gemm` crate packs the panel once more, which pays only where
/// it is not packed yet.
const ROWS: usize = 48;

/// The weight of a dense layer as panels of [`PANEL`] output features (the last may have fewer), each
/// `[in, features of the panel]`. The `gemm` crate copies a weight into this order before it multiplies, again for
/// each product and on each rank; one that lies in it is used where it is.
#[derive(Debug, Clone)]
pub struct Panels {
    values: Tensor<1>,
    d_out: usize,
    d_in: usize,
}

impl Panels {
    /// `None` if `weight`, `[out, in]`, is not on the CPU backend or not row-major.
    pub fn of(weight: &Tensor<2>) -> Option<Self> {
        let x = flex_of(weight)?;
        let [d_out, d_in] = weight.dims();
        // the zeros that stand for a missing tensor are one zero in memory, and shall stay so
        if !x.is_contiguous() || d_out * d_in == 0 {
            return None;
        }
        let place = x.layout().start_offset()..x.layout().start_offset() + d_out * d_in;
        let data = match x.dtype() {
            DType::F32 => panels(&x.storage::<f32>()[place], d_in),
            DType::BF16 => panels(&x.storage::<bf16>()[place], d_in),
            DType::F16 => panels(&x.storage::<f16>()[place], d_in),
            _ => return None,
        };
        Some(Self { values: tensor_of(FlexTensor::from_data(data)), d_out, d_in })
    }

    pub fn d_out(&self) -> usize {
        self.d_out
    }

    pub fn device(&self) -> Device {
        self.values.device()
    }

    pub fn dtype(&self) -> DType {
        self.values.dtype()
    }
}

fn panels<T: Element + Default>(rows: &[T], d_in: usize) -> TensorData {
    /// Input features at a time: the part of a panel that is written then stays in the cache.
    const STEP: usize = 16;
    let mut out = vec![T::default(); rows.len()];
    out.par_chunks_mut(PANEL * d_in).zip(rows.par_chunks(PANEL * d_in)).for_each(|(panel, rows)| {
        let width = panel.len() / d_in;
        for (step, part) in panel.chunks_mut(STEP * width).enumerate() {
            for (j, row) in rows.chunks_exact(d_in).enumerate() {
                for (at, x) in part.chunks_exact_mut(width).zip(&row[step * STEP..]) {
                    at[j] = *x;
                }
            }
        }
    });
    TensorData::new(out, [rows.len()])
}

/// See [`crate::ops::linear_cat`].
pub fn dense<const D: usize>(
    xs: &[Tensor<D>],
    weight: &Panels,
    bias: Option<&Tensor<1>>,
    act: Activation,
) -> Tensor<D> {
    let hosts: Vec<_> = xs.iter().map(evenly_spaced_rows).collect();
    let panels = Host::of(&weight.values).expect("made on the CPU");
    let mut dims = xs[0].dims();
    let (m, n) = (hosts[0].0.n_rows(), weight.d_out);
    // A lone token would take another path through the product; a second one keeps its bits those that it has among
    // others. Vectors (of times, of pooled text) are alone on every rank.
    if D == 3 && m == 1 {
        let twice = xs.iter().map(|x| Tensor::cat(vec![x.clone(), x.clone()], 1)).collect::<Vec<_>>();
        return dense(&twice, weight, bias, act).narrow(1, 0, 1);
    }
    let bias = bias.map(|b| Host::rows_of(b).expect("a bias is where its weight is"));
    dims[D - 1] = n;
    let mut out = buffer(m * n);
    let inputs: Vec<_> = hosts
        .iter()
        .map(|(x, stride)| Input { values: x.slice(), d_in: x.dims[x.dims.len() - 1], stride: *stride })
        .collect();
    let d_in = inputs.iter().map(|input| input.d_in).sum::<usize>();
    assert_eq!(d_in, weight.d_in, "input features");
    let product = Product { inputs, panels: panels.slice(), d_in, d_out: n };
    tiles(&mut out, [m, n], WIDTH, |tile, rows, cols| {
        product.write(tile, rows, cols.clone());
        finish(tile, bias.as_ref().map(|b| &b.slice()[cols]), act);
    });
    tensor(out, dims, hosts[0].0.dtype)
}

/// One of the matrices that are multiplied as if they stood side by side.
struct Input<'a> {
    values: &'a [f32],
    d_in: usize,
    /// From row to row.
    stride: usize,
}

/// The inputs times the weight.
struct Product<'a> {
    inputs: Vec<Input<'a>>,
    panels: &'a [f32],
    /// Input features of all inputs together.
    d_in: usize,
    d_out: usize,
}

impl Product<'_> {
    /// Writes a tile of the product.
    fn write(&self, tile: &mut Tile<'_>, rows: Range<usize>, cols: Range<usize>) {
        let mut at = 0;
        for input in &self.inputs {
            for from in (0..input.d_in).step_by(LONGEST_SUM) {
                let k = LONGEST_SUM.min(input.d_in - from);
                let mut row = 0;
                while row < rows.len() {
                    // a last row that were alone takes some from those before it
                    let left = rows.len() - row;
                    let height = if left == ROWS + 1 { ROWS - 6 } else { left.min(ROWS) };
                    let x = Mat {
                        data: &input.values[(rows.start + row) * input.stride + from..],
                        rows: height,
                        cols: k,
                        row_stride: input.stride,
                        col_stride: 1,
                    };
                    for col in cols.clone().step_by(PANEL) {
                        let width = PANEL.min(self.d_out - col);
                        let w = Mat::packed(&self.panels[col * self.d_in + (at + from) * width..], k, width);
                        let first = col - cols.start;
                        tile.part(row..row + height, first..first + width).gemm_at_once(at + from > 0, 1.0, x, w);
                    }
                    row += height;
                }
            }
            at += input.d_in;
        }
    }
}

/// Adds the bias and applies the activation.
fn finish(tile: &mut Tile<'_>, bias: Option<&[f32]>, act: Activation) {
    vectorised(
        #[inline(always)]
        || {
            for i in 0..tile.n_rows() {
                let row = tile.row(i);
                if let Some(bias) = bias {
                    row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
                }
                apply_activation(row, act);
            }
        },
    );
}

/// The rows of `x` and the stride between them; a copy of views that have none.
fn evenly_spaced_rows<const D: usize>(x: &Tensor<D>) -> (Host, usize) {
    let rows = |host: Host| host.row_stride().map(|stride| (host, stride));
    Host::rows_of(x).and_then(rows).unwrap_or_else(|| {
        let d = x.dims()[D - 1];
        let copy: Tensor<2> = x.clone().reshape([x.dims().iter().product::<usize>() / d.max(1), d]);
        Host::rows_of(&copy).and_then(rows).expect("an input is where the weight is")
    })
}
