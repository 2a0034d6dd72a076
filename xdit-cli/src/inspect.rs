//! `xdit inspect`: what a pipeline folder holds, from headers only.

use std::fmt::Write;

use anyhow::Result;
use indicatif::{HumanBytes, HumanCount};
use serde_json::{Map, Value, json};
use xdit_core::checkpoint::Weights;
use xdit_core::folder::{Component, PipelineFolder, Source};
use xdit_core::observer::Observer;
use xdit_models::builtin;
use xdit_models::pipeline::{ModelSource, registry};

use crate::args::Inspect;
use crate::console::Stdout;
use crate::download::{self, Warnings};

pub fn run(args: &Inspect, out: &mut Stdout) -> Result<()> {
    let source = match args.model.as_deref().map(ModelSource::parse) {
        None => ModelSource::Builtin,
        Some(ModelSource::Hub { id, .. }) => ModelSource::Hub { id, revision: args.revision.clone() },
        Some(folder) => folder,
    };
    let (source, _headers) = download::headers_of(source, args.variant.as_deref())?;
    let folder = PipelineFolder::open(match source {
        ModelSource::Folder(path) => Source::Dir(path),
        _ => Source::Embedded(builtin::FILES),
    })?;
    let mut rows = Vec::new();
    for component in folder.components() {
        // of a hub id only these are at hand, and no picture needs the others
        let has_weights = component.is_model() && folder.exists(&format!("{}/config.json", component.name));
        let weights = match has_weights {
            true => Some(folder.weights(&component.name, args.variant.as_deref())?),
            false => None,
        };
        weights.iter().flat_map(|weights| weights.notes()).for_each(|note| Warnings.warn(note));
        rows.push((component, weights));
    }
    match args.json {
        true => out.line(record(&folder, &rows).to_string()),
        false => out.write(table(&folder, &rows)?.as_bytes()),
    }
    Ok(())
}

/// A component, with its weights if it has any.
type Row<'a> = (&'a Component, Option<Weights>);

/// All of it for `--json`.
fn record(folder: &PipelineFolder, rows: &[Row<'_>]) -> Value {
    let weights = |w: &Weights| {
        let dtypes: Map<_, _> =
            w.dtypes().iter().map(|(dtype, total)| (dtype.name().into(), json!(total.params))).collect();
        json!({ "params": w.n_params(), "bytes": w.n_bytes(), "dtypes": dtypes, "files": w.files() })
    };
    let component = |(component, w): &Row<'_>| {
        json!({
            "name": component.name,
            "library": component.library,
            "class": component.class,
            "weights": w.as_ref().map(weights),
        })
    };
    json!({
        "class": folder.class_name(),
        "supported": registry::find(folder.class_name()).is_some(),
        "components": rows.iter().map(component).collect::<Vec<_>>(),
        "absent": folder.absent(),
    })
}

fn table(folder: &PipelineFolder, rows: &[Row<'_>]) -> Result<String> {
    let known = if registry::find(folder.class_name()).is_some() { "supported" } else { "not supported" };
    let mut text = String::new();
    writeln!(text, "{} ({known})\n", folder.class_name())?;
    writeln!(text, "{:<18} {:<32} {:>16} {:>12} {:>6}  dtypes", "component", "class", "parameters", "bytes", "files")?;
    let numbers = |params, bytes| (HumanCount(params).to_string(), HumanBytes(bytes).to_string());
    let (mut all_params, mut all_bytes) = (0, 0);
    for (component, weights) in rows {
        write!(text, "{:<18} {:<32}", component.name, component.class)?;
        let Some(w) = weights else {
            writeln!(text)?;
            continue;
        };
        let dtypes: Vec<_> = w.dtypes().keys().map(|d| d.name()).collect();
        let (params, bytes) = numbers(w.n_params(), w.n_bytes());
        writeln!(text, " {params:>16} {bytes:>12} {:>6}  {}", w.files().len(), dtypes.join(" "))?;
        all_params += w.n_params();
        all_bytes += w.n_bytes();
    }
    for name in folder.absent() {
        writeln!(text, "{name:<18} (absent)")?;
    }
    let (params, bytes) = numbers(all_params, all_bytes);
    writeln!(text, "{:<18} {:<32} {params:>16} {bytes:>12}", "total", "")?;
    Ok(text)
}
