//! Diffusion transformers and the pipelines around them: prompt to embeddings to latents to picture.
//!
//! Start at [`pipeline::Pipeline`]. A model is one file that can be read beside upstream's: [`flux`], [`clip`], [`t5`],
//! [`autoencoder_kl`]. What differs between pipelines is an [`registry::Architecture`] ([`flux_pipeline`]).
#![forbid(unsafe_code)]

pub mod pipeline;
pub mod registry;

pub mod flux_pipeline;

pub mod autoencoder_kl;
pub mod clip;
pub mod flux;
pub mod t5;

pub mod builtin;
pub mod components;
pub mod error;
pub mod hub;
pub mod latents;
pub mod tokenizer;
