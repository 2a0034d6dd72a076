//! Measures the denoising alone: the engine as [`Pipeline::generate`] runs it, on texts of random numbers, without encoders
//! and decoder. One picture for each replica at a time.

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::{Device, FloatDType};
use xdit_core::checkpoint::Quantization;
use xdit_core::device::failure;
use xdit_core::engine::{Halt, Reason};
use xdit_core::observer::{Observer, Phase};

use crate::bench::ops::{Op, Rate};
use crate::bench::text::TextSizes;
use crate::bench::work::Work;
use crate::pipeline::draw::{Pictures, Stage};
use crate::pipeline::error::PipelineError;
use crate::pipeline::generate::Pipeline;
use crate::pipeline::reading::Reader;
use crate::pipeline::request::{OutputType, Request, Settings};
use crate::pipeline::worker::Worker;
use crate::pipeline::workers::Desk;

/// Side of the product that others are compared with: large enough for a GPU to be at its best, small enough for a CPU.
const SQUARE: [usize; 2] = [8192, 1024];

/// How often the picture is denoised. After these there is one more run that waits for the device after each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Runs {
    /// Runs that don't count.
    pub warmup: usize,
    /// Runs that do.
    pub repeat: usize,
}

/// What the first rank's clock says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seconds {
    /// Weights are drawn or read.
    pub load: f64,
    /// The first run, whether it counts or not: it may compile kernels.
    pub first: f64,
    /// What all steps share is computed: text, time, positions. Part of each run.
    pub condition: f64,
    /// Whole runs.
    pub denoise: Vec<f64>,
    /// Steps of the run that waits after each.
    pub steps: Vec<f64>,
    /// Until the host had given the device the last block of each of these steps.
    pub host: Vec<f64>,
}

/// What was measured, and on what.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Of the pictures.
    pub settings: Settings,
    /// Image and text tokens.
    pub n_tokens: [usize; 2],
    /// Passes through the blocks in a step: two with classifier-free guidance.
    pub passes: usize,
    /// Pictures that are denoised at once, one for each replica.
    pub pictures: usize,
    /// Devices that work.
    pub devices: usize,
    /// Of a step, of all pictures.
    pub work: Work,
    /// Bytes of the weights in memory, of all stages together.
    pub weight_bytes: u64,
    /// Where time went.
    pub seconds: Seconds,
    /// A square product, for comparison, and how fast the first rank's device does it alone.
    pub square: (Op, Rate),
    /// Bytes that Burn has reserved on the first rank's device in the end; absent where the device is the CPU.
    pub device_bytes: Option<u64>,
}

/// What the first rank hands over.
struct Taken {
    seconds: Seconds,
    square: (Op, Rate),
    device_bytes: Option<u64>,
}

impl Pipeline {
    /// Denoises a picture of the request's settings again and again. Its prompts say nothing, and its pictures are lost.
    ///
    /// # Errors
    /// As [`generate`](Self::generate); weights that the CPU's memory is too small for.
    pub fn bench(
        &mut self,
        request: &Request,
        runs: Runs,
        observer: &mut dyn Observer,
    ) -> Result<Measured, PipelineError> {
        let settings = self.settings(request)?;
        let guidance = self.guidance(request, &settings);
        let [height, width] = settings.drawn;
        let n_img = self.geometry.grid(height, width).n_tokens();
        let blocks = self.blocks()?;
        let n_patches = self.n_patches(&settings, &guidance)?;
        self.launch()?;
        self.check_memory(request, &settings, &guidance, observer)?;
        let weight_bytes = self.weight_bytes(&blocks)?;
        let sampler = self.architecture.sampler(&self.components, settings.num_inference_steps, n_img)?;
        let text = self.architecture.text(&self.components, settings.max_sequence_length)?;
        let passes = if guidance.guided { 2 } else { 1 };
        let replicas = self.mesh.config().data;
        let n_tokens = [n_img, text.n_tokens()];
        let work = self.architecture.work(&self.components, n_img, text.n_tokens())?.times(passes * replicas);

        let started = Instant::now();
        let reader = Reader { workers: &self.workers, components: &self.components, mesh: self.mesh };
        reader.stages(self.architecture, blocks, &mut self.held, observer)?;
        let n_runs = runs.warmup + runs.repeat + 1;
        let pictures = Pictures {
            mesh: self.mesh,
            geometry: self.geometry,
            sampler: Arc::from(sampler),
            guidance: guidance.told,
            cfg_scale: guidance.scale,
            skip_layers: None,
            n_patches,
            warmup_steps: self.components.options.pipefusion.warmup_steps,
            halts: (0..n_runs * replicas).map(|_| Halt::default()).collect(),
            seeds: Vec::new(),
            prompts: Vec::new(),
            negative: Vec::new(),
            output: OutputType::Latent,
            settings: settings.clone(),
            apart: self.workers.are_apart(),
        };
        let (dtype, quantization) = (self.components.options.dtype, self.components.options.gemm_quantization);
        let job = Bench { pictures, text, guided: guidance.guided, dtype, quantization, runs, started };
        let Taken { seconds, square, device_bytes } = self.measure(job, observer)?;
        let devices: BTreeSet<usize> = self.workers.ranks().iter().map(|(_, slot)| *slot).collect();
        Ok(Measured {
            settings,
            n_tokens,
            passes,
            pictures: replicas,
            devices: devices.len(),
            work,
            weight_bytes,
            seconds,
            square,
            device_bytes,
        })
    }

