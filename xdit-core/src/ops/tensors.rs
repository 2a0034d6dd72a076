//! Precisions, and joining tensors: what the operations here do to tensors before and after the arithmetic.

use std::ops::Range;

use burn::tensor::{DType, Tensor};

use super::choose::choose;
#[cfg(feature = "cuda")]
use super::cuda;

/// `x` in f32, for reductions that half precision would spoil.
pub fn to_f32<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if x.dtype() == DType::F32 { x } else { x.cast(DType::F32) }
}

/// `x` in `dtype`; nothing happens where it already is.
pub fn to_dtype<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}

/// The parts one after the other along `dim`; a single one is not copied.
pub fn cat<const D: usize>(mut parts: Vec<Tensor<D>>, dim: usize) -> Tensor<D> {
    match parts.len() {
        1 => parts.remove(0),
        _ => choose!(&parts[0], cpu: None, cuda: cuda::cat(&parts, dim), portable: Tensor::cat(parts, dim)),
    }
}

/// Part of dimension `dim`; a view where the device knows views.
pub fn narrow<const D: usize>(x: &Tensor<D>, dim: usize, range: Range<usize>) -> Tensor<D> {
    choose!(
        x,
        cpu: None,
        cuda: cuda::narrow(x, dim, range.clone()),
        portable: x.clone().narrow(dim, range.start, range.len()),
    )
}

/// Places for tensors of these widths whose rows lie one beside the other, so that what is written to all of them is one
/// tensor already when [`linear_cat`](super::linear_cat) reads it; `None` where the device has no use for that.
///
/// - `like`: `[batch, tokens, _]`, of the same batch, tokens, precision and device
pub fn side_by_side<const N: usize>(like: &Tensor<3>, widths: [usize; N]) -> [Option<Tensor<3>>; N] {
    let places: Option<[Tensor<3>; N]> = choose!(
        like,
        cpu: None,
        cuda: cuda::side_by_side(like, widths).map(Some),
        portable: {
            let _ = widths;
            None
        },
    );
    places.map_or_else(|| std::array::from_fn(|_| None), |places| places.map(Some))
}

/// Memory for a tensor of `like`'s precision on its device, not yet written, of which [`narrow`] gives views; `None` where the
/// device has no use for that.
pub fn room<const D: usize>(like: &Tensor<D>, shape: [usize; D]) -> Option<Tensor<D>> {
    choose!(like, cpu: None, cuda: cuda::room(like, shape).map(Some), portable: {
        let _ = shape;
        None
    })
}

/// Copies `x` to where `place` is, a view of [`room`], if it is not there already.
///
/// # Panics
/// On devices that give no room.
pub fn put<const D: usize>(x: &Tensor<D>, place: &Tensor<D>) {
    choose!(x, cpu: None, cuda: cuda::put(x, place), portable: unreachable!("{:?} has no room", place.device()));
}

/// Pieces along `dim` that are not empty, where to cut makes views; else `x` alone, whose pieces are then cut by who needs them.
pub fn pieces<const D: usize>(x: Tensor<D>, dim: usize, sizes: &[usize]) -> Vec<Tensor<D>> {
    let cut = |x: &Tensor<D>| {
        let mut at = 0;
        let piece = |n: &usize| {
            at += n;
            narrow(x, dim, at - n..at)
        };
        sizes.iter().filter(|n| **n > 0).map(piece).collect::<Vec<_>>()
    };
    choose!(&x, cpu: None, cuda: Some(cut(&x)).filter(|pieces| !pieces.is_empty()), portable: {
        let _ = cut;
        vec![x]
    })
}
