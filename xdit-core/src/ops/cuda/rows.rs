//! Norms, turns, gates and activations: launches of `rows.cu`.
#![expect(unsafe_code, reason = "launches kernels")]

use burn::tensor::{DType, Tensor};

use super::{kernel, readable};
use crate::cuda::gpu::{Gpu, Grid, args};
use crate::cuda::kernels::{Kernel, Source};
use crate::cuda::raw::{DeviceTensor, enqueue};
use crate::ops::types::{Activation, Attended, Fp8, HeadNorm, RopeTable};

static SOURCE: Source = Source { name: "rows", code: include_str!("rows.cu") };

/// Vectors of 8 numbers of a row that a thread of a norm's warp holds at most: what fits into its registers.
const MAX_VECTORS: usize = 24;

/// - `defines`: those that the kernel asks for
pub fn rows_kernel(name: &'static str, dtype: DType, defines: &str) -> Kernel {
    kernel(&SOURCE, name, dtype, defines)
}

fn blocks(n: usize, of: usize) -> [u32; 3] {
    [n.div_ceil(of) as u32, 1, 1]
}

/// What a norm does after it has normalised.
struct Affine<'a> {
    scale: Option<&'a DeviceTensor>,
    shift: Option<&'a DeviceTensor>,
    /// What is added to the scale.
    one: f32,
    rms: bool,
}

/// The stride from one batch entry's vector to the next, 0 where all have the same.
fn batch_stride(x: &DeviceTensor) -> i64 {
    let (dims, strides) = (x.dims(), x.strides());
    if dims.len() == 1 || dims[0] == 1 { 0 } else { strides[0] as i64 }
}

/// - `x`, `out`: `[batch, tokens, d]`
/// - `scales`: of the rows, where `out` is e4m3
fn norm_into(
    x: &DeviceTensor,
    affine: &Affine<'_>,
    eps: f64,
    out: &DeviceTensor,
    scales: Option<&DeviceTensor>,
) -> Option<()> {
    let (dims, strides) = (x.dims(), x.strides());
    let [b, n, d] = dims[..] else { return None };
    let vectors = (d / 8).div_ceil(32);
    if vectors > MAX_VECTORS || [affine.scale, affine.shift].iter().flatten().any(|v| v.dtype() != x.dtype()) {
        return None;
    }
    let fp8 = if scales.is_some() { " -DFP8" } else { "" };
    let kernel = rows_kernel("row_norm", x.dtype(), &format!("-DVECTORS={vectors}{fp8}"));
    let rows = b * n;
    let grid = Grid { blocks: blocks(rows, 4), threads: 128, shared: 0 };
    let has = [affine.scale.is_some(), affine.shift.is_some()];
    let strides = [strides[0], strides[1]].map(|s| s as i64);
    let vector_strides = [affine.scale, affine.shift].map(|v| v.map_or(0, batch_stride));
    let (one, eps, rms) = (affine.one, eps as f32, i32::from(affine.rms));
    let (scale, shift) = (affine.scale.unwrap_or(x), affine.shift.unwrap_or(x));
    let launch = move |gpu: &mut Gpu, [x, scale, shift]: [u64; 3], y: u64, scales: u64| {
        let (scale, shift) = (if has[0] { scale } else { 0 }, if has[1] { shift } else { 0 });
        let (rows, n, d) = (rows as i32, n as i32, d as i32);
        let [x_batch, x_token] = strides;
        let [scale_batch, shift_batch] = vector_strides;
        let params =
            args!(x, scale, shift, y, scales, rows, n, d, x_batch, x_token, scale_batch, shift_batch, one, eps, rms);
        // SAFETY: `row_norm`'s parameters; the tensors hold what the sizes say
        unsafe { gpu.launch(&kernel, grid, &params) }
    };
    let reads = [x, scale, shift];
    match scales {
        Some(scales) => enqueue(reads, [out, scales], move |gpu, reads, [y, scales]| launch(gpu, reads, y, scales)),
        None => enqueue(reads, [out], move |gpu, reads, [y]| launch(gpu, reads, y, 0)),
    }
    Some(())
}

fn norm(x: &DeviceTensor, affine: &Affine<'_>, eps: f64) -> Option<DeviceTensor> {
    let out = x.empty(&x.dims(), x.dtype());
    norm_into(x, affine, eps, &out, None)?;
    Some(out)
}

