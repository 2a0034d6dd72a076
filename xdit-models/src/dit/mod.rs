//! Diffusion transformers, one file each.
//!
//! Here are the pieces that several of them are made of: what `embeddings.py`, `normalization.py` and `attention.py` are
//! upstream (`src/diffusers/models`), as far as the models need them.

pub mod flux;
pub mod hunyuan_dit;
pub mod pixart;
pub mod sd3;
mod stream;

use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::{DType, Device, Tensor, TensorData};
use xdit_core::checkpoint::{LoadError, Loader};
use xdit_core::dit::{Cond, DitSpec, Qkv, TokenGrid};
use xdit_core::ops::{
    self, Activation, HeadNorm, Input, LayerNorm, Linear, Linears, QkvOf, RopeTable, joint_qkv, merge_heads,
    modulated_norm, norm_rope, split_heads,
};

/// Added to variances, everywhere in these models.
pub const EPS: f64 = 1e-6;

/// What a model's width is the product of, as messages name it.
pub(crate) const WIDTH: &str = "num_attention_heads * attention_head_dim";

/// Channels of [`sinusoids`].
pub const TIME_CHANNELS: usize = 256;

/// `Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)`: for each number cosines, then sines, of it times
/// frequencies falling from 1 to 1/10000; `[len of xs, TIME_CHANNELS]`.
pub fn sinusoids(xs: &[f32], device: &Device) -> Tensor<2> {
    let half = TIME_CHANNELS / 2;
    let frequency = |i: usize| (-(10_000.0_f32.ln()) * i as f32 / half as f32).exp();
    let row = |x: f32| {
        let angle = move |i: usize| x * frequency(i);
        (0..half).map(move |i| angle(i).cos()).chain((0..half).map(move |i| angle(i).sin()))
    };
    let values: Vec<f32> = xs.iter().flat_map(|x| row(*x)).collect();
    Tensor::from_data(TensorData::new(values, [xs.len(), TIME_CHANNELS]), device)
}

/// Two dense layers with an activation between: `TimestepEmbedding` and `PixArtAlphaTextProjection`.
#[derive(Debug)]
pub struct Mlp {
    linear_1: Linear,
    linear_2: Linear,
    act: Activation,
}

impl Mlp {
    /// Reads `linear_1` and `linear_2`.
    pub fn load(loader: &Loader<'_>, dims: [usize; 3], act: Activation) -> Result<Self, LoadError> {
        let [d_in, d, d_out] = dims;
        Ok(Self {
            linear_1: Linear::load(&loader.pp("linear_1"), d_in, d)?,
            linear_2: Linear::load(&loader.pp("linear_2"), d, d_out)?,
            act,
        })
    }

    /// The embedding of a sinusoid.
    pub fn load_time(loader: &Loader<'_>, d: usize) -> Result<Self, LoadError> {
        Self::load(loader, [TIME_CHANNELS, d, d], Activation::Silu)
    }

    /// `[.., d_in] -> [.., d_out]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.linear_2.forward(self.linear_1.forward_act(x, self.act))
    }

    /// The embedding of each of `xs`, `[len of xs, d]`.
    pub fn of_numbers(&self, xs: &[f32]) -> Tensor<2> {
        let layer = &self.linear_1;
        self.forward(ops::to_dtype(sinusoids(xs, &layer.device()), layer.dtype()))
    }
}

/// `FeedForward`: wide, activated, narrow.
#[derive(Debug)]
pub struct FeedForward {
    proj: Linear,
    out: Linear,
}

impl FeedForward {
    /// Reads `net.0.proj` and `net.2`.
    pub fn load(loader: &Loader<'_>, d: usize, d_ff: usize) -> Result<Self, LoadError> {
        Ok(Self {
            proj: Linear::load(&loader.pp("net.0.proj"), d, d_ff)?,
            out: Linear::load(&loader.pp("net.2"), d_ff, d)?,
        })
    }

    /// With `gelu-approximate`, which all these models take.
    pub fn forward(&self, x: impl Into<Input<3>>) -> Tensor<3> {
        self.out.forward(self.proj.forward_act(x, Activation::GeluTanh))
    }

    /// The same added to a stream.
    pub fn forward_onto(&self, stream: Tensor<3>, x: Tensor<3>) -> Tensor<3> {
        self.out.forward_onto(stream, self.proj.forward_act(x, Activation::GeluTanh))
    }
}

/// `linear(silu(temb))`, a layer of the condition alone.
#[derive(Debug)]
pub struct Ada {
    linear: Linear,
    /// Its place among the model's, as in [`Cond::modulations`].
    slot: usize,
}

