//! Standard output and standard error: the one place that writes to them. Nothing here panics, whether they are full or
//! closed.

use std::io::{self, ErrorKind, Write};

use anyhow::{Context, Result};

/// Standard output. After a failure it takes no more, while the rest of the program goes on; [`finish`](Self::finish)
/// tells of it.
#[derive(Default)]
pub struct Stdout {
    failed: Option<io::Error>,
}

impl Stdout {
    /// Writes all of it now.
    pub fn write(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            let mut stdout = io::stdout().lock();
            self.failed = stdout.write_all(bytes).and_then(|()| stdout.flush()).err();
        }
    }

    /// Writes a line.
    pub fn line(&mut self, text: impl AsRef<[u8]>) {
        self.write(&[text.as_ref(), b"\n"].concat());
    }

    /// # Errors
    /// What failed, if anything did. A reader who went away has what it wanted.
    pub fn finish(&mut self) -> Result<()> {
        match self.failed.take() {
            Some(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(error).context("cannot write to standard output")
            }
            _ => Ok(()),
        }
    }
}

/// Writes a line to standard error. Where that fails nobody can be told.
pub fn complain(line: &str) {
    let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}
