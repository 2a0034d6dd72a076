//! Ring attention (arXiv 2310.01889): keys and values travel around, queries stay.

use burn::tensor::Tensor;
use xdit_core::comm::{CommError, Communicator, Stats};
use xdit_core::dit::{Attention, Qkv, Site};
use xdit_core::ops::{self, Attended};

/// Each rank attends to its own keys while the next rank's come in; the parts are merged by their log-sum-exp in f32.
///
/// Per call and rank, of `r` ranks, `r - 1` messages of the rank's keys and values. The sums are taken in another order
/// on every rank: the result is one device's to rounding (relative error 1e-6 in f32), not bit for bit.
pub struct Ring {
    comm: Box<dyn Communicator>,
}

impl Ring {
    /// - `comm`: the ranks of the ring
    pub fn new(comm: Box<dyn Communicator>) -> Self {
        Self { comm }
    }

    /// What this rank has sent in its group.
    pub fn stats(&self) -> Stats {
        self.comm.stats()
    }

    fn attend(&self, x: Qkv) -> Result<Tensor<4>, CommError> {
        let [b, _, _, d] = x.q.dims();
        let (scale, n, dtype) = ((d as f64).powf(-0.5), self.comm.size(), x.q.dtype());
        // heads are a view of memory that lies token by token, which is how it travels
        let mut kv = Tensor::cat(vec![x.k.swap_dims(1, 2), x.v.swap_dims(1, 2)], 0);
        let mut merged: Option<Attended> = None;
        for step in 0..n {
            // on its way while this part is computed
            let next = (step + 1 < n).then(|| self.comm.rotate(kv.clone())).transpose()?;
            let half = |i: usize| kv.clone().narrow(0, i * b, b).swap_dims(1, 2);
            let (k, v) = (half(0), half(1));
            let part = ops::attention(x.q.clone(), k, v, None, scale);
            merged = Some(match merged {
                None => part,
                Some(before) => ops::merge_attended(before, part),
            });
            match next {
                Some(next) => kv = next.wait()?,
                None => break,
            }
        }
        Ok(ops::to_dtype(merged.expect("a ring has at least this rank").out, dtype))
    }
}

impl Attention for Ring {
    fn joint(&mut self, _site: Site, txt: Qkv, img: Qkv) -> Result<(Tensor<4>, Tensor<4>), CommError> {
        let n_txt = txt.q.dims()[2];
        let n_img = img.q.dims()[2];
        let cat = |txt, img| ops::cat_tokens(vec![txt, img]);
        let out = self.attend(Qkv { q: cat(txt.q, img.q), k: cat(txt.k, img.k), v: cat(txt.v, img.v) })?;
        Ok((out.clone().narrow(2, 0, n_txt), out.narrow(2, n_txt, n_img)))
    }

    fn self_attn(&mut self, _site: Site, img: Qkv) -> Result<Tensor<4>, CommError> {
        self.attend(img)
    }
}
