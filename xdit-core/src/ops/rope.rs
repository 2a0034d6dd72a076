//! Rotary positions, fused with the norm of queries and keys.

use std::collections::HashMap;

use burn::tensor::{Device, Tensor, TensorData};

use super::choose::choose;
use super::cpu;
#[cfg(feature = "cuda")]
use super::cuda;
use super::tensors::{to_dtype, to_f32};
use super::types::{HeadNorm, RopeTable};

impl RopeTable {
    /// The table of tokens at `positions`, one coordinate per axis; axis `a` turns `axes_dim[a] / 2` pairs with
    /// frequencies `theta^(-2i / axes_dim[a])`, as `get_1d_rotary_pos_embed` of diffusers
    /// (`src/diffusers/models/embeddings.py`), in f64 until the end as there.
    pub fn new<const A: usize>(positions: &[[f64; A]], axes_dim: [usize; A], theta: f64, device: &Device) -> Self {
        let pairs = axes_dim.iter().sum::<usize>() / 2;
        let mut cos = Vec::with_capacity(positions.len() * pairs);
        let mut sin = Vec::with_capacity(positions.len() * pairs);
        // a picture has many tokens, but few rows and columns: each coordinate is computed once
        let mut known = axes_dim.map(|_| HashMap::new());
        for position in positions {
            for ((at, dim), known) in position.iter().zip(axes_dim).zip(&mut known) {
                let (some_cos, some_sin): &(Vec<f32>, Vec<f32>) = known.entry(at.to_bits()).or_insert_with(|| {
                    let angle = |i: usize| at * (1.0 / theta.powf((2 * i) as f64 / dim as f64));
                    (0..dim / 2).map(|i| (angle(i).cos() as f32, angle(i).sin() as f32)).unzip()
                });
                cos.extend_from_slice(some_cos);
                sin.extend_from_slice(some_sin);
            }
        }
        let tensor = |values| Tensor::from_data(TensorData::new(values, [positions.len(), pairs]), device);
        Self { cos: tensor(cos), sin: tensor(sin) }
    }

    /// The table of some tokens alone.
    pub fn tokens(&self, range: std::ops::Range<usize>) -> Self {
        self.map(|table| table.clone().slice([range.clone()]))
    }

    /// How many tokens it is of.
    pub fn n_tokens(&self) -> usize {
        self.cos.dims()[0]
    }

    /// Both tables, changed in the same way.
    pub fn map(&self, f: impl Fn(&Tensor<2>) -> Tensor<2>) -> Self {
        Self { cos: f(&self.cos), sin: f(&self.sin) }
    }
}

/// Normalises each head, then turns it: what a DiT does to queries and keys before attention.
///
/// - `x`: `[batch, heads, tokens, head_dim]`
/// - `rope`: nothing is turned without it
pub fn norm_rope(x: Tensor<4>, norm: &HeadNorm, rope: Option<&RopeTable>) -> Tensor<4> {
    if rope.is_none() && matches!(norm, HeadNorm::None) {
        return x;
    }
    choose!(
        &x,
        cpu: cpu::norm_rope(&x, norm, rope),
        cuda: cuda::norm_rope(&x, norm, rope),
        portable: portable(x, norm, rope),
    )
}

fn portable(x: Tensor<4>, norm: &HeadNorm, rope: Option<&RopeTable>) -> Tensor<4> {
    let dtype = x.dtype();
    let x = norm.apply(to_f32(x));
    let Some(rope) = rope else { return to_dtype(x, dtype) };
    let [b, h, n, d] = x.dims();
    let x = x.reshape([b, h, n, d / 2, 2]);
    let even = x.clone().slice([0..b, 0..h, 0..n, 0..d / 2, 0..1]);
    let odd = x.slice([0..b, 0..h, 0..n, 0..d / 2, 1..2]);
    let table = |t: &Tensor<2>| t.clone().reshape([1, 1, n, d / 2, 1]);
    let (cos, sin) = (table(&rope.cos), table(&rope.sin));
    let turned = vec![even.clone() * cos.clone() - odd.clone() * sin.clone(), odd * cos + even * sin];
    to_dtype(Tensor::cat(turned, 4).reshape([b, h, n, d]), dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::test::{assert_close, random};
    use crate::ops::{LayerNorm, layer_norm};

    #[test]
    fn cpu_kernel_matches_burn() {
        let dev = Device::flex();
        let positions: Vec<[f64; 3]> = (0..7).map(|i| [0.0, (i / 3) as f64, (i % 3) as f64]).collect();
        let rope = RopeTable::new(&positions, [4, 6, 6], 10_000.0, &dev);
        let layer = LayerNorm { weight: random([16], 2, &dev), bias: random([16], 3, &dev), eps: 1e-6 };
        // heads as a view of token-major memory, as the models pass them
        let x = random([2, 7, 3, 16], 1, &dev).swap_dims(1, 2);
        let check = |norm: HeadNorm, rope: Option<&RopeTable>| {
            // by other operations than `HeadNorm::apply` takes here
            let by_hand = match &norm {
                HeadNorm::Layer(norm) => {
                    layer_norm(x.clone(), 1e-6) * norm.weight.clone().unsqueeze() + norm.bias.clone().unsqueeze()
                }
                norm => norm.apply(x.clone()),
            };
            let want = portable(by_hand, &HeadNorm::None, rope);
            assert_close(norm_rope(x.clone(), &norm, rope), want, 1e-6);
        };
        check(HeadNorm::Rms { weight: random([16], 2, &dev), eps: 1e-6 }, Some(&rope));
        check(HeadNorm::Rms { weight: random([16], 2, &dev), eps: 1e-6 }, None);
        check(HeadNorm::Layer(layer.clone()), Some(&rope));
        check(HeadNorm::Layer(layer), None);
        check(HeadNorm::None, Some(&rope));
    }
}
