//! How many tokens CLIP is shown and where they are padded: the tokenizer's files say, as for diffusers.

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use serde_json::{Value, json};
use xdit_models::pipeline::{Content, ModelSource, Options, OutputType, Pipeline, Request};
use xdit_testing::golden::{self, Golden, assert_rel_l2};

/// A few steps of f32 sums in another order.
const LATENTS: f64 = 1e-4;

#[track_caller]
fn check(case: &str, base: &str, tokenizer: &str, key: &str, value: Value) {
    let from = golden::dir().join(base);
    let dir = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(&from).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        let to = dir.path().join(entry.file_name().expect("a name"));
        if entry.is_dir() {
            std::fs::create_dir(&to).expect("a folder");
            for file in std::fs::read_dir(&entry).expect("a folder").map(|file| file.expect("an entry").path()) {
                std::fs::copy(&file, to.join(file.file_name().expect("a name"))).expect("copied");
            }
        } else {
            std::fs::copy(&entry, to).expect("copied");
        }
    }
    let config = dir.path().join(tokenizer).join("tokenizer_config.json");
    let mut keys: Value = serde_json::from_slice(&std::fs::read(&config).expect("a file")).expect("JSON");
    keys[key] = value;
    std::fs::remove_file(&config).expect("a file");
    std::fs::write(&config, keys.to_string()).expect("written");

    let source = ModelSource::Folder(dir.path().into());
    let options = Options::new(FloatDType::F32);
    let mut pipeline = Pipeline::open(&source, options, xdit_comm::local::world, &mut ()).expect("a pipeline");
    let request = Request {
        height: Some(32),
        width: Some(48),
        num_inference_steps: Some(2),
        guidance_scale: Some(3.0),
        max_sequence_length: Some(32),
        seed: 7,
        output: OutputType::Latent,
        ..Request::new("a photo of a red cat on a very long and wide bridge")
    };
    let Content::Latent { values, .. } = pipeline.generate(&request, &mut ()).expect("latents").remove(0).content
    else {
        panic!("not latents")
    };
    let flat = |values: Vec<f32>| {
        let n = values.len();
        Tensor::<1>::from_data(TensorData::new(values, [n]), &Device::flex())
    };
    let want = flat(Golden::open("clip-length").values(case).into_iter().map(|x| x as f32).collect());
    assert_rel_l2(flat(values), want, LATENTS);
}

#[test]
fn flux_shows_clip_as_many_tokens_as_the_tokenizer_says() {
    check("flux", "flux-dev", "tokenizer", "model_max_length", json!(10));
}

#[test]
fn flux_pads_on_the_side_that_the_tokenizer_says() {
    check("flux_left", "flux-dev", "tokenizer", "padding_side", json!("left"));
}

#[test]
fn sd3_takes_the_first_tokenizers_length_for_both() {
    check("sd3", "sd3", "tokenizer", "model_max_length", json!(10));
    check("sd3_second", "sd3", "tokenizer_2", "model_max_length", json!(10));
}
