//! `xdit inspect`: what a pipeline folder holds, from headers only.

use std::fmt::Write;

use anyhow::Result;
use indicatif::{HumanBytes, HumanCount};
use serde_json::json;
use xdit_core::folder::{PipelineFolder, Source};
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
    let supported = registry::find(folder.class_name()).is_some();
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
