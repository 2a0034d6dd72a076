//! Group norms: launches of `group_norm.cu`.
#![expect(unsafe_code, reason = "launches kernels")]

use burn::tensor::{DType, Tensor};

use super::pixels::Pixels;
use super::{kernel, readable};
use crate::cuda::gpu::{Grid, args};
use crate::cuda::kernels::Source;
use crate::cuda::raw::enqueue;
use crate::ops::types::GroupNorm;

static SOURCE: Source = Source { name: "group_norm", code: include_str!("group_norm.cu") };

/// Chunks of pixels at most, each summed by one block: two blocks for each multiprocessor of a large GPU.
const CHUNKS: usize = 256;

/// Pixels at least that a thread sums.
const FEW: usize = 8;

/// See [`GroupNorm`].
pub fn group_norm(x: &Tensor<4>, norm: &GroupNorm, silu: bool) -> Option<Tensor<4>> {
    let c = x.dims()[1];
    let vectors = c / 8;
    if !c.is_multiple_of(8) || vectors > 256 || !c.is_multiple_of(norm.n_groups) {
        return None;
    }
    let x = Pixels::of(x)?;
    let (weight, bias) = (readable(&norm.weight)?, readable(&norm.bias)?);
    let dtype = x.x.dtype();
    if weight.dtype() != dtype || bias.dtype() != dtype {
        return None;
    }
    let lines = 256 / vectors;
    let (pixels, groups) = (x.height * x.width, norm.n_groups);
    let per_chunk = pixels.div_ceil(CHUNKS).max(FEW * lines);
    let chunks = pixels.div_ceil(per_chunk);
    let per_block = (per_chunk / 2).max(FEW * lines);
    let parts = x.x.empty(&[x.batch, groups, chunks, 2], DType::F32);
    let out = x.like(1, c);
    let grid = |of: usize, shared: usize| Grid {
        blocks: [pixels.div_ceil(of) as u32, x.batch as u32, 1],
        threads: 256,
        shared: shared as u32,
    };
    let (sums, writes) = (grid(per_chunk, 2 * lines * c * 4), grid(per_block, groups * 8));
    let kernels = ["moments", "normalise"].map(|name| kernel(&SOURCE, name, dtype, ""));
    let eps = norm.eps as f32;
    enqueue([&x.x, &weight, &bias], [&out.x, &parts], move |gpu, [x, weight, bias], [y, parts]| {
        let (pixels, channels, groups) = (pixels as i32, c as i32, groups as i32);
        let (per_chunk, chunks, per_block, silu) = (per_chunk as i32, chunks as i32, per_block as i32, i32::from(silu));
        let moments = args!(x, parts, pixels, channels, groups, per_chunk);
        // SAFETY: `moments`'s parameters; the tensors hold what the sizes say
        unsafe { gpu.launch(&kernels[0], sums, &moments)? };
        let all = args!(x, parts, weight, bias, y, pixels, channels, groups, per_chunk, chunks, per_block, eps, silu);
        // SAFETY: `normalise`'s parameters; the tensors hold what the sizes say
        unsafe { gpu.launch(&kernels[1], writes, &all) }
    });
    Some(out.tensor(c))
}
