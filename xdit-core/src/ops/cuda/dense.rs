//! Dense layers: cuBLASLt's products with what follows them.
#![expect(unsafe_code, reason = "calls cuBLASLt")]

use burn::tensor::{DType, Tensor};

use super::rows::activate;
use crate::cuda::products::{Kind, Operands, Product};
use crate::cuda::raw::{DeviceTensor, enqueue};
use crate::ops::types::Activation;

fn kind(dtype: DType) -> Option<Kind> {
    match dtype {
        DType::F32 => Some(Kind::F32),
        DType::F16 => Some(Kind::F16),
        DType::BF16 => Some(Kind::Bf16),
        _ => None,
    }
}

/// The rows of `[.., d]` with one stride between them, if there is one.
fn row_stride(x: &DeviceTensor) -> Option<usize> {
    let (dims, strides) = (x.dims(), x.strides());
    let last = dims.len() - 1;
    if strides[last] != 1 && dims[last] != 1 {
        return None;
    }
    let mut axes = (0..last).rev().filter(|axis| dims[*axis] != 1);
    let Some(inner) = axes.next() else { return Some(dims[last]) };
    let stride = strides[inner];
    let mut expected = stride * dims[inner];
    for axis in axes {
        if strides[axis] != expected {
            return None;
        }
        expected *= dims[axis];
    }
    (stride >= dims[last]).then_some(stride)
}

/// `act([x_0 | x_1 | ..] weight^T + bias)`: a product for each part, the later ones added to the first.
///
/// - `weight`: `[out, in]`
pub fn dense<const D: usize>(
    xs: &[Tensor<D>],
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    act: Activation,
) -> Option<Tensor<D>> {
    let [n, d_in] = weight.dims();
    let weight = DeviceTensor::of(weight)?.contiguous();
    let kind = kind(weight.dtype())?;
    let bias = match bias {
        Some(bias) => Some(DeviceTensor::of(bias).filter(|bias| bias.dtype() == weight.dtype())?.contiguous()),
        None => None,
    };
    let mut dims = xs[0].dims();
    let m: usize = dims[..D - 1].iter().product();
    dims[D - 1] = n;
    let xs: Vec<(DeviceTensor, usize)> = xs
        .iter()
        .map(|x| {
            let x = DeviceTensor::of(x).filter(|x| x.dtype() == weight.dtype())?;
            Some(match row_stride(&x) {
                Some(stride) => (x, stride),
                None => {
                    let x = x.contiguous();
                    let stride = x.dims()[D - 1];
                    (x, stride)
                }
            })
        })
        .collect::<Option<_>>()?;
    let out = weight.empty(&dims, weight.dtype());
    if m == 0 {
        return Some(out.tensor());
    }
    let (mut column, parts) = (0, xs.len());
    for (i, (x, stride)) in xs.iter().enumerate() {
        let (k, is_last) = (x.dims()[D - 1], i + 1 == parts);
        let bias = bias.as_ref().filter(|_| is_last);
        let (has_bias, gelu, adds) = (bias.is_some(), is_last && act == Activation::GeluTanh, i > 0);
        let product = Product { m, k, n, strides: [*stride, d_in, n], kind, has_bias, gelu, adds, alignment: 0 };
        let skip = (column * weight.dtype().size()) as u64;
        enqueue([x, &weight, bias.unwrap_or(&weight)], [&out], move |gpu, [x, weight, bias], [out]| {
            let bias = if has_bias { bias } else { 0 };
            let operands = Operands { x, weight: weight + skip, bias, out };
            let product = Product { alignment: operands.alignment(), ..product };
            // SAFETY: the tensors hold what the product says
            unsafe { gpu.product(&product, operands) }
        });
        column += k;
    }
    match act {
        Activation::Identity | Activation::GeluTanh => Some(out.tensor()),
        act => Some(activate(&out, None, act)?.tensor()),
    }
}
