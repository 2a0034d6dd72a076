//! Attention strategies: where the keys and values that a rank does not hold come from.
//!
//! A strategy implements [`xdit_core::dit::Attention`] and is passed into a model, which calls it inside its blocks.
//! [`Local`] is one device; [`Ulysses`] and [`Ring`] share a picture's tokens among ranks. They nest: `Ulysses` around
//! `Ring` is USP, unified sequence parallelism (arXiv 2405.07719). PipeFusion's stale rows join them here.
#![forbid(unsafe_code)]

mod local;
mod ring;
mod ulysses;

pub use local::Local;
pub use ring::Ring;
pub use ulysses::Ulysses;

/// The example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
