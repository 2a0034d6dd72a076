//! What the tests of all crates share: golden cases and how to compare with them, ranks on threads, PipeFusion on one
//! device, the checker of drawn scenes and the distance of pictures.
#![forbid(unsafe_code)]

pub mod golden;
pub mod mesh;
pub mod oracle;
pub mod picture;
pub mod scene;
