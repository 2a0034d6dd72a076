//! What the tests of the operations share.

use burn::tensor::{Device, Tensor, TensorData};

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
