//! The flags of `xdit generate`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use xdit_core::engine::SkipLayers;

use crate::args::shared::{Compute, Model, Parallel, Settings};
use crate::args::values::{Seed, number, whole};

#[derive(Debug, ClapArgs)]
pub struct Generate {
    #[command(flatten)]
    pub model: Model,
    /// What to draw, in quotes; several prompts give several pictures
    #[arg(long, short, num_args = 1.., required_unless_present = "prompt_file", value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// A file of prompts, one a line, or - for standard input; blank lines are passed over
    #[arg(long, conflicts_with = "prompt", value_name = "FILE")]
    pub prompt_file: Option<PathBuf>,
    /// What not to draw: one for all prompts or one for each; FLUX needs --true-cfg-scale above 1 for it
    #[arg(long, num_args = 1.., value_name = "TEXT")]
    pub negative_prompt: Vec<String>,
    #[command(flatten)]
    pub settings: Settings,
    /// How far guidance is brought back to the unguided standard deviation, 0 to 1 [default: 0]
    #[arg(long, value_name = "PART")]
    pub guidance_rescale: Option<f32>,
    /// Blocks for skip-layer guidance; for Stable Diffusion 3.5 medium 7 8 9
    #[arg(long, num_args = 1.., value_name = "BLOCK", value_parser = whole(0, 1023))]
    pub skip_guidance_layers: Vec<usize>,
    /// Scale of skip-layer guidance [default: 2.8]
    #[arg(long, value_name = "SCALE", value_parser = number::<f32>(0, 1000))]
    pub skip_layer_guidance_scale: Option<f32>,
    /// Part of the steps after which it starts [default: 0.01]
    #[arg(long, value_name = "PART", value_parser = number::<f64>(0, 1))]
    pub skip_layer_guidance_start: Option<f64>,
    /// Part of the steps at which it stops [default: 0.2]
    #[arg(long, value_name = "PART", value_parser = number::<f64>(0, 1))]
    pub skip_layer_guidance_stop: Option<f64>,
    /// Draw at exactly the size asked for, also where the model was trained on few sizes (PixArt, HunyuanDiT)
    #[arg(long)]
    pub no_resolution_binning: bool,
    /// Seed of the first picture, the next ones count up; random or -1 draws one and prints it
    #[arg(long, default_value = "42")]
    pub seed: Seed,
    /// Pictures per prompt
    #[arg(long, short, default_value_t = 1, value_name = "N", value_parser = whole(1, 100_000))]
    pub num_images: usize,
    /// A .png, .jpg or .webp file (several pictures are numbered), a folder, or - for standard output [default: xdit.png]
    #[arg(long, short, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// Pictures, or the latents before the decoder as safetensors
    #[arg(long, value_enum, default_value_t = OutputType::Picture)]
    pub output_type: OutputType,
    /// Quality of .jpg, 1 to 100 [default: 95]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub quality: Option<u8>,
    #[command(flatten)]
    pub compute: Compute,
    /// No progress, no file names
    #[arg(long, short)]
    pub quiet: bool,
    /// One JSON record on standard output: files, seconds per phase, peak memory; or the error
    #[arg(long)]
    pub json: bool,
    // last, since its heading stays
    #[command(flatten)]
    pub parallel: Parallel,
    /// What to say of prompts that look like words of one
    #[arg(skip)]
    pub unquoted: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputType {
    #[value(aliases = ["png", "pil"])]
    Picture,
    Latent,
}

impl Generate {
    /// Where there is any; what is not given is diffusers' default.
    pub fn skip_layers(&self) -> Option<SkipLayers> {
        (!self.skip_guidance_layers.is_empty()).then(|| SkipLayers {
            blocks: self.skip_guidance_layers.clone(),
            scale: self.skip_layer_guidance_scale.unwrap_or(2.8),
            start: self.skip_layer_guidance_start.unwrap_or(0.01),
            stop: self.skip_layer_guidance_stop.unwrap_or(0.2),
        })
    }

    /// Flags that change nothing in a request of this many pictures.
    pub fn without_effect(&self, n_pictures: usize) -> Vec<String> {
        let given = [
            ("--skip-layer-guidance-scale", self.skip_layer_guidance_scale.is_some()),
            ("--skip-layer-guidance-start", self.skip_layer_guidance_start.is_some()),
            ("--skip-layer-guidance-stop", self.skip_layer_guidance_stop.is_some()),
        ];
        let given: Vec<_> = given.into_iter().filter_map(|(flag, given)| given.then_some(flag)).collect();
        let skip = (self.skip_guidance_layers.is_empty() && !given.is_empty())
            .then(|| format!("without --skip-guidance-layers no effect: {}", given.join(", ")));
        let replicas = self.parallel.data_parallel_degree;
        let idle = (replicas > n_pictures).then(|| {
            format!("--data-parallel-degree {replicas} is more than the {n_pictures} pictures; the rest is idle")
        });
        [self.model.without_effect(), self.parallel.without_effect(), skip, idle].into_iter().flatten().collect()
    }
}
