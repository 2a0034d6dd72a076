//! Times one transformer step on the CPU: `docs/benchmarks/cpu_step.py` makes the model and runs this beside diffusers.
//!
//! `cpu_step --dir DIR --repeat N` reads `DIR/transformer` and `DIR/inputs.safetensors` and prints one line of JSON.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::tensor::{Device, FloatDType, Tensor};
use xdit_attn::Local;
use xdit_core::checkpoint::{Loader, Weights};
use xdit_core::dit::{Dit, Inputs, TextEmbeddings, TextStates, TokenGrid};
use xdit_core::engine::forward;
use xdit_models::dit::flux::{Flux, FluxConfig};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (mut dir, mut repeat) = (None, 5);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--dir" => dir = args.next().map(PathBuf::from),
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
    let folder = dir.join("transformer");
    let config: FluxConfig = serde_json::from_str(&std::fs::read_to_string(folder.join("config.json"))?)?;
    let weights = Weights::open("transformer", &[folder.join("diffusion_pytorch_model.safetensors")])?;
    let loader = Loader::new(&weights, &device, FloatDType::F32);
    let flux = Flux::load(&loader, &config, 0..config.spec().n_blocks)?;
    loader.finish(&[])?;

    let inputs = Weights::open("inputs", &[dir.join("inputs.safetensors")])?;
    let read = Loader::new(&inputs, &device, FloatDType::F32);
    let shape = |name: &str| -> Result<Vec<usize>> {
        Ok(inputs.info(name).with_context(|| format!("{name} missing"))?.shape.to_vec())
    };
    let tensor = |name: &str| -> Result<Tensor<3>> {
        Ok(read.tensor(name, shape(name)?.try_into().map_err(|s| anyhow::anyhow!("{name}: {s:?}"))?)?)
    };
    let (latents, txt, want) = (tensor("hidden_states")?, tensor("encoder_hidden_states")?, tensor("expected")?);
    let pooled = read.tensor::<2>("pooled_projections", [1, config.pooled_projection_dim])?;
    let side = latents.dims()[1].isqrt();
    let text = TextEmbeddings { txt: TextStates::all(txt), txt_2: None, pooled: Some(pooled) };
    let positions = flux.positions(TokenGrid::picture(side, side), text.txt.n_tokens());

    let mut seconds = Vec::new();
    let mut got = None;
    for i in 0..=repeat {
        let start = Instant::now();
        let latents = latents.clone();
        let size = [16 * side; 2];
        let inputs = Inputs { timesteps: &[700.0], text: &text, guidance: Some(3.5), size };
        got = Some(forward(&flux, &mut Local, &positions, latents, inputs, &[])?);
        if i > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    let got = got.context("no step was run")?;
    let square = |x: Tensor<3>| -> Result<f64> {
        let sum = (x.clone() * x).sum().try_into_data().map_err(|e| anyhow::anyhow!("{e}"))?;
        Ok(f64::from(sum.try_to_vec::<f32>().map_err(|e| anyhow::anyhow!("{e}"))?[0]))
    };
    let rel_l2 = (square(got - want.clone())? / square(want)?).sqrt();
    println!("{}", serde_json::json!({ "seconds": seconds, "rel_l2": rel_l2 }));
    Ok(())
}
