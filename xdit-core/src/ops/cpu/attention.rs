//! Blocked attention with an online softmax (FlashAttention, Dao et al. 2022, algorithm 1, per block of queries).

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use super::gemm::{Mat, gemm};
use super::simd::{self, vectorised};
use super::{Host, buffer, tensor};
use crate::ops::attention::Attended;

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
    let (hq, hk, hv) = (Host::of(q)?, Host::of(k)?, Host::of(v)?);
    let bias = match bias {
        Some(bias) => Some(Host::rows_of(bias)?),
        None => None,
    };

    // a lone last query joins its neighbours
    let n_blocks = if nq % QUERIES == 1 && nq > 1 { nq / QUERIES } else { nq.div_ceil(QUERIES) };
    let mut tasks: Vec<_> = (0..b * h * n_blocks)
        .map(|i| {
            let (head, block) = (i / n_blocks, i % n_blocks);
            let from = block * QUERIES;
            let to = if block + 1 == n_blocks { nq } else { from + QUERIES };
            Task { batch: head / h, head: head % h, from, to, out: Vec::new(), lse: Vec::new() }
        })
        .collect();
    tasks.par_iter_mut().for_each_init(
        || buffer((QUERIES + 1) * KEYS),
        |scores, task| {
            let (batch, head) = (task.batch, task.head);
            let n = task.to - task.from;
            let (mut max, mut sum) = (vec![f32::NEG_INFINITY; n], vec![0.0_f32; n]);
            let mut out = buffer(n * dv);
            let queries = block(&hq, batch, head, task.from..task.to, d);
            for key in (0..nk).step_by(KEYS) {
                let keys = KEYS.min(nk - key);
                let scores = &mut scores[..n * keys];
                let key_block = block(&hk, batch, head, key..key + keys, d);
                gemm(scores, false, scale as f32, queries, key_block.transposed());
                if let Some(bias) = &bias {
                    let row = |i: usize| {
                        let pick = |axis: usize, i: usize| if bias.dims[axis] == 1 { 0 } else { i };
                        let (b, h, q) = (pick(0, batch), pick(1, head), pick(2, task.from + i));
                        let row = bias.row((b * bias.dims[1] + h) * bias.dims[2] + q);
                        &row[key..key + keys]
                    };
                    vectorised(
                        #[inline(always)]
                        || {
                            for (i, scores) in scores.chunks_exact_mut(keys).enumerate() {
                                scores.iter_mut().zip(row(i)).for_each(|(s, b)| *s += b);
                            }
                        },
                    );
                }
                vectorised(
                    #[inline(always)]
                    || {
                        for (i, scores) in scores.chunks_exact_mut(keys).enumerate() {
                            let new = simd::max(scores).max(max[i]);
                            // all keys hidden so far: any finite reference gives exp(-inf) = 0
                            let reference = if new == f32::NEG_INFINITY { 0.0 } else { new };
                            scores.iter_mut().for_each(|s| *s = simd::exp(*s - reference));
                            let shrink = simd::exp(max[i] - reference);
                            sum[i] = sum[i].mul_add(shrink, simd::sum(scores, |s| s));
                            if shrink != 1.0 {
                                out[i * dv..(i + 1) * dv].iter_mut().for_each(|o| *o *= shrink);
                            }
                            max[i] = new;
                        }
                    },
                );
                let weights = Mat::packed(scores, n, keys);
                gemm(&mut out, key > 0, 1.0, weights, block(&hv, batch, head, key..key + keys, dv));
            }
            for (out, sum) in out.chunks_exact_mut(dv).zip(&sum) {
                let inverse = if *sum > 0.0 { 1.0 / sum } else { 0.0 };
                out.iter_mut().for_each(|o| *o *= inverse);
            }
            task.lse = max.iter().zip(&sum).map(|(max, sum)| max + sum.ln()).collect();
            task.out = out;
        },
    );

    let mut out = buffer(b * nq * h * dv);
    let mut lse = buffer(b * h * nq);
    for task in &tasks {
        for (i, row) in task.out.chunks_exact(dv).enumerate() {
            let at = ((task.batch * nq + task.from + i) * h + task.head) * dv;
            out[at..at + dv].copy_from_slice(row);
        }
        let at = (task.batch * h + task.head) * nq + task.from;
        lse[at..at + task.lse.len()].copy_from_slice(&task.lse);
    }
    Some(Attended {
        out: tensor(out, [b, nq, h, dv], hq.dtype).swap_dims(1, 2),
        lse: tensor(lse, [b, h, nq], DType::F32),
    })
}

struct Task {
    batch: usize,
    head: usize,
    from: usize,
    to: usize,
    out: Vec<f32>,
    lse: Vec<f32>,
}

/// Tokens `rows` of one head, in place.
fn block(x: &Host, batch: usize, head: usize, rows: Range<usize>, head_dim: usize) -> Mat<'_> {
    let stride = |axis: usize| x.strides[axis] as usize;
    let at = batch * stride(0) + head * stride(1) + rows.start * stride(2);
    Mat { data: &x.slice()[at..], rows: rows.len(), cols: head_dim, row_stride: stride(2), col_stride: stride(3) }
}
