//! One stream of tokens in a block whose attention is joint: Stable Diffusion 3's and FLUX's double blocks.

use burn::tensor::Tensor;
use xdit_core::checkpoint::{LoadError, Loader};
use xdit_core::dit::{Cond, Qkv};
use xdit_core::ops::{Input, Linear, QkvOf, RopeTable, gated_residual, narrow};

use crate::dit::{Ada, EPS, FeedForward, Heads, QkvWeights, project_heads};

/// What the conditioning does to a part of a block: the norm before it is scaled and shifted, what comes of it is gated.
/// Each `[batch, d_model]`.
#[derive(Debug, Clone)]
pub struct Modulation {
    shift: Tensor<2>,
    scale: Tensor<2>,
    gate: Tensor<2>,
}

impl Modulation {
    /// What a layer makes of the condition as `N` modulations.
    pub fn of<const N: usize>(layer: &Ada, cond: &Cond) -> [Self; N] {
        Self::cut(layer.forward(cond))
    }

    /// `[batch, 3 N d]` cut into `N` times shift, scale and gate.
    pub fn cut<const N: usize>(all: Tensor<2>) -> [Self; N] {
        let d = all.dims()[1] / (3 * N);
        let part = |i: usize| narrow(&all, 1, i * d..(i + 1) * d);
        std::array::from_fn(|i| Self { shift: part(3 * i), scale: part(3 * i + 1), gate: part(3 * i + 2) })
    }

    /// What the part is given.
    pub fn norm(&self, x: Tensor<3>, eps: f64) -> Input<3> {
        Input::modulated_norm(x, self.shift.clone(), self.scale.clone(), eps)
    }

    /// The stream `x` with what the part makes of it.
    pub fn add(&self, x: Tensor<3>, y: Tensor<3>) -> Tensor<3> {
        gated_residual(x, self.gate.clone(), y)
    }
}

/// A stream's weights in a block.
#[derive(Debug)]
pub struct StreamWeights {
    norm: Ada,
    attn: QkvWeights,
    to_out: Linear,
    ff: FeedForward,
}

impl StreamWeights {
    /// - `names`: of the norm, the attention's output and the feed-forward
    /// - `qkv`: names of the attention's other parts, [`OWN`](crate::dit::OWN) or [`ADDED`](crate::dit::ADDED)
    /// - `n`: how many modulations there are
    /// - `slot`: the place of their layer among the model's
    pub fn load(
        loader: &Loader<'_>,
        names: [&str; 3],
        qkv: [&str; 5],
        heads: Heads,
        n: usize,
        slot: usize,
    ) -> Result<Self, LoadError> {
        let d = heads.n * heads.dim;
        let [norm, out, ff] = names;
        let attn = loader.pp("attn");
        Ok(Self {
            norm: Ada::load(&loader.pp(norm).pp("linear"), [d, 3 * n * d], slot)?,
            attn: QkvWeights::load(&attn, qkv, d, heads)?,
            to_out: Linear::load(&attn.pp(out), d, d)?,
            ff: FeedForward::load(&loader.pp(ff), d, 4 * d)?,
        })
    }

    /// Of the attention, of the feed-forward, and of a second attention where there is one.
    pub fn modulations<const N: usize>(&self, cond: &Cond) -> [Modulation; N] {
        Modulation::of(&self.norm, cond)
    }

    /// The layer that they come from.
    pub fn ada(&self) -> &Ada {
        &self.norm
    }

    /// What its queries, keys and values are made of.
    ///
    /// - `m`: the attention's
    pub fn qkv<'a>(&'a self, x: &Tensor<3>, m: &Modulation, rope: Option<&'a RopeTable>) -> QkvOf<'a> {
        self.attn.of(m.norm(x.clone(), EPS), rope)
    }

    /// Queries, keys and values of this stream behind a text's, and the number of the text's tokens.
    ///
    /// - `m`: the attention's
    pub fn joint_qkv(
        &self,
        x: &Tensor<3>,
        m: &Modulation,
        rope: Option<&RopeTable>,
        txt: Option<QkvOf<'_>>,
    ) -> (Qkv, usize) {
        self.attn.joint(m.norm(x.clone(), EPS), rope, txt)
    }

    /// The stream after the attention.
    pub fn attended(&self, x: Tensor<3>, attn: Tensor<4>, m: &Modulation) -> Tensor<3> {
        m.add(x, project_heads(&self.to_out, attn))
    }

    /// The stream after the feed-forward.
    pub fn fed(&self, x: Tensor<3>, m: &Modulation) -> Tensor<3> {
        let y = self.ff.forward(m.norm(x.clone(), EPS));
        m.add(x, y)
    }
}
