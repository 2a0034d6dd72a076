//! What follows from a folder's files before any weight is read: what is not built is refused by name, the rest gives
//! upstream's defaults.

use burn::tensor::FloatDType;
use serde_json::{Value, json};
use xdit_models::pipeline::{ModelSource, Options, Pipeline, PipelineError, Request};
use xdit_testing::golden;

/// A folder of which one field of a file is another.
fn open(folder: &str, file: &str, field: &str, value: Value) -> Result<Pipeline, PipelineError> {
    let dir = tempfile::tempdir().expect("a folder");
    golden::copy(folder, dir.path());
    let path = dir.path().join(file);
    let text = std::fs::read_to_string(&path).expect("a file").replace("-Infinity", "null");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    config[field] = value;
    if field == "block_out_channels" {
        // lists of the same length
        config["up_block_types"] = json!(vec!["UpDecoderBlock2D"; 3]);
        config["down_block_types"] = json!(vec!["DownEncoderBlock2D"; 3]);
    }
    std::fs::write(&path, config.to_string()).expect("written");
    let source = ModelSource::Folder(dir.path().into());
    Pipeline::open(&source, Options::new(FloatDType::F32), xdit_comm::local::world, &mut ())
}

#[track_caller]
fn refusal(folder: &str, file: &str, field: &str, value: Value) -> String {
    let opened = open(folder, file, field, value);
    opened.err().unwrap_or_else(|| panic!("{folder}: {field} was taken")).to_string()
}

#[track_caller]
fn says(message: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(message.contains(part), "{message:?} does not say {part:?}"));
}

#[test]
fn classes_of_the_index() {
    let scheduler = |folder, class: &str| refusal(folder, "model_index.json", "scheduler", json!(["diffusers", class]));
    says(&scheduler("flux-dev", "DDIMScheduler"), &["scheduler is a DDIMScheduler", "FlowMatchEulerDiscreteScheduler"]);
    says(&scheduler("sd3", "EulerDiscreteScheduler"), &["EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"]);
    for folder in ["pixart-alpha", "hunyuan-v12"] {
        says(&scheduler(folder, "FlowMatchEulerDiscreteScheduler"), &["FlowMatchEuler", "DPMSolverMultistepScheduler"]);
        says(&scheduler(folder, "UniPCMultistepScheduler"), &["UniPCMultistepScheduler", "DDIMScheduler or DDPM"]);
    }
    let absent = refusal("flux-dev", "model_index.json", "text_encoder_2", json!([null, null]));
    says(&absent, &["text_encoder_2"]);
}

#[test]
fn a_shift_that_the_pipeline_does_not_undo() {
    for folder in ["pixart-alpha", "hunyuan-v12"] {
        says(&refusal(folder, "vae/config.json", "shift_factor", json!(0.1)), &["AutoencoderKL", "shift_factor=0.1"]);
    }
}

#[test]
fn a_field_of_another_kind_is_named() {
    says(&refusal("flux-dev", "transformer/config.json", "num_layers", json!(null)), &["num_layers", "null"]);
    says(&refusal("sd3", "transformer/config.json", "pos_embed_max_size", json!("x")), &["pos_embed_max_size", "x"]);
    says(&refusal("hunyuan-v12", "vae/config.json", "block_out_channels", json!([8, "x"])), &["block_out_channels[1]"]);
}

/// `FluxPipeline`, `StableDiffusion3Pipeline`, `PixArtAlphaPipeline`, `PixArtSigmaPipeline` and `HunyuanDiTPipeline` as they
/// are called without arguments; docs/models.md says why schnell's steps and tokens are others.
#[test]
fn defaults_are_upstreams() {
    let settings = |folder: &str| {
        let pipeline = open(folder, "vae/config.json", "sample_size", json!([256, 256])).expect("a pipeline");
        let s = pipeline.settings(&Request::new("a cat")).expect("settings");
        (s.height, s.num_inference_steps, s.guidance_scale, s.max_sequence_length)
    };
    assert_eq!(settings("flux-dev"), (1024, 28, 3.5, 512));
    assert_eq!(settings("flux-schnell"), (1024, 4, 3.5, 256));
    assert_eq!(settings("sd3"), (128, 28, 7.0, 256));
    assert_eq!(settings("pixart-alpha"), (1024, 20, 4.5, 120));
    assert_eq!(settings("pixart-sigma"), (1024, 20, 4.5, 300));
    assert_eq!(settings("hunyuan-v12").0, 1024);
    assert_eq!((settings("hunyuan-v12").1, settings("hunyuan-v12").2), (50, 5.0));
}

/// The side is counted in latent pixels, of which a VAE of fewer levels has more.
#[test]
fn a_default_side_is_128_latent_pixels() {
    let pipeline = open("flux-dev", "vae/config.json", "block_out_channels", json!([8, 8, 16])).expect("a pipeline");
    let settings = pipeline.settings(&Request::new("a cat")).expect("settings");
    assert_eq!((settings.height, settings.width), (512, 512));
}
