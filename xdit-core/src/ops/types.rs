//! What operations take and return beside tensors: kernels see nothing else of [`super`].

use burn::tensor::Tensor;

/// What follows a dense layer, fused into it where the device can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x`
    Identity,
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, `gelu-approximate` and `gelu_new` upstream.
    GeluTanh,
    /// `0.5 x (1 + erf(x / sqrt 2))`
    Gelu,
    /// `x sigmoid(1.702 x)`, CLIP's
    QuickGelu,
    /// `x sigmoid(x)`
    Silu,
}

/// A layer norm with the checkpoint's scale and shift.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// `[d]`
    pub weight: Tensor<1>,
    /// `[d]`
    pub bias: Tensor<1>,
    /// Added to the variance.
    pub eps: f64,
}

/// What a model does to each head of its queries and keys.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "two of them per attention, and none is moved after loading")]
pub enum HeadNorm {
    /// Nothing.
    None,
    /// [`rms_norm`](super::rms_norm) over the head's channels.
    Rms {
        /// `[head_dim]`
        weight: Tensor<1>,
        /// Added to the mean of squares.
        eps: f64,
    },
    /// A layer norm over the head's channels.
    Layer(LayerNorm),
}

/// Cosines and sines per token and pair of channels: channels `2i` and `2i + 1` of a head turn by the angle `i`.
///
/// The table belongs to the tokens: whoever cuts the tokens cuts the table with [`RopeTable::tokens`], so that nothing
/// else needs to know where a token stands in the picture.
#[derive(Debug, Clone)]
pub struct RopeTable {
    /// `[tokens, head_dim / 2]`, f32
    pub cos: Tensor<2>,
    /// `[tokens, head_dim / 2]`, f32
    pub sin: Tensor<2>,
}

/// A stream's part in queries, keys and values, its layers' weights as one.
#[cfg(feature = "cuda")]
#[derive(Debug)]
pub struct QkvPart<'a> {
    /// `[batch, tokens, in]`
    pub x: Tensor<3>,
    /// `[3 heads head_dim, in]`
    pub weight: &'a Tensor<2>,
    /// `[3 heads head_dim]`
    pub bias: Option<&'a Tensor<1>>,
    /// Of the queries' heads, and of the keys'.
    pub norms: [&'a HeadNorm; 2],
    /// How both are turned.
    pub rope: Option<&'a RopeTable>,
}

/// What attention returns.
#[derive(Debug, Clone)]
pub struct Attended {
    /// `[batch, heads, queries, head_dim]`
    pub out: Tensor<4>,
    /// `[batch, heads, queries]`, f32: the natural log of each row's sum of exponentials, scale and bias included
    pub lse: Tensor<3>,
}

/// A convolution with stride 1 that keeps height and width: its kernel is `k x k` for an odd `k`, padded by `k / 2`.
#[derive(Debug, Clone)]
pub struct Conv2d {
    /// `[out, in, k, k]`
    pub weight: Tensor<4>,
    /// `[out]`
    pub bias: Tensor<1>,
}

/// A group norm with the checkpoint's scale and shift.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    /// `[channels]`
    pub weight: Tensor<1>,
    /// `[channels]`
    pub bias: Tensor<1>,
    /// Divides the channels.
    pub n_groups: usize,
    /// Added to the variance.
    pub eps: f64,
}
