//! What operations take and return beside tensors: kernels see nothing else of [`super`].

#[cfg(feature = "cuda")]
use burn::tensor::DType;
use burn::tensor::Tensor;

#[cfg(feature = "cuda")]
use crate::cuda::raw::DeviceTensor;

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

/// Rows of e4m3 numbers, each to be multiplied by a scale of its own.
#[cfg(feature = "cuda")]
#[derive(Debug, Clone)]
pub struct Fp8 {
    /// `[.., d]`, densely packed
    pub numbers: DeviceTensor,
    /// `[rows]`, f32
    pub scales: DeviceTensor,
    /// The precision of what they were made of, and of what is made of them.
    pub dtype: DType,
}

#[cfg(feature = "cuda")]
impl Fp8 {
    /// Not yet written.
    ///
    /// - `like`: something on the same device
    pub fn empty(like: &DeviceTensor, dims: &[usize], dtype: DType) -> Self {
        let rows = dims[..dims.len() - 1].iter().product();
        Self { numbers: like.empty(dims, DType::U8), scales: like.empty(&[rows], DType::F32), dtype }
    }
}

/// What a dense layer's product is of, on an NVIDIA GPU.
#[cfg(feature = "cuda")]
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "on its way to a product, not kept")]
pub enum Factors<'a> {
    /// Tokens, `[batch, tokens, in]`, and a weight, `[out, in]`, in one precision.
    Plain(Tensor<3>, &'a Tensor<2>),
    /// The same in FP8.
    Fp8(Fp8, &'a Fp8),
}

/// A stream's part in queries, keys and values, its layers' weights as one.
#[cfg(feature = "cuda")]
#[derive(Debug)]
pub struct QkvPart<'a> {
    /// Its tokens, and the weight `[3 heads head_dim, in]`.
    pub factors: Factors<'a>,
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
