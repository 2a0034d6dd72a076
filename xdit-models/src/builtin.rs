//! stub
use xdit_core::folder::EmbeddedFile;
pub const FILES: &[EmbeddedFile] = &[];
