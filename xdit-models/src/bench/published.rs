//! The published configurations, without weights: folders of `xdit-models/published`, which have all that the denoising
//! needs and no more. `docs/benchmarks/denoise_peer.py` reads the same files.

use xdit_core::folder::EmbeddedFile;

/// A published configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct Published {
    /// As `xdit bench --random-weights` names it.
    pub name: &'static str,
    /// A pipeline's folder.
    pub files: &'static [EmbeddedFile],
}

macro_rules! folder {
    ($name:literal $(, $more:literal)*) => {
        Published {
            name: $name,
            files: folder!(
                @files $name,
                "model_index.json",
                "scheduler/scheduler_config.json",
                "transformer/config.json",
                "vae/config.json" $(, $more)*
            ),
        }
    };
    (@files $name:literal, $($path:literal),*) => {
        &[$(EmbeddedFile { path: $path, bytes: include_bytes!(concat!("../../published/", $name, "/", $path)) }),*]
    };
}

/// All of them; the tiny ones are nobody's, and for tests.
pub static ALL: &[Published] = &[
    folder!("flux-dev"),
    folder!("flux-schnell"),
    folder!("sd3", "text_encoder/config.json"),
    folder!("sd3.5-medium", "text_encoder/config.json"),
    folder!("pixart-sigma"),
    folder!("hunyuandit"),
    folder!("tiny-flux"),
    folder!("tiny-sd3", "text_encoder/config.json"),
];

/// The one of this name.
pub fn find(name: &str) -> Option<&'static Published> {
    ALL.iter().find(|published| published.name == name)
}

/// All names, for messages.
pub fn names() -> String {
    ALL.iter().map(|published| published.name).collect::<Vec<_>>().join(", ")
}
