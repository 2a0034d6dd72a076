//! What differs between pipelines.

use std::ops::Range;

use burn::tensor::Device;
use xdit_core::dit::{Dit, DitSpec, TextEmbeddings};
use xdit_core::observer::Observer;
use xdit_core::sampler::{Flow, Sampler};

use crate::bench::text::TextSizes;
use crate::bench::work::Work;
use crate::error::ModelError;
use crate::pipeline::activations::{Activations, BlockPass};
use crate::pipeline::binning::Binning;
use crate::pipeline::components::Components;
use crate::pipeline::encoding::Encoding;
use crate::pipeline::error::PipelineError;
use crate::pipeline::geometry::Geometry;
use crate::pipeline::request::Defaults;
use crate::vae::autoencoder_kl::AutoencoderKlConfig;

/// Classes of schedulers that follow a diffusion's noise, as [`Components::expect`] takes them; not those of flow matching,
/// whose steps are others.
pub const DIFFUSION_SCHEDULERS: &str =
    "DDIMScheduler or DDPMScheduler or DPMSolverMultistepScheduler or EulerDiscreteScheduler";

/// What `guidance_scale` means to a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guidance {
    /// The model was distilled to be told it. Classifier-free guidance has a scale of its own, `true_cfg_scale`, and
    /// takes place where there is a negative prompt.
    Told,
    /// Classifier-free guidance, away from the negative prompt or from an empty one.
    ClassifierFree,
}

/// Refuses a VAE with a shift, which pipelines of before flow matching don't undo before they decode.
///
/// # Errors
/// There is one; a configuration that cannot be read.
pub fn unshifted(components: &Components) -> Result<(), PipelineError> {
    match components.config::<AutoencoderKlConfig>("vae")?.shift_factor.filter(|shift| *shift != 0.0) {
        None => Ok(()),
        Some(shift) => {
            let what = format!("shift_factor={shift} is not supported in this pipeline, which has none");
            Err(ModelError::Config { class: "AutoencoderKL", what }.into())
        }
    }
}

/// What differs between pipelines: which encoders, which latents, which conditioning, which sampler.
/// [`Pipeline`](crate::pipeline::Pipeline) holds what does not.
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

    /// What a plan must know of the transformer.
    ///
    /// # Errors
    /// A configuration that cannot be read.
    fn spec(&self, components: &Components) -> Result<DitSpec, PipelineError>;

    /// The sizes that the model was trained on, where it draws at those alone.
    ///
    /// # Errors
    /// A configuration that cannot be read.
    fn binning(&self, _components: &Components) -> Result<Option<Binning>, PipelineError> {
        Ok(None)
    }

    /// What `guidance_scale` means.
    fn guidance(&self) -> Guidance {
        Guidance::ClassifierFree
    }

    /// Whether the model was trained to be told `guidance_scale`, where [`Guidance::Told`] is what it means.
    ///
    /// # Errors
    /// A configuration that cannot be read.
    fn is_told(&self, _components: &Components) -> Result<bool, PipelineError> {
        Ok(true)
    }

    /// Whether `max_sequence_length` says how many tokens of T5 there are.
    fn takes_length(&self) -> bool {
        true
    }

    /// Settings where neither the request nor the folder's `xdit.json` says otherwise.
    ///
    /// # Errors
    /// A configuration that cannot be read.
    fn defaults(&self, components: &Components) -> Result<Defaults, PipelineError>;

    /// Reads the encoders one after the other, encodes all texts, frees the encoders unless they are to stay.
    ///
    /// - `ranks`: which encoders run here
    ///
    /// # Errors
    /// Files that cannot be read; a cancelled request; a rank that failed.
    fn encode(
        &self,
        components: &Components,
        ranks: &Encoding<'_>,
        texts: &[&str],
        max_sequence_length: usize,
        observer: &mut dyn Observer,
    ) -> Result<Vec<TextEmbeddings>, PipelineError>;

    /// Reads these blocks of the transformer and what stands around them; also says how many bytes that were.
    ///
    /// # Errors
    /// Files that cannot be read; a cancelled request.
    fn dit(
        &self,
        components: &Components,
        device: &Device,
        blocks: Range<usize>,
        observer: &mut dyn Observer,
    ) -> Result<(Box<dyn Dit>, u64), PipelineError>;

    /// Bytes of activations that a pass through some of the blocks has in memory at its widest moment, beside the text's
    /// tokens; see [`crate::pipeline::activations`].
    ///
    /// # Errors
    /// A configuration that cannot be read.
    fn activations(&self, components: &Components, pass: &BlockPass) -> Result<Activations, PipelineError>;

    /// Whether a block has a second attention over the image.
    ///
    /// # Errors
    /// A configuration that cannot be read.
    fn attends_twice(&self, _components: &Components, _block: usize) -> Result<bool, PipelineError> {
        Ok(false)
    }

    /// Tokens of an encoded prompt.
    ///
    /// # Errors
    /// A configuration that cannot be read.
    fn n_txt_tokens(&self, _components: &Components, max_sequence_length: usize) -> Result<usize, PipelineError> {
        Ok(max_sequence_length)
    }

    /// What the transformer is told of a prompt.
    ///
    /// # Errors
    /// A configuration that cannot be read.
    fn text(&self, components: &Components, max_sequence_length: usize) -> Result<TextSizes, PipelineError>;

    /// The work of a pass with one prompt through all blocks; see [`crate::bench::work`].
    ///
    /// - `img`, `txt`: numbers of tokens
    ///
    /// # Errors
    /// A configuration that cannot be read.
    fn work(&self, components: &Components, img: usize, txt: usize) -> Result<Work, PipelineError>;

    /// Tokens that a text encoder of T5's or BERT's kind is shown.
    ///
    /// # Errors
    /// A configuration that cannot be read.
    fn encoder_tokens(
        &self,
        _components: &Components,
        _component: &str,
        max_sequence_length: usize,
    ) -> Result<usize, PipelineError> {
        Ok(max_sequence_length)
    }

    /// What each block costs beside the others, per image token.
    ///
    /// # Errors
    /// A configuration that cannot be read.
    fn costs(&self, components: &Components) -> Result<Vec<f64>, PipelineError> {
        Ok(vec![1.0; self.spec(components)?.n_blocks])
    }

    /// The sampler for this many steps and image tokens: the one that `model_index.json` names.
    ///
    /// # Errors
    /// A scheduler configuration that is not supported.
    fn sampler(
        &self,
        components: &Components,
        n_steps: usize,
        n_tokens: usize,
    ) -> Result<Box<dyn Sampler>, PipelineError> {
        components.sampler(n_steps, Flow { sigmas: None, n_tokens })
    }
}
