//! `HunyuanDiT2DModel`: HunyuanDiT 1.1 and 1.2.
//!
//! Mirrors `src/diffusers/models/transformers/hunyuan_transformer_2d.py`. A U of blocks: those of the second half take
//! up the outputs of the first half's, the last one first. The text of two encoders, as one sequence, enters by
//! cross-attention.

use std::ops::Range;

use burn::tensor::{DType, Tensor, TensorData};
use serde::Deserialize;
use xdit_core::checkpoint::{LoadError, Loader};
use xdit_core::comm::CommError;
use xdit_core::dit::{
    Cond, Ctx, Dit, DitSpec, Inputs, Positions, Site, Streams, TextEmbeddings, TextStates, TokenGrid, attention_scale,
};
use xdit_core::ops::{self, Activation, LayerNorm, Linear, RopeTable, attention, merge_heads, split_heads};

use crate::dit::{
    Ada, Blocks, CrossWeights, EPS, FeedForward, Heads, Mlp, OWN, QkNorm, QkvWeights, TIME_CHANNELS, WIDTH,
    at_each_step, conditions, continuous_norm, load_patch_embed, load_proj_out, modulate, project_heads_onto,
    sinusoids, spec,
};
use crate::error::{ModelError, few, positive};

/// `transformer/config.json`; field names and defaults are the checkpoint's.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct HunyuanDitConfig {
    /// Heads.
    pub num_attention_heads: usize,
    /// Channels of a head.
    pub attention_head_dim: usize,
    /// Channels of the latents.
    pub in_channels: usize,
    /// Side in latent pixels of a token.
    pub patch_size: usize,
    /// Activation of the feed-forward, always `gelu-approximate`.
    pub activation_fn: String,
    /// Side in latent pixels of the pictures that it was trained on.
    pub sample_size: usize,
    /// The model's width.
    pub hidden_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Width of the feed-forward in widths of the model.
    pub mlp_ratio: f64,
    /// Whether it predicts variances too.
    pub learn_sigma: bool,
    /// Channels of BERT's states.
    pub cross_attention_dim: usize,
    /// Channels of mT5's states.
    pub cross_attention_dim_t5: usize,
    /// Channels of the vector that mT5's states are pooled to.
    pub pooled_projection_dim: usize,
    /// Tokens of BERT.
    pub text_len: usize,
    /// Tokens of mT5.
    pub text_len_t5: usize,
    /// Whether it is told a style and the picture's size: 1.1 is, 1.2 is not.
    pub use_style_cond_and_image_meta_size: bool,
}

impl Default for HunyuanDitConfig {
    fn default() -> Self {
        Self {
            num_attention_heads: 16,
            attention_head_dim: 88,
            in_channels: 4,
            patch_size: 2,
            activation_fn: "gelu-approximate".into(),
            sample_size: 32,
            hidden_size: 1152,
            num_layers: 28,
            mlp_ratio: 4.0,
            learn_sigma: true,
            cross_attention_dim: 1024,
            cross_attention_dim_t5: 2048,
            pooled_projection_dim: 1024,
            text_len: 77,
            text_len_t5: 256,
            use_style_cond_and_image_meta_size: true,
        }
    }
}

/// Heads of the pooling of mT5's states.
const POOL_HEADS: usize = 8;

impl HunyuanDitConfig {
    /// What a plan must know.
    pub fn spec(&self) -> DitSpec {
        let heads = [self.num_attention_heads, self.attention_head_dim];
        spec(self.num_layers, heads, self.in_channels, self.patch_size)
    }

