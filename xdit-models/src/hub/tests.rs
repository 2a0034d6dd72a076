//! The hub as far as a pipeline needs it, on this machine's loopback: the list of files, redirects to a content
//! server, `Range`, and connections that break.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const REPO: &str = "org/tiny";

/// How the server misbehaves.
#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    /// Close the connection after so many bytes of a large file.
    cut_after: Option<usize>,
    /// How often it does so.
    n_cuts: usize,
    /// Stay silent at the cut instead of closing.
    stalls: bool,
    /// Send whole files whatever part is asked for.
    ignores_range: bool,
    /// Answer everything with this status.
    status: Option<u16>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    faults: Faults,
    /// `"GET /path bytes=5-"` of each request, with `" +token"` if it carried one.
    log: Vec<String>,
}

struct Server {
    endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    /// Serves until the test ends; the thread ends with the process.
    fn new(files: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, shared) = (stream.unwrap(), shared.clone());
                // A client that hangs up is part of the tests.
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { endpoint, state }
    }

    fn set(&self, faults: Faults) {
        self.state.lock().unwrap().faults = faults;
    }

    fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }
}

/// Answers one request and closes the connection.
fn serve(mut stream: TcpStream, state: &Mutex<State>) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or("").to_string();
    let (mut range, mut token) = (None, false);
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        token |= line.starts_with("authorization: bearer secret");
        if let Some(value) = line.strip_prefix("range: ") {
            range = Some(value.to_string());
        }
    }
    let mut state = state.lock().unwrap();
    let entry = format!("{path} {}{}", range.as_deref().unwrap_or("all"), if token { " +token" } else { "" });
    state.log.push(entry);
    if let Some(status) = state.faults.status {
        return write!(stream, "HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    let resolve = format!("/{REPO}/resolve/{COMMIT}/");
    if path == format!("/api/models/{REPO}/revision/main?blobs=true") {
        let text = listing(&state.files);
        return write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len());
    }
    // As the hub does: large files are elsewhere. 127.0.0.1 and localhost are two hosts to a client.
    if let Some(file) = path.strip_prefix(&resolve)
        && file.ends_with(".safetensors")
    {
        let port = stream.local_addr()?.port();
        return write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: http://localhost:{port}/cdn/{file}\r\nContent-Length: 0\r\n\
             Connection: close\r\n\r\n"
        );
    }
    let file = path.strip_prefix(&resolve).or(path.strip_prefix("/cdn/"));
    let Some(content) = file.and_then(|file| state.files.get(file)).cloned() else {
        return write!(stream, "HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let from = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let from = from.filter(|_| !state.faults.ignores_range);
    let part = &content[from.unwrap_or(0)..];
    let mut end = part.len();
    if let Some(cut) = state.faults.cut_after
        && state.faults.n_cuts > 0
        && cut < end
    {
        state.faults.n_cuts -= 1;
        end = cut;
    }
    let stalls = state.faults.stalls && end < part.len();
    drop(state);
    match from {
        Some(from) => write!(
            stream,
            "HTTP/1.1 206 Part\r\nContent-Range: bytes {from}-{}/{}\r\n",
            content.len() - 1,
            content.len()
        )?,
        None => write!(stream, "HTTP/1.1 200 OK\r\n")?,
    }
    write!(stream, "Content-Length: {}\r\nConnection: close\r\n\r\n", part.len())?;
    stream.write_all(&part[..end])?;
    stream.flush()?;
    if stalls {
        std::thread::sleep(Duration::from_secs(20));
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new()).map(|_| ())
}

fn listing(files: &BTreeMap<String, Vec<u8>>) -> String {
    let siblings: Vec<_> = files
        .iter()
        .enumerate()
        .map(|(i, (path, content))| {
            let (size, id) = (content.len(), format!("{i:08x}{size:032x}", size = content.len()));
            if path.ends_with(".safetensors") {
                json!({"rfilename": path, "size": size, "blobId": "unused00",
                    "lfs": {"sha256": format!("{id}00ff"), "size": size, "pointerSize": 135}})
            } else {
                json!({"rfilename": path, "size": size, "blobId": id})
            }
        })
        .collect();
    json!({"sha": COMMIT, "siblings": siblings, "private": false}).to_string()
}

/// A safetensors file of one tensor `name` of `n` bytes.
fn checkpoint(name: &str, n: usize) -> Vec<u8> {
    let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":[{n}],"data_offsets":[0,{n}]}}}}"#);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..n).map(|i| (i * 7 % 251) as u8));
    bytes
}

const LARGE: &str = "transformer/diffusion_pytorch_model.safetensors";

/// A repository with a pipeline, its variants and everything else that people put beside it.
fn repository() -> BTreeMap<String, Vec<u8>> {
    let index = br#"{"_class_name": "P", "_diffusers_version": "0.30", "transformer": ["diffusers", "T"],
        "text_encoder": ["transformers", "E"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "image_encoder": [null, null]}"#;
    let shard = "model-00001-of-00001.safetensors";
    let shards = format!(r#"{{"weight_map": {{"e": "{shard}"}}}}"#);
    let mut files: BTreeMap<String, Vec<u8>> = [
        ("model_index.json".into(), index.to_vec()),
        (LARGE.into(), checkpoint("t", 700_000)),
        ("transformer/diffusion_pytorch_model.fp16.safetensors".into(), checkpoint("t", 1000)),
        ("text_encoder/model.safetensors.index.json".into(), shards.into_bytes()),
        (format!("text_encoder/{shard}"), checkpoint("e", 1000)),
    ]
    .into();
    for path in [
        "transformer/config.json",
        "text_encoder/config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        // Not needed:
        "README.md",
        "single-file.safetensors",
        "transformer/diffusion_pytorch_model.bin",
        "transformer/diffusion_pytorch_model.safetensors.index.fp16.json",
        "text_encoder/flax_model.msgpack",
        "text_encoder/onnx/model.safetensors",
        "image_encoder/config.json",
        "unet/config.json",
    ] {
        files.insert(path.into(), b"{}".to_vec());
    }
    files
}

struct Case {
    server: Server,
    hub: Hub,
    dir: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::new(repository());
        let hub = Hub {
            endpoint: server.endpoint.clone(),
            cache: dir.path().join("hub"),
            token: Some("secret".into()),
            offline: false,
            certificates: None,
            timeout: Duration::from_secs(5),
            retry_pause: Duration::from_millis(1),
        };
        Self { server, hub, dir }
    }

    fn fetch(&self) -> Result<PathBuf, HubError> {
        self.hub.fetch(REPO, None, None, &mut |_| {})
    }

    /// The files below the snapshot.
    fn files(&self) -> Vec<String> {
        let root = self.hub.cache.join("models--org--tiny/snapshots").join(COMMIT);
        let mut found = Vec::new();
        let mut todo = vec![root.clone()];
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    todo.push(path);
                } else {
                    found.push(path.strip_prefix(&root).unwrap().to_str().unwrap().into());
                }
            }
        }
        found.sort();
        found
    }

    #[track_caller]
    fn assert_whole(&self, dir: &Path) {
        let expected = &repository()[LARGE];
        assert!(&std::fs::read(dir.join(LARGE)).unwrap() == expected, "content differs");
    }
}

