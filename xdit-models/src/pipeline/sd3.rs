//! `StableDiffusion3Pipeline`: two CLIP encoders and, if it is there, T5; flow matching.
//!
//! Mirrors `src/diffusers/pipelines/stable_diffusion_3/pipeline_stable_diffusion_3.py`.

use std::ops::Range;
use std::slice::from_ref;

use burn::tensor::{DType, Device, Tensor};
use xdit_core::dit::{Dit, DitSpec, TextEmbeddings, TextStates};
use xdit_core::observer::Observer;

use crate::bench::text::TextSizes;
use crate::bench::work::{self, Work};
use crate::dit::sd3::{Sd3, Sd3Config};
use crate::pipeline::activations::{self, Activations, BlockPass};
use crate::pipeline::architecture::Architecture;
use crate::pipeline::components::{Components, each};
use crate::pipeline::encoding::{Encoding, Made};
use crate::pipeline::error::PipelineError;
use crate::pipeline::geometry::Geometry;
use crate::pipeline::request::Defaults;
use crate::text::clip::{ClipText, ClipTextConfig};
use crate::text::tokenizer::Encoded;

/// Stable Diffusion 3 and 3.5.
pub struct Sd3Pipeline;

impl Architecture for Sd3Pipeline {
    fn class_name(&self) -> &'static str {
        "StableDiffusion3Pipeline"
    }

    fn about(&self) -> &'static str {
        "Stable Diffusion 3 medium, 3.5 medium, 3.5 large and large turbo, with or without T5"
    }

    fn check(&self, components: &Components) -> Result<(), PipelineError> {
        components.expect("transformer", "SD3Transformer2DModel")?;
        for component in ["text_encoder", "text_encoder_2"] {
            components.expect(component, "CLIPTextModelWithProjection")?;
        }
        for component in ["tokenizer", "tokenizer_2"] {
            components.expect(component, "CLIPTokenizer or CLIPTokenizerFast")?;
        }
        if components.has("text_encoder_3") {
            components.expect("text_encoder_3", "T5EncoderModel")?;
            components.expect("tokenizer_3", "T5TokenizerFast or T5Tokenizer")?;
        }
        components.expect("vae", "AutoencoderKL")?;
        components.expect("scheduler", "FlowMatchEulerDiscreteScheduler")?;
        let config: Sd3Config = components.config("transformer")?;
        config.check()?;
        let latent_channels = components.vae_config()?.latent_channels;
        let projected = ["text_encoder", "text_encoder_2"].map(|encoder| components.clip_config(encoder));
        let [one, two] = projected;
        let pooled = one?.projection_dim.unwrap_or(0) + two?.projection_dim.unwrap_or(0);
        components.agree(&[
            ("latent_channels of vae", latent_channels, "in_channels of transformer", config.in_channels),
            (
                "projection_dim of text_encoder and text_encoder_2",
                pooled,
                "pooled_projection_dim of transformer",
                config.pooled_projection_dim,
            ),
        ])?;
        if !components.has("text_encoder_3") {
            return Ok(());
        }
        components.agree(&[(
            "d_model of text_encoder_3",
            components.t5_config("text_encoder_3")?.d_model,
            "joint_attention_dim of transformer",
            config.joint_attention_dim,
        )])
    }

    fn geometry(&self, components: &Components) -> Result<Geometry, PipelineError> {
        let transformer: Sd3Config = components.config("transformer")?;
        let geometry = Geometry::unpacked(components.vae_scale()?, transformer.in_channels, transformer.patch_size);
        Ok(Geometry { max_tokens: Some(transformer.pos_embed_max_size), ..geometry })
    }

    fn spec(&self, components: &Components) -> Result<DitSpec, PipelineError> {
        Ok(components.config::<Sd3Config>("transformer")?.spec())
    }

    fn defaults(&self, components: &Components) -> Result<Defaults, PipelineError> {
        let transformer: Sd3Config = components.config("transformer")?;
        Ok(Defaults::square(transformer.sample_size * components.vae_scale()?, 28, 7.0, 256))
    }

    fn encode(
        &self,
        components: &Components,
        ranks: &Encoding<'_>,
        texts: &[&str],
        max_sequence_length: usize,
        observer: &mut dyn Observer,
    ) -> Result<Vec<TextEmbeddings>, PipelineError> {
        let clip_1 = Clip::open(components, "text_encoder", "tokenizer", texts, observer)?;
        let clip_2 = Clip::open(components, "text_encoder_2", "tokenizer_2", texts, observer)?;
        let t5 = match components.has("text_encoder_3") {
            true => {
                let vocab_size = components.t5_config("text_encoder_3")?.vocab_size;
                Some(components.tokens("tokenizer_3", texts, max_sequence_length, vocab_size, observer)?)
            }
            false => None,
        };
        let (device, n) = (ranks.device(), texts.len());
        let clip_1 = ranks.start(|| clip_1.encode(components, device, observer))?;
        let clip_2 = ranks.start(|| clip_2.encode(components, device, observer))?;
        // the padding is looked at too
        let t5 = t5.map(|ids| ranks.start(|| components.encode_t5("text_encoder_3", device, &ids, false, observer)));
        let (clip_1, clip_2) = (ranks.take(clip_1, n)?, ranks.take(clip_2, n)?);
        let t5: Vec<_> = match t5.transpose()? {
            Some(t5) => ranks.take(t5, n)?.into_iter().map(Made::into_states).collect(),
            None => {
                let d = components.config::<Sd3Config>("transformer")?.joint_attention_dim;
                let zeros = Tensor::zeros([1, max_sequence_length, d], (device, DType::from(components.options.dtype)));
                vec![TextStates::all(zeros); n]
            }
        };
        let join = |((clip_1, clip_2), t5): ((Made, Made), TextStates)| {
            let pooled = [&clip_1, &clip_2].map(|clip| clip.clone().into_pooled());
            TextEmbeddings {
                txt: TextStates::all(join(clip_1.into_states().states, clip_2.into_states().states, t5.states)),
                txt_2: None,
                pooled: Some(Tensor::cat(pooled.into(), 1)),
            }
        };
        Ok(clip_1.into_iter().zip(clip_2).zip(t5).map(join).collect())
    }

    fn attends_twice(&self, components: &Components, block: usize) -> Result<bool, PipelineError> {
        Ok(components.config::<Sd3Config>("transformer")?.dual_attention_layers.contains(&block))
    }

    fn n_txt_tokens(&self, components: &Components, max_sequence_length: usize) -> Result<usize, PipelineError> {
        Ok(components.clip_limit("tokenizer", &components.config("text_encoder")?)? + max_sequence_length)
    }

    /// In units of an ordinary block: attention's four projections again, beside its four and the feed-forward's eight.
    fn costs(&self, components: &Components) -> Result<Vec<f64>, PipelineError> {
        let config: Sd3Config = components.config("transformer")?;
        let cost = |i: usize| if config.dual_attention_layers.contains(&i) { 16.0 / 12.0 } else { 1.0 };
        Ok((0..config.num_layers).map(cost).collect())
    }

    fn text(&self, components: &Components, max_sequence_length: usize) -> Result<TextSizes, PipelineError> {
        let config: Sd3Config = components.config("transformer")?;
        Ok(TextSizes {
            txt: [self.n_txt_tokens(components, max_sequence_length)?, config.joint_attention_dim],
            txt_2: None,
            pooled: Some(config.pooled_projection_dim),
            masked: false,
        })
    }

    fn work(&self, components: &Components, img: usize, txt: usize) -> Result<Work, PipelineError> {
        Ok(work::sd3(&components.config("transformer")?, img, txt))
    }

    fn activations(&self, components: &Components, pass: &BlockPass) -> Result<Activations, PipelineError> {
        Ok(activations::sd3(&components.config("transformer")?, pass))
    }

    fn dit(
        &self,
        components: &Components,
        device: &Device,
        blocks: Range<usize>,
        observer: &mut dyn Observer,
    ) -> Result<(Box<dyn Dit>, u64), PipelineError> {
        let config: Sd3Config = components.config("transformer")?;
        components.load_blocks(device, &[], blocks, observer, |l, b| Sd3::load(l, &config, b))
    }
}

