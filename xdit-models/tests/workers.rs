//! Ranks that live as long as their pipeline: what requests share, and what they leave behind.

use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::{Device, FloatDType};
use xdit_comm::local::{self, World};
use xdit_core::mesh::ParallelConfig;
use xdit_core::observer::{Observer, Phase};
use xdit_models::pipeline::{Content, ModelSource, Options, Output, OutputType, Pipeline, PipelineError, Request};
use xdit_testing::golden;

const ONE: ParallelConfig = ParallelConfig { data: 1, cfg: 1, pipefusion: 1, ring: 1, ulysses: 1, tensor: 1 };

fn open(folder: &Path, parallel: ParallelConfig) -> Pipeline {
    let options = Options { parallel, ..Options::new(FloatDType::F32) };
    Pipeline::open(&ModelSource::Folder(folder.into()), options, local::world, &mut ()).expect("a pipeline")
}

/// Every rank has a device of its own.
fn apart(name: &str, parallel: ParallelConfig) -> Pipeline {
    let options = Options { parallel, ..Options::new(FloatDType::F32) };
    let ranks = |n| World::apart(vec![Device::flex(); n]).communicators();
    Pipeline::open(&ModelSource::Folder(golden::dir().join(name)), options, ranks, &mut ()).expect("a pipeline")
}

fn request() -> Request {
    Request {
        negative_prompts: vec!["a blue dog".into()],
        height: Some(80),
        width: Some(48),
        num_inference_steps: Some(4),
        true_cfg_scale: Some(2.0),
        output: OutputType::Latent,
        ..Request::new("a photo of a red cat")
    }
}

fn values(outputs: &[Output]) -> Vec<Vec<u32>> {
    let bits = |output: &Output| match &output.content {
        Content::Latent { values, .. } => values.iter().map(|x| x.to_bits()).collect(),
        Content::Picture { rgb, .. } => rgb.iter().map(|x| u32::from(*x)).collect(),
    };
    outputs.iter().map(bits).collect()
}

/// Counts what is loaded, and may break.
#[derive(Default)]
struct Watch {
    loaded: Vec<String>,
    blocks: usize,
    /// After so many blocks.
    stop_at: Option<usize>,
}

impl Observer for Watch {
    fn begin(&mut self, phase: Phase, what: &str, _total: u64) {
        if phase == Phase::Load {
            self.loaded.push(what.into());
        }
    }

