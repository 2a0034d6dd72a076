//! Prompts to token ids, as transformers' `BertTokenizer`, `CLIPTokenizer` and `T5Tokenizer` do it.
//!
//! transformers 5 has one pipeline for each class and takes vocabulary, merges, character map and added tokens from
//! whichever files there are: `tokenizer.json`, else `vocab.txt`, `vocab.json` with `merges.txt` or `spiece.model`. So
//! does [`Tokenizer::open`]; a normaliser or template that a `tokenizer.json` describes plays no part, here as there.
//!
//! Everything that comes from a file is checked before it reaches the `tokenizers` crate, some of whose constructors
//! trust it.

mod bert;
mod built;
mod charsmap;
mod clip;
mod error;
mod file;
mod settings;
mod shown;
mod spiece;
mod t5;
mod token;
mod whole;

use xdit_core::folder::PipelineFolder;

use file::File;
use settings::Settings;

pub use built::{Encoded, SpecialIds, Tokenizer};
pub use charsmap::CharsmapError;
pub use error::TokenizerError;
pub use spiece::SpieceError;

impl Tokenizer {
    /// Builds the tokenizer of `component` from its files in `folder`.
    ///
    /// # Errors
    /// A class other than BERT's, CLIP's and T5's, files that are missing or broken.
    pub fn open(folder: &PipelineFolder, component: &str) -> Result<Self, TokenizerError> {
        let class = &folder.component(component)?.class;
        let at = |file: &str| format!("{component}/{file}");
        let file = |name: &str| -> Result<Option<File>, TokenizerError> {
            let rel = at(name);
            if !folder.exists(&rel) {
                return Ok(None);
            }
            Ok(Some(File { path: folder.path(&rel), bytes: folder.bytes(&rel)?.into_owned() }))
        };
        let missing = |looked_for| TokenizerError::NoVocabulary { path: folder.path(component), looked_for };
        let settings = Settings::new(
            folder.path(component),
            file("tokenizer_config.json")?.as_ref(),
            file("special_tokens_map.json")?.as_ref(),
            file("added_tokens.json")?.as_ref(),
        )?;
        let whole = file("tokenizer.json")?;
        match class.strip_suffix("Fast").unwrap_or(class) {
            "BertTokenizer" => {
                if let Some(whole) = whole {
                    return bert::from_json(&whole, settings);
                }
                match file("vocab.txt")? {
                    Some(vocab) => bert::from_vocab(&vocab, settings),
                    None => Err(missing("tokenizer.json, vocab.txt")),
                }
            }
            "CLIPTokenizer" => {
                if let Some(whole) = whole {
                    return clip::from_json(&whole, settings);
                }
                match (file("vocab.json")?, file("merges.txt")?) {
                    (Some(vocab), Some(merges)) => clip::from_vocab(&vocab, &merges, settings),
                    _ => Err(missing("tokenizer.json, vocab.json with merges.txt")),
                }
            }
            "T5Tokenizer" | "MT5Tokenizer" => {
                if let Some(whole) = whole {
                    return t5::from_json(&whole, settings);
                }
                match file("spiece.model")? {
                    Some(spiece) => t5::from_spiece(&spiece, settings),
                    None => Err(missing("tokenizer.json, spiece.model")),
                }
            }
            _ => Err(TokenizerError::UnknownClass { component: component.into(), found: class.clone() }),
        }
    }
}

#[cfg(test)]
mod tests;
