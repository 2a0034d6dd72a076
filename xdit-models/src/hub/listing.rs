//! The files of a repository, as the hub lists them.

use serde::Deserialize;

/// A file of a repository.
#[derive(Debug, Clone)]
pub(super) struct RemoteFile {
    /// Path in the repository.
    pub path: String,
    /// Name of its content in the cache: the SHA-256 of large files, git's id of small ones.
    pub blob: String,
    /// Size in bytes.
    pub size: u64,
}

/// The files of a repository at one commit.
#[derive(Debug)]
pub(super) struct Listing {
    pub commit: String,
    pub files: Vec<RemoteFile>,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
}

impl Listing {
    /// Parses the hub's answer. Fails with what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let info: Info = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if !is_commit(&info.sha) {
            return Err(format!("{:?} is no commit", info.sha));
        }
        let mut files = Vec::new();
        for sibling in info.siblings {
            let path = sibling.rfilename;
            if !is_path(&path) {
                continue;
            }
            let blob = sibling.lfs.map(|lfs| lfs.sha256).or(sibling.blob_id);
            let is_id = |id: &String| id.len() >= 8 && id.bytes().all(|b| b.is_ascii_alphanumeric());
            let (Some(blob), Some(size)) = (blob.filter(is_id), sibling.size) else {
                return Err(format!("no size or no id of {path:?}"));
            };
            files.push(RemoteFile { path, blob, size });
        }
        Ok(Self { commit: info.sha, files })
    }

    /// The file at `path`.
    pub fn file(&self, path: &str) -> Option<&RemoteFile> {
        self.files.iter().find(|file| file.path == path)
    }
}

/// Whether `name` is a commit's hash rather than a branch or a tag.
pub(super) fn is_commit(name: &str) -> bool {
    name.len() == 40 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether `path` stays below the folder that it is joined to, and in an address is what it is.
fn is_path(path: &str) -> bool {
    path.bytes().all(|b| b.is_ascii_graphic() && !b"\\:?#%".contains(&b))
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}
