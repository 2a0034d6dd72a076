//! Convolutions of feature maps in memory with the channels innermost.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::gemm::{Mat, gemm};
use super::host::{Host, buffer};
use super::pixels::Pixels;
use super::winograd::winograd;
use crate::ops::types::Conv2d;

/// See [`Conv2d::forward_within`]. `None` for other kernels than 1x1 and 3x3, and for margins of the former.
pub fn conv2d(
    x: &Tensor<4>,
    conv: &Conv2d,
    [above, below]: [usize; 2],
    residual: Option<&Tensor<4>>,
) -> Option<Tensor<4>> {
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
    let height = x.height - above - below;
    let mut out = buffer(x.batch * height * x.width * c_out);
    match k {
        1 if height == x.height => pointwise(&mut out, &x, weight, bias, residual.as_ref()),
        3 => winograd(&mut out, &x, above, weight, bias, residual.as_ref()),
        _ => return None,
    }
    Some(Pixels { height, ..x }.tensor_like(out, 1, c_out))
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
