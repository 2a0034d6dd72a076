//! `SD3Transformer2DModel`: Stable Diffusion 3 and 3.5, the MMDiT.
//!
//! Mirrors `src/diffusers/models/transformers/transformer_sd3.py` and `JointTransformerBlock` of
//! `src/diffusers/models/attention.py`. Text and image meet in one joint attention per block; some blocks of 3.5-medium
//! attend over the image once more; the last block only reads the text.

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use serde::Deserialize;
use xdit_core::checkpoint::{LoadError, Loader};
use xdit_core::comm::CommError;
use xdit_core::dit::{Cond, Ctx, Dit, DitSpec, Inputs, Positions, Site, Streams, TextEmbeddings, TokenGrid, parted};
use xdit_core::ops::{self, Activation, Linear, modulated_norm};

use crate::dit::stream::StreamWeights;
use crate::dit::{
    ADDED, Ada, Blocks, EPS, Heads, Mlp, OWN, QkNorm, QkvWeights, WIDTH, at_each_step, conditions, continuous_norm,
    load_patch_embed, load_proj_out, modulate, parts, project_heads, spec,
};
use crate::error::{ModelError, few, positive};

/// `transformer/config.json`; field names and defaults are the checkpoint's.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Sd3Config {
    /// Side in latent pixels of the pictures that it draws best.
    pub sample_size: usize,
    /// Side in latent pixels of a token.
    pub patch_size: usize,
    /// Channels of the latents.
    pub in_channels: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Channels of a head.
    pub attention_head_dim: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Channels of the text's states.
    pub joint_attention_dim: usize,
    /// Channels that they are projected to; the model's width.
    pub caption_projection_dim: usize,
    /// Channels of both CLIP models' pooled vectors together.
    pub pooled_projection_dim: usize,
    /// Channels of the prediction; `in_channels` where absent.
    pub out_channels: Option<usize>,
    /// Tokens along a side of the largest picture.
    pub pos_embed_max_size: usize,
    /// Blocks that attend over the image once more.
    pub dual_attention_layers: Vec<usize>,
    /// `rms_norm` in 3.5, absent in 3.
    pub qk_norm: Option<String>,
}

impl Default for Sd3Config {
    fn default() -> Self {
        Self {
            sample_size: 128,
            patch_size: 2,
            in_channels: 16,
            num_layers: 18,
            attention_head_dim: 64,
            num_attention_heads: 18,
            joint_attention_dim: 4096,
            caption_projection_dim: 1152,
            pooled_projection_dim: 2048,
            out_channels: Some(16),
            pos_embed_max_size: 96,
            dual_attention_layers: Vec::new(),
            qk_norm: None,
        }
    }
}

