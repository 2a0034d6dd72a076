//! The same checks on a folder on disk and on one that is built in.

use std::path::PathBuf;

use safetensors::tensor::{Dtype, TensorView, serialize};
use serde::Deserialize;
use serde_json::Value;

use super::*;
use crate::checkpoint::LoadError;

/// Files by path, opened from disk and from memory; both must give the same.
struct Tree(Vec<(String, Vec<u8>)>);

impl Tree {
    fn new(index: &str) -> Self {
        Self(vec![]).with("model_index.json", index)
    }

    fn with(mut self, path: &str, bytes: impl AsRef<[u8]>) -> Self {
        self.0.push((path.into(), bytes.as_ref().to_vec()));
        self
    }

    /// `look` at both; what it says must be the same but for where the root is.
    #[track_caller]
    fn look(&self, look: impl Fn(&Result<PipelineFolder, LoadError>) -> String) -> String {
        let dir = tempfile::tempdir().unwrap();
        for (path, bytes) in &self.0 {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let files: Vec<_> = self
            .0
            .iter()
            .map(|(path, bytes)| EmbeddedFile { path: path.clone().leak(), bytes: bytes.clone().leak() })
            .collect();
        let on_disk = look(&PipelineFolder::open(Source::Dir(dir.path().into())));
        let built_in = look(&PipelineFolder::open(Source::Embedded(files.leak())));
        let on_disk = on_disk.replace(dir.path().to_str().unwrap(), "(built-in)");
        assert_eq!(on_disk, built_in);
        on_disk
    }

    /// The message with which opening fails.
    #[track_caller]
    fn refused(&self) -> String {
        self.look(|folder| folder.as_ref().unwrap_err().to_string())
    }

    /// The files' names and the variant that `weights` gives, or its message.
    #[track_caller]
    fn weights(&self, component: &str, variant: Option<&str>) -> String {
        self.look(|folder| match folder.as_ref().unwrap().weights(component, variant) {
            Err(error) => error.to_string(),
            Ok(weights) => {
                let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_string();
                let files: Vec<_> = weights.files().iter().map(name).collect();
                let names: Vec<_> = weights.names().collect();
                let notes = weights.notes().iter().map(|note| format!("; {note}")).collect::<String>();
                format!("{} {:?} {}{notes}", files.join(" "), weights.variant(), names.join(" "))
            }
        })
    }
}

const INDEX: &str = r#"{
    "_class_name": "FluxPipeline", "_diffusers_version": "0.30.0", "requires_safety_checker": false, "scale": null,
    "transformer": ["diffusers", "FluxTransformer2DModel"], "text_encoder": ["transformers", "CLIPTextModel"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "image_encoder": [null, null]
}"#;

/// A checkpoint of one-element tensors.
fn checkpoint(names: &[&str]) -> Vec<u8> {
    let view = || TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
    serialize(names.iter().map(|name| (*name, view())), None).unwrap()
}

#[test]
fn reads_the_index() {
    let seen = Tree::new(INDEX).look(|folder| {
        let folder = folder.as_ref().unwrap();
        let names: Vec<_> = folder.components().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["safety_checker", "text_encoder", "transformer"]);
        assert_eq!(folder.absent(), ["image_encoder"]);
        assert_eq!(folder.extra("requires_safety_checker"), Some(&Value::Bool(false)));
        assert_eq!(folder.component("text_encoder").unwrap().class, "CLIPTextModel");
        assert_eq!(folder.class_name(), "FluxPipeline");
        folder.component("vae").unwrap_err().to_string()
    });
    assert_eq!(
        seen,
        "(built-in)/model_index.json: no component \"vae\", the pipeline has safety_checker, text_encoder, transformer"
    );
}

