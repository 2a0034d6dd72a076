//! Convolutions and what image decoders put between them.
//!
//! Feature maps are `[batch, channels, height, width]`; on the CPU and on NVIDIA's GPUs they are views of memory that has
//! the channels innermost, as heads are of token-major memory.

use burn::tensor::{Tensor, module, ops::ConvOptions};

use super::choose::choose;
use super::cpu;
#[cfg(feature = "cuda")]
use super::cuda;
use super::tensors::narrow;
use super::types::Conv2d;
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
            cpu: cpu::conv2d(&x, self, [0, 0], None),
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
            cpu: cpu::conv2d(&x, self, [0, 0], Some(&residual)),
            cuda: cuda::conv2d(&x, self, Some(&residual)),
            portable: self.portable(x) + residual,
        )
    }

    /// [`forward`](Self::forward), or [`forward_add`](Self::forward_add), of the rows of `x` between margins: these are
    /// neighbours to look at, and the result has none. What lies beyond them is zeros, as at the edge of a picture.
    ///
    /// - `margins`: rows at the top and at the bottom
    /// - `residual`: `[batch, out, height - margins, width]`
    pub fn forward_within(&self, x: Tensor<4>, margins: [usize; 2], residual: Option<Tensor<4>>) -> Tensor<4> {
        if margins == [0, 0] {
            return match residual {
                Some(residual) => self.forward_add(x, residual),
                None => self.forward(x),
            };
        }
        choose!(
            &x,
            cpu: cpu::conv2d(&x, self, margins, residual.as_ref()),
            cuda: None,
            portable: self.portable_within(x, margins, residual),
        )
    }

    /// Computes the margins, too, and leaves them out.
    fn portable_within(&self, x: Tensor<4>, [above, below]: [usize; 2], residual: Option<Tensor<4>>) -> Tensor<4> {
        let rows = above..x.dims()[2] - below;
        let y = narrow(&self.forward(x), 2, rows);
        match residual {
            // added in the order of their memory
            Some(residual) => channels_first(channels_last(y) + channels_last(residual)),
            None => y,
        }
    }

    fn portable(&self, x: Tensor<4>) -> Tensor<4> {
        let padding = self.weight.dims()[2] / 2;
        let options = ConvOptions::new([1, 1], [padding, padding], [1, 1], 1);
        module::conv2d(x, self.weight.clone(), Some(self.bias.clone()), options)
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

/// `[batch, channels, height, width] -> [batch, height, width, channels]`, as the memory of feature maps is.
pub fn channels_last(x: Tensor<4>) -> Tensor<4> {
    x.permute([0, 2, 3, 1])
}

/// The inverse of [`channels_last`].
pub fn channels_first(x: Tensor<4>) -> Tensor<4> {
    x.permute([0, 3, 1, 2])
}

/// `[batch, channels, height, width] -> [batch, height * width, channels]`, a view on the CPU.
pub fn pixels_to_tokens(x: Tensor<4>) -> Tensor<3> {
    let [b, c, h, w] = x.dims();
    channels_last(x).reshape([b, h * w, c])
}

/// The inverse of [`pixels_to_tokens`].
pub fn tokens_to_pixels(x: Tensor<3>, height: usize, width: usize) -> Tensor<4> {
    let [b, _, c] = x.dims();
    channels_first(x.reshape([b, height, width, c]))
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

    /// A picture in three bands, each with a row of its neighbours, is the picture.
    #[track_caller]
    fn check_bands(k: usize, cuts: [usize; 2], forward: impl Fn(&Conv2d, Tensor<4>, [usize; 2]) -> Tensor<4>) {
        let dev = Device::flex();
        let conv = Conv2d { weight: random([20, 7, k, k], 1, &dev), bias: random([20], 2, &dev) };
        let x = random([2, 7, 11, 9], 3, &dev);
        let want = conv.portable(x.clone());
        let [first, second] = cuts;
        let band = |from: usize, to: usize| {
            let margins = [1.min(from), 1.min(11 - to)];
            let rows = from - margins[0]..to + margins[1];
            forward(&conv, x.clone().narrow(2, rows.start, rows.len()), margins)
        };
        let got = Tensor::cat(vec![band(0, first), band(first, second), band(second, 11)], 2);
        assert_close(got, want, TOLERANCE);
    }

    #[test]
    fn convolutions_of_bands_with_margins_are_that_of_the_picture() {
        for cuts in [[4, 8], [1, 2], [5, 10]] {
            check_bands(3, cuts, |conv, x, margins| conv.forward_within(x, margins, None));
            check_bands(3, cuts, |conv, x, margins| conv.portable_within(x, margins, None));
            let added = |conv: &Conv2d, x: Tensor<4>, margins: [usize; 2]| {
                let [b, _, h, w] = x.dims();
                let residual = random([b, 20, h - margins[0] - margins[1], w], 4, &Device::flex());
                let plain = conv.portable_within(x.clone(), margins, Some(residual.clone()));
                assert_close(conv.forward_within(x, margins, Some(residual.clone())), plain.clone(), TOLERANCE);
                plain - residual
            };
            check_bands(3, cuts, added);
            check_bands(1, cuts, added);
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
