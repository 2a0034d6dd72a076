//! Tensors in host memory: how kernels read them and make them.

use burn::tensor::{DType, Shape, Tensor, TensorData, bf16, f16};
use burn_dispatch::{BackendTensor, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind};
use burn_flex::{FlexTensor, Layout};
use rayon::prelude::*;

/// The Flex tensor behind `x`; `None` if `x` is on another backend.
pub fn flex_of<const D: usize>(x: &Tensor<D>) -> Option<FlexTensor> {
    match x.clone().into_dispatch().kind {
        DispatchTensorKind::Flex(BackendTensor::Float(x)) => Some(x),
        _ => None,
    }
}

/// The inverse of [`flex_of`].
pub fn tensor_of<const D: usize>(x: FlexTensor) -> Tensor<D> {
    let kind = DispatchTensorKind::Flex(BackendTensor::Float(x));
    Tensor::from_dispatch(DispatchTensor { kind, autodiff: DispatchAutodiffContext::Disabled })
}

/// A float tensor in host memory: a view into Flex's storage, or a widened copy of it.
pub struct Host {
    values: Values,
    pub dims: Vec<usize>,
    pub strides: Vec<isize>,
    offset: usize,
    pub dtype: DType,
}

enum Values {
    Shared(FlexTensor),
    Widened(Vec<f32>),
}

impl Host {
    /// `None` if `x` is not on the CPU backend.
    pub fn of<const D: usize>(x: &Tensor<D>) -> Option<Self> {
        let x = flex_of(x)?;
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
    pub fn rows_of<const D: usize>(x: &Tensor<D>) -> Option<Self> {
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
    pub fn slice(&self) -> &[f32] {
        let all = match &self.values {
            Values::Shared(x) => x.storage::<f32>(),
            Values::Widened(x) => x,
        };
        &all[self.offset..]
    }

    /// Row `i` in the order of all dimensions but the last; the last is densely packed.
    pub fn row(&self, i: usize) -> &[f32] {
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
    pub fn n_rows(&self) -> usize {
        self.dims[..self.dims.len() - 1].iter().product()
    }

    /// The stride between consecutive rows, if there is one for all of them.
    pub fn row_stride(&self) -> Option<usize> {
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
pub fn tensor<const D: usize>(values: Vec<f32>, dims: [usize; D], dtype: DType) -> Tensor<D> {
    let data = match dtype {
        DType::F32 => TensorData::new(values, dims),
        DType::BF16 => TensorData::new(narrow(&values, bf16::from_f32), dims),
        DType::F16 => TensorData::new(narrow(&values, f16::from_f32), dims),
        other => unreachable!("Host::of yields f32, bf16 and f16, not {other:?}"),
    };
    tensor_of(FlexTensor::from_data(data))
}

fn narrow<T: Send>(from: &[f32], f: impl Fn(f32) -> T + Sync) -> Vec<T> {
    from.par_iter().with_min_len(1 << 14).map(|x| f(*x)).collect()
}

/// Memory for a result, not yet written: every kernel writes all of it.
pub fn buffer(len: usize) -> Vec<f32> {
    vec![0.0; len]
}

/// How many rows one task takes: a few tasks per thread, none too small to be worth handing over.
pub fn rows_per_task(n_rows: usize, row_len: usize) -> usize {
    let tasks = 4 * rayon::current_num_threads();
    n_rows.div_ceil(tasks).max((1 << 13) / row_len.max(1)).max(1)
}
