//! Convolutions and what image decoders put between them.
//!
//! Feature maps are `[batch, channels, height, width]`; on the CPU and on NVIDIA's GPUs they are views of memory that has
//! the channels innermost, as heads are of token-major memory.

use burn::tensor::{Tensor, activation, module, ops::ConvOptions};

use super::choose::choose;
use super::cpu;
#[cfg(feature = "cuda")]
use super::cuda;
use super::tensors::{to_dtype, to_f32};
use super::types::{Conv2d, GroupNorm};
use crate::checkpoint::{LoadError, Loader};

impl Conv2d {
    /// Reads `weight` and `bias` at the loader's place.
    ///
    /// # Errors
    /// A shape other than `[out, in, k, k]` and `[out]`.
    pub fn load(loader: &Loader<'_>, c_in: usize, c_out: usize, k: usize) -> Result<Self, LoadError> {
        let conv =
            Self { weight: loader.tensor("weight", [c_out, c_in, k, k])?, bias: loader.tensor("bias", [c_out])? };
        Ok(choose!(&conv.weight, cpu: None, cuda: cuda::arranged_conv(&conv), portable: conv))
    }

    /// `[batch, in, height, width] -> [batch, out, height, width]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        choose!(
            &x,
            cpu: cpu::conv2d(&x, self, None),
            cuda: cuda::conv2d(&x, self, None),
            portable: self.portable(x),
        )
    }

    /// `forward(x) + residual`
    ///
    /// - `residual`: `[batch, out, height, width]`
    pub fn forward_add(&self, x: Tensor<4>, residual: Tensor<4>) -> Tensor<4> {
        choose!(
            &x,
            cpu: cpu::conv2d(&x, self, Some(&residual)),
            cuda: cuda::conv2d(&x, self, Some(&residual)),
            portable: self.portable(x) + residual,
        )
    }

    fn portable(&self, x: Tensor<4>) -> Tensor<4> {
        let padding = self.weight.dims()[2] / 2;
        let options = ConvOptions::new([1, 1], [padding, padding], [1, 1], 1);
        module::conv2d(x, self.weight.clone(), Some(self.bias.clone()), options)
    }
}

impl GroupNorm {
    /// Reads `weight` and `bias` at the loader's place.
    ///
    /// # Errors
    /// A shape other than `[channels]`.
    pub fn load(loader: &Loader<'_>, channels: usize, n_groups: usize, eps: f64) -> Result<Self, LoadError> {
        let (weight, bias) = (loader.tensor("weight", [channels])?, loader.tensor("bias", [channels])?);
        Ok(Self { weight, bias, n_groups, eps })
    }

    /// `[batch, channels, height, width]` to the same.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        choose!(
            &x,
            cpu: cpu::group_norm(&x, self, false),
            cuda: cuda::group_norm(&x, self, false),
            portable: self.portable(x),
        )
    }

    /// `silu(forward(x))`
    pub fn forward_silu(&self, x: Tensor<4>) -> Tensor<4> {
        choose!(
            &x,
            cpu: cpu::group_norm(&x, self, true),
            cuda: cuda::group_norm(&x, self, true),
            portable: activation::silu(self.portable(x)),
        )
    }

    fn portable(&self, x: Tensor<4>) -> Tensor<4> {
        let (dtype, dims) = (x.dtype(), x.dims());
        let [b, c, h, w] = dims;
        let x: Tensor<4> = to_f32(x).reshape([b, self.n_groups, c / self.n_groups * h, w]);
        // in two goes: some backends add one number to the next, which over a whole picture loses half the digits
        let mean = |x: Tensor<4>| x.mean_dim(3).mean_dim(2);
        let centred = x.clone() - mean(x);
        let var = mean(centred.clone() * centred.clone());
        let y = (centred / (var + self.eps).sqrt()).reshape(dims);
        let per_channel = |x: &Tensor<1>| to_f32(x.clone()).reshape([1, c, 1, 1]);
        to_dtype(y * per_channel(&self.weight) + per_channel(&self.bias), dtype)
    }
}