#[test]
fn downloads_what_a_pipeline_needs_and_nothing_else() {
    let case = Case::new();
    let mut events = Vec::new();
    let mut done = 0;
    let dir = case
        .hub
        .fetch(REPO, None, None, &mut |event| match event {
            DownloadEvent::Progress { file, done: n, size } => {
                assert!(n <= size);
                if file == LARGE {
                    done = n;
                }
            }
            event => events.push(format!("{event:?}")),
        })
        .unwrap();
    case.assert_whole(&dir);
    assert_eq!(
        case.files(),
        [
            "model_index.json",
            "text_encoder/config.json",
            "text_encoder/model-00001-of-00001.safetensors",
            "text_encoder/model.safetensors.index.json",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "transformer/config.json",
            LARGE,
        ]
    );
    assert_eq!(done, repository()[LARGE].len() as u64);
    // Seven files; model_index.json and the index of shards are there by the time the sizes are known.
    assert_eq!(events.len(), 1);
    assert!(events[0].starts_with("Plan { files: 7, bytes: 701"), "{events:?}");
    let blobs = std::fs::read_dir(dir.join("../../blobs")).unwrap();
    assert!(blobs.map(|b| b.unwrap().path()).all(|path| path.extension().is_none()));
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_the_content_server() {
    let case = Case::new();
    case.fetch().unwrap();
    for entry in case.server.take_log() {
        assert_eq!(entry.contains("+token"), !entry.starts_with("/cdn/"), "{entry}");
    }
}

#[test]
fn a_second_fetch_only_asks_for_the_list() {
    let case = Case::new();
    let first = case.fetch().unwrap();
    case.server.take_log();
    assert_eq!(case.fetch().unwrap(), first);
    assert_eq!(case.server.take_log().len(), 1);
}

#[test]
fn a_variant_is_taken_where_there_is_one() {
    let case = Case::new();
    case.hub.fetch(REPO, None, Some("fp16"), &mut |_| {}).unwrap();
    let files = case.files();
    assert!(files.contains(&"transformer/diffusion_pytorch_model.fp16.safetensors".into()));
    assert!(!files.contains(&LARGE.into()));
    assert!(files.contains(&"text_encoder/model-00001-of-00001.safetensors".into()));
}

#[test]
fn a_cut_connection_is_taken_up_where_it_ended() {
    let case = Case::new();
    case.server.set(Faults { cut_after: Some(200_000), n_cuts: 3, ..Faults::default() });
    let mut retries = 0;
    let dir = case
        .hub
        .fetch(REPO, None, None, &mut |event| {
            retries += usize::from(matches!(event, DownloadEvent::Retry { .. }));
        })
        .unwrap();
    case.assert_whole(&dir);
    assert_eq!(retries, 3);
    let ranges: Vec<_> = case
        .server
        .take_log()
        .into_iter()
        .filter_map(|entry| Some(entry.strip_prefix("/cdn/")?.strip_prefix(LARGE)?.to_string()))
        .collect();
    assert_eq!(ranges, [" all", " bytes=200000-", " bytes=400000-", " bytes=600000-"]);
}

#[test]
fn an_interrupted_fetch_is_taken_up_by_the_next() {
    let case = Case::new();
    // No byte comes of any later try: the first 200000 are all there is.
    case.server.set(Faults { cut_after: Some(200_000), n_cuts: 1, ..Faults::default() });
    let interrupted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        case.hub.fetch(REPO, None, None, &mut |event| {
            if matches!(event, DownloadEvent::Retry { .. }) {
                std::panic::resume_unwind(Box::new("the user ends the program"));
            }
        })
    }));
    assert!(interrupted.is_err());
    assert!(!case.files().contains(&"model_index.json".into()));
    case.server.take_log();

    let mut planned = 0;
    let dir = case
        .hub
        .fetch(REPO, None, None, &mut |event| {
            if let DownloadEvent::Plan { bytes, .. } = event {
                planned = bytes;
            }
        })
        .unwrap();
    case.assert_whole(&dir);
    assert!(planned < 600_000, "{planned}");
    let log = case.server.take_log();
    assert!(log.contains(&format!("/cdn/{LARGE} bytes=200000-")), "{log:?}");
}

