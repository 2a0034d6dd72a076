//! `PixArtAlphaPipeline` and `PixArtSigmaPipeline`: a T5 encoder, resolution binning.
//!
//! Mirrors `src/diffusers/pipelines/pixart_alpha/pipeline_pixart_alpha.py` and `pipeline_pixart_sigma.py`. Prompts are
//! put into small letters, as upstream does where the packages for its `clean_caption` are not installed.

use std::ops::Range;

use burn::tensor::Device;
use xdit_core::dit::{Dit, DitSpec, TextEmbeddings};
use xdit_core::observer::Observer;

use crate::bench::text::TextSizes;
use crate::bench::work::{self, Work};
use crate::dit::pixart::{PixArt, PixArtConfig};
use crate::pipeline::activations::{self, Activations, BlockPass};
use crate::pipeline::architecture::{Architecture, DIFFUSION_SCHEDULERS, unshifted};
use crate::pipeline::binning::Binning;
use crate::pipeline::components::Components;
use crate::pipeline::encoding::{Encoding, Made};
use crate::pipeline::error::PipelineError;
use crate::pipeline::geometry::Geometry;
use crate::pipeline::request::Defaults;

/// Either of the two, which differ in little but their names.
pub struct PixArtPipeline {
    class_name: &'static str,
    about: &'static str,
    max_sequence_length: usize,
}

/// PixArt-alpha.
pub const PIXART_ALPHA: PixArtPipeline = PixArtPipeline {
    class_name: "PixArtAlphaPipeline",
    about: "PixArt-alpha XL-2, 512 and 1024 pixels",
    max_sequence_length: 120,
};

/// PixArt-Sigma.
pub const PIXART_SIGMA: PixArtPipeline = PixArtPipeline {
    class_name: "PixArtSigmaPipeline",
    about: "PixArt-Sigma XL-2, 256 to 2048 pixels",
    max_sequence_length: 300,
};

impl PixArtPipeline {
    fn side(components: &Components) -> Result<usize, PipelineError> {
        Ok(components.config::<PixArtConfig>("transformer")?.sample_size * components.vae_scale()?)
    }
}

impl Architecture for PixArtPipeline {
    fn class_name(&self) -> &'static str {
        self.class_name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn check(&self, components: &Components) -> Result<(), PipelineError> {
        // older folders name the class that the model was split off from
        components.expect("transformer", "PixArtTransformer2DModel or Transformer2DModel")?;
        components.expect("text_encoder", "T5EncoderModel")?;
        components.expect("tokenizer", "T5Tokenizer or T5TokenizerFast")?;
        components.expect("vae", "AutoencoderKL")?;
        components.expect("scheduler", DIFFUSION_SCHEDULERS)?;
        unshifted(components)?;
        let config: PixArtConfig = components.config("transformer")?;
        config.check()?;
        let latent_channels = components.vae_config()?.latent_channels;
        components.agree(&[
            ("latent_channels of vae", latent_channels, "in_channels of transformer", config.in_channels),
            (
                "d_model of text_encoder",
                components.t5_config("text_encoder")?.d_model,
                "caption_channels of transformer",
                config.caption_channels.unwrap_or(config.d_model()),
            ),
        ])
    }

    fn geometry(&self, components: &Components) -> Result<Geometry, PipelineError> {
        let transformer: PixArtConfig = components.config("transformer")?;
        Ok(Geometry::unpacked(components.vae_scale()?, transformer.in_channels, transformer.patch_size))
    }

    fn binning(&self, components: &Components) -> Result<Option<Binning>, PipelineError> {
        Ok(Binning::aspect_ratio(components.config::<PixArtConfig>("transformer")?.sample_size))
    }

    fn spec(&self, components: &Components) -> Result<DitSpec, PipelineError> {
        Ok(components.config::<PixArtConfig>("transformer")?.spec())
    }

    fn defaults(&self, components: &Components) -> Result<Defaults, PipelineError> {
        Ok(Defaults::square(Self::side(components)?, 20, 4.5, self.max_sequence_length))
    }

    fn encode(
        &self,
        components: &Components,
        ranks: &Encoding<'_>,
        texts: &[&str],
        max_sequence_length: usize,
        observer: &mut dyn Observer,
    ) -> Result<Vec<TextEmbeddings>, PipelineError> {
        let small: Vec<String> = texts.iter().map(|text| text.to_lowercase().trim().to_owned()).collect();
        let small: Vec<&str> = small.iter().map(String::as_str).collect();
        let vocab_size = components.t5_config("text_encoder")?.vocab_size;
        let ids = components.tokens("tokenizer", &small, max_sequence_length, vocab_size, observer)?;
        let t5 = ranks.start(|| components.encode_t5("text_encoder", ranks.device(), &ids, true, observer))?;
        let join = |made: Made| TextEmbeddings { txt: made.into_states(), txt_2: None, pooled: None };
        Ok(ranks.take(t5, texts.len())?.into_iter().map(join).collect())
    }

    fn text(&self, components: &Components, max_sequence_length: usize) -> Result<TextSizes, PipelineError> {
        let config: PixArtConfig = components.config("transformer")?;
        let d = config.caption_channels.unwrap_or(config.d_model());
        Ok(TextSizes { txt: [max_sequence_length, d], txt_2: None, pooled: None, masked: true })
    }

    fn work(&self, components: &Components, img: usize, txt: usize) -> Result<Work, PipelineError> {
        Ok(work::pixart(&components.config("transformer")?, img, txt))
    }

    fn activations(&self, components: &Components, pass: &BlockPass) -> Result<Activations, PipelineError> {
        let spec = self.spec(components)?;
        Ok(Activations { widest: activations::cross(&spec, 4.0, pass), position: 4 * spec.d_model() as u64 })
    }

    fn dit(
        &self,
        components: &Components,
        device: &Device,
        blocks: Range<usize>,
        observer: &mut dyn Observer,
    ) -> Result<(Box<dyn Dit>, u64), PipelineError> {
        let config: PixArtConfig = components.config("transformer")?;
        // a table that is computed
        let unused = ["pos_embed.pos_embed"];
        components.load_blocks(device, &unused, blocks, observer, |l, b| PixArt::load(l, &config, b))
    }
}
