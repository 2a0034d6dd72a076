//! `xdit`: pictures from prompts with diffusion transformers, on one device or many.
//!
//! `main` parses the arguments and hands them to one file per command; the work is done by `xdit_models::pipeline`.
#![forbid(unsafe_code)]
// they panic where the stream is closed or full; `console` does not
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod bench;
mod console;
mod cores;
mod device;
mod devices;
mod download;
mod failure;
mod generate;
mod inspect;
mod interrupt;
mod launch;
mod models;
mod output;
mod plan;
mod processes;
mod progress;
mod prompts;
mod schedule;

use std::ffi::OsString;
use std::process::ExitCode;

use crate::args::{Args, Command};
use crate::console::Stdout;
use crate::failure::Failure;

/// Keeps freed memory for the next tensor: without it the system zeroes every large tensor's pages anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let raw: Vec<OsString> = args::with_dashes(std::env::args_os()).collect();
    let mut out = Stdout::default();
    let args = match Args::read(&raw) {
        Ok(args) => args,
        Err(error) => return failure::usage(&error, &raw, &mut out),
    };
    match run(&args, &mut out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.tell(&raw, &mut out),
    }
}

fn run(args: &Args, out: &mut Stdout) -> Result<(), Failure> {
    match &args.command {
        Command::Generate(args) => generate::run(args, out)?,
        Command::Models(args) => models::run(args, out),
        Command::Devices(args) => devices::run(args, out)?,
        Command::Download(args) => download::run(args, out)?,
        Command::Inspect(args) => inspect::run(args, out)?,
        Command::Plan(args) => plan::run(args, out)?,
        Command::Schedule(args) => schedule::run(args, out)?,
        Command::Bench(args) => bench::run(args, out)?,
    }
    Ok(out.finish()?)
}
