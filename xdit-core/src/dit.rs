//! The seam between a model and the engine: a DiT cut at its block boundaries, and the attention that is passed in.

use burn::tensor::Tensor;

use crate::comm::CommError;
use crate::ops::RopeTable;

/// A diffusion transformer. The engine owns the loop over the blocks; the model knows nothing of ranks.
pub trait Dit {
    /// What a plan must know of the model.
    fn spec(&self) -> DitSpec;

    /// The positional tables of image tokens at `positions` (row and column in tokens) and of `n_txt` text tokens.
    /// Computed once per request; cut together with the tokens.
    fn place(&self, positions: &[[usize; 2]], n_txt: usize) -> Places;

    /// Latents and text to tokens of the model's width, and what every block is conditioned on.
    fn embed(&self, inputs: Inputs<'_>) -> (Streams, Cond);

    /// Block `i` of [`DitSpec::n_blocks`].
    ///
    /// # Errors
    /// Only what the attention strategy returns.
    fn block(&self, ctx: &mut Ctx<'_>, i: usize, x: Streams, cond: &Cond) -> Result<Streams, CommError>;

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
}

/// One forward pass's inputs.
pub struct Inputs<'a> {
    /// `[batch, img_tokens, channels]`
    pub latents: Tensor<3>,
    /// Where these tokens stand.
    pub places: &'a Places,
    /// Flow time in `[0, 1]`: 1 is noise (a scheduler's timestep / 1000).
    pub time: f32,
    /// The encoded prompt.
    pub text: &'a TextEmbeddings,
    /// Guidance scale for models that were distilled to take it as an input.
    pub guidance: Option<f32>,
}

/// An encoded prompt.
#[derive(Debug, Clone)]
pub struct TextEmbeddings {
    /// `[batch, txt_tokens, d_text]`
    pub txt: Tensor<3>,
    /// `[batch, d_pooled]`, one vector for the whole prompt
    pub pooled: Tensor<2>,
}

/// Positional tables, per token.
#[derive(Debug, Clone)]
pub struct Places {
    /// Of the text tokens.
    pub txt: RopeTable,
    /// Of the image tokens.
    pub img: RopeTable,
}

/// What flows from block to block.
#[derive(Debug, Clone)]
pub struct Streams {
    /// `[batch, txt_tokens, d_model]`
    pub txt: Tensor<3>,
    /// `[batch, img_tokens, d_model]`, this rank's tokens
    pub img: Tensor<3>,
}

/// What every block is conditioned on.
#[derive(Debug, Clone)]
pub struct Cond {
    /// `[batch, d_model]`: time, pooled text and guidance
    pub temb: Tensor<2>,
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
pub struct Site(pub usize);

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

/// An attention strategy: where the other tokens' keys and values come from. The scale is `1 / sqrt(head_dim)`.
pub trait Attention {
    /// Attention of all text tokens and this rank's image tokens over all tokens of both streams; the outputs are
    /// shaped like `txt.q` and `img.q`.
    ///
    /// # Errors
    /// A peer that failed, left or kept silent.
    fn joint(&mut self, site: Site, txt: Qkv, img: Qkv) -> Result<(Tensor<4>, Tensor<4>), CommError>;
}
