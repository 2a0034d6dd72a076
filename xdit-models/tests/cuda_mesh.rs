//! Meshes of GPUs against one GPU: whole requests of the small test models. Run by `.ci/gpu_tests` on a machine that has some.
#![cfg(feature = "cuda")]

use burn::tensor::{Device, FloatDType};
use xdit_comm::local::World;
use xdit_core::mesh::ParallelConfig;
use xdit_models::pipeline::{Content, ModelSource, Options, OutputType, Pipeline, Request};
use xdit_testing::golden;

const ONE: ParallelConfig = ParallelConfig { data: 1, cfg: 1, pipefusion: 1, ring: 1, ulysses: 1, tensor: 1 };

/// Latents of two pictures on these devices, rank after rank.
fn latents(name: &str, dtype: FloatDType, parallel: ParallelConfig, devices: &[usize]) -> Vec<Vec<f32>> {
    draw(name, dtype, parallel, devices, OutputType::Latent)
}

/// Latents of two pictures, or their pixels.
fn draw(
    name: &str,
    dtype: FloatDType,
    parallel: ParallelConfig,
    devices: &[usize],
    output: OutputType,
) -> Vec<Vec<f32>> {
    let request = Request {
        negative_prompts: vec!["a blue dog".into()],
        height: Some(80),
        width: Some(48),
        num_inference_steps: Some(2),
        guidance_scale: Some(3.5),
        true_cfg_scale: name.starts_with("flux").then_some(2.0),
        max_sequence_length: Some(19),
        resolution_binning: false,
        num_images: 2,
        output,
        ..Request::new("a photo of a red cat")
    };
    let all: Vec<Device> = devices.iter().copied().map(Device::cuda).collect();
    let launch = move |n: usize| World::apart(all.into_iter().cycle().take(n).collect()).communicators();
    let source = ModelSource::Folder(golden::dir().join(name));
    let options = Options { parallel, ..Options::new(dtype) };
    let mut pipeline = Pipeline::open(&source, options, launch, &mut ()).expect("a pipeline");
    let outputs = pipeline.generate(&request, &mut ()).unwrap_or_else(|e| panic!("{name} {parallel:?}: {e}"));
    let values = |content| match content {
        Content::Latent { values, .. } => values,
        Content::Picture { rgb, .. } => rgb.into_iter().map(f32::from).collect(),
    };
    outputs.into_iter().map(|output| values(output.content)).collect()
}

fn rel_l2(got: &[f32], want: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = got.iter().zip(want).map(|(a, b)| square(a - b)).sum();
    (error / want.iter().map(|x| square(*x)).sum::<f64>()).sqrt()
}

/// Ranks on these devices, each a device of its own, draw what one rank draws.
fn check(name: &str, devices: &[usize]) {
    let (data, cfg, ulysses, ring) = (
        ParallelConfig { data: 2, ..ONE },
        ParallelConfig { cfg: 2, ..ONE },
        ParallelConfig { ulysses: 2, ..ONE },
        ParallelConfig { ring: 2, ..ONE },
    );
    let both = ParallelConfig { cfg: 2, ulysses: 2, ..ONE };
    for (dtype, sums, parts) in
        [(FloatDType::BF16, 0.0, 4e-2), (FloatDType::F16, 0.0, 4e-3), (FloatDType::F32, 1e-6, 1e-5)]
    {
        let want = latents(name, dtype, ONE, &devices[..1]);
        for (parallel, bound) in [(data, sums), (cfg, sums), (ulysses, sums), (both, sums), (ring, parts)] {
            // four ranks do not share two GPUs
            if parallel == both && devices[0] != devices[1] {
                continue;
            }
            let got = latents(name, dtype, parallel, devices);
            for (got, want) in got.iter().zip(&want) {
                let error = rel_l2(got, want);
                println!("{name} {dtype:?} {parallel:?}: {error:.1e}");
                assert!(error <= bound, "{name} {dtype:?} {parallel:?}: {error:.1e} above {bound:.0e}");
            }
        }
    }
}

/// Ranks on these devices, each a device of its own, decode a band each of what one rank decodes. Bounds are those of
/// pixels, which are rounded to levels.
fn check_bands(name: &str, devices: &[usize]) {
    for (dtype, bound) in [(FloatDType::F32, 1e-3), (FloatDType::F16, 1e-2), (FloatDType::BF16, 4e-2)] {
        // the small model's decoder leaves f16's range
        if name.starts_with("pixart") && dtype == FloatDType::F16 {
            continue;
        }
        let want = draw(name, dtype, ONE, &devices[..1], OutputType::Picture);
        for parallel in [ParallelConfig { ulysses: 2, ..ONE }, ParallelConfig { cfg: 2, ulysses: 2, ..ONE }] {
            let n = parallel.world_size();
            if n > devices.len() && devices.len() > 1 {
                continue;
            }
            let got = draw(name, dtype, parallel, devices, OutputType::Picture);
            for (got, want) in got.iter().zip(&want) {
                let error = rel_l2(got, want);
                println!("{name} {dtype:?} {n} bands: {error:.1e}");
                assert!(error <= bound, "{name} {dtype:?} {n} bands: {error:.1e} above {bound:.0e}");
            }
            assert!(draw(name, dtype, parallel, devices, OutputType::Picture) == got, "{name} {dtype:?}: once more");
        }
    }
}

/// Whether there are two GPUs.
fn are_two() -> bool {
    let n = xdit_core::cuda::devices().expect("a driver").len();
    if n < 2 {
        println!("skipped: there is {n} GPU");
    }
    n >= 2
}

macro_rules! tests {
    ($($model:ident: $name:literal),*) => {
        mod one_gpu_that_stands_for_two_draws_its_own_bits {
            $(#[test] #[ignore = "needs a GPU"] fn $model() { super::check($name, &[0, 0]); })*
        }
        mod one_gpu_that_stands_for_many_decodes_bands {
            $(#[test] #[ignore = "needs a GPU"] fn $model() { super::check_bands($name, &[0]); })*
        }
        mod two_gpus_decode_bands {
            $(#[test] #[ignore = "needs two GPUs"] fn $model() { if super::are_two() { super::check_bands($name, &[0, 1]); } })*
        }
        mod two_gpus_draw_the_bits_of_one {
            $(#[test] #[ignore = "needs two GPUs"] fn $model() { if super::are_two() { super::check($name, &[0, 1]); } })*
        }
    };
}

tests!(flux: "flux-dev", sd3: "sd3", sd35: "sd35", pixart: "pixart-alpha", hunyuan: "hunyuan-v11");

#[test]
#[ignore = "needs two GPUs"]
fn equal_requests_give_equal_bits_on_two_gpus() {
    if !are_two() {
        return;
    }
    let ulysses = ParallelConfig { ulysses: 2, ..ONE };
    let want = latents("flux-dev", FloatDType::BF16, ulysses, &[0, 1]);
    for time in 0..20 {
        assert!(latents("flux-dev", FloatDType::BF16, ulysses, &[0, 1]) == want, "time {time}");
    }
}
