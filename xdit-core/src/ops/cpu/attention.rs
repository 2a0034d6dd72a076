//! Blocked attention with an online softmax (FlashAttention, Dao et al. 2022, algorithm 1, per block of queries).

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use super::gemm::{Mat, gemm};
use super::host::{Host, buffer, tensor};
use super::simd::{self, vectorised};
use crate::ops::types::Attended;

/// Queries of one task; keys of one step. The scores of a step (384 KiB) stay in a core's cache.
const QUERIES: usize = 384;
const KEYS: usize = 256;

/// See [`crate::ops::attention`]. The output is a view of token-major memory, so that merging the heads is free.
pub fn attention(
    q: &Tensor<4>,
    k: &Tensor<4>,
    v: &Tensor<4>,
    bias: Option<&Tensor<4>>,
    scale: f64,
) -> Option<Attended> {
    let [b, h, nq, d] = q.dims();
    let [_, _, nk, dv] = v.dims();
    // a lone query would take another path through the product (see the invariant): it is given company
    if nq == 1 {
        let twice = Tensor::cat(vec![q.clone(), q.clone()], 2);
        let Attended { out, lse } = attention(&twice, k, v, bias, scale)?;
        return Some(Attended { out: out.narrow(2, 0, 1), lse: lse.narrow(2, 0, 1) });
    }
    let bias = match bias {
        Some(bias) => Some(Host::rows_of(bias)?),
        None => None,
    };
    let inputs = Inputs { q: Host::of(q)?, k: Host::of(k)?, v: Host::of(v)?, bias, scale: scale as f32, d, dv, nk };
    let mut blocks = blocks([b, h, nq]);
    blocks.par_iter_mut().for_each_init(|| buffer((QUERIES + 1) * KEYS), |scores, block| inputs.attend(block, scores));

    let (out, lse) = gather(&blocks, [b, h, nq, dv]);
    Some(Attended {
        out: tensor(out, [b, nq, h, dv], inputs.q.dtype).swap_dims(1, 2),
        lse: tensor(lse, [b, h, nq], DType::F32),
    })
}

/// Some queries of one head, which one task computes.
struct Block {
    batch: usize,
    head: usize,
    queries: Range<usize>,
    /// `[queries, head_dim]` once it is computed
    out: Vec<f32>,
    /// `[queries]` once it is computed
    lse: Vec<f32>,
}

/// All queries in blocks of [`QUERIES`].
fn blocks([batch, heads, n_queries]: [usize; 3]) -> Vec<Block> {
    // a lone last query joins its neighbours
    let alone = n_queries % QUERIES == 1 && n_queries > 1;
    let per_head = if alone { n_queries / QUERIES } else { n_queries.div_ceil(QUERIES) };
    let block = |i: usize| {
        let (head, block) = (i / per_head, i % per_head);
        let from = block * QUERIES;
        let to = if block + 1 == per_head { n_queries } else { from + QUERIES };
        Block { batch: head / heads, head: head % heads, queries: from..to, out: Vec::new(), lse: Vec::new() }
    };
    (0..batch * heads * per_head).map(block).collect()
}

/// What the blocks have computed: `out` as `[batch, queries, heads, head_dim]`, `lse` as `[batch, heads, queries]`.
fn gather(blocks: &[Block], [batch, heads, n_queries, head_dim]: [usize; 4]) -> (Vec<f32>, Vec<f32>) {
    let mut out = buffer(batch * n_queries * heads * head_dim);
    let mut lse = buffer(batch * heads * n_queries);
    for block in blocks {
        for (query, row) in block.queries.clone().zip(block.out.chunks_exact(head_dim)) {
            let at = ((block.batch * n_queries + query) * heads + block.head) * head_dim;
            out[at..at + head_dim].copy_from_slice(row);
        }
        let at = (block.batch * heads + block.head) * n_queries + block.queries.start;
        lse[at..at + block.lse.len()].copy_from_slice(&block.lse);
    }
    (out, lse)
}

/// What attention reads, of all heads.
struct Inputs {
    q: Host,
    k: Host,
    v: Host,
    bias: Option<Host>,
    scale: f32,
    /// Channels of a head of `q` and `k`,
    d: usize,
    /// of `v`,
    dv: usize,
    /// and the number of keys.
    nk: usize,
}

