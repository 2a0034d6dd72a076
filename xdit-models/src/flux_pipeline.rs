//! `FluxPipeline`: CLIP and T5 encoders, packed latents, flow matching.
//!
//! Mirrors `src/diffusers/pipelines/flux/pipeline_flux.py`.

use burn::tensor::Tensor;
use xdit_core::dit::{Dit, TextEmbeddings};
use xdit_core::observer::{Observer, Phase};
use xdit_core::sampler::{FlowMatchEuler, FlowMatchEulerConfig, Sampler, calculate_shift};

use crate::autoencoder_kl::AutoencoderKlConfig;
use crate::clip::{ClipText, ClipTextConfig};
use crate::components::Components;
use crate::flux::{Flux, FluxConfig};
use crate::latents::Geometry;
use crate::pipeline::{Defaults, PipelineError};
use crate::registry::Architecture;
use crate::t5::{T5Config, T5Encoder};
use crate::tokenizer::Tokenizer;

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
        components.expect("scheduler", "FlowMatchEulerDiscreteScheduler")
    }

    fn geometry(&self, components: &Components) -> Result<Geometry, PipelineError> {
        let vae: AutoencoderKlConfig = components.config("vae")?;
        Ok(Geometry { vae_scale: vae.scale(), patch: 2, channels: vae.latent_channels })
    }

    fn defaults(&self, components: &Components) -> Result<Defaults, PipelineError> {
        let config: FluxConfig = components.config("transformer")?;
        // schnell is distilled to few steps and takes no guidance; upstream's examples say the same numbers
        let (steps, tokens) = if config.guidance_embeds { (28, 512) } else { (4, 256) };
        Ok(Defaults {
            height: Some(1024),
            width: Some(1024),
            num_inference_steps: Some(steps),
            guidance_scale: Some(3.5),
            true_cfg_scale: Some(1.0),
            max_sequence_length: Some(tokens),
        })
    }

    fn encode(
        &self,
        components: &Components,
        texts: &[&str],
        max_sequence_length: usize,
        observer: &mut dyn Observer,
    ) -> Result<Vec<TextEmbeddings>, PipelineError> {
        let config: ClipTextConfig = components.config("text_encoder")?;
        let clip_ids = tokens(components, "tokenizer", texts, config.max_position_embeddings, observer)?;
        let t5_ids = tokens(components, "tokenizer_2", texts, max_sequence_length, observer)?;

        let clip = components.load("text_encoder", ClipText::UNUSED, observer, |l| ClipText::load(l, &config))?;
        let pooled = each(&clip_ids, "text_encoder", observer, |ids| clip.forward(ids).pooled)?;
        drop(clip);

        let config: T5Config = components.config("text_encoder_2")?;
        let t5 = components.load("text_encoder_2", T5Encoder::UNUSED, observer, |l| T5Encoder::load(l, &config))?;
        let txt = each(&t5_ids, "text_encoder_2", observer, |ids| t5.forward(ids, None))?;
        Ok(txt
            .into_iter()
            .zip(pooled)
            .map(|(txt, pooled): (Tensor<3>, Tensor<2>)| TextEmbeddings { txt, pooled })
            .collect())
    }

    fn dit(&self, components: &Components, observer: &mut dyn Observer) -> Result<Box<dyn Dit>, PipelineError> {
        let config: FluxConfig = components.config("transformer")?;
        Ok(Box::new(components.load("transformer", &[], observer, |loader| Flux::load(loader, &config))?))
    }

    fn sampler(
        &self,
        components: &Components,
        n_steps: usize,
        n_tokens: usize,
    ) -> Result<Box<dyn Sampler>, PipelineError> {
        let config: FlowMatchEulerConfig = components.folder.config("scheduler", "scheduler_config.json")?;
        // the pipeline's own sigmas: evenly from 1 to 1/n
        let n = n_steps as f64;
        let sigmas: Vec<f64> = (0..n_steps).map(|i| 1.0 + i as f64 * (1.0 / n - 1.0) / (n - 1.0).max(1.0)).collect();
        let mu = calculate_shift(n_tokens, &config);
        Ok(Box::new(FlowMatchEuler::new(&config, n_steps, Some(&sigmas), Some(mu))?))
    }
}

/// Token ids of each text, with a warning where one is longer than the limit.
fn tokens(
    components: &Components,
    component: &str,
    texts: &[&str],
    limit: usize,
    observer: &mut dyn Observer,
) -> Result<Vec<Vec<u32>>, PipelineError> {
    let tokenizer = Tokenizer::open(&components.folder, component)?;
    let mut ids = Vec::with_capacity(texts.len());
    for text in texts {
        let encoded = tokenizer.encode(text, limit)?;
        if let Some(cut) = encoded.cut {
            observer.warn(&format!("{component} takes {limit} tokens; this part of the prompt was cut off: {cut:?}"));
        }
        ids.push(encoded.ids);
    }
    Ok(ids)
}

/// Runs an encoder on one text after the other.
fn each<T>(
    ids: &[Vec<u32>],
    what: &str,
    observer: &mut dyn Observer,
    encode: impl Fn(&[Vec<u32>]) -> T,
) -> Result<Vec<T>, PipelineError> {
    observer.begin(Phase::Encode, what, ids.len() as u64);
    let mut out = Vec::with_capacity(ids.len());
    for (i, ids) in ids.iter().enumerate() {
        out.push(encode(std::slice::from_ref(ids)));
        if observer.advance(Phase::Encode, i as u64 + 1).is_break() {
            return Err(PipelineError::Cancelled(Phase::Encode));
        }
    }
    observer.end(Phase::Encode);
    Ok(out)
}