impl Ada {
    /// Reads the layer at the loader's place. It is never quantised: all steps together take no time, and what it says counts
    /// for every token.
    pub fn load(loader: &Loader<'_>, [d, width]: [usize; 2], slot: usize) -> Result<Self, LoadError> {
        Ok(Self { linear: Linear::load(&loader.clone().quantised(None), d, width)?, slot })
    }

    /// `[batch, width]`, as [`modulate`] has computed it.
    pub fn forward(&self, cond: &Cond) -> Tensor<2> {
        cond.modulations[&self.slot].clone()
    }
}

/// The vector that a model is conditioned on, of all steps: `[steps * batch, d]`, of each step's time `[steps, d]` and of
/// what does not change, `[batch, d]`.
pub fn at_each_step(time: Tensor<2>, shared: Tensor<2>) -> Tensor<2> {
    let ([steps, d], [batch, _]) = (time.dims(), shared.dims());
    (time.unsqueeze_dim::<3>(1) + shared.unsqueeze::<3>()).reshape([steps * batch, d])
}

/// The conditions of so many steps, whose vectors are `[steps * batch, d]`.
pub fn conditions(temb: &Tensor<2>, n_steps: usize) -> Vec<Cond> {
    let cond = |temb| Cond { temb, modulations: BTreeMap::new(), txt_bias: None };
    of_steps(temb, n_steps).map(cond).collect()
}

/// Each step's rows of what was computed for all.
fn of_steps(all: &Tensor<2>, n_steps: usize) -> impl Iterator<Item = Tensor<2>> + '_ {
    let batch = all.dims()[0] / n_steps.max(1);
    (0..n_steps).map(move |i| ops::narrow(all, 0, i * batch..(i + 1) * batch))
}

/// Computes these layers for all steps at once.
///
/// - `temb`: of all steps
pub fn modulate<'a>(layers: impl Iterator<Item = &'a Ada>, temb: &Tensor<2>, conds: &mut [Cond]) {
    let activated = Activation::Silu.apply(temb.clone());
    for layer in layers {
        keep(&layer.linear.forward(activated.clone()), layer.slot, conds);
    }
}

/// Gives each step its rows of what a layer made of all.
pub fn keep(all: &Tensor<2>, slot: usize, conds: &mut [Cond]) {
    let n_steps = conds.len();
    for (cond, rows) in conds.iter_mut().zip(of_steps(all, n_steps)) {
        cond.modulations.insert(slot, rows);
    }
}

/// `linear(silu(temb))` cut into `N` vectors of `[batch, d_model]`.
pub fn modulation<const N: usize>(linear: &Linear, temb: &Tensor<2>) -> [Tensor<2>; N] {
    parts(linear.forward(Activation::Silu.apply(temb.clone())))
}

/// `[batch, N d]` cut into `N` of `[batch, d]`.
pub fn parts<const N: usize>(all: Tensor<2>) -> [Tensor<2>; N] {
    let d = all.dims()[1] / N;
    std::array::from_fn(|i| ops::narrow(&all, 1, i * d..(i + 1) * d))
}

/// Within f16's range where the stream is f16: there upstream keeps some streams from becoming infinite.
pub fn clip_f16(x: Tensor<3>) -> Tensor<3> {
    match x.dtype() {
        DType::F16 => x.clamp(-65_504.0, 65_504.0),
        _ => x,
    }
}

/// `AdaLayerNormContinuous`, which names the scale first.
pub fn continuous_norm(linear: &Linear, x: Tensor<3>, temb: &Tensor<2>) -> Tensor<3> {
    let [scale, shift] = modulation(linear, temb);
    modulated_norm(x, shift, scale, EPS)
}

/// The shape of a model whose tokens are squares of `patch` by `patch` latent pixels.
pub fn spec(n_blocks: usize, [n_heads, head_dim]: [usize; 2], channels: usize, patch: usize) -> DitSpec {
    DitSpec { n_blocks, n_heads, head_dim, channels: channels * patch * patch, joint: false, txt_each_step: false }
}

/// Consecutive blocks of a kind, of which not all need to be in memory. They keep their numbers.
#[derive(Debug)]
pub struct Blocks<T> {
    first: usize,
    blocks: Vec<T>,
}

impl<T> Blocks<T> {
    /// - `wanted`: numbers among all blocks of the model
    /// - `kind`: the numbers of the blocks of this kind; `load` counts from the first of them
    pub fn load(
        wanted: &Range<usize>,
        kind: Range<usize>,
        load: impl Fn(usize) -> Result<T, LoadError>,
    ) -> Result<Self, LoadError> {
        let (first, end) = (wanted.start.clamp(kind.start, kind.end), wanted.end.clamp(kind.start, kind.end));
        let blocks = (first..end).map(|i| load(i - kind.start)).collect::<Result<_, _>>()?;
        Ok(Self { first: first - kind.start, blocks })
    }

