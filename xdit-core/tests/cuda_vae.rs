//! What an image decoder is made of on an NVIDIA GPU, against the same operations in f32 on the CPU. Run by
//! `.ci/gpu_tests` on a machine that has one.
#![cfg(feature = "cuda")]

mod gpu;

use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor, TensorData};
use xdit_core::checkpoint::Loader;
use xdit_core::ops::{Conv2d, GroupNorm, attention, merge_moments, split_heads, to_f32, upsample_nearest_2x};

use gpu::{DTYPES, assert_close, gpu, on_gpu, random, values};

/// The rounding of one result, and of what it is made of.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 6e-3,
        DType::F16 => 8e-4,
        // the CPU's convolutions are Winograd's, which round more than a plain sum
        _ => 5e-6,
    }
}

/// The channels innermost in memory, as convolutions leave them.
fn innermost(x: Tensor<4>) -> Tensor<4> {
    (x.permute([0, 2, 3, 1]) * 1.0).permute([0, 3, 1, 2])
}

#[test]
#[ignore = "needs a GPU"]
fn group_norms_are_the_cpus() {
    for dtype in DTYPES {
        for (b, c, groups, [h, w]) in [
            (1, 128, 32, [40, 51]),
            (2, 24, 6, [7, 5]),
            (1, 512, 32, [64, 64]),
            (2, 8, 2, [1, 1]),
            (1, 256, 32, [130, 300]),
            (1, 2048, 32, [3, 9]),
        ] {
            let draw = |seed| random([c], seed, dtype);
            let norm = GroupNorm { weight: draw(1), bias: draw(2), n_groups: groups, eps: 1e-6 };
            let there =
                GroupNorm { weight: on_gpu(&norm.weight, dtype), bias: on_gpu(&norm.bias, dtype), ..norm.clone() };
            // far from zero, where a sum of squares would lose the variance
            for away in [0.0, 30.0] {
                let x = to_f32((random([b, c, h, w], 3, dtype) + away).cast(dtype));
                let what = format!("{dtype:?} {b}x{c}x{h}x{w} from {away}");
                let tolerance = if away > 0.0 { 4.0 * tolerance(dtype) } else { tolerance(dtype) };
                let got = there.forward(innermost(on_gpu(&x, dtype)));
                assert_close(got, norm.forward(x.clone()), tolerance, &what);
                assert_close(there.forward_silu(on_gpu(&x, dtype)), norm.forward_silu(x), tolerance, &what);
            }
        }
    }
}

