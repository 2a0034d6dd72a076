//! All tokens on one device.

use burn::tensor::Tensor;
use xdit_core::comm::CommError;
use xdit_core::dit::{Attention, Qkv, Site, attention_scale};
use xdit_core::ops;

use crate::Attend;

/// Attention over the tokens at hand, which are all there are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Local;

impl Attention for Local {
    fn joint(&mut self, _site: Site, x: Qkv, _n_txt: usize) -> Result<Tensor<4>, CommError> {
        let scale = attention_scale(x.q.dims()[3]);
        Ok(ops::attention_into(x.q, x.k, x.v, None, scale, x.place).out)
    }

    fn joint_in_two(
        &mut self,
        site: Site,
        x: Qkv,
        n_txt: usize,
        n_first: usize,
        send: &mut dyn FnMut(Tensor<4>) -> Result<(), CommError>,
    ) -> Result<Tensor<4>, CommError> {
        let queries = |range| ops::narrow(&x.q, 2, range);
        let rest = Qkv { q: queries(n_first..x.q.dims()[2]), ..x.clone() };
        send(self.joint(site, Qkv { q: queries(0..n_first), ..x }.into_place(None), n_txt)?)?;
        self.joint(site, rest, n_txt)
    }
}

impl Attend for Local {
    fn attend(&self, q: Tensor<4>, kv: Tensor<4>, _n_keys: &[usize]) -> Result<Tensor<4>, CommError> {
        let [b, _, _, d] = q.dims();
        let half = |i: usize| kv.clone().narrow(0, i * b, b).swap_dims(1, 2);
        Ok(ops::attention(q, half(0), half(1), None, attention_scale(d)).out)
    }
}
