//! A pipeline folder as diffusers lays it out: `model_index.json` and a subfolder for each component.
//!
//! [`PipelineFolder`] finds and checks files, it does not know what a component means. The folder is either on disk
//! or built into the program ([`Source`]); both go through the same code.

mod check;
mod json;
mod names;
mod pipeline;
mod shard_index;
mod source;
#[cfg(test)]
mod tests;
mod weight_files;
mod weights;

pub use pipeline::{Component, PipelineFolder};
pub use shard_index::WeightIndex;
pub use source::{EmbeddedFile, Source};
pub use weight_files::{Variants, WeightFiles};
