//! All tokens on one device.

use burn::tensor::Tensor;
use xdit_core::comm::CommError;
use xdit_core::dit::{Attention, Qkv, Site};
use xdit_core::ops;

/// Attention over the tokens at hand, which are all there are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Local;

impl Attention for Local {
    fn joint(&mut self, _site: Site, txt: Qkv, img: Qkv) -> Result<(Tensor<4>, Tensor<4>), CommError> {
        let [b, h, n_txt, d] = txt.q.dims();
        let n = n_txt + img.q.dims()[2];
        let cat = |txt, img| ops::cat_tokens(vec![txt, img]);
        let (q, k, v) = (cat(txt.q, img.q), cat(txt.k, img.k), cat(txt.v, img.v));
        let out = ops::attention(q, k, v, None, (d as f64).powf(-0.5)).out;
        Ok((out.clone().slice([0..b, 0..h, 0..n_txt]), out.slice([0..b, 0..h, n_txt..n])))
    }

    fn self_attn(&mut self, _site: Site, img: Qkv) -> Result<Tensor<4>, CommError> {
        let scale = (img.q.dims()[3] as f64).powf(-0.5);
        Ok(ops::attention(img.q, img.k, img.v, None, scale).out)
    }
}
