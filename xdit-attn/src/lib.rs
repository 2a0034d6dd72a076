//! Attention strategies: where the keys and values that a rank does not hold come from.
//!
//! A strategy implements [`xdit_core::dit::Attention`] and is passed into a model, which calls it inside its blocks.
//! [`Local`] is one device; [`Ulysses`] and [`Ring`] share a picture's tokens among ranks. They nest: `Ulysses` around
//! `Ring` is USP, unified sequence parallelism (arXiv 2405.07719). PipeFusion's stale rows join them here.
#![forbid(unsafe_code)]

mod local;
mod ring;
mod ulysses;

use xdit_core::comm::Communicator;
use xdit_core::dit::Attention;

pub use local::Local;
pub use ring::Ring;
pub use ulysses::Ulysses;

/// The strategy of a rank in these groups: [`Ulysses`] around [`Ring`], without what a group of one has no use for.
pub fn usp(ulysses: Box<dyn Communicator>, ring: Box<dyn Communicator>) -> Box<dyn Attention> {
    match (ulysses.size(), ring.size()) {
        (1, 1) => Box::new(Local),
        (1, _) => Box::new(Ring::new(ring)),
        (_, 1) => Box::new(Ulysses::new(ulysses, Local)),
        _ => Box::new(Ulysses::new(ulysses, Ring::new(ring))),
    }
}

/// The example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
