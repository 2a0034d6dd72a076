use std::path::PathBuf;

use cudarc::cublaslt::result::CublasError;
use cudarc::driver::DriverError;
use cudarc::nvrtc::result::NvrtcError;

use crate::device::{Memory, out_of_memory};

/// What can go wrong beneath an operation on a GPU.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// A library is not there, or is too old.
    #[error("{what} was not found: {advice}")]
    Missing {
        /// The library and what it is for.
        what: &'static str,
        /// What to install.
        advice: String,
    },
    /// The driver refused a call.
    #[error("CUDA: {call} failed: {error}")]
    Driver {
        /// The call.
        call: &'static str,
        /// Its answer.
        error: DriverError,
    },
    /// A GPU that has no products of FP8 rows.
    #[error(
        "cuda:{index} is {name} of compute capability {}.{}, and fp8 with a scale for each row needs 9.0 (Hopper)", sm / 10, sm % 10
    )]
    Fp8 {
        /// Its number.
        index: usize,
        /// The vendor's.
        name: String,
        /// Compute capability, 90 for 9.0.
        sm: u32,
    },
    /// The device has not that much memory left.
    #[error("{}", out_of_memory(*asked, memory))]
    OutOfMemory {
        /// Bytes that were asked for.
        asked: u64,
        /// What there is.
        memory: Memory,
    },
    /// CubeCL refused work.
    #[error("{reason}")]
    Refused {
        /// What it says, a line.
        reason: String,
    },
    /// cuBLASLt refused a product.
    #[error("cuBLASLt: a product of {m} x {k} x {n} numbers failed: {error}")]
    Product {
        /// Rows.
        m: usize,
        /// Summands.
        k: usize,
        /// Columns.
        n: usize,
        /// Its answer.
        error: CublasError,
    },
    /// cuBLASLt could not be set up.
    #[error("cuBLASLt: {call} failed: {error}")]
    Cublas {
        /// The call.
        call: &'static str,
        /// Its answer.
        error: CublasError,
    },
    /// cuDNN refused a call.
    #[error("cuDNN: {call} failed with status {status}")]
    Cudnn {
        /// The call.
        call: &'static str,
        /// Its answer, a `cudnnStatus_t`.
        status: i32,
    },
    /// NVRTC failed by itself.
    #[error("NVRTC: {call} failed: {error:?}")]
    Nvrtc {
        /// The call.
        call: &'static str,
        /// Its answer.
        error: NvrtcError,
    },
    /// What a tensor should hold was never computed.
    #[error("{reason}")]
    Lost {
        /// What failed before.
        reason: String,
    },
    /// Another GPU of the process does not answer.
    #[error("another GPU's thread has not given its tensor within {seconds} s")]
    Silent {
        /// How long it was waited for.
        seconds: u64,
    },
    /// There is no place for the headers of Burn's kernels.
    #[error("cannot write headers to {}: {error}; XDG_CACHE_HOME may name another folder", folder.display())]
    Headers {
        /// The last place that was tried.
        folder: PathBuf,
        /// Why it can't be written.
        error: std::io::Error,
    },
    /// A kernel does not compile, or not well enough.
    #[error("the kernels of {name} do not compile for {arch}: {log}")]
    Compile {
        /// The source.
        name: &'static str,
        /// The architecture.
        arch: String,
        /// What the compiler says.
        log: String,
    },
}

impl CudaError {
    pub(crate) fn driver(call: &'static str) -> impl Fn(DriverError) -> Self {
        move |error| Self::Driver { call, error }
    }

    pub(crate) fn cublas(call: &'static str) -> impl Fn(CublasError) -> Self {
        move |error| Self::Cublas { call, error }
    }

    pub(crate) fn nvrtc(call: &'static str) -> impl Fn(NvrtcError) -> Self {
        move |error| Self::Nvrtc { call, error }
    }
}
