//! Dense layers in FP8 on an NVIDIA GPU against the product of the rounded numbers in f32. Run by `.ci/gpu_tests` on a
//! machine that has a Hopper GPU.
#![cfg(feature = "cuda")]

mod gpu;

use burn::tensor::{DType, Device, Distribution, Tensor, TensorData};
use xdit_core::checkpoint::Quantization;
use xdit_core::ops::{
    Activation, HeadNorm, Input, Linear, Linears, QkvOf, cat, check_quantization, joint_qkv, linear_cat, merge_heads,
    modulated_norm,
};

use gpu::{DTYPES, assert_close, gpu, on_gpu, random, values};

const HALVES: &[DType] = DTYPES.split_at(1).1;

/// The rounding of the result, and in sums of long rows that tensor cores keep about 14 bits.
fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::BF16 { 3e-3 } else { 1e-3 }
}

/// The nearest e4m3 number, of two that are as near the even one.
fn e4m3(x: f32) -> f32 {
    // three bits behind the first one, but nothing finer than 2^-9
    let exponent = (x.abs().to_bits() >> 23) as i32 - 127;
    let step = 2.0_f32.powi(exponent.max(-6) - 3);
    ((x / step).round_ties_even() * step).clamp(-448.0, 448.0)
}

/// Each row rounded as it is for a product, on the CPU.
fn rounded<const D: usize>(x: &Tensor<D>) -> Tensor<D> {
    let dims = x.dims();
    let mut all = values(x.clone());
    for row in all.chunks_mut(dims[D - 1]) {
        let largest = row.iter().fold(1e-30_f32, |largest, x| largest.max(x.abs()));
        let (by, scale) = (448.0 / largest, largest / 448.0);
        row.iter_mut().for_each(|x| *x = e4m3(*x * by) * scale);
    }
    Tensor::from_data(TensorData::new(all, dims), &Device::flex())
}

/// In FP8 on the GPU, and in f32 on the CPU with the weight's rows rounded.
fn layers(weight: &Tensor<2>, bias: &Tensor<1>, dtype: DType) -> (Linear, Linear) {
    let there = Linear::quantised(&on_gpu(weight, dtype), Some(on_gpu(bias, dtype)), Quantization::Fp8);
    (there.expect("a layer in FP8"), Linear::new(rounded(weight), Some(bias.clone())))
}

