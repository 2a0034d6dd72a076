//! Which tokens a rank holds.

use std::ops::Range;

use crate::comm::even_sizes;

/// The size of a picture or a clip in image tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenGrid {
    /// Frames; a picture is one.
    pub frames: usize,
    /// Tokens from top to bottom.
    pub rows: usize,
    /// Tokens from left to right.
    pub cols: usize,
}

impl TokenGrid {
    /// Of a picture.
    pub const fn picture(rows: usize, cols: usize) -> Self {
        Self { frames: 1, rows, cols }
    }

    /// Rows of all frames, one after the other: what patches are made of.
    pub fn n_lines(&self) -> usize {
        self.frames * self.rows
    }

    /// All tokens.
    pub fn n_tokens(&self) -> usize {
        self.n_lines() * self.cols
    }

    /// Frame, row and column of each token, in their order.
    pub fn positions(&self) -> impl Iterator<Item = [usize; 3]> + use<> {
        let Self { rows, cols, .. } = *self;
        (0..self.n_tokens()).map(move |i| [i / cols / rows, i / cols % rows, i % cols])
    }
}

/// The lines of a picture's tokens cut into patches.
///
/// Tokens have one order everywhere: patch by patch, in each patch band by band, which is the picture's own, line by line.
/// A picture that is not cut is one patch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenLayout {
    patches: Vec<Range<usize>>,
}

impl TokenLayout {
    /// `n_patches` patches of as equally many lines of tokens as can be, the larger ones first.
    ///
    /// - `n_patches`: from 1 to the grid's lines
    pub fn new(grid: TokenGrid, n_patches: usize) -> Self {
        let sizes: Vec<usize> = even_sizes(grid.n_lines(), n_patches).iter().map(|lines| lines * grid.cols).collect();
        Self { patches: ranges(0, &sizes) }
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
}

/// How the tokens of a picture, and those of its text where blocks change them, are shared out among the ranks of a
/// sequence group: each rank holds one band of every patch and one of the text, all as even as can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shares {
    ulysses: usize,
    /// By rank.
    txt: Vec<Range<usize>>,
    /// By patch and rank.
    img: Vec<Vec<Range<usize>>>,
}

impl Shares {
    /// - `n_txt`: text tokens that are shared out; 0 where every rank holds the whole text
    /// - `size`: ranks that share the picture
    /// - `ulysses`: how many of them, neighbours, trade heads; it divides `size`
    pub fn new(layout: &TokenLayout, n_txt: usize, size: usize, ulysses: usize) -> Self {
        let bands = |tokens: Range<usize>| ranges(tokens.start, &even_sizes(tokens.len(), size));
        Self { ulysses, txt: bands(0..n_txt), img: layout.patches.iter().cloned().map(bands).collect() }
    }

    /// The number of ranks that share the picture.
    pub fn size(&self) -> usize {
        self.txt.len()
    }

    /// The number of patches.
    pub fn n_patches(&self) -> usize {
        self.img.len()
    }

    /// Text tokens of a rank.
    pub fn txt(&self, rank: usize) -> Range<usize> {
        self.txt[rank].clone()
    }

    /// Image tokens of a patch that a rank holds.
    pub fn img(&self, patch: usize, rank: usize) -> Range<usize> {
        self.img[patch][rank].clone()
    }

    /// Those of every patch.
    pub fn bands(&self, rank: usize) -> Vec<Range<usize>> {
        self.img.iter().map(|patch| patch[rank].clone()).collect()
    }

    /// A patch, or all of them.
    pub fn patches(&self, patch: Option<usize>) -> Range<usize> {
        patch.map_or(0..self.n_patches(), |patch| patch..patch + 1)
    }

    /// The number of image tokens of a patch, or of all of them, that a rank holds.
    pub fn n_img(&self, patch: Option<usize>, rank: usize) -> usize {
        self.img[self.patches(patch)].iter().map(|patch| patch[rank].len()).sum()
    }

    /// [`n_img`](Self::n_img) of every rank.
    pub fn all_n_img(&self, patch: Option<usize>) -> Vec<usize> {
        (0..self.size()).map(|rank| self.n_img(patch, rank)).collect()
    }

    /// The ranks that trade heads, of place `ring` in the rings. Where there is no ring, all of them.
    pub fn group(&self, ring: usize) -> Range<usize> {
        ring * self.ulysses..(ring + 1) * self.ulysses
    }
}

/// Ranges of these sizes, one after the other.
fn ranges(mut start: usize, sizes: &[usize]) -> Vec<Range<usize>> {
    let range = |size: &usize| {
        start += size;
        start - size..start
    };
    sizes.iter().map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bands_cover_the_picture_in_its_order(
            frames in 1..3_usize, rows in 1..20_usize, cols in 1..9_usize,
            m in 1..9_usize, ring in 1..4_usize, ulysses in 1..4_usize,
        ) {
            let grid = TokenGrid { frames, rows, cols };
            let m = m.min(grid.n_lines());
            let layout = TokenLayout::new(grid, m);
            let shares = Shares::new(&layout, 5, ring * ulysses, ulysses);
            prop_assert_eq!((layout.n_patches(), shares.n_patches()), (m, m));
            let (mut at, mut of_rank) = (0, vec![0; shares.size()]);
            for patch in 0..m {
                prop_assert_eq!(layout.patch(patch).len() % cols, 0);
                for (rank, held) in of_rank.iter_mut().enumerate() {
                    let band = shares.img(patch, rank);
                    prop_assert_eq!(band.start, at);
                    at = band.end;
                    *held += band.len();
                }
            }
            prop_assert_eq!(at, grid.n_tokens());
            let txt: usize = (0..ring).flat_map(|i| shares.group(i)).map(|rank| shares.txt(rank).len()).sum();
            prop_assert_eq!(txt, 5);
            prop_assert!((0..shares.size()).all(|rank| shares.n_img(None, rank) == of_rank[rank]));
        }
    }

    #[test]
    fn tokens_of_a_clip_go_frame_by_frame() {
        let grid = TokenGrid { frames: 2, rows: 2, cols: 3 };
        let all: Vec<_> = grid.positions().collect();
        assert_eq!((all.len(), all[4], all[7]), (12, [0, 1, 1], [1, 0, 1]));
    }
}
