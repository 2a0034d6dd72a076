//! Settings of a request that change nothing on the model at hand.

use crate::pipeline::architecture::Guidance;
use crate::pipeline::request::Request;

/// What decides whether a setting has an effect.
pub(super) struct Facts {
    /// What `guidance_scale` means.
    pub guidance: Guidance,
    /// Whether the model was trained to be told it, where that is what it means.
    pub is_told: bool,
    /// Whether there is classifier-free guidance, and the scale of it that there would be.
    pub guided: bool,
    /// See above.
    pub scale: f32,
    /// Whether the model was trained on few sizes.
    pub has_sizes: bool,
    /// Whether `max_sequence_length` says how many tokens there are.
    pub takes_length: bool,
}

/// One line for each setting that the request gives in vain.
pub(super) fn warnings(request: &Request, facts: &Facts) -> Vec<String> {
    let mut lines = Vec::new();
    let mut warn = |idle: bool, line: String| lines.extend(idle.then_some(line));
    let negative = !request.negative_prompts.is_empty();
    let (name, guide) = match facts.guidance {
        Guidance::Told => ("true_cfg_scale", "a negative prompt and true_cfg_scale above 1"),
        Guidance::ClassifierFree => ("guidance_scale", "guidance_scale above 1"),
    };
    let distilled = facts.guidance == Guidance::Told;
    warn(
        request.true_cfg_scale.is_some() && !distilled,
        "true_cfg_scale has no effect on this model, whose guidance is guidance_scale".into(),
    );
    warn(
        request.true_cfg_scale.is_some_and(|scale| scale > 1.0) && distilled && !negative,
        format!("true_cfg_scale {} has no effect without a negative prompt", facts.scale),
    );
    // 0 is how examples for such models say that there is none
    warn(
        request.guidance_scale.is_some_and(|scale| scale != 0.0) && distilled && !facts.is_told,
        "guidance_scale has no effect on this model, which was trained without".into(),
    );
    warn(
        negative && !facts.guided,
        format!("the negative prompt has no effect with {name} {}; give one above 1", facts.scale),
    );
    for (name, given) in [
        ("guidance_rescale", request.guidance_rescale.is_some_and(|rescale| rescale != 0.0)),
        ("skip-layer guidance", request.skip_layers.is_some()),
    ] {
        warn(
            given && !facts.guided,
            format!("{name} has no effect without classifier-free guidance, which needs {guide}"),
        );
    }
    warn(
        !request.resolution_binning && !facts.has_sizes,
        "switching resolution_binning off has no effect on this model, which draws at any size".into(),
    );
    warn(
        request.max_sequence_length.is_some() && !facts.takes_length,
        "max_sequence_length has no effect on this model, whose configuration says how many tokens there are".into(),
    );
    lines
}
