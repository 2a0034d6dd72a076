//! Standard output and standard error that are full or closed, and errors for programs.
#![cfg(unix)]

mod common;

use std::fs::{self, File};
use std::process::{Output, Stdio};

use tempfile::TempDir;

use crate::common::{CAPTION, command, copy, decode, draw, fails, golden, json, quick, stderr, xdit};

const COMMANDS: &[&[&str]] = &[
    &["generate", "-p", CAPTION, "--steps", "1"],
    &["generate", "-p", CAPTION, "--steps", "1", "--json"],
    &["generate", "-p", CAPTION, "--steps", "1", "-o", "-"],
    &["plan"],
    &["plan", "--json"],
    &["models"],
    &["models", "--json"],
    &["inspect"],
    &["inspect", "--json"],
    &["schedule", "--svg", "s.svg"],
    &["--help"],
    &["generate", "--help"],
    &["--version"],
];

/// Every write to it fails as on a full disk.
fn full() -> Stdio {
    File::options().write(true).open("/dev/full").expect("the device").into()
}

/// A pipe that nobody reads.
fn broken() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

#[track_caller]
fn picture(dir: &TempDir, args: &[&str]) {
    if args[0] == "generate" && args[1] == "-p" && !args.contains(&"-") {
        decode(&dir.path().join("xdit.png"));
    }
    if args[0] == "schedule" {
        assert!(dir.path().join("s.svg").is_file());
    }
}

fn run(args: &[&str], stdout: Stdio, stderr: Stdio) -> (TempDir, Output) {
    let dir = TempDir::new().expect("a folder");
    let output = command(&dir, args).stdout(stdout).stderr(stderr).spawn().and_then(|child| child.wait_with_output());
    (dir, output.expect("the program runs"))
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_output_is_told_once_and_loses_no_picture() {
    for args in COMMANDS {
        let (dir, output) = run(args, full(), Stdio::piped());
        picture(&dir, args);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        let errors: Vec<_> = text.lines().filter(|line| line.starts_with("error")).collect();
        assert_eq!(errors, ["error: cannot write to standard output: No space left on device (os error 28)"]);
        assert!(!text.contains("panicked"), "{text}");
    }
}

#[test]
fn a_reader_who_goes_away_is_no_error() {
    for args in COMMANDS {
        let (dir, output) = run(args, broken(), Stdio::piped());
        picture(&dir, args);
        let text = stderr(&output);
        assert!(output.status.success(), "{args:?}: {text}");
        assert!(!text.contains("error") && !text.contains("panicked"), "{text}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_or_closed_standard_error_loses_nothing() {
    for stderr in [full, broken] {
        for args in COMMANDS {
            let (dir, output) = run(args, Stdio::piped(), stderr());
            picture(&dir, args);
            assert!(output.status.success(), "{args:?}");
            assert!(!output.stdout.is_empty(), "{args:?}");
        }
        for (args, code) in [(&["plan", "--nonsense"][..], 2), (&["inspect", "nowhere"], 1)] {
            let (_, output) = run(args, Stdio::piped(), stderr());
            assert_eq!(output.status.code(), Some(code), "{args:?}");
        }
    }
}

#[test]
fn errors_for_programs() {
    let dir = TempDir::new().expect("a folder");
    for (args, code, parts) in [
        (&["generate", "-p", "x", "--height", "100", "--json"][..], 1, &["height 100", "multiple of 16"][..]),
        (&["generate", "-p", "x", "--model", "./nowhere", "--json"], 1, &["nowhere"]),
        (&["generate", "-p", "x", "--nonsense", "--json"], 2, &["unexpected argument '--nonsense' found"]),
        (&["generate", "--json"], 2, &["required arguments were not provided: --prompt"]),
        (&["plan", "--json", "--ulysses-degree", "9"], 1, &["ulysses degree 9"]),
        (&["inspect", "--json", "nowhere"], 1, &["nowhere"]),
    ] {
        let output = xdit(&dir, args);
        let record = json(&output);
        let error = record["error"].as_str().expect("an error");
        assert!(parts.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{error}");
        fails(&dir, output, code, &[]);
    }
    let record = json(&xdit(&dir, &["models", "--json"]));
    assert_eq!(record["pipelines"][0]["class"], "FluxPipeline");
    assert!(record["pipelines"][0]["models"].as_str().is_some_and(|models| models.contains("FLUX.1-dev")));
}

#[test]
fn errors_name_their_cause_once_and_no_whole_prompt() {
    let dir = TempDir::new().expect("a folder");
    let model = copy(&dir, "flux-schnell");
    fs::write(model.join("vae/config.json"), "{").expect("written");
    let text = stderr(&draw(&dir, &model.to_string_lossy(), &[]));
    assert_eq!(text.matches("EOF while parsing").count(), 1, "{text}");
    let long = "a cat and a dog and ".repeat(100);
    for args in [&[long.as_str()][..], &["--prompt-file", &long], &["-o", &format!("{long}.png")]] {
        let output = quick(&dir, args);
        assert!(!output.status.success());
        assert!(output.stderr.len() < 400, "{}", stderr(&output));
    }
    let cut = draw(&dir, &golden("flux-dev"), &["--negative-prompt", &long, "--true-cfg-scale", "2"]);
    let warning = stderr(&cut).lines().find(|line| line.starts_with("warning: tokenizer_2")).map(str::len);
    assert!(warning.is_some_and(|len| len < 200), "{}", stderr(&cut));
}

/// Whoever uses the library has no flags.
#[test]
fn the_library_speaks_of_no_flags() {
    let dir = TempDir::new().expect("a folder");
    let model = copy(&dir, "flux-schnell");
    let weights = model.join("transformer/diffusion_pytorch_model.safetensors");
    let mut bytes = fs::read(&weights).expect("a file");
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, bytes).expect("written");
    let overflow = draw(&dir, &model.to_string_lossy(), &[]);
    let binned = draw(&dir, &golden("pixart-256"), &[]);
    for (output, part) in [(overflow, "non-finite"), (binned, "warning: drawn at")] {
        let text = stderr(&output);
        assert!(text.contains(part) && !text.contains("--"), "{text}");
    }
}
