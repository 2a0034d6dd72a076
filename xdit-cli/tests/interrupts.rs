//! Ctrl-C in the middle of many pictures.
#![cfg(unix)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::common::{CAPTION, command, decode, files, json, stderr};

/// A busy machine is slow; nobody waits that long elsewhere.
const PATIENCE: Duration = Duration::from_secs(120);

fn spawn(dir: &TempDir, args: &[&str]) -> Child {
    command(dir, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program runs")
}

fn start(dir: &TempDir, more: &[&str]) -> Child {
    spawn(dir, &[&["generate", "-p", CAPTION, "--steps", "1"][..], more].concat())
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status();
    assert!(status.expect("kill runs").success());
}

fn wait_until(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < PATIENCE, "nothing happens");
        sleep(Duration::from_millis(5));
    }
}

fn pictures(folder: &Path) -> usize {
    if folder.is_dir() { files(folder).iter().filter(|file| file.extension().is_some()).count() } else { 0 }
}

#[test]
fn what_is_finished_stays() {
    let ranks = &["--ulysses-degree", "2", "--data-parallel-degree", "2"];
    for (name, more) in [("INT", &[][..]), ("TERM", &["--json"]), ("INT", ranks)] {
        let dir = TempDir::new().expect("a folder");
        let folder = dir.path().join("many");
        let child = start(&dir, &[&["-n", "30", "-o", "many/"], more].concat());
        wait_until(|| pictures(&folder) >= 2);
        signal(&child, name);
        let output = child.wait_with_output().expect("an end");
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(130), "{text}");
        let n = files(&folder).len();
        assert!((2..30).contains(&n), "{n}");
        files(&folder).iter().for_each(|file| drop(decode(file)));
        let said = format!("interrupted: {n} of 30 pictures written to many/");
        assert_eq!(text.lines().last(), Some(said.as_str()), "{text}");
        if name == "TERM" {
            let record = json(&output);
            assert_eq!(record["error"], said.as_str());
            assert_eq!(record["files"].as_array().map(Vec::len), Some(n));
        } else {
            assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), n, "their paths were said");
        }
    }
}

#[test]
fn what_is_finished_is_told_when_the_rest_fails() {
    let dir = TempDir::new().expect("a folder");
    let folder = dir.path().join("many");
    let child = start(&dir, &["-n", "30", "-o", "many/"]);
    wait_until(|| pictures(&folder) >= 2);
    let moved = dir.path().join("moved");
    fs::rename(&folder, &moved).expect("moved");
    let output = child.wait_with_output().expect("an end");
    assert_eq!(output.status.code(), Some(1));
    let said = format!("{} of 30 pictures written to many/", pictures(&moved));
    let text = stderr(&output);
    let last = text.lines().last().expect("an error");
    assert!(last.starts_with("error: cannot write") && last.ends_with(&said), "{text}");
}

#[test]
fn before_the_first_picture() {
    let dir = TempDir::new().expect("a folder");
    let args = ["generate", "-p", CAPTION, "--steps", "1000", "-o", "few/"];
    let child = spawn(&dir, &args);
    // the folder is made when the program listens
    wait_until(|| dir.path().join("few").is_dir());
    signal(&child, "INT");
    let output = child.wait_with_output().expect("an end");
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(stderr(&output).lines().last(), Some("interrupted: 0 of 1 pictures written"));
    assert_eq!(files(&dir.path().join("few")).len(), 0);
}

#[test]
fn the_second_time_ends_at_once() {
    let dir = TempDir::new().expect("a folder");
    // blocks of many tokens, in each of which nobody looks at the first signal
    let mut child = start(&dir, &["--height", "2048", "--width", "2048", "-o", "large/"]);
    let mut said = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    // the decoder is read last
    let loaded = said.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("load: ") && line.contains("vae")));
    assert!(loaded.is_some());
    signal(&child, "INT");
    // again until it is seen: two that come at the same time are one
    let status = loop {
        sleep(Duration::from_millis(20));
        match child.try_wait().expect("a child") {
            Some(status) => break status,
            None => signal(&child, "INT"),
        }
    };
    assert_eq!(status.code(), Some(130));
    assert_eq!(said.count(), 0, "not even a word");
    assert_eq!(files(&dir.path().join("large")).len(), 0);
}
