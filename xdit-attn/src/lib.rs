//! Attention strategies: where the keys and values that a rank does not hold come from.
//!
//! A strategy implements [`xdit_core::dit::Attention`] and is passed into a model, which calls it inside its blocks.
//! [`Local`] is one device; [`Ulysses`] and [`Ring`] share a picture's tokens among ranks; [`StaleKv`] keeps PipeFusion's
//! keys and values. They nest: `Ulysses` around `Ring` is USP, unified sequence parallelism (arXiv 2405.07719), and
//! `StaleKv` stands between the two.
#![forbid(unsafe_code)]

mod local;
mod ring;
mod stale;
mod ulysses;

use std::ops::Range;

use burn::tensor::Tensor;
use xdit_core::comm::{CommError, Communicator};
use xdit_core::dit::Attention;
use xdit_core::layout::Shares;

pub use local::Local;
pub use ring::Ring;
pub use stale::StaleKv;
pub use ulysses::Ulysses;

/// Attention over keys and values that lie as they travel and are kept.
pub trait Attend {
    /// - `q`: `[batch, heads, queries, head_dim]`
    /// - `kv`: `[2 batch, keys, heads, head_dim]`, the keys of the whole batch, then the values
    /// - `n_keys`: how many keys there are on each rank of the ring, this one among them
    ///
    /// Returns what is shaped like `q`.
    ///
    /// # Errors
    /// A peer that failed, left or kept silent.
    fn attend(&self, q: Tensor<4>, kv: Tensor<4>, n_keys: &[usize]) -> Result<Tensor<4>, CommError>;

    /// This rank's place in the ring.
    fn ring_rank(&self) -> usize {
        0
    }

    /// How many ranks the ring has.
    fn ring_size(&self) -> usize {
        1
    }
}

/// Keys and values `[batch, heads, tokens, head_dim]` as [`Attend`] takes them: heads are a view of memory that lies
/// token by token.
fn keys_and_values(k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    Tensor::cat(vec![k.swap_dims(1, 2), v.swap_dims(1, 2)], 0)
}

/// How many tokens each rank of a ring has in a sequence: those of the ranks that trade heads with it.
///
/// - `with_txt`: whether the text's tokens are among them
fn ring_tokens(shares: &Shares, size: usize, with_txt: bool, patches: Range<usize>) -> Vec<usize> {
    let of_rank = |rank: usize| {
        let txt = if with_txt { shares.txt(rank).len() } else { 0 };
        txt + patches.clone().map(|patch| shares.img(patch, rank).len()).sum::<usize>()
    };
    (0..size).map(|ring| shares.group(ring).map(of_rank).sum()).collect()
}

/// The strategy of a rank in these groups: [`Ulysses`] around [`Ring`], without what a group of one has no use for.
pub fn usp(ulysses: Box<dyn Communicator>, ring: Box<dyn Communicator>) -> Box<dyn Attention> {
    match (ulysses.size(), ring.size()) {
        (1, 1) => Box::new(Local),
        (1, _) => Box::new(Ring::new(ring)),
        (_, 1) => Box::new(Ulysses::new(ulysses, Local)),
        _ => {
            let place = ring.rank();
            Box::new(Ulysses::new(ulysses, Ring::new(ring)).in_ring(place))
        }
    }
}

/// The strategy of a pipeline stage's rank in these groups: [`usp`] with keys and values that are kept from step to step.
pub fn pipefusion(ulysses: Box<dyn Communicator>, ring: Box<dyn Communicator>) -> Box<dyn Attention> {
    match (ulysses.size(), ring.size()) {
        (1, 1) => Box::new(StaleKv::new(Local)),
        (1, _) => Box::new(StaleKv::new(Ring::new(ring))),
        (_, 1) => Box::new(Ulysses::new(ulysses, StaleKv::new(Local))),
        _ => {
            let place = ring.rank();
            Box::new(Ulysses::new(ulysses, StaleKv::new(Ring::new(ring))).in_ring(place))
        }
    }
}

/// The example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
