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
pub(super) struct Rows {
    pub(super) batch: usize,
    pub(super) n: usize,
    pub(super) batch_stride: usize,
    pub(super) stride: usize,
}

impl Rows {
    /// `None` where the rows lie otherwise.
    pub(super) fn of(x: &DeviceTensor) -> Option<Self> {
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

/// `act([x_0 | x_1 | ..] weight^T + bias)`: a product for each part, the later ones added to the first; one for those that
/// lie side by side in memory.
///
/// - `weight`: `[out, in]`
pub fn dense<const D: usize>(
    xs: &[Tensor<D>],
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    act: Activation,
) -> Option<Tensor<D>> {
    let xs: Vec<DeviceTensor> = xs.iter().map(DeviceTensor::of).collect::<Option<_>>()?;
    let xs = DeviceTensor::joined(&xs, D - 1).map_or(xs, |joined| vec![joined]);
    let out = empty(&xs[0], weight);
    dense_into(xs, weight, bias, act == Activation::GeluTanh, None, &out)?;
    match act {
        Activation::Identity | Activation::GeluTanh => Some(out.tensor()),
        act => Some(activate(&out, None, act)?.tensor()),
    }
}

/// The same for one part into memory that is there, as long as no pass of its own follows.
pub fn dense_beside<const D: usize>(
    x: &Tensor<D>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    act: Activation,
    place: &Tensor<D>,
) -> Option<Tensor<D>> {
    if !matches!(act, Activation::Identity | Activation::GeluTanh) {
        return None;
    }
    let (x, out) = (DeviceTensor::of(x)?, DeviceTensor::of(place)?);
    dense_into(vec![x], weight, bias, act == Activation::GeluTanh, None, &out)?;
    Some(out.tensor())
}

/// `residual + x weight^T + bias`
pub fn dense_onto<const D: usize>(
    residual: &Tensor<D>,
    x: &Tensor<D>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
) -> Option<Tensor<D>> {
    let (residual, x) = (DeviceTensor::of(residual)?, DeviceTensor::of(x)?);
    let out = empty(&x, weight);
    dense_into(vec![x], weight, bias, false, Some(&residual), &out)?;
    Some(out.tensor())
}

/// Memory for what the layer makes of `x`.
fn empty(x: &DeviceTensor, weight: &Tensor<2>) -> DeviceTensor {
    let mut dims = x.dims();
    let last = dims.len() - 1;
    dims[last] = weight.dims()[0];
    x.empty(&dims, weight.dtype())
}

/// The same into memory that is there, `[.., out]` by its strides.
///
/// - `residual`: what is added, of `out`'s shape
pub fn dense_into(
    xs: Vec<DeviceTensor>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    gelu: bool,
    residual: Option<&DeviceTensor>,
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
    if !xs.iter().chain(residual).all(same) || !same(out) || residual.is_some_and(|r| r.dims() != out.dims()) {
        return None;
    }
    if out.dims().contains(&0) {
        return Some(());
    }
    let with_rows = |x: DeviceTensor| if Rows::of(&x).is_some() { x } else { x.contiguous() };
    let residual = residual.cloned().map(with_rows);
    let (parts, whole) = (xs.len(), Rows::of(out)?);
    let mut column = 0;
    for (i, x) in xs.into_iter().enumerate() {
        let x = with_rows(x);
        // the later ones are added to what is there by then
        let added = if i == 0 { residual.as_ref() } else { Some(out) };
        let adds = added.is_some();
        let added = added.unwrap_or(out);
        let (from, onto) = (Rows::of(&x)?, Rows::of(added)?);
        let batch = from.batch.max(whole.batch).max(onto.batch);
        let (from, onto, to) = (from.cut(batch)?, onto.cut(batch)?, whole.cut(batch)?);
        let (k, is_last) = (*x.dims().last()?, i + 1 == parts);
        let bias = bias.as_ref().filter(|_| is_last);
        let (has_bias, gelu) = (bias.is_some(), is_last && gelu);
        let product = Product {
            m: from.n,
            k,
            n,
            strides: [from.stride, d_in, to.stride, onto.stride],
            batch,
            batch_strides: [from.batch_stride, to.batch_stride, onto.batch_stride],
            kind,
            fp8: false,
            has_bias,
            gelu,
            adds,
            out_is_f32: false,
            alignment: 0,
        };
        let skip = (column * weight.dtype().size()) as u64;
        let reads = [&x, &weight, bias.unwrap_or(&weight), added];
        enqueue(reads, [out], move |gpu, [x, weight, bias, added], [out]| {
            let bias = if has_bias { bias } else { 0 };
            let operands = Operands { x, weight: weight + skip, bias, scales: [0; 2], added, out };
            let product = Product { alignment: operands.alignment(), ..product };
            // SAFETY: the tensors hold what the product says
            unsafe { gpu.product(&product, operands) }
        });
        column += k;
    }
    Some(())
}
