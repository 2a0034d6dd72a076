//! What a request takes, before anything of it runs: whether the memory suffices, how long a step may take.

use std::borrow::Cow;
use std::time::Duration;

use burn::tensor::Device;
use xdit_core::device::{Memory, memory};
use xdit_core::dit::DitSpec;
use xdit_core::observer::Observer;

use crate::pipeline::error::{PipelineError, gib};
use crate::pipeline::generate::{Applied, Pipeline};
use crate::pipeline::request::{OutputType, Request, Settings};

/// Seconds of a step that are worth a warning.
const LONG_STEP: u64 = 300;
/// f32 operations a second that a core is taken to do, for want of a measurement. Today's cores do two to five times
/// as many in these kernels.
const FLOPS_OF_A_CORE: f64 = 20e9;

/// Operations of one pass through all blocks: the dense layers' `24 d^2` and attention's `4 d` for each other token, of
/// each token.
fn flops_of_a_pass(spec: &DitSpec, n_tokens: usize) -> f64 {
    let (n, d) = (n_tokens as f64, spec.d_model() as f64);
    spec.n_blocks as f64 * n * d * (24.0 * d + 4.0 * n)
}

impl Pipeline {
    /// Refuses what the CPU's memory is too small for, and says how long a step takes if that is long. Refuses weights that a
    /// GPU has no room for, and warns of a picture that may not fit.
    pub(super) fn check_memory(
        &self,
        request: &Request,
        settings: &Settings,
        guidance: &Applied,
        observer: &mut dyn Observer,
    ) -> Result<(), PipelineError> {
        self.check_free(request, settings, guidance, free_memory(), observer)?;
        // a later request finds its weights there, and memory of the first one that the pool keeps
        if self.holds_weights() {
            return Ok(());
        }
        let memory = |(device, ranks): &(Device, Vec<usize>)| Some((memory(device)?, ranks.clone()));
        let gpus: Vec<_> = self.on_gpus.iter().filter_map(memory).collect();
        self.check_gpus(request, settings, guidance, &gpus, observer)
    }

    fn check_gpus(
        &self,
        request: &Request,
        settings: &Settings,
        guidance: &Applied,
        gpus: &[(Memory, Vec<usize>)],
        observer: &mut dyn Observer,
    ) -> Result<(), PipelineError> {
        if gpus.is_empty() {
            return Ok(());
        }
        let plan = self.plan_steps(self.planned(request).as_ref(), settings, guidance, settings.num_inference_steps)?;
        for (memory, ranks) in gpus {
            let Memory { device, free, .. } = memory;
            let encoders = plan.encoders.iter().map(|encoder| encoder.weights).filter(|_| ranks.contains(&0));
            let weights = plan.weights(ranks).max(encoders.max().unwrap_or(0));
            if weights > *free {
                return Err(PipelineError::DeviceMemory { device: device.clone(), weights, free: *free });
            }
            // activations are those of the CPU's kernels: near enough for a warning
            let needed = plan.phases(ranks).peak();
            if needed > *free {
                let [height, width] = settings.drawn;
                observer.warn(&format!(
                    "a picture of {height}x{width} (height x width) takes about {} GiB of memory on {device}, where {} are free",
                    gib(needed),
                    gib(*free)
                ));
            }
        }
        Ok(())
    }

    /// The request whose memory is planned: there is no decoder where weights are random.
    fn planned<'a>(&self, request: &'a Request) -> Cow<'a, Request> {
        match self.components.drawn {
            true => Cow::Owned(Request { output: OutputType::Latent, ..request.clone() }),
            false => Cow::Borrowed(request),
        }
    }

    fn check_free(
        &self,
        request: &Request,
        settings: &Settings,
        guidance: &Applied,
        free: Option<u64>,
        observer: &mut dyn Observer,
    ) -> Result<(), PipelineError> {
        if self.on_cpu.is_empty() {
            return Ok(());
        }
        let plan = self.plan_steps(self.planned(request).as_ref(), settings, guidance, settings.num_inference_steps)?;
        let planned = plan.phases(&self.on_cpu).peak();
        let program = plan.program(&self.on_cpu);
        // a later request finds its weights in memory, and the program
        let needed = match self.holds_weights() {
            true => planned - plan.weights(&self.on_cpu),
            false => planned + program,
        };
        let config = self.mesh.config();
        // ranks that share a picture share its tokens
        let at_once = (self.on_cpu.len() / (config.ulysses * config.ring * config.pipefusion)).max(1);
        let n_tokens = plan.grid.n_tokens() + if self.spec.joint { plan.n_txt } else { 0 };
        let n_cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let time = time_on_cpu(flops_of_a_pass(&self.spec, n_tokens) * at_once as f64, n_cores);
        if let Some(free) = free.filter(|free| needed > *free) {
            let ([height, width], time) = (settings.drawn, said(time));
            return Err(PipelineError::Memory { height, width, n_tokens, needed, program, free, time });
        }
        if time.as_secs() >= LONG_STEP {
            observer.warn(&format!(
                "a step over {n_tokens} tokens may take {} on {n_cores} cores, if a core does 20 billion operations a second",
                said(time)
            ));
        }
        Ok(())
    }
}

