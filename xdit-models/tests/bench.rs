//! What `Pipeline::bench` measures, and the published configurations that it draws weights for.

use std::ops::{ControlFlow, Range};

use burn::tensor::{Device, FloatDType};
use serde::de::DeserializeOwned;
use serde_json::Value;
use xdit_core::checkpoint::Loader;
use xdit_core::mesh::ParallelConfig;
use xdit_core::observer::{Observer, Phase};
use xdit_models::bench::published::{self, Published};
use xdit_models::dit::flux::Flux;
use xdit_models::dit::hunyuan_dit::HunyuanDit;
use xdit_models::dit::pixart::PixArt;
use xdit_models::dit::sd3::Sd3;
use xdit_models::error::ModelError;
use xdit_models::pipeline::{ModelSource, Options, Pipeline, Request, Runs};
use xdit_testing::golden;

const ALL: Range<usize> = 0..usize::MAX;

fn open(published: &'static Published, parallel: ParallelConfig) -> Pipeline {
    let options = Options { parallel, ..Options::new(FloatDType::F32) };
    Pipeline::open(&ModelSource::Random(published), options, xdit_comm::local::world, &mut ()).expect("a pipeline")
}

fn small() -> Request {
    Request { height: Some(64), width: Some(64), num_inference_steps: Some(3), ..Request::new("any") }
}

/// Parameters of a configuration, none of which is drawn.
fn count<C: DeserializeOwned, M>(
    published: &Published,
    build: impl FnOnce(&Loader<'_>, &C) -> Result<M, ModelError>,
) -> u64 {
    let file = published.files.iter().find(|file| file.path == "transformer/config.json").expect("a configuration");
    let loader = Loader::drawn("transformer", &Device::flex(), FloatDType::BF16).dry();
    build(&loader, &serde_json::from_slice(file.bytes).expect("a configuration")).expect("a model");
    loader.n_params()
}

#[test]
fn published_configurations_have_upstreams_parameters() {
    let text = std::fs::read_to_string(golden::dir().join("parameter_counts.json")).expect("counts");
    let counts: Value = serde_json::from_str(&text).expect("counts");
    for (name, upstream) in [
        ("flux-dev", "flux-dev"),
        ("flux-schnell", "flux-schnell"),
        ("sd3", "sd3-medium"),
        ("sd3.5-medium", "sd3.5-medium"),
        ("pixart-sigma", "pixart-sigma-1024"),
        ("hunyuandit", "hunyuan-v1.2"),
    ] {
        let model = &counts["models"][format!("{upstream}.transformer")];
        let published = published::find(name).expect("published");
        let got = match model["class"].as_str() {
            Some("FluxTransformer2DModel") => count(published, |l, c| Flux::load(l, c, ALL)),
            Some("SD3Transformer2DModel") => count(published, |l, c| Sd3::load(l, c, ALL)),
            Some("PixArtTransformer2DModel") => count(published, |l, c| PixArt::load(l, c, ALL)),
            _ => count(published, |l, c| HunyuanDit::load(l, c, ALL)),
        };
        // Stable Diffusion 3's table of positions is read, too
        let buffers = if name.starts_with("sd3") { &model["buffers"] } else { &Value::Null };
        let buffers = buffers.as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum::<u64>();
        assert_eq!(got, model["parameters"].as_u64().expect("a number") + buffers, "{name}");
    }
}

#[test]
fn all_names_open_and_have_settings() {
    for published in published::ALL {
        let pipeline = open(published, ParallelConfig::default());
        let settings = pipeline.settings(&Request::new("any")).expect("settings");
        assert!(settings.height >= 256 && published::names().contains(published.name), "{}", published.name);
    }
}

#[test]
fn every_run_and_step_has_its_time() {
    for parallel in [
        ParallelConfig::default(),
        ParallelConfig { ulysses: 2, cfg: 2, ..ParallelConfig::default() },
        ParallelConfig { pipefusion: 2, data: 2, ..ParallelConfig::default() },
    ] {
        let mut pipeline = open(published::find("tiny-sd3").expect("published"), parallel);
        let measured = pipeline.bench(&small(), Runs { warmup: 1, repeat: 2 }, &mut ()).expect("a measurement");
        let seconds = &measured.seconds;
        assert_eq!((seconds.denoise.len(), seconds.steps.len(), seconds.host.len()), (2, 3, 3), "{parallel:?}");
        assert!(seconds.condition > 0.0 && seconds.first > 0.0, "{seconds:?}");
        assert!(seconds.steps.iter().zip(&seconds.host).all(|(step, host)| *host > 0.0 && step >= host), "{seconds:?}");
        assert_eq!((measured.n_tokens, measured.passes, measured.devices), ([16, 333], 2, 1));
        assert_eq!(measured.pictures, parallel.data);
        // ranks live on, and weights are still there
        pipeline.bench(&small(), Runs { warmup: 0, repeat: 1 }, &mut ()).expect("another one");
    }
}

/// Breaks behind the conditioning of the second run.
struct Break(usize);

impl Observer for Break {
    fn advance(&mut self, phase: Phase, done: u64) -> ControlFlow<()> {
        self.0 += usize::from(phase == Phase::Denoise && done == 0);
        if self.0 == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

#[test]
fn a_break_ends_all_runs() {
    let parallel = ParallelConfig { ulysses: 2, data: 2, ..ParallelConfig::default() };
    let mut pipeline = open(published::find("tiny-flux").expect("published"), parallel);
    let error = pipeline.bench(&small(), Runs { warmup: 1, repeat: 500 }, &mut Break(0)).expect_err("an end");
    assert!(error.to_string().contains("cancelled"), "{error}");
    pipeline.bench(&small(), Runs { warmup: 0, repeat: 1 }, &mut ()).expect("ranks live on");
}

#[test]
fn there_is_nothing_to_draw_with() {
    for name in ["tiny-flux", "tiny-sd3"] {
        let mut pipeline = open(published::find(name).expect("published"), ParallelConfig::default());
        let error = pipeline.generate(&small(), &mut ()).expect_err("no encoders").to_string();
        assert!(error.contains("no component"), "{error}");
        pipeline.plan(&small()).expect_err("no encoders");
    }
}