    fn blocks(&mut self, _step: usize, _done: usize, _total: usize) -> ControlFlow<()> {
        self.blocks += 1;
        match self.stop_at.is_some_and(|at| self.blocks >= at) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

#[test]
fn a_cancelled_request_leaves_ranks_that_draw_the_next() {
    let meshes = [
        ONE,
        ParallelConfig { ulysses: 2, ring: 2, ..ONE },
        ParallelConfig { cfg: 2, ulysses: 2, ..ONE },
        ParallelConfig { pipefusion: 2, ulysses: 2, ..ONE },
        ParallelConfig { data: 2, pipefusion: 2, cfg: 2, ..ONE },
    ];
    for parallel in meshes {
        let mut pipeline = open(&golden::dir().join("flux-dev"), parallel);
        let request = Request { num_images: 3, ..request() };
        let mut watch = Watch::default();
        let first = values(&pipeline.generate(&request, &mut watch).expect("pictures"));
        assert_eq!(watch.loaded.iter().filter(|what| *what == "transformer").count(), parallel.pipefusion);
        // in the first step, in the middle, in the last step of the last picture
        for stop_at in [1, watch.blocks / 2, watch.blocks] {
            let mut watch = Watch { stop_at: Some(stop_at), ..Watch::default() };
            let said = pipeline.generate(&request, &mut watch).expect_err("a cancelled request");
            assert!(said.to_string().starts_with("cancelled"), "{parallel:?}: {said}");
            assert!(!watch.loaded.contains(&"transformer".into()));
            let again = values(&pipeline.generate(&request, &mut ()).expect("pictures"));
            assert_eq!(again, first, "{parallel:?} after a break at block {stop_at}");
        }
    }
}

#[test]
fn ranks_on_devices_of_their_own_share_nothing_and_draw_the_same() {
    let want = values(&open(&golden::dir().join("flux-dev"), ONE).generate(&request(), &mut ()).expect("a picture"));
    for parallel in [
        ParallelConfig { ulysses: 2, cfg: 2, ..ONE },
        ParallelConfig { ulysses: 4, ..ONE },
        ParallelConfig { data: 2, ulysses: 2, ..ONE },
    ] {
        let mut pipeline = apart("flux-dev", parallel);
        assert_eq!(values(&pipeline.generate(&request(), &mut ()).expect("a picture")), want, "{parallel:?}");
        assert_eq!(pipeline.ranks().len(), parallel.world_size());
    }
    let parallel = ParallelConfig { pipefusion: 2, ulysses: 2, ..ONE };
    let shared = open(&golden::dir().join("flux-dev"), parallel).generate(&request(), &mut ()).expect("a picture");
    let apart = apart("flux-dev", parallel).generate(&request(), &mut ()).expect("a picture");
    assert_eq!(values(&apart), values(&shared));
}

#[test]
fn pictures_are_handed_over_as_they_are_done() {
    let mut pipeline = open(&golden::dir().join("flux-schnell"), ParallelConfig { data: 2, ..ONE });
    let request = Request { num_images: 4, output: OutputType::Picture, ..request() };
    let all = pipeline.generate(&request, &mut ()).expect("pictures");
    let mut early = Vec::new();
    let said = pipeline.generate_each(&request, &mut (), &mut |output| {
        early.push(output);
        ControlFlow::Break(())
    });
    assert!(matches!(said, Err(PipelineError::Cancelled(_) | PipelineError::Engine(_))), "{said:?}");
    // the one that was broken at, and what was on its way
    assert!((1..4).contains(&early.len()), "{}", early.len());
    for output in &early {
        let same = all.iter().find(|other| other.image == output.image).expect("one of them");
        assert_eq!(values(std::slice::from_ref(output)), values(std::slice::from_ref(same)));
    }
}

#[test]
fn encoders_stay_where_they_are_wanted() {
    for keep_encoders in [false, true] {
        let options = Options { keep_encoders, ..Options::new(FloatDType::F32) };
        let source = ModelSource::Folder(golden::dir().join("flux-dev"));
        let mut pipeline = Pipeline::open(&source, options, local::world, &mut ()).expect("a pipeline");
        let first = pipeline.generate(&request(), &mut ()).expect("a picture");
        let mut watch = Watch::default();
        let second = pipeline.generate(&request(), &mut watch).expect("a picture");
        assert_eq!(values(&first), values(&second));
        let encoders: &[&str] = if keep_encoders { &[] } else { &["text_encoder", "text_encoder_2"] };
        assert_eq!(watch.loaded, encoders);
    }
}

/// A weight that is no number: found after the first step, on every mesh, and the ranks live on.
#[test]
fn values_that_are_no_numbers_end_a_picture_at_their_step() {
    let folder = tempfile::tempdir().expect("a folder");
    golden::copy("pixart-sigma", folder.path());
    golden::spoil(folder.path(), "transformer", "proj_out.bias", f32::NAN);
    let request = Request { num_inference_steps: Some(5), ..request() };
    let want = "after step 1 of 5; f32 hardly overflows";
    for parallel in [ONE, ParallelConfig { ulysses: 2, ..ONE }, ParallelConfig { pipefusion: 2, cfg: 2, ..ONE }] {
        let mut pipeline = open(folder.path(), parallel);
        for _ in 0..2 {
            let said = pipeline.generate(&request, &mut ()).expect_err("a refusal").to_string();
            assert!(said.contains(want), "{parallel:?}: {said}");
        }
    }
}

#[test]
fn clips_tokenizer_is_opened_once_for_a_plan_and_its_request() {
    for name in ["flux-dev", "sd3"] {
        let dir = tempfile::tempdir().expect("a folder");
        golden::copy(name, dir.path());
        let mut pipeline = open(dir.path(), ONE);
        let request =
            Request { height: Some(32), width: Some(32), num_inference_steps: Some(1), ..Request::new("a cat") };
        pipeline.plan(&request).expect("a plan");
        std::fs::remove_dir_all(dir.path().join("tokenizer")).expect("removed");
        assert_eq!(pipeline.generate(&request, &mut ()).expect("a picture").len(), 1);
        // it was freed before the encoders were read
        pipeline.generate(&request, &mut ()).expect_err("no tokenizer");
    }
}
