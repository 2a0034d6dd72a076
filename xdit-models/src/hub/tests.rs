//! Against a hub on this machine's loopback, with redirects to a content server and connections that break.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use sha1::{Digest, Sha1};
use sha2::Sha256;
use xdit_core::folder::{PipelineFolder, Source};
use xdit_core::observer::{Observer, Phase};

use super::fetch::Hub;
use super::settings::Settings;
use super::{Headers, HubError};

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
    /// The status comes with this header, so many times if that is limited.
    header: &'static str,
    times: Option<u32>,
    /// What is sent in place of a large file.
    other: Option<Vec<u8>>,
    /// `"/path 5-"` of each request for content.
    log: Vec<String>,
    /// What was sent as `Authorization`, by the path.
    tokens: Vec<(String, String)>,
    /// Bytes of content sent in all.
    sent: usize,
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
        if let Some(token) = line.to_ascii_lowercase().strip_prefix("authorization: ") {
            state.lock().unwrap().tokens.push((path.clone(), token.into()));
        }
    }
    let mut state = state.lock().unwrap();
    let mut answer = |status, headers: &str, text: &str| {
        let len = text.len();
        write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {len}\r\nConnection: close\r\n{headers}\r\n{text}")
    };
    if let Some((_, status)) = state.status.filter(|(prefix, _)| path.starts_with(prefix)) {
        if state.times.is_none_or(|times| times > 0) {
            state.times = state.times.map(|times| times - 1);
            return answer(status, state.header, "");
        }
    }
    if path == "/api/models/org/tiny/revision/main?blobs=true" {
        let file = |(path, content): (&String, &Vec<u8>)| {
            let lfs = path.ends_with(".safetensors").then(|| json!({"sha256": id(path, content)}));
            json!({"rfilename": path, "size": content.len(), "blobId": id(path, content), "lfs": lfs})
        };
        let siblings: Vec<_> = state.files.iter().map(file).collect();
        return answer(200, "", &json!({"sha": state.commit, "siblings": siblings}).to_string());
    }
    let resolve = format!("/org/tiny/resolve/{}/", state.commit);
    let name = path.strip_prefix(&resolve).or(path.strip_prefix("/cdn/")).unwrap_or("").to_string();
    let Some(content) = state.files.get(&name).cloned() else {
        return answer(404, "", "");
    };
    let content = state.other.clone().filter(|_| name == LARGE).unwrap_or(content);
    let about = format!("ETag: \"{}\"\r\nX-Repo-Commit: {}\r\n", id(&name, &content), state.commit);
    // As the hub does: large files are elsewhere.
    if name.ends_with(".safetensors") && !path.starts_with("/cdn/") {
        return answer(302, &format!("Location: http://localhost:{port}/cdn/{name}\r\n{about}"), "");
    }
    if to.is_none() {
        state.log.push(format!("{name} {from}-"));
        from = if state.ignores_range { 0 } else { from };
    }
    let part = content.get(from..to.map_or(content.len(), |to| to + 1)).unwrap_or_default();
    if part.is_empty() && !content.is_empty() {
        return answer(416, &about, "");
    }
    let cut = if name == LARGE && to.is_none() { state.cuts.pop() } else { None };
    let stalls = cut.is_some() && state.stalls;
    state.sent += part.len();
    drop(state);
    let (len, last, size) = (part.len(), (from + part.len()).saturating_sub(1), content.len());
    let about = format!("{about}Connection: close\r\nContent-Range: bytes {from}-{last}/{size}\r\n");
    write!(stream, "HTTP/1.1 206 X\r\nContent-Length: {len}\r\n{about}\r\n")?;
    stream.write_all(&part[..cut.unwrap_or(len)])?;
    if stalls {
        std::thread::sleep(Duration::from_secs(2));
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new()).map(|_| ())
}

