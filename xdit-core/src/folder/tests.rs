//! The same checks on a folder on disk and on one that is built in.

use safetensors::tensor::{Dtype, TensorView, serialize};

use super::*;

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
                format!("{} {:?} {}", files.join(" "), weights.variant(), names.join(" "))
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
    assert!(message.starts_with("(built-in)/transformer/config.json: invalid value: integer `-4`"), "{message}");
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
    assert_eq!(
        refused(r#"{"x": "b.safetensors", "y": "b.safetensors", "z": "a.safetensors"}"#),
        "tensor \"x\" is not in \"b.safetensors\", and 1 more are not where the index says"
    );
    assert_eq!(
        refused(r#"{"x": "../vae/a.safetensors"}"#),
        "\"../vae/a.safetensors\" is not the name of a file in its folder"
    );
    assert!(index("{}").ends_with("has no weights, looked for weight_map"));
}
