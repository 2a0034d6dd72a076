//! Weights out of nothing, for measurements.

use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};

/// As wide as transformers' weights are before they are trained: values neither die out nor grow from layer to layer.
const STD: f64 = 0.02;

/// A tensor of normally distributed numbers, made on the device: around 1 for the weight of a norm, the one kind of
/// `weight` that has one dimension, else around 0. The name decides the numbers, so that ranks on several devices draw the
/// same model, as long as nothing else draws at the same time.
pub(super) fn normal<const D: usize>(name: &str, shape: [usize; D], device: &Device, dtype: FloatDType) -> Tensor<D> {
    let mean = if D == 1 && name.ends_with("weight") { 1.0 } else { 0.0 };
    device.seed(seed(name));
    Tensor::random(shape, Distribution::Normal(mean, STD), (device, DType::from(dtype)))
}

/// FNV-1a: equal on every machine and in every version.
fn seed(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::super::Loader;
    use super::*;

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().convert::<f32>().try_to_vec::<f32>().expect("f32")
    }

    fn mean_and_std(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let var = values.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
        (mean, var.sqrt())
    }

    #[test]
    fn weights_are_small_norms_are_about_one_and_all_is_counted() {
        let loader = Loader::drawn("transformer", &Device::flex(), FloatDType::BF16);
        let block = loader.pp("blocks.0");
        assert!(block.has("anything"));
        let dense: Tensor<2> = block.tensor("weight", [200, 300]).expect("drawn");
        assert_eq!((dense.dims(), dense.dtype()), ([200, 300], DType::BF16));
        let (mean, std) = mean_and_std(&values(dense));
        assert!(mean.abs() < 1e-3 && (std - STD).abs() < 1e-3, "{mean} {std}");
        let (mean, _) = mean_and_std(&values(block.f32().tensor::<1>("norm.weight", [1000]).expect("drawn")));
        assert!((mean - 1.0).abs() < 1e-2, "{mean}");
        let (mean, _) = mean_and_std(&values(block.tensor::<1>("norm.bias", [1000]).expect("drawn")));
        assert!(mean.abs() < 1e-2, "{mean}");
        let report = loader.finish(&[]).expect("nothing is missing");
        assert_eq!((report.component.as_str(), report.tensors), ("transformer", 3));
        assert_eq!((report.resident, report.largest), (2 * 60_000 + 4 * 1000 + 2 * 1000, 2 * 60_000));

        // a dry one counts the same and draws nothing
        let dry = Loader::drawn("transformer", &Device::flex(), FloatDType::BF16).dry();
        let far: Tensor<2> = dry.tensor("weight", [1 << 20, 1 << 20]).expect("a stand-in");
        assert_eq!(far.dims(), [1 << 20, 1 << 20]);
        assert_eq!(dry.finish(&[]).expect("a report").resident, 2 << 40);
    }

    #[test]
    fn names_decide_the_numbers() {
        assert_ne!(seed("blocks.0.weight"), seed("blocks.1.weight"));
        assert_eq!(seed(""), 0xcbf2_9ce4_8422_2325);
    }
}
