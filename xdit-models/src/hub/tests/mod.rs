//! Against a hub on this machine's loopback, with redirects to a content server and connections that break.

mod choice;
mod downloads;
mod refusals;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use sha1::{Digest, Sha1};
use sha2::Sha256;
use xdit_core::folder::{PipelineFolder, Source};
use xdit_core::observer::{Observer, Phase};

use super::fetch::Hub;
use super::{Headers, HubError, Wanted};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TINY: Wanted<'_> = Wanted { id: "org/tiny", revision: None, variant: None, classes: &[] };
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
    /// What the list of files says of a large file's size.
    claims: Option<usize>,
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
    let status = state.status.filter(|(prefix, _)| path.starts_with(prefix));
    if let Some((_, status)) = status.filter(|_| state.times.is_none_or(|times| times > 0)) {
        state.times = state.times.map(|times| times - 1);
        return answer(status, state.header, "");
    }
    if path == "/api/models/org/tiny/revision/main?blobs=true" {
        let file = |(path, content): (&String, &Vec<u8>)| {
            let size = state.claims.filter(|_| path == LARGE).unwrap_or(content.len());
            let lfs = path.ends_with(".safetensors").then(|| json!({"sha256": id(path, content)}));
            json!({"rfilename": path, "size": size, "blobId": id(path, content), "lfs": lfs})
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
        // Each with a content of its own: equal ones are fetched once.
        let own = |path: &str| (path.to_string(), format!("{{\"_name\": \"{path}\"}}").into_bytes());
        let small = "xdit.json transformer/config.json text_encoder/config.json tokenizer/vocab.json README.md \
            all.safetensors transformer/x.bin vae/config.json ../../evil.json";
        let mut files: BTreeMap<_, _> = small.split(' ').map(own).collect();
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
        self.hub.fetch_observed(TINY, &mut ())
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
