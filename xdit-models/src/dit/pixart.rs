//! `PixArtTransformer2DModel`: PixArt-alpha and PixArt-Sigma.
//!
//! Mirrors `src/diffusers/models/transformers/pixart_transformer_2d.py` and `BasicTransformerBlock` with
//! `ada_norm_single` of `src/diffusers/models/attention.py`. Scales, shifts and gates are computed once for all blocks
//! (AdaLN-single); each block adds its own table to them. The text enters by cross-attention.

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use serde::Deserialize;
use xdit_core::checkpoint::{LoadError, Loader};
use xdit_core::comm::CommError;
use xdit_core::dit::{Cond, Ctx, Dit, DitSpec, Inputs, Positions, Site, Streams, TextEmbeddings, TokenGrid};
use xdit_core::ops::{self, Activation, Linear, modulated_norm};

use crate::dit::stream::Modulation;
use crate::dit::{
    Blocks, CrossWeights, EPS, FeedForward, Heads, Mlp, OWN, QkNorm, QkvWeights, WIDTH, conditions, keep,
    load_patch_embed, load_proj_out, parts, project_heads, project_heads_onto, sincos_2d, spec,
};
use crate::error::{ModelError, few, positive};
use crate::text::hide;

/// `transformer/config.json`; field names and defaults are the checkpoint's.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct PixArtConfig {
    /// Heads.
    pub num_attention_heads: usize,
    /// Channels of a head.
    pub attention_head_dim: usize,
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels of the prediction: twice `in_channels` where it predicts variances too.
    pub out_channels: Option<usize>,
    /// Blocks.
    pub num_layers: usize,
    /// Width of the text in the blocks; the model's.
    pub cross_attention_dim: Option<usize>,
    /// Whether queries, keys and values have a bias; always true.
    pub attention_bias: bool,
    /// Side in latent pixels of the pictures that it was trained on.
    pub sample_size: usize,
    /// Side in latent pixels of a token.
    pub patch_size: usize,
    /// Activation of the feed-forward, always `gelu-approximate`.
    pub activation_fn: String,
    /// Kind of norm, always `ada_norm_single`.
    pub norm_type: String,
    /// Added to the variance in the blocks' norms.
    pub norm_eps: f64,
    /// Whether the blocks' norms have weights of their own; they have not.
    pub norm_elementwise_affine: bool,
    /// Says nothing here, but may not be `null`.
    pub num_embeds_ada_norm: Option<u64>,
    /// What positions are divided by; `sample_size / 64` where absent.
    pub interpolation_scale: Option<f64>,
    /// Whether it is told the picture's size; only where `sample_size` is 128 if absent.
    pub use_additional_conditions: Option<bool>,
    /// Channels of the T5 encoder's states; where absent, they are the model's.
    pub caption_channels: Option<usize>,
}

impl Default for PixArtConfig {
    fn default() -> Self {
        Self {
            num_attention_heads: 16,
            attention_head_dim: 72,
            in_channels: 4,
            out_channels: Some(8),
            num_layers: 28,
            cross_attention_dim: Some(1152),
            attention_bias: true,
            sample_size: 128,
            patch_size: 2,
            activation_fn: "gelu-approximate".into(),
            norm_type: "ada_norm_single".into(),
            norm_eps: 1e-6,
            norm_elementwise_affine: false,
            num_embeds_ada_norm: Some(1000),
            interpolation_scale: None,
            use_additional_conditions: None,
            caption_channels: None,
        }
    }
}

