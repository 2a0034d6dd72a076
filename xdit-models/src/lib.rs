//! Diffusion transformers and the pipelines around them: prompt to embeddings to latents to picture.
//!
//! Start at [`pipeline::Pipeline`]. A model is one file that can be read beside upstream's: the transformers in [`dit`],
//! the encoders in [`text`], the decoders in [`vae`]. What differs between pipelines is a
//! `pipeline::architecture::Architecture`, one file each ([`pipeline::flux`]).
//!
//! ```
//! use burn::tensor::FloatDType;
//! use xdit_models::pipeline::{Content, ModelSource, Options, Pipeline, Request};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let options = Options::new(FloatDType::F32);
//! let mut pipeline = Pipeline::open(&ModelSource::Builtin, options, xdit_comm::local::world, &mut ())?;
//! let request = Request { seed: 7, ..Request::new("a small blue square on a white background") };
//! let pictures = pipeline.generate(&request, &mut ())?;
//! let Content::Picture { width, height, rgb } = &pictures[0].content else { unreachable!() };
//! assert_eq!(rgb.len(), 3 * width * height);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod pipeline;

pub mod dit;
pub mod text;
pub mod vae;

pub mod bench;
pub mod builtin;
pub mod error;
pub mod hub;

/// The example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
