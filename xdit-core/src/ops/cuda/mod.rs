//! The CUDA kernels behind [`super`], and NVIDIA's products. They take tensors where they are, by their strides.
//!
//! Each function returns `None` when its inputs are not float tensors of a CUDA device, or of sizes that it does not
//! serve; the caller then composes Burn operations.
//!
//! **Invariant**: as on the CPU, a token's row of any result in bf16 and f16 has the same bits whatever other rows are
//! computed with it. Sums run along a row in an order that its length alone decides.

mod attention;
mod conv;
mod conv_kernels;
mod dense;
mod fp8;
mod group_norm;
mod joint;
mod pixels;
mod rows;
mod views;
mod wide_attention;

use burn::tensor::{DType, Tensor};

use crate::cuda::kernels::{Kernel, Source};
use crate::cuda::raw::DeviceTensor;

pub(super) use attention::attention;
pub(super) use conv::{arranged_conv, conv2d};
pub(super) use dense::{dense, dense_beside, dense_onto, packed};
pub(super) use fp8::{dense_fp8, fp8, fp8_weight, joined_fp8};
pub(super) use group_norm::{group_norm, moments};
pub(super) use joint::joint_qkv;
pub(super) use pixels::upsample_nearest_2x;
pub(super) use rows::{
    activation, gated_residual, geglu, layer_norm, merge_attended, modulated_norm, modulated_norm_fp8, norm_rope,
    rms_norm,
};
pub(super) use views::{cat, merge_heads, narrow, put, room, side_by_side, split_heads};

/// A kernel of `source`, compiled for a precision and the sizes in `defines`.
fn kernel(source: &'static Source, name: &'static str, dtype: DType, defines: &str) -> Kernel {
    let precision = match dtype {
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        _ => "F32",
    };
    Kernel { source, name, options: format!("-D{precision} {defines}"), wgmma: None }
}

/// The tensor behind `x`, if kernels can read it: a precision that they know, the last dimension densely packed, every
/// row aligned for loads of 16 bytes. What is not aligned is copied.
fn readable<const D: usize>(x: &Tensor<D>) -> Option<DeviceTensor> {
    let x = DeviceTensor::of(x)?;
    if !matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        return None;
    }
    let (dims, strides) = (x.dims(), x.strides());
    if !dims[D - 1].is_multiple_of(8) || dims.contains(&0) {
        return None;
    }
    let rows_aligned = (0..D - 1).all(|i| dims[i] == 1 || strides[i].is_multiple_of(8));
    if strides[D - 1] == 1 && rows_aligned && x.begins_at_multiple_of(16) { Some(x) } else { Some(x.contiguous()) }
}
