//! `xdit schedule`: who does what when in a pipeline of stages, as text, as a picture, as a trace.

use std::fmt::Write;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use xdit_core::schedule::{Payload, Schedule, Timeline};

use crate::args;
use crate::console::Stdout;
use crate::output::place;

/// Beyond this nobody looks, and memory ends.
const MOST_SPANS: usize = 1_000_000;
/// Turns that a line of a terminal shows.
const COLUMNS: usize = 100;
const DEFAULT_STAGES: usize = 4;

pub fn run(args: &args::Schedule, out: &mut Stdout) -> Result<()> {
    let n_stages = args.stages.pipefusion_parallel_degree.unwrap_or(DEFAULT_STAGES);
    let schedule = Schedule {
        n_stages,
        n_patches: args.stages.num_pipeline_patch.unwrap_or(n_stages),
        n_steps: args.num_inference_steps,
        warmup_steps: args.stages.warmup_steps().min(args.num_inference_steps),
    };
    let numbers = [
        ("pipefusion-parallel-degree", schedule.n_stages),
        ("num-pipeline-patch", schedule.n_patches),
        ("num-inference-steps", schedule.n_steps),
    ];
    for (name, number) in numbers {
        if !(1..=MOST_SPANS).contains(&number) {
            bail!("{name} {number} is not within 1 to {MOST_SPANS}");
        }
    }
    match numbers.iter().try_fold(1_usize, |all, (_, number)| all.checked_mul(*number)) {
        Some(all) if all <= MOST_SPANS => {}
        _ => bail!(
            "{} stages, {} patches and {} steps are more than {MOST_SPANS} boxes",
            schedule.n_stages,
            schedule.n_patches,
            schedule.n_steps
        ),
    }
    if !(0.0..=1e6).contains(&args.latency) {
        bail!("latency {} is not within 0 to 1000000 turns", args.latency);
    }
    let timeline = schedule.timeline(args.latency);
    if let Some(path) = &args.trace {
        place::write(path, format!("{}\n", trace(&timeline)).as_bytes())?;
    }
    if let Some(path) = &args.svg {
        place::write(path, svg(&schedule, &timeline).as_bytes())?;
    }
    out.write(text(&schedule, &timeline).as_bytes());
    Ok(())
}

/// A line per stage, a character per turn: `#` is warm-up, letters are patches, `.` is waiting.
fn text(schedule: &Schedule, timeline: &Timeline) -> String {
    let n = (timeline.makespan.ceil() as usize).min(COLUMNS);
    let mut out = String::new();
    for stage in 0..schedule.n_stages {
        let mut line = vec!['.'; n];
        for span in timeline.spans.iter().filter(|span| span.stage == stage) {
            let letter = span.work.patch.map_or('#', |patch| char::from(b'a' + (patch % 26) as u8));
            line.iter_mut().take(span.end as usize).skip(span.start as usize).for_each(|turn| *turn = letter);
        }
        let more = if timeline.makespan > COLUMNS as f64 { " .." } else { "" };
        let _ = writeln!(out, "stage {stage:>3}  {}{more}", line.into_iter().collect::<String>());
    }
    let Schedule { n_stages, n_patches, n_steps, warmup_steps } = *schedule;
    let alone = (n_stages * n_patches * n_steps) as f64;
    let busy: f64 = timeline.spans.iter().map(|span| span.end - span.start).sum();
    let idle = 1.0 - busy / (timeline.makespan * n_stages as f64);
    let _ = writeln!(
        out,
        "\n{n_stages} stages, {n_patches} patches, {n_steps} steps, {warmup_steps} of them warm-up (#)\n\
         {} turns, {:.1} % of them waiting; one device needs {alone}: {:.2} times as long",
        timeline.makespan,
        100.0 * idle,
        alone / timeline.makespan
    );
    out
}

