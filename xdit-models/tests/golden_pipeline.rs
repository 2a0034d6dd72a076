//! From prompt to pixels against diffusers.

use std::collections::BTreeMap;

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use serde::Deserialize;
use xdit_models::pipeline::{Content, ModelSource, Options, OutputType, Pipeline, Request};
use xdit_testing::golden::{self, Golden, assert_rel_l2};

/// Three steps of f32 sums in another order.
const LATENTS: f64 = 1e-4;
/// The same in pixels, which are rounded to 8 bits here: half a step of 1/255 on values around 0.5.
const PIXELS: f64 = 3e-3;

#[derive(Deserialize)]
struct Case {
    prompt: String,
    negative_prompt: Option<String>,
    true_cfg_scale: Option<f32>,
    guidance_scale: f32,
    height: usize,
    width: usize,
    num_inference_steps: usize,
    max_sequence_length: usize,
    seed: u64,
}

#[track_caller]
fn check(name: &str) {
    let golden = Golden::open(name);
    let cases = std::fs::read_to_string(golden::dir().join(format!("{name}.cases.json"))).expect("cases");
    let cases: BTreeMap<String, Case> = serde_json::from_str(&cases).expect("cases");
    let options = Options { device: Device::flex(), dtype: FloatDType::F32, variant: None };
    let source = ModelSource::Folder(golden::dir().join(name));
    let mut pipeline = Pipeline::open(&source, options, &mut ()).expect("a pipeline");
    for (key, case) in cases {
        let mut request = Request {
            prompts: vec![case.prompt],
            negative_prompts: case.negative_prompt.into_iter().collect(),
            height: Some(case.height),
            width: Some(case.width),
            num_inference_steps: Some(case.num_inference_steps),
            guidance_scale: Some(case.guidance_scale),
            true_cfg_scale: case.true_cfg_scale,
            max_sequence_length: Some(case.max_sequence_length),
            seed: case.seed,
            output: OutputType::Latent,
            ..Request::new("")
        };
        let mut draw = |request: &Request| {
            let outputs = pipeline.generate(request, &mut ()).unwrap_or_else(|e| panic!("{key}: {e}"));
            outputs.into_iter().next().expect("one result").content
        };
        let Content::Latent { dims, values } = draw(&request) else { panic!("{key}: not latents") };
        let dims = <[usize; 3]>::try_from(dims).expect("tokens");
        let got = Tensor::<3>::from_data(TensorData::new(values, dims), &Device::flex());
        assert_rel_l2(got, golden.tensor(&format!("pipeline.{key}.latent")), LATENTS);

        request.output = OutputType::Picture;
        let Content::Picture { width, height, rgb } = draw(&request) else { panic!("{key}: not a picture") };
        assert_eq!((width, height), (case.width, case.height));
        let values: Vec<f32> = rgb.iter().map(|x| f32::from(*x) / 255.0).collect();
        let got = Tensor::<4>::from_data(TensorData::new(values, [1, height, width, 3]), &Device::flex());
        assert_rel_l2(got.permute([0, 3, 1, 2]), golden.tensor(&format!("pipeline.{key}.pt")), PIXELS);
    }
}

#[test]
fn dev() {
    check("flux-dev");
}

#[test]
fn schnell() {
    check("flux-schnell");
}
