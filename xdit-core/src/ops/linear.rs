//! Dense layers.

use burn::tensor::{DType, Device, Tensor, activation};

use super::choose::choose;
use super::cpu;
#[cfg(feature = "cuda")]
use super::cuda;
use super::input::Input;
use super::tensors::cat;
#[cfg(feature = "cuda")]
use super::tensors::narrow;
use super::types::Activation;
#[cfg(feature = "cuda")]
use super::types::{Factors, Fp8};
use crate::checkpoint::{LoadError, Loader, Quantization};

impl Activation {
    /// Applies it elementwise.
    pub fn apply<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        choose!(
            &x,
            cpu: cpu::activation(&x, self),
            cuda: cuda::activation(&x, self),
            portable: self.portable(x),
        )
    }

    fn portable<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Identity => x,
            Self::GeluTanh => activation::gelu_approximate(x),
            Self::Gelu => activation::gelu(x),
            Self::QuickGelu => x.clone() * activation::sigmoid(x * 1.702),
            Self::Silu => activation::silu(x),
        }
    }
}

/// A dense layer.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor<1>>,
}

/// In the order and the precision in which the device multiplies by it.
#[derive(Debug, Clone)]
enum Weight {
    /// `[out, in]`, as checkpoints have it.
    Rows(Tensor<2>),
    Panels(cpu::Panels),
    #[cfg(feature = "cuda")]
    Fp8(Box<Fp8>),
}

impl Linear {
    /// - `weight`: `[out, in]`
    /// - `bias`: `[out]`
    pub fn new(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        let weight = choose!(
            &weight,
            cpu: cpu::Panels::of(&weight).map(Weight::Panels),
            cuda: cuda::packed(&weight).map(Weight::Rows),
            portable: Weight::Rows(weight),
        );
        Self { weight, bias }
    }

    /// With a weight that is kept in another precision; `None` where the device has no such products.
    ///
    /// - `weight`, `bias`: as in [`new`](Self::new)
    pub fn quantised(weight: &Tensor<2>, bias: Option<Tensor<1>>, kind: Quantization) -> Option<Self> {
        match kind {
            Quantization::Fp8 => {
                let weight = choose!(
                    weight,
                    cpu: None,
                    cuda: cuda::fp8_weight(weight).map(|weight| Some(Weight::Fp8(Box::new(weight)))),
                    portable: None,
                )?;
                Some(Self { weight, bias })
            }
        }
    }

    /// Reads `weight` and `bias` at the loader's place.
    ///
    /// # Errors
    /// A shape other than `[out, in]` and `[out]`; one that is to be quantised where that cannot be.
    pub fn load(loader: &Loader<'_>, d_in: usize, d_out: usize) -> Result<Self, LoadError> {
        Self::read(loader, d_in, d_out, |loader| loader.tensor("bias", [d_out]).map(Some))
    }