    pub(crate) fn check(&self) -> Result<Heads, ModelError> {
        let bad = |what: String| Err(ModelError::Config { class: "HunyuanDiT2DModel", what });
        few("HunyuanDiT2DModel", &[("num_layers", self.num_layers), ("patch_size", self.patch_size)])?;
        positive(
            "HunyuanDiT2DModel",
            &[
                (WIDTH, self.num_attention_heads.saturating_mul(self.attention_head_dim)),
                ("sample_size", self.sample_size),
                ("num_layers", self.num_layers),
                ("hidden_size", self.hidden_size),
                ("cross_attention_dim", self.cross_attention_dim),
                ("cross_attention_dim_t5", self.cross_attention_dim_t5),
                ("pooled_projection_dim", self.pooled_projection_dim),
                ("num_attention_heads", self.num_attention_heads),
                ("in_channels", self.in_channels),
                ("patch_size", self.patch_size),
                ("text_len", self.text_len),
                ("text_len_t5", self.text_len_t5),
            ],
        )?;
        if self.num_layers > 1 && !self.num_layers.is_multiple_of(2) {
            return bad(format!(
                "num_layers={} must be even: a block of the second half takes up one of the first",
                self.num_layers
            ));
        }
        let (n, dim, d) = (self.num_attention_heads, self.attention_head_dim, self.hidden_size);
        if n * dim != d || dim % 4 != 0 {
            return bad(format!(
                "attention_head_dim={dim} must be a multiple of 4, and times num_attention_heads={n} be hidden_size={d}"
            ));
        }
        if !self.cross_attention_dim_t5.is_multiple_of(POOL_HEADS) {
            return bad(format!(
                "cross_attention_dim_t5={} must be a multiple of {POOL_HEADS}",
                self.cross_attention_dim_t5
            ));
        }
        if self.activation_fn != "gelu-approximate" {
            return bad(format!("activation_fn={:?} is not supported, only \"gelu-approximate\"", self.activation_fn));
        }
        if !(self.mlp_ratio * d as f64 >= 1.0 && self.mlp_ratio < 1e3) {
            return bad(format!("mlp_ratio={} must be a positive number below 1000", self.mlp_ratio));
        }
        Ok(Heads { n, dim, norm: QkNorm::Layer })
    }
}

/// The model with its weights on a device.
#[derive(Debug)]
pub struct HunyuanDit {
    config: HunyuanDitConfig,
    dtype: DType,
    text_embedder: Mlp,
    text_embedding_padding: Tensor<2>,
    pos_embed_proj: Linear,
    timestep_embedder: Mlp,
    pooler: AttentionPool,
    style_embedder: Option<Tensor<2>>,
    extra_embedder: Mlp,
    blocks: Blocks<Block>,
    norm_out: Linear,
    proj_out: Linear,
}

impl HunyuanDit {
    /// Reads the weights of these blocks and of what stands around them.
    ///
    /// # Errors
    /// A configuration that contradicts itself; tensors of other shapes than it demands.
    pub fn load(loader: &Loader<'_>, config: &HunyuanDitConfig, blocks: Range<usize>) -> Result<Self, ModelError> {
        let heads = config.check()?;
        let (d, patch, channels) = (config.hidden_size, config.patch_size, config.in_channels);
        let (d_txt, d_t5, extra) =
            (config.cross_attention_dim, config.cross_attention_dim_t5, loader.pp("time_extra_emb"));
        let told = config.use_style_cond_and_image_meta_size;
        let d_extra = config.pooled_projection_dim + if told { 6 * TIME_CHANNELS + d } else { 0 };
        let block = |i| Block::load(&loader.pp("blocks").pp(i), config, heads, i);
        Ok(Self {
            dtype: loader.dtype().into(),
            text_embedder: Mlp::load(&loader.pp("text_embedder"), [d_t5, 4 * d_t5, d_txt], Activation::Silu)?,
            text_embedding_padding: loader
                .tensor("text_embedding_padding", [config.text_len + config.text_len_t5, d_txt])?,
            pos_embed_proj: load_patch_embed(&loader.pp("pos_embed.proj"), channels, patch, d)?,
            timestep_embedder: Mlp::load_time(&extra.pp("timestep_embedder"), d)?,
            pooler: AttentionPool::load(&extra.pp("pooler"), config)?,
            style_embedder: match told {
                true => Some(extra.pp("style_embedder").tensor("weight", [1, d])?),
                false => None,
            },
            extra_embedder: Mlp::load(&extra.pp("extra_embedder"), [d_extra, 4 * d, d], Activation::Silu)?,
            blocks: Blocks::load(&blocks, 0..config.num_layers, block)?,
            norm_out: Linear::load(&loader.pp("norm_out.linear"), d, 2 * d)?,
            proj_out: load_proj_out(
                &loader.pp("proj_out"),
                d,
                patch,
                if config.learn_sigma { 2 * channels } else { channels },
                channels,
            )?,
            config: config.clone(),
        })
    }

    /// Both encoders' tokens as one sequence; what is padding becomes the model's own.
    fn text(&self, bert: &TextStates, t5: &TextStates) -> Tensor<3> {
        let cast = |x: &Tensor<3>| ops::to_dtype(x.clone(), self.dtype);
        let states = Tensor::cat(vec![cast(&bert.states), self.text_embedder.forward(cast(&t5.states))], 1);
        let [b, n, _] = states.dims();
        let seen = |txt: &TextStates, row: usize| match &txt.seen {
            Some(seen) => seen[row].clone(),
            None => vec![true; txt.n_tokens()],
        };
        let seen: Vec<bool> = (0..b).flat_map(|row| [seen(bert, row), seen(t5, row)].concat()).collect();
        let mask = |keep: bool| {
            let values: Vec<f32> = seen.iter().map(|seen| f32::from(u8::from(*seen == keep))).collect();
            ops::to_dtype(Tensor::<3>::from_data(TensorData::new(values, [b, n, 1]), &states.device()), self.dtype)
        };
        states.clone() * mask(true) + self.text_embedding_padding.clone().unsqueeze::<3>() * mask(false)
    }
}

