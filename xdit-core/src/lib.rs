//! The seams and the engine of `xdit`: what a diffusion transformer is ([`dit`]), how its steps run ([`engine`]), the
//! arithmetic that models are written in ([`ops`]), samplers, seeded noise, and reading of checkpoints.
//!
//! No model, no attention strategy and no transport lives here; `xdit-models`, `xdit-attn` and `xdit-comm` fill the
//! seams, and `xdit-cli` wires them.

pub mod dit;
pub mod engine;
pub mod observer;

pub mod layout;
pub mod mesh;
pub mod noise;
pub mod ops;
pub mod sampler;
pub mod schedule;
pub mod stages;

pub mod checkpoint;
pub mod folder;

pub mod comm;
pub mod device;

#[cfg(feature = "cuda")]
pub mod cuda;

/// The example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
