//! The seam between a model and the engine: a DiT cut at its block boundaries, and the attention that is passed in.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, Tensor};

use crate::comm::CommError;
use crate::layout::Shares;
use crate::ops::{self, RopeTable};

pub use crate::layout::TokenGrid;

/// A diffusion transformer. The engine owns the loop over the blocks; the model knows nothing of ranks.
pub trait Dit: Send + Sync {
    /// What a plan must know of the model.
    fn spec(&self) -> DitSpec;

    /// What flows between blocks is of it.
    fn dtype(&self) -> DType;

    /// The positional tables of all image tokens of a picture and of `n_txt` text tokens. Computed once per request;
    /// cut together with the tokens.
    fn positions(&self, grid: TokenGrid, n_txt: usize) -> Positions;

    /// What every block is conditioned on. Computed for all steps before the first.
    /// One for each of the timesteps: together, so that the weights of layers that look at nothing else are read once.
    fn condition(&self, inputs: Inputs<'_>) -> Vec<Cond>;

    /// The whole text to tokens, `[batch, txt_tokens, d_txt]`. Computed once per request, unless
    /// [`DitSpec::txt_each_step`] says that it depends on the step.
    ///
    /// - `cond`: of the step
    /// - `positions`: of all tokens
    fn embed_txt(&self, text: &TextEmbeddings, cond: &Cond, positions: &Positions) -> Tensor<3>;

    /// Latents `[batch, img_tokens, channels]` to tokens of the model's width.
    ///
    /// - `positions`: of these tokens
    fn embed_img(&self, latents: Tensor<3>, positions: &Positions) -> Tensor<3>;

    /// Block `i` of [`DitSpec::n_blocks`], one of those that were read.
    ///
    /// # Errors
    /// Only what the attention strategy returns.
    fn block(&self, ctx: &mut Ctx<'_>, i: usize, x: Streams, cond: &Cond) -> Result<Streams, CommError>;

    /// How many [`Streams::skips`] there are before block `i`.
    fn skips_before(&self, _i: usize) -> usize {
        0
    }

    /// The prediction for these image tokens, `[batch, img_tokens, channels]`, f32.
    fn head(&self, x: Streams, cond: &Cond) -> Tensor<3>;
}

/// Shape of a model, as far as splitting it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DitSpec {
    /// Blocks in all, of whatever kind.
    pub n_blocks: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Channels of an image token of the latents.
    pub channels: usize,
    /// Whether text tokens are a stream of their own that blocks change, so that they can be shared out among ranks;
    /// otherwise blocks look at the whole text, which every rank holds.
    pub joint: bool,
    /// Whether [`Dit::embed_txt`] depends on the step.
    pub txt_each_step: bool,
}

impl DitSpec {
    /// Channels of an image token between blocks.
    pub fn d_model(&self) -> usize {
        self.n_heads * self.head_dim
    }
}

/// The inputs of forward passes, but for the latents.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// The scheduler's timestep of each pass, in `[0, 1000]`: 1000 is noise.
    pub timesteps: &'a [f32],
    /// The encoded prompt.
    pub text: &'a TextEmbeddings,
    /// Guidance scale for models that were distilled to take it as an input.
    pub guidance: Option<f32>,
    /// Height and width of the picture in pixels, for models that are told it.
    pub size: [usize; 2],
}

/// An encoded prompt, as far as the model at hand takes it.
#[derive(Debug, Clone)]
pub struct TextEmbeddings {
    /// The states of its tokens.
    pub txt: TextStates,
    /// Those of a second encoder, where they enter the model apart from the first's (HunyuanDiT's mT5).
    pub txt_2: Option<TextStates>,
    /// `[batch, d_pooled]`, one vector for the whole prompt
    pub pooled: Option<Tensor<2>>,
}

impl TextEmbeddings {
    /// These prompts and others as one batch; not if their shapes differ.
    pub fn joined(&self, others: &Self) -> Option<Self> {
        let both = |a: &Option<TextStates>, b: &Option<TextStates>| match (a, b) {
            (Some(a), Some(b)) => a.joined(b).map(Some),
            (None, None) => Some(None),
            _ => None,
        };
        let pooled = match (&self.pooled, &others.pooled) {
            (Some(a), Some(b)) if a.dims() == b.dims() => Some(ops::cat(vec![a.clone(), b.clone()], 0)),
            (None, None) => None,
            _ => return None,
        };
        Some(Self { txt: self.txt.joined(&others.txt)?, txt_2: both(&self.txt_2, &others.txt_2)?, pooled })
    }
}

/// What an encoder made of the tokens of a batch of prompts.
#[derive(Debug, Clone)]
pub struct TextStates {
    /// `[batch, txt_tokens, d_text]`
    pub states: Tensor<3>,
    /// For each prompt and token, whether it may be looked at; all of them where absent.
    pub seen: Option<Vec<Vec<bool>>>,
}

impl TextStates {
    /// All tokens may be looked at.
    pub fn all(states: Tensor<3>) -> Self {
        Self { states, seen: None }
    }

