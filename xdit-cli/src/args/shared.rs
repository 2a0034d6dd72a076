//! Flags that several commands have, declared once.

use anyhow::{Context, Result, bail};
use burn::tensor::{DType, Device, FloatDType};
use clap::{Args as ClapArgs, ValueEnum};
use xdit_comm::local::World;
use xdit_core::checkpoint::Quantization;
use xdit_core::mesh::ParallelConfig;
use xdit_core::ops::{QuantizationError, check_quantization};
use xdit_core::stages::PipeFusion;
use xdit_models::pipeline::ModelSource;

use crate::args::values::whole;
use crate::device::Devices;

/// Which model.
#[derive(Debug, Clone, ClapArgs)]
pub struct Model {
    /// A diffusers pipeline folder or a hub id such as black-forest-labs/FLUX.1-schnell [default: the built-in model]
    #[arg(long, short)]
    pub model: Option<String>,
    /// Branch, tag or commit of a hub id
    #[arg(long)]
    pub revision: Option<String>,
    /// Variant of the checkpoint files, such as fp16
    #[arg(long)]
    pub variant: Option<String>,
}

impl Model {
    /// As messages and pictures name it.
    pub fn name(&self) -> &str {
        self.model.as_deref().unwrap_or("built-in")
    }

    pub fn source(&self) -> ModelSource {
        match self.model.as_deref().map(ModelSource::parse) {
            None => ModelSource::Builtin,
            Some(ModelSource::Hub { id, .. }) => ModelSource::Hub { id, revision: self.revision.clone() },
            Some(folder) => folder,
        }
    }

    /// Flags that change nothing.
    pub fn without_effect(&self) -> Option<String> {
        let of_no_id = self.revision.is_some() && !matches!(self.source(), ModelSource::Hub { .. });
        of_no_id.then(|| format!("--revision has no effect: {} is no hub id", self.name()))
    }
}

/// What a picture costs depends on these.
#[derive(Debug, Clone, ClapArgs)]
pub struct Settings {
    /// Pixels [default: the model's]
    #[arg(long, value_name = "PIXELS", value_parser = whole(1, 16_384))]
    pub height: Option<usize>,
    /// Pixels [default: the model's]
    #[arg(long, value_name = "PIXELS", value_parser = whole(1, 16_384))]
    pub width: Option<usize>,
    /// Denoising steps [default: the model's]
    #[arg(long, visible_alias = "steps", value_name = "N", value_parser = whole(1, 1000))]
    pub num_inference_steps: Option<usize>,
    /// Classifier-free guidance; for FLUX the guidance that the model is told [default: the model's]
    #[arg(long, value_name = "SCALE")]
    pub guidance_scale: Option<f32>,
    /// For FLUX: classifier-free guidance with the negative prompt [default: the model's]
    #[arg(long, value_name = "SCALE")]
    pub true_cfg_scale: Option<f32>,
    /// Tokens of the T5 encoder [default: the model's]
    #[arg(long, value_name = "N", value_parser = whole(1, 512))]
    pub max_sequence_length: Option<usize>,
}

/// On what, and how precisely.
#[derive(Debug, Clone, ClapArgs)]
pub struct Compute {
    /// cpu, cuda (a GPU for each rank, as far as there are so many), cuda:N or wgpu; one for all ranks, or one for each, as in cuda:0,cuda:1
    #[arg(long, visible_alias = "devices", default_value = "cpu")]
    pub device: Devices,
    /// Precision of weights and activations [default: f32 on cpu and wgpu, bf16 on cuda]
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,
    /// Keep and multiply the weights of the transformer's blocks in fewer bits: faster, and half their memory; on Hopper GPUs
    #[arg(long, value_enum)]
    pub gemm_quantization: Option<GemmQuantization>,
}

impl Compute {
    pub fn dtype(&self) -> FloatDType {
        self.device.dtype(self.dtype)
    }

    pub fn quantization(&self) -> Option<Quantization> {
        self.gemm_quantization.map(|GemmQuantization::Fp8| Quantization::Fp8)
    }

    /// Whether there is one for all ranks or one for each, of a kind that can do what is asked; none need be there.
    pub fn check(&self, n_ranks: usize) -> Result<()> {
        self.device.check(n_ranks)?;
        match self.device.names().find(|name| self.quantization().is_some() && !name.starts_with("cuda")) {
            Some(name) => Err(QuantizationError::Device).with_context(|| on(&name)),
            None => Ok(()),
        }
    }

