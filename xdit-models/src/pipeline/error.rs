//! Why there is no picture.

use std::path::PathBuf;

use burn::tensor::DType;
use xdit_core::checkpoint::LoadError;
use xdit_core::comm::CommError;
use xdit_core::engine::{EngineError, suspect};
use xdit_core::mesh::PlanError;
use xdit_core::observer::Phase;
use xdit_core::sampler::SamplerError;

use crate::error::ModelError;
use crate::hub::HubError;
use crate::pipeline::request::RequestError;
use crate::text::tokenizer::TokenizerError;

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

impl PipelineError {
    /// Whether it only tells of another rank's failure, or of the end that follows from one.
    pub(crate) fn is_told(&self) -> bool {
        matches!(self, Self::Engine(EngineError::Comm(_) | EngineError::Cancelled { .. }) | Self::Cancelled(_))
    }
}

impl From<CommError> for PipelineError {
    fn from(error: CommError) -> Self {
        Self::Engine(error.into())
    }
}
