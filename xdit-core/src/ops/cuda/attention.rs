//! Attention: which kernel serves a call, and its launch.
#![expect(unsafe_code, reason = "launches kernels")]

use burn::tensor::{DType, Tensor};
use cudarc::driver::sys;

use super::wide_attention::wide_attention;
use super::{kernel, readable};
use crate::cuda::CudaError;
use crate::cuda::gpu::{Gpu, Grid, args};
use crate::cuda::kernels::{Kernel, Source, Wgmma};
use crate::cuda::raw::{DeviceTensor, enqueue};
use crate::cuda::tensor_map::Boxes;
use crate::ops::types::Attended;

static HALF: Source =
    Source { name: "attention", code: concat!(include_str!("ampere.cuh"), include_str!("attention.cu")) };
static F32: Source = Source { name: "attention_f32", code: include_str!("attention_f32.cu") };

/// Queries of a block of `attention.cu` and `attention_f32.cu`.
const QUERIES: [usize; 2] = [64, 4];

/// Channels of a head that the kernels hold in registers; wider heads are products.
const NARROW: usize = 256;

pub fn attention(
    q: &Tensor<4>,
    k: &Tensor<4>,
    v: &Tensor<4>,
    bias: Option<&Tensor<4>>,
    scale: f64,
    place: Option<&Tensor<3>>,
) -> Option<Attended> {
    let [b, h, n_queries, d] = q.dims();
    let (q, k, v) = (operand(q)?, operand(k)?, operand(v)?);
    let dtype = q.dtype();
    if k.dtype() != dtype || v.dtype() != dtype || (bias.is_some() && d > NARROW) {
        return None;
    }
    let bias = match bias {
        Some(bias) => Some(DeviceTensor::of(bias).filter(|bias| [DType::F32, dtype].contains(&bias.dtype()))?),
        None => None,
    };
    let out = match place.and_then(DeviceTensor::of).filter(|out| takes(out, [b, n_queries, h * d], dtype)) {
        Some(out) => out,
        None => q.empty(&[b, n_queries, h * d], dtype),
    };
    let rows = out.strides();
    let out = out.view(0, &[b, h, n_queries, d], &[rows[0], d, rows[1], 1]);
    let lse = q.empty(&[b, h, n_queries], DType::F32);
    if d > NARROW {
        wide_attention([&q, &k, &v], &out, &lse, scale as f32)?;
        return Some(Attended { out: out.tensor(), lse: lse.tensor() });
    }
    let call = Call { dims: [b, h, n_queries, k.dims()[2], d], dtype, scale: scale as f32 };
    launch(call, [&q, &k, &v], bias.as_ref(), &out, &lse);
    Some(Attended { out: out.tensor(), lse: lse.tensor() })
}

/// Whether outputs can be written there.
fn takes(out: &DeviceTensor, dims: [usize; 3], dtype: DType) -> bool {
    let strides = out.strides();
    let aligned = strides[..2].iter().all(|stride| stride.is_multiple_of(8)) && out.begins_at_multiple_of(16);
    out.dims() == dims && out.dtype() == dtype && strides[2] == 1 && aligned
}

/// The kernel for f32 takes any number of channels, the others vectors of 8.
fn operand(x: &Tensor<4>) -> Option<DeviceTensor> {
    readable(x).or_else(|| {
        let x = DeviceTensor::of(x).filter(|x| x.dtype() == DType::F32 && !x.dims().contains(&0))?;
        Some(if x.strides()[3] == 1 { x } else { x.contiguous() })
    })
}

#[derive(Debug, Clone, Copy)]
struct Call {
    /// Batch, heads, queries, keys, channels of a head.
    dims: [usize; 5],
    dtype: DType,
    scale: f32,
}

/// Strides of batch, heads and tokens as the kernels take them.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Strides([i64; 3]);

impl Strides {
    fn of(x: &DeviceTensor) -> Self {
        let strides = x.strides();
        Self([strides[0] as i64, strides[1] as i64, strides[2] as i64])
    }
}

