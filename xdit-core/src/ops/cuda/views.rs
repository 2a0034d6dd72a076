//! Tensors seen otherwise, and put together: without a copy where memory allows it.

use std::ops::Range;

use burn::tensor::Tensor;

use crate::cuda::copies::copy;
use crate::cuda::raw::DeviceTensor;

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

/// New memory for a tensor, not yet written.
pub fn room<const D: usize>(like: &Tensor<D>, shape: [usize; D]) -> Option<Tensor<D>> {
    (!shape.contains(&0)).then_some(DeviceTensor::of(like)?.empty(&shape, like.dtype()).tensor())
}

/// Copies a tensor into memory that is there.
pub fn put<const D: usize>(x: &Tensor<D>, place: &Tensor<D>) -> Option<()> {
    let (x, place) = (DeviceTensor::of(x)?, DeviceTensor::of(place)?);
    if !x.is(&place) {
        copy(&x, &place);
    }
    Some(())
}

/// Copies `part` to where `out` has its numbers from `at` on along `dim`.
pub(super) fn copy_into(part: DeviceTensor, out: &DeviceTensor, dim: usize, at: usize) {
    let is_in_rows = part.strides().last().zip(part.dims().last()).is_none_or(|(stride, n)| *stride == 1 || *n == 1);
    let part = if is_in_rows { part } else { part.contiguous() };
    let strides = out.strides();
    copy(&part, &out.view(at * strides[dim], &part.dims(), &strides));
}
