//! `xdit generate`.

use std::hash::{BuildHasher, RandomState};
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use xdit_core::observer::Observer;
use xdit_models::pipeline::{Options, OutputType, Pipeline, Request, Settings, estimate};

use crate::args::{self, Generate, Seed};
use crate::console::{Stdout, complain};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::launch::Place;
use crate::output::Target;
use crate::plan;
use crate::progress::Progress;
use crate::prompts;

pub fn run(args: &Generate, out: &mut Stdout) -> Result<(), Failure> {
    let interrupt = Interrupt::listen().context("cannot listen for Ctrl-C")?;
    let mut place = Place::find(&args.compute.device)?;
    let mut done = match place.speaks() {
        true => tell(args, &mut place, interrupt, out),
        false => help(args, &mut place, interrupt),
    };
    place.end(done.as_mut().err());
    done
}

/// What a process does that neither prints nor writes.
fn help(args: &Generate, place: &mut Place, interrupt: Interrupt) -> Result<(), Failure> {
    let mut progress = Progress::new(true, false, interrupt.clone());
    let mut help = || -> Result<()> {
        let request = request(args, place)?;
        let options = options(args);
        let ranks = place.ranks(&args.compute, options.parallel)?;
        let mut pipeline = Pipeline::open(&args.model.source(), options, ranks, &mut progress)?;
        Ok(pipeline.generate_each(&request, &mut progress, &mut |_| ControlFlow::Continue(()))?)
    };
    match help() {
        Err(_) if interrupt.raised() => Err(Failure::interrupted("0 pictures written", Vec::new())),
        done => Ok(done?),
    }
}

/// What the first process does, or the only one.
fn tell(args: &Generate, place: &mut Place, interrupt: Interrupt, out: &mut Stdout) -> Result<(), Failure> {
    let mut progress = Progress::new(args.quiet, args.json, interrupt.clone());
    place.hint().iter().for_each(|hint| progress.warn(hint));
    let request = request(args, place)?;
    let n_pictures = request.prompts.len().saturating_mul(request.num_images);
    let target = Target::new(args, &request)?;
    let notices = args.unquoted.iter().cloned().chain(args.without_effect(n_pictures));
    notices.chain(target.without_effect(args)).for_each(|notice| progress.warn(&notice));

    let mut written = Vec::new();
    let drawn = draw(args, place, &request, &target, &mut progress, out, &mut written);
    written.sort_by_key(|written| written.index);
    let n_written = written.len();
    let files: Vec<_> = written.into_iter().map(|written| written.record).collect();
    let told = match n_written {
        0 => format!("0 of {n_pictures} pictures written"),
        n => format!("{n} of {n_pictures} pictures written to {}", target.whereabouts()),
    };
    match drawn {
        Ok(drawn) if args.json => out.line(record(args, &request, &drawn, &files, &progress).to_string()),
        Ok(_) => {}
        Err(_) if interrupt.raised() => return Err(Failure::interrupted(&told, files)),
        Err(error) => return Err(Failure::after(&error, &told, files)),
    }
    Ok(())
}

/// A result that lies where it belongs.
struct Written {
    /// Among the request's results.
    index: usize,
    /// For `--json`.
    record: Value,
}

/// What the record tells beside the files.
struct Drawn {
    settings: Settings,
    memory: Vec<Value>,
}

/// Draws, and writes each picture as soon as it is done.
fn draw(
    args: &Generate,
    place: &mut Place,
    request: &Request,
    target: &Target,
    progress: &mut Progress,
    out: &mut Stdout,
    written: &mut Vec<Written>,
) -> Result<Drawn> {
    let options = options(args);
    let ranks = place.ranks(&args.compute, options.parallel)?;
    let mut pipeline = Pipeline::open(&args.model.source(), options, ranks, progress)?;
    // everything that can be wrong with the request shows here, before any weight is read
    let settings = pipeline.settings(request)?;
    target.make_folder()?;
    let tells = !args.quiet && !args.json;
    if tells && args.seed == Seed::Random {
        let seed = format!("seed {}", request.seed);
        if target.is_stdout() { complain(&seed) } else { out.line(seed) }
    }

    let bars = progress.bars();
    let mut failed = None;
    let result = pipeline.generate_each(request, progress, &mut |output| match target.write(
        &output,
        request,
        &settings,
        args.model.name(),
        out,
    ) {
        Ok(path) => {
            if tells && !target.is_stdout() {
                bars.suspend(|| out.line(path.as_os_str().as_encoded_bytes()));
            }
            let (prompt, seed) = (&request.prompts[output.prompt], output.seed);
            let index = output.prompt * request.num_images + output.image;
            written.push(Written {
                index,
                record: json!({ "path": path.to_string_lossy(), "prompt": prompt, "seed": seed }),
            });
            ControlFlow::Continue(())
        }
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    result?;
    Ok(Drawn { settings, memory: pipeline.ranks().iter().enumerate().map(plan::record).collect() })
}

fn options(args: &Generate) -> Options {
    Options {
        dtype: args.compute.dtype(),
        gemm_quantization: args.compute.quantization(),
        variant: args.model.variant.clone(),
        parallel: args.parallel.config(),
        pipefusion: args.parallel.pipefusion(),
        keep_encoders: false,
    }
}

fn request(args: &Generate, place: &Place) -> Result<Request> {
    let settings = &args.settings;
    Ok(Request {
        prompts: match &args.prompt_file {
            Some(file) if file == Path::new("-") && place.is_one_of_many() => {
                bail!("standard input is not the same for all processes; give --prompt-file a file")
            }
            Some(file) => prompts::read(file)?,
            None => args.prompt.clone(),
        },
        negative_prompts: args.negative_prompt.clone(),
        height: settings.height,
        width: settings.width,
        num_inference_steps: settings.num_inference_steps,
        guidance_scale: settings.guidance_scale,
        true_cfg_scale: settings.true_cfg_scale,
        guidance_rescale: args.guidance_rescale,
        skip_layers: args.skip_layers(),
        resolution_binning: !args.no_resolution_binning,
        max_sequence_length: settings.max_sequence_length,
        seed: match args.seed {
            Seed::Given(seed) => seed,
            // the system's random numbers; few enough digits to type them again, and exact in any JSON
            Seed::Random => place.same(RandomState::new().hash_one(0) & u64::from(u32::MAX))?,
        },
        num_images: args.num_images,
        output: match args.output_type {
            args::OutputType::Picture => OutputType::Picture,
            args::OutputType::Latent => OutputType::Latent,
        },
    })
}

fn record(args: &Generate, request: &Request, drawn: &Drawn, files: &[Value], progress: &Progress) -> Value {
    let Drawn { settings, memory } = drawn;
    json!({
        "model": args.model.name(),
        "files": files,
        "seed": request.seed,
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
        "peak_memory_bytes": estimate::peak_memory(),
        "warnings": progress.warnings(),
    })
}
