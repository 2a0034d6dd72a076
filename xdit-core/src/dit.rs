//! The seam between a model and the engine: a DiT cut at its block boundaries, and the attention that is passed in.

use std::ops::Range;

use burn::tensor::Tensor;

use crate::comm::CommError;
use crate::ops::{self, RopeTable};

/// A diffusion transformer. The engine owns the loop over the blocks; the model knows nothing of ranks.
pub trait Dit: Send + Sync {
    /// What a plan must know of the model.
    fn spec(&self) -> DitSpec;

    /// The positional tables of all image tokens of a picture, row by row, and of `n_txt` text tokens. Computed once per
    /// request; cut together with the tokens.
    fn place(&self, grid: TokenGrid, n_txt: usize) -> Places;

    /// What every block is conditioned on.
    fn condition(&self, inputs: Inputs<'_>) -> Cond;

    /// Text to tokens, `[batch, txt_tokens, d_txt]`.
    fn embed_txt(&self, text: &TextEmbeddings) -> Tensor<3>;

    /// Latents `[batch, img_tokens, channels]` to tokens of the model's width.
    fn embed_img(&self, latents: Tensor<3>, places: &Places) -> Tensor<3>;

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
}

/// A picture's size in image tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenGrid {
    /// Tokens from top to bottom.
    pub rows: usize,
    /// Tokens from left to right.
    pub cols: usize,
}

impl TokenGrid {
    /// All tokens.
    pub fn n_tokens(&self) -> usize {
        self.rows * self.cols
    }

    /// Row and column of each token, in their order.
    pub fn positions(&self) -> impl Iterator<Item = [usize; 2]> + use<> {
        let Self { rows, cols } = *self;
        (0..rows * cols).map(move |i| [i / cols, i % cols])
    }
}

/// One forward pass's inputs, but for the latents.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// Where the tokens stand.
    pub places: &'a Places,
    /// The scheduler's timestep, in `[0, 1000]`: 1000 is noise.
    pub timestep: f32,
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

    /// A band of the tokens.
    pub fn band(&self, range: Range<usize>) -> Self {
        Self {
            states: self.states.clone().narrow(1, range.start, range.len()),
            seen: self.seen.as_ref().map(|seen| seen.iter().map(|row| row[range.clone()].to_vec()).collect()),
        }
    }

    /// Tokens of each prompt.
    pub fn n_tokens(&self) -> usize {
        self.states.dims()[1]
    }
}

/// Positional tables, per token; what a model does not use is absent.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// How the text tokens' queries and keys are turned.
    pub txt: Option<RopeTable>,
    /// How the image tokens' queries and keys are turned.
    pub img: Option<RopeTable>,
    /// The text's table, then the image's, for blocks that run both as one sequence.
    pub joint: Option<RopeTable>,
    /// What is added to the image tokens, `[img_tokens, d_model]`.
    pub img_embedding: Option<Tensor<2>>,
}

impl Places {
    /// Those of a band of the text tokens and a band of the image tokens.
    pub fn band(&self, txt: Range<usize>, img: Range<usize>) -> Self {
        let img_embedding = self.img_embedding.as_ref().map(|t| t.clone().narrow(0, img.start, img.len()));
        let (txt, img) = (self.txt.as_ref().map(|t| t.rows(txt)), self.img.as_ref().map(|t| t.rows(img)));
        Self {
            joint: match (&self.joint, &txt, &img) {
                (Some(_), Some(txt), Some(img)) => Some(txt.then(img)),
                _ => None,
            },
            txt,
            img_embedding,
            img,
        }
    }

    /// Those of a band of the text tokens and several bands of the image tokens, one after the other.
    pub fn bands(&self, txt: Range<usize>, img: &[Range<usize>]) -> Self {
        let parts: Vec<Self> = img.iter().map(|img| self.band(txt.clone(), img.clone())).collect();
        let join = |table: fn(&Self) -> &Option<RopeTable>| {
            parts.iter().map(|part| table(part).clone()).reduce(|a, b| Some(a?.then(&b?))).flatten()
        };
        let (txt, img) = (parts[0].txt.clone(), join(|part| &part.img));
        let embeddings: Option<Vec<_>> = parts.iter().map(|part| part.img_embedding.clone()).collect();
        Self {
            joint: match (&self.joint, &txt, &img) {
                (Some(_), Some(txt), Some(img)) => Some(txt.then(img)),
                _ => None,
            },
            img_embedding: embeddings.map(|parts| Tensor::cat(parts, 0)),
            txt,
            img,
        }
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
    /// `[batch, n d_model]`: scales, shifts and gates that all blocks share, in models that compute them once
    /// (AdaLN-single)
    pub modulation: Option<Tensor<2>>,
    /// `[batch, 1, 1, txt_tokens]`: 0 at text tokens that may be looked at, `-inf` at others; `None` if all may
    pub txt_bias: Option<Tensor<4>>,
    /// Where the tokens stand.
    pub places: Places,
}

/// What the engine passes through a model into its blocks.
pub struct Ctx<'a> {
    /// The attention strategy.
    pub attn: &'a mut dyn Attention,
}

/// Which attention call of the model this is, so that a strategy can keep state for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Site {
    /// The block.
    pub block: usize,
    /// Which of its calls that need other ranks' tokens, from 0.
    pub call: usize,
}

impl Site {
    /// The first call of a block.
    pub fn first(block: usize) -> Self {
        Self { block, call: 0 }
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
}

/// What a pass through the blocks is for. Strategies that keep state need it, and those that must know where the tokens
/// of one patch end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    /// The sampler's step.
    pub step: usize,
    /// Which of the request's prompts; each has a state of its own.
    pub prompt: usize,
    /// The patch, or all of them, one after the other.
    pub patch: Option<usize>,
    /// Image tokens of each patch that the ranks hold among which heads are traded: all of them where there is no ring.
    pub rows: Vec<usize>,
}

/// Both streams' outputs: the text's, where there was a text, and the image's.
pub type JointOut = (Option<Tensor<4>>, Tensor<4>);

/// An attention strategy: where the other tokens' keys and values come from. The scale is `1 / sqrt(head_dim)`.
pub trait Attention {
    /// Told before each pass through the blocks.
    fn begin(&mut self, _pass: &Pass) {}

    /// Bytes of keys and values that are kept from pass to pass.
    fn kept_bytes(&self) -> u64 {
        0
    }

    /// Attention of the text tokens and this rank's image tokens over all tokens of both streams; the outputs are
    /// shaped like `txt.q` and `img.q`.
    ///
    /// Without `txt` the image looks at the text of this step all the same, if the strategy has kept it.
    ///
    /// # Errors
    /// A peer that failed, left or kept silent.
    fn joint(&mut self, site: Site, txt: Option<Qkv>, img: Qkv) -> Result<JointOut, CommError>;

    /// Attention of this rank's image tokens over all image tokens; shaped like `img.q`.
    ///
    /// # Errors
    /// A peer that failed, left or kept silent.
    fn self_attn(&mut self, site: Site, img: Qkv) -> Result<Tensor<4>, CommError>;

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
        let scale = (q.dims()[3] as f64).powf(-0.5);
        Ok(ops::attention(q, k, v, bias, scale).out)
    }
}
