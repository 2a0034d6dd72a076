//! The program on wgpu, alone and on meshes. CI runs it on a software Vulkan driver:
//! `cargo test --release --features xdit-cli/wgpu --test wgpu -- --ignored`
#![cfg(feature = "wgpu")]

use std::path::Path;
use std::process::Command;

use safetensors::SafeTensors;
use tempfile::TempDir;

/// Other kernels, sums in another order.
const TOLERANCE: f64 = 1e-4;

fn latents(dir: &TempDir, model: &str, device: &str, mesh: &[&str]) -> Vec<f32> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../xdit-testing/golden").join(model);
    let output = Command::new(env!("CARGO_BIN_EXE_xdit"))
        .current_dir(dir.path())
        .args(["generate", "--prompt", "a red cat", "--height", "80", "--width", "48", "--steps", "2", "--seed", "5"])
        .args(["--max-sequence-length", "19", "--no-resolution-binning", "--dtype", "f32", "--output-type", "latent"])
        .args(["--output", "latents.safetensors", "--device", device, "--model"])
        .arg(folder)
        .args(mesh)
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{model} {device} {mesh:?}: {}", String::from_utf8_lossy(&output.stderr));
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

#[test]
#[ignore = "needs a Vulkan, Metal or DX12 device"]
fn meshes_draw_what_the_cpu_draws() {
    let dir = TempDir::new().expect("a folder");
    for (model, meshes) in [
        ("flux-dev", &[&[][..], &["--ulysses-degree", "2"], &["--ring-degree", "2"]][..]),
        ("sd3", &[&["--ulysses-degree", "2", "--use-cfg-parallel"]]),
        ("hunyuan-v11", &[&["--ulysses-degree", "3"], &["--data-parallel-degree", "2"]]),
    ] {
        let want = latents(&dir, model, "cpu", &[]);
        for mesh in meshes {
            let error = rel_l2(&latents(&dir, model, "wgpu", mesh), &want);
            assert!(error <= TOLERANCE, "{model} {mesh:?}: {error:.1e}");
        }
    }
}
