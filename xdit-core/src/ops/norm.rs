//! Norms and the modulation of AdaLN.

use burn::tensor::Tensor;

use super::choose::choose;
use super::cpu;
#[cfg(feature = "cuda")]
use super::cuda;
use super::tensors::{to_dtype, to_f32};
use super::types::{HeadNorm, LayerNorm};
use crate::checkpoint::{LoadError, Loader};

impl LayerNorm {
    /// Reads `weight` and `bias` at the loader's place.
    ///
    /// # Errors
    /// A shape other than `[d]`.
    pub fn load(loader: &Loader<'_>, d: usize, eps: f64) -> Result<Self, LoadError> {
        Ok(Self { weight: loader.tensor("weight", [d])?, bias: loader.tensor("bias", [d])?, eps })
    }

    /// `[.., d]`, normalised over `d`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        choose!(
            &x,
            cpu: cpu::layer_norm(&x, &self.weight, &self.bias, self.eps),
            cuda: cuda::layer_norm(&x, &self.weight, &self.bias, self.eps),
            portable: self.portable(x),
        )
    }

    fn portable<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let dtype = x.dtype();
        let y = layer_norm(to_f32(x), self.eps);
        let y = y * to_f32(self.weight.clone()).unsqueeze() + to_f32(self.bias.clone()).unsqueeze();
        to_dtype(y, dtype)
    }
}

impl HeadNorm {
    /// - `x`: `[batch, heads, tokens, head_dim]`
    pub(super) fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::None => x,
            Self::Rms { weight, eps } => rms_norm(x, weight, *eps),
            Self::Layer(norm) => norm.forward(x),
        }
    }
}

/// Layer norm over the last dimension without scale and shift.
pub fn layer_norm<const D: usize>(x: Tensor<D>, eps: f64) -> Tensor<D> {
    let dtype = x.dtype();
    let x = to_f32(x);
    let centred = x.clone() - x.mean_dim(D - 1);
    let var = (centred.clone() * centred.clone()).mean_dim(D - 1);
    to_dtype(centred / (var + eps).sqrt(), dtype)
}

/// `layer_norm(x) (1 + scale) + shift`, AdaLN's first half.
///
/// - `x`: `[batch, tokens, d]`
/// - `shift`, `scale`: `[batch, d]`
pub fn modulated_norm(x: Tensor<3>, shift: Tensor<2>, scale: Tensor<2>, eps: f64) -> Tensor<3> {
    choose!(
        &x,
        cpu: cpu::modulated_norm(&x, &shift, &scale, eps),
        cuda: cuda::modulated_norm(&x, &shift, &scale, eps),
        portable: portable_modulated_norm(x, shift, scale, eps),
    )
}

fn portable_modulated_norm(x: Tensor<3>, shift: Tensor<2>, scale: Tensor<2>, eps: f64) -> Tensor<3> {
    let dtype = x.dtype();
    let y = layer_norm(to_f32(x), eps);
    let y = y * (to_f32(scale) + 1.0).unsqueeze_dim(1) + to_f32(shift).unsqueeze_dim(1);
    to_dtype(y, dtype)
}

/// `x weight / sqrt(mean(x^2) + eps)` over the last dimension.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: &Tensor<1>, eps: f64) -> Tensor<D> {
    choose!(
        &x,
        cpu: None,
        cuda: cuda::rms_norm(&x, weight, eps),
        portable: portable_rms_norm(x, weight, eps),
    )
}

fn portable_rms_norm<const D: usize>(x: Tensor<D>, weight: &Tensor<1>, eps: f64) -> Tensor<D> {
    let dtype = x.dtype();
    let x = to_f32(x);
    let mean = (x.clone() * x.clone()).mean_dim(D - 1);
    to_dtype(x / (mean + eps).sqrt() * to_f32(weight.clone()).unsqueeze(), dtype)
}

/// `x + gate y`, AdaLN's second half.
///
/// - `x`, `y`: `[batch, tokens, d]`
/// - `gate`: `[batch, d]`
pub fn gated_residual(x: Tensor<3>, gate: Tensor<2>, y: Tensor<3>) -> Tensor<3> {
    choose!(
        &x,
        cpu: cpu::gated_residual(&x, &gate, &y),
        cuda: cuda::gated_residual(&x, &gate, &y),
        portable: x + gate.unsqueeze_dim(1) * y,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::test::{assert_close, random};
    use burn::tensor::Device;

    #[test]
    fn cpu_kernels_match_burn() {
        let dev = Device::flex();
        let (x, y) = (random([2, 37, 50], 1, &dev), random([2, 37, 50], 2, &dev));
        let (shift, scale) = (random([2, 50], 3, &dev), random([2, 50], 4, &dev));
        let want =
            layer_norm(x.clone(), 1e-6) * (scale.clone() + 1.0).unsqueeze_dim(1) + shift.clone().unsqueeze_dim(1);
        assert_close(modulated_norm(x.clone(), shift, scale.clone(), 1e-6), want, 1e-6);
        let norm = LayerNorm { weight: random([50], 5, &dev), bias: random([50], 6, &dev), eps: 1e-6 };
        let want = layer_norm(x.clone(), 1e-6) * norm.weight.clone().unsqueeze() + norm.bias.clone().unsqueeze();
        assert_close(norm.forward(x.clone()), want, 1e-6);
        let want = x.clone() + scale.clone().unsqueeze_dim(1) * y.clone();
        assert_close(gated_residual(x, scale, y), want, 1e-6);
    }
}