impl PixArtConfig {
    /// Width of the model.
    pub fn d_model(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    fn is_told_the_size(&self) -> bool {
        self.use_additional_conditions.unwrap_or(self.sample_size == 128)
    }

    /// What a plan must know.
    pub fn spec(&self) -> DitSpec {
        let heads = [self.num_attention_heads, self.attention_head_dim];
        spec(self.num_layers, heads, self.in_channels, self.patch_size)
    }

    pub(crate) fn check(&self) -> Result<Heads, ModelError> {
        let bad = |what: String| Err(ModelError::Config { class: "PixArtTransformer2DModel", what });
        few("PixArtTransformer2DModel", &[("num_layers", self.num_layers), ("patch_size", self.patch_size)])?;
        positive(
            "PixArtTransformer2DModel",
            &[
                (WIDTH, self.num_attention_heads.saturating_mul(self.attention_head_dim)),
                ("sample_size", self.sample_size),
                ("num_layers", self.num_layers),
                ("caption_channels", self.caption_channels.unwrap_or(1)),
                ("num_attention_heads", self.num_attention_heads),
                ("attention_head_dim", self.attention_head_dim),
                ("in_channels", self.in_channels),
                ("patch_size", self.patch_size),
            ],
        )?;
        let (d, channels) = (self.d_model(), self.in_channels);
        if d % 4 != 0 || (self.is_told_the_size() && d % 3 != 0) {
            return bad(format!("num_attention_heads * attention_head_dim={d} must be a multiple of 12"));
        }
        match self.cross_attention_dim {
            Some(cross) if cross == d => {}
            Some(cross) => return bad(format!("cross_attention_dim={cross} must be the model's width {d}")),
            // without a number upstream's blocks don't look at the text
            None => return bad(format!("cross_attention_dim=null is not supported, only the model's width {d}")),
        }
        if self.out_channels.is_some_and(|out| out != channels && out != 2 * channels) {
            return bad(format!("out_channels={:?} must be once or twice in_channels={channels}", self.out_channels));
        }
        if self.interpolation_scale.is_some_and(|scale| !(scale > 1e-6 && scale < 1e6)) {
            return bad(format!("interpolation_scale={:?} must be a positive number", self.interpolation_scale));
        }
        if self.sample_size < self.patch_size {
            return bad(format!("sample_size={} is less than patch_size={}", self.sample_size, self.patch_size));
        }
        for (name, found, expected) in [
            ("activation_fn", &self.activation_fn, "gelu-approximate"),
            ("norm_type", &self.norm_type, "ada_norm_single"),
        ] {
            if found != expected {
                return bad(format!("{name}={found:?} is not supported, only {expected:?}"));
            }
        }
        if !self.attention_bias {
            return bad("attention_bias=false is not supported, only true".into());
        }
        if self.norm_elementwise_affine {
            return bad("norm_elementwise_affine=true is not supported, only false".into());
        }
        if self.num_embeds_ada_norm.is_none() {
            return bad("num_embeds_ada_norm=null is not supported, only a number".into());
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return bad(format!("norm_eps={} must be a number that is not negative", self.norm_eps));
        }
        Ok(Heads { n: self.num_attention_heads, dim: self.attention_head_dim, norm: QkNorm::No })
    }
}

/// The model with its weights on a device.
#[derive(Debug)]
pub struct PixArt {
    config: PixArtConfig,
    dtype: DType,
    pos_embed_proj: Linear,
    timestep_embedder: Mlp,
    // of the resolution, and of the aspect ratio
    size_embedders: Option<[Mlp; 2]>,
    adaln_single: Linear,
    caption_projection: Option<Mlp>,
    transformer_blocks: Blocks<Block>,
    scale_shift_table: Tensor<2>,
    proj_out: Linear,
}

impl PixArt {
    /// Reads the weights of these blocks and of what stands around them.
    ///
    /// # Errors
    /// A configuration that contradicts itself; tensors of other shapes than it demands.
    pub fn load(loader: &Loader<'_>, config: &PixArtConfig, blocks: Range<usize>) -> Result<Self, ModelError> {
        let heads = config.check()?;
        let (d, patch, channels) = (config.d_model(), config.patch_size, config.in_channels);
        let adaln = loader.pp("adaln_single");
        let size = |name: &str| Mlp::load_time(&adaln.pp("emb").pp(name), d / 3);
        let caption = |d_in| Mlp::load(&loader.pp("caption_projection"), [d_in, d, d], Activation::GeluTanh);
        let block = |i| Block::load(&loader.pp("transformer_blocks").pp(i), d, heads, config.norm_eps, i);
        Ok(Self {
            dtype: loader.dtype().into(),
            pos_embed_proj: load_patch_embed(&loader.pp("pos_embed.proj"), channels, patch, d)?,
            timestep_embedder: Mlp::load_time(&adaln.pp("emb.timestep_embedder"), d)?,
            size_embedders: match config.is_told_the_size() {
                true => Some([size("resolution_embedder")?, size("aspect_ratio_embedder")?]),
                false => None,
            },
            adaln_single: Linear::load(&adaln.pp("linear"), d, 6 * d)?,
            caption_projection: config.caption_channels.map(caption).transpose()?,
            transformer_blocks: Blocks::load(&blocks, 0..config.num_layers, block)?,
            scale_shift_table: loader.tensor("scale_shift_table", [2, d])?,
            proj_out: load_proj_out(
                &loader.pp("proj_out"),
                d,
                patch,
                config.out_channels.unwrap_or(channels),
                channels,
            )?,
            config: config.clone(),
        })
    }
}

impl Dit for PixArt {
    fn spec(&self) -> DitSpec {
        self.config.spec()
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn positions(&self, grid: TokenGrid, _n_txt: usize) -> Positions {
        let sample = self.config.sample_size;
        let scale = self.config.interpolation_scale.unwrap_or((sample / 64).max(1) as f64);
        let device = self.scale_shift_table.device();
        let table = sincos_2d(grid, sample / self.config.patch_size, scale, self.config.d_model(), &device);
        Positions { added: Some(table), ..Positions::default() }
    }

    fn condition(&self, inputs: Inputs<'_>) -> Vec<Cond> {
        let Inputs { timesteps, text, size, .. } = inputs;
        let mut temb = self.timestep_embedder.of_numbers(timesteps);
        if let Some([resolution, aspect_ratio]) = &self.size_embedders {
            let [height, width] = size.map(|x| x as f32);
            let third = temb.dims()[1] / 3;
            let sides = resolution.of_numbers(&[height, width]).reshape([1, 2 * third]);
            temb = temb + Tensor::cat(vec![sides, aspect_ratio.of_numbers(&[height / width])], 1);
        }
        let shared = self.adaln_single.forward(Activation::Silu.apply(temb.clone()));
        // upstream adds -10000 to what is hidden, whose exponential is 0 too
        let txt_bias = text.txt.seen.as_ref().map(|seen| hide(seen, &temb));
        let mut conds = conditions(&temb, timesteps.len());
        for cond in &mut conds {
            cond.txt_bias.clone_from(&txt_bias);
        }
        for block in self.transformer_blocks.iter() {
            keep(&with_table(&block.scale_shift_table, shared.clone()), block.slot, &mut conds);
        }
        conds
    }

    fn embed_txt(&self, text: &TextEmbeddings, _cond: &Cond, _positions: &Positions) -> Tensor<3> {
        let txt = ops::to_dtype(text.txt.states.clone(), self.dtype);
        match &self.caption_projection {
            Some(projection) => projection.forward(txt),
            None => txt,
        }
    }

    fn embed_img(&self, latents: Tensor<3>, positions: &Positions) -> Tensor<3> {
        let table = positions.added.clone().expect("PixArt places its tokens");
        let img = self.pos_embed_proj.forward(ops::to_dtype(latents, self.dtype));
        ops::to_dtype(ops::to_f32(img) + table.unsqueeze(), self.dtype)
    }

    fn block(&self, ctx: &mut Ctx<'_>, i: usize, x: Streams, cond: &Cond) -> Result<Streams, CommError> {
        self.transformer_blocks.get(i).forward(ctx, i, x, cond)
    }

    fn head(&self, x: Streams, cond: &Cond) -> Tensor<3> {
        let shared = Tensor::cat(vec![cond.temb.clone(); 2], 1);
        let [shift, scale] = parts(with_table(&self.scale_shift_table, shared));
        ops::to_f32(self.proj_out.forward(modulated_norm(x.img, shift, scale, EPS)))
    }
}

/// The rows of a table, one after the other, added to `[batch, rows * d]`.
fn with_table(table: &Tensor<2>, shared: Tensor<2>) -> Tensor<2> {
    let [n, d] = table.dims();
    shared + table.clone().reshape([1, n * d])
}

/// `BasicTransformerBlock`
#[derive(Debug)]
struct Block {
    scale_shift_table: Tensor<2>,
    /// Its place in [`Cond::modulations`].
    slot: usize,
    attn1: QkvWeights,
    attn1_out: Linear,
    attn2: CrossWeights,
    attn2_out: Linear,
    ff: FeedForward,
    eps: f64,
}

impl Block {
    fn load(loader: &Loader<'_>, d: usize, heads: Heads, eps: f64, slot: usize) -> Result<Self, LoadError> {
        let (attn1, attn2) = (loader.pp("attn1"), loader.pp("attn2"));
        Ok(Self {
            scale_shift_table: loader.tensor("scale_shift_table", [6, d])?,
            slot,
            attn1: QkvWeights::load(&attn1, OWN, d, heads)?,
            attn1_out: Linear::load(&attn1.pp("to_out.0"), d, d)?,
            attn2: CrossWeights::load(&attn2, [d, d], heads)?,
            attn2_out: Linear::load(&attn2.pp("to_out.0"), d, d)?,
            ff: FeedForward::load(&loader.pp("ff"), d, 4 * d)?,
            eps,
        })
    }

