//! `xdit generate`.

use anyhow::Result;
use serde_json::json;
use xdit_core::engine::SkipLayers;
use xdit_models::pipeline::{ModelSource, Options, OutputType, Pipeline, Request};

use crate::args::{self, Generate};
use crate::launch;
use crate::output::Target;
use crate::plan;
use crate::progress::Progress;

pub fn run(args: &Generate) -> Result<()> {
    let mut progress = Progress::new(args.quiet, args.json);
    launch::check_environment()?;
    let options = Options {
        device: args.device.open()?,
        dtype: args.device.dtype(args.dtype),
        variant: args.variant.clone(),
        parallel: args.parallel.config(),
        pipefusion: args.parallel.pipefusion(),
    };
    let source = match &args.model {
        None => ModelSource::Builtin,
        Some(model) => match ModelSource::parse(model) {
            ModelSource::Hub { id, .. } => ModelSource::Hub { id, revision: args.revision.clone() },
            folder => folder,
        },
    };
    let mut pipeline = Pipeline::open(&source, options, &mut progress)?;
    let request = Request {
        prompts: args.prompt.clone(),
        negative_prompts: args.negative_prompt.clone(),
        height: args.height,
        width: args.width,
        num_inference_steps: args.num_inference_steps,
        guidance_scale: args.guidance_scale,
        true_cfg_scale: args.true_cfg_scale,
        guidance_rescale: args.guidance_rescale,
        skip_layers: (!args.skip_guidance_layers.is_empty()).then(|| SkipLayers {
            blocks: args.skip_guidance_layers.clone(),
            scale: args.skip_layer_guidance_scale,
            start: args.skip_layer_guidance_start,
            stop: args.skip_layer_guidance_stop,
        }),
        resolution_binning: !args.no_resolution_binning,
        max_sequence_length: args.max_sequence_length,
        seed: args.seed,
        num_images: args.num_images,
        output: match args.output_type {
            args::OutputType::Png => OutputType::Picture,
            args::OutputType::Latent => OutputType::Latent,
        },
    };
    // everything that can be wrong with the request or the output shows here, before any weight is read
    let settings = pipeline.settings(&request)?;
    let target = Target::new(&args.output, args.output_type, request.prompts.len() * request.num_images)?;

    let outputs = pipeline.generate(&request, &mut progress)?;

    let model = args.model.as_deref().unwrap_or("built-in");
    let mut files = Vec::with_capacity(outputs.len());
    for output in &outputs {
        let path = target.write(output, &request, &settings, model)?;
        if !args.quiet && !args.json {
            println!("{}", path.display());
        }
        files.push(json!({
            "path": path,
            "prompt": request.prompts[output.prompt],
            "seed": output.seed,
        }));
    }
    if args.json {
        let memory: Vec<_> = pipeline.ranks().iter().enumerate().map(plan::record).collect();
        let record = json!({
            "model": model,
            "files": files,
            "height": settings.height,
            "width": settings.width,
            "num_inference_steps": settings.num_inference_steps,
            "guidance_scale": settings.guidance_scale,
            "true_cfg_scale": settings.true_cfg_scale,
            "guidance_rescale": settings.guidance_rescale,
            "max_sequence_length": settings.max_sequence_length,
            "ranks": args.parallel.config().world_size(),
            "memory": memory,
            "seconds": progress.seconds(),
            "peak_memory_bytes": peak_memory(),
            "warnings": progress.warnings(),
        });
        println!("{record}");
    }
    Ok(())
}

/// The largest resident set so far, where the system tells it.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
