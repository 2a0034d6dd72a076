//! The command line. Flags follow xDiT and diffusers, with dashes or underscores.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use xdit_core::mesh::ParallelConfig;
use xdit_core::stages::PipeFusion;

use crate::device::DeviceArg;

/// Pictures from prompts with diffusion transformers, on one device or many.
#[derive(Debug, Parser)]
#[command(name = "xdit", version, about, propagate_version = true)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Draw pictures.
    Generate(Box<Generate>),
    /// List the supported pipelines.
    Models,
    /// Show what a pipeline folder holds, from the headers of its files alone.
    Inspect(Inspect),
    /// Show what each rank would hold in memory, without reading a weight.
    Plan(Box<Plan>),
    /// Show who does what when in a pipeline of stages (PipeFusion).
    Schedule(Schedule),
}

#[derive(Debug, ClapArgs)]
pub struct Generate {
    /// A diffusers pipeline folder or a hub id such as black-forest-labs/FLUX.1-schnell [default: the built-in model]
    #[arg(long, short)]
    pub model: Option<String>,
    /// Branch, tag or commit of a hub id
    #[arg(long)]
    pub revision: Option<String>,
    /// Variant of the checkpoint files, such as fp16
    #[arg(long)]
    pub variant: Option<String>,
    /// What to draw; several prompts give several pictures
    #[arg(long, short, num_args = 1.., required = true, value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// What not to draw: one for all prompts or one for each; FLUX needs --true-cfg-scale above 1 for it
    #[arg(long, num_args = 1.., value_name = "TEXT")]
    pub negative_prompt: Vec<String>,
    /// Pixels [default: the model's]
    #[arg(long, value_name = "PIXELS")]
    pub height: Option<usize>,
    /// Pixels [default: the model's]
    #[arg(long, value_name = "PIXELS")]
    pub width: Option<usize>,
    /// Denoising steps [default: the model's]
    #[arg(long, visible_alias = "steps", value_name = "N")]
    pub num_inference_steps: Option<usize>,
    /// Classifier-free guidance; for FLUX the guidance that the model is told [default: the model's]
    #[arg(long, value_name = "SCALE")]
    pub guidance_scale: Option<f32>,
    /// For FLUX: classifier-free guidance with the negative prompt [default: the model's]
    #[arg(long, value_name = "SCALE")]
    pub true_cfg_scale: Option<f32>,
    /// How far guidance is brought back to the unguided standard deviation, 0 to 1 [default: 0]
    #[arg(long, value_name = "PART")]
    pub guidance_rescale: Option<f32>,
    /// Blocks for skip-layer guidance; for Stable Diffusion 3.5 medium 7 8 9
    #[arg(long, num_args = 1.., value_name = "BLOCK")]
    pub skip_guidance_layers: Vec<usize>,
    /// Scale of skip-layer guidance
    #[arg(long, default_value_t = 2.8, value_name = "SCALE")]
    pub skip_layer_guidance_scale: f32,
    /// Part of the steps after which it starts
    #[arg(long, default_value_t = 0.01, value_name = "PART")]
    pub skip_layer_guidance_start: f64,
    /// Part of the steps at which it stops
    #[arg(long, default_value_t = 0.2, value_name = "PART")]
    pub skip_layer_guidance_stop: f64,
    /// Draw at exactly the size asked for, also where the model was trained on few sizes (PixArt, HunyuanDiT)
    #[arg(long)]
    pub no_resolution_binning: bool,
    /// Tokens of the T5 encoder [default: the model's]
    #[arg(long, value_name = "N")]
    pub max_sequence_length: Option<usize>,
    /// Seed of the first picture; the next ones count up
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Pictures per prompt
    #[arg(long, short, default_value_t = 1, value_name = "N")]
    pub num_images: usize,
    /// A file, or a folder for several pictures
    #[arg(long, short, default_value = "xdit.png", value_name = "PATH")]
    pub output: PathBuf,
    /// Pictures, or the latents before the decoder as safetensors
    #[arg(long, value_enum, default_value_t = OutputType::Png)]
    pub output_type: OutputType,
    /// cpu, cuda:N or wgpu
    #[arg(long, default_value = "cpu")]
    pub device: DeviceArg,
    /// Precision of weights and activations [default: f32 on cpu and wgpu, bf16 on cuda]
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,
    #[command(flatten)]
    pub parallel: Parallel,
    /// No progress, no file names
    #[arg(long, short)]
    pub quiet: bool,
    /// One JSON record on standard output: files, seconds per phase, peak memory
    #[arg(long)]
    pub json: bool,
}

