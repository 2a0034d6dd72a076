//! Dense layers in FP8 (e4m3): rows with a scale each, of tokens and of weights. cuBLASLt multiplies the scales into its
//! sums, so that a row's bits depend on nothing beside it.
#![expect(unsafe_code, reason = "launches kernels, calls cuBLASLt")]

use burn::tensor::{DType, Tensor};

use super::dense::{Rows, kind};
use super::rows::{activate, as_rows, rows_kernel};
use super::views::{cat, copy_into};
use crate::cuda::gpu::{Grid, args};
use crate::cuda::products::{Operands, Product};
use crate::cuda::raw::{DeviceTensor, enqueue};
use crate::ops::types::{Activation, Fp8};

/// Vectors of 8 numbers that a thread holds, where a row is long enough: with fewer in flight memory is not kept busy.
const VECTORS: usize = 4;

/// A weight, `[out, in]`; both must be multiples of 16.
pub fn fp8_weight(weight: &Tensor<2>) -> Option<Fp8> {
    let aligned = weight.dims().iter().all(|side| side.is_multiple_of(16));
    if aligned { fp8(std::slice::from_ref(weight)) } else { None }
}

/// Rows of the parts side by side.
pub fn fp8<const D: usize>(parts: &[Tensor<D>]) -> Option<Fp8> {
    let (a, b) = match parts {
        [a] => (a, None),
        [a, b] => (a, Some(b)),
        _ => return fp8(&[cat(parts, D - 1)?]),
    };
    let (dtype, mut dims) = (a.dtype(), a.dims());
    dims[D - 1] += b.map_or(0, |b| b.dims()[D - 1]);
    if !matches!(dtype, DType::BF16 | DType::F16) || b.is_some_and(|b| b.dtype() != dtype) {
        return None;
    }
    let out = Fp8::empty(&DeviceTensor::of(a)?, &dims, dtype);
    if dims.contains(&0) {
        return Some(out);
    }
    let a = as_rows(a)?;
    let b = match b {
        Some(b) => Some(as_rows(b)?),
        None => None,
    };
    quantise(&a, b.as_ref(), &out);
    Some(out)
}

/// - `a`, `b`: `[batch, tokens, d]`
fn quantise(a: &DeviceTensor, b: Option<&DeviceTensor>, out: &Fp8) {
    let (dims, strides) = (a.dims(), a.strides());
    let (tokens, d_a) = (dims[1], dims[2]);
    let d_b = b.map_or(0, |b| b.dims()[2]);
    let b = b.unwrap_or(a);
    let to = b.strides();
    let row = (d_a + d_b) / 8;
    let vectors = row.div_ceil(1024).max(VECTORS.min(row.div_ceil(32)));
    let kernel = rows_kernel("quantise_rows", out.dtype, &format!("-DFP8 -DVECTORS={vectors}"));
    let threads = row.div_ceil(vectors).next_multiple_of(32) as u32;
    let grid = Grid { blocks: [(dims[0] * tokens) as u32, 1, 1], threads, shared: 0 };
    enqueue([a, b], [&out.numbers, &out.scales], move |gpu, [a, b], [y, scales]| {
        let (tokens, d_a, d_b) = (tokens as i32, d_a as i32, d_b as i32);
        let [a_batch, a_token, b_batch, b_token] = [strides[0], strides[1], to[0], to[1]].map(|stride| stride as i64);
        let params = args!(a, b, y, scales, tokens, d_a, d_b, a_batch, a_token, b_batch, b_token);
        // SAFETY: `quantise_rows`' parameters; the tensors hold what the sizes say
        unsafe { gpu.launch(&kernel, grid, &params) }
    });
}

/// Weights one after the other.
pub fn joined_fp8(parts: &[Fp8]) -> Option<Fp8> {
    let first = parts.first()?;
    let d = first.numbers.dims()[1];
    let rows = parts.iter().map(|part| part.numbers.dims()[0]).sum();
    let out = Fp8::empty(&first.numbers, &[rows, d], first.dtype);
    let mut at = 0;
    for part in parts {
        copy_into(part.numbers.clone(), &out.numbers, 0, at);
        copy_into(part.scales.clone(), &out.scales, 0, at);
        at += part.numbers.dims()[0];
    }
    Some(out)
}

/// `act(x weight^T + bias)`
pub fn dense_fp8<const D: usize>(
    x: &Fp8,
    weight: &Fp8,
    bias: Option<&Tensor<1>>,
    act: Activation,
) -> Option<Tensor<D>> {
    let mut dims = x.numbers.dims();
    dims[D - 1] = weight.numbers.dims()[0];
    let out = x.numbers.empty(&dims, weight.dtype);
    fp8_into(x, weight, bias, act == Activation::GeluTanh, &out)?;
    match act {
        Activation::Identity | Activation::GeluTanh => Some(out.tensor()),
        act => Some(activate(&out, None, act)?.tensor()),
    }
}

/// The same into memory that is there, `[.., out]` by its strides.
pub fn fp8_into(x: &Fp8, weight: &Fp8, bias: Option<&Tensor<1>>, gelu: bool, out: &DeviceTensor) -> Option<()> {
    let [n, k] = weight.numbers.dims()[..] else { return None };
    let same = |dtype| dtype == weight.dtype;
    let bias = match bias {
        Some(bias) => Some(DeviceTensor::of(bias).filter(|bias| same(bias.dtype()))?.contiguous()),
        None => None,
    };
    if out.dims().contains(&0) {
        return Some(());
    }
    let to = Rows::of(out)?;
    if !same(x.dtype) || !same(out.dtype()) || *x.numbers.dims().last()? != k || to.batch * to.n != x.scales.dims()[0] {
        return None;
    }
    let (has_bias, m) = (bias.is_some(), to.n);
    let product = Product {
        m,
        k,
        n,
        strides: [k, k, to.stride, to.stride],
        batch: 1,
        batch_strides: [0; 3],
        kind: kind(weight.dtype)?,
        fp8: true,
        has_bias,
        gelu,
        adds: false,
        out_is_f32: false,
        alignment: 0,
    };
    let step = (to.batch_stride * weight.dtype.size()) as u64;
    let (scales, scales_step) = apart(&x.scales, to.batch, m);
    let reads = [&x.numbers, &scales, &weight.numbers, &weight.scales, bias.as_ref().unwrap_or(&weight.scales)];
    enqueue(reads, [out], move |gpu, [x, x_scales, weight, weight_scales, bias], [out]| {
        let bias = if has_bias { bias } else { 0 };
        // one by one: rows of a batch that have a gap between them in `out`
        for i in 0..to.batch as u64 {
            let scales = [x_scales + i * (scales_step * size_of::<f32>()) as u64, weight_scales];
            let (x, out) = (x + i * (m * k) as u64, out + i * step);
            let operands = Operands { x, weight, bias, scales, added: out, out };
            let product = Product { alignment: operands.alignment(), ..product };
            // SAFETY: the tensors hold what the product says
            unsafe { gpu.product(&product, operands)? };
        }
        Ok(())
    });
    Some(())
}

/// The scales of each of a batch of so many rows, from an address that 16 divides on, as kernels may load them four at a
/// time; and from one to the next.
fn apart(scales: &DeviceTensor, batch: usize, rows: usize) -> (DeviceTensor, usize) {
    let step = rows.next_multiple_of(4);
    if batch == 1 || step == rows {
        return (scales.clone(), rows);
    }
    let out = scales.empty(&[batch, step], DType::F32);
    copy_into(scales.view(0, &[batch, rows], &[rows, 1]), &out, 1, 0);
    (out, step)
}
