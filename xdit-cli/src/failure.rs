//! How the program says that it failed.

use std::ffi::OsString;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::console::{Stdout, complain};
use crate::interrupt;

/// Longest argument with spaces, such as a prompt, that a message repeats whole.
const LONG: usize = 80;

/// Why there is less than was asked for.
pub struct Failure {
    /// On one line, without "error".
    message: String,
    code: u8,
    /// What was written before, as in the record of `--json`.
    files: Vec<Value>,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { message: message(&error), code: 1, files: Vec::new() }
    }
}

impl Failure {
    /// `files` were written, and something went wrong.
    pub fn after(error: &anyhow::Error, written: &str, files: Vec<Value>) -> Self {
        let message = match files.is_empty() {
            true => message(error),
            false => format!("{}; {written}", message(error)),
        };
        Self { message, code: 1, files }
    }

    /// `files` were written, and the user had enough.
    pub fn interrupted(written: &str, files: Vec<Value>) -> Self {
        Self { message: format!("interrupted: {written}"), code: interrupt::EXIT_CODE, files }
    }

    /// One line on standard error; with `--json` also a record for programs.
    pub fn tell(self, raw: &[OsString], out: &mut Stdout) -> ExitCode {
        let message = shorten(self.message, raw).replace('\n', " ");
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
