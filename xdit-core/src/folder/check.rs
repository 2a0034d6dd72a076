//! What can be told of a component's files without reading weights: that they are there, whole, and not quantised.

use std::path::Path;

use serde_json::Value;

use super::pipeline::PipelineFolder;
use super::weight_files::Variants;
use crate::checkpoint::{Dtype, LoadError, Weights, shown};

impl PipelineFolder {
    /// Checks the files of `component`: none is a pointer or a web page, the weights are whole by their headers, and
    /// they are not quantised. Reads configurations and headers only.
    ///
    /// # Errors
    ///
    /// As [`weights`](Self::weights); also if a file of the component is something else than its name says, or if the
    /// weights are quantised.
    pub fn check_weights(&self, component: &str, variant: Option<&str>) -> Result<Weights, LoadError> {
        self.check_files(component)?;
        let config: Value = self.config(component, "config.json")?;
        let path = self.path(&format!("{component}/config.json"));
        if let Some(method) = config_method(&config) {
            return Err(LoadError::Quantized { file: path, method });
        }
        if let Some(name) = config.get("transformers_weights").filter(|value| !value.is_null()) {
            let found = shown(&name.to_string());
            return Err(LoadError::Setting { path, key: "transformers_weights", found });
        }
        let weights = self.weights(component, variant)?;
        match tensors_method(&weights) {
            Some((file, method)) => Err(LoadError::Quantized { file: file.into(), method: method.into() }),
            None => Ok(weights),
        }
    }

    /// Checks that no text file of `component` is a pointer or a web page in its place.
    ///
    /// # Errors
    ///
    /// Names the first that is; also if the pipeline has no such component.
    pub fn check_files(&self, component: &str) -> Result<(), LoadError> {
        let folder = &self.component(component)?.name;
        let is_text = |name: &&String| [".json", ".txt", ".model"].iter().any(|suffix| name.ends_with(suffix));
        for name in self.files(folder).iter().filter(is_text) {
            self.source.check_head(&format!("{folder}/{name}"))?;
        }
        Ok(())
    }

    /// The components with weights that lack `variant`, if others have it.
    ///
    /// # Errors
    ///
    /// Fails if none has it, and names those that there are.
    pub fn without_variant(&self, variant: &str) -> Result<Vec<String>, LoadError> {
        let of = |name: &String| Ok((name.clone(), self.variants(name)?));
        let models = self.components().filter(|component| component.is_model());
        let names: Vec<_> = models.map(|component| component.name.clone()).collect();
        let all: Vec<_> = names.iter().map(of).collect::<Result<_, LoadError>>()?;
        Variants::lacking(&all, variant).map_err(|present| LoadError::NoVariant {
            path: self.path(""),
            variant: variant.into(),
            present,
        })
    }
}

/// How a configuration says that the weights are quantised.
fn config_method(config: &Value) -> Option<String> {
    let settings =
        config.get("quantization_config").or(config.get("compression_config")).filter(|value| !value.is_null())?;
    let text = |key: &str| settings.get(key)?.as_str().map(String::from);
    let method = text("quant_method").unwrap_or_else(|| "a method without a name".into());
    let is_on = |key: &str| settings.get(key) == Some(&Value::Bool(true));
    let kind = match () {
        () if is_on("load_in_4bit") || is_on("_load_in_4bit") => text("bnb_4bit_quant_type").or(Some("4 bit".into())),
        () if is_on("load_in_8bit") || is_on("_load_in_8bit") => Some("8 bit".into()),
        () => text("weights_dtype").or(text("quant_type")),
    };
    let all = kind.map_or(method.clone(), |kind| format!("{method} ({kind})"));
    Some(shown(&all).trim_matches('"').to_string())
}

/// A tensor that only quantised weights have: its file, and how they are quantised.
fn tensors_method(weights: &Weights) -> Option<(&Path, &'static str)> {
    weights.names().find_map(|name| {
        let info = weights.info(name)?;
        let method = name_method(name).or_else(|| dtype_method(name, info.dtype, info.shape.len()))?;
        Some((info.file, method))
    })
}

/// The names that libraries give to what belongs to a quantised tensor.
fn name_method(name: &str) -> Option<&'static str> {
    const SUFFIXES: [(&str, &str); 15] = [
        ("__nf4", "bitsandbytes (nf4)"),
        ("__fp4", "bitsandbytes (fp4)"),
        (".absmax", "bitsandbytes (4 bit)"),
        (".quant_map", "bitsandbytes (4 bit)"),
        (".SCB", "bitsandbytes (8 bit)"),
        (".weight_format", "bitsandbytes (8 bit)"),
        (".qweight", "GPTQ, AWQ or SVDQuant"),
        (".qzeros", "GPTQ or AWQ"),
        ("weight._data", "quanto"),
        ("weight:_data", "torchao"),
        ("weight_qdata", "torchao"),
        ("weight:qdata", "torchao"),
        ("scaled_fp8", "fp8 with scales"),
        (".scale_weight", "fp8 with scales"),
        (".weight_scale", "fp8 or int8 with scales"),
    ];
    SUFFIXES.iter().find(|(suffix, _)| name.ends_with(suffix)).map(|(_, method)| *method)
}

/// Types of elements that only quantised weights have. Integers of other sizes are the places of tokens and the like.
fn dtype_method(name: &str, dtype: Dtype, n_dims: usize) -> Option<&'static str> {
    match dtype {
        Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::F8_E4M3FNUZ | Dtype::F8_E5M2FNUZ | Dtype::F8_E8M0 => Some("fp8"),
        Dtype::F4 => Some("fp4"),
        Dtype::F6_E2M3 | Dtype::F6_E3M2 => Some("fp6"),
        Dtype::I8 | Dtype::U8 if n_dims > 1 && name.ends_with("weight") => Some("integers of 8 bit"),
        _ => None,
    }
}
