//! The pipelines that are built, by the `_class_name` of `model_index.json`.

use crate::pipeline::architecture::Architecture;
use crate::pipeline::flux::FluxPipeline;
use crate::pipeline::hunyuan_dit::HunyuanDitPipeline;
use crate::pipeline::pixart::{PIXART_ALPHA, PIXART_SIGMA};
use crate::pipeline::sd3::Sd3Pipeline;

/// All of them.
pub const ARCHITECTURES: &[&dyn Architecture] =
    &[&FluxPipeline, &Sd3Pipeline, &PIXART_ALPHA, &PIXART_SIGMA, &HunyuanDitPipeline];

/// The pipeline of this class, if it is built.
pub fn find(class_name: &str) -> Option<&'static dyn Architecture> {
    ARCHITECTURES.iter().copied().find(|a| a.class_name() == class_name)
}

/// Their class names.
pub fn class_names() -> Vec<&'static str> {
    ARCHITECTURES.iter().map(|a| a.class_name()).collect()
}
