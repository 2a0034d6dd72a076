//! `FluxTransformer2DModel`: FLUX.1 dev and schnell, and anything of their architecture.
//!
//! Mirrors `src/diffusers/models/transformers/transformer_flux.py`. The double blocks keep text and image apart but for
//! one joint attention; the single blocks run both as one sequence. Blocks are numbered through: doubles, then singles.

use std::ops::Range;

use burn::tensor::{DType, Device, Tensor};
use serde::Deserialize;
use xdit_core::checkpoint::{LoadError, Loader};
use xdit_core::comm::CommError;
use xdit_core::dit::{Cond, Ctx, Dit, DitSpec, Inputs, Positions, Site, Streams, TextEmbeddings, TokenGrid, parted};
use xdit_core::ops::{self, Activation, Linear, RopeTable, linear_cat, merge_heads};

use crate::dit::stream::{Modulation, StreamWeights};
use crate::dit::{
    ADDED, Ada, Blocks, EPS, Heads, Mlp, OWN, QkNorm, QkvWeights, WIDTH, at_each_step, clip_f16, conditions,
    continuous_norm, modulate,
};
use crate::error::{ModelError, few, positive};

/// `transformer/config.json`; field names and defaults are the checkpoint's.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct FluxConfig {
    /// Side of the square of latent pixels that one token holds; 1 as the pipeline packs them beforehand.
    pub patch_size: usize,
    /// Channels of an image token: 4 times the VAE's.
    pub in_channels: usize,
    /// Channels of a predicted token, which are `in_channels`; so they are where absent or 0.
    pub out_channels: Option<usize>,
    /// Double blocks.
    pub num_layers: usize,
    /// Single blocks.
    pub num_single_layers: usize,
    /// Channels of a head.
    pub attention_head_dim: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Channels of the T5 encoder's states.
    pub joint_attention_dim: usize,
    /// Channels of CLIP's pooled vector.
    pub pooled_projection_dim: usize,
    /// Whether the guidance scale is an input (dev) or not (schnell).
    pub guidance_embeds: bool,
    /// Channels of a head that each position axis turns: none, row, column.
    pub axes_dims_rope: [usize; 3],
}

impl Default for FluxConfig {
    fn default() -> Self {
        Self {
            patch_size: 1,
            in_channels: 64,
            out_channels: None,
            num_layers: 19,
            num_single_layers: 38,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 4096,
            pooled_projection_dim: 768,
            guidance_embeds: false,
            axes_dims_rope: [16, 56, 56],
        }
    }
}

