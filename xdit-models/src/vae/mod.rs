//! Decoders from latents to pictures.
//!
//! There is no encoder: a picture starts from noise, and nothing here takes one as input yet.

pub mod autoencoder_kl;
pub mod bands;
pub mod tiles;

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use xdit_core::observer::{Observer, Phase};

use self::bands::{BandError, Bands};
use self::tiles::{Cancelled, Tiles, Tiling};

/// Pixels per latent pixel along each axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Factors {
    /// 1 for pictures.
    pub frames: usize,
    /// Along a column of pixels.
    pub height: usize,
    /// Along a row of pixels.
    pub width: usize,
}

/// A decoder with its weights on a device.
pub trait Vae: Send + Sync {
    /// How much larger a picture is than its latents.
    fn factors(&self) -> Factors;

    /// The transformer's latents as the decoder wants them.
    fn unscale(&self, latents: Tensor<4>) -> Tensor<4>;

    /// How latents of this height and width are cut; `None` if they are decoded as a whole.
    fn tiles(&self, tiling: Tiling, latent_size: [usize; 2]) -> Option<Tiles>;

    /// Decodes latents that have been through [`unscale`](Self::unscale), to pictures that are nominally in -1..=1 but not
    /// clamped: `[batch, latent_channels, height, width] -> [batch, channels, height, width]`, larger by
    /// [`factors`](Self::factors). Every rank of `bands` has all latents, and gets its rows of the picture.
    ///
    /// - `go_on`: asked from time to time; breaks at the same call on all of these ranks
    ///
    /// # Errors
    /// A rank that failed, or `go_on` breaks.
    fn decode_band(
        &self,
        latents: Tensor<4>,
        bands: &Bands<'_>,
        go_on: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Tensor<4>, BandError>;

    /// [`decode_band`](Self::decode_band) of the whole picture.
    fn decode_whole(&self, latents: Tensor<4>) -> Tensor<4> {
        let band = self.decode_band(latents, &Bands::WHOLE, &mut || ControlFlow::Continue(()));
        band.expect("one rank waits for nobody, and is not stopped")
    }

    /// As [`decode_whole`](Self::decode_whole), in tiles where `tiling` wants it. After each tile, `progress` is told how
    /// many are done and how many there are.
    ///
    /// # Errors
    /// `progress` breaks.
    fn decode(
        &self,
        latents: Tensor<4>,
        tiling: Tiling,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Tensor<4>, Cancelled> {
        let [_, _, height, width] = latents.dims();
        if let Some(tiles) = self.tiles(tiling, [height, width]) {
            return tiles.decode(&latents, |tile| self.decode_whole(tile), progress);
        }
        let picture = self.decode_whole(latents);
        if progress(1, 1).is_break() { Err(Cancelled) } else { Ok(picture) }
    }

    /// Whether latents of this height and width are decoded in tiles; see [`Tiling::of_picture`].
    fn tiling(&self, [height, width]: [usize; 2]) -> Tiling {
        let factors = self.factors();
        Tiling::of_picture([height * factors.height, width * factors.width])
    }

    /// [`unscale`](Self::unscale) and [`decode`](Self::decode) for an observer, in tiles or not as
    /// [`tiling`](Self::tiling) says.
    ///
    /// # Errors
    /// The observer breaks.
    fn decode_observed(&self, latents: Tensor<4>, observer: &mut dyn Observer) -> Result<Tensor<4>, Cancelled> {
        let [_, _, height, width] = latents.dims();
        let tiling = self.tiling([height, width]);
        let n_tiles = self.tiles(tiling, [height, width]).map_or(1, |tiles| tiles.count());
        observer.begin(Phase::Decode, "vae", n_tiles as u64);
        let mut progress = |done, _| observer.advance(Phase::Decode, done as u64);
        let picture = self.decode(self.unscale(latents), tiling, &mut progress)?;
        observer.end(Phase::Decode);
        Ok(picture)
    }
}
