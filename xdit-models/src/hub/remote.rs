//! The hub over HTTP: one request for the list of files, one for each file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::time::Duration;

use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::cache::{RepoCache, create_parent, is_commit};
use super::{DownloadEvent, Hub, HubError};

/// Largest list of files, in bytes. A repository of ten thousand files has about two million.
const MAX_LISTING: u64 = 64 << 20;
/// Tries without a single new byte before a download is given up.
const TRIES: u32 = 5;

/// One repository on the hub.
pub(super) struct Remote<'a> {
    hub: &'a Hub,
    repo: &'a str,
    agent: Agent,
}

/// The files of a repository at one commit.
#[derive(Debug)]
pub(super) struct Listing {
    pub commit: String,
    files: Vec<RemoteFile>,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemoteFile {
    /// Path in the repository.
    pub path: String,
    /// Name of its content in the cache: the SHA-256 of large files, git's id of small ones.
    pub blob: String,
    /// Size in bytes.
    pub size: u64,
}

impl Listing {
    pub fn file(&self, path: &str) -> Option<&RemoteFile> {
        self.files.iter().find(|file| file.path == path)
    }

    pub fn files(&self) -> &[RemoteFile] {
        &self.files
    }
}

impl<'a> Remote<'a> {
    pub fn new(hub: &'a Hub, repo: &'a str) -> Result<Self, HubError> {
        let mut tls = TlsConfig::builder();
        if let Some(path) = &hub.certificates {
            let pem = std::fs::read(path).map_err(|source| HubError::Io { path: path.clone(), source })?;
            let certificates: Vec<_> = parse_pem(&pem)
                .filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                })
                .collect();
            if certificates.is_empty() {
                return Err(HubError::Certificates { path: path.clone() });
            }
            tls = tls.root_certs(RootCerts::new_with_certs(&certificates));
        }
        let mut config = Agent::config_builder()
            .tls_config(tls.build())
            // The answers are told apart here, since some are no errors: 416 is "you have it all".
            .http_status_as_error(false)
            // The hub redirects to content servers, which must not see the token.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("xdit/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(hub.timeout))
            .timeout_connect(Some(hub.timeout))
            .timeout_recv_response(Some(hub.timeout))
            .timeout_per_read(Some(hub.timeout));
        let host = hub.endpoint.split("//").nth(1).unwrap_or("");
        if host.starts_with("127.0.0.1") || host.starts_with("localhost") {
            // A proxy's own loopback is not this one.
            config = config.proxy(None);
        }
        Ok(Self { hub, repo, agent: config.build().into() })
    }

    pub fn repo(&self) -> &'a str {
        self.repo
    }

    /// The files at `revision`, with their sizes.
    pub fn list(&self, revision: &str) -> Result<Listing, HubError> {
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
            #[serde(alias = "oid")]
            sha256: String,
            size: Option<u64>,
        }
        let revision = revision.replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}?blobs=true", self.hub.endpoint, self.repo);
        let answer = self.success(&url, self.get(&url, None)?)?;
        let wrong = |reason: String| HubError::Listing { url: url.clone(), reason };
        let text = answer
            .into_body()
            .into_with_config()
            .limit(MAX_LISTING)
            .read_to_string()
            .map_err(|source| HubError::Request { url: url.clone(), source: source.into() })?;
        let info: Info = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if !is_commit(&info.sha) {
            return Err(wrong("sha is not a commit".into()));
        }
        let mut files = Vec::new();
        for sibling in info.siblings {
            let path = sibling.rfilename;
            // Both become parts of a path in the cache. A name that cannot is of no use to a pipeline either.
            if !is_path(&path) {
                continue;
            }
            let (blob, size) = match sibling.lfs {
                Some(lfs) => (Some(lfs.sha256), lfs.size.or(sibling.size)),
                None => (sibling.blob_id, sibling.size),
            };
            let is_id = |id: &String| id.len() >= 8 && id.bytes().all(|b| b.is_ascii_alphanumeric());
            let (Some(blob), Some(size)) = (blob.filter(is_id), size) else {
                return Err(wrong(format!("no size or no id of {path:?}")));
            };
            files.push(RemoteFile { path, blob, size });
        }
        Ok(Listing { commit: info.sha.to_ascii_lowercase(), files })
    }

    /// Makes sure that the content of `file` is in the cache, continuing what is there of it.
    pub fn download(
        &self,
        cache: &RepoCache,
        commit: &str,
        file: &RemoteFile,
        progress: &mut dyn FnMut(DownloadEvent<'_>),
    ) -> Result<(), HubError> {
        if cache.has_blob(file) {
            return Ok(());
        }
        let _lock = cache.lock(&file.blob, self.hub.timeout)?;
        // The process that held the lock may have fetched it.
        if cache.has_blob(file) {
            return Ok(());
        }
        let path = cache.incomplete(&file.blob);
        create_parent(&path)?;
        let failed = |source| HubError::Io { path: path.clone(), source };
        let mut target =
            File::options().create(true).truncate(false).read(true).write(true).open(&path).map_err(failed)?;
        let mut done = target.seek(SeekFrom::End(0)).map_err(failed)?;
        if done > file.size {
            done = restart(&mut target).map_err(failed)?;
        }
        let mut tries = 0;
        while done < file.size {
            let before = done;
            let error = match self.continue_download(commit, file, &mut target, &mut done, progress) {
                Ok(()) if done == file.size => break,
                Ok(()) => "the connection closed early".to_string(),
                Err(error @ HubError::Request { .. }) => error.to_string(),
                Err(HubError::Status { url, status }) if status >= 500 || status == 429 => {
                    format!("{url} answers with status {status}")
                }
                Err(error) => return Err(error),
            };
            tries = if done > before { 1 } else { tries + 1 };
            if tries >= TRIES {
                return Err(HubError::Incomplete {
                    file: file.path.clone(),
                    done,
                    size: file.size,
                    tries,
                    reason: error,
                });
            }
            progress(DownloadEvent::Retry { file: &file.path, reason: &error });
            std::thread::sleep(self.hub.retry_pause * 2u32.pow(tries - 1));
        }
        progress(DownloadEvent::Progress { file: &file.path, done, size: file.size });
        drop(target);
        let blob = cache.blob(&file.blob);
        std::fs::rename(&path, &blob).map_err(failed)
    }

    /// One connection: appends to `target`, which has `done` bytes, until the answer ends.
    fn continue_download(
        &self,
        commit: &str,
        file: &RemoteFile,
        target: &mut File,
        done: &mut u64,
        progress: &mut dyn FnMut(DownloadEvent<'_>),
    ) -> Result<(), HubError> {
        let url = format!("{}/{}/resolve/{commit}/{}", self.hub.endpoint, self.repo, percent_encoded(&file.path));
        let failed = |source: std::io::Error| HubError::Io { path: file.path.clone().into(), source };
        let answer = self.success(&url, self.get(&url, (*done > 0).then_some(*done))?)?;
        if answer.status() != 206 {
            // The whole file, whatever was asked for.
            *done = restart(target).map_err(failed)?;
        } else if range_start(&answer) != Some(*done) {
            return Err(HubError::WrongSize { file: file.path.clone(), size: file.size });
        }
        // What a content server announces must be the rest: a different file of the same name would be spliced.
        let announced = answer.body().content_length();
        if announced.is_some_and(|len| len != file.size - *done) {
            return Err(HubError::WrongSize { file: file.path.clone(), size: file.size });
        }
        let mut body = answer.into_body().into_reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            let n = body
                .read(&mut buffer)
                .map_err(|source| HubError::Request { url: url.clone(), source: Box::new(source.into()) })?;
            if n == 0 {
                return Ok(());
            }
            if n as u64 > file.size - *done {
                return Err(HubError::WrongSize { file: file.path.clone(), size: file.size });
            }
            target.write_all(&buffer[..n]).map_err(failed)?;
            *done += n as u64;
            progress(DownloadEvent::Progress { file: &file.path, done: *done, size: file.size });
        }
    }

    fn get(&self, url: &str, from: Option<u64>) -> Result<Response<Body>, HubError> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.hub.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(from) = from {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        request.call().map_err(|source| HubError::Request { url: url.into(), source: source.into() })
    }

    fn success(&self, url: &str, answer: Response<Body>) -> Result<Response<Body>, HubError> {
        match answer.status().as_u16() {
            200..=299 => Ok(answer),
            404 => Err(HubError::NotFound { url: url.into() }),
            status @ (401 | 403) => Err(HubError::Denied {
                repo: self.repo.into(),
                status,
                page: format!("{}/{}", self.hub.endpoint, self.repo),
            }),
            status => Err(HubError::Status { url: url.into(), status }),
        }
    }
}

/// Empties the file.
fn restart(target: &mut File) -> std::io::Result<u64> {
    target.set_len(0)?;
    target.seek(SeekFrom::Start(0))
}

/// The first byte of a partial answer: 5 of `Content-Range: bytes 5-9/10`.
fn range_start(answer: &Response<Body>) -> Option<u64> {
    let range = answer.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (start, _) = range.trim().strip_prefix("bytes ")?.split_once('-')?;
    start.trim().parse().ok()
}

/// Whether `path` stays below the folder that it is joined to.
fn is_path(path: &str) -> bool {
    !path.contains(['\\', ':'])
        && !path.chars().any(char::is_control)
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// `path` as part of an address.
fn percent_encoded(path: &str) -> String {
    let mut encoded = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The default pause must not grow beyond reason within `TRIES`.
const _: () = assert!(Duration::from_millis(500).as_millis() << (TRIES - 2) <= 8_000);
