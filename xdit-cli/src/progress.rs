//! Progress bars on a terminal, plain lines elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use xdit_core::observer::{Observer, Phase};

use crate::console::complain;
use crate::interrupt::Interrupt;

/// A phase that is silent for longer looks dead.
const SILENCE: Duration = Duration::from_secs(10);

/// Shows a request to a person, and adds up the seconds of each phase.
pub struct Progress {
    mode: Mode,
    bars: MultiProgress,
    interrupt: Interrupt,
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
    /// Tenths of the total that a line told of, and when.
    told: u64,
    told_at: Instant,
}

impl Progress {
    /// An interrupt ends the request.
    pub fn new(quiet: bool, json: bool, interrupt: Interrupt) -> Self {
        let mode = match (quiet || json, std::io::stderr().is_terminal()) {
            (true, _) => Mode::Silent,
            (false, true) => Mode::Bars,
            (false, false) => Mode::Lines,
        };
        let bars = match mode {
            Mode::Bars => MultiProgress::new(),
            Mode::Lines | Mode::Silent => MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
        };
        Self { mode, bars, interrupt, running: None, seconds: BTreeMap::new(), warnings: Vec::new() }
    }

    /// Whoever writes to the terminal while a request runs does it in their `suspend`.
    pub fn bars(&self) -> MultiProgress {
        self.bars.clone()
    }

    /// Seconds of each phase so far.
    pub fn seconds(&self) -> &BTreeMap<String, f64> {
        &self.seconds
    }

    /// What the user should know.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn flow(&self) -> ControlFlow<()> {
        if self.interrupt.raised() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
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
        let bar = self.bars.add(ProgressBar::new(total));
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
        let now = Instant::now();
        self.running = Some(Running { what: what.into(), total, start: now, bar, told: 0, told_at: now });
    }

    fn advance(&mut self, phase: Phase, done: u64) -> ControlFlow<()> {
        if let Some(running) = &mut self.running {
            // weights without a file have no total
            if done > running.total {
                running.total = done;
                running.bar.set_length(done);
            }
            running.bar.set_position(done);
            let tenth = done.saturating_mul(10) / running.total.max(1);
            let news = phase == Phase::Denoise && tenth > running.told;
            if self.mode == Mode::Lines && (news || running.told_at.elapsed() > SILENCE) {
                (running.told, running.told_at) = (tenth, Instant::now());
                let [done, total] = [done, running.total].map(|n| Self::amount(phase, n));
                let seconds = running.start.elapsed().as_secs_f64();
                complain(&format!("{phase}: {done}/{total} {} ({seconds:.1} s)", running.what));
            }
        }
        self.flow()
    }

    fn blocks(&mut self, step: usize, done: usize, total: usize) -> ControlFlow<()> {
        if let Some(running) = &mut self.running {
            let within = if done < total { format!(", block {done}/{total}") } else { String::new() };
            running.bar.set_message(format!("{}{within}", running.what));
            if self.mode == Mode::Lines && running.told_at.elapsed() > SILENCE {
                running.told_at = Instant::now();
                let seconds = running.start.elapsed().as_secs_f64();
                complain(&format!("{}: step {}{within} ({seconds:.1} s)", Phase::Denoise, step + 1));
            }
        }
        self.flow()
    }

    fn end(&mut self, phase: Phase) {
        let Some(running) = self.running.take() else { return };
        running.bar.finish_and_clear();
        self.bars.remove(&running.bar);
        let seconds = running.start.elapsed().as_secs_f64();
        *self.seconds.entry(phase.to_string()).or_default() += seconds;
        // a step's line has said it already where lines are printed
        if self.mode != Mode::Silent && !(self.mode == Mode::Lines && phase == Phase::Denoise) {
            let (amount, what) = (Self::amount(phase, running.total), running.what);
            self.bars.suspend(|| complain(&format!("{phase}: {amount} {what} in {seconds:.1} s")));
        }
    }

    fn warn(&mut self, message: &str) {
        self.warnings.push(message.into());
        if self.mode != Mode::Silent {
            self.bars.suspend(|| complain(&format!("warning: {message}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_ends_a_phase_within_a_step() {
        for (raised, flow) in [(false, ControlFlow::Continue(())), (true, ControlFlow::Break(()))] {
            let mut progress = Progress::new(true, false, Interrupt::new(raised));
            progress.begin(Phase::Denoise, "steps", 2);
            assert_eq!(progress.blocks(0, 1, 8), flow);
            assert_eq!(progress.advance(Phase::Denoise, 1), flow);
        }
    }
}
