//! Where files go: whether they can, and whole or not at all.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

/// As Linux: more links than this go in a circle.
const MOST_LINKS: usize = 40;

/// The folder that will hold a file of this name, which is seen to be a name that can be written.
///
/// # Errors
/// A folder that is not there, another thing in the file's place, a name that the system does not take.
pub fn check(path: &Path) -> Result<PathBuf> {
    let failed = || cannot_write(path);
    let target = follow(path)?;
    let folder = folder_of(&target);
    if !folder.is_dir() {
        let why = if folder.exists() { "it is no folder" } else { "the folder is not there" };
        bail!("cannot write to {}: {why}", folder.display());
    }
    match fs::symlink_metadata(&target) {
        Ok(there) if there.is_dir() => bail!("{}: it is a folder", failed()),
        Ok(there) if !there.is_file() => bail!("{}: it is no file", failed()),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(failed),
        _ => Ok(folder.into()),
    }
}

/// Writes a whole file or none. Where there is a link, it stays and its target is written.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = || cannot_write(path);
    let target = follow(path)?;
    check(path)?;
    let mut file = temporary(folder_of(&target))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).with_context(failed)?;
    file.persist(&target).map_err(|e| e.error).with_context(failed)?;
    Ok(())
}

/// A file to write aside and rename, so that nobody sees half of it. Also shows whether the folder takes a file at all.
pub fn temporary(folder: &Path) -> Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".xdit-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // what any other new file gets; the system takes the user's mask off
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder).with_context(|| format!("cannot write to {}", folder.display()))
}

/// What a link stands for, at the end of all links; it need not be there.
fn follow(path: &Path) -> Result<PathBuf> {
    let mut target = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&target) {
            Ok(next) => target = folder_of(&target).join(next),
            // no link, or nothing
            Err(_) => return Ok(target),
        }
    }
    bail!("{}: its links go in a circle", cannot_write(path))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}