/// What the hub calls a content.
fn id(name: &str, content: &[u8]) -> String {
    let digest = match name.ends_with(".safetensors") {
        true => Sha256::digest(content).to_vec(),
        false => Sha1::digest([format!("blob {}\0", content.len()).as_bytes(), content].concat()).to_vec(),
    };
    digest.iter().map(|b| format!("{b:02x}")).collect()
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
        blobs.join(id(LARGE, &checkpoint(700_000)) + ".part")
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
    case.hub.settings.read_timeout = Duration::from_millis(400);
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
    // A server that sends the whole instead of the rest.
    case.set(|state| (state.cuts, state.ignores_range) = (vec![200_000], true));
    assert_eq!(case.assert_fetches(), ["0-", "200000-"]);
}

#[test]
fn offline_takes_the_cache_or_says_what_is_missing() {
    let mut case = Case::new();
    case.hub.settings.offline = true;
    let folder = format!("{}/hub/models--org--tiny/snapshots/", case.dir.path().display());
    case.assert_fails(&format!("{folder}: no model_index.json of main"));
    case.hub.settings.offline = false;
    let dir = case.fetch().unwrap();
    // Nothing may be asked for from here on.
    case.hub.settings.endpoint = "http://127.0.0.1:1".into();
    case.hub.settings.offline = true;
    assert_eq!(case.fetch().unwrap(), dir);
    assert_eq!(case.hub.fetch_observed("org/tiny", Some(COMMIT), None, &mut ()).unwrap(), dir);
    // Nobody listens: the same, with a word about it.
    case.hub.settings.offline = false;
    let mut log = Log(Vec::new(), 0, u64::MAX);
    assert_eq!(case.hub.fetch_observed("org/tiny", None, None, &mut log).unwrap(), dir);
    assert!(log.0.len() == 1 && log.0[0].ends_with("using the copy in the cache"), "{:?}", log.0);
    fs::remove_file(dir.join(SHARD)).unwrap();
    fs::remove_file(dir.join("transformer/config.json")).unwrap();
    let missing = format!("no {SHARD}, transformer/config.json");
    case.assert_fails(&missing);
    case.assert_fails("http://127.0.0.1:1/api/models/org/tiny/revision/main cannot be reached: ");
    case.hub.settings.offline = true;
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
    case.assert_fails("after 5 tries without progress: status 503");
    case.set(|state| state.status = Some(("/cdn", 200)));
    case.assert_fails("after 5 tries without progress: the connection closed after 0 bytes");
    case.set(|state| state.status = Some(("/cdn", 206)));
    case.assert_fails("gives no useful answer: a part of unknown place");
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
    let hub =
        |vars: &[(&str, &str)]| Settings::from_vars(|name| Some(vars.iter().find(|var| var.0 == name)?.1.to_string()));
    let all = [("HF_HUB_CACHE", "/c"), ("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", "https://m/"), ("HF_TOKEN", " t\n")];
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
    let token = |vars: &[(&str, &str)]| hub(&[vars, &[("HF_HOME", home)]].concat()).unwrap().token.unwrap_or_default();
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

#[test]
fn a_token_goes_to_the_hub_alone() {
    let mut case = Case::new();
    case.hub.settings.token = Some("secret".into());
    case.fetch().unwrap();
    let tokens = std::mem::take(&mut case.state.lock().unwrap().tokens);
    assert!(tokens.iter().any(|(path, token)| path.starts_with("/api/") && token == "bearer secret"));
    assert!(tokens.iter().any(|(path, _)| path.contains(LARGE)), "{tokens:?}");
    assert!(!tokens.iter().any(|(path, _)| path.starts_with("/cdn/")), "{tokens:?}");
}

#[test]
fn nothing_becomes_visible_that_has_another_hash() {
    let case = Case::new();
    let mut bad = checkpoint(700_000);
    *bad.last_mut().unwrap() ^= 1;
    case.set(|state| state.other = Some(bad.clone()));
    case.assert_fails(&format!("{LARGE}: what came has the hash {}, the hub lists ", id(LARGE, &bad)));
    let cache = case.dir.path().join("hub/models--org--tiny");
    assert!(!case.part().exists() && !case.part().with_extension("").exists());
    assert!(!cache.join("snapshots").join(COMMIT).join(LARGE).exists() && !cache.join("refs/main").exists());
    // A part of something else, from an earlier call: fetched anew.
    case.set(|state| state.other = None);
    fs::write(case.part(), vec![7; 1000]).unwrap();
    assert_eq!(case.assert_fetches(), ["0-", "0-", "1000-", "0-"]);
}

#[test]
fn refusals_name_the_way_in() {
    let mut case = Case::new();
    let page = format!("{}/org/tiny", case.hub.settings.endpoint);
    case.set(|state| (state.status, state.header) = (Some(("/api", 401)), "X-Error-Code: GatedRepo\r\n"));
    case.assert_fails(&format!(
        "it is gated: ask for access at {page}; then give a token: HF_TOKEN=.., or `hf auth login`"
    ));
    case.hub.settings.token = Some("t".into());
    case.assert_fails("the token that was sent must be of an account with access");
    case.set(|state| (state.status, state.header) = (Some(("/api", 404)), "X-Error-Code: RevisionNotFound\r\n"));
    case.assert_fails("/api/models/org/tiny/revision/main does not exist: the repository has no revision \"main\"");
    // The hub names a time: a short one is waited for, a long one told.
    case.set(|state| (state.status, state.header) = (Some(("/", 429)), "Retry-After: 3600\r\n"));
    case.assert_fails("too many requests (status 429); try again in 3600 s, or with a token in HF_TOKEN");
    case.set(|state| state.header = "ratelimit: \"api\";r=0;t=120\r\n");
    case.assert_fails("try again in 120 s");
    case.set(|state| (state.header, state.times) = ("Retry-After: 1\r\n", Some(1)));
    let mut log = Log(Vec::new(), 0, u64::MAX);
    let start = Instant::now();
    case.hub.fetch_observed("org/tiny", None, None, &mut log).unwrap();
    assert!(log.0[0].contains("too many requests (status 429), waiting for 1 s; trying again"), "{:?}", log.0);
    assert!(start.elapsed() > Duration::from_secs(1));
    // All is there: a hub that refuses is no obstacle.
    case.set(|state| (state.status, state.times) = (Some(("/", 401)), None));
    let mut log = Log(Vec::new(), 0, u64::MAX);
    case.hub.fetch_observed("org/tiny", None, None, &mut log).unwrap();
    assert!(log.0[0].contains("access denied") && log.0[0].ends_with("using the copy in the cache"), "{:?}", log.0);
}

#[test]
fn a_silent_hub_is_told_within_its_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut case = Case::new();
    case.hub.settings.endpoint = format!("http://{}", listener.local_addr().unwrap());
    case.hub.settings.answer_timeout = Duration::from_millis(300);
    let start = Instant::now();
    case.assert_fails("cannot be reached: timeout");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[test]
fn the_space_is_checked_before() {
    let case = Case::new();
    case.set(|state| {
        let huge = state.files[LARGE].clone();
        state.files.insert(LARGE.into(), huge);
    });
    let space = super::cache::free_space(case.dir.path());
    assert!(!cfg!(unix) || space.is_some_and(|free| free > 0));
    let (repo, dir) = ("org/tiny".to_string(), PathBuf::from("/c"));
    let error = HubError::Space { repo, dir, needed: 10, free: 5 }.to_string();
    assert_eq!(error, "org/tiny needs 10 more bytes in /c, which has 5 left; HF_HUB_CACHE says where to put them");
}

#[test]
fn a_variant_that_nothing_has_is_told_before_anything_large() {
    let case = Case::new();
    let error = case.hub.fetch_observed("org/tiny", None, Some("int8"), &mut ()).unwrap_err().to_string();
    let expected =
        "org/tiny: no component has weights of the variant \"int8\", there are \"fp16\", plain files without a variant";
    assert_eq!(error, expected);
    assert_eq!(case.state.lock().unwrap().log, ["model_index.json 0-"]);
}

/// As where a folder is opened: diffusers' shards before its single file, and what is complete before what is not.
#[test]
fn of_a_file_and_shards_the_preferred_ones_are_fetched() {
    let case = Case::new();
    let index = "transformer/diffusion_pytorch_model.safetensors.index.json";
    let map = br#"{"weight_map": {"e": "a.safetensors"}}"#;
    case.set(|state| {
        state.files.insert(index.into(), map.to_vec());
        state.files.insert("transformer/a.safetensors".into(), checkpoint(9));
        state.files.insert("text_encoder/model.safetensors".into(), checkpoint(8));
    });
    let dir = case.fetch().unwrap();
    assert!(dir.join("transformer/a.safetensors").exists() && !dir.join(LARGE).exists());
    assert!(dir.join("text_encoder/model.safetensors").exists() && !dir.join(SHARD).exists());
    let case = Case::new();
    case.set(|state| drop(state.files.insert(index.into(), map.to_vec())));
    let dir = case.fetch().unwrap();
    assert!(dir.join(LARGE).exists());
    let folder = PipelineFolder::open(Source::Dir(dir)).unwrap();
    assert!(folder.weights("transformer", None).unwrap().notes()[0].ends_with("safetensors is used instead"));
}

#[test]
fn weights_that_no_picture_needs_are_left_where_they_are() {
    let case = Case::new();
    case.set(|state| {
        let index = br#"{"_class_name": "P", "transformer": ["diffusers", "T"], "safety_checker": ["x", "S"]}"#;
        state.files.insert("model_index.json".into(), index.to_vec());
        state.files.insert("safety_checker/pytorch_model.bin".into(), vec![0; 99]);
        state.files.insert("safety_checker/config.json".into(), b"{}".to_vec());
        // Nobody can say where an empty file ends, and tokenizers have some.
        state.files.insert("transformer/merges.txt".into(), Vec::new());
    });
    let dir = case.fetch().unwrap();
    assert!(!dir.join("safety_checker/pytorch_model.bin").exists());
    assert_eq!(fs::read(dir.join("transformer/merges.txt")).unwrap(), b"");
    let mut case = case;
    case.hub.settings.offline = true;
    assert_eq!(case.fetch().unwrap(), dir);
}

#[test]
fn headers_alone_are_enough_to_tell_what_is_there() {
    let mut case = Case::new();
    case.set(|state| drop(state.files.insert(LARGE.into(), checkpoint(9_000_000))));
    let headers = case.hub.fetch_headers("org/tiny", None, None, &mut ()).unwrap();
    assert!(matches!(headers, Headers::Temporary(_)));
    let folder = PipelineFolder::open(Source::Dir(headers.path().into())).unwrap();
    assert_eq!(folder.weights("transformer", None).unwrap().n_bytes(), 9_000_000);
    assert_eq!(folder.weights("text_encoder", None).unwrap().n_bytes(), 9);
    assert!(case.state.lock().unwrap().sent < 1_000_000);
    let dir = headers.path().to_path_buf();
    drop(headers);
    assert!(!dir.exists());
    // A header that is longer than what is asked for first.
    case.set(|state| {
        let file = checkpoint(9);
        let len = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
        let spaces = 2 << 20;
        let header = [((len + spaces) as u64).to_le_bytes().to_vec(), file[8..8 + len].to_vec(), vec![b' '; spaces]];
        state.files.insert(LARGE.into(), [header.concat(), file[8 + len..].to_vec()].concat());
    });
    let headers = case.hub.fetch_headers("org/tiny", None, None, &mut ()).unwrap();
    let folder = PipelineFolder::open(Source::Dir(headers.path().into())).unwrap();
    assert_eq!(folder.weights("transformer", None).unwrap().n_bytes(), 9);
    case.fetch().unwrap();
    case.hub.settings.offline = true;
    assert!(matches!(case.hub.fetch_headers("org/tiny", None, None, &mut ()).unwrap(), Headers::Cached(_)));
}
