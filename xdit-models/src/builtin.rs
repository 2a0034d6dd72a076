//! The model inside the program: a small Flux that was trained to draw scenes of coloured shapes.
//!
//! It is an ordinary diffusers folder, `xdit-models/tiny-flux`, and is read as one. `xdit-testing/tiny-flux` holds its
//! training.

use xdit_core::folder::EmbeddedFile;

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(EmbeddedFile { path: $path, bytes: include_bytes!(concat!("../tiny-flux/", $path)) }),*]
    };
}

/// All files of the folder.
pub const FILES: &[EmbeddedFile] = files![
    "model_index.json",
    "xdit.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer_2/special_tokens_map.json",
    "tokenizer_2/spiece.model",
    "tokenizer_2/tokenizer.json",
    "tokenizer_2/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];
