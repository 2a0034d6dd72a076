//! The published configurations in full size, without weights: as many parameters as upstream counts.

use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::{Device, FloatDType};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use xdit_core::checkpoint::{Loader, Weights};
use xdit_models::dit::flux::Flux;
use xdit_models::dit::hunyuan_dit::HunyuanDit;
use xdit_models::dit::pixart::PixArt;
use xdit_models::dit::sd3::Sd3;
use xdit_models::error::ModelError;
use xdit_models::text::bert::Bert;
use xdit_models::text::clip::ClipText;
use xdit_models::text::t5::T5Encoder;
use xdit_models::vae::autoencoder_kl::AutoencoderKl;
use xdit_testing::golden;

#[derive(Deserialize)]
struct Published {
    class: String,
    config: Value,
    parameters: u64,
    /// Tables in the checkpoint that are not learned.
    buffers: BTreeMap<String, u64>,
    /// Parts that text to image needs alone, or not at all.
    parts: BTreeMap<String, u64>,
}

const ALL: Range<usize> = 0..usize::MAX;

/// Nothing is read: a tensor that is missing takes no memory.
fn count<C: DeserializeOwned, M>(config: &Value, build: impl FnOnce(&Loader<'_>, &C) -> Result<M, ModelError>) -> u64 {
    let weights = Weights::from_static("model", &[]).expect("no files");
    let loader = Loader::new(&weights, &Device::flex(), FloatDType::BF16);
    build(&loader, &C::deserialize(config).expect("a configuration")).expect("a model");
    loader.n_params()
}

#[test]
fn as_upstream_counts() {
    #[derive(Deserialize)]
    struct Counts {
        models: BTreeMap<String, Published>,
    }
    let text = std::fs::read_to_string(golden::dir().join("parameter_counts.json")).expect("counts");
    let counts: Counts = serde_json::from_str(&text).expect("counts");
    for (name, model) in counts.models {
        let buffers: u64 = model.buffers.values().sum();
        let part = |key: &str| model.parts.get(key).copied().unwrap_or(0);
        let (got, want) = match model.class.as_str() {
            "FluxTransformer2DModel" => (count(&model.config, |l, c| Flux::load(l, c, ALL)), model.parameters),
            "SD3Transformer2DModel" => (count(&model.config, |l, c| Sd3::load(l, c, ALL)), model.parameters + buffers),
            "PixArtTransformer2DModel" => (count(&model.config, |l, c| PixArt::load(l, c, ALL)), model.parameters),
            "HunyuanDiT2DModel" => (count(&model.config, |l, c| HunyuanDit::load(l, c, ALL)), model.parameters),
            "CLIPTextModel" => (count(&model.config, ClipText::load), model.parameters),
            "CLIPTextModelWithProjection" => (count(&model.config, ClipText::load_with_projection), model.parameters),
            "T5EncoderModel" => (count(&model.config, T5Encoder::load), model.parameters),
            "BertModel" => (count(&model.config, Bert::load), model.parameters - part("pooler")),
            "AutoencoderKL" => (count(&model.config, AutoencoderKl::load), part("decoder and post_quant_conv")),
            other => panic!("{name}: a {other}"),
        };
        println!("{name}: {got}");
        assert_eq!(got, want, "{name}");
    }
}