impl Sd3Config {
    /// Width of the model.
    pub fn d_model(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// What a plan must know.
    pub fn spec(&self) -> DitSpec {
        let heads = [self.num_attention_heads, self.attention_head_dim];
        DitSpec { joint: true, ..spec(self.num_layers, heads, self.in_channels, self.patch_size) }
    }

    pub(crate) fn check(&self) -> Result<Heads, ModelError> {
        let bad = |what: String| Err(ModelError::Config { class: "SD3Transformer2DModel", what });
        few("SD3Transformer2DModel", &[("num_layers", self.num_layers), ("patch_size", self.patch_size)])?;
        positive(
            "SD3Transformer2DModel",
            &[
                (WIDTH, self.num_attention_heads.saturating_mul(self.attention_head_dim)),
                ("sample_size", self.sample_size),
                ("joint_attention_dim", self.joint_attention_dim),
                ("pooled_projection_dim", self.pooled_projection_dim),
                ("patch_size", self.patch_size),
                ("in_channels", self.in_channels),
                ("num_layers", self.num_layers),
                ("attention_head_dim", self.attention_head_dim),
                ("num_attention_heads", self.num_attention_heads),
                ("pos_embed_max_size", self.pos_embed_max_size),
            ],
        )?;
        if self.caption_projection_dim != self.d_model() {
            return bad(format!(
                "caption_projection_dim={} must be num_attention_heads * attention_head_dim={}",
                self.caption_projection_dim,
                self.d_model()
            ));
        }
        if self.out_channels.is_some_and(|out| out != self.in_channels) {
            return bad(format!("out_channels={:?} must be in_channels={}", self.out_channels, self.in_channels));
        }
        let norm = match self.qk_norm.as_deref() {
            None => QkNorm::No,
            Some("rms_norm") => QkNorm::Rms,
            Some(other) => return bad(format!("qk_norm={other:?} is not supported, only \"rms_norm\" and null")),
        };
        Ok(Heads { n: self.num_attention_heads, dim: self.attention_head_dim, norm })
    }
}

/// The model with its weights on a device.
#[derive(Debug)]
pub struct Sd3 {
    config: Sd3Config,
    dtype: DType,
    pos_embed_proj: Linear,
    pos_embed: Tensor<3>,
    timestep_embedder: Mlp,
    text_embedder: Mlp,
    context_embedder: Linear,
    transformer_blocks: Blocks<Block>,
    norm_out: Linear,
    proj_out: Linear,
}

impl Sd3 {
    /// Reads the weights of these blocks and of what stands around them.
    ///
    /// # Errors
    /// A configuration that contradicts itself; tensors of other shapes than it demands.
    pub fn load(loader: &Loader<'_>, config: &Sd3Config, blocks: Range<usize>) -> Result<Self, ModelError> {
        let heads = config.check()?;
        let (d, side, patch) = (config.d_model(), config.pos_embed_max_size, config.patch_size);
        let (channels, time_text) = (config.in_channels, loader.pp("time_text_embed"));
        let text = [config.pooled_projection_dim, d, d];
        let block = |i| Block::load(&loader.pp("transformer_blocks").pp(i), config, heads, i);
        Ok(Self {
            dtype: loader.dtype().into(),
            pos_embed_proj: load_patch_embed(&loader.pp("pos_embed.proj"), channels, patch, d)?,
            pos_embed: loader.pp("pos_embed").tensor("pos_embed", [1, side * side, d])?,
            timestep_embedder: Mlp::load_time(&time_text.pp("timestep_embedder"), d)?,
            text_embedder: Mlp::load(&time_text.pp("text_embedder"), text, Activation::Silu)?,
            context_embedder: Linear::load(&loader.pp("context_embedder"), config.joint_attention_dim, d)?,
            transformer_blocks: Blocks::load(&blocks, 0..config.num_layers, block)?,
            norm_out: Linear::load(&loader.pp("norm_out.linear"), d, 2 * d)?,
            proj_out: load_proj_out(&loader.pp("proj_out"), d, patch, channels, channels)?,
            config: config.clone(),
        })
    }
}

impl Dit for Sd3 {
    fn spec(&self) -> DitSpec {
        self.config.spec()
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    /// # Panics
    /// A picture of more tokens along a side than `pos_embed_max_size`.
    fn positions(&self, grid: TokenGrid, _n_txt: usize) -> Positions {
        // the table is of the largest picture; a smaller one is cut out of its middle
        let side = self.config.pos_embed_max_size;
        let (top, left) = ((side - grid.rows) / 2, (side - grid.cols) / 2);
        let table = self.pos_embed.clone().reshape([side, side, self.config.d_model()]);
        let table = table.narrow(0, top, grid.rows).narrow(1, left, grid.cols);
        let added = Some(table.reshape([grid.n_tokens(), self.config.d_model()]));
        Positions { added, ..Positions::default() }
    }

    fn condition(&self, inputs: Inputs<'_>) -> Vec<Cond> {
        let Inputs { timesteps, text, .. } = inputs;
        let pooled = text.pooled.clone().expect("SD3 takes CLIP's pooled vectors");
        let time = self.timestep_embedder.of_numbers(timesteps);
        let temb = at_each_step(time, self.text_embedder.forward(ops::to_dtype(pooled, self.dtype)));
        let mut conds = conditions(&temb, timesteps.len());
        let layers = self.transformer_blocks.iter().flat_map(|block| [block.img.ada(), block.txt.ada()]);
        modulate(layers, &temb, &mut conds);
        conds
    }

    fn embed_txt(&self, text: &TextEmbeddings, _cond: &Cond, _positions: &Positions) -> Tensor<3> {
        self.context_embedder.forward(ops::to_dtype(text.txt.states.clone(), self.dtype))
    }

    fn embed_img(&self, latents: Tensor<3>, positions: &Positions) -> Tensor<3> {
        let table = positions.added.clone().expect("SD3 places its tokens");
        self.pos_embed_proj.forward(ops::to_dtype(latents, self.dtype)) + table.unsqueeze()
    }

    fn block(&self, ctx: &mut Ctx<'_>, i: usize, x: Streams, cond: &Cond) -> Result<Streams, CommError> {
        self.transformer_blocks.get(i).forward(ctx, i, x, cond)
    }

    fn head(&self, x: Streams, cond: &Cond) -> Tensor<3> {
        ops::to_f32(self.proj_out.forward(continuous_norm(&self.norm_out, x.img, &cond.temb)))
    }
}

/// `JointTransformerBlock`
#[derive(Debug)]
struct Block {
    img: StreamWeights,
    txt: Txt,
    attn2: Option<(QkvWeights, Linear)>,
}

/// The text's weights in a block.
#[derive(Debug)]
enum Txt {
    Changed(Box<StreamWeights>),
    /// The last block only reads the text.
    Read(Box<(Ada, QkvWeights)>),
}

impl Txt {
    fn ada(&self) -> &Ada {
        match self {
            Self::Changed(weights) => weights.ada(),
            Self::Read(weights) => &weights.0,
        }
    }
}

impl Block {
    fn load(loader: &Loader<'_>, config: &Sd3Config, heads: Heads, i: usize) -> Result<Self, LoadError> {
        let d = config.d_model();
        let (attn, attn2) = (loader.pp("attn"), loader.pp("attn2"));
        let dual = config.dual_attention_layers.contains(&i);
        let n = if dual { 3 } else { 2 };
        Ok(Self {
            img: StreamWeights::load(loader, ["norm1", "to_out.0", "ff"], OWN, heads, n, 2 * i)?,
            txt: match i + 1 == config.num_layers {
                true => Txt::Read(Box::new((
                    Ada::load(&loader.pp("norm1_context.linear"), [d, 2 * d], 2 * i + 1)?,
                    QkvWeights::load(&attn, ADDED, d, heads)?,
                ))),
                false => {
                    let names = ["norm1_context", "to_add_out", "ff_context"];
                    Txt::Changed(Box::new(StreamWeights::load(loader, names, ADDED, heads, 2, 2 * i + 1)?))
                }
            },
            attn2: match dual {
                true => Some((QkvWeights::load(&attn2, OWN, d, heads)?, Linear::load(&attn2.pp("to_out.0"), d, d)?)),
                false => None,
            },
        })
    }

