//! What configurations of transformers' models have in common.

use serde::de::Error;
use serde_json::Value;
use serde_path_to_error::{Deserializer, Track};
use xdit_core::ops::Activation;

use crate::error::ModelError;

/// The part of a configuration that is a `model_type`'s, which may be nested in that of a larger model: below `key`, or
/// wherever a part says that it is of this type.
pub(super) fn part_of(config: Value, model_type: &str, key: Option<&str>) -> Value {
    let is_of_type = |part: &Value| part.get("model_type").is_some_and(|found| found == model_type);
    if let Some(part) = key.and_then(|key| config.get(key)).filter(|part| part.is_object()) {
        return part.clone();
    }
    if config.get("model_type").is_none() || is_of_type(&config) {
        return config;
    }
    let nested = config.as_object().into_iter().flat_map(|all| all.values()).rfind(|part| is_of_type(part)).cloned();
    nested.unwrap_or(config)
}

/// What `parse` makes of a part; errors name the field.
pub(super) fn read<T, E: Error>(
    part: Value,
    parse: impl FnOnce(Deserializer<'_, '_, Value>) -> Result<T, serde_json::Error>,
) -> Result<T, E> {
    let mut track = Track::new();
    parse(Deserializer::new(part, &mut track)).map_err(|error| E::custom(format!("{}: {error}", track.path())))
}

/// The activation of a name in transformers' `ACT2FN`.
pub(super) fn activation(class: &'static str, field: &str, name: &str) -> Result<Activation, ModelError> {
    Ok(match name {
        "gelu" | "gelu_python" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_fast" | "gelu_accurate" => Activation::GeluTanh,
        "quick_gelu" => Activation::QuickGelu,
        "silu" | "swish" => Activation::Silu,
        _ => {
            let what = format!(
                "{field}={name:?} is not supported, only \"gelu\", \"gelu_new\" and its other names, \"quick_gelu\" and \
                 \"silu\""
            );
            return Err(ModelError::Config { class, what });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_part_is_found_where_upstream_finds_it() {
        let part = |config: Value| part_of(config, "clip_text_model", Some("text_config"));
        let own = json!({"hidden_size": 8});
        assert_eq!(part(own.clone()), own);
        assert_eq!(part(json!({"model_type": "clip", "text_config": own, "hidden_size": 9})), own);
        assert_eq!(part(json!({"model_type": "clip_text_model", "text_config": own})), own);
        assert_eq!(part(json!({"text_config": own})), own);
        let typed = json!({"model_type": "clip_text_model", "hidden_size": 8});
        assert_eq!(part(json!({"model_type": "clip", "other": typed, "vision_config": {"hidden_size": 3}})), typed);
        let flat = json!({"model_type": "clip", "hidden_size": 8});
        assert_eq!(part(flat.clone()), flat, "settings of no part are the model's own");
    }
}
