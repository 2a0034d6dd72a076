//! Ring attention (arXiv 2310.01889): keys and values travel around, queries stay.

use burn::tensor::Tensor;
use xdit_core::comm::{CommError, Communicator, Stats};
use xdit_core::dit::{Attention, Pass, Qkv, Site, attention_scale};
use xdit_core::ops::{self, Attended};

use crate::{Attend, keys_and_values, ring_tokens};

/// Each rank attends to its own keys while the next rank's come in; the parts are merged by their log-sum-exp in f32.
///
/// Per call and rank, of `r` ranks, `r - 1` messages of the rank's keys and values. The sums are taken in another order
/// on every rank: the result is one device's to rounding (relative error 1e-6 in f32), not bit for bit.
pub struct Ring {
    comm: Box<dyn Communicator>,
    pass: Option<Pass>,
}

impl Ring {
    /// - `comm`: the ranks of the ring
    pub fn new(comm: Box<dyn Communicator>) -> Self {
        Self { comm, pass: None }
    }

    /// What this rank has sent in its group.
    pub fn stats(&self) -> Stats {
        self.comm.stats()
    }
}

impl Attend for Ring {
    fn attend(&self, q: Tensor<4>, mut kv: Tensor<4>, n_keys: &[usize]) -> Result<Tensor<4>, CommError> {
        let (rank, n, dtype) = (self.comm.rank(), self.comm.size(), q.dtype());
        let [b, _, _, d] = q.dims();
        let [b2, _, heads, _] = kv.dims();
        let mut merged: Option<Attended> = None;
        for step in 0..n {
            // on its way while this part is computed: what the previous rank has by now
            let rows = n_keys[(rank + n - step % n - 1) % n];
            let next = (step + 1 < n).then(|| self.comm.rotate(kv.clone(), [b2, rows, heads, d])).transpose()?;
            let half = |i: usize| kv.clone().narrow(0, i * b, b).swap_dims(1, 2);
            let part = ops::attention(q.clone(), half(0), half(1), None, attention_scale(d));
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

    fn ring_rank(&self) -> usize {
        self.comm.rank()
    }

    fn ring_size(&self) -> usize {
        self.comm.size()
    }
}

impl Attention for Ring {
    fn begin(&mut self, pass: &Pass) {
        self.pass = Some(pass.clone());
    }

    /// # Panics
    /// If [`begin`](Attention::begin) has not said who holds how many tokens.
    fn joint(&mut self, _site: Site, x: Qkv, n_txt: usize) -> Result<Tensor<4>, CommError> {
        let Pass { patch, shares, .. } = self.pass.as_ref().expect("a pass was begun");
        let n_keys = ring_tokens(shares, self.comm.size(), n_txt > 0, shares.patches(*patch));
        self.attend(x.q, keys_and_values(x.k, x.v), &n_keys)
    }
}