fn launch(
    call: Call,
    [q, k, v]: [&DeviceTensor; 3],
    bias: Option<&DeviceTensor>,
    out: &DeviceTensor,
    lse: &DeviceTensor,
) {
    let strides = [q, k, v, out].map(Strides::of);
    let has_bias = bias.is_some();
    let bias = bias.unwrap_or(q);
    // a dimension of one is the same for all
    let bias_strides: Vec<i64> =
        bias.dims().iter().zip(bias.strides()).map(|(n, stride)| if *n == 1 { 0 } else { stride as i64 }).collect();
    let bias_is_f32 = i32::from(bias.dtype() == DType::F32);
    enqueue([q, k, v, bias], [out, lse], move |gpu, [q, k, v, bias], [out, lse]| {
        let [b, h, n_queries, n_keys, d] = call.dims;
        let by_key = !has_bias || (bias_strides[1..] == [0, 0, 1] && bias_is_f32 == 1);
        if gpu.sm == 90 && by_key && call.dtype != DType::F32 && hopper::serves(n_keys, d) {
            let bias = has_bias.then_some((bias, bias_strides[0]));
            return hopper::launch(gpu, call, strides, [q, k, v, out], lse, bias);
        }
        let (kernel, queries, shared) = if call.dtype == DType::F32 {
            (kernel(&F32, "attention", call.dtype, &format!("-DHEAD_DIM={d}")), QUERIES[1], 0)
        } else {
            let keys = if d > 128 { 32 } else { 64 };
            let shared = (QUERIES[0] + 4 * keys) * (d.next_multiple_of(16) + 8) * 2;
            (kernel(&HALF, "attention", call.dtype, &format!("-DHEAD_DIM={d} -DKEYS={keys}")), QUERIES[0], shared)
        };
        let blocks = [n_queries.div_ceil(queries) as u32, (b * h) as u32, 1];
        let (n_queries, n_keys, heads, scale) = (n_queries as i32, n_keys as i32, h as i32, call.scale);
        let bias = if has_bias { bias } else { 0 };
        let [qs, ks, vs, os] = strides;
        let bs = Strides([bias_strides[0], bias_strides[1], bias_strides[2]]);
        let b_key = bias_strides[3];
        let params =
            args!(q, k, v, bias, out, lse, n_queries, n_keys, heads, scale, qs, ks, vs, os, bs, b_key, bias_is_f32);
        // SAFETY: `attention`'s parameters; the tensors hold what the sizes and strides say
        unsafe { gpu.launch(&kernel, Grid { blocks, threads: 128, shared: shared as u32 }, &params) }
    });
}

mod hopper {
    //! `attention_sm90.cu`

    use super::*;

    static SOURCE: Source =
        Source { name: "attention_sm90", code: concat!(include_str!("hopper.cuh"), include_str!("attention_sm90.cu")) };

    /// How the kernel is built for a head size and a number of keys: what was measured fastest on an H100 (docs/benchmarks).
    #[derive(Debug, Clone, Copy)]
    struct Build {
        keys: usize,
        workers: usize,
        stages: usize,
        early: bool,
        lazy: bool,
        q_stages: usize,
    }

    impl Build {
        fn of(d: usize, n_keys: usize) -> Self {
            let build = |keys, workers, stages, early, lazy| Self { keys, workers, stages, early, lazy, q_stages: 1 };
            match d {
                0..=64 => Self { q_stages: 2, ..build(128, 3, 3, false, true) },
                // of a text: an item is short, and waiting for the next one's queries would be half of it
                65..=96 if n_keys < 1024 => Self { q_stages: 2, ..build(80, 3, 3, false, false) },
                65..=80 => build(112, 3, 3, false, false),
                81..=96 => build(96, 3, 3, false, true),
                97..=112 => build(160, 2, 2, false, false),
                _ => build(192, 2, 2, true, false),
            }
        }