/// The states of both CLIP encoders side by side, filled up with zeros to T5's width, then T5's, as one sequence.
fn join(clip_1: Tensor<3>, clip_2: Tensor<3>, t5: Tensor<3>) -> Tensor<3> {
    let clip = Tensor::cat(vec![clip_1, clip_2], 2);
    let [b, n, d] = clip.dims();
    let width = t5.dims()[2];
    let clip = match width.checked_sub(d) {
        Some(missing) if missing > 0 => {
            let zeros = Tensor::zeros([b, n, missing], (&clip.device(), clip.dtype()));
            Tensor::cat(vec![clip, zeros], 2)
        }
        // a negative padding upstream: what is too wide is cut off
        _ => clip.narrow(2, 0, width),
    };
    Tensor::cat(vec![clip, t5], 1)
}

/// One of the two CLIP encoders, with the texts in its tokens.
struct Clip {
    component: &'static str,
    config: ClipTextConfig,
    texts: Vec<Encoded>,
}

impl Clip {
    fn open(
        components: &Components,
        component: &'static str,
        tokenizer: &str,
        texts: &[&str],
        observer: &mut dyn Observer,
    ) -> Result<Self, PipelineError> {
        let config: ClipTextConfig = components.config(component)?;
        // upstream: the first tokenizer's for both
        let limit = components.clip_limit("tokenizer", &config)?;
        let texts = components.tokens(tokenizer, texts, limit, config.vocab_size, observer)?;
        Ok(Self { component, config, texts })
    }

    /// The encoder is gone when this returns.
    fn encode(
        self,
        components: &Components,
        device: &Device,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Made>, PipelineError> {
        let clip = components.encoder(self.component, device, ClipText::UNUSED_WITH_PROJECTION, observer, |l| {
            ClipText::load_with_projection(l, &self.config)
        })?;
        each(&self.texts, self.component, observer, |text| {
            let out = clip.forward(from_ref(&text.ids));
            let last_but_one = out.hidden_states.len() - 2;
            let states = TextStates::all(out.hidden_states[last_but_one].clone());
            Made { states: Some(states), pooled: Some(out.pooled) }
        })
    }
}