impl FluxConfig {
    /// Width of the model.
    pub fn d_model(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// What a plan must know.
    pub fn spec(&self) -> DitSpec {
        DitSpec {
            n_blocks: self.num_layers + self.num_single_layers,
            n_heads: self.num_attention_heads,
            head_dim: self.attention_head_dim,
            channels: self.in_channels,
            joint: true,
            txt_each_step: false,
        }
    }

    fn heads(&self) -> Heads {
        Heads { n: self.num_attention_heads, dim: self.attention_head_dim, norm: QkNorm::Rms }
    }

    pub(crate) fn check(&self) -> Result<(), ModelError> {
        let class = "FluxTransformer2DModel";
        positive(
            class,
            &[
                ("num_attention_heads", self.num_attention_heads),
                ("attention_head_dim", self.attention_head_dim),
                ("in_channels", self.in_channels),
                ("joint_attention_dim", self.joint_attention_dim),
                ("pooled_projection_dim", self.pooled_projection_dim),
                (WIDTH, self.num_attention_heads.saturating_mul(self.attention_head_dim)),
            ],
        )?;
        let n_blocks = self.num_layers.saturating_add(self.num_single_layers);
        few(class, &[("num_layers", self.num_layers), ("num_layers + num_single_layers", n_blocks)])?;
        let axes = self.axes_dims_rope;
        let (sum, head_dim) = (axes.iter().fold(0_usize, |sum, a| sum.saturating_add(*a)), self.attention_head_dim);
        let bad = |what: String| Err(ModelError::Config { class, what });
        if sum != head_dim || axes.iter().any(|a| !a.is_multiple_of(2)) {
            return bad(format!(
                "axes_dims_rope={axes:?} must be even and add up to attention_head_dim={head_dim}, not {sum}"
            ));
        }
        if self.patch_size != 1 {
            return bad(format!("patch_size={} is not supported, only 1", self.patch_size));
        }
        if let Some(out) = self.out_channels.filter(|out| *out != 0 && *out != self.in_channels) {
            return bad(format!("out_channels={out} is not supported, only in_channels={}", self.in_channels));
        }
        Ok(())
    }
}

/// The model with its weights on a device.
#[derive(Debug)]
pub struct Flux {
    config: FluxConfig,
    dtype: DType,
    device: Device,
    x_embedder: Linear,
    context_embedder: Linear,
    time_text_embed: TimeTextEmbed,
    transformer_blocks: Blocks<DoubleBlock>,
    single_transformer_blocks: Blocks<SingleBlock>,
    norm_out: Linear,
    proj_out: Linear,
}

impl Flux {
    /// Reads the weights of these blocks and of what stands around them.
    ///
    /// # Errors
    /// A configuration that contradicts itself; tensors of other shapes than it demands.
    pub fn load(loader: &Loader<'_>, config: &FluxConfig, blocks: Range<usize>) -> Result<Self, ModelError> {
        config.check()?;
        let (d, channels) = (config.d_model(), config.in_channels);
        let linear = |name: &str, d_in, d_out| Linear::load(&loader.pp(name), d_in, d_out);
        let double = |i| DoubleBlock::load(&loader.pp("transformer_blocks").pp(i), config, 2 * i);
        let slot = |i| 2 * config.num_layers + i;
        let single = |i| SingleBlock::load(&loader.pp("single_transformer_blocks").pp(i), config, slot(i));
        Ok(Self {
            dtype: loader.dtype().into(),
            device: loader.device().clone(),
            x_embedder: linear("x_embedder", channels, d)?,
            context_embedder: linear("context_embedder", config.joint_attention_dim, d)?,
            time_text_embed: TimeTextEmbed::load(&loader.pp("time_text_embed"), config)?,
            transformer_blocks: Blocks::load(&blocks, 0..config.num_layers, double)?,
            single_transformer_blocks: Blocks::load(&blocks, config.num_layers..config.spec().n_blocks, single)?,
            norm_out: linear("norm_out.linear", d, 2 * d)?,
            proj_out: linear("proj_out", d, channels)?,
            config: config.clone(),
        })
    }
}

impl Dit for Flux {
    fn spec(&self) -> DitSpec {
        self.config.spec()
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn positions(&self, grid: TokenGrid, n_txt: usize) -> Positions {
        let img = grid.positions().map(|[_, row, col]| [0.0, row as f64, col as f64]);
        // text tokens stand at 0: they are not turned
        let ids: Vec<_> = std::iter::repeat_n([0.0; 3], n_txt).chain(img).collect();
        let rope = RopeTable::new(&ids, self.config.axes_dims_rope, 10_000.0, &self.device);
        Positions { rope: Some(rope), n_txt, added: None }
    }

    fn condition(&self, inputs: Inputs<'_>) -> Vec<Cond> {
        let Inputs { timesteps, text, guidance, .. } = inputs;
        let guidance = self.config.guidance_embeds.then(|| guidance.unwrap_or(1.0));
        let pooled = text.pooled.clone().expect("Flux takes CLIP's pooled vector");
        // the pipeline divides by 1000, and the model multiplies again
        let times: Vec<f32> = timesteps.iter().map(|timestep| timestep / 1000.0).collect();
        let temb = self.time_text_embed.forward(&times, guidance, ops::to_dtype(pooled, self.dtype));
        let mut conds = conditions(&temb, timesteps.len());
        let doubles = self.transformer_blocks.iter().flat_map(|block| [block.img.ada(), block.txt.ada()]);
        modulate(doubles.chain(self.single_transformer_blocks.iter().map(|block| &block.norm)), &temb, &mut conds);
        conds
    }

    fn embed_txt(&self, text: &TextEmbeddings, _cond: &Cond, _positions: &Positions) -> Tensor<3> {
        self.context_embedder.forward(ops::to_dtype(text.txt.states.clone(), self.dtype))
    }

    fn embed_img(&self, latents: Tensor<3>, _positions: &Positions) -> Tensor<3> {
        self.x_embedder.forward(ops::to_dtype(latents, self.dtype))
    }

    fn block(&self, ctx: &mut Ctx<'_>, i: usize, x: Streams, cond: &Cond) -> Result<Streams, CommError> {
        match i.checked_sub(self.config.num_layers) {
            None => self.transformer_blocks.get(i).forward(ctx, Site::first(i), x, cond),
            Some(single) => self.single_transformer_blocks.get(single).forward(ctx, Site::first(i), x, cond),
        }
    }

    fn head(&self, x: Streams, cond: &Cond) -> Tensor<3> {
        ops::to_f32(self.proj_out.forward(continuous_norm(&self.norm_out, x.img, &cond.temb)))
    }
}

/// `CombinedTimestepGuidanceTextProjEmbeddings`: time, guidance and pooled text to one vector.
#[derive(Debug)]
struct TimeTextEmbed {
    timestep: Mlp,
    guidance: Option<Mlp>,
    text: Mlp,
}

impl TimeTextEmbed {
    fn load(loader: &Loader<'_>, config: &FluxConfig) -> Result<Self, LoadError> {
        let d = config.d_model();
        let text = [config.pooled_projection_dim, d, d];
        Ok(Self {
            timestep: Mlp::load_time(&loader.pp("timestep_embedder"), d)?,
            guidance: match config.guidance_embeds {
                true => Some(Mlp::load_time(&loader.pp("guidance_embedder"), d)?),
                false => None,
            },
            text: Mlp::load(&loader.pp("text_embedder"), text, Activation::Silu)?,
        })
    }

