//! Times operations on a GPU: `cuda_ops [attention|linear|rows] ..`, each for the shapes of real models, bf16.
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

    use burn::tensor::{DType, Device, Distribution, Tensor};
    use xdit_core::ops::{
        Activation, HeadNorm, Linear, RopeTable, attention, gated_residual, modulated_norm, norm_rope, split_heads,
    };

    pub fn run() {
        let what: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
        let Some(what) = what.first() else {
            println!("attention HEADSxQUERIESxKEYSxHEAD_DIM.., linear MxKxN.. or rows: needs a GPU");
            return;
        };
        let shapes: Vec<Vec<usize>> = std::env::args()
            .skip(2)
            .filter_map(|arg| arg.split('x').map(|n| n.parse().ok()).collect::<Option<Vec<_>>>())
            .collect();
        let dev = Device::cuda(0);
        match what.as_str() {
            "attention" => shapes.iter().for_each(|shape| attend(shape, &dev)),
            "linear" => shapes.iter().for_each(|shape| multiply(shape, &dev)),
            "rows" => rows(&dev),
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
}
