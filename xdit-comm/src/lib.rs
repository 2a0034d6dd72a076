//! Communicators: how the ranks of a mesh exchange tensors.
//!
//! The seam is [`xdit_core::comm::Communicator`]; this crate holds what fills it: [`local`], whose ranks are threads of one
//! process, on any Burn device, and `mpi` (feature `mpi`), whose ranks are processes on CPUs. [`launcher`] reads what
//! torchrun, mpirun and srun tell the processes that they start.
#![deny(unsafe_code)]

pub mod launcher;
pub mod local;
#[cfg(feature = "mpi")]
pub mod mpi;
mod world;

pub use xdit_core::comm::{CommError, Communicator};

/// The example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
