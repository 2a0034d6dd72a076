//! Why there is no picture.

use std::path::PathBuf;

use burn::tensor::DType;
use xdit_core::checkpoint::LoadError;
use xdit_core::comm::CommError;
use xdit_core::device::LESS;
use xdit_core::engine::{EngineError, suspect};
use xdit_core::mesh::PlanError;
use xdit_core::observer::Phase;
use xdit_core::sampler::SamplerError;

use crate::error::ModelError;
use crate::hub::HubError;
use crate::pipeline::request::RequestError;
use crate::text::tokenizer::TokenizerError;
use crate::vae::bands::BandError;

/// Why there is no picture. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The folder or a checkpoint in it.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A model's configuration.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tokenizer's files.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A scheduler's configuration, or the number of steps.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The hub.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The mesh does not fit the request.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The denoising loop.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The request cannot be served by this model.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// `model_index.json` names a pipeline that is not built.
    #[error("{} holds a {class}, which is not supported; supported are {supported}", path.display())]
    UnknownPipeline {
        /// The folder.
        path: PathBuf,
        /// Its class.
        class: String,
        /// What there is.
        supported: String,
    },
    /// A component has a class that this pipeline cannot run.
    #[error("{component} is a {found}; this pipeline runs {expected}")]
    UnknownClass {
        /// The component.
        component: String,
        /// Its class.
        found: String,
        /// What would run.
        expected: &'static str,
    },
    /// Components that do not belong together.
    #[error("{made_by} is {made}, but {taken_by} is {taken}")]
    Disagree {
        /// A setting of one component.
        made_by: &'static str,
        /// Its value.
        made: usize,
        /// The setting of another that must be equal.
        taken_by: &'static str,
        /// Its value.
        taken: usize,
    },
    /// A tokenizer knows more tokens than its encoder.
    #[error("{tokenizer}: token {token:?} has the id {id}, beyond the {vocab_size} entries of the encoder's table")]
    TokenId {
        /// The tokenizer.
        tokenizer: String,
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// Entries of the encoder's table.
        vocab_size: usize,
    },
    /// More than there is memory for.
    #[error(
        "a picture of {height}x{width} (height x width), {n_tokens} tokens, takes about {} GiB of memory, {} of them the \
         program's own, where {} are free; a step would take about {time}", gib(*needed), gib(*program), gib(*free)
    )]
    Memory {
        /// Pixels.
        height: usize,
        /// Pixels.
        width: usize,
        /// Of image and text.
        n_tokens: usize,
        /// Bytes, estimated: of everything that is not in memory yet.
        needed: u64,
        /// Bytes of these that are neither weights nor activations.
        program: u64,
        /// Bytes.
        free: u64,
        /// Of a step, estimated.
        time: String,
    },
    /// More weights than a GPU has memory for.
    #[error("the weights take {} GiB of memory on {device}, where {} are free; {LESS}", gib(*weights), gib(*free))]
    DeviceMemory {
        /// As in `--device`.
        device: String,
        /// Bytes: of all that are there at once.
        weights: u64,
        /// Bytes.
        free: u64,
    },
    /// The observer asked for it.
    #[error("cancelled during {0}")]
    Cancelled(Phase),
    /// The picture overflowed.
    #[error("the decoded picture holds {n_bad} non-finite values of {n}; {}", suspect(*dtype))]
    NotFinite {
        /// What the decoder computes in.
        dtype: DType,
        /// NaN and infinite values.
        n_bad: usize,
        /// Values in all.
        n: usize,
    },
    /// The device could not give a result back.
    #[error("reading {what} from the device failed: {message}")]
    Read {
        /// Which result.
        what: &'static str,
        /// What the device says.
        message: String,
    },
    /// A rank's thread ended, by a panic of an earlier request or of this one.
    #[error("rank {rank} is gone; open the pipeline again")]
    LostRank {
        /// Its number among those of this process.
        rank: usize,
    },
}

pub(super) fn gib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 30))
}

impl PipelineError {
    /// Whether it only tells of another rank's failure, or of the end that follows from one.
    pub(crate) fn is_told(&self) -> bool {
        matches!(self, Self::Engine(EngineError::Comm(_) | EngineError::Cancelled { .. }) | Self::Cancelled(_))
    }
}

impl From<BandError> for PipelineError {
    fn from(error: BandError) -> Self {
        match error {
            BandError::Comm(error) => error.into(),
            BandError::Cancelled(_) => Self::Cancelled(Phase::Decode),
        }
    }
}

impl From<CommError> for PipelineError {
    fn from(error: CommError) -> Self {
        Self::Engine(error.into())
    }
}
