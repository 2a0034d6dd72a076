//! CUDA beneath Burn: kernels of our own and NVIDIA's libraries on the memory and the streams of Burn's CUDA tensors.
//!
//! - [`libraries`]: where the driver, NVRTC, cuBLASLt and cuDNN are found
//! - `headers`: what Burn's kernels include
//! - [`raw`]: the memory behind a tensor, and work in its stream's order: all that depends on Burn's inner workings
//! - [`gpu`]: what a device's thread keeps: compiled kernels, cuBLASLt's handle
//! - [`staging`]: from files into a GPU's memory
//! - [`products`]: dense products by cuBLASLt
//! - [`fp8`]: what those of FP8 need
//! - [`cudnn`]: convolutions, where cuDNN is installed
//! - `copies`: strided tensors by the copy engines
//! - [`peers`]: tensors for other GPUs of the process
//! - [`kernels`]: CUDA C++ to machine code by NVRTC, kept on disk
//!
//! The operations that are built on this are in `ops/cuda`.

pub(crate) mod copies;
pub mod cudnn;
mod devices;
mod error;
pub mod fp8;
pub mod gpu;
mod headers;
pub mod kernels;
pub mod libraries;
pub mod peers;
pub mod products;
pub mod raw;
pub mod staging;
pub mod tensor_map;
mod tuning;

pub use self::devices::{DeviceInfo, devices, memory};
pub use self::error::CudaError;
