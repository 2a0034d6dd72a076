//! `xdit bench` with models that take milliseconds.

mod common;

use serde_json::Value;
use tempfile::TempDir;

use common::{fails, golden, json, xdit};

const QUICK: [&str; 10] = ["--size", "64", "--steps", "2", "--warmup", "0", "--repeat", "2", "--device", "cpu"];

/// What `xdit bench --json` says, with `args` and few runs.
#[track_caller]
fn bench(args: &[&str]) -> Value {
    let dir = TempDir::new().expect("a folder");
    let output = xdit(&dir, &[&["bench", "--json"], &QUICK[..], args].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    json(&output)
}

/// At `path`, with dots.
#[track_caller]
fn number(record: &Value, path: &str) -> f64 {
    let found = path.split('.').fold(record, |value, key| &value[key]);
    found.as_f64().unwrap_or_else(|| panic!("{path} in {record}"))
}

#[test]
fn random_weights_are_measured() {
    let record = bench(&["--random-weights", "tiny-flux"]);
    for path in [
        "seconds.load",
        "seconds.first",
        "seconds.conditioning",
        "seconds.denoise.median",
        "seconds.step.median",
        "seconds.host_step.best",
        "peak_tflops",
        "tflops",
        "share_of_peak",
        "memory.peak_bytes",
    ] {
        assert!(number(&record, path) > 0.0, "{path} in {record}");
    }
    assert_eq!((record["model"].as_str(), record["dtype"].as_str()), (Some("tiny-flux"), Some("f32")));
    assert_eq!((&record["img_tokens"], &record["txt_tokens"], &record["passes"]), (&16.into(), &512.into(), &1.into()));
    assert_eq!(record["seconds"]["denoise"]["all"].as_array().map(Vec::len), Some(2));
    assert_eq!(record["memory"]["device_bytes"], Value::Null);
    let rate = 2.0 * number(&record, "step_tflop.total") / number(&record, "seconds.denoise.median");
    assert!((rate / number(&record, "tflops") - 1.0).abs() < 1e-9, "{record}");
}

#[test]
fn guidance_is_two_passes_and_twice_the_work() {
    let guided = bench(&["--random-weights", "tiny-sd3", "--dtype", "bf16"]);
    let single = bench(&["--random-weights", "tiny-sd3", "--dtype", "bf16", "--guidance-scale", "1"]);
    assert_eq!((&guided["passes"], &single["passes"], &guided["txt_tokens"]), (&2.into(), &1.into(), &333.into()));
    assert_eq!(number(&guided, "step_tflop.total"), 2.0 * number(&single, "step_tflop.total"));
    // bf16 is half of f32
    let wide = bench(&["--random-weights", "tiny-sd3"]);
    assert_eq!(number(&wide, "weight_bytes"), 2.0 * number(&guided, "weight_bytes"));
}

#[test]
fn ranks_share_the_work() {
    let alone = bench(&["--random-weights", "tiny-sd3"]);
    for args in [
        &["--ulysses-degree", "2", "--ring-degree", "2"][..],
        &["--use-cfg-parallel", "--data-parallel-degree", "2"],
        &["--pipefusion-parallel-degree", "2"],
    ] {
        let record = bench(&[&["--random-weights", "tiny-sd3"], args].concat());
        let pictures = number(&record, "pictures");
        assert_eq!(pictures, if args.contains(&"--data-parallel-degree") { 2.0 } else { 1.0 });
        assert_eq!(number(&record, "step_tflop.total"), pictures * number(&alone, "step_tflop.total"), "{args:?}");
        assert!(number(&record, "ranks") >= 2.0 && number(&record, "seconds.step.best") > 0.0, "{record}");
    }
}

#[test]
fn folders_are_measured_with_their_weights() {
    for name in ["flux-dev", "sd35", "pixart-sigma", "hunyuan-v12"] {
        let record = bench(&["--model", &golden(name)]);
        assert!(number(&record, "seconds.denoise.best") > 0.0, "{name}: {record}");
        assert_eq!(number(&record, "passes"), if name == "flux-dev" { 1.0 } else { 2.0 }, "{name}");
    }
}

#[test]
fn people_get_a_table() {
    let dir = TempDir::new().expect("a folder");
    let output = xdit(&dir, &[&["bench", "--random-weights", "tiny-flux", "--quiet"], &QUICK[..]].concat());
    let text = String::from_utf8(output.stdout).expect("text");
    for part in
        ["tiny-flux, 64x64 pixels", "load", "conditioning", "denoise", "host per step", "FLOP/s", "% of", "memory"]
    {
        assert!(text.contains(part), "no {part} in {text}");
    }
    assert!(output.stderr.is_empty());
}

#[test]
fn single_operations_are_measured() {
    for (op, shape, gflop) in [("linear", "32x64x48", 2.0 * 98_304e-9), ("attention", "2x16x24x8", 24_576e-9)] {
        let dir = TempDir::new().expect("a folder");
        let record = json(&xdit(&dir, &["bench", "--op", op, "--shape", shape, "--json"]));
        let tflops = 1e-3 * gflop / (1e-3 * number(&record, "ms"));
        assert!((number(&record, "tflops") / tflops - 1.0).abs() < 1e-9, "{record}");
    }
}

#[test]
fn mistakes_are_one_error() {
    let dir = TempDir::new().expect("a folder");
    let check =
        |args: &[&str], code, parts: &[&str]| fails(&dir, xdit(&dir, &[&["bench"], args].concat()), code, parts);
    check(
        &["--random-weights", "flux-dve"],
        2,
        &["flux-dve", "flux-dev", "flux-schnell", "sd3.5-medium", "hunyuandit"],
    );
    check(&["--random-weights", "sd3", "--model", "x"], 2, &["--random-weights", "--model"]);
    check(&["--random-weights", "tiny-flux", "--size", "100"], 1, &["100", "multiple of 16", "96 and 112"]);
    check(&["--random-weights", "tiny-sd3", "--size", "16000"], 1, &["16000", "within 16 to 1024"]);
    check(&["--random-weights", "tiny-flux", "--size", "16384"], 1, &["1048576 image tokens are too many"]);
    // too much for the memory, and where it is not, for the schedule
    check(&["--random-weights", "flux-dev", "--size", "16384"], 1, &[]);
    check(&["--random-weights", "tiny-flux", "--size", "99999999999999999999"], 2, &["within 1 to 16384"]);
    check(&["--random-weights", "tiny-flux", "--steps", "0"], 1, &["within 1 to 1000"]);
    check(&["--random-weights", "tiny-flux", "--repeat", "0"], 2, &["within 1 to 1000"]);
    check(&["--random-weights", "tiny-flux", "--warmup", "1000000000000000"], 2, &["within 0 to 1000"]);
    check(&["--random-weights", "tiny-flux", "--use-cfg-parallel", "--size", "64"], 1, &["guidance"]);
    check(&["--op", "linear"], 2, &["--shape"]);
    check(&["--op", "linear", "--shape", "1x2"], 1, &["2 numbers", "m x k x n"]);
    check(&["--op", "attention", "--shape", "1x2x3"], 1, &["3 numbers", "head_dim"]);
    check(&["--op", "linear", "--shape", "1xx2"], 2, &["whole numbers"]);
    check(&["--op", "linear", "--shape", "16777216x16777216x16777216"], 1, &["of memory", "free"]);
}
