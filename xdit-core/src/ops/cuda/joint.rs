//! Queries, keys and values of several streams in one piece of memory: each stream's product writes its rows there, so that
//! attention finds one sequence and nothing is put together.

use burn::tensor::{DType, Tensor};

use super::dense::dense_into;
use super::fp8::fp8_into;
use super::rows::norm_rope_into;
use crate::cuda::raw::DeviceTensor;
use crate::ops::types::{Factors, HeadNorm, QkvPart};

/// `[batch, heads, tokens of all streams, head_dim]` each.
pub fn joint_qkv(streams: &[QkvPart<'_>], n_heads: usize) -> Option<[Tensor<4>; 3]> {
    let ([b, _, _], width, dtype) = sizes(&streams[0].factors);
    let (inner, n) = (width / 3, streams.iter().map(|stream| sizes(&stream.factors).0[1]).sum::<usize>());
    let d = inner / n_heads;
    let all = memory(&streams[0].factors, &[b, n, width], dtype)?;
    if !d.is_multiple_of(8) {
        return None;
    }
    let mut at = 0;
    for stream in streams {
        let ([_, n_here, _], ..) = sizes(&stream.factors);
        let rows = all.view(at * width, &[b, n_here, width], &[n * width, width, 1]);
        match &stream.factors {
            Factors::Plain(x, weight) => {
                dense_into(vec![DeviceTensor::of(x)?], weight, stream.bias, false, None, &rows)?;
            }
            Factors::Fp8(x, weight) => fp8_into(x, weight, stream.bias, false, &rows)?,
        }
        let heads = |i: usize| all.view(at * width + i * inner, &[b, n_heads, n_here, d], &[n * width, d, width, 1]);
        let (q, k, [norm_q, norm_k]) = (heads(0), heads(1), stream.norms);
        if stream.rope.is_some() || !matches!((norm_q, norm_k), (HeadNorm::None, HeadNorm::None)) {
            norm_rope_into([(&q, norm_q, &q), (&k, norm_k, &k)], stream.rope)?;
        }
        at += n_here;
    }
    Some([0, 1, 2].map(|i| all.view(i * inner, &[b, n_heads, n, d], &[n * width, d, width, 1]).tensor()))
}

/// Dimensions of the tokens, columns of the result, and its precision.
fn sizes(factors: &Factors<'_>) -> ([usize; 3], usize, DType) {
    match factors {
        Factors::Plain(x, weight) => (x.dims(), weight.dims()[0], weight.dtype()),
        Factors::Fp8(x, weight) => {
            let dims = x.numbers.dims();
            ([dims[0], dims[1], dims[2]], weight.numbers.dims()[0], weight.dtype)
        }
    }
}

/// New memory on the device of the tokens, if they are of the precision of the result.
fn memory(factors: &Factors<'_>, dims: &[usize], dtype: DType) -> Option<DeviceTensor> {
    match factors {
        Factors::Plain(x, _) => DeviceTensor::of(x).filter(|x| x.dtype() == dtype).map(|x| x.empty(dims, dtype)),
        Factors::Fp8(x, _) => (x.dtype == dtype).then(|| x.numbers.empty(dims, dtype)),
    }
}
