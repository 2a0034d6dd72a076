//! Communicators: how the ranks of a mesh exchange tensors, and how they are started.
//!
//! The seam is [`xdit_core::comm::Communicator`]; this crate will hold what fills it: `local` (ranks are threads of one
//! process, on any Burn device), `nccl` and `mpi`, and the launchers for them. Until those land, one device needs none.
#![forbid(unsafe_code)]

pub use xdit_core::comm::{CommError, Communicator};
