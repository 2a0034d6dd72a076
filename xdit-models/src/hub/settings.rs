//! What the environment says, by the rules of `huggingface_hub` 2.4.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::HubError;

/// Where to fetch from and where to.
#[derive(Clone)]
pub(super) struct Settings {
    /// The hub's address, without a slash at its end.
    pub endpoint: String,
    /// The cache of repositories.
    pub cache: PathBuf,
    pub token: Option<String>,
    pub offline: bool,
    /// How long a server may take to connect and to begin its answer.
    pub answer_timeout: Duration,
    /// How long it may be silent in the middle of one.
    pub read_timeout: Duration,
    pub user_agent: String,
    /// Whether snapshots link to the contents, or hold them.
    pub symlinks: bool,
}

impl Settings {
    /// The settings in the environment `var`. An empty variable counts as none.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let var = |name: &str| var(name).map(|value| value.trim().to_string()).filter(|value| !value.is_empty());
        let is_on = |name: &str| var(name).is_some_and(|value| is_true(&value));
        let path = |name: &str| var(name).map(|value| expanded(&value, &var));
        let home = path("HF_HOME").or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface"))).or_else(|| {
            let user = user_home(&var)?;
            Some(Path::new(&user).join(".cache/huggingface"))
        });
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.or_else(|| Some(home.as_ref()?.join("hub"))).ok_or(HubError::NoHome)?;
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(home?.join("token")));
        let token = var("HF_TOKEN").or_else(|| var("HUGGING_FACE_HUB_TOKEN"));
        let token = token.or_else(|| fs::read_to_string(token_file?).ok()).map(|token| clean(&token));
        // The second counts only where the first is not there at all.
        let offline = var("HF_HUB_OFFLINE").or_else(|| var("TRANSFORMERS_OFFLINE"));
        let origin = var("HF_HUB_USER_AGENT_ORIGIN").map_or_else(String::new, |origin| format!("; origin/{origin}"));
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').into(),
            cache,
            token: token.filter(|token| !token.is_empty() && !is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN")),
            offline: offline.is_some_and(|value| is_true(&value)),
            answer_timeout: seconds("HF_HUB_ETAG_TIMEOUT", &var)?,
            read_timeout: seconds("HF_HUB_DOWNLOAD_TIMEOUT", &var)?,
            user_agent: format!("xdit/{}{origin}", env!("CARGO_PKG_VERSION")),
            symlinks: !is_on("HF_HUB_DISABLE_SYMLINKS"),
        })
    }
}

fn is_true(value: &str) -> bool {
    ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str())
}

/// Seconds, ten if nothing or zero is set.
fn seconds(name: &'static str, var: &impl Fn(&str) -> Option<String>) -> Result<Duration, HubError> {
    let n: u32 = match var(name) {
        None => 0,
        Some(value) => {
            value.parse().map_err(|_| HubError::Setting { name, value, expected: "a whole number of seconds" })?
        }
    };
    Ok(Duration::from_secs(if n == 0 { 10 } else { n.into() }))
}

/// As a header can carry it.
fn clean(token: &str) -> String {
    token.replace(['\r', '\n'], "").trim().into()
}

fn user_home(var: &impl Fn(&str) -> Option<String>) -> Option<String> {
    var("HOME").or_else(|| var("USERPROFILE"))
}

/// `path` with the home folder for a `~` at its start, and with the values of `$NAME` and `${NAME}`.
fn expanded(path: &str, var: &impl Fn(&str) -> Option<String>) -> PathBuf {
    let mut rest = path;
    let mut out = String::new();
    if let Some(below) = path.strip_prefix('~').filter(|below| below.is_empty() || below.starts_with('/'))
        && let Some(home) = user_home(var)
    {
        out.push_str(&home);
        rest = below;
    }
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, end) = match after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some((name, end)) => (name, end),
            None => after.split_at(after.find(|c| !is_word(c)).unwrap_or(after.len())),
        };
        match var(name) {
            Some(value) => out.push_str(&value),
            // What is not set stays as it is written.
            None => out.push_str(&rest[before.len()..rest.len() - end.len()]),
        }
        rest = end;
    }
    out.push_str(rest);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_from_the_environment_that_python_uses() {
        let hub = |vars: &[(&str, &str)]| {
            Settings::from_vars(|name| Some(vars.iter().find(|var| var.0 == name)?.1.to_string()))
        };
        let all =
            [("HF_HUB_CACHE", "/c"), ("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", "https://m/"), ("HF_TOKEN", " t\n")];
        let all = hub(&all).unwrap();
        assert_eq!((all.cache.as_path(), all.offline), (Path::new("/c"), true));
        assert_eq!((all.endpoint.as_str(), all.token.as_deref()), ("https://m", Some("t")));
        assert!(matches!(hub(&[]), Err(HubError::NoHome)));
        let cache = |vars: &[(&str, &str)]| hub(vars).unwrap().cache.display().to_string();
        assert_eq!(cache(&[("HOME", "/h")]), "/h/.cache/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), "/x/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "~/hf"), ("XDG_CACHE_HOME", "/x")]), "/h/hf/hub");
        assert_eq!(cache(&[("HF_HOME", "$DISK/${USER}/$NO/~"), ("DISK", "/d"), ("USER", "u")]), "/d/u/$NO/~/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")]), "/old");
        assert_eq!(cache(&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")]), "/new");
        let offline = |vars: &[(&str, &str)]| hub(&[vars, &[("HOME", "/h")]].concat()).unwrap().offline;
        assert!(offline(&[("TRANSFORMERS_OFFLINE", "YES")]) && offline(&[("HF_HUB_OFFLINE", "On")]));
        assert!(
            !offline(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]) && !offline(&[("HF_HUB_OFFLINE", "y")])
        );
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        fs::write(dir.path().join("token"), "file\r\n").unwrap();
        let token =
            |vars: &[(&str, &str)]| hub(&[vars, &[("HF_HOME", home)]].concat()).unwrap().token.unwrap_or_default();
        assert_eq!(token(&[]), "file");
        assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "old")]), "old");
        assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "old"), ("HF_TOKEN", "new")]), "new");
        assert_eq!(token(&[("HF_TOKEN_PATH", "/nowhere"), ("HF_TOKEN", "")]), "");
        assert_eq!(token(&[("HF_TOKEN", "new"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), "");
        let set = hub(&[("HOME", "/h"), ("HF_HUB_ETAG_TIMEOUT", "3"), ("HF_HUB_USER_AGENT_ORIGIN", "me")]).unwrap();
        assert_eq!((set.answer_timeout.as_secs(), set.read_timeout.as_secs()), (3, 10));
        assert!(set.user_agent.starts_with("xdit/") && set.user_agent.ends_with("; origin/me"));
        let error = hub(&[("HOME", "/h"), ("HF_HUB_DOWNLOAD_TIMEOUT", "soon")]).err().unwrap().to_string();
        assert_eq!(error, "HF_HUB_DOWNLOAD_TIMEOUT is \"soon\", expected a whole number of seconds");
    }
}