impl Inputs {
    /// Computes a block, some keys at a time.
    ///
    /// - `scores`: room for those of [`KEYS`] keys
    fn attend(&self, block: &mut Block, scores: &mut [f32]) {
        let n = block.queries.len();
        let mut softmax = Softmax { max: vec![f32::NEG_INFINITY; n], sum: vec![0.0; n], out: buffer(n * self.dv) };
        for from in (0..self.nk).step_by(KEYS) {
            let keys = from..self.nk.min(from + KEYS);
            let scores = &mut scores[..n * keys.len()];
            self.score(block, keys.clone(), scores);
            softmax.exponentiate(scores, keys.len(), self.dv);
            let weights = Mat::packed(scores, n, keys.len());
            let values = tokens(&self.v, block.batch, block.head, keys, self.dv);
            gemm(&mut softmax.out, from > 0, 1.0, weights, values);
        }
        (block.out, block.lse) = softmax.finish(self.dv);
    }

    /// `scale q k^T + bias` of these keys.
    ///
    /// - `scores`: `[queries, keys]`
    fn score(&self, block: &Block, keys: Range<usize>, scores: &mut [f32]) {
        let (batch, head) = (block.batch, block.head);
        let queries = tokens(&self.q, batch, head, block.queries.clone(), self.d);
        let transposed = tokens(&self.k, batch, head, keys.clone(), self.d).transposed();
        gemm(scores, false, self.scale, queries, transposed);
        let Some(bias) = &self.bias else { return };
        let row = |query: usize| {
            let pick = |axis: usize, i: usize| if bias.dims[axis] == 1 { 0 } else { i };
            let row = (pick(0, batch) * bias.dims[1] + pick(1, head)) * bias.dims[2] + pick(2, query);
            &bias.row(row)[keys.clone()]
        };
        vectorised(
            #[inline(always)]
            || {
                for (query, scores) in block.queries.clone().zip(scores.chunks_exact_mut(keys.len())) {
                    scores.iter_mut().zip(row(query)).for_each(|(s, b)| *s += b);
                }
            },
        );
    }
}

/// The softmax of a block's queries over the keys so far, not yet divided by its sum.
struct Softmax {
    /// `[queries]`: the largest score,
    max: Vec<f32>,
    /// the sum of exponentials relative to it,
    sum: Vec<f32>,
    /// and the values weighted by them, `[queries, head_dim]`.
    out: Vec<f32>,
}

impl Softmax {
    /// Turns the scores of more keys into exponentials, and what there is so far to the new maximum.
    fn exponentiate(&mut self, scores: &mut [f32], n_keys: usize, head_dim: usize) {
        let Self { max, sum, out } = self;
        vectorised(
            #[inline(always)]
            || {
                for (i, scores) in scores.chunks_exact_mut(n_keys).enumerate() {
                    let new = simd::max(scores).max(max[i]);
                    // all keys hidden so far: any finite reference gives exp(-inf) = 0
                    let reference = if new == f32::NEG_INFINITY { 0.0 } else { new };
                    scores.iter_mut().for_each(|s| *s = simd::exp(*s - reference));
                    let shrink = simd::exp(max[i] - reference);
                    sum[i] = sum[i].mul_add(shrink, simd::sum(scores, |s| s));
                    if shrink != 1.0 {
                        out[i * head_dim..(i + 1) * head_dim].iter_mut().for_each(|o| *o *= shrink);
                    }
                    max[i] = new;
                }
            },
        );
    }

    /// The output and the log-sum-exp.
    fn finish(mut self, head_dim: usize) -> (Vec<f32>, Vec<f32>) {
        for (out, sum) in self.out.chunks_exact_mut(head_dim).zip(&self.sum) {
            let inverse = if *sum > 0.0 { 1.0 / sum } else { 0.0 };
            out.iter_mut().for_each(|o| *o *= inverse);
        }
        let lse = self.max.iter().zip(&self.sum).map(|(max, sum)| max + sum.ln()).collect();
        (self.out, lse)
    }
}

/// Some tokens of one head, in place.
fn tokens(x: &Host, batch: usize, head: usize, range: Range<usize>, head_dim: usize) -> Mat<'_> {
    let stride = |axis: usize| x.strides[axis] as usize;
    let at = batch * stride(0) + head * stride(1) + range.start * stride(2);
    Mat { data: &x.slice()[at..], rows: range.len(), cols: head_dim, row_stride: stride(2), col_stride: stride(3) }
}
