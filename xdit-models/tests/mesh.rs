//! Many ranks, the same picture: whole pipelines on meshes of threads against one device.

use burn::tensor::FloatDType;
use xdit_core::mesh::ParallelConfig;
use xdit_models::pipeline::{Content, ModelSource, Options, Output, OutputType, Pipeline, Request};
use xdit_testing::golden;

/// Ring attention adds up the parts in another order.
const RING: f64 = 1e-5;

const ONE: ParallelConfig = ParallelConfig { data: 1, cfg: 1, pipefusion: 1, ring: 1, ulysses: 1, tensor: 1 };

fn latents(name: &str, parallel: ParallelConfig, request: &Request) -> Vec<Vec<f32>> {
    let options = Options { parallel, ..Options::new(FloatDType::F32) };
    let source = if name == "built-in" { ModelSource::Builtin } else { ModelSource::Folder(golden::dir().join(name)) };
    let mut pipeline = Pipeline::open(&source, options, xdit_comm::local::world, &mut ()).expect("a pipeline");
    let outputs = pipeline.generate(request, &mut ()).unwrap_or_else(|e| panic!("{name} {parallel:?}: {e}"));
    // in the order asked for
    let order: Vec<_> = outputs.iter().map(|Output { prompt, image, .. }| (*prompt, *image)).collect();
    assert!(order.is_sorted() && order.len() == request.prompts.len() * request.num_images);
    let values = |output: Output| match output.content {
        Content::Latent { values, .. } => values,
        Content::Picture { .. } => unreachable!("latents were asked for"),
    };
    outputs.into_iter().map(values).collect()
}

/// 15 image tokens, 19 text tokens of T5: no degree but 3, 5 and 15 divides either.
fn request(n_pictures: usize) -> Request {
    Request {
        negative_prompts: vec!["a blue dog".into()],
        height: Some(80),
        width: Some(48),
        num_inference_steps: Some(2),
        guidance_scale: Some(3.5),
        true_cfg_scale: Some(2.0),
        guidance_rescale: Some(0.5),
        max_sequence_length: Some(19),
        resolution_binning: false,
        num_images: n_pictures,
        output: OutputType::Latent,
        ..Request::new("a photo of a red cat")
    }
}

fn rel_l2(got: &[f32], want: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = got.iter().zip(want).map(|(a, b)| square(a - b)).sum();
    (error / want.iter().map(|x| square(*x)).sum::<f64>()).sqrt()
}

#[track_caller]
fn check(name: &str, n_heads: usize, configs: impl Iterator<Item = ParallelConfig>) {
    // three pictures: over 2 replicas one has more to do, over 4 one has nothing
    let request = Request { true_cfg_scale: name.starts_with("flux").then_some(2.0), ..request(3) };
    let want = latents(name, ONE, &request);
    let mut n = 0;
    for parallel in configs.filter(|c| c.ulysses <= n_heads) {
        let got = latents(name, parallel, &request);
        for (got, want) in got.iter().zip(&want) {
            if parallel.ring == 1 {
                let same = got.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{name} {parallel:?}: {:.1e}", rel_l2(got, want));
            } else {
                let error = rel_l2(got, want);
                assert!(error <= RING, "{name} {parallel:?}: {error:.1e}");
            }
        }
        n += 1;
    }
    println!("{name}: {n} meshes");
}

/// Every valid product of data, cfg, ring and ulysses up to eight ranks, and three of sixteen.
fn all() -> impl Iterator<Item = ParallelConfig> {
    let upto = |n: usize| 1..=n;
    let small = upto(8).flat_map(move |data| {
        upto(2).flat_map(move |cfg| {
            upto(8).flat_map(move |ring| upto(8).map(move |ulysses| ParallelConfig { data, cfg, ring, ulysses, ..ONE }))
        })
    });
    let large = [
        ParallelConfig { data: 2, cfg: 2, ring: 2, ulysses: 2, ..ONE },
        ParallelConfig { cfg: 2, ring: 4, ulysses: 2, ..ONE },
        ParallelConfig { data: 4, cfg: 2, ulysses: 2, ..ONE },
    ];
    small.filter(|c| c.world_size() <= 8).chain(large)
}

#[test]
fn flux() {
    check("flux-dev", 4, all());
}

#[test]
fn sd3() {
    check("sd3", 4, all());
}

#[test]
fn sd3_5() {
    check("sd35", 2, all());
}

#[test]
fn pixart() {
    check("pixart-alpha", 3, all());
}

#[test]
fn hunyuan_dit() {
    check("hunyuan-v11", 3, all());
}

/// Eight heads: two or more on every rank.
#[test]
fn the_built_in_model() {
    let request = Request {
        height: Some(80),
        width: Some(48),
        num_inference_steps: Some(2),
        output: OutputType::Latent,
        ..Request::new("a small blue square on a white background")
    };
    let want = latents("built-in", ONE, &request);
    for ulysses in [2, 4, 8] {
        let got = latents("built-in", ParallelConfig { ulysses, ..ONE }, &request);
        assert!(got[0].iter().zip(&want[0]).all(|(a, b)| a.to_bits() == b.to_bits()), "ulysses {ulysses}");
    }
    let got = latents("built-in", ParallelConfig { ulysses: 4, ring: 2, ..ONE }, &request);
    assert!(rel_l2(&got[0], &want[0]) <= RING);
}

#[test]
fn a_mesh_that_does_not_fit_is_refused() {
    let says = |name: &str, parallel: ParallelConfig, request: &Request| {
        let options = Options { parallel, ..Options::new(FloatDType::F32) };
        let source = ModelSource::Folder(golden::dir().join(name));
        let mut pipeline = Pipeline::open(&source, options, xdit_comm::local::world, &mut ()).expect("a pipeline");
        pipeline.generate(request, &mut ()).expect_err("a refusal").to_string()
    };
    assert_eq!(
        says("flux-dev", ParallelConfig { ulysses: 5, ..ONE }, &request(1)),
        "ulysses degree 5 is more than the model's 4 attention heads; degrees that divide them are 1, 2, 4"
    );
    let unguided = Request { guidance_scale: Some(1.0), ..request(1) };
    assert!(says("sd3", ParallelConfig { cfg: 2, ..ONE }, &unguided).starts_with("cfg degree 2 needs"));
    assert_eq!(
        says("pixart-alpha", ParallelConfig { ring: 16, ..ONE }, &request(1)),
        "ulysses degree 1 times ring degree 16 is more than the 15 tokens of the image"
    );
}
