//! PipeFusion's keys and values (arXiv 2405.14430): those of patches that are not there yet are the last step's.

use std::collections::HashMap;

use burn::tensor::Tensor;
use xdit_core::comm::CommError;
use xdit_core::dit::{Attention, JointOut, Pass, Qkv, Site};
use xdit_core::ops;

use crate::local::part;
use crate::{Attend, keys_and_values};

/// Keeps the keys and values of all tokens, for each prompt and attention of the model. A patch's own replace those that
/// it had in the step before; then it looks at all rows: of earlier patches and the text they are this step's, of
/// later ones the last step's. Rows that no step has written are not looked at.
///
/// Rows lie in the picture's order, the text first: in one piece that attention and a ring read where it is. Around a
/// ring they are this rank's share of the rows, inside [`Ulysses`](crate::Ulysses) those of its heads. They take
/// `2 batch (txt_tokens + img_tokens) heads head_dim` elements, of a rank's share of tokens and heads.
///
/// A request's first step forgets what another left.
pub struct StaleKv<A> {
    inner: A,
    pass: Pass,
    kept: HashMap<(usize, Site), Kept>,
}

struct Kept {
    /// `[2 batch, txt_tokens + img_tokens, heads, head_dim]`
    kv: Tensor<4>,
    n_txt: usize,
    /// Rows that were written: the first ones, as patches come in their order.
    n_rows: usize,
}

impl<A: Attend> StaleKv<A> {
    /// - `inner`: what attends to the rows
    pub fn new(inner: A) -> Self {
        let pass = Pass { step: 0, prompt: 0, patch: None, rows: Vec::new() };
        Self { inner, pass, kept: HashMap::new() }
    }

    fn attend(&mut self, site: Site, txt: Option<Qkv>, img: Qkv) -> Result<JointOut, CommError> {
        let n_txt = txt.as_ref().map(|txt| txt.q.dims()[2]);
        let Pass { prompt, patch, rows, .. } = &self.pass;
        let before = patch.map_or(0, |patch| rows[..patch].iter().sum());
        let fresh = keys_and_values(img.k, img.v);
        let (b, n, n_img) = (fresh.dims()[0], fresh.dims()[1], rows.iter().sum::<usize>());
        let kept = self.kept.remove(&(*prompt, site));
        let mut kept = kept.unwrap_or_else(|| {
            let [_, _, heads, d] = fresh.dims();
            let n_txt = n_txt.unwrap_or(0);
            let kv = Tensor::empty([b, n_txt + n_img, heads, d], (&fresh.device(), fresh.dtype()));
            Kept { kv, n_txt, n_rows: n_txt }
        });
        let at = kept.n_txt + before;
        kept.kv = write(kept.kv, fresh, at);
        kept.n_rows = kept.n_rows.max(at + n);
        let q = match txt {
            Some(txt) => {
                kept.kv = write(kept.kv, keys_and_values(txt.k, txt.v), 0);
                ops::cat_tokens(vec![txt.q, img.q])
            }
            None => img.q,
        };
        let n_rows = kept.n_rows;
        let seen = if n_rows == kept.kv.dims()[1] { kept.kv.clone() } else { kept.kv.clone().narrow(1, 0, n_rows) };
        let out = self.inner.attend(q, seen)?;
        self.kept.insert((self.pass.prompt, site), kept);
        Ok(part(out, n_txt))
    }
}

/// `rows` in the place of `into`'s rows from `at` on; in place where nobody else holds `into`.
fn write(into: Tensor<4>, rows: Tensor<4>, at: usize) -> Tensor<4> {
    let [b, n, h, d] = rows.dims();
    into.slice_assign([0..b, at..at + n, 0..h, 0..d], rows)
}

impl<A: Attend> Attention for StaleKv<A> {
    fn begin(&mut self, pass: &Pass) {
        // all of it: a pass that takes part in later steps alone has no first step to forget in
        if pass.step == 0 && pass.prompt == 0 && pass.patch.is_none_or(|patch| patch == 0) {
            self.kept.clear();
        }
        self.pass = pass.clone();
    }

    fn kept_bytes(&self) -> u64 {
        let bytes = |kept: &Kept| (kept.kv.dims().iter().product::<usize>() * kept.kv.dtype().size()) as u64;
        self.kept.values().map(bytes).sum()
    }

    fn joint(&mut self, site: Site, txt: Option<Qkv>, img: Qkv) -> Result<JointOut, CommError> {
        self.attend(site, txt, img)
    }

    fn self_attn(&mut self, site: Site, img: Qkv) -> Result<Tensor<4>, CommError> {
        Ok(self.attend(site, None, img)?.1)
    }
}
