//! A whole pipeline, into the cache.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use xdit_core::observer::{Observer, Phase};

use super::cache::{RepoCache, free_space, is_whole, length};
use super::cached::cached;
use super::client::{Client, Failure};
use super::download::{Downloader, sleep};
use super::error::HubError;
use super::event::{DownloadEvent, Watch, go_on};
use super::listing::{Listing, RemoteFile};
use super::plan;
use super::settings::Settings;
use super::wanted::Wanted;

/// Downloads what the cache lacks of a pipeline and gives its folder.
///
/// If the hub gives no list of files and the cache has all that is needed, that is used. The environment is that of
/// the Python libraries; `docs/files.md` lists its variables.
///
/// # Errors
/// A repository that does not exist, refuses, or is no pipeline in safetensors; a connection that fails for good; a
/// cache that cannot be written, has not the space, or is incomplete when offline.
pub fn fetch(wanted: Wanted<'_>, progress: &mut dyn FnMut(DownloadEvent<'_>)) -> Result<PathBuf, HubError> {
    Hub::from_env()?.fetch(wanted, &mut |event| {
        progress(event);
        ControlFlow::Continue(())
    })
}

/// [`fetch`] as [`Phase::Download`], in bytes. The phase does not begin if nothing is missing.
///
/// # Errors
/// As [`fetch`]; also if the observer breaks.
pub fn fetch_observed(wanted: Wanted<'_>, observer: &mut dyn Observer) -> Result<PathBuf, HubError> {
    Hub::from_env()?.fetch_observed(wanted, observer)
}

/// A hub and how to treat it.
pub(super) struct Hub {
    pub settings: Settings,
    /// The pause before the first retry; it doubles with each.
    pub pause: Duration,
}

/// What is known of a repository before its large files.
pub(super) struct Found {
    pub client: Client,
    pub cache: RepoCache,
    pub listing: Listing,
    /// What the pipeline needs, `model_index.json` among it.
    pub needed: Vec<RemoteFile>,
}

