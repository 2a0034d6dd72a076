//! Settings that change nothing on the model at hand are told.

use burn::tensor::FloatDType;
use xdit_core::engine::SkipLayers;
use xdit_core::observer::Observer;
use xdit_models::pipeline::{ModelSource, Options, OutputType, Pipeline, Request};
use xdit_testing::golden;

#[derive(Default)]
struct Warnings(Vec<String>);

impl Observer for Warnings {
    fn warn(&mut self, message: &str) {
        self.0.push(message.into());
    }
}

fn warnings(folder: &str, change: impl FnOnce(&mut Request)) -> Vec<String> {
    let source = ModelSource::Folder(golden::dir().join(folder));
    let options = Options::new(FloatDType::F32);
    let mut pipeline = Pipeline::open(&source, options, xdit_comm::local::world, &mut ()).expect("a pipeline");
    let mut request = Request {
        height: Some(32),
        width: Some(32),
        num_inference_steps: Some(2),
        output: OutputType::Latent,
        ..Request::new("a cat")
    };
    change(&mut request);
    let mut seen = Warnings::default();
    pipeline.generate(&request, &mut seen).expect("latents");
    seen.0.retain(|line| line.contains("no effect"));
    seen.0
}

#[track_caller]
fn one(lines: Vec<String>, parts: &[&str]) {
    assert_eq!(lines.len(), 1, "{lines:?}");
    parts.iter().for_each(|part| assert!(lines[0].contains(part), "{lines:?} does not say {part:?}"));
    assert!(!lines[0].contains("--"), "{lines:?} speaks in flags");
}

fn skip_layers() -> Option<SkipLayers> {
    Some(SkipLayers { blocks: vec![1], scale: 2.8, start: 0.0, stop: 1.0 })
}

#[test]
fn flux() {
    one(warnings("flux-dev", |r| r.true_cfg_scale = Some(2.0)), &["true_cfg_scale 2", "negative prompt"]);
    let negative = |r: &mut Request| r.negative_prompts = vec!["a dog".into()];
    one(warnings("flux-dev", negative), &["negative prompt", "true_cfg_scale 1"]);
    one(warnings("flux-dev", |r| r.guidance_rescale = Some(0.5)), &["guidance_rescale", "true_cfg_scale above 1"]);
    one(warnings("flux-dev", |r| r.skip_layers = skip_layers()), &["skip-layer guidance"]);
    one(warnings("flux-dev", |r| r.resolution_binning = false), &["resolution_binning"]);
    one(warnings("flux-schnell", |r| r.guidance_scale = Some(3.5)), &["guidance_scale", "trained without"]);
    for idle in [
        warnings("flux-schnell", |r| r.guidance_scale = Some(0.0)),
        warnings("flux-dev", |r| r.guidance_scale = Some(3.5)),
        warnings("flux-dev", |r| {
            (r.negative_prompts, r.true_cfg_scale) = (vec!["a dog".into()], Some(2.0));
            (r.guidance_rescale, r.skip_layers) = (Some(0.5), skip_layers());
        }),
    ] {
        assert!(idle.is_empty(), "{idle:?}");
    }
}

#[test]
fn classifier_free_guidance() {
    one(warnings("sd3", |r| r.true_cfg_scale = Some(2.0)), &["true_cfg_scale", "guidance_scale"]);
    one(
        warnings("sd3", |r| (r.guidance_scale, r.skip_layers) = (Some(1.0), skip_layers())),
        &["skip-layer guidance", "guidance_scale above 1"],
    );
    one(
        warnings("hunyuan-v12", |r| {
            (r.guidance_scale, r.guidance_rescale, r.resolution_binning) = (Some(1.0), Some(0.7), false);
        }),
        &["guidance_rescale"],
    );
    one(
        warnings("hunyuan-v12", |r| (r.max_sequence_length, r.resolution_binning) = (Some(20), false)),
        &["max_sequence_length"],
    );
    let idle = warnings("pixart-sigma", |r| (r.max_sequence_length, r.resolution_binning) = (Some(20), false));
    assert!(idle.is_empty(), "{idle:?}");
}