    fn measure(&self, job: Bench, observer: &mut dyn Observer) -> Result<Taken, PipelineError> {
        let held = self.held.clone();
        let ranks: Vec<usize> = (0..self.workers.ranks().len()).collect();
        let job = move |worker: &mut Worker, desk: &mut Desk<Taken>| {
            let stage = held.stage(worker.world.slot(), worker.stage);
            job.run(worker, &stage, desk)
        };
        let mut all = None;
        self.workers.run(&ranks, job, observer, &mut |_, taken| {
            all = Some(taken);
            ControlFlow::Continue(())
        })?;
        Ok(all.expect("the first rank hands its measurement over before it is done"))
    }

    /// Bytes of the weights of all stages.
    fn weight_bytes(&self, blocks: &[Range<usize>]) -> Result<u64, PipelineError> {
        blocks.iter().map(|stage| Ok(self.stage_report(stage, blocks.len() == 1)?.resident)).sum()
    }
}

/// What every rank is told.
struct Bench {
    /// Without texts; has a halt for each run and replica.
    pictures: Pictures,
    text: TextSizes,
    guided: bool,
    dtype: FloatDType,
    quantization: Option<Quantization>,
    runs: Runs,
    /// When loading began.
    started: Instant,
}

impl Bench {
    fn run(&self, worker: &mut Worker, stage: &Stage, desk: &mut Desk<Taken>) -> Result<(), PipelineError> {
        let device = worker.device().clone();
        wait(&device)?;
        let mut seconds = Seconds { load: self.started.elapsed().as_secs_f64(), ..Seconds::default() };
        let [text, negative] = [(); 2].map(|()| self.text.random(&device, self.dtype));
        let replicas = self.pictures.mesh.config().data;
        let n_counted = self.runs.warmup + self.runs.repeat;
        for run in 0..=n_counted {
            let halt = &self.pictures.halts[run * replicas + worker.replica];
            if desk.is_cancelled() {
                halt.ask(Reason::Cancelled);
            }
            let seed = worker.replica as u64;
            let request = self.pictures.request(&text, self.guided.then_some(&negative), seed, &device);
            wait(&device)?;
            let mut clock = Clock::new(desk, (run == n_counted).then_some(&device));
            let start = Instant::now();
            self.pictures.denoise(worker, stage, request, halt, &mut clock)?;
            wait(&device)?;
            let whole = start.elapsed().as_secs_f64();
            if run == n_counted {
                (seconds.condition, seconds.steps, seconds.host) = (clock.condition, clock.steps, clock.host);
            } else if run >= self.runs.warmup {
                seconds.denoise.push(whole);
            }
            if run == 0 {
                seconds.first = whole;
            }
        }
        if worker.world.rank() == 0 {
            let side = SQUARE[usize::from(device == Device::flex())];
            let rate = Op::square(side).time(&device, self.dtype, self.quantization);
            let rate = rate.map_err(|error| lost(&device, &error))?;
            let device_bytes = device.memory_pool_usage().map(|usage| usage.bytes_reserved);
            desk.hand_over(Taken { seconds, square: (Op::square(side), rate), device_bytes });
        }
        Ok(())
    }
}

/// Until the device has done what it was given.
fn wait(device: &Device) -> Result<(), PipelineError> {
    device.sync().map_err(|error| lost(device, &error))
}

fn lost(device: &Device, error: &dyn std::error::Error) -> PipelineError {
    PipelineError::Read { what: "what was measured", message: failure(device, &error.to_string()) }
}

/// Sees the steps of a run pass by.
struct Clock<'d> {
    desk: &'d mut Desk<Taken>,
    /// Waited for after each step, if steps are to be told apart.
    device: Option<&'d Device>,
    /// The end of the step before.
    last: Instant,
    /// From there to the last block that the host has given away.
    given: f64,
    condition: f64,
    steps: Vec<f64>,
    host: Vec<f64>,
}

impl<'d> Clock<'d> {
    fn new(desk: &'d mut Desk<Taken>, device: Option<&'d Device>) -> Self {
        Self { desk, device, last: Instant::now(), given: 0.0, condition: 0.0, steps: Vec::new(), host: Vec::new() }
    }
}

impl Observer for Clock<'_> {
    fn begin(&mut self, phase: Phase, what: &str, total: u64) {
        self.desk.begin(phase, what, total);
    }

    fn advance(&mut self, phase: Phase, done: u64) -> ControlFlow<()> {
        if let Some(device) = self.device {
            // a failure comes back with the wait behind the run
            let _ = device.sync();
            let step = self.last.elapsed().as_secs_f64();
            if done == 0 {
                self.condition = step;
            } else {
                self.steps.push(step);
                self.host.push(self.given);
            }
            self.last = Instant::now();
        }
        self.desk.advance(phase, done)
    }

    fn blocks(&mut self, step: usize, done: usize, total: usize) -> ControlFlow<()> {
        self.given = self.last.elapsed().as_secs_f64();
        self.desk.blocks(step, done, total)
    }

    fn end(&mut self, phase: Phase) {
        self.desk.end(phase);
    }

    fn warn(&mut self, message: &str) {
        self.desk.warn(message);
    }
}
