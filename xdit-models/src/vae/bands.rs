//! Decoding by many ranks: each has a band of the picture's rows and gets from the others what the band depends on.
//!
//! Convolutions look one row beyond the band, at the neighbours' rows; norms take means and variances of all bands; the
//! middle's attention has its queries and all bands' keys and values. So the picture is that of one device, but for
//! rounding: sums are taken in another order.

use std::ops::Range;

use burn::tensor::Tensor;
use xdit_core::comm::{CommError, Communicator, Posted, even_sizes};
use xdit_core::ops::{GroupNorm, cat, channels_first, channels_last, merge_moments, narrow};

use crate::vae::tiles::Cancelled;

/// Why a rank has no band of a picture.
#[derive(Debug, thiserror::Error)]
pub enum BandError {
    /// A rank failed.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// The caller asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// A rank's share in decoding a picture: a band of its rows, or all of them.
#[derive(Clone, Copy)]
pub struct Bands<'a>(Option<Shared<'a>>);

#[derive(Clone, Copy)]
struct Shared<'a> {
    ranks: &'a dyn Communicator,
    /// Of the latents.
    height: usize,
}

/// A feature map of a band with some of its neighbours' rows.
pub struct Widened {
    /// `[batch, channels, height + margins, width]`
    pub x: Tensor<4>,
    /// Rows of the neighbours above and below; none at the picture's edges.
    pub margins: [usize; 2],
}

impl<'a> Bands<'a> {
    /// The whole picture, on one rank.
    pub const WHOLE: Self = Self(None);

    /// One band for each of these ranks, in their order, as even as can be.
    ///
    /// - `height`: of the latents, at least one row for each rank
    ///
    /// # Panics
    /// If there are more ranks than rows.
    pub fn of(ranks: &'a dyn Communicator, height: usize) -> Self {
        assert!(ranks.size() <= height, "{} ranks for {height} rows", ranks.size());
        Self((ranks.size() > 1).then_some(Shared { ranks, height }))
    }

    /// What this rank computes of latents, which it has as a whole: its band and, where there are neighbours, a row of
    /// each.
    pub fn cut(&self, latents: Tensor<4>) -> Widened {
        let Some(shared) = &self.0 else { return Widened { x: latents, margins: [0, 0] } };
        let (Range { start, end }, height) = (shared.mine(), latents.dims()[2]);
        let margins = [1.min(start), 1.min(height - end)];
        Widened { x: narrow(&latents, 2, start - margins[0]..end + margins[1]), margins }
    }

    /// The band with a row of each neighbour.
    ///
    /// # Errors
    /// A rank that failed.
    pub fn widen(&self, x: Tensor<4>) -> Result<Widened, CommError> {
        match &self.0 {
            None => Ok(Widened { x, margins: [0, 0] }),
            Some(shared) => shared.post_rows(&x)?.join(x),
        }
    }

    /// `norm(x)`, by the moments of the whole picture.
    ///
    /// # Errors
    /// A rank that failed.
    pub fn norm(&self, norm: &GroupNorm, x: Tensor<4>) -> Result<Tensor<4>, CommError> {
        match &self.0 {
            None => Ok(norm.forward(x)),
            Some(shared) => {
                let moments = shared.moments(norm, &x)?;
                Ok(norm.forward_by(x, &moments, false))
            }
        }
    }

    /// `silu(norm(x))`, by the moments of the whole picture, with a row of each neighbour.
    ///
    /// # Errors
    /// A rank that failed.
    pub fn norm_silu(&self, norm: &GroupNorm, x: Tensor<4>) -> Result<Widened, CommError> {
        let Some(shared) = &self.0 else { return Ok(Widened { x: norm.forward_silu(x), margins: [0, 0] }) };
        // the neighbours' rows are on their way while moments are computed, and are normalised here as well
        let rows = shared.post_rows(&x)?;
        let moments = shared.moments(norm, &x)?;
        let Widened { x, margins } = rows.join(x)?;
        Ok(Widened { x: norm.forward_by(x, &moments, true), margins })
    }

    /// The pixels of all bands.
    ///
    /// - `x`: `[batch, height * width, channels]` of this rank's band
    /// - `width`: of a row
    ///
    /// # Errors
    /// A rank that failed.
    pub fn all_pixels(&self, x: Tensor<3>, width: usize) -> Result<Tensor<3>, CommError> {
        let Some(shared) = &self.0 else { return Ok(x) };
        let sizes: Vec<_> = shared.sizes().iter().map(|rows| rows * width).collect();
        shared.ranks.all_gather(x, 1, &sizes)
    }

    /// The picture on the first rank, of what every rank has of it.
    ///
    /// - `scale`: its rows for each of the latents'
    ///
    /// # Errors
    /// A rank that failed.
    pub fn gather(&self, band: Tensor<4>, scale: usize) -> Result<Option<Tensor<4>>, CommError> {
        let Some(shared) = &self.0 else { return Ok(Some(band)) };
        let sizes: Vec<_> = shared.sizes().iter().map(|rows| rows * scale).collect();
        shared.ranks.gather(0, band, 2, &sizes)
    }
}

impl Shared<'_> {
    fn sizes(&self) -> Vec<usize> {
        even_sizes(self.height, self.ranks.size())
    }

    /// This rank's rows of the latents.
    fn mine(&self) -> Range<usize> {
        let (sizes, rank) = (self.sizes(), self.ranks.rank());
        let start = sizes[..rank].iter().sum();
        start..start + sizes[rank]
    }

    /// Starts to trade the outermost rows with the neighbours'.
    fn post_rows(&self, x: &Tensor<4>) -> Result<Rows, CommError> {
        let (ranks, rank) = (self.ranks, self.ranks.rank());
        let x = channels_last(x.clone());
        let ([b, h, w, c], dtype) = (x.dims(), x.dtype());
        let trade = |row: usize, with: usize| {
            // it gets there without being waited for
            ranks.send(narrow(&x, 1, row..row + 1), with)?;
            ranks.recv(with, [b, 1, w, c], dtype)
        };
        Ok(Rows {
            above: if rank > 0 { Some(trade(0, rank - 1)?) } else { None },
            below: if rank + 1 < ranks.size() { Some(trade(h - 1, rank + 1)?) } else { None },
        })
    }

    /// Of the whole picture. Every band has as many numbers of a group as it has rows, at any resolution.
    fn moments(&self, norm: &GroupNorm, x: &Tensor<4>) -> Result<Tensor<3>, CommError> {
        let mine = norm.moments(x).unsqueeze_dim::<4>(0);
        let all = self.ranks.all_gather(mine, 0, &vec![1; self.ranks.size()])?;
        Ok(merge_moments(all, &self.sizes()))
    }
}

/// The neighbours' rows on their way, `[batch, 1, width, channels]`.
struct Rows {
    above: Option<Posted<4>>,
    below: Option<Posted<4>>,
}

impl Rows {
    /// Waits for them and puts them around `x`.
    fn join(self, x: Tensor<4>) -> Result<Widened, CommError> {
        let margins = [usize::from(self.above.is_some()), usize::from(self.below.is_some())];
        let mut parts = vec![channels_last(x)];
        if let Some(above) = self.above {
            parts.insert(0, above.wait()?);
        }
        if let Some(below) = self.below {
            parts.push(below.wait()?);
        }
        Ok(Widened { x: channels_first(cat(parts, 1)), margins })
    }
}