impl Dit for HunyuanDit {
    fn spec(&self) -> DitSpec {
        self.config.spec()
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn positions(&self, grid: TokenGrid, _n_txt: usize) -> Positions {
        // `get_resize_crop_region_for_grid`: the picture, scaled into a square of the pictures of the first training
        let base = (512 / 8 / self.config.patch_size) as f64;
        let (rows, cols) = (grid.rows as f64, grid.cols as f64);
        let (height, width) = match rows > cols {
            true => (base, (base / rows * cols).round_ties_even()),
            false => ((base / cols * rows).round_ties_even(), base),
        };
        let at = |i: usize, n: f64, length: f64| {
            let start = ((base - length) / 2.0).round_ties_even();
            let last = (start + length) * (n - 1.0) / n;
            if n == 1.0 { start } else { start + i as f64 * ((last - start) / (n - 1.0)) }
        };
        // columns turn the first half of a head's channels, rows the second
        let ids: Vec<_> = grid.positions().map(|[_, row, col]| [at(col, cols, width), at(row, rows, height)]).collect();
        let half = self.config.attention_head_dim / 2;
        let table = RopeTable::new(&ids, [half, half], 10_000.0, &self.text_embedding_padding.device());
        Positions { rope: Some(table), ..Positions::default() }
    }

    fn condition(&self, inputs: Inputs<'_>) -> Vec<Cond> {
        let Inputs { timesteps, text, size, .. } = inputs;
        let t5 = text.txt_2.as_ref().expect("HunyuanDiT takes mT5's states");
        let pooled = self.pooler.forward(ops::to_dtype(t5.states.clone(), self.dtype));
        let extra = match &self.style_embedder {
            None => pooled,
            Some(style) => {
                let (b, [height, width]) = (pooled.dims()[0], size.map(|x| x as f32));
                // the sizes of a picture of the training, of this one, and where the former is cut
                let sizes = sinusoids(&[1024.0, 1024.0, height, width, 0.0, 0.0], &pooled.device());
                let sizes = ops::to_dtype(sizes, self.dtype).reshape([1, 6 * TIME_CHANNELS]);
                Tensor::cat(vec![pooled, sizes.repeat_dim(0, b), style.clone().repeat_dim(0, b)], 1)
            }
        };
        let temb = at_each_step(self.timestep_embedder.of_numbers(timesteps), self.extra_embedder.forward(extra));
        let mut conds = conditions(&temb, timesteps.len());
        modulate(self.blocks.iter().map(|block| &block.norm1_linear), &temb, &mut conds);
        conds
    }

    fn embed_txt(&self, text: &TextEmbeddings, _cond: &Cond, _positions: &Positions) -> Tensor<3> {
        self.text(&text.txt, text.txt_2.as_ref().expect("HunyuanDiT takes mT5's states"))
    }

    fn embed_img(&self, latents: Tensor<3>, _positions: &Positions) -> Tensor<3> {
        self.pos_embed_proj.forward(ops::to_dtype(latents, self.dtype))
    }

    fn block(&self, ctx: &mut Ctx<'_>, i: usize, mut x: Streams, cond: &Cond) -> Result<Streams, CommError> {
        let half = self.config.num_layers / 2;
        let skip = if i > half { x.skips.pop() } else { None };
        let txt = x.txt.as_ref().expect("the text is at hand for every patch");
        x.img = self.blocks.get(i).forward(ctx, i, x.img, txt, skip, cond)?;
        if i + 1 < half {
            x.skips.push(x.img.clone());
        }
        Ok(x)
    }

    fn skips_before(&self, i: usize) -> usize {
        let half = self.config.num_layers / 2;
        i.min(half.saturating_sub(1)) - i.saturating_sub(half + 1)
    }

    fn head(&self, x: Streams, cond: &Cond) -> Tensor<3> {
        ops::to_f32(self.proj_out.forward(continuous_norm(&self.norm_out, x.img, &cond.temb)))
    }
}

/// `HunyuanDiTAttentionPool`: the mean of the tokens looks at the tokens and at itself.
#[derive(Debug)]
struct AttentionPool {
    positional_embedding: Tensor<2>,
    q: Linear,
    k: Linear,
    v: Linear,
    c: Linear,
}

impl AttentionPool {
    fn load(loader: &Loader<'_>, config: &HunyuanDitConfig) -> Result<Self, LoadError> {
        let d = config.cross_attention_dim_t5;
        let linear = |name: &str, d_out| Linear::load(&loader.pp(name), d, d_out);
        Ok(Self {
            positional_embedding: loader.tensor("positional_embedding", [config.text_len_t5 + 1, d])?,
            q: linear("q_proj", d)?,
            k: linear("k_proj", d)?,
            v: linear("v_proj", d)?,
            c: linear("c_proj", config.pooled_projection_dim)?,
        })
    }

