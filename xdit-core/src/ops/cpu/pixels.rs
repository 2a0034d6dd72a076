//! Feature maps in memory with the channels innermost.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::host::{Host, buffer, tensor};

/// A feature map whose pixels are slices.
pub struct Pixels {
    pub host: Host,
    pub batch: usize,
    pub height: usize,
    pub width: usize,
    pub channels: usize,
}

impl Pixels {
    /// `None` if `x` is not on the CPU backend.
    ///
    /// - `x`: `[batch, channels, height, width]`
    pub fn of(x: &Tensor<4>) -> Option<Self> {
        let [batch, channels, height, width] = x.dims();
        let host = Host::rows_of(&x.clone().permute([0, 2, 3, 1]))?;
        Some(Self { host, batch, height, width, channels })
    }

    /// The channels of a pixel of picture `b`.
    #[inline(always)]
    pub fn at(&self, b: usize, y: usize, x: usize) -> &[f32] {
        let s = &self.host.strides;
        let at = b * s[0] as usize + y * s[1] as usize + x * s[2] as usize;
        &self.host.slice()[at..at + self.channels]
    }

    /// A new tensor of the same precision, with as many pixels as this one has times `factor` along each side.
    ///
    /// - `values`: `[batch, height, width, channels]`
    pub fn tensor_like(&self, values: Vec<f32>, factor: usize, channels: usize) -> Tensor<4> {
        let dims = [self.batch, factor * self.height, factor * self.width, channels];
        tensor(values, dims, self.host.dtype).permute([0, 3, 1, 2])
    }
}

/// See [`crate::ops::upsample_nearest_2x`].
pub fn upsample_nearest_2x(x: &Tensor<4>) -> Option<Tensor<4>> {
    let x = Pixels::of(x)?;
    let (c, row) = (x.channels, 2 * x.width * x.channels);
    let mut out = buffer(4 * x.batch * x.height * x.width * c);
    if row > 0 {
        out.par_chunks_mut(2 * row).enumerate().for_each(|(i, rows)| {
            let (upper, lower) = rows.split_at_mut(row);
            for (j, pair) in upper.chunks_exact_mut(2 * c).enumerate() {
                let pixel = x.at(i / x.height, i % x.height, j);
                pair[..c].copy_from_slice(pixel);
                pair[c..].copy_from_slice(pixel);
            }
            lower.copy_from_slice(upper);
        });
    }
    Some(x.tensor_like(out, 2, c))
}
