//! Prompt to picture: pipelines, what differs between them, and what they are asked for.
//!
//! [`Pipeline`] holds what all pipelines share; what differs is an `architecture::Architecture`, one file each
//! ([`flux`], [`sd3`], [`pixart`], [`hunyuan_dit`]), found by its class name in [`registry`].

pub mod activations;
mod architecture;
mod bench;
pub mod binning;
pub mod components;
pub mod encoding;
pub mod error;
pub mod estimate;
pub mod geometry;
pub mod options;
pub mod registry;
pub mod request;
pub mod worker;

pub mod flux;
pub mod hunyuan_dit;
pub mod pixart;
pub mod sd3;

mod draw;
mod generate;
mod idle;
mod memory;
mod plan;
mod reading;
mod workers;

pub use self::bench::{Measured, Runs, Seconds};
pub use self::error::PipelineError;
pub use self::generate::Pipeline;
pub use self::memory::{ComponentMemory, Phases, Plan, RankMemory};
pub use self::options::{ModelSource, Options};
pub use self::request::{Content, Defaults, Output, OutputType, Request, RequestError, Settings};
