//! Operations on an NVIDIA GPU against the same operations in f32 on the CPU, and their invariants. Run by
//! `.ci/gpu_tests` on a machine that has one.
#![cfg(feature = "cuda")]

mod gpu;

use burn::tensor::{DType, Device, Tensor};
use xdit_core::ops::{
    Activation, Attended, HeadNorm, LayerNorm, Linear, RopeTable, attention, cat, cat_tokens, gated_residual, geglu,
    linear_cat, merge_attended, merge_heads, modulated_norm, narrow, norm_rope, rms_norm, side_by_side, split_heads,
    to_f32,
};

use gpu::{DTYPES, assert_close, gpu, on_gpu, random, values};

/// The rounding of one result, and of what it is made of.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 6e-3,
        DType::F16 => 8e-4,
        _ => 2e-6,
    }
}

#[test]
#[ignore = "needs a GPU"]
fn dense_layers_are_the_cpus() {
    use Activation::{Gelu, GeluTanh, Identity, QuickGelu, Silu};
    for dtype in DTYPES {
        for (m, k, n) in [(1, 64, 96), (7, 256, 72), (130, 1152, 4608), (333, 40, 16)] {
            let (x, weight, bias) = (random([1, m, k], 1, dtype), random([n, k], 2, dtype), random([n], 3, dtype));
            let cpu = Linear::new(weight.clone(), Some(bias.clone()));
            let there = Linear::new(on_gpu(&weight, dtype), Some(on_gpu(&bias, dtype)));
            for act in [Identity, GeluTanh, Gelu, QuickGelu, Silu] {
                let got = there.forward_act(on_gpu(&x, dtype), act);
                assert_close(
                    got,
                    cpu.forward_act(x.clone(), act),
                    tolerance(dtype),
                    &format!("{dtype:?} {m} {k} {n} {act:?}"),
                );
            }
            // a view: every second row, from the third column block on
            let wide = random([1, 2 * m, 3 * k], 4, dtype);
            let view = |x: Tensor<3>| x.narrow(1, m, m).narrow(2, k, k);
            let got = there.forward(view(on_gpu(&wide, dtype)));
            assert_close(got, cpu.forward(view(wide)), tolerance(dtype), "a view");
        }
        let (a, b) = (random([1, 90, 128], 1, dtype), random([1, 90, 512], 2, dtype));
        let (weight, bias) = (random([136, 640], 3, dtype), random([136], 4, dtype));
        let want = linear_cat(vec![a.clone(), b.clone()], &Linear::new(weight.clone(), Some(bias.clone())));
        let there = Linear::new(on_gpu(&weight, dtype), Some(on_gpu(&bias, dtype)));
        let got = linear_cat(vec![on_gpu(&a, dtype), on_gpu(&b, dtype)], &there);
        assert_close(got, want.clone(), tolerance(dtype), "parts");
        // the same parts where the layers before have put them side by side
        let [at, beside] = side_by_side(&on_gpu(&a, dtype), [128, 512]);
        let identity = |d: usize| Linear::new(on_gpu(&Tensor::<2>::eye(d, &Device::flex()), dtype), None);
        let got = linear_cat(
            vec![
                identity(128).forward_into(on_gpu(&a, dtype), Activation::Identity, at),
                identity(512).forward_into(on_gpu(&b, dtype), Activation::Identity, beside),
            ],
            &there,
        );
        assert_close(got, want, tolerance(dtype), "parts side by side");
        let (stream, x) = (random([2, 90, 136], 5, dtype), random([2, 90, 640], 6, dtype));
        let want = Linear::new(weight.clone(), Some(bias.clone())).forward_onto(stream.clone(), x.clone());
        assert_close(there.forward_onto(on_gpu(&stream, dtype), on_gpu(&x, dtype)), want, tolerance(dtype), "onto");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn norms_gates_and_activations_are_the_cpus() {
    for dtype in DTYPES {
        for d in [64, 1152, 3072, 9000] {
            let (x, y) = (random([2, 37, d], 1, dtype), random([2, 37, d], 2, dtype));
            let (a, b) = (random([2, d], 3, dtype), random([2, d], 4, dtype));
            let (w, v) = (random([d], 5, dtype), random([d], 6, dtype));
            let g = |x: &Tensor<3>| on_gpu(x, dtype);
            let m = |x: &Tensor<2>| on_gpu(x, dtype);
            let tolerance = tolerance(dtype);
            let what = format!("{dtype:?} {d}");
            let want = modulated_norm(x.clone(), a.clone(), b.clone(), 1e-6);
            assert_close(modulated_norm(g(&x), m(&a), m(&b), 1e-6), want, tolerance, &what);
            let want = gated_residual(x.clone(), a.clone(), y.clone());
            assert_close(gated_residual(g(&x), m(&a), g(&y)), want, tolerance, &what);
            let norm = LayerNorm { weight: w.clone(), bias: v.clone(), eps: 1e-5 };
            let there = LayerNorm { weight: on_gpu(&w, dtype), bias: on_gpu(&v, dtype), eps: 1e-5 };
            assert_close(there.forward(g(&x)), norm.forward(x.clone()), tolerance, &what);
            assert_close(rms_norm(g(&x), &on_gpu(&w, dtype), 1e-6), rms_norm(x.clone(), &w, 1e-6), tolerance, &what);
            let want = geglu(x.clone(), y.clone(), Activation::GeluTanh);
            assert_close(geglu(g(&x), g(&y), Activation::GeluTanh), want, tolerance, &what);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn queries_and_keys_are_normalised_and_turned_as_on_the_cpu() {
    for dtype in DTYPES {
        for d in [16, 64, 72, 88, 128] {
            let positions: Vec<[f64; 1]> = (0..37).map(|i| [f64::from(i)]).collect();
            let table = |device: &Device| RopeTable::new(&positions, [d], 10_000.0, device);
            let (rope, there) = (table(&Device::flex()), table(&gpu()));
            let (w, v) = (random([d], 5, dtype), random([d], 6, dtype));
            // heads of a third of wider rows, as in a product that makes queries, keys and values
            let x = random([2, 37, 3, 5, d], 1, dtype);
            let view = |x: Tensor<5>| x.narrow(2, 1, 1).squeeze_dim::<4>(2).swap_dims(1, 2);
            let norms = |w: Tensor<1>, v: Tensor<1>| {
                let layer = LayerNorm { weight: w.clone(), bias: v, eps: 1e-6 };
                [HeadNorm::None, HeadNorm::Rms { weight: w, eps: 1e-6 }, HeadNorm::Layer(layer)]
            };
            let mine = norms(w.clone(), v.clone());
            for (norm, gpu_norm) in mine.iter().zip(norms(on_gpu(&w, dtype), on_gpu(&v, dtype))) {
                let got = norm_rope(view(on_gpu(&x, dtype)), &gpu_norm, Some(&there));
                let want = norm_rope(view(x.clone()), norm, Some(&rope));
                assert_close(got, want, tolerance(dtype), &format!("{dtype:?} {d} {norm:?}"));
            }
        }
    }
}

fn check_attention(dims: [usize; 5], dtype: DType, bias: Option<Tensor<4>>, gain: f64) {
    let [b, h, nq, nk, d] = dims;
    let q = random([b, nq, h, d], 1, dtype).swap_dims(1, 2) * gain;
    let k = random([b, h, nk, d], 2, dtype);
    let v = random([b, nk, h, d], 3, dtype).swap_dims(1, 2);
    let scale = (d as f64).powf(-0.5);
    let there = |x: &Tensor<4>| on_gpu(x, dtype);
    let got = attention(there(&q), there(&k), there(&v), bias.as_ref().map(|bias| on_gpu(bias, DType::F32)), scale);
    let want = attention(to_f32(q.cast(dtype)), k, v, bias, scale);
    let what = format!("{dtype:?} {dims:?} gain {gain}");
    assert_close(got.out, want.out, tolerance(dtype), &what);
    let worst = values(got.lse).iter().zip(values(want.lse)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 2e-3, "{what}: log-sum-exp off by {worst:e}");
}

#[test]
#[ignore = "needs a GPU"]
fn attention_is_the_cpus() {
    for dtype in DTYPES {
        for d in [16, 64, 72, 80, 88, 96, 112, 128] {
            for (b, h, nq, nk) in
                [(1, 2, 129, 1), (2, 3, 200, 63), (1, 3, 70, 700), (2, 2, 1000, 777), (1, 1, 1, 300), (3, 2, 333, 1409)]
            {
                check_attention([b, h, nq, nk, d], dtype, None, 1.0);
            }
            check_attention([1, 2, 300, 500, d], dtype, None, 6.0);
        }
        let hide = |key: usize| if key % 3 == 1 { f32::NEG_INFINITY } else { 0.0 };
        let bias: Vec<f32> = (0..300).map(hide).collect();
        let bias = Tensor::<1>::from_floats(bias.as_slice(), &Device::flex()).reshape([1, 1, 1, 300]);
        check_attention([2, 3, 100, 300, 72], dtype, Some(bias), 1.0);
        for d in [64, 72, 88, 128] {
            check_attention([2, 3, 200, 700, d], dtype, Some(random([2, 1, 1, 700], 9, DType::F32)), 1.0);
        }
        check_attention([2, 3, 100, 80, 64], dtype, Some(random([1, 3, 100, 80], 9, DType::F32)), 1.0);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_row_that_sees_no_key_is_zeros() {
    for dtype in DTYPES {
        for n in [40, 300] {
            let x = |seed| on_gpu(&random([1, 2, n, 64], seed, dtype), dtype);
            let hidden = Tensor::<4>::full([1, 1, 1, n], f32::NEG_INFINITY, &gpu());
            let got = attention(x(1), x(2), x(3), Some(hidden), 0.1);
            assert!(values(got.out).iter().all(|x| *x == 0.0), "{dtype:?} {n}");
            assert!(values(got.lse).iter().all(|x| *x == f32::NEG_INFINITY), "{dtype:?} {n}");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn parts_of_attention_merge_to_the_whole() {
    for dtype in DTYPES {
        let x = |n, seed| on_gpu(&random([2, 3, n, 64], seed, dtype), dtype);
        let (q, k, v) = (x(50, 1), x(900, 2), x(900, 3));
        let part =
            |from, n| attention(q.clone(), k.clone().narrow(2, from, n), v.clone().narrow(2, from, n), None, 0.2);
        let Attended { out, lse } = merge_attended(merge_attended(part(0, 300), part(300, 100)), part(400, 500));
        let whole = attention(q.clone(), k.clone(), v.clone(), None, 0.2);
        assert_close(out, to_f32(whole.out), tolerance(dtype), "merged");
        assert_close(lse, whole.lse, 1e-5, "merged");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn parts_are_views_and_are_joined_as_on_the_cpu() {
    for dtype in DTYPES {
        let (a, b) = (random([2, 9, 48], 1, dtype), random([2, 7, 48], 2, dtype));
        let there = |x: &Tensor<3>| on_gpu(x, dtype);
        let want = Tensor::cat(vec![a.clone(), b.clone()], 1);
        assert_close(cat(vec![there(&a), there(&b)], 1), want, 0.0, "tokens");
        let (x, y) = (a.clone().narrow(1, 1, 4), b.clone().narrow(1, 3, 4));
        let got = cat(vec![narrow(&there(&a), 1, 1..5), narrow(&there(&b), 1, 3..7)], 2);
        assert_close(got, Tensor::cat(vec![x, y], 2), 0.0, "columns of views");
        let c = there(&a);
        let got = cat(vec![narrow(&c, 2, 8..16), narrow(&c, 2, 16..40)], 2);
        assert_close(got, a.clone().narrow(2, 8, 32), 0.0, "neighbours");
        let heads = split_heads(narrow(&c, 2, 16..32), 2);
        let want = split_heads(a.clone().narrow(2, 16, 16), 2);
        assert_close(heads.clone(), want.clone(), 0.0, "heads");
        assert_close(merge_heads(heads.clone()), a.clone().narrow(2, 16, 16), 0.0, "merged heads");
        let joined =
            cat_tokens(vec![narrow(&heads, 2, 0..3), split_heads(there(&b), 6).narrow(1, 0, 2).narrow(3, 0, 8)]);
        let want = cat_tokens(vec![want.narrow(2, 0, 3), split_heads(b.clone(), 6).narrow(1, 0, 2)]);
        assert_close(joined, want, 0.0, "tokens of heads");
    }
}

/// Bits of `x`.
fn bits<const D: usize>(x: Tensor<D>) -> Vec<u32> {
    values(x).into_iter().map(f32::to_bits).collect()
}

#[test]
#[ignore = "needs a GPU"]
fn a_row_of_a_dense_layer_has_the_same_bits_beside_any_others() {
    const N: usize = 4608;
    for dtype in [DType::BF16, DType::F16] {
        for (k, n) in [
            (3072, 9216),
            (3072, 12288),
            (12288, 3072),
            (1536, 6144),
            (6144, 1536),
            (1152, 4608),
            (4608, 1152),
            (1408, 5632),
            (5632, 1408),
        ] {
            let dev = gpu();
            let draw = |dims: [usize; 2]| {
                Tensor::<2>::random(dims, burn::tensor::Distribution::Normal(0.0, 0.1), &dev).cast(dtype)
            };
            let layer = Linear::new(draw([n, k]), Some(draw([1, n]).squeeze_dim(0)));
            let x = draw([N, k]);
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

#[test]
#[ignore = "needs a GPU"]
fn a_row_of_attention_has_the_same_bits_whatever_heads_and_queries_are_beside_it() {
    for dtype in [DType::BF16, DType::F16] {
        for d in [64, 72, 88, 128] {
            let dev = gpu();
            let draw = || {
                Tensor::<4>::random([1, 24, 2304, d], burn::tensor::Distribution::Normal(0.0, 1.0), &dev).cast(dtype)
            };
            let (q, k, v) = (draw(), draw(), draw());
            let all = attention(q.clone(), k.clone(), v.clone(), None, 0.1);
            for (heads, from, rows) in [(12, 0, 2304), (6, 300, 64), (1, 1000, 1304), (1, 0, 2304), (24, 576, 576)] {
                let part = |x: &Tensor<4>| x.clone().narrow(1, 24 - heads, heads);
                let got = attention(part(&q).narrow(2, from, rows), part(&k), part(&v), None, 0.1);
                assert!(
                    bits(part(&all.out).narrow(2, from, rows)) == bits(got.out),
                    "{dtype:?} {d}: {heads} heads, {rows} rows"
                );
            }
        }
    }
}
