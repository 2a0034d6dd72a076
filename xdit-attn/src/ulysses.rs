//! DeepSpeed-Ulysses (arXiv 2309.14509): every rank trades its share of the tokens for a share of the heads.

use burn::tensor::Tensor;
use xdit_core::comm::{CommError, Communicator, Stats, even_sizes};
use xdit_core::dit::{Attention, JointOut, Pass, Qkv, Site};

/// All-to-all before and after an attention of fewer heads over more tokens.
///
/// Per call and rank, of `u` ranks, `4 (u - 1)` messages: of queries, keys and values before and of the output after, each
/// time `(u - 1) / u` of the rank's bytes. Heads that `u` does not divide are spread as evenly as they can be.
///
/// On the CPU the result has the bits of one device's, if `inner` has: each head sees all keys in their order.
pub struct Ulysses<A> {
    comm: Box<dyn Communicator>,
    inner: A,
    /// Image tokens of each patch that these ranks hold together, where there are several at once.
    patches: Vec<usize>,
}

impl<A: Attention> Ulysses<A> {
    /// - `comm`: the ranks that share the heads, in the order of their tokens
    /// - `inner`: what attends once the heads are shared out: [`Local`](crate::Local), or [`Ring`](crate::Ring) where
    ///   other groups hold more tokens
    pub fn new(comm: Box<dyn Communicator>, inner: A) -> Self {
        Self { comm, inner, patches: Vec::new() }
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

    /// [`Self::to_heads`] of the image's tokens. Ranks hold a band of every patch: joined rank by rank they are put into
    /// the picture's order, patch by patch.
    fn img_to_heads(&self, x: Qkv) -> Result<Qkv, CommError> {
        let x = self.to_heads(x)?;
        if self.patches.len() < 2 {
            return Ok(x);
        }
        let bands = self.bands();
        let starts = starts(bands.iter().map(|patches| patches.iter().sum()));
        let order = |x: Tensor<4>| {
            let x = by_token(x);
            let mut parts = Vec::new();
            for patch in 0..self.patches.len() {
                for (rank, sizes) in bands.iter().enumerate() {
                    let start = starts[rank] + sizes[..patch].iter().sum::<usize>();
                    parts.push(x.clone().narrow(1, start, sizes[patch]));
                }
            }
            by_token(Tensor::cat(parts, 1))
        };
        Ok(Qkv { q: order(x.q), k: order(x.k), v: order(x.v) })
    }

    /// The way back.
    fn img_to_tokens(&self, x: Tensor<4>) -> Result<Tensor<4>, CommError> {
        if self.patches.len() < 2 {
            return self.to_tokens(x);
        }
        let (bands, starts) = (self.bands(), starts(self.patches.iter().copied()));
        let x = by_token(x);
        let mut parts = Vec::new();
        for rank in 0..bands.len() {
            for (patch, start) in starts.iter().enumerate() {
                let start = start + bands[..rank].iter().map(|sizes| sizes[patch]).sum::<usize>();
                parts.push(x.clone().narrow(1, start, bands[rank][patch]));
            }
        }
        let sizes: Vec<usize> = bands.iter().map(|patches| patches.iter().sum()).collect();
        Ok(by_token(self.comm.all_to_all_sized(Tensor::cat(parts, 1), 1, &sizes, 2)?))
    }

    /// By rank and patch, how many tokens there are.
    fn bands(&self) -> Vec<Vec<usize>> {
        let size = self.comm.size();
        (0..size).map(|rank| self.patches.iter().map(|n| even_sizes(*n, size)[rank]).collect()).collect()
    }
}

/// Where each of these begins, one after the other.
fn starts(sizes: impl Iterator<Item = usize>) -> Vec<usize> {
    sizes.scan(0, |at, size| Some(std::mem::replace(at, *at + size))).collect()
}

/// Heads and tokens exchanged, a view. Projections and attention write token by token: cut and joined in that order,
/// memory is copied in long runs.
fn by_token(x: Tensor<4>) -> Tensor<4> {
    x.swap_dims(1, 2)
}

impl<A: Attention> Attention for Ulysses<A> {
    fn begin(&mut self, pass: &Pass) {
        self.patches = if pass.patch.is_none() { pass.rows.clone() } else { Vec::new() };
        self.inner.begin(pass);
    }

    fn kept_bytes(&self) -> u64 {
        self.inner.kept_bytes()
    }

    fn joint(&mut self, site: Site, txt: Option<Qkv>, img: Qkv) -> Result<JointOut, CommError> {
        let (txt, img) = (txt.map(|txt| self.to_heads(txt)).transpose()?, self.img_to_heads(img)?);
        let (txt, img) = self.inner.joint(site, txt, img)?;
        Ok((txt.map(|txt| self.to_tokens(txt)).transpose()?, self.img_to_tokens(img)?))
    }

    fn self_attn(&mut self, site: Site, img: Qkv) -> Result<Tensor<4>, CommError> {
        let img = self.img_to_heads(img)?;
        let img = self.inner.self_attn(site, img)?;
        self.img_to_tokens(img)
    }
}