#[test]
fn a_server_that_ignores_ranges_does_not_spoil_the_file() {
    let case = Case::new();
    case.server.set(Faults { cut_after: Some(200_000), n_cuts: 2, ignores_range: true, ..Faults::default() });
    let dir = case.fetch().unwrap();
    case.assert_whole(&dir);
}

#[test]
fn a_silent_server_is_asked_again() {
    let mut case = Case::new();
    case.hub.timeout = Duration::from_millis(300);
    case.server.set(Faults { cut_after: Some(200_000), n_cuts: 2, stalls: true, ..Faults::default() });
    let dir = case.fetch().unwrap();
    case.assert_whole(&dir);
    let log = case.server.take_log();
    assert!(log.contains(&format!("/cdn/{LARGE} bytes=400000-")), "{log:?}");
}

#[test]
fn a_server_that_never_gets_on_is_given_up() {
    let case = Case::new();
    case.server.set(Faults { cut_after: Some(0), n_cuts: usize::MAX, ..Faults::default() });
    let error = case.fetch().unwrap_err().to_string();
    assert!(error.starts_with("model_index.json: 0 of 219 bytes after 5 tries without progress: "), "{error}");
}

#[test]
fn offline_uses_the_cache_or_says_what_is_missing() {
    let mut case = Case::new();
    case.hub.offline = true;
    let error = case.fetch().unwrap_err().to_string();
    let root = case.hub.cache.join("models--org--tiny");
    assert_eq!(error, format!("org/tiny is not complete in the cache at {}: no refs/main", root.display()));
    assert!(case.server.take_log().is_empty());

    case.hub.offline = false;
    let dir = case.fetch().unwrap();
    case.server.take_log();
    case.hub.offline = true;
    assert_eq!(case.fetch().unwrap(), dir);
    assert_eq!(case.hub.fetch(REPO, Some(COMMIT), None, &mut |_| {}).unwrap(), dir);
    assert!(case.server.take_log().is_empty());

    std::fs::remove_file(dir.join("text_encoder/model-00001-of-00001.safetensors")).unwrap();
    std::fs::remove_file(dir.join("transformer/config.json")).unwrap();
    let error = case.fetch().unwrap_err().to_string();
    assert!(error.ends_with("no text_encoder/model-00001-of-00001.safetensors, transformer/config.json"), "{error}");
}

