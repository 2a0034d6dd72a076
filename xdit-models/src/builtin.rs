//! The model inside the program: a small Flux that was trained to draw scenes of coloured shapes.
//!
//! It is an ordinary diffusers folder, `xdit-models/tiny-flux`, and is read as one. `xdit-testing/tiny-flux` holds its
//! training.

use xdit_core::folder::EmbeddedFile;

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(EmbeddedFile { path: $path, bytes: include_bytes!(concat!("../tiny-flux/", $path)) }),*]
    };
}

/// All files of the folder; a static, as a constant is put into the program once for each crate that names it.
pub static FILES: &[EmbeddedFile] = files![
    "model_index.json",
    "xdit.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer_2/special_tokens_map.json",
    "tokenizer_2/spiece.model",
    "tokenizer_2/tokenizer.json",
    "tokenizer_2/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

/// The side of the pictures that it was trained on, in pixels.
pub const SIDE: usize = 256;

const FORMS: &[&str] = &["circle", "square", "triangle"];
const OTHER_WORDS: &[&str] = &[
    "red",
    "green",
    "blue",
    "yellow",
    "purple",
    "black",
    "white",
    "tiny",
    "small",
    "little",
    "medium",
    "large",
    "big",
    "a",
    "an",
    "the",
    "of",
    "on",
    "to",
    "in",
    "with",
    "against",
    "left",
    "right",
    "above",
    "over",
    "below",
    "under",
    "inside",
    "within",
    "background",
    "picture",
    "drawing",
];

/// What a caption asks for that the model was not trained to draw, one line.
pub fn beyond(caption: &str) -> Option<String> {
    let lower = caption.to_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let mut unknown: Vec<&str> =
        words.iter().copied().filter(|word| !FORMS.contains(word) && !OTHER_WORDS.contains(word)).collect();
    unknown.dedup();
    let n_forms = words.iter().filter(|word| FORMS.contains(word)).count();
    let what = match (unknown.as_slice(), n_forms) {
        ([], 1 | 2) => return None,
        ([], 0) => "does not know what to draw without a shape".into(),
        ([], n) => format!("was trained on one or two shapes, not {n}"),
        (some, _) => {
            let shown: Vec<_> = some.iter().take(4).map(|word| format!("{word:?}")).collect();
            let more = if some.len() > 4 { ", .." } else { "" };
            format!("does not know {}{more}", shown.join(", "))
        }
    };
    Some(format!(
        "the built-in model {what}; it draws one or two circles, squares and triangles of seven colours, as in \
         \"a large red circle on a yellow background\""
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_was_trained_on_is_known() {
        let known: Vec<_> = xdit_testing::scene::HELD_OUT.lines().filter_map(beyond).collect();
        assert!(known.is_empty(), "{known:?}");
        for (caption, part) in [
            ("A cat in a hat", "does not know \"cat\", \"hat\""),
            ("", "without a shape"),
            ("a red circle, a blue square and a green triangle", "does not know \"and\""),
            ("a red circle a blue square a green triangle", "one or two shapes, not 3"),
        ] {
            let said = beyond(caption).expect("a line");
            assert!(said.contains(part) && !said.contains('\n'), "{said}");
        }
    }
}