    /// Reads `weight` alone.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_no_bias(loader: &Loader<'_>, d_in: usize, d_out: usize) -> Result<Self, LoadError> {
        Self::read(loader, d_in, d_out, |_| Ok(None))
    }

    fn read<'a>(
        loader: &Loader<'a>,
        d_in: usize,
        d_out: usize,
        bias: impl FnOnce(&Loader<'a>) -> Result<Option<Tensor<1>>, LoadError>,
    ) -> Result<Self, LoadError> {
        let (weight, quantization) = loader.matrix([d_out, d_in])?;
        let bias = bias(loader)?;
        match quantization {
            None => Ok(Self::new(weight, bias)),
            Some(kind) => Self::quantised(&weight, bias, kind)
                .ok_or_else(|| LoadError::Quantization { tensor: format!("{}.weight", loader.prefix()) }),
        }
    }

    /// Output features.
    pub fn d_out(&self) -> usize {
        match &self.weight {
            Weight::Rows(weight) => weight.dims()[0],
            Weight::Panels(panels) => panels.d_out(),
            #[cfg(feature = "cuda")]
            Weight::Fp8(fp8) => fp8.numbers.dims()[0],
        }
    }

    /// Where the weight is.
    pub fn device(&self) -> Device {
        match &self.weight {
            Weight::Rows(weight) => weight.device(),
            Weight::Panels(panels) => panels.device(),
            #[cfg(feature = "cuda")]
            Weight::Fp8(fp8) => fp8.scales.clone().tensor::<1>().device(),
        }
    }

    /// The precision of the products: inputs are to come in it. A quantised weight takes less memory per number than this
    /// says.
    pub fn dtype(&self) -> DType {
        match &self.weight {
            Weight::Rows(weight) => weight.dtype(),
            Weight::Panels(panels) => panels.dtype(),
            #[cfg(feature = "cuda")]
            Weight::Fp8(fp8) => fp8.dtype,
        }
    }

    /// `[.., in] -> [.., out]`
    pub fn forward<const D: usize>(&self, x: impl Into<Input<D>>) -> Tensor<D> {
        self.forward_act(x, Activation::Identity)
    }

    /// `act(x W^T + b)`, `[.., in] -> [.., out]`
    pub fn forward_act<const D: usize>(&self, x: impl Into<Input<D>>, act: Activation) -> Tensor<D> {
        dense(&[x.into()], self, act)
    }

    /// The same into the place that the caller has for it, if there is one and the device can.
    ///
    /// - `place`: `[.., out]`
    pub fn forward_into<const D: usize>(
        &self,
        x: impl Into<Input<D>>,
        act: Activation,
        place: Option<Tensor<D>>,
    ) -> Tensor<D> {
        let x = x.into();
        #[cfg(feature = "cuda")]
        if let (Weight::Rows(weight), Some(place)) = (&self.weight, &place)
            && let Some(y) = cuda::dense_beside(&x.rows(), weight, self.bias.as_ref(), act, place)
        {
            return y;
        }
        drop(place);
        self.forward_act(x, act)
    }

    /// `residual + x W^T + b`, `[.., in] -> [.., out]`
    pub fn forward_onto<const D: usize>(&self, residual: Tensor<D>, x: Tensor<D>) -> Tensor<D> {
        let weight = match &self.weight {
            Weight::Panels(_) => return residual + self.forward(x),
            #[cfg(feature = "cuda")]
            Weight::Fp8(_) => return residual + self.forward(x),
            Weight::Rows(weight) => weight,
        };
        choose!(
            weight,
            cpu: None,
            cuda: cuda::dense_onto(&residual, &x, weight, self.bias.as_ref()),
            portable: residual + self.forward(x),
        )
    }
}

/// Layers that take the same input: one product where the device is faster so.
#[derive(Debug, Clone)]
pub struct Linears(Together);

#[derive(Debug, Clone)]
enum Together {
    Apart(Vec<Linear>),
    /// Their rows one after the other, and how many each has.
    #[cfg(feature = "cuda")]
    Joined(Box<Linear>, Vec<usize>),
}

impl Linears {
    /// - `layers`: all with a bias, or all without
    pub fn new(layers: Vec<Linear>) -> Self {
        #[cfg(feature = "cuda")]
        if let Some(joined) = Self::joined(&layers) {
            return joined;
        }
        Self(Together::Apart(layers))
    }

    /// On a GPU a wide product fills it better than several narrow ones.
    #[cfg(feature = "cuda")]
    fn joined(layers: &[Linear]) -> Option<Self> {
        let rows = |layer: &Linear| match &layer.weight {
            Weight::Rows(weight) if super::choose::is_cuda(weight) => Some(weight.clone()),
            _ => None,
        };
        let fp8 = |layer: &Linear| match &layer.weight {
            Weight::Fp8(weight) => Some((**weight).clone()),
            _ => None,
        };
        let biases: Vec<Tensor<1>> = layers.iter().filter_map(|layer| layer.bias.clone()).collect();
        if !biases.is_empty() && biases.len() < layers.len() {
            return None;
        }
        let bias = (!biases.is_empty()).then(|| cat(biases, 0));
        let whole = match layers.iter().map(rows).collect::<Option<Vec<_>>>() {
            Some(weights) => Linear::new(cat(weights, 0), bias),
            None => {
                let weights = layers.iter().map(fp8).collect::<Option<Vec<_>>>()?;
                Linear { weight: Weight::Fp8(Box::new(cuda::joined_fp8(&weights)?)), bias }
            }
        };
        Some(Self(Together::Joined(Box::new(whole), layers.iter().map(Linear::d_out).collect())))
    }

