//! Against a hub on this machine's loopback, with redirects to a content server and connections that break.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;

use serde_json::json;

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const LARGE: &str = "transformer/diffusion_pytorch_model.safetensors";
const SHARD: &str = "text_encoder/model-00001-of-00001.safetensors";

#[derive(Default)]
struct State {
    commit: String,
    files: BTreeMap<String, Vec<u8>>,
    /// Close the connection after so many bytes of a large file, so many times, or stay silent there.
    cuts: Vec<usize>,
    stalls: bool,
    ignores_range: bool,
    /// Answer everything below this address with this status.
    status: Option<(&'static str, u16)>,
    /// `"/path 5-"` of each request for content.
    log: Vec<String>,
}

/// Answers one request and closes the connection.
fn serve(mut stream: TcpStream, state: &Mutex<State>) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or("").to_string();
    let (mut from, mut to, port) = (0, None, stream.local_addr()?.port());
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        if let Some((a, b)) = line.to_ascii_lowercase().strip_prefix("range: bytes=").and_then(|r| r.split_once('-')) {
            (from, to) = (a.parse().unwrap(), b.parse::<usize>().ok());
        }
    }
    let mut state = state.lock().unwrap();
    let mut answer = |status, headers: &str, text: &str| {
        let len = text.len();
        write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {len}\r\nConnection: close\r\n{headers}\r\n{text}")
    };
    if let Some((_, status)) = state.status.filter(|(prefix, _)| path.starts_with(prefix)) {
        return answer(status, "", "");
    }
    if path == "/api/models/org/tiny/revision/main?blobs=true" {
        let lfs = |path: &str| path.ends_with(".safetensors").then(|| json!({"sha256": id(path)}));
        let file = |(path, content): (&String, &Vec<u8>)| json!({"rfilename": path, "size": content.len(), "blobId": id(path), "lfs": lfs(path)});
        let siblings: Vec<_> = state.files.iter().map(file).collect();
        return answer(200, "", &json!({"sha": state.commit, "siblings": siblings}).to_string());
    }
    let resolve = format!("/org/tiny/resolve/{}/", state.commit);
    let name = path.strip_prefix(&resolve).or(path.strip_prefix("/cdn/")).unwrap_or("").to_string();
    let Some(content) = state.files.get(&name).cloned() else {
        return answer(404, "", "");
    };
    let about = format!("ETag: \"{}\"\r\nX-Repo-Commit: {}\r\n", id(&name), state.commit);
    // As the hub does: large files are elsewhere.
    if name.ends_with(".safetensors") && !path.starts_with("/cdn/") {
        return answer(302, &format!("Location: http://localhost:{port}/cdn/{name}\r\n{about}"), "");
    }
    if to.is_none() {
        state.log.push(format!("{name} {from}-"));
        from = if state.ignores_range { 0 } else { from };
    }
    let part = content.get(from..to.map_or(content.len(), |to| to + 1)).unwrap_or_default();
    if part.is_empty() {
        return answer(416, &about, "");
    }
    let cut = if name == LARGE && to.is_none() { state.cuts.pop() } else { None };
    let stalls = cut.is_some() && state.stalls;
    drop(state);
    let (len, last, size) = (part.len(), from + part.len() - 1, content.len());
    let about = format!("{about}Connection: close\r\nContent-Range: bytes {from}-{last}/{size}\r\n");
    write!(stream, "HTTP/1.1 206 X\r\nContent-Length: {len}\r\n{about}\r\n")?;
    stream.write_all(&part[..cut.unwrap_or(len)])?;
    if stalls {
        std::thread::sleep(Duration::from_secs(2));
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new()).map(|_| ())
}

fn id(name: &str) -> String {
    name.bytes().map(|b| format!("{b:02x}")).collect()
}

