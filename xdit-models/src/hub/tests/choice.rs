//! Which of the files of a repository are fetched.

use super::*;

#[test]
fn a_variant_that_nothing_has_is_told_before_anything_large() {
    let case = Case::new();
    let error = case.hub.fetch_observed(Wanted { variant: Some("int8"), ..TINY }, &mut ()).unwrap_err().to_string();
    let expected =
        "org/tiny: no component has weights of the variant \"int8\", there are \"fp16\", plain files without a variant";
    assert_eq!(error, expected);
    // So is a class that is of no use.
    let wanted = Wanted { classes: &["FluxPipeline", "X"], ..TINY };
    let error = case.hub.fetch_observed(wanted, &mut ()).unwrap_err().to_string();
    assert_eq!(error, "org/tiny holds a \"P\", which is not supported; supported are FluxPipeline, X");
    assert_eq!(case.state.lock().unwrap().log, ["model_index.json 0-"]);
}

/// As where a folder is opened: diffusers' shards before its single file, and what is complete before what is not.
#[test]
fn of_a_file_and_shards_the_preferred_ones_are_fetched() {
    let case = Case::new();
    let index = "transformer/diffusion_pytorch_model.safetensors.index.json";
    let map = br#"{"weight_map": {"e": "a.safetensors"}}"#;
    case.set(|state| {
        state.files.insert(index.into(), map.to_vec());
        state.files.insert("transformer/a.safetensors".into(), checkpoint(9));
        state.files.insert("text_encoder/model.safetensors".into(), checkpoint(8));
    });
    let dir = case.fetch().unwrap();
    assert!(dir.join("transformer/a.safetensors").exists() && !dir.join(LARGE).exists());
    assert!(dir.join("text_encoder/model.safetensors").exists() && !dir.join(SHARD).exists());
    let case = Case::new();
    case.set(|state| drop(state.files.insert(index.into(), map.to_vec())));
    let dir = case.fetch().unwrap();
    assert!(dir.join(LARGE).exists());
    let folder = PipelineFolder::open(Source::Dir(dir)).unwrap();
    assert!(folder.weights("transformer", None).unwrap().notes()[0].ends_with("safetensors is used instead"));
}

#[test]
fn weights_that_no_picture_needs_are_left_where_they_are() {
    let case = Case::new();
    case.set(|state| {
        let index = br#"{"_class_name": "P", "transformer": ["diffusers", "T"], "safety_checker": ["x", "S"]}"#;
        state.files.insert("model_index.json".into(), index.to_vec());
        state.files.insert("safety_checker/pytorch_model.bin".into(), vec![0; 99]);
        state.files.insert("safety_checker/config.json".into(), b"{}".to_vec());
        // Nobody can say where an empty file ends, and tokenizers have some.
        state.files.insert("transformer/merges.txt".into(), Vec::new());
    });
    let dir = case.fetch().unwrap();
    assert!(!dir.join("safety_checker/pytorch_model.bin").exists());
    assert_eq!(fs::read(dir.join("transformer/merges.txt")).unwrap(), b"");
    let mut case = case;
    case.hub.settings.offline = true;
    assert_eq!(case.fetch().unwrap(), dir);
}