impl Hub {
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        Ok(Self { settings: Settings::from_vars(var)?, pause: Duration::from_millis(500) })
    }

    pub fn fetch_observed(&self, wanted: Wanted<'_>, observer: &mut dyn Observer) -> Result<PathBuf, HubError> {
        observed(wanted.id, observer, |watch| self.fetch(wanted, watch))
    }

    pub fn fetch(&self, wanted: Wanted<'_>, watch: &mut Watch<'_>) -> Result<PathBuf, HubError> {
        let Found { client, cache, listing, mut needed } = match self.find(wanted, watch)? {
            Ok(found) => found,
            Err(dir) => return Ok(dir),
        };
        let dir = cache.snapshot(&listing.commit);
        needed.retain(|file| !is_whole(&dir.join(&file.path), file.size));
        let downloader = Downloader { client: &client, cache: &cache, commit: &listing.commit, pause: self.pause };
        if !needed.is_empty() {
            self.check_space(wanted.id, &cache, &needed)?;
            let bytes = needed.iter().map(|file| file.size).sum();
            go_on(watch(DownloadEvent::Plan { files: needed.len(), bytes }))?;
        }
        for file in &needed {
            downloader.download(file, watch)?;
        }
        // Last: what a branch leads to is complete.
        match cache.set_commit(wanted.revision(), &listing.commit) {
            // A cache that cannot be written and has it all serves as well.
            Err(error) if !needed.is_empty() => Err(HubError::Io(dir, error)),
            _ => Ok(dir),
        }
    }

    /// What the pipeline is made of, by the hub's list of files; or else its folder in the cache, where the hub is not
    /// asked or gives no list.
    pub fn find(&self, wanted: Wanted<'_>, watch: &mut Watch<'_>) -> Result<Result<Found, PathBuf>, HubError> {
        let Wanted { id, variant, .. } = wanted;
        let revision = wanted.revision();
        check_names(id, revision)?;
        let cache = RepoCache::new(&self.settings, id);
        if self.settings.offline {
            return cached(&cache, id, revision, variant).map(Err);
        }
        let client = Client::new(&self.settings, id);
        let listing = match self.list(&client, id, revision, watch) {
            Ok(listing) => listing,
            Err(HubError::Cancelled) => return Err(HubError::Cancelled),
            Err(error) => {
                let reason = error.to_string();
                return match (cached(&cache, id, revision, variant), error) {
                    (Ok(dir), _) => {
                        let reason = reason.trim_end_matches("; ");
                        go_on(watch(DownloadEvent::UsingCache { reason })).map(|()| Err(dir))
                    }
                    (Err(cache), HubError::Unreachable(url, reason, _)) => {
                        Err(HubError::Unreachable(url, reason, cache.to_string()))
                    }
                    (Err(_), error) => Err(error),
                };
            }
        };
        // By the commit: a branch may move while this goes on.
        let downloader = Downloader { client: &client, cache: &cache, commit: &listing.commit, pause: self.pause };
        let mut small = |file: &RemoteFile| {
            let path = downloader.download(file, watch)?;
            fs::read_to_string(&path).map_err(|error| HubError::Io(path, error))
        };
        let index = listing.file("model_index.json").ok_or_else(|| HubError::NotAPipeline(id.into()))?;
        let mut needed = vec![index.clone()];
        needed.extend(plan::needed(&wanted, &listing, &small(index)?, &mut small)?.into_iter().cloned());
        Ok(Ok(Found { client, cache, listing, needed }))
    }

    /// The list of files, after a short wait or two if the hub asks for that.
    fn list(&self, client: &Client, id: &str, revision: &str, watch: &mut Watch<'_>) -> Result<Listing, HubError> {
        const WAITS: u32 = 2;
        for n in 0.. {
            let (reason, wait) = match client.list(revision) {
                Ok(listing) => return Ok(listing),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(reason, wait)) => (reason, wait),
            };
            // Only a hub that says when is worth waiting for: the cache may serve at once.
            let Some(wait) = wait.filter(|_| n < WAITS) else {
                return Err(HubError::Unreachable(client.list_url(revision), reason, String::new()));
            };
            let reason = format!("{reason}, waiting for {} s", wait.as_secs());
            go_on(watch(DownloadEvent::Retry { file: id, reason: &reason }))?;
            sleep(wait, || go_on(watch(DownloadEvent::Progress { file: id, done: 0, size: 0 })))?;
        }
        unreachable!("the loop ends by returning")
    }

    fn check_space(&self, id: &str, cache: &RepoCache, files: &[RemoteFile]) -> Result<(), HubError> {
        let missing = |file: &RemoteFile| match is_whole(&cache.blob(file), file.size) {
            true => 0,
            false => file.size.saturating_sub(length(&cache.part(file))),
        };
        let needed: u64 = files.iter().map(missing).sum();
        let dir = &self.settings.cache;
        match free_space(dir).filter(|free| *free < needed) {
            Some(free) => Err(HubError::Space { repo: id.into(), dir: dir.clone(), needed, free }),
            None => Ok(()),
        }
    }
}

/// Tells `observer` of the events of `work`, a download of `repo`.
pub(super) fn observed<T>(
    repo: &str,
    observer: &mut dyn Observer,
    work: impl FnOnce(&mut Watch<'_>) -> Result<T, HubError>,
) -> Result<T, HubError> {
    // The bytes of each file, once there is a plan.
    let mut there: Option<BTreeMap<String, u64>> = None;
    let result = work(&mut |event| {
        match event {
            DownloadEvent::Plan { bytes, .. } => {
                there = Some(BTreeMap::new());
                observer.begin(Phase::Download, repo, bytes);
            }
            DownloadEvent::Progress { file, done, .. } => {
                if let Some(there) = &mut there {
                    there.insert(file.into(), done);
                    return observer.advance(Phase::Download, there.values().sum());
                }
            }
            DownloadEvent::Retry { file, reason } => observer.warn(&format!("{file}: {reason}; trying again")),
            DownloadEvent::UsingCache { reason } => observer.warn(&format!("{reason}; using the copy in the cache")),
        }
        ControlFlow::Continue(())
    });
    if there.is_some() {
        observer.end(Phase::Download);
    }
    result
}

/// Both become parts of addresses and of paths in the cache.
fn check_names(repo: &str, revision: &str) -> Result<(), HubError> {
    let is_name = |name: &str, marks: &[u8]| {
        !name.is_empty()
            && !name.starts_with(['.', '-'])
            && !name.contains("..")
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || marks.contains(&b))
    };
    if repo.len() > 96 || repo.split('/').count() > 2 || !repo.split('/').all(|part| is_name(part, b"-_.")) {
        return Err(HubError::RepoId(repo.into()));
    }
    if revision.len() > 255 || !revision.split('/').all(|part| is_name(part, b"-_.+@=")) {
        return Err(HubError::Revision(revision.into()));
    }
    Ok(())
}
