//! Communicators: how the ranks of a mesh exchange tensors.
//!
//! The seam is [`xdit_core::comm::Communicator`]; this crate holds what fills it. So far that is [`local`]: ranks are
//! threads of one process, on any Burn device.
#![forbid(unsafe_code)]

pub mod local;

pub use xdit_core::comm::{CommError, Communicator};

/// The example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