/// Each pixel four times: `[batch, channels, height, width] -> [batch, channels, 2 height, 2 width]`.
pub fn upsample_nearest_2x(x: Tensor<4>) -> Tensor<4> {
    let [b, c, h, w] = x.dims();
    choose!(
        &x,
        cpu: cpu::upsample_nearest_2x(&x),
        cuda: cuda::upsample_nearest_2x(&x),
        portable: x.reshape([b, c, h, 1, w, 1]).expand([b, c, h, 2, w, 2]).reshape([b, c, 2 * h, 2 * w]),
    )
}

/// `[batch, channels, height, width] -> [batch, height * width, channels]`, a view on the CPU.
pub fn pixels_to_tokens(x: Tensor<4>) -> Tensor<3> {
    let [b, c, h, w] = x.dims();
    x.permute([0, 2, 3, 1]).reshape([b, h * w, c])
}

/// The inverse of [`pixels_to_tokens`].
pub fn tokens_to_pixels(x: Tensor<3>, height: usize, width: usize) -> Tensor<4> {
    let [b, _, c] = x.dims();
    x.reshape([b, height, width, c]).permute([0, 3, 1, 2])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::test::{assert_close, random};
    use burn::tensor::Device;

    /// Winograd's transforms amplify rounding: their coefficients reach 8.
    const TOLERANCE: f32 = 5e-6;

    #[track_caller]
    fn check(k: usize, [b, c_in, c_out]: [usize; 3], [h, w]: [usize; 2]) {
        let dev = Device::flex();
        let conv = Conv2d { weight: random([c_out, c_in, k, k], 1, &dev), bias: random([c_out], 2, &dev) };
        let x = random([b, c_in, h, w], 3, &dev);
        let residual = random([b, c_out, h, w], 4, &dev);
        let want = conv.portable(x.clone());
        assert_close(conv.forward(x.clone()), want.clone(), TOLERANCE);
        // channels innermost, as a convolution leaves them
        let view = |x: Tensor<4>| (x.permute([0, 2, 3, 1]) * 1.0).permute([0, 3, 1, 2]);
        assert_close(conv.forward_add(view(x), view(residual.clone())), want + residual, TOLERANCE);
    }

    #[test]
    fn cpu_convolution_matches_burn() {
        check(1, [2, 5, 7], [3, 4]);
        check(3, [2, 5, 7], [1, 1]);
        check(3, [2, 5, 7], [4, 9]);
        check(3, [1, 16, 3], [33, 18]);
        check(3, [1, 33, 70], [50, 61]);
        check(5, [1, 3, 4], [6, 7]);
    }

    #[test]
    fn cpu_group_norm_matches_burn() {
        let dev = Device::flex();
        let norm = GroupNorm { weight: random([24], 1, &dev), bias: random([24], 2, &dev), n_groups: 6, eps: 1e-6 };
        for [h, w] in [[1, 1], [3, 5], [70, 41]] {
            // far from zero, where a sum of squares would lose the variance
            let x = random([2, 24, h, w], 3, &dev) + 30.0;
            let want = norm.portable(x.clone());
            assert_close(norm.forward(x.clone()), want.clone(), 2e-5);
            let x = (x.permute([0, 2, 3, 1]) * 1.0).permute([0, 3, 1, 2]);
            assert_close(norm.forward_silu(x), activation::silu(want), 2e-5);
        }
    }

    #[test]
    fn upsampling_repeats_pixels() {
        let dev = Device::flex();
        let x = random([2, 5, 3, 4], 1, &dev);
        let got = upsample_nearest_2x(x.clone());
        assert_eq!(got.dims(), [2, 5, 6, 8]);
        let at = |x: &Tensor<4>, i: [usize; 4]| {
            x.clone().slice(i.map(|i| i..i + 1)).into_data().try_to_vec::<f32>().expect("f32")[0]
        };
        for (i, j) in [(0, 0), (1, 1), (4, 7), (5, 2)] {
            assert_eq!(at(&got, [1, 3, i, j]), at(&x, [1, 3, i / 2, j / 2]));
        }
    }
}
