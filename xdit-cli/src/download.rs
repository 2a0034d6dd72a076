//! `xdit download`, and hub ids for the commands that need no weights.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;
use xdit_core::observer::Observer;
use xdit_models::hub::{self, Headers, Wanted};
use xdit_models::pipeline::{ModelSource, registry};

use crate::args::Download;
use crate::console::{Stdout, complain};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::progress::Progress;

pub fn run(args: &Download, out: &mut Stdout) -> Result<(), Failure> {
    let interrupt = Interrupt::listen().context("cannot listen for Ctrl-C")?;
    let mut progress = Progress::new(args.quiet, args.json, interrupt.clone());
    let (revision, variant) = (args.revision.as_deref(), args.variant.as_deref());
    let wanted = Wanted { id: &args.id, revision, variant, classes: &registry::class_names() };
    match hub::fetch_observed(wanted, &mut progress) {
        Ok(folder) if args.json => out.line(json!({ "folder": folder, "warnings": progress.warnings() }).to_string()),
        Ok(folder) => out.line(folder.display().to_string()),
        Err(_) if interrupt.raised() => {
            return Err(Failure::interrupted("what has come is kept, the same command goes on", Vec::new()));
        }
        Err(error) => return Err(anyhow::Error::from(error).into()),
    }
    Ok(())
}

/// `source` where only headers are looked at: a hub id becomes a folder of its configurations and headers, which lasts
/// as long as what is returned beside it.
pub fn headers_of(source: ModelSource, variant: Option<&str>) -> Result<(ModelSource, Option<Headers>)> {
    let ModelSource::Hub { id, revision } = &source else { return Ok((source, None)) };
    let wanted = Wanted { revision: revision.as_deref(), variant, ..Wanted::new(id) };
    let headers = hub::fetch_headers(wanted, &mut Warnings)?;
    Ok((ModelSource::Folder(PathBuf::from(headers.path())), Some(headers)))
}

/// Tells of warnings alone.
pub struct Warnings;

impl Observer for Warnings {
    fn warn(&mut self, message: &str) {
        complain(&format!("warning: {message}"));
    }
}
