//! Progress bars on a terminal, plain lines elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::Instant;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use xdit_core::observer::{Observer, Phase};

/// Shows a request to a person, and adds up the seconds of each phase.
pub struct Progress {
    mode: Mode,
    running: Option<Running>,
    seconds: BTreeMap<String, f64>,
    warnings: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Bars,
    Lines,
    Silent,
}

struct Running {
    what: String,
    total: u64,
    start: Instant,
    bar: ProgressBar,
    /// Tenths of the total that a line told of.
    told: u64,
}

impl Progress {
    pub fn new(quiet: bool, json: bool) -> Self {
        let mode = match (quiet || json, std::io::stderr().is_terminal()) {
            (true, _) => Mode::Silent,
            (false, true) => Mode::Bars,
            (false, false) => Mode::Lines,
        };
        Self { mode, running: None, seconds: BTreeMap::new(), warnings: Vec::new() }
    }

    /// Seconds of each phase so far.
    pub fn seconds(&self) -> &BTreeMap<String, f64> {
        &self.seconds
    }

    /// What the user should know.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn amount(phase: Phase, n: u64) -> String {
        match phase {
            Phase::Download | Phase::Load => HumanBytes(n).to_string(),
            Phase::Encode | Phase::Denoise | Phase::Decode => n.to_string(),
        }
    }
}

impl Observer for Progress {
    fn begin(&mut self, phase: Phase, what: &str, total: u64) {
        let bar = if self.mode == Mode::Bars { ProgressBar::new(total) } else { ProgressBar::hidden() };
        let counts = match phase {
            Phase::Download | Phase::Load => "{bytes}/{total_bytes}",
            Phase::Encode | Phase::Denoise | Phase::Decode => "{pos}/{len}",
        };
        let template = format!("{{prefix:>8}} [{{bar:30}}] {counts} {{msg}} ({{elapsed}}, {{eta}} left)");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(phase.to_string());
        bar.set_message(what.to_owned());
        bar.tick();
        self.running = Some(Running { what: what.into(), total, start: Instant::now(), bar, told: 0 });
    }

    fn advance(&mut self, phase: Phase, done: u64) -> ControlFlow<()> {
        if let Some(running) = &mut self.running {
            running.bar.set_position(done);
            let tenth = done.saturating_mul(10) / running.total.max(1);
            if self.mode == Mode::Lines && phase == Phase::Denoise && tenth > running.told {
                running.told = tenth;
                eprintln!(
                    "{phase}: {done}/{} {} ({:.1} s)",
                    running.total,
                    running.what,
                    running.start.elapsed().as_secs_f64()
                );
            }
        }
        ControlFlow::Continue(())
    }

    fn end(&mut self, phase: Phase) {
        let Some(running) = self.running.take() else { return };
        running.bar.finish_and_clear();
        let seconds = running.start.elapsed().as_secs_f64();
        *self.seconds.entry(phase.to_string()).or_default() += seconds;
        // a step's line has said it already where lines are printed
        if self.mode != Mode::Silent && !(self.mode == Mode::Lines && phase == Phase::Denoise) {
            eprintln!("{phase}: {} {} in {seconds:.1} s", Self::amount(phase, running.total), running.what);
        }
    }

    fn warn(&mut self, message: &str) {
        self.warnings.push(message.into());
        if self.mode != Mode::Silent {
            match &self.running {
                Some(running) => running.bar.suspend(|| eprintln!("warning: {message}")),
                None => eprintln!("warning: {message}"),
            }
        }
    }
}
