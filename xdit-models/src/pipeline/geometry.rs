//! Between a picture's size, the VAE's latents and the DiT's tokens.

use burn::tensor::Tensor;
use xdit_core::dit::TokenGrid;

/// How pictures, latents and tokens relate in a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Pixels per latent pixel and axis: `2^(VAE levels - 1)`.
    pub vae_scale: usize,
    /// Latent pixels per token and axis.
    pub patch: usize,
    /// Channels of the VAE's latents.
    pub channels: usize,
    /// Most tokens along a side, where the model has a limit.
    pub max_tokens: Option<usize>,
    /// Whether diffusers hands latents out as tokens, and not as a picture.
    pub packed: bool,
}

impl Geometry {
    /// Of a transformer that takes latents as a picture, `patch` by `patch` latent pixels a token.
    pub fn unpacked(vae_scale: usize, channels: usize, patch: usize) -> Self {
        Self { vae_scale, patch, channels, max_tokens: None, packed: false }
    }

    /// What heights and widths must be multiples of.
    pub fn pixels_per_token(&self) -> usize {
        self.vae_scale * self.patch
    }

    /// `[1, channels, height, width]` of the latents of a picture of this size in pixels.
    pub fn latent_dims(&self, height: usize, width: usize) -> [usize; 4] {
        [1, self.channels, height / self.vae_scale, width / self.vae_scale]
    }

    /// A picture of this size in tokens.
    pub fn grid(&self, height: usize, width: usize) -> TokenGrid {
        TokenGrid::picture(height / self.pixels_per_token(), width / self.pixels_per_token())
    }

    /// `[batch, channels, height, width]` latents to `[batch, tokens, channels * patch^2]`, channel by channel as
    /// `FluxPipeline._pack_latents` does.
    pub fn pack(&self, latents: Tensor<4>) -> Tensor<3> {
        let [b, c, h, w] = latents.dims();
        let p = self.patch;
        latents.reshape([b, c, h / p, p, w / p, p]).permute([0, 2, 4, 1, 3, 5]).reshape([
            b,
            (h / p) * (w / p),
            c * p * p,
        ])
    }

    /// The inverse of [`Geometry::pack`] for a picture of this size in pixels.
    pub fn unpack(&self, tokens: Tensor<3>, height: usize, width: usize) -> Tensor<4> {
        let [b, _, _] = tokens.dims();
        let [_, c, h, w] = self.latent_dims(height, width);
        let p = self.patch;
        tokens.reshape([b, h / p, w / p, c, p, p]).permute([0, 3, 1, 4, 2, 5]).reshape([b, c, h, w])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Int};

    #[test]
    fn unpack_undoes_pack() {
        let geometry = Geometry { vae_scale: 8, patch: 2, channels: 3, max_tokens: None, packed: true };
        let x = Tensor::<1, Int>::arange(0..3 * 4 * 6, &Device::flex()).float().reshape([1, 3, 4, 6]);
        let packed = geometry.pack(x.clone());
        assert_eq!(packed.dims(), [1, 6, 12]);
        // token 1 is the patch at row 0, column 1: channel 0's four pixels come first
        let token = packed.clone().slice([0..1, 1..2, 0..4]).into_data().try_to_vec::<f32>().expect("f32");
        assert_eq!(token, [2.0, 3.0, 8.0, 9.0]);
        geometry.unpack(packed, 32, 48).into_data().assert_eq(&x.into_data(), true);
        assert_eq!(geometry.grid(32, 48).positions().nth(4), Some([0, 1, 1]));
    }
}
