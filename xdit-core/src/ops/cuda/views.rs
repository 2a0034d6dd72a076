//! Tensors seen otherwise, and put together: without a copy where memory allows it.
#![expect(unsafe_code, reason = "orders copies")]

use std::ops::Range;

use burn::tensor::Tensor;
use cudarc::driver::sys;

use crate::cuda::CudaError;
use crate::cuda::raw::{DeviceTensor, enqueue};

/// Part of a dimension, a view.
pub fn narrow<const D: usize>(x: &Tensor<D>, dim: usize, range: Range<usize>) -> Option<Tensor<D>> {
    let x = DeviceTensor::of(x)?;
    let (mut dims, strides) = (x.dims(), x.strides());
    dims[dim] = range.len();
    Some(x.view(range.start * strides[dim], &dims, &strides).tensor())
}

/// `[batch, tokens, heads * head_dim] -> [batch, heads, tokens, head_dim]`, a view.
pub fn split_heads(x: &Tensor<3>, n_heads: usize) -> Option<Tensor<4>> {
    let [b, n, d] = x.dims();
    let x = DeviceTensor::of(x)?;
    let strides = x.strides();
    if strides[2] != 1 {
        return None;
    }
    let d = d / n_heads;
    Some(x.view(0, &[b, n_heads, n, d], &[strides[0], d, strides[1], 1]).tensor())
}

/// `[batch, heads, tokens, head_dim] -> [batch, tokens, heads * head_dim]`, a view where heads lie side by side.
pub fn merge_heads(x: &Tensor<4>) -> Option<Tensor<3>> {
    let [b, h, n, d] = x.dims();
    let x = DeviceTensor::of(x)?;
    let strides = x.strides();
    if strides[3] != 1 || (h > 1 && strides[1] != d) {
        return None;
    }
    Some(x.view(0, &[b, n, h * d], &[strides[0], strides[2], 1]).tensor())
}

/// The parts one after the other along `dim`: a view where they lie so in memory, else copied by the copy engine in rows.
pub fn cat<const D: usize>(parts: &[Tensor<D>], dim: usize) -> Option<Tensor<D>> {
    let parts: Vec<DeviceTensor> = parts.iter().map(DeviceTensor::of).collect::<Option<_>>()?;
    if let Some(joined) = DeviceTensor::joined(&parts, dim) {
        return Some(joined.tensor());
    }
    let dtype = parts[0].dtype();
    if parts.iter().any(|part| part.dtype() != dtype) {
        return None;
    }
    let mut dims = parts[0].dims();
    let total: usize = parts.iter().map(|part| part.dims()[dim]).sum();
    dims[dim] = total;
    let out = parts[0].empty(&dims, dtype);
    let mut at = 0;
    for part in parts {
        let n = part.dims()[dim];
        if n > 0 {
            copy_into(part, &out, dim, at);
        }
        at += n;
    }
    Some(out.tensor())
}

/// New memory for tensors of these widths, whose rows lie one beside the other; not yet written.
///
/// - `like`: `[batch, tokens, _]` of the same batch, tokens, precision and device
pub fn side_by_side<const N: usize>(like: &Tensor<3>, widths: [usize; N]) -> Option<[Tensor<3>; N]> {
    let [b, n, _] = like.dims();
    let like = DeviceTensor::of(like)?;
    let width: usize = widths.iter().sum();
    if b * n * width == 0 {
        return None;
    }
    let all = like.empty(&[b, n, width], like.dtype());
    let mut at = 0;
    Some(widths.map(|d| {
        at += d;
        all.view(at - d, &[b, n, d], &[n * width, width, 1]).tensor()
    }))
}

/// Copies `part` to where `out` has its numbers from `at` on along `dim`.
pub(super) fn copy_into(part: DeviceTensor, out: &DeviceTensor, dim: usize, at: usize) {
    // a row: what lies without gaps in both; one more dimension may have gaps, those before are taken one by one
    let rows_within = |x: &DeviceTensor| {
        let (dims, strides) = (x.dims(), x.strides());
        let mut width = 1;
        for axis in (dim + 1..dims.len()).rev() {
            if dims[axis] != 1 && strides[axis] != width {
                return None;
            }
            width *= dims[axis];
        }
        Some(width)
    };
    let part = if rows_within(&part).is_some() { part } else { part.contiguous() };
    let (dims, strides, all) = (part.dims(), part.strides(), out.dims());
    let size = part.dtype().size();
    let inner: usize = dims[dim + 1..].iter().product();
    let (n, total) = (dims[dim], all[dim]);
    // Along the last dimension the numbers themselves are the rows, and the dimension before says how many there are.
    let is_last = dim > 0 && dim + 1 == dims.len() && strides[dim] == 1;
    let first = if is_last { dim - 1 } else { dim };
    let outer: Vec<usize> = offsets(&dims[..first], &strides[..first]);
    let (row, height) = if is_last { (n, dims[first]) } else { (inner, n) };
    let (pitch, to_pitch) = (strides[first], if is_last { total } else { inner });
    // from one of the outer ones to the next, and to this part
    let (step, skip) = if is_last { (dims[first] * total, at) } else { (total * inner, at * inner) };
    enqueue([&part], [out], move |gpu, [from], [to]| {
        for (i, offset) in outer.iter().enumerate() {
            let from = from + (offset * size) as u64;
            let to = to + ((i * step + skip) * size) as u64;
            let copy = sys::CUDA_MEMCPY2D {
                srcXInBytes: 0,
                srcY: 0,
                srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
                srcHost: std::ptr::null(),
                srcDevice: from,
                srcArray: std::ptr::null_mut(),
                srcPitch: if height == 1 { row * size } else { pitch * size },
                dstXInBytes: 0,
                dstY: 0,
                dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
                dstHost: std::ptr::null_mut(),
                dstDevice: to,
                dstArray: std::ptr::null_mut(),
                dstPitch: to_pitch * size,
                WidthInBytes: row * size,
                Height: height,
            };
            // SAFETY: the rows lie within both tensors
            unsafe { sys::cuMemcpy2DAsync_v2(&copy, gpu.stream) }
                .result()
                .map_err(CudaError::driver("cuMemcpy2DAsync"))?;
        }
        Ok(())
    });
}

/// Where each combination of the outer dimensions begins, in order.
fn offsets(dims: &[usize], strides: &[usize]) -> Vec<usize> {
    dims.iter().zip(strides).fold(vec![0], |before, (n, stride)| {
        before.iter().flat_map(|at| (0..*n).map(move |i| at + i * stride)).collect()
    })
}