    fn forward(&self, ctx: &mut Ctx<'_>, i: usize, x: Streams, cond: &Cond) -> Result<Streams, CommError> {
        let [m, ff] = Modulation::cut(cond.modulations[&self.slot].clone());
        let qkv = self.attn1.forward(m.norm(x.img.clone(), self.eps), None);
        let attn = ctx.attn.self_attn(Site::first(i), qkv)?;
        let img = m.add(x.img, project_heads(&self.attn1_out, attn));

        // no norm before the text is looked at
        let q = self.attn2.queries(img.clone(), None);
        let txt = x.txt.clone().expect("the text is at hand for every patch");
        let [k, v] = self.attn2.keys_and_values(txt);
        let attn = ctx.attn.cross_attn(q, k, v, cond.txt_bias.clone())?;
        let img = project_heads_onto(img, &self.attn2_out, attn);

        let y = self.ff.forward(ff.norm(img.clone(), self.eps));
        Ok(Streams::new(x.txt, ff.add(img, y)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_configurations_are_errors() {
        let check = |json: &str| serde_json::from_str::<PixArtConfig>(json).unwrap().check();
        check("{}").unwrap();
        for field in [
            "cross_attention_dim=null",
            "num_embeds_ada_norm=null",
            "norm_elementwise_affine=true",
            "attention_bias=false",
            "norm_eps=-1",
            "activation_fn=\"geglu\"",
            "norm_type=\"ada_norm_zero\"",
        ] {
            let (name, value) = field.split_once('=').unwrap();
            let message = check(&format!("{{\"{name}\": {value}}}")).unwrap_err().to_string();
            assert!(message.contains(field), "{message}");
        }
    }
}