    /// Those that were read, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.blocks.iter()
    }

    /// Block `i` of this kind.
    ///
    /// # Panics
    /// One that was not read.
    pub fn get(&self, i: usize) -> &T {
        &self.blocks[i - self.first]
    }
}

/// Which norm the heads of queries and keys get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    No,
    /// `rms_norm`
    Rms,
    /// `layer_norm`
    Layer,
}

impl QkNorm {
    /// Reads the norm at the loader's place.
    pub fn load(self, loader: &Loader<'_>, head_dim: usize) -> Result<HeadNorm, LoadError> {
        Ok(match self {
            Self::No => HeadNorm::None,
            Self::Rms => HeadNorm::Rms { weight: loader.tensor("weight", [head_dim])?, eps: EPS },
            Self::Layer => HeadNorm::Layer(LayerNorm::load(loader, head_dim, EPS)?),
        })
    }
}

/// An attention's heads.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// How many.
    pub n: usize,
    /// Channels of one.
    pub dim: usize,
    /// What its queries and keys are normalised with.
    pub norm: QkNorm,
}

/// Names of an `Attention`'s parts for the stream that it belongs to.
pub const OWN: [&str; 5] = ["to_q", "to_k", "to_v", "norm_q", "norm_k"];
/// Names of its parts for a second stream.
pub const ADDED: [&str; 5] = ["add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k"];

/// Projections to queries, keys and values of the same tokens.
#[derive(Debug)]
pub struct QkvWeights {
    n_heads: usize,
    qkv: Linears,
    norm_q: HeadNorm,
    norm_k: HeadNorm,
}

impl QkvWeights {
    /// - `names`: [`OWN`] or [`ADDED`]
    /// - `d`: width of what they are made of
    pub fn load(attn: &Loader<'_>, names: [&str; 5], d: usize, heads: Heads) -> Result<Self, LoadError> {
        let [q, k, v, norm_q, norm_k] = names;
        let linear = |name| Linear::load(&attn.pp(name), d, heads.n * heads.dim);
        Ok(Self {
            n_heads: heads.n,
            qkv: Linears::new(vec![linear(q)?, linear(k)?, linear(v)?]),
            norm_q: heads.norm.load(&attn.pp(norm_q), heads.dim)?,
            norm_k: heads.norm.load(&attn.pp(norm_k), heads.dim)?,
        })
    }

    /// - `x`: `[batch, tokens, d_model]`, normalised
    pub fn forward(&self, x: impl Into<Input<3>>, rope: Option<&RopeTable>) -> Qkv {
        Qkv::new(joint_qkv(vec![self.of(x, rope)], self.n_heads))
    }

    /// Of a text and an image as one sequence, the text first, and the number of its text tokens.
    pub fn joint(&self, img: impl Into<Input<3>>, rope: Option<&RopeTable>, txt: Option<QkvOf<'_>>) -> (Qkv, usize) {
        let n_txt = txt.as_ref().map_or(0, |txt| txt.x.dims()[1]);
        let streams = txt.into_iter().chain([self.of(img, rope)]).collect();
        (Qkv::new(joint_qkv(streams, self.n_heads)), n_txt)
    }

    /// What they are made of.
    pub fn of<'a>(&'a self, x: impl Into<Input<3>>, rope: Option<&'a RopeTable>) -> QkvOf<'a> {
        QkvOf { x: x.into(), layers: &self.qkv, norm_q: &self.norm_q, norm_k: &self.norm_k, rope }
    }
}

/// Projections to queries of some tokens, and to keys and values of others.
#[derive(Debug)]
pub struct CrossWeights {
    n_heads: usize,
    q: Linear,
    kv: Linears,
    norm_q: HeadNorm,
    norm_k: HeadNorm,
}

impl CrossWeights {
    /// - `dims`: width of what queries are made of, and of what keys and values are made of
    pub fn load(attn: &Loader<'_>, dims: [usize; 2], heads: Heads) -> Result<Self, LoadError> {
        let [q, k, v, norm_q, norm_k] = OWN;
        let linear = |name, d| Linear::load(&attn.pp(name), d, heads.n * heads.dim);
        Ok(Self {
            n_heads: heads.n,
            q: linear(q, dims[0])?,
            kv: Linears::new(vec![linear(k, dims[1])?, linear(v, dims[1])?]),
            norm_q: heads.norm.load(&attn.pp(norm_q), heads.dim)?,
            norm_k: heads.norm.load(&attn.pp(norm_k), heads.dim)?,
        })
    }

