//! Diffusion transformers and the pipelines around them: prompt to embeddings to latents to picture.
//!
//! Start at [`pipeline::Pipeline`]. A model is one file that can be read beside upstream's: [`flux`], [`clip`], [`t5`],
//! [`autoencoder_kl`]. What differs between pipelines is a [`registry::Architecture`] ([`flux_pipeline`]).
//!
//! ```
//! use burn::tensor::{Device, FloatDType};
//! use xdit_models::pipeline::{Content, ModelSource, Options, Pipeline, Request};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let options = Options { device: Device::flex(), dtype: FloatDType::F32, variant: None };
//! let mut pipeline = Pipeline::open(&ModelSource::Builtin, options, &mut ())?;
//! let request = Request { seed: 7, ..Request::new("a small blue square on a white background") };
//! let pictures = pipeline.generate(&request, &mut ())?;
//! let Content::Picture { width, height, rgb } = &pictures[0].content else { unreachable!() };
//! assert_eq!(rgb.len(), 3 * width * height);
//! # Ok(())
//! # }
//! ```
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
