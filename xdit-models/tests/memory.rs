//! What a plan says that a request needs, and what it really needs: the peak of all live allocations, counted. The only
//! test of its process, so that the numbers are its own.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::{Device, FloatDType, Tensor};
use peak_alloc::PeakAlloc;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use xdit_comm::local::{self, World};
use xdit_core::checkpoint::{Loader, Weights};
use xdit_core::folder::{PipelineFolder, Source};
use xdit_core::mesh::ParallelConfig;
use xdit_core::observer::{Observer, Phase};
use xdit_core::stages::PipeFusion;
use xdit_models::dit::flux::Flux;
use xdit_models::dit::pixart::PixArt;
use xdit_models::dit::sd3::Sd3;
use xdit_models::error::ModelError;
use xdit_models::pipeline::{ModelSource, Options, OutputType, Phases, Pipeline, Request};
use xdit_models::text::clip::ClipText;
use xdit_models::text::t5::T5Encoder;
use xdit_models::vae::Vae;
use xdit_models::vae::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use xdit_models::vae::bands::Bands;
use xdit_testing::golden;
use xdit_testing::mesh::on_world;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const ONE: ParallelConfig = ParallelConfig { data: 1, cfg: 1, pipefusion: 1, ring: 1, ulysses: 1, tensor: 1 };
const BLOCKS: std::ops::Range<usize> = 0..usize::MAX;

type Shapes = Vec<(String, Vec<usize>)>;

/// The tensors that a model asks for.
fn shapes<C: DeserializeOwned, M>(
    config: &Value,
    build: impl FnOnce(&Loader<'_>, &C) -> Result<M, ModelError>,
) -> Shapes {
    let weights = Weights::from_static("model", &[]).expect("no files");
    let loader = Loader::new(&weights, &Device::flex(), FloatDType::F32);
    build(&loader, &C::deserialize(config).expect("a configuration")).expect("a model");
    let convolution = |(name, shape): (String, Vec<usize>)| match shape[..] {
        // a dense layer to the model that is a convolution of 2x2 latent pixels in checkpoints
        [d, n] if name == "pos_embed.proj.weight" => (name, vec![d, n / 4, 2, 2]),
        _ => (name, shape),
    };
    loader.asked().into_iter().map(convolution).collect()
}

/// A checkpoint of small numbers that are no pattern.
fn write(path: &Path, shapes: &Shapes) {
    let (mut at, mut entries) = (0, Vec::new());
    for (name, shape) in shapes {
        let end = at + 4 * shape.iter().product::<usize>();
        entries.push(format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{at},{end}]}}"#));
        at = end;
    }
    let header = format!("{{{}}}", entries.join(","));
    let mut file = BufWriter::new(File::create(path).expect("a file"));
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("written");
    file.write_all(header.as_bytes()).expect("written");
    let mut state = 1_u32;
    for _ in 0..at / 4 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = (f32::from((state >> 16) as u16) / 32_768.0 - 1.0) * 0.05;
        file.write_all(&value.to_le_bytes()).expect("written");
    }
    file.flush().expect("written");
}

/// The golden folder `name` with other numbers in its configurations, and weights to match.
fn folder(name: &str, numbers: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let from = golden::dir().join(name);
    for entry in fs::read_dir(&from).expect("a golden folder").flatten() {
        let to = dir.path().join(entry.file_name());
        if entry.path().is_file() {
            fs::copy(entry.path(), to).expect("copied");
            continue;
        }
        fs::create_dir(&to).expect("a folder");
        for file in fs::read_dir(entry.path()).expect("a component").flatten() {
            let name = file.file_name().into_string().expect("a name");
            if !name.contains("safetensors") {
                fs::copy(file.path(), to.join(name)).expect("copied");
            }
        }
        let component = entry.file_name().into_string().expect("a name");
        if !to.join("config.json").exists() || component.starts_with("tokenizer") {
            continue;
        }
        let text = fs::read_to_string(to.join("config.json")).expect("a configuration");
        let mut config: Value = serde_json::from_str(&text).expect("JSON");
        for (_, other) in numbers.iter().filter(|(of, _)| *of == component) {
            let other = other.as_object().expect("fields").clone();
            config.as_object_mut().expect("fields").extend(other);
        }
        fs::write(to.join("config.json"), config.to_string()).expect("written");
        let class = config["_class_name"].as_str().or(config["architectures"][0].as_str()).expect("a class");
        let (shapes, file) = match class {
            "FluxTransformer2DModel" => (shapes(&config, |l, c| Flux::load(l, c, BLOCKS)), "diffusion_pytorch_model"),
            "SD3Transformer2DModel" => (shapes(&config, |l, c| Sd3::load(l, c, BLOCKS)), "diffusion_pytorch_model"),
            "CLIPTextModel" => (shapes(&config, ClipText::load), "model"),
            "CLIPTextModelWithProjection" => (shapes(&config, ClipText::load_with_projection), "model"),
            "T5EncoderModel" => (shapes(&config, T5Encoder::load), "model"),
            "AutoencoderKL" => (shapes(&config, AutoencoderKl::load), "diffusion_pytorch_model"),
            _ => (shapes(&config, |l, c| PixArt::load(l, c, BLOCKS)), "diffusion_pytorch_model"),
        };
        write(&to.join(format!("{file}.safetensors")), &shapes);
    }
    dir
}

