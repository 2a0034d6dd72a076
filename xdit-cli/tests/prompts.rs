//! Prompts, seeds and numbers as people write them; flags that change nothing.

mod common;

use std::fs;
use std::io::Write;
use std::process::{Output, Stdio};

use tempfile::TempDir;

use crate::common::{command, decode, draw, fails, files, golden, json, quick, stderr, stdout, text, xdit};

fn from_file(dir: &TempDir, file: &str, more: &[&str]) -> Output {
    let model = golden("flux-dev");
    let args =
        ["generate", "--model", &model, "--prompt-file", file, "--height", "32", "--width", "32", "--steps", "1"];
    let mut child = command(dir, &[&args[..], more].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    // who reads no prompts does not listen
    let _ = child.stdin.take().expect("a pipe").write_all("\u{feff}a cat\r\n\r\n   \r\na dog, blue".as_bytes());
    child.wait_with_output().expect("an end")
}

#[test]
fn a_file_of_prompts() {
    let dir = TempDir::new().expect("a folder");
    fs::write(dir.path().join("p.txt"), "a cat\n\na dog, blue\n").expect("a file");
    for (file, out) in [("p.txt", "file/"), ("-", "stdin/")] {
        let output = from_file(&dir, file, &["-o", out, "--json"]);
        assert!(output.status.success(), "{}", stderr(&output));
        let record = json(&output);
        let prompts: Vec<_> = record["files"].as_array().expect("files").iter().map(|f| f["prompt"].clone()).collect();
        assert_eq!(prompts, ["a cat", "a dog, blue"]);
    }
    fs::write(dir.path().join("bad.txt"), b"a cat\na d\xf6g").expect("a file");
    fs::write(dir.path().join("empty.txt"), "\n\n").expect("a file");
    fs::write(dir.path().join("large.txt"), vec![b'x'; 17 << 20]).expect("a file");
    let bad = |file: &str, parts: &[&str]| fails(&dir, from_file(&dir, file, &[]), 1, parts);
    bad("bad.txt", &["cannot read prompts from bad.txt: line 2 is not UTF-8"]);
    bad("empty.txt", &["cannot read prompts from empty.txt: there is none"]);
    bad("large.txt", &["cannot read prompts from large.txt: more than 16 MiB"]);
    bad("none.txt", &["cannot read prompts from none.txt", "No such file"]);
    fails(&dir, from_file(&dir, "-", &["-p", "x"]), 2, &["--prompt-file", "cannot be used with", "--prompt"]);
}

#[test]
fn words_without_quotes_are_noticed() {
    let dir = TempDir::new().expect("a folder");
    let warned = |more: &[&str]| {
        let args = [&["generate", "--model", "./nowhere", "-p"], more].concat();
        stderr(&xdit(&dir, &args)).lines().find(|line| line.starts_with("warning: ")).map(str::to_owned)
    };
    let said = warned(&["a", "red", "cat"]).expect("a warning");
    assert!(said.contains("it needs quotes: --prompt \"a red cat\""), "{said}");
    let said = warned(&["a red cat", "--negative-prompt", "bad", "hands"]).expect("a warning");
    assert!(said.contains("--negative-prompt \"bad hands\""), "{said}");
    for fine in [&["cat"][..], &["cat", "-p", "dog"], &["a cat", "a dog"], &["一只猫", "一只狗"]] {
        assert_eq!(warned(fine), None);
    }
}

#[test]
fn an_empty_prompt_is_drawn() {
    let dir = TempDir::new().expect("a folder");
    for (prompt, name) in [("", "a.png"), ("  ", "b.png")] {
        let output = xdit(&dir, &["generate", "-p", prompt, "--steps", "1", "-o", name]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(text(&decode(&dir.path().join(name)).0, "prompt"), prompt);
    }
}

#[test]
fn a_seed_is_drawn() {
    let dir = TempDir::new().expect("a folder");
    let mut seeds = Vec::new();
    for (seed, name) in [("-1", "a.png"), ("random", "b.png")] {
        let output = draw(&dir, &golden("flux-dev"), &["--seed", seed, "-o", name]);
        assert!(output.status.success(), "{}", stderr(&output));
        let said = stdout(&output);
        let drawn = said.lines().next().and_then(|line| line.strip_prefix("seed ")).expect("the seed").to_owned();
        assert_eq!(said, format!("seed {drawn}\n{name}\n"));
        let (info, rgb) = decode(&dir.path().join(name));
        assert_eq!(text(&info, "seed"), drawn);
        // it draws the same again
        let output = draw(&dir, &golden("flux-dev"), &["--seed", &drawn, "-o", "again.png", "--json"]);
        assert_eq!(json(&output)["seed"].to_string(), drawn);
        assert_eq!(decode(&dir.path().join("again.png")).1, rgb);
        seeds.push(drawn);
    }
    assert_ne!(seeds[0], seeds[1]);
}

#[test]
fn negative_numbers_get_the_range() {
    let dir = TempDir::new().expect("a folder");
    for (flag, code, range) in [
        ("--height", 2, "-7 is not within 1 to 16384"),
        ("--width", 2, "-7 is not within 1 to 16384"),
        ("--steps", 2, "-7 is not within 1 to 1000"),
        ("-n", 2, "-7 is not within 1 to 100000"),
        ("--max-sequence-length", 2, "-7 is not within 1 to 512"),
        ("--seed", 2, "a number within 0 to 18446744073709551615, or random"),
        ("--quality", 2, "-7 is not in 1..=100"),
        ("--ulysses-degree", 2, "-7 is not within 1 to 65536"),
        ("--ring_degree", 2, "-7 is not within 1 to 65536"),
        ("--data-parallel-degree", 2, "-7 is not within 1 to 65536"),
        ("--pipefusion-parallel-degree", 2, "-7 is not within 1 to 65536"),
        ("--tensor-parallel-degree", 2, "-7 is not within 1 to 65536"),
        ("--num-pipeline-patch", 2, "-7 is not within 1 to 1024"),
        ("--warmup-steps", 2, "-7 is not within 0 to 1000"),
        ("--attn-layer-num-for-pp", 2, "-7 is not within 1 to 1024"),
        ("--skip-guidance-layers", 2, "-7 is not within 0 to 1023"),
        ("--skip-layer-guidance-scale", 2, "-7 is not a number within 0 to 1000"),
        ("--skip-layer-guidance-start", 2, "-7 is not a number within 0 to 1"),
        ("--skip-layer-guidance-stop", 2, "-7 is not a number within 0 to 1"),
        ("--guidance-scale", 1, "guidance-scale -7 is not within 0 to 1000"),
        ("--true-cfg-scale", 1, "true-cfg-scale -7 is not within 0 to 1000"),
        ("--guidance-rescale", 1, "guidance-rescale -7 is not within 0 to 1"),
    ] {
        fails(&dir, xdit(&dir, &["generate", "-p", "x", flag, "-7"]), code, &[range]);
    }
    fails(&dir, xdit(&dir, &["schedule", "--latency", "-7"]), 1, &["latency -7 is not within 0 to 1000000 turns"]);
    fails(&dir, xdit(&dir, &["plan", "--height", "-7"]), 2, &["-7 is not within 1 to 16384"]);
    fails(&dir, quick(&dir, &["--height", "1e3"]), 2, &["expected a whole number within 1 to 16384"]);
    fails(&dir, quick(&dir, &["-n", "18446744073709551615"]), 1, &["num-images", "100000"]);
}

#[test]
fn devices_are_one_for_all_or_one_for_each() {
    let dir = TempDir::new().expect("a folder");
    let with = |flags: &[&str]| draw(&dir, &golden("flux-dev"), flags);
    let counts = with(&["--devices", "cpu,cpu", "--ulysses-degree", "4"]);
    let message = "2 devices for 4 ranks; give one for all or one for each";
    fails(&dir, counts, 1, &[message]);
    let many = with(&["--data-parallel-degree", "16384", "--use-cfg-parallel"]);
    fails(&dir, many, 1, &["32768 ranks are more than the 256 that one process has as threads"]);
    fails(&dir, xdit(&dir, &["plan", "--device", "cuda:0,cuda:1", "--ulysses-degree", "4"]), 1, &[message]);
    fails(&dir, with(&["--device", "cpu,gpu"]), 2, &["\"gpu\" is none of cpu, cuda, cuda:N and wgpu"]);
    fails(&dir, with(&["--device", "cpu,"]), 2, &["\"\" is none of"]);
    let two = with(&["--device", "cpu,cpu", "--ulysses-degree", "2", "-o", "two/"]);
    assert!(two.status.success(), "{}", stderr(&two));
    assert_eq!(files(&dir.path().join("two")).len(), 1);
}

#[test]
fn quantised_products_are_refused_where_there_are_none() {
    let dir = TempDir::new().expect("a folder");
    let fp8 = ["--gemm-quantization", "fp8"];
    let message = "--gemm-quantization fp8 on cpu: fp8 products need an NVIDIA GPU";
    fails(&dir, draw(&dir, &golden("flux-dev"), &fp8), 1, &[message]);
    fails(&dir, xdit(&dir, &[&["bench", "--random-weights", "tiny-flux"], &fp8[..]].concat()), 1, &[message]);
    let op = ["bench", "--op", "linear", "--shape", "64x64x64"];
    fails(&dir, xdit(&dir, &[&op[..], &fp8].concat()), 1, &[message]);
    fails(&dir, xdit(&dir, &[&["plan"], &fp8[..]].concat()), 1, &[message]);
    fails(&dir, draw(&dir, &golden("flux-dev"), &["--gemm-quantization", "int2"]), 2, &["int2", "fp8"]);
    assert!(files(dir.path()).is_empty(), "nothing is written");
}

#[test]
fn a_plan_counts_quantised_weights_as_they_are_kept() {
    let dir = TempDir::new().expect("a folder");
    let weights = |flags: &[&str]| {
        let record = json(&xdit(&dir, &[&["plan", "--json", "--device", "cuda"], flags].concat()));
        record["memory"][0]["resident_weight_bytes"].as_u64().expect("bytes")
    };
    let (bf16, fp8) = (weights(&[]), weights(&["--gemm-quantization", "fp8"]));
    // the built-in model's blocks: 4 double ones with two streams, 4 single ones, each 12 d^2 numbers and 9 or 8 d channels
    let d = 192;
    let (numbers, channels) = (d * d * 12 * (4 * 2 + 4), d * (9 * 4 * 2 + 8 * 4));
    assert_eq!(bf16 - fp8, numbers - 4 * channels);
}

#[test]
fn flags_that_change_nothing_warn() {
    let dir = TempDir::new().expect("a folder");
    let warned = |more: &[&str]| {
        let output = draw(&dir, &golden("sd35"), &[&["-o", "x.png"], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output).lines().filter(|line| line.starts_with("warning: ")).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(warned(&[]), "");
    for (flags, part) in [
        (&["--revision", "main"][..], "--revision has no effect"),
        (&["--skip-layer-guidance-stop", "0.5"], "no effect: --skip-layer-guidance-stop"),
        (&["--warmup-steps", "2", "--num-pipeline-patch", "2"], "no effect: --num-pipeline-patch, --warmup-steps"),
        (&["--attn-layer-num-for-pp", "3"], "no effect: --attn-layer-num-for-pp"),
        (&["--data-parallel-degree", "2"], "--data-parallel-degree 2 is more than the 1 pictures"),
        (&["--quality", "50"], "--quality has no effect on .png"),
    ] {
        let said = warned(flags);
        assert!(said.contains(part), "no {part:?} in {said:?}");
    }
    let plan = stderr(&xdit(&dir, &["plan", "--warmup-steps", "2"]));
    assert!(plan.contains("warning: ") && plan.contains("no effect: --warmup-steps"), "{plan}");
}
