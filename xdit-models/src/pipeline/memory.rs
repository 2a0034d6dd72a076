//! What ranks hold.

use std::ops::Range;

/// What a rank holds in memory for the blocks of the transformer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankMemory {
    /// Its pipeline stage.
    pub stage: usize,
    /// Numbers of the blocks.
    pub blocks: Range<usize>,
    /// The checkpoint's bytes of the transformer's weights that the stage reads. Ranks of a stage share them where they
    /// share a device.
    pub weight_bytes: u64,
    /// Keys and values that are kept from step to step.
    pub kept_bytes: u64,
}
