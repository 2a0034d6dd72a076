//! Options that Python asks for their truth.

use serde::{Deserialize, Deserializer};

/// `true`, `false`, `null` for false, or a number, false if it is 0: what upstream tests with `if`.
pub(super) fn flag<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Flag {
        Bool(bool),
        Number(f64),
    }
    Ok(match Option::<Flag>::deserialize(from)? {
        None => false,
        Some(Flag::Bool(flag)) => flag,
        Some(Flag::Number(number)) => number != 0.0,
    })
}

#[cfg(test)]
mod tests {
    use crate::sampler::{DdpmConfig, DpmSolverMultistepConfig, FlowMatchEulerConfig};

    #[test]
    fn flags_are_what_python_takes_for_true() {
        let read = |json: &str| serde_json::from_str::<FlowMatchEulerConfig>(json);
        let flag = |json: &str| read(json).expect("a configuration").invert_sigmas;
        assert!(flag(r#"{"invert_sigmas": true}"#) && flag(r#"{"invert_sigmas": 1}"#));
        assert!(!flag(r#"{"invert_sigmas": null}"#) && !flag(r#"{"invert_sigmas": 0}"#) && !flag("{}"));
        read(r#"{"invert_sigmas": "no"}"#).expect_err("a word");
    }

    #[test]
    fn a_variance_that_another_class_wrote_is_taken() {
        let ddpm: DdpmConfig = serde_json::from_str(r#"{"variance_type": null}"#).expect("a configuration");
        assert_eq!(ddpm.variance_type, None);
        for (kind, taken) in [("fixed_small", true), ("learned_range", false)] {
            let config = format!(r#"{{"variance_type": "{kind}"}}"#);
            let config: DpmSolverMultistepConfig = serde_json::from_str(&config).expect("a configuration");
            assert_eq!(crate::sampler::DpmSolverMultistep::new(&config, 4).is_ok(), taken);
        }
    }
}