/// Parts of a picture, each normalised by what all of them have merged.
#[test]
#[ignore = "needs a GPU"]
fn group_norms_of_bands_are_the_cpus() {
    for dtype in DTYPES {
        for (b, c, groups, [h, w]) in [(1, 128, 32, [40, 51]), (2, 24, 6, [7, 5]), (1, 512, 32, [64, 64])] {
            let draw = |seed| random([c], seed, dtype);
            let norm = GroupNorm { weight: draw(1), bias: draw(2), n_groups: groups, eps: 1e-6 };
            let there =
                GroupNorm { weight: on_gpu(&norm.weight, dtype), bias: on_gpu(&norm.bias, dtype), ..norm.clone() };
            let x = to_f32((random([b, c, h, w], 3, dtype) + 3.0).cast(dtype));
            let sizes = [h - h / 3, h / 3];
            let parts = [0, sizes[0]].map(|at| innermost(on_gpu(&x, dtype)).narrow(2, at, sizes[usize::from(at > 0)]));
            let moments = parts.iter().map(|part| there.moments(part).unsqueeze_dim(0)).collect();
            let moments = merge_moments(Tensor::cat(moments, 0), &sizes);
            let what = format!("{dtype:?} {b}x{c}x{h}x{w}");
            assert_close(moments.clone(), norm.moments(&x), 1e-5, &what);
            let got = parts.map(|part| there.forward_by(part, &moments, true)).to_vec();
            assert_close(Tensor::cat(got, 2), norm.forward_silu(x), 2.0 * tolerance(dtype), &what);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn convolutions_are_the_cpus() {
    for dtype in DTYPES {
        for (k, [b, c_in, c_out], [h, w]) in [
            (1, [2, 16, 24], [9, 13]),
            (1, [1, 4, 4], [16, 16]),
            (3, [1, 16, 128], [32, 40]),
            (3, [2, 64, 72], [21, 19]),
            (3, [1, 128, 128], [64, 48]),
            (3, [1, 256, 136], [33, 17]),
            (3, [1, 512, 512], [16, 16]),
            (3, [1, 128, 3], [40, 24]),
            (3, [1, 4, 64], [1, 1]),
            (3, [1, 40, 16], [7, 150]),
        ] {
            let scale = ((k * k * c_in) as f64).powf(-0.5);
            let weight = to_f32((random([c_out, c_in, k, k], 1, dtype) * scale).cast(dtype));
            let conv = Conv2d { weight, bias: random([c_out], 2, dtype) };
            let there = Conv2d { weight: on_gpu(&conv.weight, dtype), bias: on_gpu(&conv.bias, dtype) };
            let (x, residual) = (random([b, c_in, h, w], 3, dtype), random([b, c_out, h, w], 4, dtype));
            let what = format!("{dtype:?} {k}x{k} {b}x{c_in}x{h}x{w} to {c_out}");
            let got = there.forward(innermost(on_gpu(&x, dtype)));
            assert_close(got, conv.forward(x.clone()), tolerance(dtype), &what);
            let got = there.forward_add(on_gpu(&x, dtype), innermost(on_gpu(&residual, dtype)));
            assert_close(got, conv.forward_add(x, residual), tolerance(dtype), &format!("{what}, added"));
        }
    }
}

/// A band of a picture, with rows of its neighbours.
#[test]
#[ignore = "needs a GPU"]
fn convolutions_between_margins_are_the_cpus() {
    for dtype in DTYPES {
        for (b, c_in, c_out, [h, w]) in
            [(1, 16, 128, [32, 40]), (2, 64, 72, [21, 19]), (1, 512, 512, [16, 16]), (1, 128, 3, [7, 24])]
        {
            let scale = ((9 * c_in) as f64).powf(-0.5);
            let weight = to_f32((random([c_out, c_in, 3, 3], 1, dtype) * scale).cast(dtype));
            let conv = Conv2d { weight, bias: random([c_out], 2, dtype) };
            let there = Conv2d { weight: on_gpu(&conv.weight, dtype), bias: on_gpu(&conv.bias, dtype) };
            let x = random([b, c_in, h, w], 3, dtype);
            for margins in [[1, 0], [0, 1], [1, 1], [2, 2]] {
                let residual = random([b, c_out, h - margins[0] - margins[1], w], 4, dtype);
                for residual in [None, Some(residual)] {
                    let added = residual.as_ref().map(|residual| innermost(on_gpu(residual, dtype)));
                    let got = there.forward_within(innermost(on_gpu(&x, dtype)), margins, added);
                    let what = format!("{dtype:?} {b}x{c_in}x{h}x{w} to {c_out} in {margins:?}");
                    let tolerance = if residual.is_some() { 2.0 } else { 1.0 } * tolerance(dtype);
                    assert_close(got, conv.forward_within(x.clone(), margins, residual), tolerance, &what);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn loaded_convolutions_keep_their_weights_in_another_order() {
    for dtype in [FloatDType::F32, FloatDType::BF16] {
        for (k, c_in, c_out) in [(1, 4, 4), (1, 16, 24), (3, 4, 64), (3, 64, 128), (3, 128, 3)] {
            let loader = Loader::drawn("vae", &gpu(), dtype);
            let there = Conv2d::load(&loader.pp("conv"), c_in, c_out, k).expect("drawn");
            assert_eq!(there.weight.dims(), [c_out, c_in, k, k]);
            let (weight, bias) = (values(there.weight.clone()), values(there.bias.clone()));
            let dev = Device::flex();
            let here = Conv2d {
                weight: Tensor::from_data(TensorData::new(weight, [c_out, c_in, k, k]), &dev),
                bias: Tensor::from_data(TensorData::new(bias, [c_out]), &dev),
            };
            let x = random([1, c_in, 24, 20], 1, dtype.into());
            let got = there.forward(on_gpu(&x, dtype.into()));
            assert_close(
                got,
                here.forward(x),
                tolerance(dtype.into()),
                &format!("{dtype:?} {k}x{k} {c_in} to {c_out}"),
            );
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn upsampling_repeats_pixels() {
    for dtype in DTYPES {
        for dims in [[2, 24, 5, 7], [1, 3, 4, 4]] {
            let x = random(dims, 1, dtype);
            let want = upsample_nearest_2x(x.clone());
            assert_close(upsample_nearest_2x(on_gpu(&x, dtype)), want.clone(), 0.0, "rows of pixels");
            assert_close(upsample_nearest_2x(innermost(on_gpu(&x, dtype))), want, 0.0, "channels innermost");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn attention_with_wide_heads_is_the_cpus() {
    for dtype in DTYPES {
        for (b, h, n, m, d) in [(1, 1, 300, 300, 512), (2, 2, 70, 133, 264), (1, 1, 5000, 77, 320)] {
            let q = random([b, n, h * d], 1, dtype);
            let (k, v) = (random([b, m, h * d], 2, dtype), random([b, m, h * d], 3, dtype));
            let scale = (d as f64).powf(-0.5);
            let there = |x: &Tensor<3>| split_heads(on_gpu(x, dtype), h);
            let here = |x: &Tensor<3>| split_heads(x.clone(), h);
            let got = attention(there(&q), there(&k), there(&v), None, scale);
            let want = attention(here(&q), here(&k), here(&v), None, scale);
            let what = format!("{dtype:?} {b}x{h}x{n}x{m}x{d}");
            assert_close(got.out, want.out, tolerance(dtype), &what);
            assert_close(got.lse, want.lse, 1e-5, &what);
        }
    }
}

/// Burn's own products would round to TF32.
#[test]
#[ignore = "needs a GPU"]
fn attention_in_f32_is_f32_with_any_head() {
    for d in [12, 20, 130] {
        let [q, k, v] = [1, 2, 3].map(|seed| random([1, 2, 90, d], seed, DType::F32));
        let there = |x: &Tensor<4>| on_gpu(x, DType::F32);
        let got = attention(there(&q), there(&k), there(&v), None, 0.2);
        let want = attention(q, k, v, None, 0.2);
        assert_close(got.out, want.out, 3e-6, &format!("{d} channels"));
    }
}

/// Pixels far from the edges of a picture have the same bits in a part of it; by cuDNN, elsewhere than on Hopper, they have
/// not.
#[test]
#[ignore = "needs a GPU"]
fn a_pixel_of_a_convolution_has_the_same_bits_beside_any_others_on_hopper() {
    if xdit_core::cuda::devices().expect("a GPU")[0].sm != 90 {
        return;
    }
    for dtype in [DType::BF16, DType::F16] {
        let dev = gpu();
        let draw = |dims: [usize; 4]| Tensor::<4>::random(dims, Distribution::Normal(0.0, 0.1), &dev).cast(dtype);
        for (c_in, c_out) in [(128, 128), (256, 128), (512, 512)] {
            let conv = Conv2d { weight: draw([c_out, c_in, 3, 3]), bias: draw([1, 1, 1, c_out]).reshape([c_out]) };
            let x = innermost(draw([1, c_in, 96, 80]));
            let whole = conv.forward(x.clone()).slice([0..1, 0..c_out, 9..31, 17..47]);
            let part = conv.forward(x.slice([0..1, 0..c_in, 8..32, 16..48])).slice([0..1, 0..c_out, 1..23, 1..31]);
            assert_eq!(values(whole), values(part), "{dtype:?} {c_in} to {c_out}");
        }
    }
}
