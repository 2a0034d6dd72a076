//! All tokens on one device.

use burn::tensor::Tensor;
use xdit_core::comm::CommError;
use xdit_core::dit::{Attention, JointOut, Qkv, Site};
use xdit_core::ops;

use crate::Attend;

/// Attention over the tokens at hand, which are all there are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Local;

impl Attention for Local {
    fn joint(&mut self, _site: Site, txt: Option<Qkv>, img: Qkv) -> Result<JointOut, CommError> {
        let n_txt = txt.as_ref().map(|txt| txt.q.dims()[2]);
        let x = join(txt, img);
        let scale = (x.q.dims()[3] as f64).powf(-0.5);
        Ok(part(ops::attention(x.q, x.k, x.v, None, scale).out, n_txt))
    }

    fn self_attn(&mut self, _site: Site, img: Qkv) -> Result<Tensor<4>, CommError> {
        let scale = (img.q.dims()[3] as f64).powf(-0.5);
        Ok(ops::attention(img.q, img.k, img.v, None, scale).out)
    }
}

impl Attend for Local {
    fn attend(&self, q: Tensor<4>, kv: Tensor<4>) -> Result<Tensor<4>, CommError> {
        let [b, _, _, d] = q.dims();
        let half = |i: usize| kv.clone().narrow(0, i * b, b).swap_dims(1, 2);
        Ok(ops::attention(q, half(0), half(1), None, (d as f64).powf(-0.5)).out)
    }
}

/// Both streams as one sequence, the text first.
pub fn join(txt: Option<Qkv>, img: Qkv) -> Qkv {
    let Some(txt) = txt else { return img };
    let cat = |txt, img| ops::cat_tokens(vec![txt, img]);
    Qkv { q: cat(txt.q, img.q), k: cat(txt.k, img.k), v: cat(txt.v, img.v) }
}

/// The streams' outputs of one sequence.
pub fn part(out: Tensor<4>, n_txt: Option<usize>) -> JointOut {
    let n = out.dims()[2];
    match n_txt {
        Some(n_txt) => (Some(out.clone().narrow(2, 0, n_txt)), out.narrow(2, n_txt, n - n_txt)),
        None => (None, out),
    }
}
