//! `xdit inspect`: what a pipeline folder holds, from headers only.

use std::fmt::Write;

use anyhow::Result;
use indicatif::{HumanBytes, HumanCount};
use serde_json::json;
use xdit_core::folder::{PipelineFolder, Source};
use xdit_models::builtin;
use xdit_models::pipeline::registry;

use crate::args::Inspect;
use crate::console::Stdout;

pub fn run(args: &Inspect, out: &mut Stdout) -> Result<()> {
    let source = match &args.folder {
        Some(path) => Source::Dir(path.clone()),
        None => Source::Embedded(builtin::FILES),
    };
    let folder = PipelineFolder::open(source)?;
    let supported = registry::find(folder.class_name()).is_some();
    let mut rows = Vec::new();
    for component in folder.components() {
        let has_weights = folder.exists(&format!("{}/config.json", component.name));
        let weights = match has_weights {
            true => Some(folder.weights(&component.name, args.variant.as_deref())?),
            false => None,
        };
        rows.push((component, weights));
    }
    if args.json {
        let components: Vec<_> = rows
            .iter()
            .map(|(component, weights)| {
                let weights = weights.as_ref().map(|w| {
                    let dtypes: serde_json::Map<_, _> =
                        w.dtypes().iter().map(|(dtype, total)| (dtype.name().into(), json!(total.params))).collect();
                    json!({ "params": w.n_params(), "bytes": w.n_bytes(), "dtypes": dtypes, "files": w.files() })
                });
                json!({
                    "name": component.name,
                    "library": component.library,
                    "class": component.class,
                    "weights": weights,
                })
            })
            .collect();
        let record = json!({
            "class": folder.class_name(),
            "supported": supported,
            "components": components,
            "absent": folder.absent(),
        });
        out.line(record.to_string());
        return Ok(());
    }
    let known = if supported { "supported" } else { "not supported" };
    let mut text = String::new();
    writeln!(text, "{} ({known})\n", folder.class_name())?;
    writeln!(text, "{:<18} {:<32} {:>16} {:>12} {:>6}  dtypes", "component", "class", "parameters", "bytes", "files")?;
    let (mut params, mut bytes) = (0, 0);
    for (component, weights) in &rows {
        write!(text, "{:<18} {:<32}", component.name, component.class)?;
        match weights {
            None => writeln!(text)?,
            Some(w) => {
                let dtypes: Vec<_> = w.dtypes().keys().map(|d| d.name()).collect();
                writeln!(
                    text,
                    " {:>16} {:>12} {:>6}  {}",
                    HumanCount(w.n_params()).to_string(),
                    HumanBytes(w.n_bytes()).to_string(),
                    w.files().len(),
                    dtypes.join(" ")
                )?;
                params += w.n_params();
                bytes += w.n_bytes();
            }
        }
    }
    for name in folder.absent() {
        writeln!(text, "{name:<18} (absent)")?;
    }
    writeln!(
        text,
        "{:<18} {:<32} {:>16} {:>12}",
        "total",
        "",
        HumanCount(params).to_string(),
        HumanBytes(bytes).to_string()
    )?;
    out.write(text.as_bytes());
    Ok(())
}
