//! Group norms: launches of `group_norm.cu`.
#![expect(unsafe_code, reason = "launches kernels")]

use burn::tensor::{DType, Tensor};

use super::pixels::Pixels;
use super::{kernel, readable};
use crate::cuda::gpu::{Grid, args};
use crate::cuda::kernels::Source;
use crate::cuda::raw::{DeviceTensor, enqueue};
use crate::ops::types::GroupNorm;

static SOURCE: Source = Source { name: "group_norm", code: include_str!("group_norm.cu") };

/// Chunks of pixels at most, each summed by one block: two blocks for each multiprocessor of a large GPU.
const CHUNKS: usize = 256;

/// Pixels at least that a thread sums.
const FEW: usize = 8;

/// How a map is shared out among blocks.
struct Shares {
    pixels: usize,
    channels: usize,
    groups: usize,
    /// Pixels that a block sums, and how many blocks that makes.
    per_chunk: usize,
    chunks: usize,
}

impl Shares {
    /// `None` for channels that the kernels do not serve.
    fn new([_, c, height, width]: [usize; 4], groups: usize) -> Option<Self> {
        let vectors = c / 8;
        if !c.is_multiple_of(8) || vectors > 256 || !c.is_multiple_of(groups) {
            return None;
        }
        let pixels = height * width;
        let per_chunk = pixels.div_ceil(CHUNKS).max(FEW * (256 / vectors));
        Some(Self { pixels, channels: c, groups, per_chunk, chunks: pixels.div_ceil(per_chunk) })
    }

    /// Blocks of so many pixels each.
    fn grid(&self, batch: usize, pixels: usize, shared: usize) -> Grid {
        Grid { blocks: [self.pixels.div_ceil(pixels) as u32, batch as u32, 1], threads: 256, shared: shared as u32 }
    }

    /// Means, and sums of squared distances from them: `[batch, groups, chunks, 2]`.
    fn sums(&self, x: &Pixels) -> DeviceTensor {
        let parts = x.x.empty(&[x.batch, self.groups, self.chunks, 2], DType::F32);
        let kernel = kernel(&SOURCE, "moments", x.x.dtype(), "");
        let lines = 256 / (self.channels / 8);
        let grid = self.grid(x.batch, self.per_chunk, 2 * lines * self.channels * 4);
        let [pixels, channels, groups] = [self.pixels, self.channels, self.groups].map(|n| n as i32);
        let per_chunk = self.per_chunk as i32;
        enqueue([&x.x], [&parts], move |gpu, [x], [parts]| {
            // SAFETY: `moments`'s parameters; the tensors hold what the sizes say
            unsafe { gpu.launch(&kernel, grid, &args!(x, parts, pixels, channels, groups, per_chunk)) }
        });
        parts
    }
}

/// See [`GroupNorm::moments`].
pub fn moments(x: &Tensor<4>, groups: usize) -> Option<Tensor<3>> {
    let shares = Shares::new(x.dims(), groups)?;
    let x = Pixels::of(x)?;
    let parts = shares.sums(&x);
    let out = x.x.empty(&[x.batch, groups, 2], DType::F32);
    let kernel = kernel(&SOURCE, "join", x.x.dtype(), "");
    let grid = Grid { blocks: [groups as u32, x.batch as u32, 1], threads: 32, shared: 0 };
    let [pixels, of_group] = [shares.pixels, shares.channels / groups].map(|n| n as i32);
    let [per_chunk, chunks] = [shares.per_chunk, shares.chunks].map(|n| n as i32);
    enqueue([&parts], [&out], move |gpu, [parts], [out]| {
        // SAFETY: `join`'s parameters; the tensors hold what the sizes say
        unsafe { gpu.launch(&kernel, grid, &args!(parts, out, pixels, of_group, per_chunk, chunks)) }
    });
    Some(out.tensor())
}

/// See [`GroupNorm`].
///
/// - `moments`: means and variances where they are given, `[batch, groups, 2]`
pub fn group_norm(x: &Tensor<4>, norm: &GroupNorm, moments: Option<&Tensor<3>>, silu: bool) -> Option<Tensor<4>> {
    let shares = Shares::new(x.dims(), norm.n_groups)?;
    let x = Pixels::of(x)?;
    let (weight, bias) = (readable(&norm.weight)?, readable(&norm.bias)?);
    let dtype = x.x.dtype();
    if weight.dtype() != dtype || bias.dtype() != dtype {
        return None;
    }
    let (parts, chunks) = match moments {
        Some(moments) => {
            assert_eq!(moments.dims(), [x.batch, shares.groups, 2], "moments");
            // a pair is read at once
            let in_pairs = |m: &DeviceTensor| m.dtype() == DType::F32 && m.begins_at_multiple_of(8);
            (Some(DeviceTensor::of(moments)?.contiguous()).filter(in_pairs)?, 0)
        }
        None => (shares.sums(&x), shares.chunks as i32),
    };
    let out = x.like(1, shares.channels);
    let lines = 256 / (shares.channels / 8);
    let per_block = (shares.per_chunk / 2).max(FEW * lines);
    let grid = shares.grid(x.batch, per_block, shares.groups * 8);
    let kernel = kernel(&SOURCE, "normalise", dtype, "");
    let eps = norm.eps as f32;
    let [pixels, channels, groups] = [shares.pixels, shares.channels, shares.groups].map(|n| n as i32);
    let [per_chunk, per_block] = [shares.per_chunk, per_block].map(|n| n as i32);
    let silu = i32::from(silu);
    enqueue([&x.x, &parts, &weight, &bias], [&out.x], move |gpu, [x, parts, weight, bias], [y]| {
        let all = args!(x, parts, weight, bias, y, pixels, channels, groups, per_chunk, chunks, per_block, eps, silu);
        // SAFETY: `normalise`'s parameters; the tensors hold what the sizes say
        unsafe { gpu.launch(&kernel, grid, &all) }
    });
    Some(out.tensor(shares.channels))
}
