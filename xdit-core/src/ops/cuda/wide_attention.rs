//! Attention with heads too wide for the kernels' registers, as image decoders have one: two products with a softmax
//! between them, for some thousand queries at a time, so that memory grows with the number of keys alone.
#![expect(unsafe_code, reason = "launches kernels and orders products")]

use burn::tensor::DType;

use super::dense::kind;
use super::kernel;
use crate::cuda::CudaError;
use crate::cuda::gpu::{Gpu, Grid, args};
use crate::cuda::kernels::Source;
use crate::cuda::products::{Kind, Operands, Product};
use crate::cuda::raw::{DeviceTensor, enqueue};

static SOURCE: Source = Source { name: "wide_attention", code: include_str!("wide_attention.cu") };

/// Queries at a time: few give the second product too few tiles for a large GPU.
const QUERIES: usize = 4096;

/// What is computed, the same for each head.
#[derive(Debug, Clone, Copy)]
struct Wide {
    /// Queries, keys, channels of a head.
    dims: [usize; 3],
    /// From token to token of queries, keys, values and outputs, in numbers.
    tokens: [usize; 4],
    /// From key to key's column: rows of scores, weights and turned values.
    stride: usize,
    dtype: DType,
    kind: Kind,
    scale: f32,
}

/// Addresses of one head.
#[derive(Debug, Clone, Copy)]
struct Head {
    q: u64,
    k: u64,
    v: u64,
    out: u64,
    lse: u64,
}

/// Addresses of what all heads use one after the other.
#[derive(Debug, Clone, Copy)]
struct Between {
    scores: u64,
    weights: u64,
    turned: u64,
}

/// `softmax(scale q k^T) v`; all tensors are `[batch, heads, tokens, d]`, `lse` is `[batch, heads, queries]`.
pub fn wide_attention([q, k, v]: [&DeviceTensor; 3], out: &DeviceTensor, lse: &DeviceTensor, scale: f32) -> Option<()> {
    let [b, h, n_queries, d] = q.dims()[..] else { return None };
    let n_keys = k.dims()[2];
    let dtype = q.dtype();
    let stride = n_keys.next_multiple_of(8);
    let strides = [q, k, v, out].map(DeviceTensor::strides);
    let wide = Wide {
        dims: [n_queries, n_keys, d],
        tokens: [strides[0][2], strides[1][2], strides[2][2], strides[3][2]],
        stride,
        dtype,
        kind: kind(dtype)?,
        scale,
    };
    let rows = n_queries.min(QUERIES);
    let scores = q.empty(&[rows, stride], DType::F32);
    let weights = q.empty(&[rows, stride], dtype);
    let turned = q.empty(&[d, stride], dtype);
    enqueue(
        [q, k, v],
        [out, lse, &scores, &weights, &turned],
        move |gpu, [q, k, v], [out, lse, scores, weights, turned]| {
            let between = Between { scores, weights, turned };
            for head in 0..b * h {
                let at = |i: usize| ((head / h * strides[i][0] + head % h * strides[i][1]) * dtype.size()) as u64;
                let lse = lse + (head * n_queries * 4) as u64;
                let head = Head { q: q + at(0), k: k + at(1), v: v + at(2), out: out + at(3), lse };
                attend(gpu, &wide, head, between)?;
            }
            Ok(())
        },
    );
    Some(())
}

fn attend(gpu: &mut Gpu, wide: &Wide, head: Head, between: Between) -> Result<(), CudaError> {
    let [n_queries, n_keys, d] = wide.dims;
    let [q_token, k_token, v_token, out_token] = wide.tokens;
    let Between { scores, weights, turned } = between;
    let size = wide.dtype.size();
    let grid = |x: usize, y: usize| Grid { blocks: [x as u32, y as u32, 1], threads: 256, shared: 0 };
    let (keys, channels, stride) = (n_keys as i32, d as i32, wide.stride as i32);
    let (v, v_stride, scale) = (head.v, v_token as i64, wide.scale);
    let turn = kernel(&SOURCE, "turn", wide.dtype, "");
    let params = args!(v, turned, keys, channels, v_stride, stride);
    // SAFETY: `turn`'s parameters; `turned` has room for all values
    unsafe { gpu.launch(&turn, grid(n_keys.div_ceil(32), d.div_ceil(32)), &params)? };
    for first in (0..n_queries).step_by(QUERIES) {
        let m = QUERIES.min(n_queries - first);
        let q = head.q + (first * q_token * size) as u64;
        let product = |k, n, [from, weight, to]: [usize; 3], out_is_f32, operands: Operands| Product {
            m,
            k,
            n,
            strides: [from, weight, to, to],
            batch: 1,
            batch_strides: [0; 3],
            kind: wide.kind,
            fp8: false,
            has_bias: false,
            gelu: false,
            adds: false,
            out_is_f32,
            alignment: operands.alignment(),
        };
        let operands = Operands { x: q, weight: head.k, bias: 0, scales: [0; 2], added: scores, out: scores };
        // SAFETY: the rows of the queries and keys are there, and `scores` has room for them
        unsafe { gpu.product(&product(d, n_keys, [q_token, k_token, wide.stride], true, operands), operands)? };
        let lse = head.lse + (first * 4) as u64;
        let softmax = kernel(&SOURCE, "softmax", wide.dtype, "");
        let params = args!(scores, weights, lse, keys, stride, scale);
        // SAFETY: `softmax`'s parameters; scores and weights have the same rows
        unsafe { gpu.launch(&softmax, grid(m, 1), &params)? };
        let out = head.out + (first * out_token * size) as u64;
        let operands = Operands { x: weights, weight: turned, bias: 0, scales: [0; 2], added: out, out };
        let strides = [wide.stride, wide.stride, out_token];
        // SAFETY: the weights of the queries and the turned values are there
        unsafe { gpu.product(&product(n_keys, d, strides, false, operands), operands)? };
    }
    Ok(())
}