    /// Ranks on these devices.
    ///
    /// On several GPUs ranks do not share one: devices that wait for each other while one of them loads a kernel, for which CUDA
    /// has it finish all its ranks' work, have been seen to wait for ever.
    pub fn world(&self, n_ranks: usize) -> Result<World> {
        let gpus = self.device.ranks(n_ranks).into_iter().filter(|(name, _)| name.starts_with("cuda"));
        let n_of_each: Vec<usize> = gpus.map(|(_, ranks)| ranks.len()).collect();
        if n_of_each.len() > 1 && n_of_each.iter().any(|n| *n > 1) {
            bail!(
                "{n_ranks} ranks on {} GPUs: each needs a GPU of its own, or all share one, as with --device cuda:0",
                n_of_each.len()
            );
        }
        let devices = self.open_all(n_ranks)?;
        Ok(if self.device.are_apart() { World::apart(devices) } else { World::new(devices) })
    }

    /// Each rank's device, if they are there and can do what is asked.
    pub fn open_all(&self, n_ranks: usize) -> Result<Vec<Device>> {
        self.check(n_ranks)?;
        let devices = self.device.open_all(n_ranks)?;
        for (device, name) in devices.iter().zip(self.device.names().cycle()) {
            if !device.supports_dtype(self.dtype()) {
                bail!("{name} does not compute in {}; f32 works on every device", DType::from(self.dtype()).name());
            }
            if let Some(kind) = self.quantization() {
                check_quantization(device, self.dtype().into(), kind).with_context(|| on(&name))?;
            }
        }
        Ok(devices)
    }
}

/// Where what is asked cannot be had.
fn on(device: &str) -> String {
    format!("--gemm-quantization fp8 on {device}")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GemmQuantization {
    /// e4m3, a scale for each token and for each output channel
    Fp8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    F32,
    Bf16,
    F16,
}

/// A pipeline of stages (PipeFusion). What is not given depends on the command.
#[derive(Debug, Clone, ClapArgs)]
pub struct Stages {
    /// Pipeline stages, each with its share of the blocks (PipeFusion) [default: 1, of xdit schedule 4]
    #[arg(long, value_name = "N", value_parser = whole(1, 65_536))]
    pub pipefusion_parallel_degree: Option<usize>,
    /// Patches that the stages work on at once [default: as many as stages]
    #[arg(long, value_name = "M", value_parser = whole(1, 1024))]
    pub num_pipeline_patch: Option<usize>,
    /// Steps at the beginning in which the stages work one after the other on the whole picture [default: 1]
    #[arg(long, value_name = "W", value_parser = whole(0, 1000))]
    pub warmup_steps: Option<usize>,
}

impl Stages {
    pub fn warmup_steps(&self) -> usize {
        self.warmup_steps.unwrap_or(PipeFusion::default().warmup_steps)
    }
}

/// How many ranks share the request. On one device they are threads of this process.
#[derive(Debug, Clone, ClapArgs)]
#[command(next_help_heading = "Parallelism")]
pub struct Parallel {
    /// Ranks that share each picture's tokens by sharing out the heads
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = whole(1, 65_536))]
    pub ulysses_degree: usize,
    /// Ranks that share each picture's tokens by passing keys and values around
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = whole(1, 65_536))]
    pub ring_degree: usize,
    /// Two ranks for each one: one predicts with the prompt, one with the negative prompt
    #[arg(long)]
    pub use_cfg_parallel: bool,
    /// Replicas that draw different pictures
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = whole(1, 65_536))]
    pub data_parallel_degree: usize,
    #[command(flatten)]
    pub stages: Stages,
    /// Blocks of each stage [default: shared out by their cost]
    #[arg(long, num_args = 1.., value_name = "N", value_parser = whole(1, 1024))]
    pub attn_layer_num_for_pp: Option<Vec<usize>>,
    /// Ranks that share each layer's weights; not built yet
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = whole(1, 65_536))]
    pub tensor_parallel_degree: usize,
}

impl Parallel {
    pub fn config(&self) -> ParallelConfig {
        ParallelConfig {
            data: self.data_parallel_degree,
            cfg: if self.use_cfg_parallel { 2 } else { 1 },
            pipefusion: self.stages.pipefusion_parallel_degree.unwrap_or(1),
            ring: self.ring_degree,
            ulysses: self.ulysses_degree,
            tensor: self.tensor_parallel_degree,
        }
    }

    pub fn pipefusion(&self) -> PipeFusion {
        PipeFusion {
            n_patches: self.stages.num_pipeline_patch,
            warmup_steps: self.stages.warmup_steps(),
            split: self.attn_layer_num_for_pp.clone(),
        }
    }

    /// Flags that change nothing.
    pub fn without_effect(&self) -> Option<String> {
        let given = [
            ("--num-pipeline-patch", self.stages.num_pipeline_patch.is_some()),
            ("--warmup-steps", self.stages.warmup_steps.is_some()),
            ("--attn-layer-num-for-pp", self.attn_layer_num_for_pp.is_some()),
        ];
        let given: Vec<_> = given.into_iter().filter_map(|(flag, given)| given.then_some(flag)).collect();
        (self.config().pipefusion == 1 && !given.is_empty())
            .then(|| format!("without pipeline stages (--pipefusion-parallel-degree) no effect: {}", given.join(", ")))
    }
}