    /// `[batch, heads, tokens, head_dim]`
    pub fn queries(&self, x: Tensor<3>, rope: Option<&RopeTable>) -> Tensor<4> {
        norm_rope(split_heads(self.q.forward(x), self.n_heads), &self.norm_q, rope)
    }

    /// Each `[batch, heads, tokens, head_dim]`
    pub fn keys_and_values(&self, x: Tensor<3>) -> [Tensor<4>; 2] {
        let [k, v] = split_all(self.kv.forward(x), self.n_heads);
        [norm_rope(k, &self.norm_k, None), v]
    }
}

fn split_all<const N: usize>(xs: Vec<Tensor<3>>, n_heads: usize) -> [Tensor<4>; N] {
    let heads: Vec<_> = xs.into_iter().map(|x| split_heads(x, n_heads)).collect();
    heads.try_into().expect("as many as there are layers")
}

/// An attention's output layer: heads to the stream's width.
pub fn project_heads(to_out: &Linear, heads: Tensor<4>) -> Tensor<3> {
    to_out.forward(merge_heads(heads))
}

/// The same added to the stream.
pub fn project_heads_onto(stream: Tensor<3>, to_out: &Linear, heads: Tensor<4>) -> Tensor<3> {
    to_out.forward_onto(stream, merge_heads(heads))
}

/// `PatchEmbed`'s convolution, whose stride is its size: a dense layer on packed latents, whose channels are in the
/// order of the convolution's weight (channel, row, column).
pub fn load_patch_embed(loader: &Loader<'_>, channels: usize, patch: usize, d: usize) -> Result<Linear, LoadError> {
    if !loader.has("weight") {
        // noted as missing; the stand-in takes no memory as long as its shape stays
        return Linear::load(loader, channels * patch * patch, d);
    }
    let weight: Tensor<4> = loader.tensor("weight", [d, channels, patch, patch])?;
    Ok(Linear::new(weight.reshape([d, channels * patch * patch]), Some(loader.tensor("bias", [d])?)))
}

/// The output layer of models that write a token as (row, column, channel), its rows put into the order of packed
/// latents (channel, row, column). Of `out_channels` only the first `channels` are kept: the rest are variances that
/// the pipelines throw away.
pub fn load_proj_out(
    loader: &Loader<'_>,
    d: usize,
    patch: usize,
    out_channels: usize,
    channels: usize,
) -> Result<Linear, LoadError> {
    let (n, p) = (patch * patch * out_channels, patch);
    if !loader.has("weight") {
        return Linear::load(loader, d, n);
    }
    let weight: Tensor<2> = loader.tensor("weight", [n, d])?;
    let bias: Tensor<1> = loader.tensor("bias", [n])?;
    let weight = weight.reshape([p, p, out_channels, d]).narrow(2, 0, channels).permute([2, 0, 1, 3]);
    let bias = bias.reshape([p, p, out_channels]).narrow(2, 0, channels).permute([2, 0, 1]);
    Ok(Linear::new(weight.reshape([channels * p * p, d]), Some(bias.reshape([channels * p * p]))))
}

/// `get_2d_sincos_pos_embed`, `[tokens, d]`: sines and cosines of the column in the first half of the channels, of the
/// row in the second.
///
/// - `base`: tokens along a side of the pictures that the model was trained on first; a larger or smaller picture's
///   positions span the same range
/// - `scale`: what positions are divided by
pub fn sincos_2d(grid: TokenGrid, base: usize, scale: f64, d: usize, device: &Device) -> Tensor<2> {
    let quarter = d / 4;
    // f32 as upstream, the angles in f64
    let at = |i: usize, n: usize| f64::from(i as f32 / (n as f32 / base as f32) / scale as f32);
    let omega: Vec<f64> = (0..quarter).map(|i| 1.0 / 10_000_f64.powf(i as f64 / (d as f64 / 4.0))).collect();
    // each row and each column is computed once
    let along = |n: usize| -> Vec<Vec<f32>> {
        let of = |position: f64| {
            let sines = omega.iter().map(move |w| (position * w).sin() as f32);
            sines.chain(omega.iter().map(move |w| (position * w).cos() as f32)).collect()
        };
        (0..n).map(|i| of(at(i, n))).collect()
    };
    let (rows, cols) = (along(grid.rows), along(grid.cols));
    let mut values = Vec::with_capacity(grid.n_tokens() * d);
    for [_, row, col] in grid.positions() {
        values.extend_from_slice(&cols[col]);
        values.extend_from_slice(&rows[row]);
    }
    Tensor::from_data(TensorData::new(values, [grid.n_tokens(), d]), device)
}
