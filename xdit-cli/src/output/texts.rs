//! What a result says of itself.

use xdit_models::pipeline::{Output, Request, Settings};

pub const SOFTWARE: &str = concat!("xdit ", env!("CARGO_PKG_VERSION"));

/// Prompt, seed and settings.
pub struct Texts {
    /// Under their names, `parameters` among them.
    pub all: Vec<(&'static str, String)>,
    /// All in one, in the form that other programs read.
    pub parameters: String,
}

impl Texts {
    pub fn new(output: &Output, request: &Request, settings: &Settings, model: &str) -> Self {
        let prompt = &request.prompts[output.prompt];
        let negative = match request.negative_prompts.as_slice() {
            [one] => Some(one),
            many => many.get(output.prompt),
        };
        let Settings {
            height,
            width,
            drawn: _,
            num_inference_steps: steps,
            guidance_scale,
            true_cfg_scale,
            guidance_rescale,
            max_sequence_length,
        } = settings;
        let mut parameters = prompt.clone();
        if let Some(negative) = negative {
            parameters.push_str(&format!("\nNegative prompt: {negative}"));
        }
        parameters.push_str(&format!(
            "\nSteps: {steps}, Guidance: {guidance_scale}, CFG scale: {true_cfg_scale}, Seed: {}, Size: {width}x{height}, \
             Max sequence length: {max_sequence_length}, Model: {model}, Version: {SOFTWARE}",
            output.seed,
        ));
        let mut all = vec![
            ("prompt", prompt.clone()),
            ("seed", output.seed.to_string()),
            ("model", model.into()),
            ("num_inference_steps", steps.to_string()),
            ("guidance_scale", guidance_scale.to_string()),
            ("true_cfg_scale", true_cfg_scale.to_string()),
            ("guidance_rescale", guidance_rescale.to_string()),
            ("parameters", parameters.clone()),
            ("Software", SOFTWARE.into()),
        ];
        if let Some(negative) = negative {
            all.push(("negative_prompt", negative.clone()));
        }
        Self { all, parameters }
    }
}
