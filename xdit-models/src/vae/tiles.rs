//! Decoding in tiles, as `AutoencoderKL.tiled_decode` of diffusers.

use std::ops::{ControlFlow, Range};

use burn::tensor::{Tensor, TensorData};

/// Whether a picture is decoded in overlapping tiles that are blended, which bounds the memory it takes. The tiles do
/// not see each other: the picture differs a little from the one decoded as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Tiling {
    /// As a whole.
    #[default]
    Off,
    /// In tiles of the configuration's `sample_size` that overlap by a quarter, if it is larger than one, as after
    /// upstream's `enable_tiling()`.
    On,
    /// In tiles of another size, if it is larger than one.
    Tiles {
        /// Side of a tile in pixels.
        sample_min_size: usize,
        /// Part of a tile that it shares with the next, at least 0 and less than 1.
        overlap_factor: f64,
    },
}

impl Tiling {
    /// Whether a picture of this height and width is decoded in tiles: those of more than four million pixels are.
    pub fn of_picture([height, width]: [usize; 2]) -> Self {
        if height * width > 2048 * 2048 { Self::On } else { Self::Off }
    }
}

/// The caller's callback asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("decoding was cancelled")]
pub struct Cancelled;

/// How a picture is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiles {
    /// In latent pixels; the last ones may be shorter.
    rows: Vec<Range<usize>>,
    cols: Vec<Range<usize>>,
    /// Pixels over which a tile fades into the next.
    blend: usize,
    /// Pixels of a side that are kept of a tile.
    keep: usize,
}

impl Tiles {
    /// `None` if the picture is decoded as a whole.
    ///
    /// - `sample_size`: pixels along a side of a tile with [`Tiling::On`]
    /// - `scale`: pixels per latent pixel along a side
    /// - `latent_size`: height and width of the latents
    pub fn new(tiling: Tiling, sample_size: usize, scale: usize, latent_size: [usize; 2]) -> Option<Self> {
        let (size, overlap) = match tiling {
            Tiling::Off => return None,
            Tiling::On => (sample_size, 0.25),
            Tiling::Tiles { sample_min_size, overlap_factor } => (sample_min_size, overlap_factor),
        };
        let [height, width] = latent_size;
        let tile = (size / scale).max(1);
        if height <= tile && width <= tile {
            return None;
        }
        // rounded down as upstream does
        let step = ((tile as f64 * (1.0 - overlap)) as usize).max(1);
        let blend = (size as f64 * overlap) as usize;
        let cut = |n: usize| (0..n).step_by(step).map(|from| from..n.min(from + tile)).collect();
        Some(Self { rows: cut(height), cols: cut(width), blend, keep: size - blend })
    }

    /// Height and width of the largest tile, in latent pixels.
    pub fn largest(&self) -> [usize; 2] {
        [&self.rows, &self.cols].map(|cuts| cuts.iter().map(Range::len).max().unwrap_or(0))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.rows.len() * self.cols.len()
    }

    /// Decodes each tile by `decode` and blends them; `progress` is told after each how many are done and how many
    /// there are.
    ///
    /// # Errors
    /// `progress` breaks.
    pub fn decode(
        &self,
        latents: &Tensor<4>,
        decode: impl Fn(Tensor<4>) -> Tensor<4>,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Tensor<4>, Cancelled> {
        let mut done = 0;
        let mut above: Vec<Tensor<4>> = Vec::new();
        let mut pictures = Vec::new();
        for rows in &self.rows {
            let mut row: Vec<Tensor<4>> = Vec::new();
            for (j, cols) in self.cols.iter().enumerate() {
                let tile = latents.clone().narrow(2, rows.start, rows.len()).narrow(3, cols.start, cols.len());
                let mut tile = decode(tile);
                // a neighbour has been blended with its own neighbours before
                if let Some(above) = above.get(j) {
                    tile = blend(above, tile, 2, self.blend);
                }
                if let Some(left) = row.last() {
                    tile = blend(left, tile, 3, self.blend);
                }
                row.push(tile);
                done += 1;
                if progress(done, self.count()).is_break() {
                    return Err(Cancelled);
                }
            }
            pictures.push(self.kept(&row));
            above = row;
        }
        Ok(Tensor::cat(pictures, 2))
    }

    /// What a row of tiles gives to the picture: each tile without what the next one replaces.
    fn kept(&self, row: &[Tensor<4>]) -> Tensor<4> {
        let parts = row.iter().map(|tile| {
            let [_, _, h, w] = tile.dims();
            tile.clone().narrow(2, 0, h.min(self.keep)).narrow(3, 0, w.min(self.keep))
        });
        Tensor::cat(parts.collect(), 3)
    }
}

/// `blend_v` and `blend_h`: the first `extent` of `tile` along `dim` fade in from the last of the tile `before`.
fn blend(before: &Tensor<4>, tile: Tensor<4>, dim: usize, extent: usize) -> Tensor<4> {
    let (n_before, n) = (before.dims()[dim], tile.dims()[dim]);
    let extent = extent.min(n_before).min(n);
    if extent == 0 {
        return tile;
    }
    let mut dims = [1; 4];
    dims[dim] = extent;
    let ramp: Vec<f32> = (0..extent).map(|i| i as f32 / extent as f32).collect();
    let ramp = Tensor::from_data(TensorData::new(ramp, dims), (&tile.device(), tile.dtype()));
    let from = before.clone().narrow(dim, n_before - extent, extent);
    let mixed = from.clone() + (tile.clone().narrow(dim, 0, extent) - from) * ramp;
    match n - extent {
        0 => mixed,
        rest => Tensor::cat(vec![mixed, tile.narrow(dim, extent, rest)], dim),
    }
}
