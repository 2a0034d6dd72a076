//! The pipelines that are built, keyed by `_class_name` of `model_index.json`.

use xdit_core::dit::{Dit, TextEmbeddings};
use xdit_core::observer::Observer;
use xdit_core::sampler::Sampler;

use crate::components::Components;
use crate::flux_pipeline::FluxPipeline;
use crate::latents::Geometry;
use crate::pipeline::{Defaults, PipelineError};

/// All of them.
pub const ARCHITECTURES: &[&dyn Architecture] = &[&FluxPipeline];

/// The pipeline of this class, if it is built.
pub fn find(class_name: &str) -> Option<&'static dyn Architecture> {
    ARCHITECTURES.iter().copied().find(|a| a.class_name() == class_name)
}

/// What differs between pipelines: which encoders, which latents, which conditioning, which sampler.
/// [`crate::pipeline::Pipeline`] holds what does not.
pub trait Architecture: Sync {
    /// `_class_name` upstream.
    fn class_name(&self) -> &'static str;

    /// One line for `xdit models`: the published models of this class.
    fn about(&self) -> &'static str;

    /// Whether every component is there and of a class that runs; reads no weights.
    ///
    /// # Errors
    /// The first component that is missing or of another class.
    fn check(&self, components: &Components) -> Result<(), PipelineError>;

    /// Sizes of pictures, latents and tokens.
    ///
    /// # Errors
    /// A configuration that cannot be read.
    fn geometry(&self, components: &Components) -> Result<Geometry, PipelineError>;

    /// Settings where neither the request nor the folder's `xdit.json` says otherwise.
    ///
    /// # Errors
    /// A configuration that cannot be read.
    fn defaults(&self, components: &Components) -> Result<Defaults, PipelineError>;

    /// Reads the encoders one after the other, encodes all texts, frees the encoders.
    ///
    /// # Errors
    /// Files that cannot be read; a cancelled request.
    fn encode(
        &self,
        components: &Components,
        texts: &[&str],
        max_sequence_length: usize,
        observer: &mut dyn Observer,
    ) -> Result<Vec<TextEmbeddings>, PipelineError>;

    /// Reads the transformer.
    ///
    /// # Errors
    /// Files that cannot be read; a cancelled request.
    fn dit(&self, components: &Components, observer: &mut dyn Observer) -> Result<Box<dyn Dit>, PipelineError>;

    /// The sampler for this many steps and image tokens.
    ///
    /// # Errors
    /// A scheduler configuration that is not supported.
    fn sampler(
        &self,
        components: &Components,
        n_steps: usize,
        n_tokens: usize,
    ) -> Result<Box<dyn Sampler>, PipelineError>;
}
