//! Hub ids, against a hub on this machine's loopback that serves a golden folder.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{command, fails, golden, json, stderr, stdout};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn walk(root: &Path, folder: &Path, all: &mut Vec<PathBuf>) {
    for path in common::files(folder) {
        if path.is_dir() {
            walk(root, &path, all);
        } else {
            all.push(path.strip_prefix(root).expect("below").into());
        }
    }
}

/// The API's list of the files below `root`. Ids that are no hashes are not checked.
fn listing(root: &Path) -> Value {
    let mut all = Vec::new();
    walk(root, root, &mut all);
    let file = |(i, path): (usize, &PathBuf)| {
        let size = fs::metadata(root.join(path)).expect("a file").len();
        json!({ "rfilename": path, "size": size, "blobId": format!("content{i:04}") })
    };
    json!({ "sha": COMMIT, "siblings": all.iter().enumerate().map(file).collect::<Vec<_>>() })
}

fn serve(mut stream: TcpStream, root: &Path) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default().to_string();
    let headers: Vec<_> = lines.take_while(|line| !line.is_empty()).map(|line| line.to_ascii_lowercase()).collect();
    let resolve = format!("/org/tiny/resolve/{COMMIT}/");
    let (status, mut bytes) = match path.strip_prefix(&resolve) {
        Some(file) => (200, fs::read(root.join(file))?),
        None if path.starts_with("/api/models/org/tiny/revision/main") => (200, listing(root).to_string().into_bytes()),
        None => (404, Vec::new()),
    };
    let mut more = String::new();
    let range = headers.iter().find_map(|line| line.strip_prefix("range: bytes=0-")?.parse::<usize>().ok());
    if let Some(last) = range {
        more = format!("Content-Range: bytes 0-{}/{}\r\n", last.min(bytes.len() - 1), bytes.len());
        bytes.truncate(last + 1);
    }
    let status = if range.is_some() { 206 } else { status };
    write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{more}Connection: close\r\n\r\n", bytes.len())?;
    stream.write_all(&bytes)
}

/// A hub with `org/tiny`.
fn hub() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let root = PathBuf::from(golden("pixart-256"));
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let _ = serve(stream, &root);
        }
    });
    endpoint
}

fn xdit(dir: &TempDir, endpoint: &str, args: &[&str]) -> Output {
    let mut command = command(dir, args);
    command.env("HF_ENDPOINT", endpoint).env("HF_HUB_OFFLINE", "0").env("NO_PROXY", "127.0.0.1");
    command.output().expect("the program runs")
}

#[test]
fn download_fetches_what_generate_needs() {
    let (dir, endpoint) = (tempfile::tempdir().expect("a folder"), hub());
    let output = xdit(&dir, &endpoint, &["download", "org/tiny"]);
    let folder = PathBuf::from(stdout(&output).trim_end());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(folder.ends_with(format!("hub/models--org--tiny/snapshots/{COMMIT}")), "{}", folder.display());
    assert!(folder.join("text_encoder/model.safetensors").is_file() && stderr(&output).contains("download: "));
    let record = json(&xdit(&dir, &endpoint, &["download", "org/tiny", "--json"]));
    assert_eq!(record["folder"], json!(folder));
    // From here on no hub is needed.
    let output = common::draw(&dir, "org/tiny", &["--no-resolution-binning", "-q"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output = xdit(&dir, &endpoint, &["download", "org/other"]);
    fails(&tempfile::tempdir().expect("a folder"), output, 1, &["api/models/org/other/revision/main does not exist"]);
    let output = xdit(&dir, "http://127.0.0.1:1", &["download", "org/other"]);
    fails(
        &tempfile::tempdir().expect("a folder"),
        output,
        1,
        &["cannot be reached", "org/other is not complete in the cache"],
    );
}

#[test]
fn plan_and_inspect_take_hub_ids() {
    let (dir, endpoint) = (tempfile::tempdir().expect("a folder"), hub());
    let root = golden("pixart-256");
    let ids = json(&xdit(&dir, &endpoint, &["inspect", "org/tiny", "--json"]));
    let folders = json(&xdit(&dir, &endpoint, &["inspect", &root, "--json"]));
    let params = |record: &Value| {
        let components = record["components"].as_array().expect("components").iter();
        components.map(|component| component["weights"]["params"].as_u64()).collect::<Vec<_>>()
    };
    assert!(params(&ids).iter().flatten().sum::<u64>() > 0);
    assert_eq!(params(&ids), params(&folders));
    let plan = |model: &str| stdout(&xdit(&dir, &endpoint, &["plan", "--model", model, "--json"]));
    assert!(plan("org/tiny").contains("weight_bytes"));
    assert_eq!(plan("org/tiny"), plan(&root));
    // Weights were not fetched.
    let weights = dir.path().join(format!("hub/hub/models--org--tiny/snapshots/{COMMIT}/vae"));
    assert!(weights.join("config.json").is_file() && !weights.join("diffusion_pytorch_model.safetensors").exists());
}
