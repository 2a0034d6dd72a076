//! The arithmetic that the models are written in: plain functions over tensors, few enough that a faster kernel can
//! stand behind each of them without touching a model.
//!
//! Every function works on every Burn device by composition of Burn's operations. On the CPU (Burn's Flex backend) the
//! hot ones run in `ops/cpu`: fused, on all cores, without copies or transposes. The two agree to rounding, which the
//! tests at the foot of each file hold. `ops/choose.rs` is the one place that picks: kernels for another device are a
//! folder beside `ops/cpu` and an arm there.
//!
//! Conventions: tokens are `[batch, tokens, d]`; heads are `[batch, heads, tokens, head_dim]` (often a view of
//! `[batch, tokens, heads, head_dim]` memory); weights keep the checkpoint's `[out, in]` layout. Reductions
//! (norms, softmax) are computed in f32 whatever the dtype of the tensors is.
//!
//! A wrong shape is a bug of the caller and panics.

mod attention;
mod choose;
mod conv;
mod cpu;
mod linear;
mod norm;
mod rope;

pub use attention::{Attended, attention, cat_tokens, merge_attended, merge_heads, split_heads};
pub use conv::{Conv2d, GroupNorm, pixels_to_tokens, tokens_to_pixels, upsample_nearest_2x};
pub use linear::{Activation, Linear, geglu, linear_cat};
pub use norm::{HeadNorm, LayerNorm, gated_residual, layer_norm, modulated_norm, rms_norm};
pub use rope::{RopeTable, norm_rope};

use burn::tensor::{DType, Tensor};

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
        _ => Tensor::cat(parts, dim),
    }
}
