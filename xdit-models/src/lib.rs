//! Diffusion transformers and the pipelines around them: prompt to embeddings to latents to picture.
//!
//! Start at [`pipeline::Pipeline`]. A model is one file that can be read beside upstream's: the transformers [`flux`],
//! [`sd3`], [`pixart`] and [`hunyuan_dit`], the encoders [`clip`], [`t5`] and [`bert`], the decoder [`autoencoder_kl`].
//! What differs between pipelines is a [`registry::Architecture`], in a file beside the transformer's
//! ([`flux_pipeline`]).
//!
//! ```
//! use burn::tensor::{Device, FloatDType};
//! use xdit_models::pipeline::{Content, ModelSource, Options, Pipeline, Request};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let options = Options::on(Device::flex(), FloatDType::F32);
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
pub mod request;

pub mod flux_pipeline;
pub mod hunyuan_dit_pipeline;
pub mod pixart_pipeline;
pub mod sd3_pipeline;

pub mod flux;
pub mod hunyuan_dit;
pub mod pixart;
pub mod sd3;

pub mod autoencoder_kl;
pub mod bert;
pub mod clip;
pub mod t5;

pub mod binning;
pub mod builtin;
pub mod components;
pub mod error;
pub mod hub;
pub mod latents;
pub mod parts;
pub mod ranks;
pub mod tokenizer;