/// For chrome://tracing and ui.perfetto.dev: a turn is a millisecond there. Messages are arrows.
fn trace(timeline: &Timeline) -> Value {
    let us = |turns: f64| (turns * 1000.0).round();
    let mut events = Vec::new();
    for span in &timeline.spans {
        let name = match span.work.patch {
            Some(patch) => format!("step {} patch {patch}", span.work.step),
            None => format!("step {} whole", span.work.step),
        };
        events.push(json!({
            "ph": "X", "name": name, "cat": "compute", "pid": 0, "tid": span.stage,
            "ts": us(span.start), "dur": us(span.end - span.start),
        }));
    }
    for (id, flight) in timeline.flights.iter().enumerate() {
        let name = match flight.message.payload {
            Payload::Hidden => "hidden states",
            Payload::Latents => "latents",
        };
        let common = |ph: &str, stage: usize, at: f64| json!({ "ph": ph, "name": name, "cat": "message", "id": id, "pid": 0, "tid": stage, "ts": us(at), "bp": "e" });
        events.push(common("s", flight.from, flight.sent));
        events.push(common("f", flight.to, flight.taken));
    }
    json!({ "traceEvents": events, "displayTimeUnit": "ms" })
}

/// Rows are stages, boxes are patches, lines are latents on their way back.
fn svg(schedule: &Schedule, timeline: &Timeline) -> String {
    const ROW: f64 = 34.0;
    const BOX: f64 = 26.0;
    const LEFT: f64 = 64.0;
    const TOP: f64 = 40.0;
    let turn = (1100.0 / timeline.makespan).clamp(2.0, 26.0);
    let x = |turns: f64| LEFT + turns * turn;
    let y = |stage: usize| TOP + stage as f64 * ROW;
    let (width, bottom) = (x(timeline.makespan) + 20.0, y(schedule.n_stages));
    let colour = |patch: usize| format!("hsl({} 62% 58%)", patch * 360 / schedule.n_patches);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{:.0}\" viewBox=\"0 0 {width:.0} {:.0}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <style>text{{fill:#444}} .w{{fill:#9a9a9a}} .l{{stroke:#b33;stroke-width:1;fill:none;opacity:.55}} \
         .g{{stroke:#888;stroke-dasharray:2 4}} @media(prefers-color-scheme:dark){{text{{fill:#ccc}} .b{{fill:#111}}}} \
         .b{{fill:#111}}</style>\n",
        bottom + 40.0,
        bottom + 40.0
    );
    for stage in 0..schedule.n_stages {
        let _ = writeln!(out, "<text x=\"8\" y=\"{:.1}\">stage {stage}</text>", y(stage) + 17.0);
    }
    // where the first stage begins a step
    for span in timeline.spans.iter().filter(|span| span.stage == 0 && span.work.patch.is_none_or(|patch| patch == 0)) {
        let (x, end) = (x(span.start), bottom - 4.0);
        let _ =
            writeln!(out, "<line class=\"g\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{end:.1}\"/>", TOP - 10.0);
        let _ = writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\">step {}</text>", x + 2.0, TOP - 14.0, span.work.step);
    }
    for span in &timeline.spans {
        let (left, width, top) = (x(span.start), (span.end - span.start) * turn - 1.0, y(span.stage));
        write_box(&mut out, [left, top, width, BOX], span.work.patch.map(|patch| (patch, colour(patch))));
    }
    for flight in timeline.flights.iter().filter(|flight| flight.message.payload == Payload::Latents) {
        let (x1, y1, x2, y2) = (x(flight.sent), y(flight.from), x(flight.taken), y(flight.to) + BOX);
        let _ = writeln!(out, "<line class=\"l\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>");
    }
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"{:.1}\">numbers: patches; grey: the whole picture, in warm-up; red: latents back to the first stage; \
         {} turns, {:.0} % waiting</text>\n</svg>",
        bottom + 22.0,
        timeline.makespan,
        100.0 * schedule.bubble()
    );
    out
}

/// A patch's box in its colour, or the whole picture's; numbered where the number has room.
fn write_box(out: &mut String, [left, top, width, height]: [f64; 4], patch: Option<(usize, String)>) {
    let (class, fill, label) = match patch {
        Some((patch, colour)) => ("", format!(" fill=\"{colour}\""), patch.to_string()),
        None => (" class=\"w\"", String::new(), "whole".to_string()),
    };
    let _ = writeln!(
        out,
        "<rect{class}{fill} x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height}\" rx=\"3\"/>"
    );
    if width > 7.0 * label.len() as f64 {
        let (middle, baseline) = (left + width / 2.0, top + 17.0);
        let _ = writeln!(
            out,
            "<text class=\"b\" text-anchor=\"middle\" x=\"{middle:.1}\" y=\"{baseline:.1}\">{label}</text>"
        );
    }
}