/// `[.., d]` as `[1, rows, d]` or as `[batch, tokens, d]`.
pub fn as_rows<const D: usize>(x: &Tensor<D>) -> Option<DeviceTensor> {
    let x = readable(x)?;
    let (dims, strides) = (x.dims(), x.strides());
    let d = dims[D - 1];
    match D {
        3 => Some(x),
        2 => Some(x.view(0, &[1, dims[0], d], &[0, strides[0], 1])),
        _ => {
            let rows = dims[..D - 1].iter().product();
            Some(x.contiguous().view(0, &[1, rows, d], &[0, d, 1]))
        }
    }
}

fn back<const D: usize>(y: DeviceTensor, dims: [usize; D]) -> Tensor<D> {
    let mut strides = [1; D];
    for i in (0..D - 1).rev() {
        strides[i] = strides[i + 1] * dims[i + 1];
    }
    y.view(0, &dims, &strides).tensor()
}

pub fn modulated_norm(x: &Tensor<3>, shift: &Tensor<2>, scale: &Tensor<2>, eps: f64) -> Option<Tensor<3>> {
    let (x, shift, scale) = (readable(x)?, readable(shift)?, readable(scale)?);
    let affine = Affine { scale: Some(&scale), shift: Some(&shift), one: 1.0, rms: false };
    Some(norm(&x, &affine, eps)?.tensor())
}

/// The same in FP8.
pub fn modulated_norm_fp8(x: &Tensor<3>, shift: &Tensor<2>, scale: &Tensor<2>, eps: f64) -> Option<Fp8> {
    let (dims, dtype) = (x.dims(), x.dtype());
    let out = Fp8::empty(&DeviceTensor::of(x)?, &dims, dtype);
    if dims.contains(&0) {
        return Some(out);
    }
    let (x, shift, scale) = (readable(x)?, readable(shift)?, readable(scale)?);
    let affine = Affine { scale: Some(&scale), shift: Some(&shift), one: 1.0, rms: false };
    norm_into(&x, &affine, eps, &out.numbers, Some(&out.scales))?;
    Some(out)
}

pub fn layer_norm<const D: usize>(x: &Tensor<D>, weight: &Tensor<1>, bias: &Tensor<1>, eps: f64) -> Option<Tensor<D>> {
    let (rows, weight, bias) = (as_rows(x)?, readable(weight)?, readable(bias)?);
    let affine = Affine { scale: Some(&weight), shift: Some(&bias), one: 0.0, rms: false };
    Some(back(norm(&rows, &affine, eps)?, x.dims()))
}

pub fn rms_norm<const D: usize>(x: &Tensor<D>, weight: &Tensor<1>, eps: f64) -> Option<Tensor<D>> {
    let (rows, weight) = (as_rows(x)?, readable(weight)?);
    let affine = Affine { scale: Some(&weight), shift: None, one: 0.0, rms: true };
    Some(back(norm(&rows, &affine, eps)?, x.dims()))
}

pub fn norm_rope(x: &Tensor<4>, norm: &HeadNorm, rope: Option<&RopeTable>) -> Option<Tensor<4>> {
    let [b, h, n, d] = x.dims();
    let x = readable(x)?;
    let out = x.empty(&[b, n, h, d], x.dtype()).view(0, &[b, h, n, d], &[n * h * d, d, h * d, 1]);
    norm_rope_into([(&x, norm, &out)], rope)?;
    Some(out.tensor())
}

/// The norm of some heads as the kernel takes it.
struct Norm {
    weight: Option<DeviceTensor>,
    bias: Option<DeviceTensor>,
    eps: f32,
    kind: i32,
}

impl Norm {
    fn of(norm: &HeadNorm, dtype: DType) -> Option<Self> {
        let (weight, bias, eps, kind) = match norm {
            HeadNorm::None => (None, None, 0.0, 0),
            HeadNorm::Rms { weight, eps } => (Some(readable(weight)?), None, *eps, 1),
            HeadNorm::Layer(norm) => (Some(readable(&norm.weight)?), Some(readable(&norm.bias)?), norm.eps, 2),
        };
        let same = [&weight, &bias].into_iter().flatten().all(|w| w.dtype() == dtype);
        same.then_some(Self { weight, bias, eps: eps as f32, kind })
    }
}

/// `Heads` of `rows.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Heads {
    x: u64,
    weight: u64,
    bias: u64,
    y: u64,
}

