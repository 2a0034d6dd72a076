//! The headers that CubeCL's kernels include: our own, in place of the toolkit's, so that none is needed at run time.
//!
//! CubeCL 0.11.3 includes `cuda_fp16.h` and `cuda_bf16.h` where a kernel has numbers of these types, and `mma.h` for products
//! of tiles (`cubecl-cpp/src/cuda/ty.rs` lists which type asks for which). What it calls of them is in its `shared/unary.rs`,
//! `shared/binary.rs`, `shared/mma.rs` and `cuda/plane.rs`. Those of `cuda/barrier`, `cooperative_groups.h`, `cuComplex.h`,
//! `cuda_fp8.h` and smaller types are not here: no kernel that Burn chooses without autotune includes them.
//!
//! `tests/cuda_burn.rs` runs Burn's operations with these.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::CudaError;
use super::kernels;

const FILES: [(&str, &str); 4] = [
    ("cuda_fp16.h", include_str!("headers/cuda_fp16.h")),
    ("cuda_bf16.h", include_str!("headers/cuda_bf16.h")),
    ("floats16.h", include_str!("headers/floats16.h")),
    ("mma.h", include_str!("headers/mma.h")),
];

/// Sees to it that the headers are on disk: beside the kernels, where that can be written, else in a folder for temporary
/// files. Gives the folder whose `include` they are in, as CubeCL asks for it.
///
/// # Errors
/// Nothing can be written.
pub(super) fn on_disk() -> Result<PathBuf, CudaError> {
    let mut hash = Sha256::new();
    FILES.iter().for_each(|(name, text)| hash.update(format!("{name} {} {text}", text.len())));
    let hash: String = hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let kept = kernels::cache_folder().map(|cache| cache.join(format!("headers-{hash}")));
    if let Some(folder) = kept
        && write(&folder).is_ok()
    {
        return Ok(folder);
    }
    let folder = std::env::temp_dir().join(format!("xdit-headers-{hash}-{}", std::process::id()));
    // a folder of this name that is there already may be someone else's
    let written = fs::create_dir(&folder).and_then(|()| write(&folder));
    written.map_err(|error| CudaError::Headers { folder: folder.clone(), error })?;
    Ok(folder)
}

/// Writes what isn't there as it should be, each file in one step: other processes may do the same.
fn write(folder: &Path) -> std::io::Result<()> {
    let include = folder.join("include");
    fs::create_dir_all(&include)?;
    for (name, text) in FILES {
        let file = include.join(name);
        if fs::read(&file).is_ok_and(|there| there == text.as_bytes()) {
            continue;
        }
        let part = include.join(format!("{name}.{}.part", std::process::id()));
        fs::write(&part, text)?;
        fs::rename(&part, &file)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_written_once_and_mended() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        let file = |name: &str| folder.path().join("include").join(name);
        let written = || fs::metadata(file("mma.h")).unwrap().modified().unwrap();
        let first = written();
        fs::write(file("cuda_fp16.h"), "damaged").unwrap();
        write(folder.path()).unwrap();
        assert_eq!(written(), first);
        for (name, text) in FILES {
            assert_eq!(fs::read_to_string(file(name)).unwrap(), text, "{name}");
        }
        assert_eq!(fs::read_dir(folder.path().join("include")).unwrap().count(), FILES.len());
    }

    /// What they include would have to be found, too.
    #[test]
    fn headers_include_only_each_other() {
        let included = |line: &str| line.strip_prefix("#include ").map(|name| name.trim_matches('"').to_owned());
        for name in FILES.iter().flat_map(|(_, text)| text.lines().filter_map(included)) {
            assert!(FILES.iter().any(|(file, _)| *file == name), "{name}");
        }
    }
}
