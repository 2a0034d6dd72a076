//! Ring attention (arXiv 2310.01889): keys and values travel around, queries stay.

use burn::tensor::Tensor;
use xdit_core::comm::{CommError, Communicator, Stats};
use xdit_core::dit::{Attention, JointOut, Qkv, Site};
use xdit_core::ops::{self, Attended};

use crate::local::{join, part};
use crate::{Attend, keys_and_values};

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
}

impl Attend for Ring {
    fn attend(&self, q: Tensor<4>, mut kv: Tensor<4>) -> Result<Tensor<4>, CommError> {
        let [b, _, _, d] = q.dims();
        let (scale, n, dtype) = ((d as f64).powf(-0.5), self.comm.size(), q.dtype());
        let mut merged: Option<Attended> = None;
        for step in 0..n {
            // on its way while this part is computed
            let next = (step + 1 < n).then(|| self.comm.rotate(kv.clone())).transpose()?;
            let half = |i: usize| kv.clone().narrow(0, i * b, b).swap_dims(1, 2);
            let part = ops::attention(q.clone(), half(0), half(1), None, scale);
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
    fn joint(&mut self, _site: Site, txt: Option<Qkv>, img: Qkv) -> Result<JointOut, CommError> {
        let n_txt = txt.as_ref().map(|txt| txt.q.dims()[2]);
        let x = join(txt, img);
        Ok(part(self.attend(x.q, keys_and_values(x.k, x.v))?, n_txt))
    }

    fn self_attn(&mut self, _site: Site, img: Qkv) -> Result<Tensor<4>, CommError> {
        self.attend(img.q, keys_and_values(img.k, img.v))
    }
}
