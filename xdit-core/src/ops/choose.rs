//! Which kernels compute an operation: those for the device that its tensors are on, else Burn's own operations.

use burn::tensor::{DType, Device, Tensor};
use burn_dispatch::DispatchDevice;

use crate::checkpoint::Quantization;
#[cfg(feature = "cuda")]
use crate::cuda::{self, CudaError};

/// Whose kernels serve a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernels {
    /// Those of `ops/cpu`.
    Cpu,
    /// Those of `ops/cuda`.
    #[cfg(feature = "cuda")]
    Cuda,
    /// Burn's.
    Burn,
}

impl Kernels {
    fn of<const D: usize>(x: &Tensor<D>) -> Self {
        // the device tells more than the kind of the tensor: CUDA's and wgpu's are one kind to Burn
        match x.device().as_dispatch() {
            DispatchDevice::Flex(_) => Self::Cpu,
            #[cfg(feature = "cuda")]
            DispatchDevice::Cube(burn_cubecl::CubeDevice::Cuda(_)) => Self::Cuda,
            #[allow(unreachable_patterns, reason = "one is all that a program without GPUs has")]
            _ => Self::Burn,
        }
    }
}

/// Whether a device has much more to give than a CPU, but only to large operations.
pub fn is_gpu(device: &Device) -> bool {
    !matches!(device.as_dispatch(), DispatchDevice::Flex(_))
}

/// Why a device has no products of quantised weights.
#[derive(Debug, thiserror::Error)]
pub enum QuantizationError {
    /// No kernels for it.
    #[error("fp8 products need an NVIDIA GPU")]
    Device,
    /// Nothing is gained.
    #[error("fp8 products are for models in bf16 or f16, not in {0:?}")]
    Dtype(DType),
    /// The GPU or its libraries.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// Whether models in `dtype` can have quantised weights on a device.
///
/// # Errors
/// Why not.
pub fn check_quantization(device: &Device, dtype: DType, kind: Quantization) -> Result<(), QuantizationError> {
    let Quantization::Fp8 = kind;
    if !matches!(dtype, DType::BF16 | DType::F16) {
        return Err(QuantizationError::Dtype(dtype));
    }
    match device.as_dispatch() {
        #[cfg(feature = "cuda")]
        DispatchDevice::Cube(burn_cubecl::CubeDevice::Cuda(device)) => Ok(cuda::fp8::check(device.index)?),
        _ => Err(QuantizationError::Device),
    }
}

/// Whether `x` is on an NVIDIA GPU.
#[cfg(feature = "cuda")]
pub(super) fn is_cuda<const D: usize>(x: &Tensor<D>) -> bool {
    Kernels::of(x) == Kernels::Cuda
}

/// An operation on its way from kernel to kernel until one has computed it.
#[must_use = "nothing is sure to be computed without `portable`"]
pub(super) struct Choice<R> {
    kernels: Kernels,
    done: Option<R>,
}

/// Chooses by the device of `x`, which all operands share:
///
/// ```ignore
/// choose!(&x, cpu: cpu::silu(&x), cuda: cuda::silu(&x), portable: activation::silu(x))
/// ```
pub(super) fn on<const D: usize, R>(x: &Tensor<D>) -> Choice<R> {
    Choice { kernels: Kernels::of(x), done: None }
}

impl<R> Choice<R> {
    /// The kernel for the CPU; it may decline.
    pub(super) fn cpu(self, kernel: impl FnOnce() -> Option<R>) -> Self {
        match self.kernels {
            Kernels::Cpu => Self { done: kernel(), ..self },
            _ => self,
        }
    }

    /// The kernel for NVIDIA's GPUs; it may decline.
    #[cfg(feature = "cuda")]
    pub(super) fn cuda(self, kernel: impl FnOnce() -> Option<R>) -> Self {
        match self.kernels {
            Kernels::Cuda => Self { done: kernel(), ..self },
            _ => self,
        }
    }

    /// What serves wherever no kernel has: a composition of Burn's operations.
    pub(super) fn portable(self, compose: impl FnOnce() -> R) -> R {
        self.done.unwrap_or_else(compose)
    }
}

/// [`on`] with a kernel for each device; that for CUDA is left out where the program is built without.
macro_rules! choose {
    ($x:expr, cpu: $cpu:expr, cuda: $cuda:expr, portable: $portable:expr $(,)?) => {{
        let choice = $crate::ops::choose::on($x).cpu(|| $cpu);
        #[cfg(feature = "cuda")]
        let choice = choice.cuda(|| $cuda);
        choice.portable(|| $portable)
    }};
}
pub(super) use choose;

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(kernels: Kernels, cpu: Option<&'static str>) -> &'static str {
        Choice { kernels, done: None }.cpu(|| cpu).portable(|| "portable")
    }

    #[test]
    fn the_device_decides() {
        assert_eq!(Kernels::of(&Tensor::<1>::zeros([1], &Device::flex())), Kernels::Cpu);
        assert_eq!(choose(Kernels::Cpu, Some("cpu")), "cpu");
        // on another device the CPU's kernel is not even asked
        assert_eq!(choose(Kernels::Burn, Some("cpu")), "portable");
    }

    #[test]
    fn the_cpu_has_no_quantised_products() {
        let why = |dtype| check_quantization(&Device::flex(), dtype, Quantization::Fp8).unwrap_err().to_string();
        assert_eq!(why(DType::BF16), "fp8 products need an NVIDIA GPU");
        assert_eq!(why(DType::F32), "fp8 products are for models in bf16 or f16, not in F32");
        let weight = Tensor::<2>::zeros([16, 16], &Device::flex());
        assert!(crate::ops::Linear::quantised(&weight, None, Quantization::Fp8).is_none());
    }

    #[test]
    fn what_a_kernel_declines_is_composed() {
        assert_eq!(choose(Kernels::Cpu, None), "portable");
    }

    #[test]
    fn what_a_kernel_has_computed_is_not_composed_again() {
        let x = Tensor::<1>::zeros([1], &Device::flex());
        let got = on(&x).cpu(|| Some(x.dims())).portable(|| unreachable!("the kernel has served"));
        assert_eq!(got, [1]);
    }
}
