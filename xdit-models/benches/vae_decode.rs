//! Times the decoder: `vae_decode --dir DIR --size 1024 --repeat N` reads `DIR`, an AutoencoderKL's folder as diffusers
//! writes it, and prints the seconds of each run; `--drawn` instead of a folder makes FLUX's decoder of random numbers.
//! On the CPU in f32, or with `--device cuda --dtype bf16` on a GPU (feature `cuda`). `vae_decode.py` in
//! `docs/benchmarks` runs the same in PyTorch.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};
use xdit_core::checkpoint::{Loader, Weights};
use xdit_models::vae::Vae;
use xdit_models::vae::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use xdit_models::vae::tiles::Tiling;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// FLUX's decoder.
const FLUX: &str = r#"{"block_out_channels": [128, 256, 512, 512], "latent_channels": 16, "layers_per_block": 2,
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
    "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_post_quant_conv": false}"#;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (mut dir, mut drawn, mut size, mut repeat) = (None, false, 256, 3);
    let mut dtype = FloatDType::F32;
    #[cfg_attr(not(feature = "cuda"), expect(unused_mut, reason = "there is no other"))]
    let mut device = Device::flex();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--dir" => dir = args.next().map(PathBuf::from),
            "--drawn" => drawn = true,
            "--size" => size = args.next().context("--size N")?.parse()?,
            "--repeat" => repeat = args.next().context("--repeat N")?.parse()?,
            "--device" => match args.next().as_deref() {
                Some("cpu") => {}
                #[cfg(feature = "cuda")]
                Some("cuda") => {
                    xdit_core::cuda::libraries::load()?;
                    device = Device::cuda(0);
                }
                other => bail!("--device cpu or cuda, not {other:?}"),
            },
            "--dtype" => match args.next().as_deref() {
                Some("f32") => dtype = FloatDType::F32,
                Some("bf16") => dtype = FloatDType::BF16,
                Some("f16") => dtype = FloatDType::F16,
                other => bail!("--dtype f32, bf16 or f16, not {other:?}"),
            },
            "--bench" => {}
            other => bail!("unknown argument {other}"),
        }
    }

    let config = match &dir {
        Some(dir) => std::fs::read_to_string(dir.join("config.json"))?,
        None => FLUX.to_owned(),
    };
    let config: AutoencoderKlConfig = serde_json::from_str(&config)?;
    let vae = match dir {
        Some(dir) => {
            let weights = Weights::open("vae", &[dir.join("diffusion_pytorch_model.safetensors")])?;
            AutoencoderKl::load(&Loader::new(&weights, &device, dtype), &config)?
        }
        None if drawn => AutoencoderKl::load(&Loader::drawn("vae", &device, dtype), &config)?,
        None => {
            println!("no --dir and no --drawn: see docs/benchmarks/README.md");
            return Ok(());
        }
    };
    let side: usize = size / config.scale();
    let dims = [1, config.latent_channels, side, side];
    let latents = Tensor::<4>::random(dims, Distribution::Normal(0.0, 1.0), &device);
    for _ in 0..repeat {
        let start = Instant::now();
        let picture = vae.decode(latents.clone(), Tiling::Off, &mut |_, _| ControlFlow::Continue(()))?;
        let host = start.elapsed().as_secs_f64();
        let sum: f32 = picture.cast(DType::F32).sum().into_scalar();
        println!("{:.4} s, host {host:.4} s (sum {sum})", start.elapsed().as_secs_f64());
    }
    Ok(())
}
