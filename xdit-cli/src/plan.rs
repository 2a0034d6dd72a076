//! `xdit plan`: what each rank would hold, from headers only.

use std::fmt::Write;

use anyhow::Result;
use indicatif::HumanBytes;
use serde_json::{Value, json};
use xdit_core::mesh::Axis;
use xdit_models::pipeline::{Options, Pipeline, RankMemory, Request};

use crate::args::Plan;
use crate::console::{Stdout, complain};
use crate::download::{self, Warnings};

pub fn run(args: &Plan, out: &mut Stdout) -> Result<()> {
    args.compute.device.check(args.parallel.config().world_size())?;
    let notices = [args.model.without_effect(), args.parallel.without_effect()];
    notices.iter().flatten().for_each(|notice| complain(&format!("warning: {notice}")));
    let options = Options {
        variant: args.model.variant.clone(),
        parallel: args.parallel.config(),
        pipefusion: args.parallel.pipefusion(),
        ..Options::new(args.compute.device.dtype(args.compute.dtype))
    };
    let (source, _headers) = download::headers_of(args.model.source(), options.variant.as_deref())?;
    let pipeline = Pipeline::open(&source, options, xdit_comm::local::world, &mut Warnings)?;
    let settings = &args.settings;
    let request = Request {
        // a second prediction is made where there is a second prompt, whatever it says
        negative_prompts: settings.true_cfg_scale.map(|_| String::new()).into_iter().collect(),
        height: settings.height,
        width: settings.width,
        num_inference_steps: settings.num_inference_steps,
        guidance_scale: settings.guidance_scale,
        true_cfg_scale: settings.true_cfg_scale,
        max_sequence_length: settings.max_sequence_length,
        ..Request::new("any")
    };
    let plan = pipeline.plan(&request)?;
    let memory: Vec<_> = plan.memory.iter().enumerate().collect();
    if args.json {
        let memory: Vec<_> = memory.into_iter().map(record).collect();
        let record = json!({
            "img_tokens": plan.grid.n_tokens(),
            "patches": plan.n_patches,
            "ranks": plan.mesh.world_size(),
            "memory": memory,
        });
        out.line(record.to_string());
        return Ok(());
    }
    let (rows, cols) = (plan.grid.rows, plan.grid.cols);
    let mut text = String::new();
    writeln!(text, "{rows} x {cols} image tokens, {} patches, {} ranks\n", plan.n_patches, plan.mesh.world_size())?;
    let columns = ["data", "cfg", "stage", "ring", "ulysses"];
    let axes = [Axis::Data, Axis::Cfg, Axis::Pipefusion, Axis::Ring, Axis::Ulysses];
    write!(text, "{:>5}", "rank")?;
    columns.iter().try_for_each(|name| write!(text, " {name:>8}"))?;
    writeln!(text, " {:>10} {:>14} {:>14}", "blocks", "weights", "kept k, v")?;
    for (rank, memory) in memory {
        write!(text, "{rank:>5}")?;
        axes.iter().try_for_each(|axis| write!(text, " {:>8}", plan.mesh.coordinate(rank, *axis)))?;
        let blocks = format!("{}..{}", memory.blocks.start, memory.blocks.end);
        let [weights, kept] = [memory.weight_bytes, memory.kept_bytes].map(|bytes| HumanBytes(bytes).to_string());
        writeln!(text, " {blocks:>10} {weights:>14} {kept:>14}")?;
    }
    out.write(text.as_bytes());
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