    /// These and others as one batch; not if one has what the other lacks.
    fn joined(&self, others: &Self) -> Option<Self> {
        if self.states.dims() != others.states.dims() {
            return None;
        }
        let seen = match (&self.seen, &others.seen) {
            (Some(a), Some(b)) => Some([a.clone(), b.clone()].concat()),
            (None, None) => None,
            _ => return None,
        };
        Some(Self { states: ops::cat(vec![self.states.clone(), others.states.clone()], 0), seen })
    }

    /// Tokens of each prompt.
    pub fn n_tokens(&self) -> usize {
        self.states.dims()[1]
    }
}

/// Positional tables, per token; what a model does not use is absent.
#[derive(Debug, Clone, Default)]
pub struct Positions {
    /// How queries and keys are turned: those of the text tokens, then those of the image tokens.
    pub rope: Option<RopeTable>,
    /// Text tokens in `rope`; 0 where it is the image's alone.
    pub n_txt: usize,
    /// What is added to the image tokens, `[img_tokens, d_model]`.
    pub added: Option<Tensor<2>>,
}

impl Positions {
    /// Those of some of the text tokens and, one after the other, some of the image tokens.
    pub fn share(&self, txt: Range<usize>, img: &[Range<usize>]) -> Self {
        let txt = if self.n_txt == 0 { 0..0 } else { txt };
        let pick = |table: &Tensor<2>, n_txt: usize| {
            let img = img.iter().map(|range| range.start + n_txt..range.end + n_txt);
            let ranges =
                std::iter::once(txt.clone()).filter(|_| n_txt > 0).chain(img).filter(|range| !range.is_empty());
            let parts = ranges.map(|range| table.clone().slice([range])).collect();
            ops::cat(parts, 0)
        };
        Self {
            rope: self.rope.as_ref().map(|rope| rope.map(|table| pick(table, self.n_txt))),
            n_txt: txt.len(),
            added: self.added.as_ref().map(|table| pick(table, 0)),
        }
    }

    /// How the text tokens are turned.
    pub fn txt_rope(&self) -> Option<RopeTable> {
        self.rope.as_ref().map(|rope| rope.tokens(0..self.n_txt))
    }

    /// How the image tokens are turned.
    pub fn img_rope(&self) -> Option<RopeTable> {
        self.rope.as_ref().map(|rope| rope.tokens(self.n_txt..rope.n_tokens()))
    }
}

/// What flows from block to block.
#[derive(Debug, Clone)]
pub struct Streams {
    /// `[batch, txt_tokens, d_model]`; a model whose blocks only look at the text passes it on as it is
    ///
    /// Absent where the blocks change the text and another patch of the same step has taken it through them: the strategy
    /// remembers its keys and values.
    pub txt: Option<Tensor<3>>,
    /// `[batch, img_tokens, d_model]`, this rank's tokens
    pub img: Tensor<3>,
    /// Earlier blocks' `img` that later blocks take up again, the next to be taken last.
    pub skips: Vec<Tensor<3>>,
}

impl Streams {
    /// Text and image alone.
    pub fn new(txt: Option<Tensor<3>>, img: Tensor<3>) -> Self {
        Self { txt, img, skips: Vec::new() }
    }
}

/// What every block is conditioned on.
#[derive(Debug, Clone)]
pub struct Cond {
    /// `[batch, d_model]`: time, and what else a model is told besides the text's tokens
    pub temb: Tensor<2>,
    /// What layers make of the condition alone, by their places in the model, `[batch, width]`
    pub modulations: BTreeMap<usize, Tensor<2>>,
    /// `[batch, 1, 1, txt_tokens]`: 0 at text tokens that may be looked at, `-inf` at others; `None` if all may
    pub txt_bias: Option<Tensor<4>>,
}

/// What the engine passes through a model into its blocks.
pub struct Ctx<'a> {
    /// The attention strategy.
    pub attn: &'a mut dyn Attention,
    /// Where the tokens at hand stand.
    pub positions: &'a Positions,
}

/// Which attention call of the model this is, so that a strategy can keep state for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Site {
    /// The block.
    pub block: usize,
    /// Which of its calls that need other ranks' tokens, from 0.
    pub call: usize,
    /// Which of the groups of its heads, where a strategy takes them one after the other; else 0.
    pub group: usize,
}

impl Site {
    /// The first call of a block.
    pub fn first(block: usize) -> Self {
        Self { block, call: 0, group: 0 }
    }
}

/// Queries, keys and values, each `[batch, heads, tokens, head_dim]`.
#[derive(Debug, Clone)]
pub struct Qkv {
    /// Queries, normalised and turned.
    pub q: Tensor<4>,
    /// Keys, normalised and turned.
    pub k: Tensor<4>,
    /// Values.
    pub v: Tensor<4>,
    /// Where the model wants the output, `[batch, tokens, heads * head_dim]`, not yet written; a strategy may return it
    /// elsewhere.
    pub place: Option<Tensor<3>>,
}

