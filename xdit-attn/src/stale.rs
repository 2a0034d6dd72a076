//! PipeFusion's keys and values (arXiv 2405.14430): those of patches that are not there yet are the last step's.

use std::collections::HashMap;
use std::ops::Range;

use burn::tensor::Tensor;
use xdit_core::comm::CommError;
use xdit_core::dit::{Attention, Pass, Qkv, Site};
use xdit_core::layout::Shares;

use crate::{Attend, keys_and_values, ring_tokens};

/// Keeps the keys and values of all tokens, for each prompt and attention of the model. A patch's own replace those that
/// it had in the step before; then it looks at all tokens: of earlier patches and the text they are this step's, of
/// later ones the last step's. Tokens that no step has written are not looked at.
///
/// They lie in the picture's order, the text first: in one piece that attention and a ring read where it is. Around a
/// ring they are this rank's share of the tokens, inside [`Ulysses`](crate::Ulysses) those of its heads. They take
/// `2 batch (txt_tokens + img_tokens) heads head_dim` elements, of a rank's share of tokens and heads.
///
/// A request's first step forgets what another left.
pub struct StaleKv<A> {
    inner: A,
    pass: Option<Pass>,
    kept: HashMap<(usize, Site), Kept>,
}

struct Kept {
    /// `[2 batch, txt_tokens + img_tokens, heads, head_dim]`
    kv: Tensor<4>,
    n_txt: usize,
    /// Patches that were written: the first ones, as patches come in their order.
    n_patches: usize,
}

impl<A: Attend> StaleKv<A> {
    /// - `inner`: what attends to the kept tokens
    pub fn new(inner: A) -> Self {
        Self { inner, pass: None, kept: HashMap::new() }
    }

    /// Image tokens of these patches on the ranks that trade heads with this one.
    fn n_img(&self, shares: &Shares, patches: Range<usize>) -> usize {
        ring_tokens(shares, self.inner.ring_size(), false, patches)[self.inner.ring_rank()]
    }
}

/// `fresh` in the place of `into`'s tokens from `at` on; in place where nobody else holds `into`.
fn write(into: Tensor<4>, fresh: Tensor<4>, at: usize) -> Tensor<4> {
    let [b, n, h, d] = fresh.dims();
    into.slice_assign([0..b, at..at + n, 0..h, 0..d], fresh)
}

impl<A: Attend> Attention for StaleKv<A> {
    fn begin(&mut self, pass: &Pass) {
        // all of it: a pass that takes part in later steps alone has no first step to forget in
        if pass.step == 0 && pass.prompt == 0 && pass.patch.is_none_or(|patch| patch == 0) {
            self.kept.clear();
        }
        self.pass = Some(pass.clone());
    }

    fn kept_bytes(&self) -> u64 {
        let bytes = |kept: &Kept| (kept.kv.dims().iter().product::<usize>() * kept.kv.dtype().size()) as u64;
        self.kept.values().map(bytes).sum()
    }

    /// # Panics
    /// If [`begin`](Attention::begin) has not said who holds how many tokens.
    fn joint(&mut self, site: Site, x: Qkv, n_txt: usize) -> Result<Tensor<4>, CommError> {
        let Pass { prompt, patch, shares, .. } = self.pass.clone().expect("a pass was begun");
        let patches = shares.patches(patch);
        let fresh = keys_and_values(x.k, x.v);
        let [b, n, heads, d] = fresh.dims();
        let kept = self.kept.remove(&(prompt, site));
        let mut kept = kept.unwrap_or_else(|| {
            let n = n_txt + self.n_img(&shares, 0..shares.n_patches());
            let kv = Tensor::empty([b, n, heads, d], (&fresh.device(), fresh.dtype()));
            Kept { kv, n_txt, n_patches: 0 }
        });
        let at = kept.n_txt + self.n_img(&shares, 0..patches.start);
        kept.kv = match n_txt {
            0 => write(kept.kv, fresh, at),
            // the text lies in front, apart from a later patch
            _ if at == n_txt => write(kept.kv, fresh, 0),
            _ => {
                let kv = write(kept.kv, fresh.clone().narrow(1, 0, n_txt), 0);
                write(kv, fresh.narrow(1, n_txt, n - n_txt), at)
            }
        };
        kept.n_patches = kept.n_patches.max(patches.end);
        let n_keys = ring_tokens(&shares, self.inner.ring_size(), kept.n_txt > 0, 0..kept.n_patches);
        let n_seen = n_keys[self.inner.ring_rank()];
        let seen = if n_seen == kept.kv.dims()[1] { kept.kv.clone() } else { kept.kv.clone().narrow(1, 0, n_seen) };
        let out = self.inner.attend(x.q, seen, &n_keys)?;
        self.kept.insert((prompt, site), kept);
        Ok(out)
    }
}