    /// What the product of all layers in one is of, and its bias, where they are computed so.
    #[cfg(feature = "cuda")]
    pub(super) fn factors(&self, x: &Input<3>) -> Option<(Factors<'_>, Option<&Tensor<1>>)> {
        let Together::Joined(whole, _) = &self.0 else { return None };
        let factors = match &whole.weight {
            Weight::Rows(weight) => Factors::Plain(x.rows(), weight),
            Weight::Fp8(weight) => Factors::Fp8(Input::fp8(std::slice::from_ref(x))?, weight),
            Weight::Panels(_) => return None,
        };
        Some((factors, whole.bias.as_ref()))
    }

    /// What each layer makes of `x`, `[.., in] -> [.., out]`.
    pub fn forward<const D: usize>(&self, x: impl Into<Input<D>>) -> Vec<Tensor<D>> {
        let x = x.into();
        match &self.0 {
            Together::Apart(layers) => layers.iter().map(|layer| layer.forward(x.clone())).collect(),
            #[cfg(feature = "cuda")]
            Together::Joined(whole, widths) => {
                let y = whole.forward(x);
                let mut at = 0;
                let part = |width: &usize| {
                    at += width;
                    narrow(&y, D - 1, at - width..at)
                };
                widths.iter().map(part).collect()
            }
        }
    }
}

/// `W [x_0 | x_1 | ..] + b` without building the concatenation along the features.
///
/// - `xs`: each `[.., in_i]`, equal in all but the last dimension; the `in_i` add up to the layer's input features
pub fn linear_cat<const D: usize>(xs: Vec<Tensor<D>>, layer: &Linear) -> Tensor<D> {
    dense(&xs.into_iter().map(Input::from).collect::<Vec<_>>(), layer, Activation::Identity)
}

fn dense<const D: usize>(xs: &[Input<D>], layer: &Linear, act: Activation) -> Tensor<D> {
    let rows = || xs.iter().map(Input::rows).collect::<Vec<_>>();
    let weight = match &layer.weight {
        Weight::Panels(panels) => return cpu::dense(&rows(), panels, layer.bias.as_ref(), act),
        #[cfg(feature = "cuda")]
        Weight::Fp8(weight) => {
            let y = Input::fp8(xs).and_then(|x| cuda::dense_fp8(&x, weight, layer.bias.as_ref(), act));
            return y.expect("rows in the weight's first precision and on its device");
        }
        Weight::Rows(weight) => weight,
    };
    let xs = rows();
    choose!(
        weight,
        cpu: None,
        cuda: cuda::dense(&xs, weight, layer.bias.as_ref(), act),
        portable: portable(xs, weight.clone(), layer, act),
    )
}

fn portable<const D: usize>(xs: Vec<Tensor<D>>, weight: Tensor<2>, layer: &Linear, act: Activation) -> Tensor<D> {
    let x = cat(xs, D - 1);
    let mut dims = x.dims();
    let (rows, d_in) = (dims[..D - 1].iter().product::<usize>(), dims[D - 1]);
    dims[D - 1] = layer.d_out();
    let y = x.reshape([rows, d_in]).matmul(weight.transpose());
    let y = match &layer.bias {
        Some(bias) => y + bias.clone().unsqueeze(),
        None => y,
    };
    act.apply(y.reshape(dims))
}

