//! `xdit bench`.

use std::fmt::Write;

use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::{DType, Device, ExecutionError, FloatDType};
use indicatif::HumanBytes;
use serde_json::{Value, json};
use xdit_core::device::{failure, memory};
use xdit_core::observer::Observer;
use xdit_models::bench::ops::{Op, Rate};
use xdit_models::pipeline::{Measured, Options, OutputType, Pipeline, Request, Runs, estimate};

use crate::args::Bench;
use crate::console::Stdout;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::launch;
use crate::progress::Progress;

/// Most bytes of an operation's operands on a device that does not say what it has.
const MOST_BYTES: u64 = 128 << 30;

pub fn run(args: &Bench, out: &mut Stdout) -> Result<(), Failure> {
    if let Some(op) = args.op().map_err(|error| anyhow!(error))? {
        return Ok(time(op, args, out)?);
    }
    let interrupt = Interrupt::listen().context("cannot listen for Ctrl-C")?;
    let mut progress = Progress::new(args.quiet, args.json, interrupt.clone());
    launch::check_alone()?;
    args.without_effect().for_each(|notice| progress.warn(&notice));
    match measure(args, &mut progress) {
        Ok(measured) if args.json => out.line(record(args, &measured, &progress).to_string()),
        Ok(measured) => out.write(table(args, &measured).context("cannot write a table")?.as_bytes()),
        Err(_) if interrupt.raised() => return Err(Failure::interrupted("nothing was measured", Vec::new())),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn measure(args: &Bench, progress: &mut Progress) -> Result<Measured> {
    let options = Options {
        variant: args.model.variant.clone(),
        parallel: args.parallel.config(),
        pipefusion: args.parallel.pipefusion(),
        gemm_quantization: args.compute.quantization(),
        ..Options::new(dtype(args))
    };
    let ranks = launch::threads(&args.compute, options.parallel.world_size())?;
    let mut pipeline = Pipeline::open(&args.source(), options, ranks, progress)?;
    let request = Request {
        height: args.size,
        width: args.size,
        num_inference_steps: Some(args.steps),
        guidance_scale: args.guidance_scale,
        resolution_binning: false,
        output: OutputType::Latent,
        ..Request::new("any")
    };
    Ok(pipeline.bench(&request, Runs { warmup: args.warmup, repeat: args.repeat }, progress)?)
}

fn dtype(args: &Bench) -> FloatDType {
    args.compute.dtype()
}

/// `"bf16"` or `"bf16 with fp8 products"`, and `"cuda:0"`
fn place(args: &Bench) -> [String; 2] {
    let devices = args.compute.device.ranks(args.parallel.config().world_size());
    let names: Vec<_> = devices.into_iter().map(|(name, _)| name).collect();
    let quantised = if args.compute.quantization().is_some() { " with fp8 products" } else { "" };
    [format!("{:?}{quantised}", dtype(args)).to_lowercase(), names.join(",")]
}

/// The middle and the least of some seconds.
struct Spread {
    median: f64,
    best: f64,
}

impl Spread {
    fn of(seconds: &[f64]) -> Self {
        let mut sorted = seconds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
        Self { median: at(sorted.len() / 2), best: at(0) }
    }

    fn record(&self) -> Value {
        json!({ "median": self.median, "best": self.best })
    }
}

/// Operations a second: of the denoising, and of all devices if they did nothing but square products.
struct Rates {
    denoise: f64,
    peak: f64,
}

impl Rates {
    fn of(measured: &Measured) -> Self {
        let Measured { seconds, work, settings, square: (op, rate), .. } = measured;
        let whole = work.total() * settings.num_inference_steps as f64;
        Self {
            denoise: whole / Spread::of(&seconds.denoise).median,
            peak: op.flops() / rate.best * measured.devices as f64,
        }
    }
}

/// With a unit that leaves a few digits.
fn flops(n: f64) -> String {
    if n < 1e12 { format!("{:.2} GFLOP", n / 1e9) } else { format!("{:.1} TFLOP", n / 1e12) }
}

fn table(args: &Bench, measured: &Measured) -> Result<String, std::fmt::Error> {
    let Measured { settings, seconds, work, passes, .. } = measured;
    let ([height, width], [n_img, n_txt], [dtype, device]) = (settings.drawn, measured.n_tokens, place(args));
    let ranks = args.parallel.config().world_size();
    let (denoise, step, host) = (Spread::of(&seconds.denoise), Spread::of(&seconds.steps), Spread::of(&seconds.host));
    let rates = Rates::of(measured);
    let mut text = String::new();
    writeln!(
        text,
        "{}, {height}x{width} pixels, {n_img} image and {n_txt} text tokens\n\
         steps: {}; passes a step: {passes}; pictures at once: {}; ranks: {ranks}, {dtype} on {device}\n",
        args.name(),
        settings.num_inference_steps,
        measured.pictures
    )?;
    let mut line = |name: &str, seconds: f64, more: String| writeln!(text, "{name:<16} {seconds:>10.4} s  {more}");
    line("load", seconds.load, format!("{} of weights", HumanBytes(measured.weight_bytes)))?;
    line("first run", seconds.first, String::new())?;
    line("conditioning", seconds.condition, "before the steps, part of each run".into())?;
    line("denoise", denoise.median, format!("median of {} runs; best {:.4}", seconds.denoise.len(), denoise.best))?;
    line("step", step.median, format!("median; best {:.4}", step.best))?;
    line("host per step", host.median, "median, until the last block is given to the device".into())?;
    let (linear, attention) = (flops(work.linear), flops(work.attention));
    let share = 100.0 * rates.denoise / rates.peak;
    writeln!(text, "\nwork   {} a step: {linear} in linear layers, {attention} in attention", flops(work.total()))?;
    writeln!(
        text,
        "rate   {}/s, {share:.1} % of {}/s ({})",
        flops(rates.denoise),
        flops(rates.peak),
        measured.square.0
    )?;
    let memory = |bytes: Option<u64>| bytes.map_or("unknown".into(), |bytes| HumanBytes(bytes).to_string());
    writeln!(text, "memory {} of the process at its peak", memory(estimate::peak_memory()))?;
    if measured.device_bytes.is_some() {
        writeln!(text, "       {} reserved on the device", memory(measured.device_bytes))?;
    }
    Ok(text)
}

fn record(args: &Bench, measured: &Measured, progress: &Progress) -> Value {
    let Measured { settings, seconds, work, .. } = measured;
    let ([height, width], [n_img, n_txt], [dtype, device]) = (settings.drawn, measured.n_tokens, place(args));
    let rates = Rates::of(measured);
    let mut denoise = Spread::of(&seconds.denoise).record();
    denoise["all"] = json!(seconds.denoise);
    json!({
        "model": args.name(),
        "height": height,
        "width": width,
        "steps": settings.num_inference_steps,
        "passes": measured.passes,
        "pictures": measured.pictures,
        "img_tokens": n_img,
        "txt_tokens": n_txt,
        "dtype": dtype,
        "device": device,
        "ranks": args.parallel.config().world_size(),
        "weight_bytes": measured.weight_bytes,
        "seconds": {
            "load": seconds.load,
            "first": seconds.first,
            "conditioning": seconds.condition,
            "denoise": denoise,
            "step": Spread::of(&seconds.steps).record(),
            "host_step": Spread::of(&seconds.host).record(),
        },
        "step_tflop": {
            "linear": work.linear / 1e12,
            "attention": work.attention / 1e12,
            "total": work.total() / 1e12,
        },
        "tflops": rates.denoise / 1e12,
        "peak_tflops": rates.peak / 1e12,
        "peak_of": measured.square.0.to_string(),
        "share_of_peak": rates.denoise / rates.peak,
        "memory": { "peak_bytes": estimate::peak_memory(), "device_bytes": measured.device_bytes },
        "warnings": progress.warnings(),
    })
}

/// `--op`
fn time(op: Op, args: &Bench, out: &mut Stdout) -> Result<()> {
    let device = args.compute.open_all(1)?.remove(0);
    let needed = op.bytes(DType::from(dtype(args)).size());
    let free = match device == Device::flex() {
        true => estimate::free_memory(),
        false => memory(&device).map(|memory| memory.free),
    };
    let free = free.unwrap_or(MOST_BYTES);
    if needed > free {
        bail!("{op} takes {} of memory where {} are free", HumanBytes(needed), HumanBytes(free));
    }
    let quantization = args.compute.quantization();
    if quantization.is_some_and(|kind| !op.quantises(kind)) {
        bail!("{op} is not done in fp8: that is for linear layers whose k and n are multiples of 16");
    }
    let failed = |error: ExecutionError| anyhow!("{op}: {}", failure(&device, &error.to_string()));
    let Rate { median, best } = op.time(&device, dtype(args), quantization).map_err(failed)?;
    let [dtype, device] = place(args);
    let tflops = op.flops() / median / 1e12;
    match args.json {
        true => out.line(
            json!({
                "op": op.to_string(), "dtype": dtype, "device": device, "ms": median * 1e3, "best_ms": best * 1e3,
                "tflops": tflops,
            })
            .to_string(),
        ),
        false => out.line(format!(
            "{op}, {dtype} on {device}: {:.4} ms (best {:.4}), {}/s",
            median * 1e3,
            best * 1e3,
            flops(op.flops() / median)
        )),
    }
    Ok(())
}
