//! What the tests of all crates share: golden cases and how to compare with them, ranks on threads, PipeFusion on one device, and the checker of
//! drawn scenes.
#![forbid(unsafe_code)]

pub mod golden;
pub mod mesh;
pub mod oracle;
pub mod scene;