/// The same for one or two tensors of one layout, queries and keys with norms of one kind, into memory that is there,
/// heads side by side: perhaps that of the inputs.
///
/// - `sides`: what is read, its norm, what is written
pub fn norm_rope_into<const N: usize>(
    sides: [(&DeviceTensor, &HeadNorm, &DeviceTensor); N],
    rope: Option<&RopeTable>,
) -> Option<()> {
    let ((x, _, out), (last, _, last_out)) = (sides[0], sides[N - 1]);
    let [b, h, n, d] = x.dims()[..] else { return None };
    let norms: Vec<Norm> = sides.iter().map(|(_, norm, _)| Norm::of(norm, x.dtype())).collect::<Option<_>>()?;
    let (norm, last_norm) = (&norms[0], &norms[N - 1]);
    let alike = (norm.kind, norm.eps) == (last_norm.kind, last_norm.eps);
    if d > 256 || !alike || x.strides() != last.strides() || out.strides() != last_out.strides() {
        return None;
    }
    let table = |t: &Tensor<2>| DeviceTensor::of(t).filter(|t| t.dtype() == DType::F32).map(DeviceTensor::contiguous);
    let rope = match rope {
        Some(rope) => Some((table(&rope.cos)?, table(&rope.sin)?)),
        None => None,
    };
    let group = (d / 8).next_power_of_two();
    let kernel = rows_kernel("head_norm_rope", x.dtype(), &format!("-DGROUP={group}"));
    // as many heads at a time as 256 threads have room for, in equal rounds
    let rounds = (h * group).div_ceil(256);
    let threads = (h.div_ceil(rounds) * group).next_multiple_of(32) as u32;
    let grid = Grid { blocks: [n as u32, b as u32, 1], threads, shared: 0 };
    let has = [norm.weight.is_some(), norm.bias.is_some(), rope.is_some()];
    let (strides, to) = (x.strides(), out.strides());
    let (eps, kind) = (norm.eps, norm.kind);
    let operands = [
        x,
        last,
        norm.weight.as_ref().unwrap_or(x),
        last_norm.weight.as_ref().unwrap_or(x),
        norm.bias.as_ref().unwrap_or(x),
        last_norm.bias.as_ref().unwrap_or(x),
        rope.as_ref().map_or(x, |rope| &rope.0),
        rope.as_ref().map_or(x, |rope| &rope.1),
    ];
    enqueue(operands, [out, last_out], move |gpu, [xa, xb, wa, wb, ba, bb, cos, sin], [ya, yb]| {
        let or_none = |has: bool, at: u64| if has { at } else { 0 };
        let side = |x, weight, bias, y| Heads { x, weight: or_none(has[0], weight), bias: or_none(has[1], bias), y };
        let (first, second, sides) = (side(xa, wa, ba, ya), side(xb, wb, bb, yb), N as i32);
        let (cos, sin) = (or_none(has[2], cos), or_none(has[2], sin));
        let (heads, d) = (h as i32, d as i32);
        let (x_batch, x_head, x_token) = (strides[0] as i64, strides[1] as i64, strides[2] as i64);
        let (y_batch, y_token) = (to[0] as i64, to[2] as i64);
        let params =
            args!(first, second, sides, cos, sin, heads, d, x_batch, x_head, x_token, y_batch, y_token, eps, kind);
        // SAFETY: `head_norm_rope`'s parameters; the tensors hold what the sizes say
        unsafe { gpu.launch(&kernel, grid, &params) }
    });
    Some(())
}

pub fn gated_residual(x: &Tensor<3>, gate: &Tensor<2>, y: &Tensor<3>) -> Option<Tensor<3>> {
    let dims = x.dims();
    let (x, gate, y) = (readable(x)?, readable(gate)?, readable(y)?);
    if gate.dtype() != x.dtype() || y.dtype() != x.dtype() {
        return None;
    }
    let out = x.empty(&dims, x.dtype());
    let kernel = rows_kernel("gated_residual", x.dtype(), "");
    let [b, n, d] = dims;
    let vectors = b * n * d / 8;
    let grid = Grid { blocks: blocks(vectors, 256), threads: 256, shared: 0 };
    let (xs, ys, gate_batch) = (x.strides(), y.strides(), batch_stride(&gate));
    enqueue([&x, &gate, &y], [&out], move |gpu, [x, gate, y], [out]| {
        let (vectors, n, d) = (vectors as i64, n as i32, d as i32);
        let (x_batch, x_token, y_batch, y_token) = (xs[0] as i64, xs[1] as i64, ys[0] as i64, ys[1] as i64);
        let params = args!(x, gate, y, out, vectors, n, d, x_batch, x_token, y_batch, y_token, gate_batch);
        // SAFETY: `gated_residual`'s parameters; the tensors hold what the sizes say
        unsafe { gpu.launch(&kernel, grid, &params) }
    });
    Some(out.tensor())
}

