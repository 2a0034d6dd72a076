//! The program as a user runs it, and how its answers are judged.
#![allow(dead_code, missing_docs, reason = "each test file uses some of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

pub const CAPTION: &str = "a large red circle on a yellow background";

pub fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../xdit-testing/golden").join(name);
    path.canonicalize().expect("a fixture").to_string_lossy().into_owned()
}

/// The program in `dir`, without a hub.
pub fn command(dir: &TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xdit"));
    command.args(args).current_dir(dir).env("HF_HUB_OFFLINE", "1").env("HF_HOME", dir.path().join("hub"));
    command
}

pub fn xdit(dir: &TempDir, args: &[&str]) -> Output {
    command(dir, args).output().expect("the program runs")
}

/// A drawing with the tiny model of the golden cases, which takes milliseconds.
pub fn draw(dir: &TempDir, model: &str, more: &[&str]) -> Output {
    let mut args = vec!["generate", "--model", model, "--prompt", "a red cat", "--height", "32", "--width", "48"];
    args.extend(["--steps", "2", "--max-sequence-length", "16"]);
    args.extend(more);
    xdit(dir, &args)
}

/// The built-in model, in one step.
pub fn quick(dir: &TempDir, more: &[&str]) -> Output {
    xdit(dir, &[&["generate", "--prompt", CAPTION, "--steps", "1"][..], more].concat())
}

/// Exit code, one error on standard error with all of `parts` in it (on one line, but for usage, which clap explains at
/// length), and no file left behind.
#[track_caller]
pub fn fails(dir: &TempDir, output: Output, code: i32, parts: &[&str]) {
    let text = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(code), "{text}");
    let errors: Vec<_> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{text}");
    assert!(!text.contains("panicked"), "{text}");
    let message = if code == 2 { text.as_str() } else { errors[0] };
    for part in parts {
        assert!(message.contains(part), "no {part:?} in {text}");
    }
    let left: Vec<_> = files(dir.path()).into_iter().filter(|f| f.extension().is_some_and(|e| e == "png")).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}

pub fn files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry").path()).collect()
}

/// A copy of a golden pipeline folder to spoil.
pub fn copy(dir: &TempDir, name: &str) -> PathBuf {
    fn walk(from: &Path, to: &Path) {
        fs::create_dir_all(to).expect("a folder");
        for entry in files(from) {
            let target = to.join(entry.file_name().expect("a name"));
            if entry.is_dir() {
                walk(&entry, &target);
            } else {
                fs::copy(&entry, &target).expect("a copy");
            }
        }
    }
    let to = dir.path().join("model");
    walk(Path::new(&golden(name)), &to);
    to
}

pub fn decode(path: &Path) -> (png::Info<'static>, Vec<u8>) {
    let file = std::io::BufReader::new(fs::File::open(path).expect("the picture"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
    let mut rgb = vec![0; reader.output_buffer_size().expect("a size")];
    reader.next_frame(&mut rgb).expect("pixels");
    reader.finish().expect("all chunks");
    (reader.info().clone(), rgb)
}

/// The text chunk of a PNG.
pub fn text(info: &png::Info<'_>, key: &str) -> String {
    let chunk = info.utf8_text.iter().find(|chunk| chunk.keyword == key).expect("the chunk");
    chunk.get_text().expect("text")
}

/// One object on standard output.
#[track_caller]
pub fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).expect("JSON")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
