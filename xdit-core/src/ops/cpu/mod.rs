//! The CPU kernels behind [`super`]: f32 arithmetic on Burn's Flex tensors, on all cores of the rayon pool.
//!
//! Each function returns `None` when its inputs are not Flex float tensors; the caller then composes Burn
//! operations. Half precision tensors are widened on the way in and narrowed on the way out.
//!
//! **Invariant**: a token's row of any result has the same bits whatever other rows are computed with it and on however
//! many threads. Sequence parallelism is tested for equal bits on this.

mod attention;
mod conv;
mod dense;
mod gemm;
mod rows;
mod simd;

use burn::tensor::{DType, Shape, Tensor, TensorData, bf16, f16};
use burn_dispatch::{BackendTensor, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind};
use burn_flex::{FlexTensor, Layout};
use rayon::prelude::*;

pub(super) use attention::attention;
pub(super) use conv::{conv2d, group_norm, upsample_nearest_2x};
pub(super) use dense::{Panels, dense};
pub(super) use rows::{activation, gated_residual, layer_norm, merge_attended, modulated_norm, norm_rope};

/// A float tensor in host memory: a view into Flex's storage, or a widened copy of it.
struct Host {
    values: Values,
    dims: Vec<usize>,
    strides: Vec<isize>,
    offset: usize,
    dtype: DType,
}

enum Values {
    Shared(FlexTensor),
    Widened(Vec<f32>),
}

impl Host {
    /// `None` if `x` is not on the CPU backend.
    fn of<const D: usize>(x: &Tensor<D>) -> Option<Self> {
        let DispatchTensor { kind: DispatchTensorKind::Flex(BackendTensor::Float(x)), .. } = x.clone().into_dispatch()
        else {
            return None;
        };
        let dtype = x.dtype();
        let layout = x.layout();
        // a kernel walks rows forward; a flipped view is not worth a case of its own
        if layout.strides().iter().any(|s| *s < 0) {
            return None;
        }
        let (dims, strides, offset) = (layout.shape().to_vec(), layout.strides().to_vec(), layout.start_offset());
        let values = match dtype {
            DType::F32 => Values::Shared(x),
            DType::BF16 => Values::Widened(widen(x.storage::<bf16>(), |x| x.to_f32())),
            DType::F16 => Values::Widened(widen(x.storage::<f16>(), |x| x.to_f32())),
            _ => return None,
        };
        Some(Self { values, dims, strides, offset, dtype })
    }

    /// As [`Host::of`], with the last dimension densely packed: a row is a slice.
    fn rows_of<const D: usize>(x: &Tensor<D>) -> Option<Self> {
        let host = Self::of(x)?;
        let last = host.dims.len() - 1;
        if host.strides[last] == 1 || host.dims[last] == 1 {
            return Some(host);
        }
        let values = match host.values {
            Values::Shared(x) => x,
            Values::Widened(x) => {
                let bytes = burn::tensor::Bytes::from_elems(x);
                let layout = Layout::new(Shape::from(host.dims.clone()), host.strides, host.offset);
                FlexTensor::new(bytes, layout, DType::F32)
            }
        }
        .to_contiguous();
        let strides = values.layout().strides().to_vec();
        let offset = values.layout().start_offset();
        Some(Self { values: Values::Shared(values), strides, offset, ..host })
    }

    /// The values from the tensor's first element on.
    fn slice(&self) -> &[f32] {
        let all = match &self.values {
            Values::Shared(x) => x.storage::<f32>(),
            Values::Widened(x) => x,
        };
        &all[self.offset..]
    }

    /// Row `i` in the order of all dimensions but the last; the last is densely packed.
    fn row(&self, i: usize) -> &[f32] {
        let last = self.dims.len() - 1;
        let mut rest = i;
        let mut at = 0;
        for axis in (0..last).rev() {
            at += (rest % self.dims[axis]) * self.strides[axis] as usize;
            rest /= self.dims[axis];
        }
        &self.slice()[at..at + self.dims[last]]
    }

    /// The number of rows.
    fn n_rows(&self) -> usize {
        self.dims[..self.dims.len() - 1].iter().product()
    }

    /// The stride between consecutive rows, if there is one for all of them.
    fn row_stride(&self) -> Option<usize> {
        let last = self.dims.len() - 1;
        let mut axes = (0..last).rev().filter(|a| self.dims[*a] != 1);
        let Some(inner) = axes.next() else { return Some(self.dims[last]) };
        let stride = self.strides[inner];
        let mut expected = stride * self.dims[inner] as isize;
        for axis in axes {
            if self.strides[axis] != expected {
                return None;
            }
            expected *= self.dims[axis] as isize;
        }
        Some(stride as usize)
    }
}

fn widen<T: Copy + Sync>(from: &[T], f: impl Fn(T) -> f32 + Sync) -> Vec<f32> {
    from.par_iter().with_min_len(1 << 14).map(|x| f(*x)).collect()
}

/// A new CPU tensor of `dtype` from f32 values.
fn tensor<const D: usize>(values: Vec<f32>, dims: [usize; D], dtype: DType) -> Tensor<D> {
    let data = match dtype {
        DType::F32 => TensorData::new(values, dims),
        DType::BF16 => TensorData::new(narrow(&values, bf16::from_f32), dims),
        DType::F16 => TensorData::new(narrow(&values, f16::from_f32), dims),
        other => unreachable!("Host::of yields f32, bf16 and f16, not {other:?}"),
    };
    let flex = FlexTensor::from_data(data);
    let kind = DispatchTensorKind::Flex(BackendTensor::Float(flex));
    Tensor::from_dispatch(DispatchTensor { kind, autodiff: DispatchAutodiffContext::Disabled })
}

fn narrow<T: Send>(from: &[f32], f: impl Fn(f32) -> T + Sync) -> Vec<T> {
    from.par_iter().with_min_len(1 << 14).map(|x| f(*x)).collect()
}

/// Memory for a result, not yet written: every kernel writes all of it.
fn buffer(len: usize) -> Vec<f32> {
    vec![0.0; len]
}

/// How many rows one task takes: a few tasks per thread, none too small to be worth handing over.
fn rows_per_task(n_rows: usize, row_len: usize) -> usize {
    let tasks = 4 * rayon::current_num_threads();
    n_rows.div_ceil(tasks).max((1 << 13) / row_len.max(1)).max(1)
}

#[cfg(test)]
pub(super) mod test {
    use super::*;
    use burn::tensor::Device;

    /// Values in `[-1, 1)` that a seed determines.
    pub fn random<const D: usize>(dims: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let values: Vec<f32> = (0..dims.iter().product::<usize>())
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect();
        Tensor::from_data(TensorData::new(values, dims), device)
    }

    /// Relative L2 error at most `tolerance`.
    #[track_caller]
    pub fn assert_close<const D: usize>(got: Tensor<D>, want: Tensor<D>, tolerance: f32) {
        assert_eq!(got.dims(), want.dims());
        let got = got.into_data().try_to_vec::<f32>().expect("f32");
        let want = want.into_data().try_to_vec::<f32>().expect("f32");
        let square = |x: f32| f64::from(x) * f64::from(x);
        let error: f64 = got.iter().zip(&want).map(|(a, b)| square(a - b)).sum();
        let norm: f64 = want.iter().map(|b| square(*b)).sum();
        let relative = (error / norm).sqrt();
        assert!(relative <= f64::from(tolerance), "relative L2 error {relative:e} above {tolerance:e}");
    }
}
