//! Configurations out of all measure end the program with one line, not with an abort that a library's caller can't catch.

mod common;

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use common::copy;

/// The golden folder `flux-dev` with one text of a configuration replaced.
fn changed(dir: &TempDir, file: &str, from: &str, new: &str) -> PathBuf {
    let model = copy(dir, "flux-dev");
    let path = model.join(file);
    let text = std::fs::read_to_string(&path).expect("text");
    let replaced = text.replacen(from, new, 1);
    assert_ne!(text, replaced, "{file} has {from}");
    std::fs::write(path, replaced).expect("written");
    model
}

#[test]
fn absurd_numbers_are_one_line() {
    for (file, key) in [
        ("transformer/config.json", "num_layers"),
        ("transformer/config.json", "num_attention_heads"),
        ("text_encoder/config.json", "vocab_size"),
        ("text_encoder_2/config.json", "num_layers"),
        ("vae/config.json", "layers_per_block"),
    ] {
        for number in ["0", "-1", "1000000000", "4611686018427387904", "1e308"] {
            let dir = tempfile::tempdir().expect("a folder");
            let (from, new) = (format!("\"{key}\": "), format!("\"{key}\": {number}, \"{key}_before\": "));
            let model = changed(&dir, file, &from, &new);
            let model = model.to_str().expect("UTF-8");
            for arguments in [
                vec!["plan", "--model", model, "--num-inference-steps", "1"],
                vec!["inspect", model],
                vec![
                    "generate", "--model", model, "--prompt", "a cat", "--height", "32", "--width", "32", "--steps",
                    "1",
                ],
            ] {
                let output = Command::new(env!("CARGO_BIN_EXE_xdit"))
                    .args(&arguments)
                    .current_dir(dir.path())
                    .output()
                    .expect("started");
                let said = String::from_utf8_lossy(&output.stderr);
                let code = output.status.code();
                // a few of them are right: a model may have no double blocks, if its weights have none
                assert!(code.is_some_and(|code| code < 100), "{file} {key} {number} {arguments:?}: {code:?} {said}");
                let errors = said.lines().filter(|line| line.starts_with("error:")).count();
                assert!(code == Some(0) || errors == 1, "{file} {key} {number}: {said}");
                assert!(!said.contains("panicked"), "{said}");
            }
        }
    }
}
