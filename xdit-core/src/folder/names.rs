//! Names that come out of files and become paths.

use std::path::{Component, Path};

/// Whether `rel` is a path that cannot lead out of the root.
pub(super) fn is_inside(rel: &str) -> bool {
    !rel.is_empty()
        && !rel.contains(['\\', ':', '\0'])
        && Path::new(rel).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Whether `name` is a single part of a path.
pub(super) fn is_file_name(name: &str) -> bool {
    is_inside(name) && !name.contains('/')
}

/// Whether `name` can be a component's: it becomes a folder's name and part of messages.
pub(super) fn is_component_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Whether `variant` can be part of a file's name.
pub(super) fn is_variant(variant: &str) -> bool {
    !variant.is_empty()
        && variant.len() <= 64
        && variant.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}
