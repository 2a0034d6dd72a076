//! Folders as people have them: which files are taken, and what is refused before anything is loaded.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::FloatDType;
use serde_json::{Value, json};
use xdit_core::checkpoint::Weights;
use xdit_core::observer::{Observer, Phase};
use xdit_models::pipeline::{Content, ModelSource, Options, OutputType, Pipeline, Request};
use xdit_testing::golden;

const TRANSFORMER: &str = "transformer/diffusion_pytorch_model.safetensors";
const TEXT_ENCODER: &str = "text_encoder/model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";

/// A copy of a golden folder, to be changed.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy(&golden::dir().join("pixart-256"), dir.path());
        Self(dir)
    }

    fn path(&self, rel: &str) -> PathBuf {
        self.0.path().join(rel)
    }

    /// Changes a JSON file.
    fn set(&self, rel: &str, key: &str, value: Value) {
        let path = self.path(rel);
        let mut all: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        all[key] = value;
        fs::write(path, all.to_string()).unwrap();
    }

    /// Puts an index and one shard, with what the single file `rel` has, beside it.
    fn shard(&self, rel: &str) -> PathBuf {
        let path = self.path(rel);
        let names: serde_json::Map<String, Value> = {
            let weights = Weights::open("x", std::slice::from_ref(&path)).unwrap();
            weights.names().map(|name| (name.into(), json!("a-00001-of-00001.safetensors"))).collect()
        };
        let shard = path.with_file_name("a-00001-of-00001.safetensors");
        fs::copy(&path, &shard).unwrap();
        let index = json!({ "metadata": {}, "weight_map": names }).to_string();
        fs::write(path.with_extension("safetensors.index.json"), index).unwrap();
        shard
    }

    fn open(&self, variant: Option<&str>, log: &mut Log) -> Result<Pipeline, String> {
        let options = Options { variant: variant.map(String::from), ..Options::new(FloatDType::F32) };
        let source = ModelSource::Folder(self.0.path().into());
        Pipeline::open(&source, options, xdit_comm::local::world, log).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn assert_refused(&self, message: &str) {
        let mut log = Log::default();
        let Err(error) = self.open(None, &mut log) else { panic!("opened, expected {message}") };
        assert!(error.contains(message) && error.lines().count() == 1, "{error}, expected {message}");
        assert!(!log.loaded, "weights were read");
    }

    fn latents(&self) -> (Vec<f32>, Vec<String>) {
        let mut log = Log::default();
        let mut pipeline = self.open(None, &mut log).unwrap();
        let request = Request {
            num_inference_steps: Some(2),
            height: Some(32),
            width: Some(32),
            resolution_binning: false,
            output: OutputType::Latent,
            ..Request::new("a cat")
        };
        let mut outputs = pipeline.generate(&request, &mut log).unwrap();
        let Content::Latent { values, .. } = outputs.remove(0).content else { panic!("no latents") };
        (values, log.warnings)
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match from.is_dir() {
            true => copy(&from, &to),
            false => assert!(fs::copy(from, to).is_ok()),
        }
    }
}

/// Sets the content of a checkpoint to zeros.
fn zero(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    bytes[8 + header..].fill(0);
    fs::write(path, bytes).unwrap();
}

#[derive(Default)]
struct Log {
    warnings: Vec<String>,
    loaded: bool,
}

impl Observer for Log {
    fn begin(&mut self, phase: Phase, _: &str, _: u64) {
        self.loaded |= phase == Phase::Load;
    }

