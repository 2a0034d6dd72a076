//! What the tests on a GPU share.

use burn::tensor::{DType, Device, Tensor, TensorData};
use xdit_core::noise::TorchGenerator;
use xdit_core::ops::to_f32;

pub const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

pub fn gpu() -> Device {
    xdit_core::cuda::libraries::load().expect("NVIDIA's libraries");
    Device::cuda(0)
}

/// On the CPU in f32, of numbers that `dtype` holds exactly.
pub fn random<const D: usize>(dims: [usize; D], seed: u64, dtype: DType) -> Tensor<D> {
    let values = TorchGenerator::seeded(seed).randn(dims.iter().product());
    to_f32(Tensor::<D>::from_data(TensorData::new(values, dims), &Device::flex()).cast(dtype))
}

pub fn on_gpu<const D: usize>(x: &Tensor<D>, dtype: DType) -> Tensor<D> {
    Tensor::<D>::from_data(x.to_data(), &gpu()).cast(dtype)
}

pub fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    to_f32(x).into_data().try_to_vec::<f32>().expect("f32")
}

#[track_caller]
pub fn assert_close<const D: usize>(got: Tensor<D>, want: Tensor<D>, tolerance: f64, what: &str) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let (got, want) = (values(got), values(want));
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = got.iter().zip(&want).map(|(a, b)| square(a - b)).sum();
    let norm: f64 = want.iter().map(|b| square(*b)).sum();
    let relative = (error / norm).sqrt();
    assert!(relative <= tolerance, "{what}: relative L2 error {relative:e} above {tolerance:e}");
}