    /// `[times * batch, d]`
    ///
    /// - `pooled`: `[batch, d_pooled]`
    fn forward(&self, times: &[f32], guidance: Option<f32>, pooled: Tensor<2>) -> Tensor<2> {
        // upstream scales both by 1000, in the tensor's precision
        let scaled: Vec<f32> = times.iter().map(|time| time * 1000.0).collect();
        let mut temb = at_each_step(self.timestep.of_numbers(&scaled), self.text.forward(pooled));
        if let (Some(mlp), Some(guidance)) = (&self.guidance, guidance) {
            temb = temb + mlp.of_numbers(&[guidance * 1000.0]);
        }
        temb
    }
}

/// `FluxTransformerBlock`: text and image with weights of their own, one joint attention.
#[derive(Debug)]
struct DoubleBlock {
    img: StreamWeights,
    txt: StreamWeights,
}

impl DoubleBlock {
    /// - `slot`: the place of the first of its two layers that look at the condition alone
    fn load(loader: &Loader<'_>, config: &FluxConfig, slot: usize) -> Result<Self, LoadError> {
        let (heads, txt) = (config.heads(), ["norm1_context", "to_add_out", "ff_context"]);
        Ok(Self {
            img: StreamWeights::load(loader, ["norm1", "to_out.0", "ff"], OWN, heads, 2, slot)?,
            txt: StreamWeights::load(loader, txt, ADDED, heads, 2, slot + 1)?,
        })
    }

