//! The program on wgpu, alone and on meshes. `.ci/wgpu_tests` runs it: on a GPU that has Vulkan, or on a software driver.
#![cfg(feature = "wgpu")]

use std::path::Path;
use std::process::{Command, Output};

use safetensors::SafeTensors;
use tempfile::TempDir;

/// Other kernels, sums in another order.
const TOLERANCE: f64 = 1e-4;

const BUILT_IN: &[&str] = &["--prompt", "a large red circle on a yellow background", "--seed", "5", "--steps", "2"];

fn xdit(dir: &TempDir, device: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xdit"))
        .current_dir(dir.path())
        .args(["generate", "--device", device])
        .args(args)
        .output()
        .expect("the program runs")
}

fn latents(dir: &TempDir, device: &str, args: &[&str]) -> Vec<f32> {
    let output = [args, &["--output-type", "latent", "--output", "latents.safetensors"]].concat();
    let output = xdit(dir, device, &output);
    assert!(output.status.success(), "{device} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let bytes = std::fs::read(dir.path().join("latents.safetensors")).expect("latents");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let data = file.tensor("latents").expect("latents").data().to_vec();
    data.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().expect("four bytes"))).collect()
}

fn rel_l2(got: &[f32], want: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = got.iter().zip(want).map(|(a, b)| square(a - b)).sum();
    (error / want.iter().map(|x| square(*x)).sum::<f64>()).sqrt()
}

#[track_caller]
fn check(args: &[&str]) {
    let dir = TempDir::new().expect("a folder");
    let error = rel_l2(&latents(&dir, "wgpu", args), &latents(&dir, "cpu", args));
    assert!(error <= TOLERANCE, "{args:?}: {error:.1e}");
}

/// A picture of a small test model.
#[track_caller]
fn check_model(model: &str, mesh: &[&str]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../xdit-testing/golden").join(model);
    let folder = folder.to_str().expect("a path in UTF-8");
    let size = ["--height", "80", "--width", "48", "--no-resolution-binning", "--max-sequence-length", "19"];
    let request = ["--model", folder, "--prompt", "a red cat", "--steps", "2", "--seed", "5"];
    check(&[&request[..], &size, mesh].concat());
}

#[test]
#[ignore = "needs a Vulkan, Metal or DX12 device"]
fn one_device_draws_what_the_cpu_draws() {
    check(BUILT_IN);
    for model in ["flux-dev", "sd3", "pixart-sigma", "hunyuan-v11"] {
        check_model(model, &[]);
    }
}

#[test]
#[ignore = "needs a Vulkan, Metal or DX12 device"]
fn meshes_draw_what_the_cpus_draw() {
    check(&[BUILT_IN, &["--ulysses-degree", "2"]].concat());
    check_model("flux-dev", &["--ulysses-degree", "2"]);
    check_model("flux-dev", &["--ring-degree", "2"]);
    check_model("flux-dev", &["--pipefusion-parallel-degree", "2", "--warmup-steps", "1"]);
    check_model("sd3", &["--use-cfg-parallel"]);
    check_model("sd3", &["--ulysses-degree", "2", "--use-cfg-parallel"]);
    check_model("hunyuan-v11", &["--ulysses-degree", "3"]);
    check_model("hunyuan-v11", &["--data-parallel-degree", "2"]);
}

#[test]
#[ignore = "needs a Vulkan, Metal or DX12 device"]
fn the_decoder_gives_the_cpus_picture() {
    let dir = TempDir::new().expect("a folder");
    let picture = |device: &str| {
        let output = xdit(&dir, device, &[BUILT_IN, &["--output", "picture.png"]].concat());
        assert!(output.status.success(), "{device}: {}", String::from_utf8_lossy(&output.stderr));
        let file = std::fs::File::open(dir.path().join("picture.png")).expect("a picture");
        let mut reader = png::Decoder::new(std::io::BufReader::new(file)).read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
        reader.next_frame(&mut pixels).expect("pixels");
        pixels
    };
    let (got, want) = (picture("wgpu"), picture("cpu"));
    let most = got.iter().zip(&want).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(got.len() == want.len() && most <= Some(1), "{} and {} bytes, {most:?} apart", got.len(), want.len());
}

/// No shader language of wgpu has it.
#[test]
#[ignore = "needs a Vulkan, Metal or DX12 device"]
fn bf16_is_refused_in_one_line() {
    let dir = TempDir::new().expect("a folder");
    let output = xdit(&dir, "wgpu", &[BUILT_IN, &["--dtype", "bf16", "--output", "picture.png"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    // before it, drivers may say what they lack
    assert_eq!(
        said.lines().last().unwrap_or_default(),
        "error: wgpu does not compute in bf16; f32 works on every device"
    );
    assert_eq!(output.status.code(), Some(1));
}