    /// `[batch, tokens, d_t5] -> [batch, pooled_projection_dim]`
    fn forward(&self, x: Tensor<3>) -> Tensor<2> {
        let mean = ops::to_dtype(ops::to_f32(x.clone()).mean_dim(1), x.dtype());
        let x = Tensor::cat(vec![mean, x], 1) + self.positional_embedding.clone().unsqueeze();
        let heads = |linear: &Linear, x: Tensor<3>| split_heads(linear.forward(x), POOL_HEADS);
        let q = heads(&self.q, x.clone().narrow(1, 0, 1));
        let scale = attention_scale(q.dims()[3]);
        let y = attention(q, heads(&self.k, x.clone()), heads(&self.v, x), None, scale).out;
        self.c.forward(merge_heads(y)).squeeze_dim(1)
    }
}

/// `HunyuanDiTBlock`
#[derive(Debug)]
struct Block {
    skip: Option<(LayerNorm, Linear)>,
    norm1: LayerNorm,
    norm1_linear: Ada,
    attn1: QkvWeights,
    attn1_out: Linear,
    norm2: LayerNorm,
    attn2: CrossWeights,
    attn2_out: Linear,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl Block {
    fn load(loader: &Loader<'_>, config: &HunyuanDitConfig, heads: Heads, i: usize) -> Result<Self, LoadError> {
        let d = config.hidden_size;
        let (attn1, attn2) = (loader.pp("attn1"), loader.pp("attn2"));
        let norm = |name: &str, d| LayerNorm::load(&loader.pp(name), d, EPS);
        Ok(Self {
            skip: match i > config.num_layers / 2 {
                true => Some((norm("skip_norm", 2 * d)?, Linear::load(&loader.pp("skip_linear"), 2 * d, d)?)),
                false => None,
            },
            norm1: norm("norm1.norm", d)?,
            norm1_linear: Ada::load(&loader.pp("norm1.linear"), [d, d], i)?,
            attn1: QkvWeights::load(&attn1, OWN, d, heads)?,
            attn1_out: Linear::load(&attn1.pp("to_out.0"), d, d)?,
            norm2: norm("norm2", d)?,
            attn2: CrossWeights::load(&attn2, [d, config.cross_attention_dim], heads)?,
            attn2_out: Linear::load(&attn2.pp("to_out.0"), d, d)?,
            norm3: norm("norm3", d)?,
            ff: FeedForward::load(&loader.pp("ff"), d, (d as f64 * config.mlp_ratio) as usize)?,
        })
    }

    /// - `x`: `[batch, img_tokens, d_model]`
    /// - `txt`: `[batch, txt_tokens, d_txt]`
    fn forward(
        &self,
        ctx: &mut Ctx<'_>,
        i: usize,
        x: Tensor<3>,
        txt: &Tensor<3>,
        skip: Option<Tensor<3>>,
        cond: &Cond,
    ) -> Result<Tensor<3>, CommError> {
        let rope = ctx.positions.rope.as_ref();
        let x = match (&self.skip, skip) {
            (Some((norm, linear)), Some(skip)) => linear.forward(norm.forward(ops::cat(vec![x, skip], 2))),
            _ => x,
        };
        let shift = self.norm1_linear.forward(cond);
        let y = self.norm1.forward(x.clone()) + shift.unsqueeze_dim(1);
        let attn = ctx.attn.self_attn(Site::first(i), self.attn1.forward(y, rope))?;
        let x = project_heads_onto(x, &self.attn1_out, attn);

        // the image's queries are turned, though the text's keys are not
        let q = self.attn2.queries(self.norm2.forward(x.clone()), rope);
        let [k, v] = self.attn2.keys_and_values(txt.clone());
        let x = project_heads_onto(x, &self.attn2_out, ctx.attn.cross_attn(q, k, v, None)?);

        Ok(self.ff.forward_onto(x.clone(), self.norm3.forward(x)))
    }
}