    fn advance(&mut self, _: Phase, _: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn warn(&mut self, message: &str) {
        self.warnings.push(message.into());
    }
}

/// As diffusers 0.42.1 and transformers 5.23.0 do: shards of the one, the single file of the other.
#[test]
fn new_shards_beside_an_old_file() {
    let (expected, _) = Folder::new().latents();
    let folder = Folder::new();
    folder.shard(TRANSFORMER);
    zero(&folder.path(TRANSFORMER));
    zero(&folder.shard(TEXT_ENCODER));
    let (found, warnings) = folder.latents();
    assert!(found == expected, "another picture");
    assert!(!warnings.iter().any(|warning| warning.contains("instead")), "{warnings:?}");
    // What is preferred lacks a shard, or is cut: the other.
    let folder = Folder::new();
    fs::remove_file(folder.shard(TRANSFORMER)).unwrap();
    folder.shard(TEXT_ENCODER);
    let whole = fs::read(folder.path(TEXT_ENCODER)).unwrap();
    fs::write(folder.path(TEXT_ENCODER), &whole[..whole.len() / 2]).unwrap();
    let (found, warnings) = folder.latents();
    assert!(found == expected, "another picture");
    let told =
        |what: &str| warnings.iter().any(|warning| warning.contains(what) && warning.contains("is used instead"));
    assert!(told("does not exist") && told("is cut off: it has"), "{warnings:?}");
}

/// Of two shards with one tensor the last counts, whatever the index says; what else it names does not matter.
#[test]
fn repeated_and_superfluous_tensors() {
    let (expected, _) = Folder::new().latents();
    let folder = Folder::new();
    let first = folder.shard(TRANSFORMER);
    let last = first.with_file_name("b.safetensors");
    fs::copy(&first, &last).unwrap();
    zero(&first);
    let index = "transformer/diffusion_pytorch_model.safetensors.index.json";
    let mut map: Value = serde_json::from_str(&fs::read_to_string(folder.path(index)).unwrap()).unwrap();
    map["weight_map"]["no.such.tensor"] = json!("b.safetensors");
    fs::write(folder.path(index), map.to_string()).unwrap();
    let (found, warnings) = folder.latents();
    assert!(found == expected, "another picture");
    assert!(warnings.iter().any(|warning| warning.contains("tensors are in two files")), "{warnings:?}");
    assert!(
        warnings.iter().any(|warning| warning.contains("in none of the shards, \"no.such.tensor\"")),
        "{warnings:?}"
    );
}

/// What a component is, `model_index.json` says; its own configuration brings the settings alone.
#[test]
fn the_index_says_what_a_component_is() {
    let (expected, _) = Folder::new().latents();
    let folder = Folder::new();
    folder.set("transformer/config.json", "_class_name", json!("FluxTransformer2DModel"));
    folder.set("vae/config.json", "_class_name", json!("AsymmetricAutoencoderKL"));
    folder.set("text_encoder/config.json", "architectures", json!(["CLIPTextModel"]));
    folder.set("text_encoder/config.json", "model_type", json!("umt5"));
    assert!(folder.latents().0 == expected, "another picture");
    folder.set("model_index.json", "text_encoder", json!(["transformers", "UMT5EncoderModel"]));
    folder.assert_refused("text_encoder is a UMT5EncoderModel; this pipeline runs T5EncoderModel");
}

#[test]
fn all_components_are_checked_before_any_is_loaded() {
    let refused = |rel: &str, content: &[u8], message: &str| {
        let folder = Folder::new();
        fs::write(folder.path(rel), content).unwrap();
        folder.assert_refused(message);
    };
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 167335342\n";
    refused(VAE, pointer, "vae/diffusion_pytorch_model.safetensors is a Git LFS pointer to one of 167335342 bytes");
    refused(VAE, b"<!doctype html><html lang=\"en\">", "is a web page, not the file itself");
    refused(VAE, b"PK\x03\x04\0\0\x08\x08\0\0", "is a zip archive, as PyTorch saves pickled weights");
    refused(TEXT_ENCODER, b"Entry not found", "holds text in place of weights, \"Entry not found\"");
    refused(TRANSFORMER, b"", "0 bytes are too few");
    refused("vae/config.json", pointer, "vae/config.json is a Git LFS pointer");
    refused("scheduler/scheduler_config.json", b"<html>", "scheduler_config.json is a web page");
    let whole = fs::read(Folder::new().path(VAE)).unwrap();
    refused(VAE, &whole[..whole.len() - 1], "vae/diffusion_pytorch_model.safetensors is cut off: it has");

    let folder = Folder::new();
    fs::rename(folder.path(TEXT_ENCODER), folder.path("text_encoder/pytorch_model.bin")).unwrap();
    folder.assert_refused("text_encoder/pytorch_model.bin is pickled weights of PyTorch, which is not read here; take");
    let folder = Folder::new();
    fs::remove_dir_all(folder.path("vae")).unwrap();
    folder.assert_refused("vae");
    let folder = Folder::new();
    let method = json!({ "quant_method": "bitsandbytes", "load_in_4bit": true });
    folder.set("text_encoder/config.json", "quantization_config", method);
    folder.assert_refused("text_encoder/config.json is quantised with bitsandbytes (4 bit)");
}

#[test]
fn a_variant_is_used_where_it_is_and_must_be_somewhere() {
    let folder = Folder::new();
    fs::copy(folder.path(VAE), folder.path("vae/diffusion_pytorch_model.fp16.safetensors")).unwrap();
    let mut log = Log::default();
    folder.open(Some("fp16"), &mut log).unwrap();
    assert_eq!(log.warnings, ["text_encoder, transformer: no variant fp16, the plain weights are used"]);
    let error = folder.open(Some("ema"), &mut log).err().unwrap();
    let expected = "no component has weights of the variant \"ema\", there are \"fp16\", plain files without a variant";
    assert!(error.ends_with(expected), "{error}");
    fs::remove_file(folder.path(VAE)).unwrap();
    let mut log = Log::default();
    folder.open(None, &mut log).unwrap();
    assert_eq!(log.warnings, ["vae has no plain weights, those of the variant fp16 are used"]);
}