#[test]
fn refuses_what_is_no_pipeline() {
    let tree = Tree(vec![]).with("config.json", "{}");
    let message = tree.refused();
    assert_eq!(message, "(built-in) is not a pipeline folder: it has no model_index.json");
    let refused = |entry: &str| {
        let message = Tree::new(&format!(r#"{{"_class_name": "P", {entry}}}"#)).refused();
        message.strip_prefix("(built-in)/model_index.json: ").unwrap().to_string()
    };
    assert_eq!(
        refused(r#""vae": ["diffusers", null]"#),
        r#"entry "vae" is "[\"diffusers\",null]", expected ["library", "Class"] or [null, null]"#
    );
    assert_eq!(
        refused(r#""../vae": ["diffusers", "Vae"]"#),
        r#"entry "../vae" is "[\"diffusers\",\"Vae\"]", expected the name of a subfolder"#
    );
    assert_eq!(refused(r#""vae": {"a": 1}"#), r#"entry "vae" is "{\"a\":1}", expected a component or a plain value"#);
    assert_eq!(refused("1"), "key must be a string at line 1 column 22");
    assert!(Tree::new("{}").refused().ends_with("expected the name of a pipeline class"));
}

#[test]
fn config_errors_name_the_file() {
    #[derive(Debug, Deserialize)]
    struct Config {
        heads: usize,
    }
    let tree = Tree::new(INDEX).with("transformer/config.json", r#"{"heads": 4}"#);
    tree.look(|folder| {
        let config: Config = folder.as_ref().unwrap().config("transformer", "config.json").unwrap();
        assert_eq!(config.heads, 4);
        String::new()
    });
    let tree = Tree::new(INDEX).with("transformer/config.json", r#"{"heads": -4}"#);
    let message = tree.look(|folder| {
        let config = folder.as_ref().unwrap().config::<Config>("transformer", "config.json");
        config.unwrap_err().to_string()
    });
    assert!(message.starts_with("(built-in)/transformer/config.json: heads: invalid value: integer `-4`"), "{message}");
    let message = Tree::new(INDEX).look(|folder| {
        let config = folder.as_ref().unwrap().config::<Config>("transformer", "config.json");
        config.unwrap_err().to_string()
    });
    assert_eq!(message, "(built-in)/transformer/config.json does not exist");
}

#[test]
fn paths_stay_in_the_folder() {
    for path in ["../secret", "/etc/passwd", "a/../../b", "", "c:\\x", "."] {
        let message = Tree::new(INDEX).look(|folder| {
            let folder = folder.as_ref().unwrap();
            assert!(!folder.exists(path));
            folder.read_text(path).unwrap_err().to_string()
        });
        assert!(message.contains("is not the name of a file"), "{message}");
    }
}

#[test]
fn finds_weights_under_all_their_names() {
    let w = checkpoint(&["w"]);
    let index = |shard: &str| format!(r#"{{"metadata": {{}}, "weight_map": {{"w": "{shard}"}}}}"#);
    let tree =
        |files: &[(&str, &[u8])]| files.iter().fold(Tree::new(INDEX), |tree, (path, bytes)| tree.with(path, bytes));

    let plain = tree(&[("transformer/diffusion_pytorch_model.safetensors", &w)]);
    assert_eq!(plain.weights("transformer", None), "diffusion_pytorch_model.safetensors None w");
    // The variant is not there for this component: the plain file it is.
    assert_eq!(plain.weights("transformer", Some("fp16")), "diffusion_pytorch_model.safetensors None w");

    let fp16 = tree(&[("text_encoder/model.fp16.safetensors", &w)]);
    let found = "model.fp16.safetensors Some(\"fp16\") w";
    assert_eq!(fp16.weights("text_encoder", Some("fp16")), found);
    assert_eq!(fp16.weights("text_encoder", None), found);

    let own = tree(&[("safety_checker/diffusion_pytorch_model.safetensors", &w)]);
    assert_eq!(own.weights("safety_checker", None), "diffusion_pytorch_model.safetensors None w");

    for (index_name, shard) in [
        ("model.safetensors.index.fp16.json", "model.fp16-00001-of-00001.safetensors"),
        ("model.safetensors.fp16.index.json", "model-00001-of-00001.fp16.safetensors"),
        ("model.fp16.safetensors.index.json", "model.fp16-00001-of-00001.safetensors"),
    ] {
        let sharded = tree(&[
            (&format!("text_encoder/{index_name}"), index(shard).as_bytes()),
            (&format!("text_encoder/{shard}"), &w),
        ]);
        assert_eq!(sharded.weights("text_encoder", Some("fp16")), format!("{shard} Some(\"fp16\") w"));
    }
}

#[test]
fn says_what_it_looked_for() {
    assert_eq!(
        Tree::new(INDEX).weights("text_encoder", None),
        "(built-in)/text_encoder has no weights, looked for model.safetensors, model.safetensors.index.json, \
         model.bf16.safetensors, model.safetensors.index.bf16.json, model.safetensors.bf16.index.json, \
         model.bf16.safetensors.index.json, model.fp16.safetensors, model.safetensors.index.fp16.json, \
         model.safetensors.fp16.index.json, model.fp16.safetensors.index.json"
    );
    assert_eq!(
        Tree::new(INDEX).weights("text_encoder", Some("../x")),
        "variant \"../x\" is not a word of letters, digits, '-' and '_'"
    );
}

#[test]
fn an_index_must_fit_its_shards() {
    let base = "transformer/diffusion_pytorch_model";
    let index = |map: &str| {
        Tree::new(INDEX)
            .with(&format!("{base}.safetensors.index.json"), format!(r#"{{"weight_map": {map}}}"#))
            .with("transformer/a.safetensors", checkpoint(&["x", "extra"]))
            .with("transformer/b.safetensors", checkpoint(&["y"]))
            .weights("transformer", None)
    };
    assert_eq!(index(r#"{"x": "a.safetensors", "y": "b.safetensors"}"#), "a.safetensors b.safetensors None extra x y");
    let refused = |map: &str| {
        let message = index(map);
        let file = format!("(built-in)/{base}.safetensors.index.json: ");
        message.strip_prefix(&file).expect(&message).to_string()
    };
    assert_eq!(
        refused(r#"{"x": "a.safetensors", "y": "c.safetensors", "z": "c.safetensors"}"#),
        "shard \"c.safetensors\" with 2 tensors, \"y\" among them, does not exist"
    );
    // A tensor in another shard than the index says, or in none: as in diffusers, no model may need it.
    let elsewhere = r#"{"x": "b.safetensors", "y": "b.safetensors", "z": "a.safetensors"}"#;
    assert_eq!(
        index(elsewhere),
        format!(
            "a.safetensors b.safetensors None extra x y; \
             (built-in)/{base}.safetensors.index.json: 1 tensors are in none of the shards, \"z\" for one"
        )
    );
    assert_eq!(
        refused(r#"{"x": "../vae/a.safetensors"}"#),
        "\"../vae/a.safetensors\" is not the name of a file in its folder"
    );
    assert!(index("{}").ends_with("has no weights, looked for weight_map"));
}

/// Relative to what was taken before, the single file in any case, this was an error of 0.75 in diffusers' components.
#[test]
fn new_shards_beside_an_old_file_follow_the_library() {
    let sharded = |folder: &str, base: &str| {
        Tree::new(INDEX)
            .with(&format!("{folder}/{base}.safetensors"), checkpoint(&["old"]))
            .with(&format!("{folder}/{base}.safetensors.index.json"), r#"{"weight_map": {"new": "a.safetensors"}}"#)
    };
    let both = |folder, base| sharded(folder, base).with(&format!("{folder}/a.safetensors"), checkpoint(&["new"]));
    assert_eq!(both("transformer", "diffusion_pytorch_model").weights("transformer", None), "a.safetensors None new");
    assert_eq!(both("text_encoder", "model").weights("text_encoder", None), "model.safetensors None old");
    // What is preferred is incomplete: the other serves, and it is said.
    assert_eq!(
        sharded("transformer", "diffusion_pytorch_model").weights("transformer", None),
        "diffusion_pytorch_model.safetensors None old; \
         (built-in)/transformer/diffusion_pytorch_model.safetensors.index.json: shard \"a.safetensors\" with 1 tensors, \
         \"new\" among them, does not exist; transformer/diffusion_pytorch_model.safetensors is used instead"
    );
    let cut = checkpoint(&["old"]);
    let cut = Tree::new(INDEX)
        .with("text_encoder/model.safetensors", &cut[..cut.len() - 1])
        .with("text_encoder/model.safetensors.index.json", r#"{"weight_map": {"new": "a.safetensors"}}"#)
        .with("text_encoder/a.safetensors", checkpoint(&["new"]));
    assert_eq!(
        cut.weights("text_encoder", None),
        "a.safetensors None new; (built-in)/text_encoder/model.safetensors is cut off: it has 67 bytes and its header \
         speaks of 68; download it again; text_encoder/model.safetensors.index.json is used instead"
    );
    // Nothing to fall back to: what is wrong with the preferred one.
    let broken = Tree::new(INDEX)
        .with("text_encoder/model.safetensors", "Entry not found")
        .with("text_encoder/model.safetensors.index.json", r#"{"weight_map": {"new": "a.safetensors"}}"#);
    let message = broken.weights("text_encoder", None);
    assert_eq!(
        message,
        "(built-in)/text_encoder/model.safetensors holds text in place of weights, \"Entry not found\"; download it again"
    );
}

#[test]
fn other_formats_are_named() {
    let files = |files: &[&str]| {
        let tree = files.iter().fold(Tree::new(INDEX), |tree, file| tree.with(&format!("text_encoder/{file}"), "x"));
        tree.weights("text_encoder", None)
    };
    let pickled = files(&["config.json", "pytorch_model.bin"]);
    assert!(
        pickled.starts_with("(built-in)/text_encoder/pytorch_model.bin is pickled weights of PyTorch"),
        "{pickled}"
    );
    assert!(files(&["m.ckpt"]).contains("pickled") && files(&["q8_0.gguf"]).contains("quantised"));
    assert!(files(&["tf_model.h5"]).contains("TensorFlow") && files(&["flax_model.msgpack"]).contains("Flax"));
    let renamed = files(&["clip_l.safetensors"]);
    assert!(renamed.contains("has \"clip_l.safetensors\", but not under a name that is looked for"), "{renamed}");
    let html = Tree::new("<!DOCTYPE html><html></html>").refused();
    assert!(html.starts_with("(built-in)/model_index.json is a web page"), "{html}");
}

#[test]
fn quantised_weights_are_named_before_they_are_read() {
    let check = |config: &str, file: Vec<u8>| {
        let tree = Tree::new(INDEX).with("text_encoder/config.json", config);
        tree.with("text_encoder/model.safetensors", file).look(|folder| {
            let checked = folder.as_ref().unwrap().check_weights("text_encoder", None);
            checked.map_or_else(|error| error.to_string(), |weights| weights.component().into())
        })
    };
    let plain = || checkpoint(&["w"]);
    assert_eq!(check(r#"{"quantization_config": null}"#, plain()), "text_encoder");
    for (config, method) in [
        (
            r#"{"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"}"#,
            "bitsandbytes (nf4)",
        ),
        (r#"{"quant_method": "bitsandbytes", "load_in_8bit": true}"#, "bitsandbytes (8 bit)"),
        (r#"{"quant_method": "torchao", "quant_type": "int8wo"}"#, "torchao (int8wo)"),
        (r#"{"quant_method": "fp8"}"#, "fp8"),
        ("{}", "a method without a name"),
    ] {
        let message = check(&format!(r#"{{"quantization_config": {config}}}"#), plain());
        let expected =
            format!("(built-in)/text_encoder/config.json is quantised with {method}, which is not read here");
        assert!(message.starts_with(&expected), "{message}");
    }
    for (tensor, method) in [
        ("h.weight.quant_state.bitsandbytes__nf4", "bitsandbytes (nf4)"),
        ("h.weight.absmax", "bitsandbytes (4 bit)"),
        ("h.SCB", "bitsandbytes (8 bit)"),
        ("h.qweight", "GPTQ"),
        ("h.weight_qdata", "torchao"),
        ("scaled_fp8", "fp8"),
    ] {
        let message = check("{}", checkpoint(&["w", tensor]));
        assert!(message.contains(&format!("model.safetensors is quantised with {method}")), "{message}");
    }
    for (dtype, method) in [(Dtype::F8_E4M3, "fp8"), (Dtype::I8, "integers of 8 bit")] {
        let view = TensorView::new(dtype, vec![2, 2], &[0; 4]).unwrap();
        let message = check("{}", serialize([("h.weight", view)], None).unwrap());
        assert!(message.contains(method), "{message}");
    }
    // What people do have: places of tokens as integers.
    let view = TensorView::new(Dtype::I64, vec![1, 2], &[0; 16]).unwrap();
    assert_eq!(check("{}", serialize([("embeddings.position_ids", view)], None).unwrap()), "text_encoder");
    assert!(check(r#"{"transformers_weights": "x.safetensors"}"#, plain()).contains("transformers_weights is"));
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n".to_vec();
    assert!(check("{}", pointer.clone()).contains("model.safetensors is a Git LFS pointer to one of 5 bytes"));
    assert!(check(std::str::from_utf8(&pointer).unwrap(), plain()).contains("config.json is a Git LFS pointer"));
}

#[test]
fn a_variant_must_be_somewhere() {
    let w = checkpoint(&["w"]);
    let tree = Tree::new(INDEX)
        .with("transformer/diffusion_pytorch_model.safetensors", &w)
        .with("text_encoder/model.safetensors", &w)
        .with("text_encoder/model.fp16.safetensors", &w);
    let lacking = |variant: &str| {
        tree.look(|folder| match folder.as_ref().unwrap().without_variant(variant) {
            Ok(names) => names.join(" "),
            Err(error) => error.to_string(),
        })
    };
    assert_eq!(lacking("fp16"), "transformer");
    let message = "(built-in): no component has weights of the variant \"bf16\", there are \"fp16\", plain files without a variant";
    assert_eq!(lacking("bf16"), message);
}

#[test]
fn huge_and_deep_files_are_refused_at_once() {
    let start = std::time::Instant::now();
    let index = |text: String| {
        Tree::new(INDEX)
            .with("transformer/diffusion_pytorch_model.safetensors.index.json", text)
            .weights("transformer", None)
    };
    let entries: String = (0..200_000).map(|i| format!(r#""{i}": "a.safetensors","#)).collect();
    assert!(index(format!(r#"{{"weight_map": {{{entries}"z": "a.safetensors"}}}}"#)).contains("with 200001 tensors"));
    assert!(index(format!(r#"{{"weight_map": {}"#, r#"{"a":"#.repeat(1 << 20))).contains("invalid type"));
    assert!(index(format!(r#"{{"metadata": {}"#, "[".repeat(1 << 20))).contains("EOF"));
    assert!(index(" ".repeat((25 << 20) + 1)).contains("is larger than the limit"));
    assert!(Tree::new(&"[".repeat(1 << 20)).refused().contains("line 1"));
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}