struct Case {
    state: Arc<Mutex<State>>,
    hub: Hub,
    dir: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let index = br#"{"_class_name": "P", "transformer": ["diffusers", "T"], "vae": [null, null],
            "text_encoder": ["transformers", "E"], "tokenizer": ["transformers", "CLIPTokenizer"]}"#;
        let shards = br#"{"weight_map": {"e": "model-00001-of-00001.safetensors"}}"#;
        let small = "xdit.json transformer/config.json text_encoder/config.json tokenizer/vocab.json README.md \
            all.safetensors transformer/x.bin vae/config.json ../../evil.json";
        let mut files: BTreeMap<_, _> = small.split(' ').map(|path| (path.to_string(), b"{}".to_vec())).collect();
        files.insert("model_index.json".into(), index.to_vec());
        files.insert("text_encoder/model.safetensors.index.json".into(), shards.to_vec());
        files.insert(LARGE.into(), checkpoint(700_000));
        files.insert(LARGE.replace(".safe", ".fp16.safe"), checkpoint(9));
        files.insert(SHARD.into(), checkpoint(9));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { commit: COMMIT.into(), files, ..State::default() }));
        let shared = state.clone();
        std::thread::spawn(move || {
            while let (Ok((stream, _)), shared) = (listener.accept(), shared.clone()) {
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let vars = [("HF_ENDPOINT", endpoint), ("HF_HUB_CACHE", format!("{}/hub", dir.path().display()))];
        let hub = Hub::from_vars(|name| Some(vars.iter().find(|var| var.0 == name)?.1.clone())).unwrap();
        Self { state, hub: Hub { pause: Duration::from_millis(1), ..hub }, dir }
    }

    fn set(&self, set: impl FnOnce(&mut State)) {
        set(&mut self.state.lock().unwrap());
    }

    fn fetch(&self) -> Result<PathBuf, HubError> {
        self.hub.fetch_observed("org/tiny", None, None, &mut ())
    }

    fn assert_fails(&self, message: &str) {
        let error = self.fetch().unwrap_err().to_string();
        assert!(error.contains(message) && error.lines().count() == 1, "{error}");
    }

    /// Fetches and checks the large file; gives the requests for it.
    fn assert_fetches(&self) -> Vec<String> {
        let dir = self.fetch().unwrap();
        assert!(fs::read(dir.join(LARGE)).unwrap() == checkpoint(700_000), "content differs");
        let log = std::mem::take(&mut self.state.lock().unwrap().log);
        log.iter().filter_map(|entry| Some(entry.strip_prefix(LARGE)?.trim().to_string())).collect()
    }

    fn part(&self) -> PathBuf {
        let blobs = self.dir.path().join("hub/models--org--tiny/blobs");
        fs::create_dir_all(&blobs).unwrap();
        blobs.join(id(LARGE) + ".part")
    }
}

/// A safetensors file of one tensor of `n` bytes.
fn checkpoint(n: usize) -> Vec<u8> {
    let header = format!(r#"{{"e":{{"dtype":"U8","shape":[{n}],"data_offsets":[0,{n}]}}}}"#);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes().chain((0..n).map(|i| (i * 7 % 251) as u8)));
    bytes
}

/// Notes what it is told and stops at `.2` bytes.
struct Log(Vec<String>, u64, u64);

impl Observer for Log {
    fn begin(&mut self, phase: Phase, what: &str, total: u64) {
        self.0.push(format!("{phase} {what} {total}"));
    }

    fn advance(&mut self, _: Phase, done: u64) -> ControlFlow<()> {
        assert!(done >= self.1);
        self.1 = done;
        if done >= self.2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn end(&mut self, phase: Phase) {
        self.0.push(format!("{phase} ends at {}", self.1));
    }

    fn warn(&mut self, message: &str) {
        self.0.push(message.into());
    }
}

#[test]
fn takes_what_a_pipeline_needs_once() {
    let case = Case::new();
    let mut log = Log(Vec::new(), 0, u64::MAX);
    let dir = case.hub.fetch_observed("org/tiny", None, None, &mut log).unwrap();
    assert!(log.0[0].starts_with("download org/tiny 700"), "{:?}", log.0);
    assert_eq!(log.0[0].rsplit(' ').next(), log.0[1].rsplit(' ').next());
    let asked = std::mem::take(&mut case.state.lock().unwrap().log).join(" ");
    let files = "model_index.json 0- text_encoder/model.safetensors.index.json 0- xdit.json 0- \
        text_encoder/config.json 0- text_encoder/model-00001-of-00001.safetensors 0- tokenizer/vocab.json 0- \
        transformer/config.json 0- transformer/diffusion_pytorch_model.safetensors 0-";
    assert_eq!(asked, files);
    // Again, and at a later commit with the same contents: nothing is asked for.
    assert_eq!(case.fetch().unwrap(), dir);
    case.set(|state| state.commit = COMMIT.replace('0', "9"));
    assert!(cfg!(not(unix)) || case.assert_fetches().is_empty());
    let dir = case.hub.fetch_observed("org/tiny", None, Some("fp16"), &mut ()).unwrap();
    assert!(dir.join(LARGE.replace(".safe", ".fp16.safe")).exists());
}

#[test]
fn a_cut_connection_is_taken_up_where_it_ended() {
    let case = Case::new();
    case.set(|state| state.cuts = vec![200_000; 3]);
    assert_eq!(case.assert_fetches(), ["0-", "200000-", "400000-", "600000-"]);
    let case = Case::new();
    case.set(|state| state.cuts = vec![0; 9]);
    case.assert_fails("bytes after 5 tries without progress");
    // A silent one, by this call or the next.
    let mut case = Case::new();
    case.hub.timeout = Duration::from_millis(400);
    case.set(|state| (state.cuts, state.stalls) = (vec![200_000], true));
    assert_eq!(case.assert_fetches(), ["0-", "200000-"]);
    let case = Case::new();
    case.set(|state| (state.cuts, state.stalls) = (vec![200_000], true));
    let stopped = case.hub.fetch_observed("org/tiny", None, None, &mut Log(Vec::new(), 0, 200_000));
    assert!(matches!(stopped, Err(HubError::Cancelled)));
    assert_eq!(case.assert_fetches(), ["0-", "200000-"]);
}

#[test]
fn partial_files_that_are_none_are_no_obstacle() {
    let case = Case::new();
    for more in [0, 1] {
        fs::write(case.part(), vec![0; checkpoint(700_000).len() + more]).unwrap();
        assert_eq!(case.assert_fetches(), ["0-"]);
        fs::remove_file(case.part().with_extension("")).unwrap();
    }
    // A server that sends the whole instead of the rest: the crate appends it.
    case.set(|state| (state.cuts, state.ignores_range) = (vec![200_000], true));
    assert_eq!(case.assert_fetches(), ["0-", "200000-", "0-"]);
}

#[test]
fn offline_takes_the_cache_or_says_what_is_missing() {
    let mut case = Case::new();
    case.hub.offline = true;
    let folder = format!("{}/hub/models--org--tiny/snapshots/", case.dir.path().display());
    case.assert_fails(&format!("{folder}: no model_index.json of main"));
    case.hub.offline = false;
    let dir = case.fetch().unwrap();
    // Nothing may be asked for from here on.
    case.hub.endpoint = "http://127.0.0.1:1".into();
    case.hub.offline = true;
    assert_eq!(case.fetch().unwrap(), dir);
    assert_eq!(case.hub.fetch_observed("org/tiny", Some(COMMIT), None, &mut ()).unwrap(), dir);
    // Nobody listens: the same, with a word about it.
    case.hub.offline = false;
    let mut log = Log(Vec::new(), 0, u64::MAX);
    assert_eq!(case.hub.fetch_observed("org/tiny", None, None, &mut log).unwrap(), dir);
    assert!(log.0.len() == 1 && log.0[0].ends_with("using the copy in the cache"), "{:?}", log.0);
    fs::remove_file(dir.join(SHARD)).unwrap();
    fs::remove_file(dir.join("transformer/config.json")).unwrap();
    let missing = format!("no {SHARD}, transformer/config.json");
    case.assert_fails(&missing);
    case.assert_fails("http://127.0.0.1:1/api/models/org/tiny/revision/main cannot be reached: ");
    case.hub.offline = true;
    case.assert_fails(&missing);
}

#[test]
fn refusals_say_what_to_do() {
    let case = Case::new();
    for prefix in ["/api", "/org", "/cdn"] {
        case.set(|state| state.status = Some((prefix, 403)));
        case.assert_fails("access denied (status 403)");
        case.set(|state| state.status = Some((prefix, 404)));
        case.assert_fails("does not exist");
    }
    case.set(|state| state.status = Some(("/api", 503)));
    case.assert_fails("status 503; org/tiny is not complete in the cache");
    case.set(|state| state.status = Some(("/cdn", 503)));
    case.assert_fails("after 5 tries without progress: request error: http status: 503");
    case.set(|state| state.status = Some(("/cdn", 200)));
    case.assert_fails("gives no useful answer: Header Content-Range is missing");
    case.set(|state| state.status = None);
    #[cfg(target_os = "linux")]
    {
        std::os::unix::fs::symlink("/dev/full", case.part()).unwrap();
        case.assert_fails(".part: No space left on device");
    }
    case.set(|state| drop(state.files.remove("model_index.json")));
    case.assert_fails("org/tiny is not a pipeline: it has no model_index.json");
    for repo in ["", "a/b/c", "../a", "a//b", "a b", "a\\b"] {
        assert!(matches!(case.hub.fetch_observed(repo, None, None, &mut ()), Err(HubError::RepoId(_))));
    }
}

#[test]
fn settings_come_from_the_environment_that_python_uses() {
    let hub = |vars: &[(&str, &str)]| Hub::from_vars(|name| Some(vars.iter().find(|var| var.0 == name)?.1.to_string()));
    let all = [("HF_HUB_CACHE", "/c"), ("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", "https://m/"), ("HF_TOKEN", " t\n")];
    let all = hub(&all).unwrap();
    assert_eq!((all.cache.path().as_path(), all.offline), (Path::new("/c"), true));
    assert_eq!((all.endpoint.as_str(), all.token.as_deref()), ("https://m", Some("t")));
    assert!(matches!(hub(&[]), Err(HubError::NoHome)));
}
