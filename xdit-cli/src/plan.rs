//! `xdit plan`: what each rank would hold, from headers only.

use std::fmt::Write;

use anyhow::Result;
use indicatif::HumanBytes;
use serde_json::{Value, json};
use xdit_core::mesh::Axis;
use xdit_models::pipeline::{ComponentMemory, Options, Phases, Pipeline, Plan as Planned, RankMemory, Request};

use crate::args::Plan;
use crate::console::{Stdout, complain};
use crate::download::{self, Warnings};

pub fn run(args: &Plan, out: &mut Stdout) -> Result<()> {
    args.compute.check(args.parallel.config().world_size())?;
    let notices = [args.model.without_effect(), args.parallel.without_effect()];
    notices.iter().flatten().for_each(|notice| complain(&format!("warning: {notice}")));
    let options = Options {
        variant: args.model.variant.clone(),
        parallel: args.parallel.config(),
        pipefusion: args.parallel.pipefusion(),
        gemm_quantization: args.compute.quantization(),
        ..Options::new(args.compute.dtype())
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
    let devices = args.compute.device.ranks(plan.mesh.world_size());
    match args.json {
        true => out.line(whole_record(&plan, &devices).to_string()),
        false => out.write(tables(&plan, &devices)?.as_bytes()),
    }
    Ok(())
}

fn bytes(n: u64) -> String {
    HumanBytes(n).to_string()
}

/// The ranks whose tensors are in the process's own memory.
fn on_cpu(devices: &[(String, Vec<usize>)]) -> &[usize] {
    devices.iter().find(|(device, _)| device == "cpu").map_or(&[], |(_, ranks)| ranks.as_slice())
}

/// Ranks, models and devices, a table each; below the devices what the process takes besides, and in all.
fn tables(plan: &Planned, devices: &[(String, Vec<usize>)]) -> Result<String> {
    let (rows, cols) = (plan.grid.rows, plan.grid.cols);
    let mut text = String::new();
    writeln!(text, "{rows} x {cols} image tokens, {} patches, {} ranks\n", plan.n_patches, plan.mesh.world_size())?;
    let columns = ["data", "cfg", "stage", "ring", "ulysses"];
    let axes = [Axis::Data, Axis::Cfg, Axis::Pipefusion, Axis::Ring, Axis::Ulysses];
    write!(text, "{:>5}", "rank")?;
    columns.iter().try_for_each(|name| write!(text, " {name:>8}"))?;
    writeln!(text, " {:>8} {:>12} {:>12} {:>12} {:>12}", "blocks", "weights", "kept k, v", "activations", "alone")?;
    for (rank, memory) in plan.memory.iter().enumerate() {
        write!(text, "{rank:>5}")?;
        axes.iter().try_for_each(|axis| write!(text, " {:>8}", plan.mesh.coordinate(rank, *axis)))?;
        let stage = &plan.stages[memory.stage];
        let peak = plan.phases(&[rank]).peak();
        let [weights, kept, live, peak] = [stage.weights, memory.kept_bytes, stage.activations, peak].map(bytes);
        let blocks = format!("{}..{}", memory.blocks.start, memory.blocks.end);
        writeln!(text, " {blocks:>8} {weights:>12} {kept:>12} {live:>12} {peak:>12}")?;
    }
    writeln!(text, "\n{:<16} {:>12} {:>12}", "model", "weights", "activations")?;
    for model in plan.encoders.iter().chain(&plan.decoder) {
        writeln!(text, "{:<16} {:>12} {:>12}", model.component, bytes(model.weights), bytes(model.activations))?;
    }
    writeln!(
        text,
        "\n{:<10} {:>6} {:>12} {:>12} {:>12} {:>12}",
        "device", "ranks", "encode", "denoise", "decode", "peak"
    )?;
    for (device, ranks) in devices {
        let phases = plan.phases(ranks);
        let [encode, denoise, decode, peak] = [phases.encode, phases.denoise, phases.decode, phases.peak()].map(bytes);
        writeln!(text, "{device:<10} {:>6} {encode:>12} {denoise:>12} {decode:>12} {peak:>12}", ranks.len())?;
    }
    let on_cpu = on_cpu(devices);
    let program = plan.program(on_cpu);
    writeln!(text, "{:<56} {:>12}", "program", bytes(program))?;
    if !on_cpu.is_empty() {
        writeln!(text, "{:<56} {:>12}", "process", bytes(plan.phases(on_cpu).peak() + program))?;
    }
    Ok(text)
}

/// All of it for `--json`.
fn whole_record(plan: &Planned, devices: &[(String, Vec<usize>)]) -> Value {
    let phases = |phases: Phases| {
        json!({
            "encode": phases.encode, "denoise": phases.denoise, "decode": phases.decode, "peak": phases.peak(),
        })
    };
    let rank = |(rank, memory): (usize, &RankMemory)| {
        let mut all = record((rank, memory));
        let stage = &plan.stages[memory.stage];
        all["resident_weight_bytes"] = stage.weights.into();
        all["activation_bytes"] = stage.activations.into();
        all["bytes_alone"] = phases(plan.phases(&[rank]));
        all
    };
    let model = |model: &ComponentMemory| {
        json!({
            "component": model.component,
            "resident_weight_bytes": model.weights,
            "activation_bytes": model.activations,
        })
    };
    let device = |(device, ranks): &(String, Vec<usize>)| json!({ "device": device, "ranks": ranks, "bytes": phases(plan.phases(ranks)) });
    let on_cpu = on_cpu(devices);
    let program = plan.program(on_cpu);
    json!({
        "img_tokens": plan.grid.n_tokens(),
        "patches": plan.n_patches,
        "ranks": plan.mesh.world_size(),
        "memory": plan.memory.iter().enumerate().map(rank).collect::<Vec<_>>(),
        "encoders": plan.encoders.iter().map(model).collect::<Vec<_>>(),
        "decoder": plan.decoder.as_ref().map(model),
        "devices": devices.iter().map(device).collect::<Vec<_>>(),
        "program_bytes": program,
        "peak_memory_bytes": plan.phases(on_cpu).peak() + program,
    })
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
