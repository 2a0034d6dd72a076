//! Times the decoder on the CPU: `vae_decode --dir DIR --size 1024 --repeat N` reads `DIR`, an AutoencoderKL's folder
//! as diffusers writes it, and prints the seconds of each run.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use xdit_core::checkpoint::{Loader, Weights};
use xdit_models::vae::Vae;
use xdit_models::vae::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use xdit_models::vae::tiles::Tiling;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (mut dir, mut size, mut repeat) = (None, 256, 3);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--dir" => dir = args.next().map(PathBuf::from),
            "--size" => size = args.next().context("--size N")?.parse()?,
            "--repeat" => repeat = args.next().context("--repeat N")?.parse()?,
            "--bench" => {}
            other => bail!("unknown argument {other}"),
        }
    }
    let Some(dir) = dir else {
        println!("no --dir: see docs/benchmarks/README.md");
        return Ok(());
    };

    let device = Device::flex();
    let config: AutoencoderKlConfig = serde_json::from_str(&std::fs::read_to_string(dir.join("config.json"))?)?;
    let weights = Weights::open("vae", &[dir.join("diffusion_pytorch_model.safetensors")])?;
    let vae = AutoencoderKl::load(&Loader::new(&weights, &device, FloatDType::F32), &config)?;
    let side: usize = size / config.scale();
    let dims = [1, config.latent_channels, side, side];
    let latents = Tensor::<4>::random(dims, Distribution::Normal(0.0, 1.0), &device);
    for _ in 0..repeat {
        let start = Instant::now();
        let picture = vae.decode(latents.clone(), Tiling::Off, &mut |_, _| ControlFlow::Continue(()))?;
        let sum: f32 = picture.sum().into_scalar();
        println!("{:.3} s (sum {sum})", start.elapsed().as_secs_f64());
    }
    Ok(())
}
