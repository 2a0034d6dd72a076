//! Reading safetensors checkpoints: what a file holds, and its tensors in the dtype that a model computes in.
//!
//! [`Weights`] is the tensors of one component, by name, over one or several files. Opening reads headers only. A
//! [`Loader`] walks it the way a model is built (`loader.pp("blocks").pp(3).tensor("weight", [out, in])`) and reads
//! each tensor's bytes straight from the map into the one buffer that the tensor keeps, or from the file by way of pinned
//! memory into a GPU's. [`Loader::drawn`] is for measurements: it makes tensors up.
//!
//! Nothing here trusts a file: every number of a header is checked against the file's length before it is used, and
//! every failure is a [`LoadError`] that names the file, the tensor and the numbers.

mod convert;
mod drawn;
mod dtype;
mod error;
mod foreign;
mod header;
mod loader;
mod map;
mod quantization;
#[cfg(feature = "cuda")]
mod upload;
mod weights;

pub use dtype::Dtype;
pub use error::LoadError;
pub(crate) use error::shown;
pub(crate) use foreign::{foreign_name, foreign_text};
pub use loader::{LoadReport, Loader};
pub use quantization::Quantization;
pub use weights::{DtypeTotal, TensorInfo, Weights};
