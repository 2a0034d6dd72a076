//! Whether a file is what the hub lists.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha1::{Digest, Sha1};
use sha2::Sha256;

use super::listing::RemoteFile;

/// The hash of the file at `path`, of the kind that names its content in the cache: SHA-256 of large files, git's
/// hash of small ones. `None` if that name is no hash, as on some mirrors. `look` is called with the bytes that have
/// been read, and ends it.
pub(super) fn hash<E>(
    path: &Path,
    file: &RemoteFile,
    mut look: impl FnMut(u64) -> Result<(), E>,
) -> Result<Result<Option<String>, E>, io::Error> {
    let is_hex = file.blob.bytes().all(|b| b.is_ascii_hexdigit());
    let mut hasher = match file.blob.len() {
        64 if is_hex => Hasher::Sha256(Sha256::new()),
        40 if is_hex => Hasher::Git(Sha1::new_with_prefix(format!("blob {}\0", file.size))),
        _ => return Ok(Ok(None)),
    };
    let mut source = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        let n = source.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        match &mut hasher {
            Hasher::Sha256(hasher) => hasher.update(&buffer[..n]),
            Hasher::Git(hasher) => hasher.update(&buffer[..n]),
        }
        done += n as u64;
        if let Err(error) = look(done) {
            return Ok(Err(error));
        }
    }
    let digest = match hasher {
        Hasher::Sha256(hasher) => hasher.finalize().to_vec(),
        Hasher::Git(hasher) => hasher.finalize().to_vec(),
    };
    Ok(Ok(Some(digest.iter().map(|byte| format!("{byte:02x}")).collect())))
}

enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
}