        fn shared(self, d: usize) -> usize {
            let panels = d.next_multiple_of(16).div_ceil(64);
            let tiles = self.q_stages * self.workers * panels * 64 * 128 + 2 * self.stages * panels * self.keys * 128;
            // barriers, and room to begin at a multiple of 1024
            tiles + (4 * self.stages + 2 * self.workers * self.q_stages) * 8 + 1024
        }

        fn options(self, d: usize, has_bias: bool) -> String {
            format!(
                "-DHEAD_DIM={d} -DKEYS={} -DWORKERS={} -DSTAGES={} -DEARLY={} -DLAZY={} -DBIAS={} -DQ_STAGES={}",
                self.keys,
                self.workers,
                self.stages,
                u8::from(self.early),
                u8::from(self.lazy),
                u8::from(has_bias),
                self.q_stages
            )
        }
    }

    /// A few keys are not worth the set-up, and none at all are not what the kernel counts on.
    pub fn serves(n_keys: usize, d: usize) -> bool {
        n_keys >= 256 && (48..=128).contains(&d)
    }

    /// `CUtensorMap`s of queries, keys, values and outputs.
    #[repr(C, align(64))]
    struct Maps([sys::CUtensorMap; 4]);

    /// - `bias`: of each key, f32, and from one batch entry's to the next
    pub fn launch(
        gpu: &mut Gpu,
        call: Call,
        strides: [Strides; 4],
        at: [u64; 4],
        lse: u64,
        bias: Option<(u64, i64)>,
    ) -> Result<(), CudaError> {
        let [b, h, n_queries, n_keys, d] = call.dims;
        let build = Build::of(d, n_keys);
        let [q, k, v, out] = at;
        let [qs, ks, vs, os] = strides;
        let keys = build.keys;
        let maps = Maps([
            map(q, [b, h, n_queries, d], qs, 64, call.dtype)?,
            map(k, [b, h, n_keys, d], ks, keys, call.dtype)?,
            map(v, [b, h, n_keys, d], vs, keys, call.dtype)?,
            map(out, [b, h, n_queries, d], os, 16, call.dtype)?,
        ]);
        let tiles = n_queries.div_ceil(64 * build.workers);
        let items = tiles * h * b;
        let wgmma = Wgmma { scores: keys, values: d.next_multiple_of(16), is_f16: call.dtype == DType::F16 };
        let kernel = Kernel {
            wgmma: Some(wgmma),
            ..kernel(&SOURCE, "attention", call.dtype, &build.options(d, bias.is_some()))
        };
        let grid = Grid {
            blocks: [(items as u32).min(gpu.n_sms), 1, 1],
            threads: 128 * (build.workers as u32 + 1),
            shared: build.shared(d) as u32,
        };
        let (n_queries, n_keys, h) = (n_queries as i32, n_keys as i32, h as i32);
        let (tiles, items, scale) = (tiles as i32, items as i32, call.scale);
        let (bias, bias_batch) = bias.unwrap_or_default();
        // SAFETY: `attention`'s parameters; the maps describe the tensors
        unsafe {
            gpu.launch(&kernel, grid, &args!(maps, lse, n_queries, n_keys, h, tiles, items, scale, bias, bias_batch))
        }
    }

    /// Describes `[batch, heads, tokens, d]` to the copy engine: boxes of 64 channels and `rows` tokens, zeros outside.
    fn map(
        at: u64,
        [b, h, n, d]: [usize; 4],
        strides: Strides,
        rows: usize,
        dtype: DType,
    ) -> Result<sys::CUtensorMap, CudaError> {
        let Strides([s_batch, s_head, s_token]) = strides;
        let dims = [d as u64, n as u64, h as u64, b as u64];
        // of a dimension of one any stride is right that the driver accepts
        let bytes = |n: usize, stride: i64| if n == 1 { 16 } else { stride as u64 * 2 };
        let strides = [bytes(n, s_token), bytes(h, s_head), bytes(b, s_batch)];
        // rows that end inside a line of the cache would be fetched twice
        let promoted = matches!(d, 64 | 96 | 128);
        Boxes { at, sizes: dims, strides, boxed: [64, rows as u32, 1, 1], promoted }.map(dtype)
    }
}
