//! `HunyuanDiTPipeline`: BERT and mT5 encoders, standard sizes.
//!
//! Mirrors `src/diffusers/pipelines/hunyuandit/pipeline_hunyuandit.py`, without the safety checker.

use std::ops::Range;
use std::slice::from_ref;

use burn::tensor::Device;
use xdit_core::dit::{Dit, DitSpec, TextEmbeddings, TextStates};
use xdit_core::observer::Observer;

use crate::bench::text::TextSizes;
use crate::bench::work::{self, Work};
use crate::dit::hunyuan_dit::{HunyuanDit, HunyuanDitConfig};
use crate::pipeline::activations::{self, Activations, BlockPass};
use crate::pipeline::architecture::{Architecture, DIFFUSION_SCHEDULERS, unshifted};
use crate::pipeline::binning::Binning;
use crate::pipeline::components::{Components, each};
use crate::pipeline::encoding::{Encoding, Made};
use crate::pipeline::error::PipelineError;
use crate::pipeline::geometry::Geometry;
use crate::pipeline::request::Defaults;
use crate::text::bert::{Bert, BertConfig};

/// HunyuanDiT.
pub struct HunyuanDitPipeline;

impl Architecture for HunyuanDitPipeline {
    fn class_name(&self) -> &'static str {
        "HunyuanDiTPipeline"
    }

    fn about(&self) -> &'static str {
        "HunyuanDiT 1.1 and 1.2, and the distilled ones"
    }

    fn check(&self, components: &Components) -> Result<(), PipelineError> {
        components.expect("transformer", "HunyuanDiT2DModel")?;
        components.expect("text_encoder", "BertModel")?;
        components.expect("tokenizer", "BertTokenizer or BertTokenizerFast")?;
        components.expect("text_encoder_2", "T5EncoderModel")?;
        components.expect("tokenizer_2", "T5Tokenizer or T5TokenizerFast")?;
        components.expect("vae", "AutoencoderKL")?;
        components.expect("scheduler", DIFFUSION_SCHEDULERS)?;
        unshifted(components)?;
        let config: HunyuanDitConfig = components.config("transformer")?;
        config.check()?;
        let bert: BertConfig = components.config("text_encoder")?;
        bert.check()?;
        if config.text_len > bert.max_position_embeddings {
            return Err(PipelineError::Disagree {
                made_by: "text_len of transformer",
                made: config.text_len,
                taken_by: "at most max_position_embeddings of text_encoder",
                taken: bert.max_position_embeddings,
            });
        }
        let latent_channels = components.vae_config()?.latent_channels;
        components.agree(&[
            ("latent_channels of vae", latent_channels, "in_channels of transformer", config.in_channels),
            (
                "hidden_size of text_encoder",
                bert.hidden_size,
                "cross_attention_dim of transformer",
                config.cross_attention_dim,
            ),
            (
                "d_model of text_encoder_2",
                components.t5_config("text_encoder_2")?.d_model,
                "cross_attention_dim_t5 of transformer",
                config.cross_attention_dim_t5,
            ),
        ])
    }

    fn geometry(&self, components: &Components) -> Result<Geometry, PipelineError> {
        let transformer: HunyuanDitConfig = components.config("transformer")?;
        Ok(Geometry::unpacked(components.vae_scale()?, transformer.in_channels, transformer.patch_size))
    }

    fn binning(&self, _components: &Components) -> Result<Option<Binning>, PipelineError> {
        Ok(Some(Binning::Standard))
    }

    fn spec(&self, components: &Components) -> Result<DitSpec, PipelineError> {
        Ok(components.config::<HunyuanDitConfig>("transformer")?.spec())
    }

    fn defaults(&self, components: &Components) -> Result<Defaults, PipelineError> {
        let transformer: HunyuanDitConfig = components.config("transformer")?;
        Ok(Defaults::square(transformer.sample_size * components.vae_scale()?, 50, 5.0, transformer.text_len_t5))
    }

    fn takes_length(&self) -> bool {
        false
    }

    /// The numbers of tokens are the transformer's, whatever `max_sequence_length` says.
    fn encode(
        &self,
        components: &Components,
        ranks: &Encoding<'_>,
        texts: &[&str],
        _max_sequence_length: usize,
        observer: &mut dyn Observer,
    ) -> Result<Vec<TextEmbeddings>, PipelineError> {
        let transformer: HunyuanDitConfig = components.config("transformer")?;
        let bert_vocab = components.config::<BertConfig>("text_encoder")?.vocab_size;
        let t5_vocab = components.t5_config("text_encoder_2")?.vocab_size;
        let bert_ids = components.tokens("tokenizer", texts, transformer.text_len, bert_vocab, observer)?;
        let t5_ids = components.tokens("tokenizer_2", texts, transformer.text_len_t5, t5_vocab, observer)?;

        let config: BertConfig = components.config("text_encoder")?;
        let (device, n) = (ranks.device(), texts.len());
        let bert = ranks.start(|| {
            let bert = components
                .encoder("text_encoder", device, Bert::UNUSED, observer, |loader| Bert::load(loader, &config))?;
            each(&bert_ids, "text_encoder", observer, |text| {
                let seen = vec![text.seen()];
                Made::states(TextStates { states: bert.forward(from_ref(&text.ids), Some(&seen)), seen: Some(seen) })
            })
        })?;
        let t5 = ranks.start(|| components.encode_t5("text_encoder_2", device, &t5_ids, true, observer))?;
        let made = ranks.take(bert, n)?.into_iter().zip(ranks.take(t5, n)?);
        let join = |(bert, t5): (Made, Made)| TextEmbeddings {
            txt: bert.into_states(),
            txt_2: Some(t5.into_states()),
            pooled: None,
        };
        Ok(made.map(join).collect())
    }

    /// In units of an ordinary block, of six projections of attention and eight of the feed-forward: a block of the second
    /// half joins what it takes up by another two.
    fn costs(&self, components: &Components) -> Result<Vec<f64>, PipelineError> {
        let n = self.spec(components)?.n_blocks;
        Ok((0..n).map(|i| if i > n / 2 { 16.0 / 14.0 } else { 1.0 }).collect())
    }

    fn text(&self, components: &Components, _max_sequence_length: usize) -> Result<TextSizes, PipelineError> {
        let config: HunyuanDitConfig = components.config("transformer")?;
        Ok(TextSizes {
            txt: [config.text_len, config.cross_attention_dim],
            txt_2: Some([config.text_len_t5, config.cross_attention_dim_t5]),
            pooled: None,
            masked: true,
        })
    }

    fn work(&self, components: &Components, img: usize, txt: usize) -> Result<Work, PipelineError> {
        Ok(work::hunyuan_dit(&components.config("transformer")?, img, txt))
    }

    fn activations(&self, components: &Components, pass: &BlockPass) -> Result<Activations, PipelineError> {
        let config: HunyuanDitConfig = components.config("transformer")?;
        let half = config.num_layers / 2;
        // the outputs of the first half's blocks wait for the second half
        let waiting = half.saturating_sub(1).min(pass.blocks.end) as u64;
        let (spec, ratio) = (config.spec(), config.mlp_ratio);
        Ok(Activations {
            widest: activations::cross(&spec, ratio, pass) + waiting * pass.stream(&spec),
            position: 4 * spec.head_dim as u64,
        })
    }

    fn encoder_tokens(
        &self,
        components: &Components,
        component: &str,
        _max_sequence_length: usize,
    ) -> Result<usize, PipelineError> {
        let config: HunyuanDitConfig = components.config("transformer")?;
        Ok(if component == "text_encoder" { config.text_len } else { config.text_len_t5 })
    }

    fn dit(
        &self,
        components: &Components,
        device: &Device,
        blocks: Range<usize>,
        observer: &mut dyn Observer,
    ) -> Result<(Box<dyn Dit>, u64), PipelineError> {
        let config: HunyuanDitConfig = components.config("transformer")?;
        components.load_blocks(device, &[], blocks, observer, |l, b| HunyuanDit::load(l, &config, b))
    }
}
