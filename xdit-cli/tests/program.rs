//! The program as a user runs it: files, exit codes, one line for each mistake.

mod common;

use std::fs;

use tempfile::TempDir;

use crate::common::{copy, decode, draw, fails, golden, xdit};

#[test]
fn the_built_in_model_draws() {
    let dir = TempDir::new().expect("a folder");
    let output = xdit(&dir, &["generate", "--prompt", "a large red circle on a yellow background", "--seed", "3"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "xdit.png", "the path as it was given");
    let (info, rgb) = decode(&dir.path().join("xdit.png"));
    assert_eq!(info.width, info.height);
    assert_eq!(rgb.len(), 3 * (info.width * info.height) as usize);
    assert!(rgb.iter().any(|x| *x != rgb[0]), "the picture is empty");
    let text = |key: &str| {
        let chunk = info.utf8_text.iter().find(|chunk| chunk.keyword == key).expect("the chunk");
        chunk.get_text().expect("text")
    };
    assert_eq!(text("prompt"), "a large red circle on a yellow background");
    assert_eq!(text("seed"), "3");
    assert!(text("parameters").contains(&format!("Size: {}x{}", info.width, info.height)));
}

#[test]
fn one_record_for_programs() {
    let dir = TempDir::new().expect("a folder");
    let output = draw(&dir, &golden("flux-dev"), &["--json", "--num_images", "2", "--output", "out/", "--seed=5"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty());
    let record: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let written = record["files"].as_array().expect("files");
    assert_eq!(written.len(), 2);
    for (i, file) in written.iter().enumerate() {
        assert_eq!(file["seed"], 5 + i);
        assert!(dir.path().join(file["path"].as_str().expect("a path")).is_file());
    }
    for phase in ["load", "encode", "denoise", "decode"] {
        assert!(record["seconds"][phase].as_f64().is_some_and(|s| s > 0.0), "{phase} in {record}");
    }
    assert!(record["peak_memory_bytes"].as_u64().is_some_and(|b| b > 1 << 20));
}

#[test]
fn equal_requests_give_equal_bits() {
    let dir = TempDir::new().expect("a folder");
    for name in ["a.png", "b.png"] {
        assert!(draw(&dir, &golden("flux-schnell"), &["--output", name]).status.success());
    }
    assert_eq!(decode(&dir.path().join("a.png")).1, decode(&dir.path().join("b.png")).1);
    assert!(draw(&dir, &golden("flux-schnell"), &["--output", "c.png", "--seed", "1"]).status.success());
    assert_ne!(decode(&dir.path().join("a.png")).1, decode(&dir.path().join("c.png")).1);
}

/// Every pipeline that is built, and the flags that belong to some.
#[test]
fn all_architectures_draw() {
    for (name, flags) in [
        ("sd3", &["--guidance-scale", "1"][..]),
        ("sd35", &["--skip-guidance-layers", "1", "2", "--skip-layer-guidance-stop", "0.9"]),
        ("pixart-alpha", &["--no-resolution-binning", "--negative-prompt", "a dog"]),
        ("pixart-sigma", &["--no_resolution_binning", "--guidance_rescale", "0.5"]),
        ("hunyuan-v12", &["--no-resolution-binning", "--num-images", "2"]),
    ] {
        let dir = TempDir::new().expect("a folder");
        let args = [&["--output", "out/"], flags].concat();
        let output = draw(&dir, &golden(name), &args);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        for file in fs::read_dir(dir.path().join("out")).expect("a folder") {
            let (info, _) = decode(&file.expect("a picture").path());
            assert_eq!((info.width, info.height), (48, 32), "{name}");
        }
    }
}

#[test]
fn many_ranks_draw_the_same_picture() {
    let dir = TempDir::new().expect("a folder");
    let prompt = "a large red circle on a yellow background";
    let mut pixels = Vec::new();
    for ranks in ["1", "2", "4", "8"] {
        let flags = ["--ulysses-degree", ranks, "--steps", "4", "--seed", "3", "--output", "ranks.png"];
        let output = xdit(&dir, &[&["generate", "--prompt", prompt][..], &flags].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        pixels.push(decode(&dir.path().join("ranks.png")).1);
    }
    assert!(pixels.iter().all(|x| *x == pixels[0]));
    // sixteen ranks, and pictures in their order
    let flags = ["--ulysses_degree=2", "--ring_degree=2", "--use_cfg_parallel", "--data_parallel_degree=2", "--json"];
    let guidance = ["--guidance-scale", "3", "--num-images", "3", "--output", "out/"];
    let output = draw(&dir, &golden("sd3"), &[&flags[..], &guidance].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let record: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((record["ranks"].as_u64(), record["files"][2]["seed"].as_u64()), (Some(16), Some(44)));
}

#[test]
fn pipeline_stages_draw_and_say_what_they_hold() {
    let dir = TempDir::new().expect("a folder");
    let flags = ["--pipefusion_parallel_degree=2", "--num_pipeline_patch=2", "--attn_layer_num_for_pp", "3", "1"];
    let more = ["--warmup_steps=1", "--json", "--output", "stages.png"];
    let output = draw(&dir, &golden("flux-dev"), &[&flags[..], &more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let record: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let memory = record["memory"].as_array().expect("a list");
    assert_eq!(memory.len(), 2);
    assert_eq!(memory[1]["blocks"], serde_json::json!([3, 4]));
    assert!(memory[0]["weight_bytes"].as_u64() > memory[1]["weight_bytes"].as_u64());
    assert_eq!(memory[0]["kept_bytes"].as_u64(), memory[1]["kept_bytes"].as_u64().map(|one| 3 * one));
    assert!(dir.path().join("stages.png").exists());
}

#[test]
fn a_schedule_is_shown_and_drawn() {
    let dir = TempDir::new().expect("a folder");
    let flags = ["schedule", "--pipefusion_parallel_degree=2", "--num_pipeline_patch=3", "--steps=2"];
    let output = xdit(&dir, &[&flags[..], &["--svg", "s.svg", "--trace", "s.json"]].concat());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.starts_with("stage   0  ###...abc.\nstage   1  ...###.abc\n"), "{said}");
    assert!(said.contains("10 turns, 40.0 % of them waiting; one device needs 12: 1.20 times as long"), "{said}");
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).expect("a file");
    let trace: serde_json::Value = serde_json::from_str(&read("s.json")).expect("JSON");
    let boxes = trace["traceEvents"].as_array().expect("events").iter().filter(|event| event["ph"] == "X").count();
    assert_eq!(boxes, 2 * (1 + 3));
    assert_eq!(read("s.svg").matches("<rect").count(), boxes);
    fails(&dir, xdit(&dir, &["schedule", "--steps", "0"]), 1, &["num-inference-steps 0 is not within 1 to 1000000"]);
    let many = ["schedule", "--num-pipeline-patch", "1000000", "--steps", "9"];
    fails(&dir, xdit(&dir, &many), 1, &["4 stages, 1000000 patches and 9 steps are more than 1000000 boxes"]);
    fails(&dir, xdit(&dir, &["schedule", "--svg", "no/s.svg"]), 1, &["cannot write to no"]);
}

/// On Linux alone the program knows its own peak. What the allocator keeps changes from run to run, by 15 % at most.
#[cfg(target_os = "linux")]
#[test]
fn a_plan_names_the_programs_own_share() {
    let dir = TempDir::new().expect("a folder");
    for mesh in [&[][..], &["--ulysses-degree", "4"], &["--pipefusion-parallel-degree", "2"]] {
        let record = |args: &[&str]| -> serde_json::Value {
            let output = xdit(&dir, &[args, mesh, &["--steps", "2", "--json"]].concat());
            serde_json::from_slice(&output.stdout).expect("JSON")
        };
        let (plan, drawn) = (record(&["plan"]), record(&["generate", "-p", "a large red circle"]));
        let bytes = |value: &serde_json::Value| value.as_u64().expect("bytes");
        let said = bytes(&plan["peak_memory_bytes"]);
        assert_eq!(said, bytes(&plan["devices"][0]["bytes"]["peak"]) + bytes(&plan["program_bytes"]));
        let ratio = said as f64 / bytes(&drawn["peak_memory_bytes"]) as f64;
        assert!((0.8..1.2).contains(&ratio), "{mesh:?}: {ratio}");
    }
}

#[test]
fn a_plan_is_shown() {
    let dir = TempDir::new().expect("a folder");
    let flags = ["plan", "--pipefusion_parallel_degree=2", "--ulysses_degree=2", "--device=cuda:0"];
    let output = xdit(&dir, &flags);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.starts_with("16 x 16 image tokens, 2 patches, 4 ranks\n"), "{said}");
    assert!(said.lines().any(|line| line.contains("4..8")), "{said}");
    for model in ["text_encoder ", "text_encoder_2 ", "vae "] {
        assert!(said.lines().any(|line| line.starts_with(model)), "{said}");
    }
    // the process has nothing of it but itself
    let last: Vec<&str> = said.lines().rev().take(2).collect();
    assert!(last[0].starts_with("program ") && last[1].starts_with("cuda:0          4 "), "{said}");
    let output = xdit(&dir, &[&flags[..], &["--json"]].concat());
    let record: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    // four blocks' keys and values of 48 + 256 tokens, of four heads of 24 channels, in bf16
    assert_eq!(record["memory"][0]["kept_bytes"], 4 * 2 * (48 + 256) * 4 * 24 * 2);
    let bytes = |value: &serde_json::Value| value.as_u64().expect("bytes");
    let (alone, device) = (&record["memory"][0]["bytes_alone"], &record["devices"][0]["bytes"]);
    assert!(bytes(&alone["denoise"]) < bytes(&device["denoise"]) && bytes(&alone["decode"]) > 0, "{record}");
    // each rank that is alone on a device decodes a band
    let band = bytes(&record["memory"][1]["bytes_alone"]["decode"]);
    assert!(band > 0 && band < bytes(&device["decode"]), "{record}");
    assert_eq!(record["encoders"].as_array().expect("encoders").len(), 2);
    assert!(bytes(&record["decoder"]["activation_bytes"]) > 256 * 256 * 4, "{record}");
    fails(
        &dir,
        xdit(&dir, &["plan", "--pipefusion-parallel-degree", "9"]),
        1,
        &["9 is more than the model's 8 blocks"],
    );
}

#[test]
fn meshes_that_cannot_work_are_refused() {
    let dir = TempDir::new().expect("a folder");
    let with = |flags: &[&str]| draw(&dir, &golden("flux-dev"), flags);
    let heads = with(&["--ulysses-degree", "8"]);
    let message = "ulysses degree 8 is more than the model's 4 attention heads; degrees that divide them are 1, 2, 4";
    assert!(!String::from_utf8_lossy(&heads.stderr).contains("load:"), "nothing is read");
    fails(&dir, heads, 1, &[message]);
    fails(&dir, with(&["--use-cfg-parallel"]), 1, &["cfg degree 2 needs classifier-free guidance"]);
    fails(&dir, with(&["--ring-degree", "0"]), 1, &["ring degree 0 is not within 1 to 65536"]);
    let stages = |flags: &[&str]| with(&[&["--pipefusion-parallel-degree"], flags].concat());
    fails(&dir, stages(&["5"]), 1, &["pipefusion degree 5 is more than the model's 4 blocks"]);
    let split = "attn-layer-num-for-pp [3, 2] must be 2 numbers of at least 1 that add up to the model's 4 blocks";
    fails(&dir, stages(&["2", "--attn-layer-num-for-pp", "3", "2"]), 1, &[split]);
    let patches = "num-pipeline-patch 0 is not within 1 and the picture's 2 rows of tokens";
    fails(&dir, stages(&["2", "--num-pipeline-patch", "0"]), 1, &[patches]);
    fails(&dir, with(&["--tensor-parallel-degree", "2"]), 1, &["tensor degree 2 is not supported yet, only 1"]);
}

/// Each of them would draw all pictures.
#[test]
#[cfg(not(feature = "mpi"))]
fn many_processes_that_nothing_joins_are_refused() {
    let dir = TempDir::new().expect("a folder");
    let launched = std::process::Command::new(env!("CARGO_BIN_EXE_xdit"))
        .args(["generate", "--prompt", "a cat"])
        .envs([("RANK", "0"), ("WORLD_SIZE", "4")])
        .current_dir(dir.path())
        .output()
        .expect("the program runs");
    fails(&dir, launched, 1, &["torchrun started 4 processes", "--features mpi", "--ulysses-degree"]);
}

#[test]
fn what_an_architecture_cannot_do_is_refused_before_weights_are_read() {
    let dir = TempDir::new().expect("a folder");
    let at = |model: &str, more: &[&str]| {
        let model = golden(model);
        xdit(&dir, &[&["generate", "--model", model.as_str(), "--prompt", "a red cat"], more].concat())
    };
    let large = at("sd3", &["--height", "512", "--width", "96"]);
    fails(&dir, large, 1, &["height 512 is not within 16 to 384 pixels"]);
    let skip = at("sd35", &["--height", "64", "--width", "96", "--skip-guidance-layers", "9"]);
    assert!(!String::from_utf8_lossy(&skip.stderr).contains("load:"), "nothing is read");
    fails(&dir, skip, 1, &["skip-guidance-layers names block 9; the model has 3, from 0 on"]);
    let size = at("hunyuan-v11", &["--height", "70", "--width", "96", "--no-resolution-binning"]);
    fails(&dir, size, 1, &["height 70 is not a multiple of 16; the nearest that fit are 64 and 80"]);
}

#[test]
fn a_size_between_the_bins_is_scaled() {
    let dir = TempDir::new().expect("a folder");
    let args = ["--prompt", "a red cat", "--height", "70", "--width", "96", "--steps", "2"];
    let output = xdit(&dir, &[&["generate", "--model", &golden("pixart-256")], &args[..]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let warned = String::from_utf8_lossy(&output.stderr).contains("warning: drawn at 208x288 (height x width)");
    assert!(warned, "{}", String::from_utf8_lossy(&output.stderr));
    let (info, _) = decode(&dir.path().join("xdit.png"));
    assert_eq!((info.width, info.height), (96, 70));
}

#[test]
fn half_precision_draws_nearly_the_same() {
    let dir = TempDir::new().expect("a folder");
    assert!(draw(&dir, &golden("flux-dev"), &["--output", "f32.png"]).status.success());
    let want = decode(&dir.path().join("f32.png")).1;
    for dtype in ["bf16", "f16"] {
        let output = draw(&dir, &golden("flux-dev"), &["--output", "half.png", "--dtype", dtype]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let got = decode(&dir.path().join("half.png")).1;
        let error: f64 = got.iter().zip(&want).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
        assert!(error / (got.len() as f64) < 4.0, "{dtype}: mean difference {}", error / got.len() as f64);
    }
}

#[test]
fn latents_and_prompts_that_are_cut() {
    let dir = TempDir::new().expect("a folder");
    let long = "a cat and a dog and ".repeat(30);
    let output =
        draw(&dir, &golden("flux-dev"), &["--prompt", &long, "--output-type", "latent", "-o", "x.safetensors"]);
    let text = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.success(), "{text}");
    assert!(text.contains("warning: tokenizer_2 takes 16 tokens"), "{text}");
    // two prompts were given
    assert!(dir.path().join("x-0.safetensors").is_file() && dir.path().join("x-1.safetensors").is_file());
}

#[test]
fn inspect_and_models_print_tables() {
    let dir = TempDir::new().expect("a folder");
    let output = xdit(&dir, &["inspect", &golden("flux-dev")]);
    let text = String::from_utf8(output.stdout).expect("text");
    for part in ["FluxPipeline (supported)", "FluxTransformer2DModel", "AutoencoderKL", "F32", "scheduler"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    let output = xdit(&dir, &["inspect", "--json"]);
    let record: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(record["class"], "FluxPipeline");
    let output = xdit(&dir, &["models"]);
    assert!(String::from_utf8(output.stdout).expect("text").contains("FluxPipeline"));
}

#[test]
fn mistakes_in_the_request() {
    let dir = TempDir::new().expect("a folder");
    let model = golden("flux-dev");
    fails(&dir, draw(&dir, &model, &["--height", "100"]), 2, &["--height"]);
    let ask = |args: &[&str]| {
        let mut all = vec!["generate", "--model", &model];
        all.extend(args);
        xdit(&dir, &all)
    };
    fails(&dir, ask(&["-p", "x", "--height", "100"]), 1, &["height 100", "multiple of 16", "96 and 112"]);
    fails(&dir, ask(&["-p", "x", "--width", "99999999999"]), 1, &["width 99999999999", "16384"]);
    fails(&dir, ask(&["-p", "x", "--steps", "0"]), 1, &["num-inference-steps 0"]);
    fails(&dir, ask(&["-p", "x", "--max-sequence-length", "513"]), 1, &["max-sequence-length 513", "512"]);
    fails(&dir, ask(&["-p", "a", "b", "c", "--negative-prompt", "d", "e"]), 1, &["2 negative prompts for 3 prompts"]);
    fails(&dir, ask(&["-p", "x", "--device", "gpu"]), 2, &["--device"]);
    fails(&dir, ask(&[]), 2, &["--prompt"]);
    fails(&dir, ask(&["-p", "x", "--output", "no/such/place.png"]), 1, &["no/such", "is not there"]);
    fails(&dir, ask(&["-p", "x", "--output", "x.gif"]), 1, &["x.gif", ".png, .jpg, .jpeg or .webp"]);
}

#[test]
fn mistakes_in_the_folder() {
    let dir = TempDir::new().expect("a folder");
    fails(&dir, draw(&dir, "./nowhere", &[]), 1, &["nowhere"]);
    fails(&dir, draw(&dir, "someone/some-model", &[]), 1, &["someone/some-model", "model_index.json"]);

    let model = copy(&dir, "flux-schnell");
    let path = model.to_string_lossy().into_owned();
    let spoil = |file: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>, parts: &[&str]| {
        let file = model.join(file);
        let good = fs::read(&file).expect("a file");
        fs::write(&file, change(good.clone())).expect("written");
        fails(&dir, draw(&dir, &path, &[]), 1, parts);
        fs::write(&file, good).expect("written");
    };
    let weights = "transformer/diffusion_pytorch_model.safetensors";
    spoil(weights, &|mut b| b.split_off(100), &[weights]);
    spoil(
        weights,
        &|mut b| {
            b.truncate(b.len() - 40);
            b
        },
        &[weights],
    );
    spoil(
        weights,
        &|mut b| {
            b[..8].copy_from_slice(&u64::MAX.to_le_bytes());
            b
        },
        &[weights],
    );
    let nan = |mut b: Vec<u8>| {
        let at = b.len() - 4;
        b[at..].copy_from_slice(&f32::NAN.to_le_bytes());
        b
    };
    spoil(weights, &nan, &["non-finite", "of 2"]);
    spoil("vae/config.json", &|_| b"{".to_vec(), &["vae/config.json"]);
    let replace = |from: &'static str, to: &'static str| {
        move |b: Vec<u8>| String::from_utf8(b).expect("text").replace(from, to).into_bytes()
    };
    spoil("model_index.json", &replace("FluxPipeline", "NoPipeline"), &["NoPipeline", "FluxPipeline"]);
    spoil("model_index.json", &replace("AutoencoderKL", "AutoencoderDC"), &["vae", "AutoencoderDC"]);
    spoil("model_index.json", &replace("\"text_encoder_2\"", "\"other\""), &["text_encoder_2"]);
    spoil("transformer/config.json", &replace("\"num_layers\": 2", "\"num_layers\": 3"), &["transformer", "missing"]);
    spoil("transformer/config.json", &replace("64", "48"), &["in_channels", "48"]);
    spoil("text_encoder_2/config.json", &replace("\"d_ff\": ", "\"d_ff\": 1"), &["shape"]);
    spoil("tokenizer_2/tokenizer.json", &|_| b"{}".to_vec(), &["tokenizer_2/tokenizer.json"]);
    spoil(
        "scheduler/scheduler_config.json",
        &replace("\"stochastic_sampling\": false", "\"stochastic_sampling\": true"),
        &["stochastic_sampling"],
    );

    fs::remove_dir_all(model.join("tokenizer")).expect("removed");
    fails(&dir, draw(&dir, &path, &[]), 1, &["tokenizer"]);
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing() {
    // every write to this device fails as on a full disk; the folder itself takes no new file
    let dir = TempDir::new().expect("a folder");
    fails(&dir, draw(&dir, &golden("flux-dev"), &["--output", "/dev/full/x.png"]), 1, &["/dev/full"]);
    fails(&dir, draw(&dir, &golden("flux-dev"), &["--output", "/proc/x.png"]), 1, &["/proc"]);
}
