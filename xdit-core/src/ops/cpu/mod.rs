//! The CPU kernels behind [`super`]: f32 arithmetic on Burn's Flex tensors, on all cores of the rayon pool.
//!
//! Each function returns `None` when its inputs are not Flex float tensors; the caller then composes Burn
//! operations. Half precision tensors are widened on the way in and narrowed on the way out.
//!
//! **Invariant**: a token's row of any result has the same bits whatever other rows are computed with it and on however
//! many threads. Sequence parallelism is tested for equal bits on this.

mod attention;
mod conv;
mod dense;
mod gemm;
mod group_norm;
mod host;
mod pixels;
mod rows;
mod simd;
#[cfg(test)]
pub(super) mod test;
mod winograd;

pub(super) use attention::attention;
pub(super) use conv::conv2d;
pub(super) use dense::{Panels, dense};
pub(super) use group_norm::{group_norm, moments};
pub(super) use pixels::upsample_nearest_2x;
pub(super) use rows::{activation, gated_residual, layer_norm, merge_attended, modulated_norm, norm_rope};
