//! The command line. Flags follow xDiT and diffusers, with dashes or underscores.

mod bench;
mod generate;
mod shared;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args as ClapArgs, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use self::bench::Bench;
pub use self::generate::{Generate, OutputType};
pub use self::shared::{Compute, Dtype, Model, Parallel, Settings, Stages};
pub use self::values::Seed;
use crate::prompts;

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
    Models(Models),
    /// List the devices that this program can use, and the libraries that it found for them.
    Devices(Devices),
    /// Fetch what a pipeline on the hub needs into the cache, and print its folder.
    Download(Download),
    /// Show what a pipeline folder holds, from the headers of its files alone.
    Inspect(Inspect),
    /// Show what each rank would hold in memory, without reading a weight.
    Plan(Box<Plan>),
    /// Show who does what when in a pipeline of stages (PipeFusion).
    Schedule(Schedule),
    /// Measure the denoising: seconds, operations a second, memory.
    Bench(Box<Bench>),
}

#[derive(Debug, ClapArgs)]
pub struct Models {
    /// One JSON record instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Devices {
    /// One JSON record instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Download {
    /// A hub id such as black-forest-labs/FLUX.1-schnell
    pub id: String,
    /// Branch, tag or commit
    #[arg(long)]
    pub revision: Option<String>,
    /// Variant of the checkpoint files, such as fp16
    #[arg(long)]
    pub variant: Option<String>,
    /// No progress
    #[arg(long, short)]
    pub quiet: bool,
    /// One JSON record in place of the folder
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Inspect {
    /// A diffusers pipeline folder or a hub id [default: the built-in model]
    pub model: Option<String>,
    /// Branch, tag or commit of a hub id
    #[arg(long)]
    pub revision: Option<String>,
    /// Variant of the checkpoint files, such as fp16
    #[arg(long)]
    pub variant: Option<String>,
    /// One JSON record instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Plan {
    #[command(flatten)]
    pub model: Model,
    #[command(flatten)]
    pub settings: Settings,
    #[command(flatten)]
    pub compute: Compute,
    /// One JSON record instead of a table
    #[arg(long)]
    pub json: bool,
    // last, since its heading stays
    #[command(flatten)]
    pub parallel: Parallel,
}

#[derive(Debug, ClapArgs)]
pub struct Schedule {
    #[command(flatten)]
    pub stages: Stages,
    /// Steps
    #[arg(long, visible_alias = "steps", default_value_t = 8, value_name = "N", value_parser = values::whole(1, 1_000_000))]
    pub num_inference_steps: usize,
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

impl Args {
    /// Reads a command line, whose flags may have underscores.
    ///
    /// # Errors
    /// What clap says of it; also help and the version, where they are asked for.
    pub fn read(raw: &[OsString]) -> Result<Self, clap::Error> {
        let mut matches = command().try_get_matches_from(raw)?;
        let unquoted = matches.subcommand_matches("generate").map(|generate| {
            let flags = ["prompt", "negative_prompt"];
            flags.into_iter().filter_map(|flag| prompts::unquoted(flag, generate.get_occurrences(flag)?)).collect()
        });
        let mut args = Self::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command()))?;
        if let Command::Generate(generate) = &mut args.command {
            generate.unquoted = unquoted.unwrap_or_default();
        }
        Ok(args)
    }
}

/// A negative number is a value, so that it is answered with the range and not taken for a flag.
fn command() -> clap::Command {
    let number = |arg: clap::Arg| match arg.get_action().takes_values() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    };
    Args::command().mut_subcommands(|command| command.mut_args(number))
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

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn underscores_are_dashes_in_flags_only() {
        let args = ["--true_cfg_scale=2_0", "a_b", "--x_y"].map(OsString::from);
        let got: Vec<_> = with_dashes(args.into_iter()).collect();
        assert_eq!(got, ["--true-cfg-scale=2_0", "a_b", "--x-y"].map(OsString::from));
    }
}