/// How many ranks share the request. On one device they are threads of this process.
#[derive(Debug, Clone, ClapArgs)]
#[command(next_help_heading = "Parallelism")]
pub struct Parallel {
    /// Ranks that share each picture's tokens by sharing out the heads
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub ulysses_degree: usize,
    /// Ranks that share each picture's tokens by passing keys and values around
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub ring_degree: usize,
    /// Two ranks for each one: one predicts with the prompt, one with the negative prompt
    #[arg(long)]
    pub use_cfg_parallel: bool,
    /// Replicas that draw different pictures
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub data_parallel_degree: usize,
    /// Pipeline stages, each with its share of the blocks (PipeFusion)
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub pipefusion_parallel_degree: usize,
    /// Patches that the stages work on at once [default: as many as stages]
    #[arg(long, value_name = "M")]
    pub num_pipeline_patch: Option<usize>,
    /// Steps at the beginning in which the stages work one after the other on the whole picture
    #[arg(long, default_value_t = 1, value_name = "W")]
    pub warmup_steps: usize,
    /// Blocks of each stage [default: shared out by their cost]
    #[arg(long, num_args = 1.., value_name = "N")]
    pub attn_layer_num_for_pp: Option<Vec<usize>>,
    /// Ranks that share each layer's weights; not built yet
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub tensor_parallel_degree: usize,
}

impl Parallel {
    pub fn config(&self) -> ParallelConfig {
        ParallelConfig {
            data: self.data_parallel_degree,
            cfg: if self.use_cfg_parallel { 2 } else { 1 },
            pipefusion: self.pipefusion_parallel_degree,
            ring: self.ring_degree,
            ulysses: self.ulysses_degree,
            tensor: self.tensor_parallel_degree,
        }
    }

    pub fn pipefusion(&self) -> PipeFusion {
        PipeFusion {
            n_patches: self.num_pipeline_patch,
            warmup_steps: self.warmup_steps,
            split: self.attn_layer_num_for_pp.clone(),
        }
    }
}

#[derive(Debug, ClapArgs)]
pub struct Plan {
    /// A diffusers pipeline folder [default: the built-in model]
    #[arg(long, short)]
    pub model: Option<PathBuf>,
    /// Variant of the checkpoint files, such as fp16
    #[arg(long)]
    pub variant: Option<String>,
    /// In pixels [default: the model's]
    #[arg(long)]
    pub height: Option<usize>,
    /// In pixels [default: the model's]
    #[arg(long)]
    pub width: Option<usize>,
    /// [default: the model's]
    #[arg(long, visible_alias = "steps", value_name = "STEPS")]
    pub num_inference_steps: Option<usize>,
    /// [default: the model's]
    #[arg(long)]
    pub guidance_scale: Option<f32>,
    /// With a negative prompt, for models that take guidance as an input [default: none]
    #[arg(long)]
    pub true_cfg_scale: Option<f32>,
    /// Tokens of the T5 encoder [default: the model's]
    #[arg(long)]
    pub max_sequence_length: Option<usize>,
    /// cpu, cuda:N or wgpu; it need not be there
    #[arg(long, default_value = "cpu")]
    pub device: DeviceArg,
    /// Precision of weights and activations [default: f32 on cpu and wgpu, bf16 on cuda]
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,
    #[command(flatten)]
    pub parallel: Parallel,
    /// One JSON record instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Schedule {
    /// Pipeline stages
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub pipefusion_parallel_degree: usize,
    /// Patches that the stages work on at once [default: as many as stages]
    #[arg(long, value_name = "M")]
    pub num_pipeline_patch: Option<usize>,
    /// Steps
    #[arg(long, visible_alias = "steps", default_value_t = 8, value_name = "STEPS")]
    pub num_inference_steps: usize,
    /// Steps at the beginning in which the stages work one after the other on the whole picture
    #[arg(long, default_value_t = 1, value_name = "W")]
    pub warmup_steps: usize,
    /// Turns that a message takes; a stage takes one turn for a patch
    #[arg(long, default_value_t = 0.0, value_name = "TURNS")]
    pub latency: f64,
    /// Chrome or Perfetto trace to write
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Picture to write
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub struct Inspect {
    /// A diffusers pipeline folder [default: the built-in model]
    pub folder: Option<PathBuf>,
    /// Variant of the checkpoint files, such as fp16
    #[arg(long)]
    pub variant: Option<String>,
    /// One JSON record instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputType {
    Png,
    Latent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    F32,
    Bf16,
    F16,
}

/// `--num_inference_steps` is `--num-inference-steps`: command lines of xDiT work as they are.
pub fn with_dashes(args: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    args.map(|arg| match arg.to_str() {
        Some(text) if text.starts_with("--") => {
            let (flag, value) = text.split_at(text.find('=').unwrap_or(text.len()));
            // a flag has no spaces; a prompt that starts with dashes may
            if flag.contains(' ') { arg } else { format!("{}{value}", flag.replace('_', "-")).into() }
        }
        _ => arg,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn underscores_are_dashes_in_flags_only() {
        let args = ["--true_cfg_scale=2_0", "a_b", "--x_y"].map(OsString::from);
        let got: Vec<_> = with_dashes(args.into_iter()).collect();
        assert_eq!(got, ["--true-cfg-scale=2_0", "a_b", "--x-y"].map(OsString::from));
    }
}
