//! Attention strategies: where the keys and values that a rank does not hold come from.
//!
//! A strategy implements [`xdit_core::dit::Attention`] and is passed into a model, which calls it inside its blocks.
//! [`Local`] is one device; Ulysses, ring attention, their combination and PipeFusion's stale rows join it here, each
//! in its own file.
#![forbid(unsafe_code)]

mod local;

pub use local::Local;
