//! What measurements need beside a pipeline: configurations without weights, the work that they are, single operations.
//!
//! [`Pipeline::bench`](crate::pipeline::Pipeline::bench) measures; `xdit bench` shows.

pub mod ops;
pub mod published;
pub mod text;
pub mod work;
