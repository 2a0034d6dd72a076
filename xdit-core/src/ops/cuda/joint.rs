//! Queries, keys and values of several streams in one piece of memory: each stream's product writes its rows there, so that
//! attention finds one sequence and nothing is put together.

use burn::tensor::Tensor;

use super::dense::dense_into;
use super::rows::norm_rope_into;
use crate::cuda::raw::DeviceTensor;
use crate::ops::types::{HeadNorm, QkvPart};

/// `[batch, heads, tokens of all streams, head_dim]` each.
pub fn joint_qkv(streams: &[QkvPart<'_>], n_heads: usize) -> Option<[Tensor<4>; 3]> {
    let first = &streams[0];
    let ([b, _, _], width, dtype) = (first.x.dims(), first.weight.dims()[0], first.weight.dtype());
    let (inner, n) = (width / 3, streams.iter().map(|stream| stream.x.dims()[1]).sum::<usize>());
    let d = inner / n_heads;
    let x = DeviceTensor::of(&first.x)?;
    if x.dtype() != dtype || !d.is_multiple_of(8) {
        return None;
    }
    let all = x.empty(&[b, n, width], dtype);
    let mut at = 0;
    for stream in streams {
        let n_here = stream.x.dims()[1];
        let rows = all.view(at * width, &[b, n_here, width], &[n * width, width, 1]);
        dense_into(vec![DeviceTensor::of(&stream.x)?], stream.weight, stream.bias, false, None, &rows)?;
        let heads = |i: usize| all.view(at * width + i * inner, &[b, n_heads, n_here, d], &[n * width, d, width, 1]);
        let (q, k, [norm_q, norm_k]) = (heads(0), heads(1), stream.norms);
        if stream.rope.is_some() || !matches!((norm_q, norm_k), (HeadNorm::None, HeadNorm::None)) {
            norm_rope_into([(&q, norm_q, &q), (&k, norm_k, &k)], stream.rope)?;
        }
        at += n_here;
    }
    Some([0, 1, 2].map(|i| all.view(i * inner, &[b, n_heads, n, d], &[n * width, d, width, 1]).tensor()))
}