#[test]
fn an_unreachable_hub_is_no_matter_if_the_cache_is_complete() {
    let case = Case::new();
    case.server.set(Faults { status: Some(503), ..Faults::default() });
    let error = case.fetch().unwrap_err().to_string();
    assert!(error.ends_with("?blobs=true answers with status 503"), "{error}");
    case.server.set(Faults::default());
    let dir = case.fetch().unwrap();

    case.server.set(Faults { status: Some(503), ..Faults::default() });
    let mut reasons = Vec::new();
    let again = case.hub.fetch(REPO, None, None, &mut |event| {
        if let DownloadEvent::UsingCache { reason } = event {
            reasons.push(reason.to_string());
        }
    });
    assert_eq!((again.unwrap(), reasons.len()), (dir.clone(), 1));

    // A port that nobody listens on.
    let nowhere = Hub { endpoint: "http://127.0.0.1:1".into(), ..case.hub.clone() };
    assert_eq!(nowhere.fetch(REPO, None, None, &mut |_| {}).unwrap(), dir);
    let error = nowhere.fetch("org/other", None, None, &mut |_| {}).unwrap_err();
    assert!(matches!(error, HubError::Request { .. }), "{error}");
}

#[test]
fn refusals_say_what_to_do() {
    let case = Case::new();
    case.server.set(Faults { status: Some(401), ..Faults::default() });
    let error = case.fetch().unwrap_err().to_string();
    assert!(error.contains("HF_TOKEN") && error.ends_with("/org/tiny"), "{error}");
    case.server.set(Faults::default());
    let error = case.hub.fetch("org/none", None, None, &mut |_| {}).unwrap_err();
    assert!(matches!(error, HubError::NotFound { .. }), "{error}");

    case.server.state.lock().unwrap().files.remove(LARGE);
    case.server.state.lock().unwrap().files.remove("transformer/diffusion_pytorch_model.fp16.safetensors");
    case.server.state.lock().unwrap().files.remove("transformer/diffusion_pytorch_model.safetensors.index.fp16.json");
    assert_eq!(
        case.fetch().unwrap_err().to_string(),
        "org/tiny: transformer has no safetensors, only diffusion_pytorch_model.bin"
    );
    case.server.state.lock().unwrap().files.remove("model_index.json");
    assert_eq!(case.fetch().unwrap_err().to_string(), "org/tiny is not a pipeline: it has no model_index.json");
}

