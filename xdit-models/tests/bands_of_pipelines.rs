//! Whole pipelines whose replicas have several devices, each of which decodes a band of the pictures.

use std::ops::ControlFlow;

use burn::tensor::{Device, FloatDType};
use xdit_comm::local::{self, World};
use xdit_core::comm::{Call, CommError, Communicator, Form, Part, Pending, Stats};
use xdit_core::mesh::ParallelConfig;
use xdit_core::observer::{Observer, Phase};
use xdit_models::pipeline::{Content, ModelSource, Options, Output, OutputType, Pipeline, Request};
use xdit_testing::golden;

const ONE: ParallelConfig = ParallelConfig { data: 1, cfg: 1, pipefusion: 1, ring: 1, ulysses: 1, tensor: 1 };

type Ranks = Vec<Box<dyn Communicator>>;

fn apart(n: usize) -> Ranks {
    World::apart(vec![Device::flex(); n]).communicators()
}

fn open(name: &str, parallel: ParallelConfig, ranks: impl FnOnce(usize) -> Ranks + Send + 'static) -> Pipeline {
    let options = Options { parallel, ..Options::new(FloatDType::F32) };
    Pipeline::open(&ModelSource::Folder(golden::dir().join(name)), options, ranks, &mut ()).expect("a pipeline")
}

fn request(height: usize) -> Request {
    Request {
        negative_prompts: vec!["a blue dog".into()],
        height: Some(height),
        width: Some(48),
        num_inference_steps: Some(2),
        guidance_scale: Some(3.5),
        max_sequence_length: Some(19),
        resolution_binning: false,
        num_images: 2,
        output: OutputType::Picture,
        ..Request::new("a photo of a red cat")
    }
}

fn pictures(outputs: Vec<Output>) -> Vec<Vec<u8>> {
    let rgb = |output: Output| match output.content {
        Content::Picture { rgb, .. } => rgb,
        Content::Latent { .. } => unreachable!("pictures were asked for"),
    };
    outputs.into_iter().map(rgb).collect()
}

/// Equal but for what lies between two levels of brightness.
#[track_caller]
fn assert_equal(got: &[Vec<u8>], want: &[Vec<u8>], what: &str) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        let away: Vec<_> = got.iter().zip(want).map(|(a, b)| a.abs_diff(*b)).filter(|d| *d > 0).collect();
        assert_eq!(got.len(), want.len());
        assert!(away.iter().all(|d| *d == 1) && away.len() * 1000 <= got.len(), "{what}: {} differ", away.len());
    }
}

/// Whose decoders are read, and a break behind so many stages of decoding.
#[derive(Default)]
struct Watch {
    vaes: usize,
    stages: usize,
    stop_at: Option<usize>,
}

impl Observer for Watch {
    fn begin(&mut self, phase: Phase, what: &str, _total: u64) {
        self.vaes += usize::from(phase == Phase::Load && what == "vae");
    }

