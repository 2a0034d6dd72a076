//! `xdit`: pictures from prompts with diffusion transformers, on one device or many.
//!
//! `main` parses the arguments and hands them to one file per command; the work is done by `xdit_models::pipeline`.
#![forbid(unsafe_code)]

mod args;
mod device;
mod generate;
mod inspect;
mod launch;
mod models;
mod output;
mod plan;
mod progress;
mod schedule;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command};

/// Keeps freed memory for the next tensor: without it the system zeroes every large tensor's pages anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = Args::parse_from(args::with_dashes(std::env::args_os()));
    let result = match &args.command {
        Command::Generate(args) => generate::run(args),
        Command::Models => models::run(),
        Command::Inspect(args) => inspect::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Schedule(args) => schedule::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // one line, whatever the causes
            eprintln!("error: {}", format!("{error:#}").replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}