#[test]
#[ignore = "needs a GPU"]
fn fp8_layers_are_products_of_rounded_rows() {
    check_quantization(&gpu(), DType::BF16, Quantization::Fp8).expect("a GPU that has them");
    assert!(check_quantization(&gpu(), DType::F32, Quantization::Fp8).is_err());
    for &dtype in HALVES {
        for (m, k, n) in [(1, 64, 96), (7, 256, 80), (130, 1152, 4608), (600, 48, 16)] {
            let (x, weight, bias) = (random([1, m, k], 1, dtype), random([n, k], 2, dtype), random([n], 3, dtype));
            let (there, cpu) = layers(&weight, &bias, dtype);
            for act in [Activation::Identity, Activation::GeluTanh, Activation::Silu] {
                let got = there.forward_act(on_gpu(&x, dtype), act);
                let want = cpu.forward_act(rounded(&x), act);
                assert_close(got, want, tolerance(dtype), &format!("{dtype:?} {m} {k} {n} {act:?}"));
            }
            // a view: every second row, from the third column block on
            let wide = random([1, 2 * m, 3 * k], 4, dtype);
            let view = |x: Tensor<3>| x.narrow(1, m, m).narrow(2, k, k);
            let got = there.forward(view(on_gpu(&wide, dtype)));
            assert_close(got, cpu.forward(rounded(&view(wide))), tolerance(dtype), "a view");
        }
        let (a, b) = (random([2, 90, 128], 1, dtype), random([2, 90, 512], 2, dtype));
        let (there, cpu) = layers(&random([144, 640], 3, dtype), &random([144], 4, dtype), dtype);
        let got = linear_cat(vec![on_gpu(&a, dtype), on_gpu(&b, dtype)], &there);
        assert_close(got, cpu.forward(rounded(&cat(vec![a, b], 2))), tolerance(dtype), "parts");
        // a row of zeros is one, and nothing is nothing
        let zeros = there.forward(Tensor::<3>::zeros([1, 3, 640], (&gpu(), dtype)));
        assert_close(zeros, cpu.forward(Tensor::<3>::zeros([1, 3, 640], &Device::flex())), tolerance(dtype), "zeros");
        assert_eq!(there.forward(Tensor::<3>::zeros([1, 0, 640], (&gpu(), dtype))).dims(), [1, 0, 144]);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn norms_give_fp8_rows() {
    for &dtype in HALVES {
        for d in [64, 1152, 3072] {
            let (x, shift, scale) = (random([2, 37, d], 1, dtype), random([2, d], 2, dtype), random([2, d], 3, dtype));
            let (there, cpu) = layers(&random([32, d], 4, dtype), &random([32], 5, dtype), dtype);
            let input = Input::modulated_norm(on_gpu(&x, dtype), on_gpu(&shift, dtype), on_gpu(&scale, dtype), 1e-6);
            // rows are rounded to the precision of the model first
            let rows = modulated_norm(x, shift, scale, 1e-6).cast(dtype).cast(DType::F32);
            let want = cpu.forward(rounded(&rows));
            let got: Tensor<3> = there.forward(input.clone());
            assert_close(got.clone(), want, 2.0 * tolerance(dtype), &format!("{dtype:?} {d}"));
            assert!(bits(got) == bits(there.forward(input)), "{dtype:?} {d}: another layer gets the same rows");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn fp8_queries_keys_and_values_of_two_streams_are_one_sequence() {
    let (dtype, heads, d) = (DType::BF16, 3, 48);
    let norm = HeadNorm::None;
    // numbers of tokens that no round address follows
    let streams = [77, 130].map(|n| {
        let made = [1, 2, 3].map(|seed| {
            layers(&random([heads * d, 96], seed + n as u64, dtype), &random([heads * d], 4, dtype), dtype)
        });
        let (there, cpu): (Vec<_>, Vec<_>) = made.into_iter().unzip();
        (random([2, n, 96], 9, dtype), Linears::new(there), cpu)
    });
    let of = |(x, layers, _): &'_ (Tensor<3>, Linears, Vec<Linear>)| (on_gpu(x, dtype), layers.clone());
    let there = streams.each_ref().map(of);
    let of = |(x, layers)| QkvOf { x: Input::from(Clone::clone(x)), layers, norm_q: &norm, norm_k: &norm, rope: None };
    let got = joint_qkv(there.iter().map(|(x, layers)| of((x, layers))).collect(), heads);
    for (i, got) in got.into_iter().enumerate() {
        let want = streams.iter().map(|(x, _, cpu)| cpu[i].forward(rounded(x))).collect();
        assert_close(merge_heads(got), cat(want, 1), tolerance(dtype), &format!("{i}"));
    }
}

/// Bits of `x`.
fn bits<const D: usize>(x: Tensor<D>) -> Vec<u32> {
    values(x).into_iter().map(f32::to_bits).collect()
}

#[test]
#[ignore = "needs a GPU"]
fn a_row_of_an_fp8_layer_has_the_same_bits_beside_any_others() {
    const N: usize = 4608;
    let dev = gpu();
    for &dtype in HALVES {
        for (k, n) in [(3072, 9216), (3072, 12288), (12288, 3072), (15360, 3072)] {
            let draw = |dims: [usize; 2]| Tensor::<2>::random(dims, Distribution::Normal(0.0, 0.1), &dev).cast(dtype);
            let layer = Linear::quantised(&draw([n, k]), Some(draw([1, n]).squeeze_dim(0)), Quantization::Fp8);
            let (layer, x) = (layer.expect("a layer in FP8"), draw([N, k]));
            let all = layer.forward_act(x.clone(), Activation::GeluTanh);
            for rows in [64, 128, 256, 576, 1152, 2304] {
                for at in [0, N - rows] {
                    let some = layer.forward_act(x.clone().narrow(0, at, rows), Activation::GeluTanh);
                    assert!(
                        bits(all.clone().narrow(0, at, rows)) == bits(some),
                        "{dtype:?} {k} {n}: {rows} rows at {at}"
                    );
                }
            }
        }
    }
}