impl Qkv {
    /// The output may be anywhere.
    pub fn new([q, k, v]: [Tensor<4>; 3]) -> Self {
        Self { q, k, v, place: None }
    }

    /// Asks for the output in a place.
    pub fn into_place(self, place: Option<Tensor<3>>) -> Self {
        Self { place, ..self }
    }

    /// Text and image as one sequence, the text first, and the number of its text tokens.
    pub fn joined(txt: Option<Self>, img: Self) -> (Self, usize) {
        let Some(txt) = txt else { return (img, 0) };
        let n_txt = txt.q.dims()[2];
        let cat = |txt, img| ops::cat_tokens(vec![txt, img]);
        (Self::new([cat(txt.q, img.q), cat(txt.k, img.k), cat(txt.v, img.v)]), n_txt)
    }
}

/// The outputs of text and image, `[batch, heads, tokens, head_dim]`, of those of one sequence.
pub fn parted(out: Tensor<4>, n_txt: usize) -> (Option<Tensor<4>>, Tensor<4>) {
    let n = out.dims()[2];
    match n_txt {
        0 => (None, out),
        _ => (Some(ops::narrow(&out, 2, 0..n_txt)), ops::narrow(&out, 2, n_txt..n)),
    }
}

/// What a pass through the blocks is for. Strategies that keep state need it, and those that must know how many tokens
/// other ranks hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    /// The sampler's step.
    pub step: usize,
    /// Which of the request's prompts; each has a state of its own.
    pub prompt: usize,
    /// The patch, or all of them, one after the other.
    pub patch: Option<usize>,
    /// Who holds which tokens.
    pub shares: Arc<Shares>,
}

/// `1 / sqrt(head_dim)`, by which attention's scores are scaled unless a model says otherwise.
pub fn attention_scale(head_dim: usize) -> f64 {
    (head_dim as f64).powf(-0.5)
}

/// An attention strategy: where the other tokens' keys and values come from. The scale is `1 / sqrt(head_dim)`.
pub trait Attention {
    /// Told before each pass through the blocks.
    fn begin(&mut self, _pass: &Pass) {}

    /// Bytes of keys and values that are kept from pass to pass.
    fn kept_bytes(&self) -> u64 {
        0
    }

    /// Attention of this rank's text and image tokens, one sequence, over all tokens of both; shaped like `x.q`.
    ///
    /// Without text the image looks at the text of this step all the same, if the strategy has kept it.
    ///
    /// - `x`: the text's tokens, then the image's
    /// - `n_txt`: how many text tokens there are in `x`; 0 on one rank is 0 on all
    ///
    /// # Errors
    /// A peer that failed, left or kept silent.
    fn joint(&mut self, site: Site, x: Qkv, n_txt: usize) -> Result<Tensor<4>, CommError>;

    /// [`Self::joint`] in two goes: `send` gets the output of the first queries while the rest is attended to, whose output is
    /// returned; it alone has a place.
    ///
    /// # Errors
    /// As [`Self::joint`], and those of `send`.
    fn joint_in_two(
        &mut self,
        site: Site,
        x: Qkv,
        n_txt: usize,
        n_first: usize,
        send: &mut dyn FnMut(Tensor<4>) -> Result<(), CommError>,
    ) -> Result<Tensor<4>, CommError> {
        let n = x.q.dims()[2];
        let out = self.joint(site, x.into_place(None), n_txt)?;
        send(ops::narrow(&out, 2, 0..n_first))?;
        Ok(ops::narrow(&out, 2, n_first..n))
    }

    /// [`Self::joint`] beside work that has nothing to do with it, which is done once: while tokens are under way, if they are.
    ///
    /// # Errors
    /// A peer that failed, left or kept silent; the work may not have been done.
    fn joint_beside(
        &mut self,
        site: Site,
        x: Qkv,
        n_txt: usize,
        work: &mut dyn FnMut(),
    ) -> Result<Tensor<4>, CommError> {
        let out = self.joint(site, x, n_txt)?;
        work();
        Ok(out)
    }

    /// Attention of this rank's image tokens over all image tokens; shaped like `img.q`.
    ///
    /// # Errors
    /// A peer that failed, left or kept silent.
    fn self_attn(&mut self, site: Site, img: Qkv) -> Result<Tensor<4>, CommError> {
        self.joint(site, img, 0)
    }

    /// Attention of this rank's image tokens over the text, which every rank holds whole; shaped like `q`.
    ///
    /// - `k`, `v`: `[batch, heads, txt_tokens, head_dim]`
    /// - `bias`: added to the scores, `[batch, 1, 1, txt_tokens]`
    ///
    /// # Errors
    /// None: there is nothing to be exchanged.
    fn cross_attn(
        &mut self,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        bias: Option<Tensor<4>>,
    ) -> Result<Tensor<4>, CommError> {
        let scale = attention_scale(q.dims()[3]);
        Ok(ops::attention(q, k, v, bias, scale).out)
    }
}
