//! How the program says that it failed.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use xdit_comm::launcher::Launched;
use xdit_core::comm::{Cause, CommError};
use xdit_core::engine::EngineError;
use xdit_models::pipeline::PipelineError;

use crate::console::{Stdout, complain};
use crate::interrupt;

/// Longest argument with spaces, such as a prompt, that a message repeats whole.
const LONG: usize = 80;

/// How long a process that does not speak leaves the word to the one that does: launchers end all as soon as one has ended.
const PAUSE: Duration = Duration::from_millis(500);

/// Why there is less than was asked for.
pub struct Failure {
    /// On one line, without "error".
    message: String,
    code: u8,
    /// Which rank's failure this tells of, if another's, and whether that one is dead.
    of: Option<(usize, bool)>,
    /// What was written before, as in the record of `--json`.
    files: Vec<Value>,
    /// Whether torchrun has it.
    recorded: bool,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { message: message(&error), code: 1, of: rank(&error), files: Vec::new(), recorded: false }
    }
}

impl Failure {
    /// `files` were written, and something went wrong.
    pub fn after(error: &anyhow::Error, written: &str, files: Vec<Value>) -> Self {
        let message = match files.is_empty() {
            true => message(error),
            false => format!("{}; {written}", message(error)),
        };
        Self { message, code: 1, of: rank(error), files, recorded: false }
    }

    /// `files` were written, and the user had enough.
    pub fn interrupted(written: &str, files: Vec<Value>) -> Self {
        Self {
            message: format!("interrupted: {written}"),
            code: interrupt::EXIT_CODE,
            of: None,
            files,
            recorded: false,
        }
    }

    /// On one line.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Writes the file that torchrun asks each process for, once.
    pub fn record(&mut self, raw: &[OsString]) {
        if !std::mem::replace(&mut self.recorded, true) {
            write_error_file(&shorten(self.message.clone(), raw).replace('\n', " "), self.of.is_some());
        }
    }

    /// One line on standard error; with `--json` also a record for programs. Of many processes only the first says so, or
    /// the second of a dead first.
    pub fn tell(mut self, raw: &[OsString], out: &mut Stdout) -> ExitCode {
        self.record(raw);
        let message = shorten(self.message, raw).replace('\n', " ");
        if !speaks(self.of) {
            thread::sleep(PAUSE);
            return ExitCode::from(self.code);
        }
        if wants_json(raw) {
            let mut record = json!({ "error": message });
            if !self.files.is_empty() {
                record["files"] = self.files.into();
            }
            out.line(record.to_string());
        }
        let prefix = if self.code == interrupt::EXIT_CODE { "" } else { "error: " };
        complain(&format!("{prefix}{message}"));
        ExitCode::from(self.code)
    }
}

/// What clap has to say: help, the version, or what is wrong with the command line.
pub fn usage(error: &clap::Error, raw: &[OsString], out: &mut Stdout) -> ExitCode {
    let text = error.render().to_string();
    if error.use_stderr() {
        if !speaks(None) {
            thread::sleep(PAUSE);
            return ExitCode::from(2);
        }
        if wants_json(raw) {
            // the first paragraph; how it is used is for people
            let what = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
            let what: Vec<_> = what.split_whitespace().collect();
            out.line(json!({ "error": shorten(what.join(" "), raw) }).to_string());
        }
        match shorten(text.clone(), raw) {
            // in colours
            same if same == text && io::stderr().is_terminal() => drop(error.print()),
            short => complain(short.trim_end()),
        }
        return ExitCode::from(2);
    }
    match error.print().and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            complain(&format!("error: cannot write to standard output: {error}"));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Of which rank's failure an error tells, and whether that one is dead.
fn rank(error: &anyhow::Error) -> Option<(usize, bool)> {
    match error.downcast_ref()? {
        PipelineError::Engine(EngineError::Comm(CommError::PeerFailed { rank, peer, cause, .. })) if rank != peer => {
            Some((*peer, matches!(cause, Cause::Told { dead: true, .. })))
        }
        _ => None,
    }
}

/// Whether this process is the one that prints a failure.
fn speaks(of: Option<(usize, bool)>) -> bool {
    match Launched::from_env() {
        Ok(Some(Launched { rank, .. })) => rank == 0 || (rank == 1 && of == Some((0, true))),
        _ => true,
    }
}

/// torchrun shows the failure that has the earliest date, in seconds: what another rank's failure led to comes after it.
fn write_error_file(message: &str, is_of_another: bool) {
    let Some(path) = std::env::var_os("TORCHELASTIC_ERROR_FILE") else { return };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let date = (now + u64::from(is_of_another)).to_string();
    let record = json!({ "message": { "message": message, "extraInfo": { "timestamp": date } } });
    // standard error has it as well
    let _ = fs::write(path, record.to_string());
}

fn wants_json(raw: &[OsString]) -> bool {
    raw.iter().any(|arg| arg == "--json")
}

/// An error and its causes, each said once: some name their cause themselves.
fn message(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |said, cause| match cause.to_string() {
        cause if said.is_empty() => cause,
        cause if said.contains(&cause) => said,
        cause => format!("{said}: {cause}"),
    })
}

/// Without the ends of long arguments: nobody wants to read a whole prompt to find what is wrong.
fn shorten(message: String, raw: &[OsString]) -> String {
    let long = raw.iter().filter_map(|arg| arg.to_str()).filter(|arg| arg.contains(' ') && arg.chars().count() > LONG);
    long.fold(message, |message, arg| {
        let start: String = arg.chars().take(LONG).collect();
        message.replace(arg, &format!("{start}..."))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn causes_are_said_once() {
        let error = anyhow!("no such file").context("cannot read x: no such file").context("no model");
        assert_eq!(message(&error), "no model: cannot read x: no such file");
    }

    #[test]
    fn prompts_are_not_repeated_whole() {
        let prompt = "a cat and a dog and ".repeat(30);
        let raw = ["xdit", "-p", &prompt].map(OsString::from);
        let short = shorten(format!("unexpected argument '{prompt}' found"), &raw);
        assert!(short.len() < 130 && short.ends_with("...' found"), "{short}");
    }
}