    fn forward(&self, ctx: &mut Ctx<'_>, site: Site, x: Streams, cond: &Cond) -> Result<Streams, CommError> {
        let [img, img_ff] = self.img.modulations(cond);
        let txt = x.txt.map(|x| (x, self.txt.modulations::<2>(cond)));
        let (txt_rope, img_rope) = (ctx.positions.txt_rope(), ctx.positions.img_rope());
        let txt_qkv = txt.as_ref().map(|(x, [m, _])| self.txt.qkv(x, m, txt_rope.as_ref()));
        let (qkv, n_txt) = self.img.joint_qkv(&x.img, &img, img_rope.as_ref(), txt_qkv);
        let (txt_attn, img_attn) = parted(ctx.attn.joint(site, qkv, n_txt)?, n_txt);
        let txt = txt.zip(txt_attn).map(|((x, [m, ff]), attn)| {
            // the image is not clipped here upstream
            clip_f16(self.txt.fed(self.txt.attended(x, attn, &m), &ff))
        });
        Ok(Streams::new(txt, self.img.fed(self.img.attended(x.img, img_attn, &img), &img_ff)))
    }
}

/// `FluxSingleTransformerBlock`: attention and feed-forward side by side on text and image as one sequence.
#[derive(Debug)]
struct SingleBlock {
    norm: Ada,
    attn: QkvWeights,
    proj_mlp: Linear,
    proj_out: Linear,
}

impl SingleBlock {
    fn load(loader: &Loader<'_>, config: &FluxConfig, slot: usize) -> Result<Self, LoadError> {
        let d = config.d_model();
        Ok(Self {
            norm: Ada::load(&loader.pp("norm.linear"), [d, 3 * d], slot)?,
            attn: QkvWeights::load(&loader.pp("attn"), OWN, d, config.heads())?,
            proj_mlp: Linear::load(&loader.pp("proj_mlp"), d, 4 * d)?,
            proj_out: Linear::load(&loader.pp("proj_out"), 5 * d, d)?,
        })
    }

    fn forward(&self, ctx: &mut Ctx<'_>, site: Site, x: Streams, cond: &Cond) -> Result<Streams, CommError> {
        let [m] = Modulation::of(&self.norm, cond);
        let n_txt = x.txt.as_ref().map_or(0, |txt| txt.dims()[1]);
        let [_, n_img, _] = x.img.dims();
        // one sequence: the weights are the same for both streams and are read once
        let (x, rope) = match x.txt {
            Some(txt) => (ops::cat(vec![txt, x.img], 1), ctx.positions.rope.clone()),
            None => (x.img, ctx.positions.img_rope()),
        };
        let y = m.norm(x.clone(), EPS);
        let [to_attn, to_mlp] = ops::side_by_side(&x, [self.proj_out.d_out(), self.proj_mlp.d_out()]);
        let qkv = self.attn.forward(y.clone(), rope.as_ref()).into_place(to_attn);
        let mut mlp = None;
        let mut feed = || mlp = Some(self.proj_mlp.forward_into(y.clone(), Activation::GeluTanh, to_mlp.clone()));
        let attn = ctx.attn.joint_beside(site, qkv, n_txt, &mut feed)?;
        let mlp = mlp.expect("the work beside attention was done");
        let x = clip_f16(m.add(x, linear_cat(vec![merge_heads(attn), mlp], &self.proj_out)));
        let txt = (n_txt > 0).then(|| ops::narrow(&x, 1, 0..n_txt));
        Ok(Streams::new(txt, ops::narrow(&x, 1, n_txt..n_txt + n_img)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_fields_are_upstreams_and_other_channels_are_refused() {
        let read = |json: &str| serde_json::from_str::<FluxConfig>(json).unwrap();
        let spec = read("{}").spec();
        assert_eq!((spec.n_blocks, spec.n_heads, spec.head_dim, spec.channels), (57, 24, 128, 64));
        read(r#"{"out_channels": 0}"#).check().unwrap();
        let message = read(r#"{"out_channels": 16}"#).check().unwrap_err().to_string();
        assert_eq!(message, "FluxTransformer2DModel config: out_channels=16 is not supported, only in_channels=64");
    }
}
