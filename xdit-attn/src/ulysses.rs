//! DeepSpeed-Ulysses (arXiv 2309.14509): every rank trades its share of the tokens for a share of the heads.

use burn::tensor::Tensor;
use xdit_core::comm::{CommError, Communicator, Stats};
use xdit_core::dit::{Attention, Qkv, Site};

/// All-to-all before and after an attention of fewer heads over more tokens.
///
/// Per call and rank, of `u` ranks, `4 (u - 1)` messages: of queries, keys and values before and of the output after, each
/// time `(u - 1) / u` of the rank's bytes. Heads that `u` does not divide are spread as evenly as they can be.
///
/// On the CPU the result has the bits of one device's, if `inner` has: each head sees all keys in their order.
pub struct Ulysses<A> {
    comm: Box<dyn Communicator>,
    inner: A,
}

impl<A: Attention> Ulysses<A> {
    /// - `comm`: the ranks that share the heads, in the order of their tokens
    /// - `inner`: what attends once the heads are shared out: [`Local`](crate::Local), or [`Ring`](crate::Ring) where
    ///   other groups hold more tokens
    pub fn new(comm: Box<dyn Communicator>, inner: A) -> Self {
        Self { comm, inner }
    }

    /// What this rank has sent in its group.
    pub fn stats(&self) -> Stats {
        self.comm.stats()
    }

    /// `[batch, heads, tokens of this rank, d]` to `[batch, heads of this rank, tokens of all ranks, d]`
    fn to_heads(&self, x: Qkv) -> Result<Qkv, CommError> {
        // three messages: to put them into one would copy all of them once more
        let trade = |x: Tensor<4>| Ok(by_token(self.comm.all_to_all(by_token(x), 2, 1)?));
        Ok(Qkv { q: trade(x.q)?, k: trade(x.k)?, v: trade(x.v)? })
    }

    /// The way back. Tokens are cut as evenly as the engine cuts them.
    fn to_tokens(&self, x: Tensor<4>) -> Result<Tensor<4>, CommError> {
        Ok(by_token(self.comm.all_to_all(by_token(x), 1, 2)?))
    }
}

/// Heads and tokens exchanged, a view. Projections and attention write token by token: cut and joined in that order,
/// memory is copied in long runs.
fn by_token(x: Tensor<4>) -> Tensor<4> {
    x.swap_dims(1, 2)
}

impl<A: Attention> Attention for Ulysses<A> {
    fn joint(&mut self, site: Site, txt: Qkv, img: Qkv) -> Result<(Tensor<4>, Tensor<4>), CommError> {
        let (txt, img) = (self.to_heads(txt)?, self.to_heads(img)?);
        let (txt, img) = self.inner.joint(site, txt, img)?;
        Ok((self.to_tokens(txt)?, self.to_tokens(img)?))
    }

    fn self_attn(&mut self, site: Site, img: Qkv) -> Result<Tensor<4>, CommError> {
        let img = self.to_heads(img)?;
        let img = self.inner.self_attn(site, img)?;
        self.to_tokens(img)
    }
}