/// The time of so many operations on the CPU, at a rate that is assumed.
fn time_on_cpu(flops: f64, n_cores: usize) -> Duration {
    let seconds = flops / (FLOPS_OF_A_CORE * n_cores.max(1) as f64);
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// Memory of this machine, or of its container, that is free; `None` where the system does not say.
pub fn free_memory() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let machine = read("/proc/meminfo").and_then(|text| available(&text));
    let limit = number("/sys/fs/cgroup/memory.max");
    let container = limit.zip(number("/sys/fs/cgroup/memory.current")).map(|(max, used)| max.saturating_sub(used));
    machine.into_iter().chain(container).min()
}

/// The most memory that this process has had so far, where the system tells it.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    kib(&status, "VmHWM:")
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    kib(meminfo, "MemAvailable:")
}

/// The bytes of a line of `/proc`.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A duration as people say it.
fn said(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} seconds"),
        seconds @ 120..7200 => format!("{} minutes", seconds / 60),
        seconds @ 7200..172_800 => format!("{} hours", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::FloatDType;

    use super::*;
    use crate::pipeline::options::{ModelSource, Options};

    #[derive(Default)]
    struct Warnings(Vec<String>);

    impl Observer for Warnings {
        fn warn(&mut self, message: &str) {
            self.0.push(message.into());
        }
    }

    const FLUX: DitSpec =
        DitSpec { n_blocks: 57, n_heads: 24, head_dim: 128, channels: 64, joint: true, txt_each_step: false };

    #[test]
    fn a_flux_step_at_1024_is_about_what_is_published() {
        // 4096 image tokens and 512 of text: about 60 TFLOP
        let flops = flops_of_a_pass(&FLUX, 4096 + 512);
        assert!((5e13..9e13).contains(&flops), "{flops}");
    }

    #[test]
    fn memory_and_time_are_read_and_said() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:    1024 kB\n"), Some(1 << 20));
        assert_eq!(available("MemAvailable: x kB"), None);
        assert_eq!(time_on_cpu(f64::INFINITY, 1), Duration::MAX);
        assert_eq!(said(time_on_cpu(20e9 * 60.0 * 300.0, 2)), "2 hours");
        assert_eq!(said(Duration::from_secs(119)), "119 seconds");
    }

    #[test]
    fn what_is_refused_before_a_run_is_what_a_plan_says() {
        let options = Options::new(FloatDType::F32);
        let open = Pipeline::open(&ModelSource::Builtin, options, xdit_comm::local::world, &mut ());
        let mut pipeline = open.expect("the built-in model");
        let request = Request { num_inference_steps: Some(1), ..Request::new("a large red circle") };
        let settings = pipeline.settings(&request).expect("settings");
        let guidance = pipeline.guidance(&request, &settings);
        let plan = pipeline.plan(&request).expect("a plan");
        let (planned, program) = (plan.phases(&[0]).peak(), plan.program(&[0]));
        let check = |pipeline: &Pipeline, free| {
            pipeline.check_free(&request, &settings, &guidance, Some(free), &mut ()).map_err(|error| error.to_string())
        };

        pipeline.launch().expect("a rank");
        assert_eq!(check(&pipeline, planned + program), Ok(()));
        let said = check(&pipeline, planned + program - 1).expect_err("a byte is missing");
        let first = "a picture of 256x256 (height x width), 304 tokens, takes about 0.2 GiB of memory, 0.1 of them the \
                     program's own, where 0.2 are free; a step would take about ";
        assert!(said.starts_with(first), "{said}");
        let gpu = |free| vec![(Memory { device: "cuda:3".into(), free, total: u64::MAX }, vec![0])];
        let warned = |pipeline: &Pipeline, free| {
            let mut warnings = Warnings::default();
            let checked = pipeline.check_gpus(&request, &settings, &guidance, &gpu(free), &mut warnings);
            (checked.map_err(|error| error.to_string()), warnings.0)
        };
        assert_eq!(warned(&pipeline, planned), (Ok(()), vec![]));
        let (checked, warnings) = warned(&pipeline, planned - 1);
        assert_eq!(checked, Ok(()));
        let warning =
            "a picture of 256x256 (height x width) takes about 0.1 GiB of memory on cuda:3, where 0.1 are free";
        assert_eq!(warnings, [warning]);
        let weights = plan.weights(&[0]);
        assert_eq!(warned(&pipeline, weights).0, Ok(()));
        let refused = warned(&pipeline, weights - 1).0.expect_err("a byte is missing");
        let (weights, free) = (gib(weights), gib(weights - 1));
        let first = format!("the weights take {weights} GiB of memory on cuda:3, where {free} are free; bf16");
        assert!(refused.starts_with(&first), "{refused}");
        // then the weights are in memory
        pipeline.generate(&request, &mut ()).expect("a picture");
        let more = planned - plan.weights(&[0]);
        assert_eq!(check(&pipeline, more), Ok(()));
        assert!(check(&pipeline, more - 1).is_err());
    }
}
