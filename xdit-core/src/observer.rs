//! How a caller watches a request and stops it.

use std::fmt::{self, Display};
use std::ops::ControlFlow;

use burn::tensor::Tensor;

/// A part of a request that takes time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Files from a hub, in bytes.
    Download,
    /// Weights from disk to the device, in bytes.
    Load,
    /// Prompts to embeddings, in prompts.
    Encode,
    /// The denoising loop, in steps. 0 of them are done once what they share has been computed.
    Denoise,
    /// Latents to a picture, in tiles.
    Decode,
}

impl Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Download => "download",
            Self::Load => "load",
            Self::Encode => "encode",
            Self::Denoise => "denoise",
            Self::Decode => "decode",
        })
    }
}

/// Watches a request. Every method has a default that does nothing; `()` is the observer who does not look.
pub trait Observer {
    /// A phase starts; `what` says of what (a component, a file), `total` is in the phase's unit.
    fn begin(&mut self, _phase: Phase, _what: &str, _total: u64) {}

    /// `done` of the total is done. Breaking cancels the request.
    fn advance(&mut self, _phase: Phase, _done: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// `done` of `total` passes of a block of the step at hand are done, of those that this rank takes part in. Breaking
    /// cancels the request.
    fn blocks(&mut self, _step: usize, _done: usize, _total: usize) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// The phase is over.
    fn end(&mut self, _phase: Phase) {}

    /// This rank's latents after step `step`, `[batch, img_tokens, channels]`, for previews. Reading them waits for the device.
    fn latents(&mut self, _step: usize, _latents: &Tensor<3>) {}

    /// Something the user should know that is no error.
    fn warn(&mut self, _message: &str) {}
}

impl Observer for () {}