/// The peak of each phase; reading the transformer and the decoder belongs to denoising.
#[derive(Default)]
struct Peaks {
    before: usize,
    now: Option<Phase>,
    encoded: bool,
    phases: [usize; 3],
}

impl Peaks {
    fn take(&mut self, phase: usize) {
        let peak = MEMORY.peak_usage().saturating_sub(self.before);
        self.phases[phase] = self.phases[phase].max(peak);
        MEMORY.reset_peak_usage();
    }
}

impl Observer for Peaks {
    fn begin(&mut self, phase: Phase, what: &str, _total: u64) {
        if !self.encoded && what == "transformer" {
            self.take(0);
            self.encoded = true;
        }
        if phase == Phase::Decode {
            self.take(1);
        }
        self.now = Some(phase);
    }

    fn advance(&mut self, _phase: Phase, _done: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn end(&mut self, _phase: Phase) {}
}

struct Case<'a> {
    name: &'a str,
    path: &'a Path,
    dtype: FloatDType,
    parallel: ParallelConfig,
    side: usize,
    output: OutputType,
    guided: bool,
    /// Whether each rank is a device of its own, in the same memory here.
    apart: bool,
}

fn check(case: &Case<'_>) {
    let options = Options { parallel: case.parallel, pipefusion: PipeFusion::default(), ..Options::new(case.dtype) };
    let source = ModelSource::Folder(case.path.into());
    let apart = case.apart;
    let ranks = move |n| match apart {
        true => World::apart(vec![Device::flex(); n]).communicators(),
        false => local::world(n),
    };
    let mut pipeline = Pipeline::open(&source, options, ranks, &mut ()).expect("a pipeline");
    let request = Request {
        height: Some(case.side),
        width: Some(case.side),
        num_inference_steps: Some(2),
        guidance_scale: Some(if case.guided { 4.0 } else { 1.0 }),
        max_sequence_length: Some(64),
        resolution_binning: false,
        output: case.output,
        ..Request::new("a photo of a red cat")
    };
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let plan = pipeline.plan(&request).expect("a plan");
    let planning = MEMORY.peak_usage() - before;
    let all: Vec<usize> = (0..case.parallel.world_size()).collect();
    let devices = all.chunks(if apart { 1 } else { all.len() }).map(|ranks| plan.phases(ranks));
    let said = devices.fold(Phases::default(), |a, b| Phases {
        encode: a.encode + b.encode,
        denoise: a.denoise + b.denoise,
        decode: a.decode + b.decode,
    });

    let mut peaks = Peaks { before: MEMORY.current_usage(), ..Peaks::default() };
    MEMORY.reset_peak_usage();
    pipeline.generate(&request, &mut peaks).expect("pictures");
    peaks.take(if case.output == OutputType::Picture { 2 } else { 1 });
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let measured = peaks.phases.iter().copied().max().unwrap_or(0) as u64;
    let [encode, denoise, decode] = peaks.phases.map(|bytes| mib(bytes as u64));
    println!(
        "{:<36} said {:6.1} {:6.1} {:6.1}  measured {encode:6.1} {denoise:6.1} {decode:6.1}  weights {:.1}  {:+.1} %  plan {:.2}",
        case.name,
        mib(said.encode),
        mib(said.denoise),
        mib(said.decode),
        mib(plan.stages.iter().map(|stage| stage.weights).sum()),
        (said.peak() as f64 / measured as f64 - 1.0) * 100.0,
        mib(planning as u64),
    );
    let error = said.peak() as f64 / measured as f64 - 1.0;
    // devices are not all at their peaks at one time, but may be
    let most = if apart { 0.25 } else { 0.1 };
    assert!((-0.1..=most).contains(&error), "{}: {:+.1} %", case.name, error * 100.0);
    // the test's models have tens of MiB
    assert!(planning < 2 << 20, "planning took {planning} bytes");
}

/// The peak of `n` ranks that decode a picture together, weights not counted.
fn decoding(vae: &AutoencoderKl, latents: &Tensor<4>, n: usize) -> usize {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let world = World::apart(vec![Device::flex(); n]);
    let ranks = on_world(world, |ranks| {
        let bands = Bands::of(&*ranks, latents.dims()[2]);
        let band = vae.decode_band(latents.clone(), &bands, &mut || ControlFlow::Continue(()));
        bands.gather(band.expect("a band"), 8).expect("a picture")
    });
    let peak = MEMORY.peak_usage() - before;
    assert!(ranks.into_iter().next().expect("a rank").expect("no panic").is_some());
    peak
}

