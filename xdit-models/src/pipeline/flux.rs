//! `FluxPipeline`: CLIP and T5 encoders, packed latents, flow matching.
//!
//! Mirrors `src/diffusers/pipelines/flux/pipeline_flux.py`.

use std::ops::Range;
use std::slice::from_ref;

use burn::tensor::Device;
use xdit_core::dit::{Dit, DitSpec, TextEmbeddings};
use xdit_core::observer::Observer;
use xdit_core::sampler::{Flow, Sampler};

use crate::bench::text::TextSizes;
use crate::bench::work::{self, Work};
use crate::dit::flux::{Flux, FluxConfig};
use crate::pipeline::activations::{self, Activations, BlockPass};
use crate::pipeline::architecture::{Architecture, Guidance};
use crate::pipeline::components::{Components, each};
use crate::pipeline::encoding::{Encoding, Made};
use crate::pipeline::error::PipelineError;
use crate::pipeline::geometry::Geometry;
use crate::pipeline::request::Defaults;
use crate::text::clip::{ClipText, ClipTextConfig};
use crate::vae::autoencoder_kl::AutoencoderKlConfig;

/// Side in latent pixels of a picture; the pipeline's own, whatever the transformer.
const DEFAULT_SAMPLE_SIZE: usize = 128;

/// FLUX.1 dev and schnell.
pub struct FluxPipeline;

impl Architecture for FluxPipeline {
    fn class_name(&self) -> &'static str {
        "FluxPipeline"
    }

    fn about(&self) -> &'static str {
        "FLUX.1-dev, FLUX.1-schnell, the built-in model"
    }

    fn check(&self, components: &Components) -> Result<(), PipelineError> {
        components.expect("transformer", "FluxTransformer2DModel")?;
        components.expect("text_encoder", "CLIPTextModel")?;
        components.expect("text_encoder_2", "T5EncoderModel")?;
        components.expect("tokenizer", "CLIPTokenizer or CLIPTokenizerFast")?;
        components.expect("tokenizer_2", "T5TokenizerFast or T5Tokenizer")?;
        components.expect("vae", "AutoencoderKL")?;
        components.expect("scheduler", "FlowMatchEulerDiscreteScheduler")?;
        let config: FluxConfig = components.config("transformer")?;
        config.check()?;
        components.agree(&[
            (
                "4 * latent_channels of vae",
                4 * components.vae_config()?.latent_channels,
                "in_channels of transformer",
                config.in_channels,
            ),
            (
                "hidden_size of text_encoder",
                components.clip_config("text_encoder")?.hidden_size,
                "pooled_projection_dim of transformer",
                config.pooled_projection_dim,
            ),
            (
                "d_model of text_encoder_2",
                components.t5_config("text_encoder_2")?.d_model,
                "joint_attention_dim of transformer",
                config.joint_attention_dim,
            ),
        ])
    }

    fn geometry(&self, components: &Components) -> Result<Geometry, PipelineError> {
        let channels = components.config::<AutoencoderKlConfig>("vae")?.latent_channels;
        Ok(Geometry { vae_scale: components.vae_scale()?, patch: 2, channels, max_tokens: None, packed: true })
    }

    fn guidance(&self) -> Guidance {
        Guidance::Told
    }

    fn is_told(&self, components: &Components) -> Result<bool, PipelineError> {
        Ok(components.config::<FluxConfig>("transformer")?.guidance_embeds)
    }

    fn spec(&self, components: &Components) -> Result<DitSpec, PipelineError> {
        Ok(components.config::<FluxConfig>("transformer")?.spec())
    }

    fn defaults(&self, components: &Components) -> Result<Defaults, PipelineError> {
        let config: FluxConfig = components.config("transformer")?;
        let side = DEFAULT_SAMPLE_SIZE * components.vae_scale()?;
        // upstream's pipeline has 28 and 512 for both; schnell was distilled to few steps and short texts, and examples
        // give these
        let (steps, tokens) = if config.guidance_embeds { (28, 512) } else { (4, 256) };
        Ok(Defaults {
            height: Some(side),
            width: Some(side),
            num_inference_steps: Some(steps),
            guidance_scale: Some(3.5),
            true_cfg_scale: Some(1.0),
            max_sequence_length: Some(tokens),
        })
    }

    fn encode(
        &self,
        components: &Components,
        ranks: &Encoding<'_>,
        texts: &[&str],
        max_sequence_length: usize,
        observer: &mut dyn Observer,
    ) -> Result<Vec<TextEmbeddings>, PipelineError> {
        let config: ClipTextConfig = components.config("text_encoder")?;
        let clip_ids = components.tokens(
            "tokenizer",
            texts,
            components.clip_limit("tokenizer", &config)?,
            config.vocab_size,
            observer,
        )?;
        let t5_vocab = components.t5_config("text_encoder_2")?.vocab_size;
        let t5_ids = components.tokens("tokenizer_2", texts, max_sequence_length, t5_vocab, observer)?;

        let (device, n) = (ranks.device(), texts.len());
        let clip = ranks.start(|| {
            let clip = components
                .encoder("text_encoder", device, ClipText::UNUSED, observer, |l| ClipText::load(l, &config))?;
            each(&clip_ids, "text_encoder", observer, |text| {
                let pooled = Some(clip.forward(from_ref(&text.ids)).pooled);
                Made { states: None, pooled }
            })
        })?;
        // the padding is looked at too
        let t5 = ranks.start(|| components.encode_t5("text_encoder_2", device, &t5_ids, false, observer))?;
        let made = ranks.take(clip, n)?.into_iter().zip(ranks.take(t5, n)?);
        let join = |(clip, t5): (Made, Made)| TextEmbeddings {
            txt: t5.into_states(),
            txt_2: None,
            pooled: Some(clip.into_pooled()),
        };
        Ok(made.map(join).collect())
    }

    fn text(&self, components: &Components, max_sequence_length: usize) -> Result<TextSizes, PipelineError> {
        let config: FluxConfig = components.config("transformer")?;
        Ok(TextSizes {
            txt: [max_sequence_length, config.joint_attention_dim],
            txt_2: None,
            pooled: Some(config.pooled_projection_dim),
            masked: false,
        })
    }

    fn work(&self, components: &Components, img: usize, txt: usize) -> Result<Work, PipelineError> {
        Ok(work::flux(&components.config("transformer")?, img, txt))
    }

    fn activations(&self, components: &Components, pass: &BlockPass) -> Result<Activations, PipelineError> {
        Ok(activations::flux(&components.config("transformer")?, pass))
    }

    fn dit(
        &self,
        components: &Components,
        device: &Device,
        blocks: Range<usize>,
        observer: &mut dyn Observer,
    ) -> Result<(Box<dyn Dit>, u64), PipelineError> {
        let config: FluxConfig = components.config("transformer")?;
        components.load_blocks(device, &[], blocks, observer, |l, b| Flux::load(l, &config, b))
    }

    fn sampler(
        &self,
        components: &Components,
        n_steps: usize,
        n_tokens: usize,
    ) -> Result<Box<dyn Sampler>, PipelineError> {
        // the pipeline's own sigmas: evenly from 1 to 1/n
        let n = n_steps as f64;
        let sigmas = (0..n_steps).map(|i| 1.0 + i as f64 * (1.0 / n - 1.0) / (n - 1.0).max(1.0)).collect();
        components.sampler(n_steps, Flow { sigmas: Some(sigmas), n_tokens })
    }
}