/// `value * act(gate)`, the gated feed-forward of T5.
pub fn geglu<const D: usize>(value: Tensor<D>, gate: Tensor<D>, act: Activation) -> Tensor<D> {
    choose!(
        &value,
        cpu: None,
        cuda: cuda::geglu(&value, &gate, act),
        portable: value * act.apply(gate),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::test::{assert_close, random};

    /// One accumulation over 70 products in another order.
    const TOLERANCE: f32 = 2e-6;

    fn portable(x: Tensor<3>, weight: Tensor<2>, bias: Tensor<1>, act: Activation) -> Tensor<3> {
        let [b, n, d] = x.dims();
        let d_out = weight.dims()[0];
        let y = x.reshape([b * n, d]).matmul(weight.transpose()) + bias.unsqueeze();
        let y = match act {
            Activation::Identity => y,
            Activation::GeluTanh => activation::gelu_approximate(y),
            Activation::Gelu => activation::gelu(y),
            Activation::QuickGelu => y.clone() * activation::sigmoid(y * 1.702),
            Activation::Silu => activation::silu(y),
        };
        y.reshape([b, n, d_out])
    }

    /// A layer, its weight and its bias.
    fn random_layer(d_in: usize, d_out: usize) -> (Linear, Tensor<2>, Tensor<1>) {
        let dev = Device::flex();
        let (weight, bias) = (random([d_out, d_in], 3, &dev), random([d_out], 4, &dev));
        (Linear::new(weight.clone(), Some(bias.clone())), weight, bias)
    }

    #[test]
    fn cpu_dense_matches_burn() {
        let dev = Device::flex();
        for act in
            [Activation::Identity, Activation::GeluTanh, Activation::Gelu, Activation::QuickGelu, Activation::Silu]
        {
            for (n, d_in, d_out) in [(1, 70, 33), (5, 70, 200), (300, 40, 70), (50, 1100, 129)] {
                let x = random([2, n, d_in], 1, &dev);
                let (layer, weight, bias) = random_layer(d_in, d_out);
                let want = portable(x.clone(), weight, bias, act);
                assert_close(layer.forward_act(x, act), want, TOLERANCE);
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_among_any_others() {
        const N: usize = 700;
        let dev = Device::flex();
        for (d_in, d_out) in [(30, 64), (515, 65), (1025, 300), (16, 1), (2, 40)] {
            let x = random([1, N, d_in], 1, &dev);
            let (layer, ..) = random_layer(d_in, d_out);
            let bits = |x: Tensor<3>| layer.forward(x).into_data().try_to_vec::<f32>().expect("f32");
            let all = bits(x.clone());
            for n in [1, 2, 3, 7, 47, 48, 49, 50, 97, 257, 337, 513] {
                for at in [0, 1, N - n] {
                    let some = bits(x.clone().narrow(1, at, n));
                    assert!(some == all[at * d_out..][..n * d_out], "{n} rows at {at}, {d_in} -> {d_out}");
                }
            }
        }
    }

    #[test]
    fn cat_equals_dense_of_the_concatenation() {
        let dev = Device::flex();
        let (a, b) = (random([2, 9, 16], 1, &dev), random([2, 9, 40], 2, &dev));
        let (layer, weight, bias) = random_layer(56, 24);
        let want = portable(Tensor::cat(vec![a.clone(), b.clone()], 2), weight, bias, Activation::Identity);
        assert_close(linear_cat(vec![a, b], &layer), want, TOLERANCE);
    }

    #[test]
    fn views_are_read_as_what_they_show() {
        let dev = Device::flex();
        let x = random([2, 9, 60], 1, &dev);
        let (layer, weight, bias) = random_layer(16, 24);
        for x in [
            x.clone().slice([0..2, 2..7, 20..36]),
            x.clone().slice([0..2, 2..7, 20..36]).swap_dims(0, 1),
            x.slice([0..2, 2..7, 20..36]).flip([1]),
        ] {
            let want = portable(x.clone(), weight.clone(), bias.clone(), Activation::Identity);
            assert_close(layer.forward(x), want, TOLERANCE);
        }
    }

    #[test]
    fn a_cut_weight_is_read_where_it_begins() {
        let dev = Device::flex();
        let (x, weight) = (random([1, 9, 16], 1, &dev), random([40, 16], 2, &dev).narrow(0, 7, 20));
        let bias = Tensor::zeros([20], &dev);
        let want = portable(x.clone(), weight.clone(), bias, Activation::Identity);
        assert_close(Linear::new(weight, None).forward(x), want, TOLERANCE);
    }
}
