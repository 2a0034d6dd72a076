//! Dense layers.

use burn::tensor::{Tensor, activation};

use super::cpu;
use crate::checkpoint::{LoadError, Loader};

/// What follows a dense layer, fused into it where the device can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x`
    Identity,
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, `gelu-approximate` and `gelu_new` upstream.
    GeluTanh,
    /// `0.5 x (1 + erf(x / sqrt 2))`
    Gelu,
    /// `x sigmoid(1.702 x)`, CLIP's
    QuickGelu,
    /// `x sigmoid(x)`
    Silu,
}

impl Activation {
    /// Applies it elementwise.
    pub fn apply<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        if let Some(y) = cpu::activation(&x, self) {
            return y;
        }
        match self {
            Self::Identity => x,
            Self::GeluTanh => activation::gelu_approximate(x),
            Self::Gelu => activation::gelu(x),
            Self::QuickGelu => x.clone() * activation::sigmoid(x * 1.702),
            Self::Silu => activation::silu(x),
        }
    }
}

/// A dense layer with the checkpoint's weight layout.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Tensor<2>,
    /// `[out]`
    pub bias: Option<Tensor<1>>,
}

impl Linear {
    /// Reads `weight` and `bias` at the loader's place.
    ///
    /// # Errors
    /// A shape other than `[out, in]` and `[out]`.
    pub fn load(loader: &Loader<'_>, d_in: usize, d_out: usize) -> Result<Self, LoadError> {
        Ok(Self { weight: loader.tensor("weight", [d_out, d_in])?, bias: Some(loader.tensor("bias", [d_out])?) })
    }

    /// Reads `weight` alone.
    ///
    /// # Errors
    /// A shape other than `[out, in]`.
    pub fn load_no_bias(loader: &Loader<'_>, d_in: usize, d_out: usize) -> Result<Self, LoadError> {
        Ok(Self { weight: loader.tensor("weight", [d_out, d_in])?, bias: None })
    }

    /// Output features.
    pub fn d_out(&self) -> usize {
        self.weight.dims()[0]
    }

    /// `[.., in] -> [.., out]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.forward_act(x, Activation::Identity)
    }

    /// `act(x W^T + b)`, `[.., in] -> [.., out]`
    pub fn forward_act<const D: usize>(&self, x: Tensor<D>, act: Activation) -> Tensor<D> {
        dense(vec![x], self, act)
    }
}

/// `W [x_0 | x_1 | ..] + b` without building the concatenation along the features.
///
/// - `xs`: each `[.., in_i]`, equal in all but the last dimension; the `in_i` add up to the layer's input features
pub fn linear_cat<const D: usize>(xs: Vec<Tensor<D>>, layer: &Linear) -> Tensor<D> {
    dense(xs, layer, Activation::Identity)
}

fn dense<const D: usize>(xs: Vec<Tensor<D>>, layer: &Linear, act: Activation) -> Tensor<D> {
    if let Some(y) = cpu::dense(&xs, layer, act) {
        return y;
    }
    let x = if xs.len() == 1 { xs.into_iter().next().expect("one input") } else { Tensor::cat(xs, D - 1) };
    let mut dims = x.dims();
    let (rows, d_in) = (dims[..D - 1].iter().product::<usize>(), dims[D - 1]);
    dims[D - 1] = layer.d_out();
    let y = x.reshape([rows, d_in]).matmul(layer.weight.clone().transpose());
    let y = match &layer.bias {
        Some(bias) => y + bias.clone().unsqueeze(),
        None => y,
    };
    act.apply(y.reshape(dims))
}

/// `value * act(gate)`, the gated feed-forward of T5.
pub fn geglu<const D: usize>(value: Tensor<D>, gate: Tensor<D>, act: Activation) -> Tensor<D> {
    value * act.apply(gate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::test::{assert_close, random};
    use burn::tensor::Device;

    /// One accumulation over 70 products in another order.
    const TOLERANCE: f32 = 2e-6;

    fn portable(x: Tensor<3>, layer: &Linear, act: Activation) -> Tensor<3> {
        let [b, n, d] = x.dims();
        let y = x.reshape([b * n, d]).matmul(layer.weight.clone().transpose());
        let y = y + layer.bias.clone().expect("bias").unsqueeze();
        let y = match act {
            Activation::Identity => y,
            Activation::GeluTanh => activation::gelu_approximate(y),
            Activation::Gelu => activation::gelu(y),
            Activation::QuickGelu => y.clone() * activation::sigmoid(y * 1.702),
            Activation::Silu => activation::silu(y),
        };
        y.reshape([b, n, layer.d_out()])
    }

    #[test]
    fn cpu_dense_matches_burn() {
        let dev = Device::flex();
        for act in
            [Activation::Identity, Activation::GeluTanh, Activation::Gelu, Activation::QuickGelu, Activation::Silu]
        {
            for (n, d_in, d_out) in [(1, 70, 33), (5, 70, 200), (300, 40, 70)] {
                let x = random([2, n, d_in], 1, &dev);
                let layer = Linear { weight: random([d_out, d_in], 2, &dev), bias: Some(random([d_out], 3, &dev)) };
                let want = portable(x.clone(), &layer, act);
                assert_close(layer.forward_act(x, act), want, TOLERANCE);
            }
        }
    }

    #[test]
    fn cat_equals_dense_of_the_concatenation() {
        let dev = Device::flex();
        let (a, b) = (random([2, 9, 16], 1, &dev), random([2, 9, 40], 2, &dev));
        let layer = Linear { weight: random([24, 56], 3, &dev), bias: Some(random([24], 4, &dev)) };
        let want = portable(Tensor::cat(vec![a.clone(), b.clone()], 2), &layer, Activation::Identity);
        assert_close(linear_cat(vec![a, b], &layer), want, TOLERANCE);
    }

    #[test]
    fn a_view_is_read_in_place() {
        let dev = Device::flex();
        let x = random([2, 9, 60], 1, &dev).slice([0..2, 2..7, 20..36]);
        let layer = Linear { weight: random([24, 16], 3, &dev), bias: Some(random([24], 4, &dev)) };
        let want = portable(x.clone(), &layer, Activation::Identity);
        assert_close(layer.forward(x), want, TOLERANCE);
    }
}
