//! Where a pipeline comes from and how it is opened.

use std::path::PathBuf;

use burn::tensor::FloatDType;
use xdit_core::checkpoint::Quantization;
use xdit_core::mesh::ParallelConfig;
use xdit_core::stages::PipeFusion;

use crate::bench::published::Published;

/// Where a pipeline comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// The small model inside the program.
    Builtin,
    /// A diffusers pipeline folder.
    Folder(PathBuf),
    /// A published configuration with random weights and no encoders, for [`Pipeline::bench`](crate::pipeline::Pipeline::bench)
    /// alone.
    Random(&'static Published),
    /// A repository of the Hugging Face hub.
    Hub {
        /// `owner/name`
        id: String,
        /// Branch, tag or commit.
        revision: Option<String>,
    },
}

impl ModelSource {
    /// A folder that exists, else a hub id `owner/name`, else a folder that does not exist.
    pub fn parse(model: &str) -> Self {
        let is_id = model.split('/').count() == 2
            && model.split('/').all(|part| {
                !part.is_empty()
                    && !part.starts_with('.')
                    && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            });
        if is_id && !PathBuf::from(model).exists() {
            Self::Hub { id: model.into(), revision: None }
        } else {
            Self::Folder(model.into())
        }
    }
}

/// How to open a pipeline.
#[derive(Debug, Clone)]
pub struct Options {
    /// Precision of weights and activations; norms, softmax, samplers and latents are f32 in any case.
    pub dtype: FloatDType,
    /// How the dense layers of the transformer's blocks are kept and multiplied, if not in this precision.
    pub gemm_quantization: Option<Quantization>,
    /// The checkpoint's variant, such as `fp16`.
    pub variant: Option<String>,
    /// How many ranks share a request, and how.
    pub parallel: ParallelConfig,
    /// How pipeline stages work on a picture, where there are several.
    pub pipefusion: PipeFusion,
    /// Whether text encoders stay in memory for the next request.
    pub keep_encoders: bool,
}

impl Options {
    /// For one rank.
    pub fn new(dtype: FloatDType) -> Self {
        let (parallel, pipefusion) = (ParallelConfig::default(), PipeFusion::default());
        Self { dtype, gemm_quantization: None, variant: None, parallel, pipefusion, keep_encoders: false }
    }
}
