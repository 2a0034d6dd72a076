//! `xdit plan`: what each rank would hold, from headers only.

use anyhow::Result;
use burn::tensor::Device;
use indicatif::HumanBytes;
use serde_json::{Value, json};
use xdit_core::mesh::Axis;
use xdit_models::pipeline::{ModelSource, Options, Pipeline, RankMemory, Request};

use crate::args::Plan;

pub fn run(args: &Plan) -> Result<()> {
    let options = Options {
        variant: args.variant.clone(),
        parallel: args.parallel.config(),
        pipefusion: args.parallel.pipefusion(),
        ..Options::on(Device::flex(), args.device.dtype(args.dtype))
    };
    let source = args.model.clone().map_or(ModelSource::Builtin, ModelSource::Folder);
    let pipeline = Pipeline::open(&source, options, &mut ())?;
    let request = Request {
        // a second prediction is made where there is a second prompt, whatever it says
        negative_prompts: args.true_cfg_scale.map(|_| String::new()).into_iter().collect(),
        height: args.height,
        width: args.width,
        num_inference_steps: args.num_inference_steps,
        guidance_scale: args.guidance_scale,
        true_cfg_scale: args.true_cfg_scale,
        max_sequence_length: args.max_sequence_length,
        ..Request::new("any")
    };
    let plan = pipeline.plan(&request)?;
    let memory: Vec<_> = plan.memory.iter().enumerate().collect();
    if args.json {
        let memory: Vec<_> = memory.into_iter().map(record).collect();
        println!(
            "{}",
            json!({
                "img_tokens": plan.grid.n_tokens(),
                "patches": plan.n_patches,
                "ranks": plan.mesh.world_size(),
                "memory": memory,
            })
        );
        return Ok(());
    }
    let (rows, cols) = (plan.grid.rows, plan.grid.cols);
    println!("{rows} x {cols} image tokens, {} patches, {} ranks\n", plan.n_patches, plan.mesh.world_size());
    let columns = ["data", "cfg", "stage", "ring", "ulysses"];
    let axes = [Axis::Data, Axis::Cfg, Axis::Pipefusion, Axis::Ring, Axis::Ulysses];
    print!("{:>5}", "rank");
    columns.iter().for_each(|name| print!(" {name:>8}"));
    println!(" {:>10} {:>14} {:>14}", "blocks", "weights", "kept k, v");
    for (rank, memory) in memory {
        print!("{rank:>5}");
        axes.iter().for_each(|axis| print!(" {:>8}", plan.mesh.coordinate(rank, *axis)));
        let blocks = format!("{}..{}", memory.blocks.start, memory.blocks.end);
        let [weights, kept] = [memory.weight_bytes, memory.kept_bytes].map(|bytes| HumanBytes(bytes).to_string());
        println!(" {blocks:>10} {weights:>14} {kept:>14}");
    }
    Ok(())
}

/// A rank's memory for `--json`.
pub fn record((rank, memory): (usize, &RankMemory)) -> Value {
    json!({
        "rank": rank,
        "stage": memory.stage,
        "blocks": [memory.blocks.start, memory.blocks.end],
        "weight_bytes": memory.weight_bytes,
        "kept_bytes": memory.kept_bytes,
    })
}
