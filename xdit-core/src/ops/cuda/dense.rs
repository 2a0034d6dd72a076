//! Dense layers: cuBLASLt's products with what follows them.
#![expect(unsafe_code, reason = "calls cuBLASLt")]

use burn::tensor::{DType, Tensor};

use super::rows::activate;
use crate::cuda::products::{Kind, Operands, Product};
use crate::cuda::raw::{DeviceTensor, enqueue};
use crate::ops::types::Activation;

pub(super) fn kind(dtype: DType) -> Option<Kind> {
    match dtype {
        DType::F32 => Some(Kind::F32),
        DType::F16 => Some(Kind::F16),
        DType::BF16 => Some(Kind::Bf16),
        _ => None,
    }
}

/// Without gaps between its rows, which Burn leaves so that they begin at round addresses: products read it at each call.
pub fn packed(weight: &Tensor<2>) -> Option<Tensor<2>> {
    Some(DeviceTensor::of(weight)?.contiguous().tensor())
}

/// The rows of a tensor `[.., d]`: so many batches of so many rows, each with one stride.
#[derive(Debug, Clone, Copy)]
struct Rows {
    batch: usize,
    n: usize,
    batch_stride: usize,
    stride: usize,
}

impl Rows {
    /// `None` where the rows lie otherwise.
    fn of(x: &DeviceTensor) -> Option<Self> {
        let (dims, strides) = (x.dims(), x.strides());
        let last = dims.len() - 1;
        let d = dims[last];
        if strides[last] != 1 && d != 1 {
            return None;
        }
        // the innermost first; dimensions that go on where the one before ends are one with it
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for axis in (0..last).rev().filter(|axis| dims[*axis] != 1) {
            match runs.last_mut() {
                Some((n, stride)) if strides[axis] == *n * *stride => *n *= dims[axis],
                _ => runs.push((dims[axis], strides[axis])),
            }
        }
        let (n, stride) = runs.first().copied().unwrap_or((1, d));
        let (batch, batch_stride) = runs.get(1).copied().unwrap_or((1, n * stride));
        (runs.len() <= 2 && stride >= d).then_some(Self { batch, n, batch_stride, stride })
    }

    /// As more batches of fewer rows, if they can be seen so.
    fn cut(self, batch: usize) -> Option<Self> {
        match self.batch {
            1 if self.n.is_multiple_of(batch) => {
                let n = self.n / batch;
                Some(Self { batch, n, batch_stride: n * self.stride, stride: self.stride })
            }
            n => (n == batch).then_some(self),
        }
    }
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
    let mut dims = xs[0].dims();
    dims[D - 1] = weight.dims()[0];
    let xs: Vec<DeviceTensor> = xs.iter().map(DeviceTensor::of).collect::<Option<_>>()?;
    let out = xs[0].empty(&dims, weight.dtype());
    if dims.contains(&0) {
        return Some(out.tensor());
    }
    dense_into(xs, weight, bias, act == Activation::GeluTanh, &out)?;
    match act {
        Activation::Identity | Activation::GeluTanh => Some(out.tensor()),
        act => Some(activate(&out, None, act)?.tensor()),
    }
}

/// The same into memory that is there, `[.., out]` by its strides.
pub fn dense_into(
    xs: Vec<DeviceTensor>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    gelu: bool,
    out: &DeviceTensor,
) -> Option<()> {
    let [n, d_in] = weight.dims();
    let weight = DeviceTensor::of(weight)?.contiguous();
    let kind = kind(weight.dtype())?;
    let same = |x: &DeviceTensor| x.dtype() == weight.dtype();
    let bias = match bias {
        Some(bias) => Some(DeviceTensor::of(bias).filter(same)?.contiguous()),
        None => None,
    };
    if !xs.iter().all(same) || !same(out) {
        return None;
    }
    let parts = xs.len();
    let mut to = Rows::of(out)?;
    let mut column = 0;
    for (i, x) in xs.into_iter().enumerate() {
        let x = if Rows::of(&x).is_some() { x } else { x.contiguous() };
        let mut from = Rows::of(&x)?;
        if from.batch != to.batch {
            let batch = from.batch.max(to.batch);
            (from, to) = (from.cut(batch)?, to.cut(batch)?);
        }
        let (k, is_last) = (*x.dims().last()?, i + 1 == parts);
        let bias = bias.as_ref().filter(|_| is_last);
        let (has_bias, gelu, adds) = (bias.is_some(), is_last && gelu, i > 0);
        let product = Product {
            m: from.n,
            k,
            n,
            strides: [from.stride, d_in, to.stride],
            batch: from.batch,
            batch_strides: [from.batch_stride, to.batch_stride],
            kind,
            has_bias,
            gelu,
            adds,
            out_is_f32: false,
            alignment: 0,
        };
        let skip = (column * weight.dtype().size()) as u64;
        enqueue([&x, &weight, bias.unwrap_or(&weight)], [out], move |gpu, [x, weight, bias], [out]| {
            let bias = if has_bias { bias } else { 0 };
            let operands = Operands { x, weight: weight + skip, bias, out };
            let product = Product { alignment: operands.alignment(), ..product };
            // SAFETY: the tensors hold what the product says
            unsafe { gpu.product(&product, operands) }
        });
        column += k;
    }
    Some(())
}
