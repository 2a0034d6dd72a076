//! Convolutions: on Hopper by `conv_sm90.cu`; elsewhere, and in f32, by cuDNN where it is installed, else by `conv.cu` and
//! `conv_f32.cu`; with kernels of one pixel they are dense layers.
//!
//! Kernels read weights as `[out, k, k, in]` memory, both numbers of channels filled out to multiples of 8. A layer's
//! weights are put into that order once, when it is loaded; they stay `[out, in, k, k]` to whoever looks at their shape.
#![expect(unsafe_code, reason = "launches kernels and calls libraries")]

use burn::tensor::{DType, Tensor};

use super::conv_kernels;
use super::dense::kind;
use super::pixels::{Pixels, arranged, is_float};
use crate::cuda::cudnn::{Convolution, Maps};
use crate::cuda::products::{Operands, Product};
use crate::cuda::raw::{DeviceTensor, enqueue};
use crate::ops::types::Conv2d;

/// The layer with its weights in the order of the kernels.
pub fn arranged_conv(conv: &Conv2d) -> Option<Conv2d> {
    let [c_out, c_in, k, _] = conv.weight.dims();
    let (weight, bias) = weights(conv)?;
    let wide = c_in.next_multiple_of(8);
    let weight = weight.view(0, &[c_out, c_in, k, k], &[k * k * wide, 1, k * wide, wide]).tensor();
    Some(Conv2d { weight, bias: bias.view(0, &[c_out], &[1]).tensor() })
}

/// Weight and bias as kernels read them; copied if they are not so yet.
fn weights(conv: &Conv2d) -> Option<(DeviceTensor, DeviceTensor)> {
    let [c_out, c_in, k, _] = conv.weight.dims();
    let (rows, wide) = (c_out.next_multiple_of(8), c_in.next_multiple_of(8));
    let weight = DeviceTensor::of(&conv.weight).filter(|weight| is_float(weight.dtype()))?;
    let bias = DeviceTensor::of(&conv.bias).filter(|bias| bias.dtype() == weight.dtype())?;
    let expected = [k * k * wide, 1, k * wide, wide];
    let lies_so =
        weight.dims().iter().zip(weight.strides()).zip(expected).all(|((n, got), want)| *n == 1 || got == want);
    let weight = match lies_so && weight.begins_at_multiple_of(16) && weight.reaches(rows * k * k * wide) {
        true => weight,
        false => arranged(&weight, rows),
    };
    let bias = match bias.strides() == [1] && bias.begins_at_multiple_of(16) && bias.reaches(rows) {
        true => bias,
        false => {
            let stride = bias.strides()[0];
            arranged(&bias.view(0, &[1, c_out, 1, 1], &[0, stride, 0, 0]), 1)
        }
    };
    Some((weight, bias))
}

/// See [`Conv2d`].
pub fn conv2d(x: &Tensor<4>, conv: &Conv2d, residual: Option<&Tensor<4>>) -> Option<Tensor<4>> {
    let [c_out, c_in, k, _] = conv.weight.dims();
    assert_eq!(x.dims()[1], c_in, "channels");
    let x = Pixels::of(x)?;
    let (weight, bias) = weights(conv)?;
    let dtype = x.x.dtype();
    let residual = match residual {
        Some(residual) => Some(Pixels::of(residual).filter(|residual| residual.x.dtype() == dtype)?),
        None => None,
    };
    if weight.dtype() != dtype || k % 2 == 0 {
        return None;
    }
    let [batch, _, height, width] = [x.batch, c_in, x.height, x.width];
    for residual in residual.iter() {
        let dims = [residual.batch, residual.height, residual.width];
        assert_eq!(dims, [batch, height, width], "pixels of the residual");
    }
    let out = x.like(1, c_out.next_multiple_of(8));
    let convolution = Convolution {
        batch: x.batch,
        height: x.height,
        width: x.width,
        c_in: x.channels,
        c_out: out.channels,
        k,
        kind: kind(dtype)?,
    };
    let has_residual = residual.is_some();
    let added = residual.as_ref().map_or(&x.x, |residual| &residual.x);
    enqueue([&x.x, &weight, &bias, added], [&out.x], move |gpu, [x, weight, bias, residual], [out]| {
        let maps = Maps { x, weight, bias, residual: if has_residual { residual } else { 0 }, out };
        if k == 1 && !has_residual {
            let operands = Operands { x, weight, bias, scales: [0; 2], added: out, out };
            let product = pointwise(&convolution, operands.alignment());
            // SAFETY: the tensors hold what the product says
            return unsafe { gpu.product(&product, operands) };
        }
        // SAFETY: the tensors hold what the convolution says
        unsafe {
            // as fast as cuDNN there, and a pixel has the same bits in any part of a picture
            if gpu.sm == 90 && dtype != DType::F32 {
                return conv_kernels::hopper::convolve(gpu, dtype, &convolution, maps);
            }
            if gpu.convolve(&convolution, maps)? {
                return Ok(());
            }
            conv_kernels::convolve(gpu, dtype, &convolution, maps)
        }
    });
    Some(out.tensor(c_out))
}

/// A convolution of single pixels.
fn pointwise(convolution: &Convolution, alignment: u32) -> Product {
    let Convolution { batch, height, width, c_in, c_out, kind, .. } = *convolution;
    Product {
        m: batch * height * width,
        k: c_in,
        n: c_out,
        strides: [c_in, c_in, c_out, c_out],
        batch: 1,
        batch_strides: [0; 3],
        kind,
        fp8: false,
        has_bias: true,
        gelu: false,
        adds: false,
        out_is_f32: false,
        alignment,
    }
}
