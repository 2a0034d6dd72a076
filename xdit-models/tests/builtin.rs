//! The built-in model goes the same way as a user's folder.

use std::path::Path;

use burn::tensor::FloatDType;
use xdit_models::pipeline::{Content, ModelSource, Options, Pipeline, Request};

fn draw(source: &ModelSource) -> Vec<u8> {
    let options = Options::new(FloatDType::F32);
    let mut pipeline = Pipeline::open(source, options, xdit_comm::local::world, &mut ()).expect("a pipeline");
    let request = Request { num_inference_steps: Some(2), ..Request::new("a red circle on a blue background") };
    let output = pipeline.generate(&request, &mut ()).expect("a picture").remove(0);
    match output.content {
        Content::Picture { width, height, rgb } if rgb.len() == 3 * width * height => rgb,
        _ => panic!("not a picture"),
    }
}

#[test]
fn embedded_and_as_a_folder_it_draws_the_same() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tiny-flux");
    assert_eq!(draw(&ModelSource::Builtin), draw(&ModelSource::Folder(folder)));
}

#[test]
fn it_is_small() {
    let bytes: usize = xdit_models::builtin::FILES.iter().map(|file| file.bytes.len()).sum();
    assert!(bytes <= 24 << 20, "{bytes} bytes");
}