    fn forward(&self, ctx: &mut Ctx<'_>, i: usize, x: Streams, cond: &Cond) -> Result<Streams, CommError> {
        let site = Site::first(i);
        let (img, img_ff, second) = match &self.attn2 {
            None => {
                let [attn, ff] = self.img.modulations(cond);
                (attn, ff, None)
            }
            Some((qkv, out)) => {
                let [attn, ff, second] = self.img.modulations(cond);
                // read before the joint attention changes the stream
                let qkv = qkv.forward(second.norm(x.img.clone(), EPS), None);
                (attn, ff, Some((qkv, out, second)))
            }
        };
        let (txt_qkv, changed) = match (&self.txt, &x.txt) {
            (_, None) => (None, None),
            (Txt::Read(weights), Some(txt)) => {
                let (norm, qkv) = &**weights;
                // AdaLayerNormContinuous, which names the scale first
                let [scale, shift] = parts(norm.forward(cond));
                (Some(qkv.of(modulated_norm(txt.clone(), shift, scale, EPS), None)), None)
            }
            (Txt::Changed(weights), Some(txt)) => {
                let [attn, ff] = weights.modulations(cond);
                (Some(weights.qkv(txt, &attn, None)), Some((weights, attn, ff)))
            }
        };
        let (qkv, n_txt) = self.img.joint_qkv(&x.img, &img, None, txt_qkv);
        let (txt_attn, img_attn) = parted(ctx.attn.joint(site, qkv, n_txt)?, n_txt);

        let mut new_img = self.img.attended(x.img, img_attn, &img);
        if let Some((qkv, out, second)) = second {
            let attn = ctx.attn.self_attn(Site { call: 1, ..site }, qkv)?;
            new_img = second.add(new_img, project_heads(out, attn));
        }
        let new_txt = match (changed, x.txt) {
            (Some((weights, attn, ff)), Some(txt)) => {
                txt_attn.map(|heads| weights.fed(weights.attended(txt, heads, &attn), &ff))
            }
            (_, txt) => txt,
        };
        Ok(Streams::new(new_txt, self.img.fed(new_img, &img_ff)))
    }
}
