//! Group norms, of feature maps that are there as a whole or in parts.

use burn::tensor::{Tensor, TensorData, activation};

use super::choose::choose;
use super::cpu;
#[cfg(feature = "cuda")]
use super::cuda;
use super::tensors::{cat, narrow, to_dtype, to_f32};
use super::types::GroupNorm;
use crate::checkpoint::{LoadError, Loader};

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
        self.by(x, None, false)
    }

    /// `silu(forward(x))`
    pub fn forward_silu(&self, x: Tensor<4>) -> Tensor<4> {
        self.by(x, None, true)
    }

    /// Means and variances of the groups, `[batch, groups, 2]`, f32.
    ///
    /// - `x`: `[batch, channels, height, width]`
    pub fn moments(&self, x: &Tensor<4>) -> Tensor<3> {
        choose!(
            x,
            cpu: cpu::moments(x, self.n_groups),
            cuda: cuda::moments(x, self.n_groups),
            portable: self.portable_moments(x.clone()),
        )
    }

    /// [`forward`](Self::forward) of a part of a picture whose moments are given, followed by SiLU if `silu`.
    ///
    /// - `moments`: `[batch, groups, 2]`, see [`moments`](Self::moments)
    pub fn forward_by(&self, x: Tensor<4>, moments: &Tensor<3>, silu: bool) -> Tensor<4> {
        self.by(x, Some(moments), silu)
    }

    fn by(&self, x: Tensor<4>, moments: Option<&Tensor<3>>, silu: bool) -> Tensor<4> {
        choose!(
            &x,
            cpu: cpu::group_norm(&x, self, moments, silu),
            cuda: cuda::group_norm(&x, self, moments, silu),
            portable: match silu {
                true => activation::silu(self.portable(x, moments)),
                false => self.portable(x, moments),
            },
        )
    }

    fn portable_moments(&self, x: Tensor<4>) -> Tensor<3> {
        let x = self.grouped(x);
        // in two goes: some backends add one number to the next, which over a whole picture loses half the digits
        let mean = |x: Tensor<4>| x.mean_dim(3).mean_dim(2);
        let centre = mean(x.clone());
        let centred = x - centre.clone();
        let var = mean(centred.clone() * centred);
        cat(vec![centre, var], 3).squeeze_dim(2)
    }

    fn portable(&self, x: Tensor<4>, moments: Option<&Tensor<3>>) -> Tensor<4> {
        let moments = moments.cloned().unwrap_or_else(|| self.portable_moments(x.clone())).unsqueeze_dim::<4>(2);
        let (dtype, dims) = (x.dtype(), x.dims());
        let (mean, var) = (narrow(&moments, 3, 0..1), narrow(&moments, 3, 1..2));
        let y = ((self.grouped(x) - mean) / (var + self.eps).sqrt()).reshape(dims);
        let per_channel = |x: &Tensor<1>| to_f32(x.clone()).reshape([1, dims[1], 1, 1]);
        to_dtype(y * per_channel(&self.weight) + per_channel(&self.bias), dtype)
    }

    /// `[batch, groups, channels / groups * height, width]`, f32
    fn grouped(&self, x: Tensor<4>) -> Tensor<4> {
        let [b, c, h, w] = x.dims();
        to_f32(x).reshape([b, self.n_groups, c / self.n_groups * h, w])
    }
}

/// Moments of a picture from those of its parts, by Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for
/// computing sample variances" (1979). The parts are added up in their order: whoever has the same ones gets the same bits.
///
/// - `parts`: `[parts, batch, groups, 2]`, f32
/// - `sizes`: what the parts are to each other, such as their rows
pub fn merge_moments(parts: Tensor<4>, sizes: &[usize]) -> Tensor<3> {
    let n: usize = sizes.iter().sum();
    let weights: Vec<f32> = sizes.iter().map(|size| (*size as f64 / n as f64) as f32).collect();
    let weights = Tensor::<4>::from_data(TensorData::new(weights, [sizes.len(), 1, 1, 1]), &parts.device());
    let (means, vars) = (parts.clone().narrow(3, 0, 1), parts.narrow(3, 1, 1));
    let mean = (means.clone() * weights.clone()).sum_dim(0);
    let away = means - mean.clone();
    let var = ((vars + away.clone() * away) * weights).sum_dim(0);
    Tensor::cat(vec![mean, var], 3).squeeze_dim(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::test::{assert_close, random};
    use burn::tensor::Device;

    fn norm(dev: &Device) -> GroupNorm {
        GroupNorm { weight: random([24], 1, dev), bias: random([24], 2, dev), n_groups: 6, eps: 1e-6 }
    }

    #[test]
    fn cpu_group_norm_matches_burn() {
        let dev = Device::flex();
        let norm = norm(&dev);
        for [h, w] in [[1, 1], [3, 5], [70, 41]] {
            // far from zero, where a sum of squares would lose the variance
            let x = random([2, 24, h, w], 3, &dev) + 30.0;
            let want = norm.portable(x.clone(), None);
            assert_close(norm.forward(x.clone()), want.clone(), 2e-5);
            let x = (x.permute([0, 2, 3, 1]) * 1.0).permute([0, 3, 1, 2]);
            assert_close(norm.forward_silu(x), activation::silu(want), 2e-5);
        }
    }

    #[test]
    fn parts_with_merged_moments_are_normalised_as_the_whole() {
        let dev = Device::flex();
        let norm = norm(&dev);
        for away in [0.0, 30.0] {
            // each row on a level of its own, so that the parts differ
            let x = random([2, 24, 13, 9], 3, &dev) + random([1, 1, 13, 1], 4, &dev) * 5.0 + away;
            let sizes = [6, 4, 3];
            let mut at = 0;
            let parts = sizes.map(|n| {
                at += n;
                x.clone().narrow(2, at - n, n)
            });
            let each = |moments: &dyn Fn(&Tensor<4>) -> Tensor<3>| {
                let all = parts.iter().map(|part| moments(part).unsqueeze_dim(0)).collect();
                merge_moments(Tensor::cat(all, 0), &sizes)
            };
            let moments = each(&|part| norm.moments(part));
            assert_close(moments.clone(), each(&|part| norm.portable_moments(part.clone())), 1e-6);
            assert_close(moments.clone(), norm.portable_moments(x.clone()), 1e-6);
            for silu in [false, true] {
                let got = parts.iter().map(|part| norm.forward_by(part.clone(), &moments, silu)).collect();
                let want = if silu { norm.forward_silu(x.clone()) } else { norm.forward(x.clone()) };
                assert_close(Tensor::cat(got, 2), want.clone(), 2e-6);
                let got = norm.portable(x.clone(), Some(&moments));
                let got = if silu { activation::silu(got) } else { got };
                assert_close(got, want, 2e-5);
            }
        }
    }
}
