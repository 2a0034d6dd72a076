//! Why there are no latents.

use burn::tensor::DType;

use crate::comm::CommError;

/// Why denoising ended without latents.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A rank failed.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// The observer asked for it.
    #[error("cancelled at step {step} of {n_steps}")]
    Cancelled {
        /// Steps that were done.
        step: usize,
        /// Steps that were asked for.
        n_steps: usize,
    },
    /// Values that are no numbers any more.
    #[error("latents hold {n_bad} non-finite values of {n} after step {step} of {n_steps}; {}", suspect(*dtype))]
    NotFinite {
        /// What the model computes in.
        dtype: DType,
        /// NaN and infinite values, among those of one rank.
        n_bad: usize,
        /// Values that it holds.
        n: usize,
        /// Steps that were done.
        step: usize,
        /// Steps that were asked for.
        n_steps: usize,
    },
    /// The device could not give the latents back.
    #[error("reading the latents from the device failed: {0}")]
    Read(String),
}

impl EngineError {
    /// Whether all ranks of the picture end with it at the same step, and their communicators stay good.
    pub fn is_agreed(&self) -> bool {
        matches!(self, Self::Cancelled { .. } | Self::NotFinite { .. })
    }
}

/// What to look at where values are no numbers any more.
pub fn suspect(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "f16 ends at 65504 and overflows where a checkpoint was not made for it: use bf16 or f32",
        DType::BF16 => "a value in the weights may be non-finite, or rounding to bf16 too coarse: compare with f32",
        _ => "f32 hardly overflows: a value in the weights may be non-finite, or they belong to another configuration",
    }
}
