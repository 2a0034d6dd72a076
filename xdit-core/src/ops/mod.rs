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
#[cfg(feature = "cuda")]
mod cuda;
mod group_norm;
mod input;
mod linear;
mod norm;
mod rope;
mod tensors;
mod types;

pub use attention::{
    QkvOf, attention, attention_into, cat_tokens, joint_qkv, merge_attended, merge_heads, split_heads,
};
pub use choose::{QuantizationError, check_quantization, is_gpu};
pub use conv::{channels_first, channels_last, pixels_to_tokens, tokens_to_pixels, upsample_nearest_2x};
pub use group_norm::merge_moments;
pub use input::Input;
pub use linear::{Linear, Linears, geglu, linear_cat};
pub use norm::{gated_residual, layer_norm, modulated_norm, rms_norm};
pub use rope::norm_rope;
pub use tensors::{cat, narrow, pieces, put, room, side_by_side, to_dtype, to_f32};
pub use types::{Activation, Attended, Conv2d, GroupNorm, HeadNorm, LayerNorm, RopeTable};
