//! Times operations on a GPU: `cuda_ops [attention|linear|rows|decoder] ..`, each for the shapes of real models, bf16.
//!
//! Medians of several batches of launches, the device waited for after each batch. `docs/benchmarks/cuda_ops.py` runs it
//! in turns with PyTorch.

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("built without the feature cuda");
}

#[cfg(feature = "cuda")]
fn main() {
    cuda::run();
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::time::Instant;

    use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};
    use xdit_core::checkpoint::Loader;
    use xdit_core::ops::{
        Activation, Conv2d, GroupNorm, HeadNorm, Linear, RopeTable, attention, gated_residual, modulated_norm,
        norm_rope, split_heads, upsample_nearest_2x,
    };

    pub fn run() {
        let what: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
        let Some(what) = what.first() else {
            println!("attention HEADSxQUERIESxKEYSxHEAD_DIM.., linear MxKxN.., rows or decoder: needs a GPU");
            return;
        };
        let shapes: Vec<Vec<usize>> = std::env::args()
            .skip(2)
            .filter_map(|arg| arg.split('x').map(|n| n.parse().ok()).collect::<Option<Vec<_>>>())
            .collect();
        xdit_core::cuda::libraries::load().expect("NVIDIA's libraries");
        let dev = Device::cuda(0);
        match what.as_str() {
            "attention" => shapes.iter().for_each(|shape| attend(shape, &dev)),
            "linear" => shapes.iter().for_each(|shape| multiply(shape, &dev)),
            "rows" => rows(&dev),
            "decoder" => decoder(&dev),
            other => println!("{other}?"),
        }
    }

    fn draw<const D: usize>(dims: [usize; D], dev: &Device) -> Tensor<D> {
        Tensor::<D>::random(dims, Distribution::Normal(0.0, 1.0), dev).cast(DType::BF16)
    }

    fn time(name: &str, dev: &Device, flops: f64, bytes: f64, mut run: impl FnMut()) {
        for _ in 0..3 {
            run();
        }
        dev.sync().expect("a GPU");
        let n = ((8e-3 / (flops / 6e14 + bytes / 3e12).max(5e-6)) as usize).clamp(3, 400);
        let mut times: Vec<(f64, f64)> = (0..9)
            .map(|_| {
                let start = Instant::now();
                for _ in 0..n {
                    run();
                }
                let host = start.elapsed().as_secs_f64() / n as f64;
                dev.sync().expect("a GPU");
                (start.elapsed().as_secs_f64() / n as f64, host)
            })
            .collect();
        times.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (seconds, host) = times[4];
        println!(
            "{name}: {:.4} ms, {:.0} TFLOP/s, {:.2} TB/s, host {:.1} us",
            seconds * 1e3,
            flops / seconds / 1e12,
            bytes / seconds / 1e12,
            host * 1e6
        );
    }

    fn attend(shape: &[usize], dev: &Device) {
        let &[h, nq, nk, d] = shape else { return println!("{shape:?} is not HEADSxQUERIESxKEYSxHEAD_DIM") };
        let heads = |n| draw([1, n, h * d], dev);
        let (q, k, v) = (heads(nq), heads(nk), heads(nk));
        let scale = (d as f64).powf(-0.5);
        let of = |x: &Tensor<3>| split_heads(x.clone(), h);
        time(&format!("attention {h}x{nq}x{nk}x{d}"), dev, 4.0 * (h * nq * nk * d) as f64, 0.0, || {
            let _ = attention(of(&q), of(&k), of(&v), None, scale);
        });
    }

    fn multiply(shape: &[usize], dev: &Device) {
        let &[m, k, n] = shape else { return println!("{shape:?} is not MxKxN") };
        let layer = Linear::new(draw([n, k], dev) * 0.02, Some(draw([n], dev)));
        let x = draw([1, m, k], dev);
        for act in [Activation::Identity, Activation::GeluTanh] {
            time(&format!("linear {m}x{k}x{n} {act:?}"), dev, 2.0 * (m * k * n) as f64, 0.0, || {
                let _ = layer.forward_act(x.clone(), act);
            });
        }
    }

    fn rows(dev: &Device) {
        let (n, d, h) = (4608, 3072, 24);
        let (x, y) = (draw([1, n, d], dev), draw([1, n, d], dev));
        let (a, b) = (draw([1, d], dev), draw([1, d], dev));
        let size = (n * d * 2) as f64;
        time("norm and modulation", dev, 0.0, 2.0 * size, || {
            let _ = modulated_norm(x.clone(), a.clone(), b.clone(), 1e-6);
        });
        time("gated residual", dev, 0.0, 3.0 * size, || {
            let _ = gated_residual(x.clone(), a.clone(), y.clone());
        });
        let positions: Vec<[f64; 3]> = (0..n).map(|i| [0.0, (i / 64) as f64, (i % 64) as f64]).collect();
        let rope = RopeTable::new(&positions, [16, 56, 56], 10_000.0, dev);
        let norm = HeadNorm::Rms { weight: draw([d / h], dev), eps: 1e-6 };
        time("head norm and rope", dev, 0.0, 2.0 * size, || {
            let _ = norm_rope(split_heads(x.clone(), h), &norm, Some(&rope));
        });
        time("cat", dev, 0.0, 2.0 * size, || {
            let _ = Tensor::cat(vec![x.clone().narrow(1, 0, 512), x.clone().narrow(1, 512, n - 512)], 1);
        });
        time("gelu", dev, 0.0, 2.0 * size, || {
            let _ = Activation::GeluTanh.apply(x.clone());
        });
    }

    /// What FLUX's decoder does for a picture of 1024 pixels.
    fn decoder(dev: &Device) {
        let map = |c: usize, side: usize| draw([1, side, side, c], dev).permute([0, 3, 1, 2]);
        let loader = Loader::drawn("vae", dev, FloatDType::BF16);
        for (side, c_in, c_out, k) in [
            (1024, 128, 128, 3),
            (1024, 256, 128, 3),
            (1024, 256, 256, 3),
            (1024, 256, 128, 1),
            (1024, 128, 3, 3),
            (512, 256, 256, 3),
            (512, 512, 512, 3),
            (256, 512, 512, 3),
            (128, 512, 512, 3),
        ] {
            let conv = Conv2d::load(&loader.pp("conv"), c_in, c_out, k).expect("drawn");
            let (x, residual) = (map(c_in, side), map(c_out, side));
            let flops = (2 * side * side * c_in * c_out * k * k) as f64;
            let name = format!("{k}x{k} convolution {side}x{side}x{c_in} to {c_out}");
            time(&name, dev, flops, 0.0, || {
                let _ = conv.forward(x.clone());
            });
            if k == 3 && c_out > 3 {
                time(&format!("{name}, added"), dev, flops, 0.0, || {
                    let _ = conv.forward_add(x.clone(), residual.clone());
                });
            }
        }
        for (side, c) in [(1024, 128), (1024, 256), (512, 256), (256, 512), (128, 512)] {
            let norm = GroupNorm { weight: draw([c], dev), bias: draw([c], dev), n_groups: 32, eps: 1e-6 };
            let x = map(c, side);
            time(&format!("group norm and SiLU {side}x{side}x{c}"), dev, 0.0, (6 * side * side * c) as f64, || {
                let _ = norm.forward_silu(x.clone());
            });
        }
        let x = map(256, 512);
        time("upsampling 512x512x256", dev, 0.0, (10 * 512 * 512 * 256) as f64, || {
            let _ = upsample_nearest_2x(x.clone());
        });
        attend(&[1, 16384, 16384, 512], dev);
    }
}
