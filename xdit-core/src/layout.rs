//! Which image tokens a rank holds.

use std::ops::Range;

use crate::comm::even_sizes;
use crate::dit::TokenGrid;

/// The picture's token rows cut into patches, each patch's tokens into one band per rank that shares them.
///
/// Tokens have one order everywhere: patch by patch, in each patch band by band, which is the picture's own, row by row.
/// A rank holds its band of every patch, and a picture that is not cut is one patch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenLayout {
    patches: Vec<Range<usize>>,
}

impl TokenLayout {
    /// `n_patches` patches of as equally many token rows as can be, the larger ones first.
    ///
    /// - `n_patches`: from 1 to the grid's rows
    pub fn new(grid: TokenGrid, n_patches: usize) -> Self {
        let mut start = 0;
        let patches = even_sizes(grid.rows, n_patches).into_iter().map(|rows| {
            let patch = start..start + rows * grid.cols;
            start = patch.end;
            patch
        });
        Self { patches: patches.collect() }
    }

    /// The number of patches.
    pub fn n_patches(&self) -> usize {
        self.patches.len()
    }

    /// The tokens of a patch.
    pub fn patch(&self, patch: usize) -> Range<usize> {
        self.patches[patch].clone()
    }

    /// The tokens of the patch with the fewest.
    pub fn smallest(&self) -> usize {
        self.patches.iter().map(Range::len).min().unwrap_or(0)
    }

    /// The bands of one patch that ranks `ranks` of `size` hold.
    pub fn bands(&self, patch: usize, ranks: Range<usize>, size: usize) -> Range<usize> {
        let patch = self.patch(patch);
        let sizes = even_sizes(patch.len(), size);
        let start = patch.start + sizes[..ranks.start].iter().sum::<usize>();
        start..start + sizes[ranks].iter().sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bands_cover_the_picture_in_its_order(rows in 1..20_usize, cols in 1..9_usize, m in 1..9_usize, size in 1..7_usize) {
            let m = m.min(rows);
            let layout = TokenLayout::new(TokenGrid { rows, cols }, m);
            prop_assert_eq!(layout.n_patches(), m);
            let mut at = 0;
            for patch in 0..m {
                prop_assert_eq!(layout.patch(patch).len() % cols, 0);
                for rank in 0..size {
                    let band = layout.bands(patch, rank..rank + 1, size);
                    prop_assert_eq!(band.start, at);
                    at = band.end;
                }
            }
            prop_assert_eq!(at, rows * cols);
        }
    }
}
