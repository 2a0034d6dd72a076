//! `xdit models`.

use serde_json::json;
use xdit_models::pipeline::registry::ARCHITECTURES;

use crate::args::Models;
use crate::console::Stdout;

pub fn run(args: &Models, out: &mut Stdout) {
    if args.json {
        let pipeline = |class: &str, models: &str| json!({ "class": class, "models": models });
        let all: Vec<_> = ARCHITECTURES.iter().map(|a| pipeline(a.class_name(), a.about())).collect();
        return out.line(json!({ "pipelines": all }).to_string());
    }
    let line = |class: &str, models: &str| format!("{class:<24} {models}\n");
    let all = ARCHITECTURES.iter().map(|a| line(a.class_name(), a.about()));
    out.write(std::iter::once(line("pipeline", "models")).chain(all).collect::<String>().as_bytes());
}
