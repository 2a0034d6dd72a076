//! Requests to the hub, and what its answers mean.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use ureq::config::RedirectAuthHeaders;
use ureq::http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, RANGE, RETRY_AFTER};
use ureq::http::{HeaderMap, Response};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, BodyReader};

use super::error::HubError;
use super::listing::{Listing, RemoteFile};
use super::settings::Settings;

/// Largest list of files, in bytes. A repository of ten thousand files has about two million.
const MAX_LISTING: u64 = 64 << 20;
/// The longest wait that the hub may ask for and get.
const MAX_WAIT: u64 = 30;

/// Why a request failed.
pub(super) enum Failure {
    /// For good.
    Final(HubError),
    /// It may pass: what went wrong, and how long the hub asks to wait.
    Passing(String, Option<Duration>),
}

/// Asks one hub for one repository's files.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    id: String,
    token: Option<String>,
}

/// The bytes of a file from some place on.
pub(super) struct Content {
    /// Where the first byte belongs.
    pub start: u64,
    pub bytes: BodyReader<'static>,
}

impl Client {
    pub fn new(settings: &Settings, id: &str) -> Self {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_resolve(Some(settings.answer_timeout))
            .timeout_connect(Some(settings.answer_timeout))
            .timeout_recv_response(Some(settings.answer_timeout))
            .timeout_per_read(Some(settings.read_timeout))
            // A hub may have moved a repository; the servers of contents that it names must not see the token.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(settings.user_agent.clone());
        if settings.endpoint.starts_with("https:") {
            config = config.tls_config(TlsConfig::builder().root_certs(root_certs()).build());
        }
        let (endpoint, token) = (settings.endpoint.clone(), settings.token.clone());
        Self { agent: config.build().into(), endpoint, id: id.into(), token }
    }

    /// The files of the repository at `revision`.
    pub fn list(&self, revision: &str) -> Result<Listing, Failure> {
        let revision_in_url = revision.replace('/', "%2F").replace('+', "%2B").replace('@', "%40");
        let url = format!("{}/api/models/{}/revision/{revision_in_url}?blobs=true", self.endpoint, self.id);
        let url = url.as_str();
        let shown = url.trim_end_matches("?blobs=true");
        let mut answer = self.get(url, None)?;
        let status = answer.status().as_u16();
        if !(200..300).contains(&status) {
            return Err(self.refusal(shown, status, answer.headers(), revision));
        }
        let text = answer.body_mut().with_config().limit(MAX_LISTING).read_to_string();
        let text = text.map_err(|error| passing(&error))?;
        Listing::parse(&text).map_err(|reason| Failure::Final(HubError::Answer(shown.into(), reason)))
    }

    /// The address of the list of files, for messages.
    pub fn list_url(&self, revision: &str) -> String {
        format!("{}/api/models/{}/revision/{revision}", self.endpoint, self.id)
    }

    /// The bytes of `file` in `range`, or some more; of `from` alone all that follow.
    pub fn content(&self, commit: &str, file: &RemoteFile, from: u64, to: Option<u64>) -> Result<Content, Failure> {
        let url = format!("{}/{}/resolve/{commit}/{}", self.endpoint, self.id, file.path);
        let range = match to {
            Some(to) => Some(format!("bytes={from}-{to}")),
            None => (from > 0).then(|| format!("bytes={from}-")),
        };
        let answer = self.get(&url, range)?;
        let start = match answer.status().as_u16() {
            206 => {
                let range = answer.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
                let start = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
                start.ok_or_else(|| Failure::Final(HubError::Answer(url.clone(), "a part of unknown place".into())))?
            }
            200..=299 => 0,
            status => return Err(self.refusal(&url, status, answer.headers(), commit)),
        };
        let bytes = answer.into_body().into_with_config().limit(u64::MAX).reader();
        Ok(Content { start, bytes })
    }

    fn get(&self, url: &str, range: Option<String>) -> Result<Response<Body>, Failure> {
        // Sizes count, so nothing may be compressed on its way.
        let mut request = self.agent.get(url).header(ACCEPT_ENCODING, "identity");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        request.call().map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::TooManyRedirects => {
                Failure::Final(HubError::Answer(url.into(), error.to_string()))
            }
            error => passing(&error),
        })
    }

    /// What a status other than success means.
    fn refusal(&self, url: &str, status: u16, headers: &HeaderMap, revision: &str) -> Failure {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let url = url.to_string();
        Failure::Final(match status {
            404 if header("x-error-code") == Some("RevisionNotFound") => {
                HubError::NoRevision { url, revision: revision.into() }
            }
            404 => HubError::NotFound(url),
            401 | 403 => {
                let gated = header("x-error-code") == Some("GatedRepo");
                HubError::Denied { url, status, advice: self.advice(gated) }
            }
            429 => {
                let seconds = header(RETRY_AFTER.as_str()).and_then(|seconds| seconds.trim().parse().ok());
                // "api";r=0;t=55
                let of_limit =
                    || header("ratelimit")?.split(';').find_map(|part| part.trim().strip_prefix("t=")?.parse().ok());
                let seconds = seconds.or_else(of_limit);
                if seconds.is_none_or(|seconds| seconds <= MAX_WAIT) {
                    return Failure::Passing("too many requests (status 429)".into(), seconds.map(Duration::from_secs));
                }
                HubError::TooMany { url, seconds }
            }
            408 | 416 | 500.. => return Failure::Passing(format!("status {status}"), None),
            _ => HubError::Answer(url, format!("status {status}")),
        })
    }

    /// What to do where access is denied.
    fn advice(&self, gated: bool) -> String {
        let page = format!("{}/{}", self.endpoint, self.id);
        let token = match self.token {
            Some(_) => "the token that was sent must be of an account with access",
            None => "then give a token: HF_TOKEN=.., or `hf auth login`",
        };
        match (gated, &self.token) {
            (true, _) => format!("it is gated: ask for access at {page}; {token}"),
            (false, Some(_)) => format!("it may not exist or be private or gated, see {page}; {token}"),
            (false, None) => format!("it may not exist, or be private or gated: ask for access at {page}, {token}"),
        }
    }
}

impl Content {
    /// Exactly `n` bytes from the file's place `from` on.
    pub fn exactly(mut self, from: u64, n: usize) -> Result<Vec<u8>, Failure> {
        let failed = |error: io::Error| Failure::Passing(error.to_string(), None);
        let before = from.saturating_sub(self.start);
        io::copy(&mut self.bytes.by_ref().take(before), &mut io::sink()).map_err(failed)?;
        let mut bytes = Vec::new();
        self.bytes.take(n as u64).read_to_end(&mut bytes).map_err(failed)?;
        if self.start > from || bytes.len() != n {
            return Err(Failure::Passing(format!("{} of {n} bytes came", bytes.len()), None));
        }
        Ok(bytes)
    }
}

/// What the system trusts, and what browsers trust where it says nothing.
fn root_certs() -> RootCerts {
    let found = rustls_native_certs::load_native_certs().certs;
    if found.is_empty() {
        return RootCerts::WebPki;
    }
    RootCerts::Specific(Arc::new(found.iter().map(|cert| Certificate::from_der(cert).to_owned()).collect()))
}

fn passing(error: &ureq::Error) -> Failure {
    Failure::Passing(error.to_string(), None)
}
