//! Times two transformer steps on meshes of threads: what sharing it out costs in processor time.
//!
//! `mesh --dir DIR --repeat N` reads `DIR/transformer`, which `docs/benchmarks/cpu_step.py` makes, and prints one line of
//! JSON for each mesh. Threads of one machine share its cores, so wall time says nothing; processor time does.

use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use xdit_core::checkpoint::{Loader, Weights};
use xdit_core::dit::TokenGrid;
use xdit_core::engine::{Denoise, Halt, denoise};
use xdit_core::mesh::{Mesh, ParallelConfig};
use xdit_core::sampler::{FlowMatchEuler, FlowMatchEulerConfig};
use xdit_core::stages::stages;
use xdit_models::bench::text::TextSizes;
use xdit_models::dit::flux::{Flux, FluxConfig};
use xdit_models::pipeline::worker::Worker;
use xdit_testing::mesh::on_ranks;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const GRID: TokenGrid = TokenGrid::picture(32, 32);
const N_TXT: usize = 128;
/// The first one is a pipeline's warm-up.
const N_STEPS: usize = 2;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (mut dir, mut repeat) = (None, 3);
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
    let n_blocks = config.spec().n_blocks;
    let read = |blocks: Range<usize>| -> Result<(Flux, Range<usize>)> {
        let loader = Loader::new(&weights, &device, FloatDType::F32);
        Ok((Flux::load(&loader, &config, blocks.clone())?, blocks))
    };
    // one after the other: all stages of a pipeline together are the model
    let whole = [read(0..n_blocks)?];
    let pipeline: Vec<_> = stages(&vec![1.0; n_blocks], 4, None)?.into_iter().map(read).collect::<Result<Vec<_>>>()?;

    let txt = [N_TXT, config.joint_attention_dim];
    let text = TextSizes { txt, txt_2: None, pooled: Some(config.pooled_projection_dim), masked: false };
    let text = text.random(&device, FloatDType::F32);
    let sampler = FlowMatchEuler::new(&FlowMatchEulerConfig::default(), N_STEPS, None, None)?;
    let one = ParallelConfig::default();
    let meshes = [
        one,
        ParallelConfig { ulysses: 2, ..one },
        ParallelConfig { ulysses: 4, ..one },
        ParallelConfig { ring: 4, ..one },
        ParallelConfig { ulysses: 2, ring: 2, ..one },
        ParallelConfig { pipefusion: 4, ..one },
    ];
    // in turns: a machine that gets busy slows all of them
    let mut seconds = vec![Vec::new(); meshes.len()];
    for round in 0..=repeat {
        for (config, seconds) in meshes.iter().zip(&mut seconds) {
            let mesh = Mesh::new(*config, config.world_size())?;
            let before = processor_seconds()?;
            let stages = if config.pipefusion == 1 { &whole[..] } else { &pipeline[..] };
            let halt = Halt::default();
            let done = on_ranks(mesh.world_size(), |world| -> Result<()> {
                let mut worker = Worker::new(&mesh, world, false)?;
                let (dit, blocks) = &stages[worker.stage];
                let team = worker.team(&mesh, blocks.clone(), [4, 1], &halt);
                let request = Denoise {
                    noise: Box::new(|| {
                        Tensor::random([1, GRID.n_tokens(), 64], Distribution::Normal(0.0, 1.0), &device)
                    }),
                    grid: GRID,
                    size: [512, 512],
                    text: &text,
                    guidance: Some(3.5),
                    cfg: None,
                };
                denoise(dit, team, &sampler, request, &mut ())?;
                Ok(())
            });
            done.into_iter().collect::<Result<()>>()?;
            if round > 0 {
                seconds.push(processor_seconds()? - before);
            }
        }
    }
    for (config, seconds) in meshes.iter().zip(seconds) {
        // what else the machine does only adds to it
        let least = seconds.into_iter().fold(f64::INFINITY, f64::min);
        println!(
            "{}",
            serde_json::json!({
                "ulysses": config.ulysses,
                "ring": config.ring,
                "pipefusion": config.pipefusion,
                "processor_seconds": least,
            })
        );
    }
    Ok(())
}

/// Processor time of this process, where the system tells it.
fn processor_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").context("needs /proc")?;
    // behind the name, which may hold anything: user and system time are numbers 14 and 15 of the line
    let fields: Vec<&str> = stat.rsplit(')').next().context("a line")?.split_whitespace().collect();
    let ticks = |i: usize| -> Result<f64> { Ok(fields.get(i).context("a field")?.parse::<f64>()?) };
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}