/// All ranks together take little more than one alone: so each takes less.
fn check_bands(path: &Path) {
    let folder = PipelineFolder::open(Source::Dir(path.into())).expect("a folder");
    let config: AutoencoderKlConfig = folder.config("vae", "config.json").expect("a configuration");
    let weights = folder.weights("vae", None).expect("weights");
    let loader = Loader::new(&weights, &Device::flex(), FloatDType::F32);
    let vae = AutoencoderKl::load(&loader, &config).expect("a decoder");
    let latents = Tensor::ones([1, config.latent_channels, 64, 32], &Device::flex());
    let peaks = [1, 2, 4].map(|n| decoding(&vae, &latents, n));
    for (n, peak) in [1, 2, 4].into_iter().zip(peaks) {
        let part = peak as f64 / n as f64 / peaks[0] as f64;
        println!("{n} ranks decode with {:.1} MiB each, {part:.2} of one", peak as f64 / n as f64 / f64::from(1 << 20));
        // beside its band a rank has the convolutions' weights, and buffers of their threads
        assert!(part <= 1.0 / n as f64 + 0.15, "{n} ranks");
    }
}

#[test]
fn a_plan_is_within_a_tenth_of_what_is_measured() {
    let wide = |heads: usize, dim: usize| json!({ "num_attention_heads": heads, "attention_head_dim": dim });
    let merge = |mut a: Value, b: Value| {
        a.as_object_mut().expect("fields").extend(b.as_object().expect("fields").clone());
        a
    };
    let flux = folder(
        "flux-dev",
        &[(
            "transformer",
            merge(wide(8, 64), json!({ "axes_dims_rope": [16, 24, 24], "num_layers": 1, "num_single_layers": 2 })),
        )],
    );
    let sd3 = folder(
        "sd3",
        &[(
            "transformer",
            merge(wide(8, 64), json!({ "caption_projection_dim": 512, "num_layers": 3, "pos_embed_max_size": 64 })),
        )],
    );
    let pixart = folder(
        "pixart-alpha",
        &[("transformer", merge(wide(8, 60), json!({ "cross_attention_dim": 480, "num_layers": 4 })))],
    );
    let t5 = folder(
        "pixart-alpha",
        &[
            ("text_encoder", json!({ "d_model": 256, "d_ff": 2048, "d_kv": 64, "num_heads": 16, "num_layers": 3 })),
            ("transformer", json!({ "caption_channels": 256 })),
        ],
    );
    let vae =
        folder("pixart-alpha", &[("vae", json!({ "block_out_channels": [64, 128, 256, 256], "norm_num_groups": 32 }))]);
    check_bands(vae.path());
    let both = ParallelConfig { ulysses: 2, pipefusion: 2, ..ONE };
    let (f32, bf16) = (FloatDType::F32, FloatDType::BF16);
    for (name, path, dtype, parallel, side, output, guided) in [
        ("flux f32", flux.path(), f32, ONE, 512, OutputType::Latent, false),
        ("flux bf16", flux.path(), bf16, ONE, 512, OutputType::Latent, false),
        ("flux f32, ulysses 2, pipefusion 2", flux.path(), f32, both, 512, OutputType::Latent, false),
        ("sd3 f32", sd3.path(), f32, ONE, 512, OutputType::Latent, true),
        ("sd3 bf16", sd3.path(), bf16, ONE, 512, OutputType::Latent, true),
        ("pixart f32", pixart.path(), f32, ONE, 512, OutputType::Latent, true),
        ("pixart bf16", pixart.path(), bf16, ONE, 512, OutputType::Latent, true),
        ("pixart f32, ulysses 2, pipefusion 2", pixart.path(), f32, both, 512, OutputType::Latent, true),
        ("t5 f32", t5.path(), f32, ONE, 128, OutputType::Latent, true),
        ("t5 bf16", t5.path(), bf16, ONE, 128, OutputType::Latent, true),
        ("vae f32", vae.path(), f32, ONE, 256, OutputType::Picture, true),
        ("vae bf16", vae.path(), bf16, ONE, 256, OutputType::Picture, true),
    ] {
        check(&Case { name, path, dtype, parallel, side, output, guided, apart: false });
    }
    let two = ParallelConfig { ulysses: 2, ..ONE };
    let four = ParallelConfig { ulysses: 2, cfg: 2, ..ONE };
    for (name, dtype, parallel) in [("vae f32, two devices", f32, two), ("vae f32, four devices", f32, four)] {
        let (output, guided, apart) = (OutputType::Picture, true, true);
        check(&Case { name, path: vae.path(), dtype, parallel, side: 256, output, guided, apart });
    }
}