    fn advance(&mut self, phase: Phase, _done: u64) -> ControlFlow<()> {
        self.stages += usize::from(phase == Phase::Decode);
        match self.stop_at == Some(self.stages) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

#[test]
fn devices_of_a_replica_share_the_decoding_and_draw_the_same() {
    let meshes = [
        ParallelConfig { ulysses: 2, ..ONE },
        ParallelConfig { cfg: 2, ..ONE },
        ParallelConfig { pipefusion: 2, ..ONE },
        ParallelConfig { data: 2, ..ONE },
        ParallelConfig { ring: 3, ..ONE },
        ParallelConfig { ring: 2, ulysses: 2, ..ONE },
        ParallelConfig { data: 2, ulysses: 2, ..ONE },
        ParallelConfig { ring: 3, cfg: 2, ..ONE },
    ];
    for name in ["flux-dev", "sd3", "pixart-alpha", "hunyuan-v12"] {
        // 10 rows of latents, which 3, 4 and 6 do not divide
        let request = Request { true_cfg_scale: name.starts_with("flux").then_some(2.0), ..request(80) };
        for parallel in meshes {
            let want = open(name, parallel, local::world).generate(&request, &mut ()).expect("pictures");
            let mut pipeline = open(name, parallel, apart);
            let got = pipeline.generate(&request, &mut ()).expect("pictures");
            assert_equal(&pictures(got), &pictures(want), &format!("{name} {parallel:?}"));
        }
    }
}

#[test]
fn ranks_of_one_device_leave_the_decoding_to_one_of_them() {
    let parallel = ParallelConfig { ulysses: 2, cfg: 2, ..ONE };
    let one = pictures(open("sd3", ONE, local::world).generate(&request(48), &mut ()).expect("pictures"));
    let shared = pictures(open("sd3", parallel, local::world).generate(&request(48), &mut ()).expect("pictures"));
    // bit for bit as one device
    assert_eq!(shared, one);
}

#[test]
fn more_devices_than_rows_leave_some_without_a_band() {
    // two rows of latents for each 16 pixels
    let parallel = ParallelConfig { ulysses: 3, cfg: 2, ..ONE };
    let small = Request { height: Some(32), ..request(32) };
    let want = pictures(open("pixart-alpha", ONE, local::world).generate(&small, &mut ()).expect("pictures"));
    let mut pipeline = open("pixart-alpha", parallel, apart);
    for _ in 0..2 {
        let got = pictures(pipeline.generate(&small, &mut ()).expect("pictures"));
        assert_equal(&got, &want, "six devices for four rows");
    }
}

#[test]
fn a_request_that_is_cancelled_while_it_decodes_leaves_ranks_that_draw_the_next() {
    for parallel in [
        ONE,
        ParallelConfig { ulysses: 2, ..ONE },
        ParallelConfig { ulysses: 2, cfg: 2, ..ONE },
        ParallelConfig { data: 2, pipefusion: 2, ..ONE },
    ] {
        let mut pipeline = open("sd3", parallel, apart);
        let mut watch = Watch::default();
        let want = pictures(pipeline.generate(&request(48), &mut watch).expect("pictures"));
        for stop_at in 1..=watch.stages {
            let mut watch = Watch { stop_at: Some(stop_at), ..Watch::default() };
            let said = pipeline.generate(&request(48), &mut watch).expect_err("a cancelled request").to_string();
            assert!(said.starts_with("cancelled"), "{parallel:?} {stop_at}: {said}");
            let again = pictures(pipeline.generate(&request(48), &mut ()).expect("pictures"));
            assert_eq!(again, want, "{parallel:?} after a break at stage {stop_at}");
        }
    }
}

/// Fails on one rank when a picture is put together, which is all that gathers.
struct Faulty {
    inner: Box<dyn Communicator>,
    fails: usize,
}

impl Communicator for Faulty {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn world_rank(&self) -> usize {
        self.inner.world_rank()
    }

    fn device(&self) -> &Device {
        self.inner.device()
    }

    fn slot(&self) -> usize {
        self.inner.slot()
    }

    fn exchange(&self, call: Call, parts: Vec<Part>, forms: &[Form]) -> Result<Vec<Part>, CommError> {
        assert!(call.op != "gather" || self.world_rank() != self.fails, "a fault");
        self.inner.exchange(call, parts, forms)
    }

    fn post_send(&self, call: Call, to: usize, part: Part) -> Result<Box<dyn Pending<()>>, CommError> {
        self.inner.post_send(call, to, part)
    }

    fn post_recv(&self, call: Call, from: usize, form: Form) -> Result<Box<dyn Pending<Part>>, CommError> {
        self.inner.post_recv(call, from, form)
    }

    fn split(&self, color: usize, key: usize) -> Result<Box<dyn Communicator>, CommError> {
        Ok(Box::new(Self { inner: self.inner.split(color, key)?, fails: self.fails }))
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }

    fn reset_stats(&self) {
        self.inner.reset_stats();
    }

    fn beat(&self) {
        self.inner.beat();
    }

    fn abort(&self, reason: &str) {
        self.inner.abort(reason);
    }
}

#[test]
fn a_rank_that_fails_while_it_decodes_ends_the_request() {
    for fails in 0..4 {
        let ranks = move |n| {
            let faulty = |inner| -> Box<dyn Communicator> { Box::new(Faulty { inner, fails }) };
            apart(n).into_iter().map(faulty).collect()
        };
        let mut pipeline = open("sd3", ParallelConfig { ulysses: 2, cfg: 2, ..ONE }, ranks);
        let said = pipeline.generate(&request(48), &mut ()).expect_err("an error").to_string();
        // a rank that panics has no error of its own to tell
        let others = format!("because rank {fails} panicked");
        assert!(said.contains(&others) || said == format!("rank {fails} is gone; open the pipeline again"), "{said}");
    }
}

/// A plan says what each device would need.
#[test]
fn a_plan_shares_the_decoding_among_devices() {
    let plan = |parallel| open("pixart-alpha", parallel, apart).plan(&request(160)).expect("a plan");
    let one = plan(ONE).phases(&[0]).decode;
    let four = plan(ParallelConfig { ulysses: 2, cfg: 2, ..ONE });
    assert_eq!(four.phases(&[0, 1, 2, 3]).decode, one, "one device");
    let [two, alone] = [four.phases(&[2, 3]).decode, four.phases(&[3]).decode];
    assert!(alone < two && two < one, "{alone} {two} {one}");
}