#[test]
fn names_that_would_leave_the_cache_are_refused() {
    let case = Case::new();
    for repo in ["", "a/b/c", "../a", "a/..", "a//b", "/a", "a b", "a\\b", "a/.git"] {
        let error = case.hub.fetch(repo, None, None, &mut |_| {}).unwrap_err();
        assert!(matches!(error, HubError::RepoId { .. }), "{repo}: {error}");
    }
    for revision in ["", "..", "a/../b", "/a", "a?b", "a b"] {
        let error = case.hub.fetch(REPO, Some(revision), None, &mut |_| {}).unwrap_err();
        assert!(matches!(error, HubError::Revision { .. }), "{revision}: {error}");
    }
    assert!(case.server.take_log().is_empty());
    // Nor does a list of files lead out of it.
    let files = ["../../evil.json", "/transformer/evil.json", "transformer/../../evil.json"];
    for file in files {
        let mut state = case.server.state.lock().unwrap();
        state.files.insert(file.into(), b"{}".to_vec());
    }
    case.fetch().unwrap();
    assert!(case.files().iter().all(|file| !file.contains("evil")));
    assert_eq!(std::fs::read_dir(case.dir.path()).unwrap().count(), 1);
}

#[test]
fn settings_come_from_the_environment_that_python_uses() {
    let hub = |vars: &[(&str, &str)]| {
        let vars: BTreeMap<String, String> = vars.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Hub::from_vars(|name| vars.get(name).cloned())
    };
    let plain = hub(&[("HOME", "/h")]).unwrap();
    assert_eq!(plain.cache, Path::new("/h/.cache/huggingface/hub"));
    assert_eq!((plain.endpoint.as_str(), plain.offline), ("https://huggingface.co", false));
    assert_eq!(plain.token, None);
    let home = hub(&[("HOME", "/h"), ("HF_HOME", "/x"), ("HF_TOKEN", " t\n")]).unwrap();
    assert_eq!(home.cache, Path::new("/x/hub"));
    assert_eq!(home.token.as_deref(), Some("t"));
    let secret = hub(&[("HOME", "/h"), ("HF_TOKEN", "hf_secret")]).unwrap();
    assert!(!format!("{secret:?}").contains("hf_secret"));
    let all =
        hub(&[("HF_HOME", "/x"), ("HF_HUB_CACHE", "/c"), ("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", "https://mirror/")])
            .unwrap();
    assert_eq!((all.cache.as_path(), all.offline), (Path::new("/c"), true));
    assert_eq!(all.endpoint, "https://mirror");
    assert!(matches!(hub(&[]), Err(HubError::NoHome)));

    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("token"), "from-file\n").unwrap();
    let hub = hub(&[("HF_HOME", dir.path().to_str().unwrap())]).unwrap();
    assert_eq!(hub.token.as_deref(), Some("from-file"));
}

#[test]
fn a_lock_that_nobody_gets_on_under_is_not_waited_for_forever() {
    let mut case = Case::new();
    case.hub.timeout = Duration::from_millis(300);
    case.fetch().unwrap();
    let blobs = case.hub.cache.join("models--org--tiny/blobs");
    let locks = case.hub.cache.join(".locks/models--org--tiny");
    let held: Vec<_> = std::fs::read_dir(&locks)
        .unwrap()
        .map(|lock| {
            let lock = std::fs::File::open(lock.unwrap().path()).unwrap();
            lock.lock().unwrap();
            lock
        })
        .collect();
    std::fs::remove_dir_all(blobs).unwrap();
    assert!(matches!(case.fetch(), Err(HubError::Locked { .. })));
    drop(held);
    case.fetch().unwrap();
}
