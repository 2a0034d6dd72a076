//! Pipelines by their id on the Hugging Face hub, in the cache that the Python libraries use too.
//!
//! Only what a pipeline needs is taken: `model_index.json`, `xdit.json` if there is one, and for each component its
//! configuration, its tokenizer and one set of safetensors. A file becomes visible in the cache when it is whole and
//! has the hash that the hub lists; a download that was cut is taken up where it ended.
//!
//! - `settings`: what the environment says · `error`, `event`: what callers are told
//! - `client`: requests and what their answers mean · `listing`: the files of a repository
//! - `plan`: which of them a pipeline needs · `cached`: whether the cache has these
//! - `cache`: the cache's layout · `download`: one file into it · `verify`: its hash
//! - `fetch`: all of this together · `headers`: the same without the weights' bytes

mod cache;
mod cached;
mod client;
mod download;
mod error;
mod event;
mod fetch;
mod headers;
mod listing;
mod plan;
mod settings;
mod verify;
mod wanted;

#[cfg(test)]
mod tests;

pub use error::HubError;
pub use event::DownloadEvent;
pub use fetch::{fetch, fetch_observed};
pub use headers::{Headers, fetch_headers};
pub use wanted::Wanted;