pub fn activation<const D: usize>(x: &Tensor<D>, act: Activation) -> Option<Tensor<D>> {
    let x = DeviceTensor::of(x)?.contiguous();
    Some(activate(&x, None, act)?.tensor())
}

pub fn geglu<const D: usize>(value: &Tensor<D>, gate: &Tensor<D>, act: Activation) -> Option<Tensor<D>> {
    let (value, gate) = (DeviceTensor::of(value)?.contiguous(), DeviceTensor::of(gate)?.contiguous());
    Some(activate(&gate, Some(&value), act)?.tensor())
}

/// Of densely packed tensors.
pub fn activate(x: &DeviceTensor, value: Option<&DeviceTensor>, act: Activation) -> Option<DeviceTensor> {
    if !matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) || value.is_some_and(|v| v.dtype() != x.dtype()) {
        return None;
    }
    let dims = x.dims();
    let n: usize = dims.iter().product();
    let out = x.empty(&dims, x.dtype());
    let kernel = rows_kernel("activate", x.dtype(), "");
    let grid = Grid { blocks: blocks(n.div_ceil(8).max(1), 256), threads: 256, shared: 0 };
    let has_value = value.is_some();
    let which = match act {
        Activation::Identity => 0,
        Activation::GeluTanh => 1,
        Activation::Gelu => 2,
        Activation::QuickGelu => 3,
        Activation::Silu => 4,
    };
    enqueue([x, value.unwrap_or(x)], [&out], move |gpu, [x, value], [y]| {
        let (value, n) = (if has_value { value } else { 0 }, n as i64);
        // SAFETY: `activate`'s parameters; the tensors hold `n` numbers
        unsafe { gpu.launch(&kernel, grid, &args!(x, value, y, n, which)) }
    });
    Some(out)
}

pub fn merge_attended(a: &Attended, b: &Attended) -> Option<Attended> {
    let dims = a.out.dims();
    let [batch, h, n, d] = dims;
    let (a_out, b_out) = (readable(&a.out)?, readable(&b.out)?);
    let lse = |x: &Tensor<3>| DeviceTensor::of(x).filter(|x| x.dtype() == DType::F32).map(DeviceTensor::contiguous);
    let (a_lse, b_lse) = (lse(&a.lse)?, lse(&b.lse)?);
    let is_f32 = [&a_out, &b_out].map(|x| x.dtype() == DType::F32);
    // one of them is a sum already, f32; the precision of the other counts
    let dtype = if is_f32[0] { b_out.dtype() } else { a_out.dtype() };
    if is_f32 == [false, false] && a_out.dtype() != b_out.dtype() {
        return None;
    }
    let (out, lse) = (a_out.empty(&[batch, n, h, d], DType::F32), a_out.empty(&[batch, h, n], DType::F32));
    let kernel = rows_kernel("merge_attended", dtype, "");
    let rows = batch * h * n;
    let grid = Grid { blocks: blocks(rows, 8), threads: 256, shared: 0 };
    let (sa, sb) = (a_out.strides(), b_out.strides());
    let [sa, sb] = [sa, sb].map(|s| [s[0] as i64, s[1] as i64, s[2] as i64]);
    enqueue([&a_out, &b_out, &a_lse, &b_lse], [&out, &lse], move |gpu, [a, b, la, lb], [out, lse]| {
        let (rows, h, n, d) = (rows as i64, h as i32, n as i32, d as i32);
        let ([ab, ah, ar], [bb, bh, br]) = (sa, sb);
        let (a_f32, b_f32) = (i32::from(is_f32[0]), i32::from(is_f32[1]));
        let params = args!(a, b, la, lb, out, lse, rows, h, n, d, ab, ah, ar, bb, bh, br, a_f32, b_f32);
        // SAFETY: `merge_attended`'s parameters; the tensors hold what the sizes say
        unsafe { gpu.launch(&kernel, grid, &params) }
    });
    let out = out.view(0, &dims, &[n * h * d, d, h * d, 1]).tensor();
    Some(Attended { out, lse: lse.tensor() })
}
