//! Rotary positions, fused with the norm of queries and keys.

use burn::tensor::{Device, Tensor, TensorData};

use super::{cpu, rms_norm, to_dtype, to_f32};

/// Cosines and sines per token and pair of channels: channels `2i` and `2i + 1` of a head turn by the angle `i`.
///
/// The table belongs to the tokens: whoever cuts the tokens cuts the table with [`RopeTable::rows`], so that nothing
/// else needs to know where a token stands in the picture.
#[derive(Debug, Clone)]
pub struct RopeTable {
    /// `[tokens, head_dim / 2]`, f32
    pub cos: Tensor<2>,
    /// `[tokens, head_dim / 2]`, f32
    pub sin: Tensor<2>,
}

impl RopeTable {
    /// The table of tokens at `positions`, one coordinate per axis; axis `a` turns `axes_dim[a] / 2` pairs with
    /// frequencies `theta^(-2i / axes_dim[a])`, as `get_1d_rotary_pos_embed` of diffusers
    /// (`src/diffusers/models/embeddings.py`), in f64 until the end as there.
    pub fn new<const A: usize>(positions: &[[f64; A]], axes_dim: [usize; A], theta: f64, device: &Device) -> Self {
        let pairs = axes_dim.iter().sum::<usize>() / 2;
        let mut cos = Vec::with_capacity(positions.len() * pairs);
        let mut sin = Vec::with_capacity(positions.len() * pairs);
        for position in positions {
            for (at, dim) in position.iter().zip(axes_dim) {
                for i in 0..dim / 2 {
                    let angle = at * (1.0 / theta.powf((2 * i) as f64 / dim as f64));
                    cos.push(angle.cos() as f32);
                    sin.push(angle.sin() as f32);
                }
            }
        }
        let tensor = |values| Tensor::from_data(TensorData::new(values, [positions.len(), pairs]), device);
        Self { cos: tensor(cos), sin: tensor(sin) }
    }

    /// The table of tokens `rows` alone.
    pub fn rows(&self, rows: std::ops::Range<usize>) -> Self {
        Self { cos: self.cos.clone().slice([rows.clone()]), sin: self.sin.clone().slice([rows]) }
    }

    /// `self`'s tokens, then `other`'s.
    pub fn then(&self, other: &Self) -> Self {
        Self {
            cos: Tensor::cat(vec![self.cos.clone(), other.cos.clone()], 0),
            sin: Tensor::cat(vec![self.sin.clone(), other.sin.clone()], 0),
        }
    }
}

/// RMS-normalises each head, then turns it: what a DiT does to queries and keys before attention.
///
/// - `x`: `[batch, heads, tokens, head_dim]`
/// - `weight`: `[head_dim]`
pub fn norm_rope(x: Tensor<4>, weight: &Tensor<1>, eps: f64, rope: &RopeTable) -> Tensor<4> {
    cpu::norm_rope(&x, weight, eps, rope).unwrap_or_else(|| portable(x, weight, eps, rope))
}

fn portable(x: Tensor<4>, weight: &Tensor<1>, eps: f64, rope: &RopeTable) -> Tensor<4> {
    let [b, h, n, d] = x.dims();
    let dtype = x.dtype();
    let x = rms_norm(to_f32(x), weight, eps).reshape([b, h, n, d / 2, 2]);
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

    #[test]
    fn cpu_kernel_matches_burn() {
        let dev = Device::flex();
        let positions: Vec<[f64; 3]> = (0..7).map(|i| [0.0, (i / 3) as f64, (i % 3) as f64]).collect();
        let rope = RopeTable::new(&positions, [4, 6, 6], 10_000.0, &dev);
        let weight = random([16], 2, &dev);
        // heads as a view of token-major memory, as the models pass them
        let x = random([2, 7, 3, 16], 1, &dev).swap_dims(1, 2);
        assert_close(norm_rope(x.clone(), &weight, 1e-6, &rope), portable(x, &weight, 1e-6, &rope), 1e-6);
    }
}
