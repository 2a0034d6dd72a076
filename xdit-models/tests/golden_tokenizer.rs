//! Token ids against transformers, from every form in which folders bring tokenizers.

use std::collections::BTreeMap;

use xdit_core::folder::{PipelineFolder, Source};
use xdit_models::tokenizer::Tokenizer;
use xdit_testing::golden::{self, Golden};

#[track_caller]
fn check(name: &str) {
    let folder = PipelineFolder::open(Source::Dir(golden::dir().join(name))).expect("a pipeline folder");
    let golden = Golden::open(name);
    let prompts = std::fs::read_to_string(golden::dir().join("prompts.json")).expect("prompts");
    let prompts: BTreeMap<String, String> = serde_json::from_str(&prompts).expect("prompts");
    for (component, key, limit) in [("tokenizer", "clip", 77), ("tokenizer_2", "t5", 32)] {
        let tokenizer = Tokenizer::open(&folder, component).expect("a tokenizer");
        for (name, prompt) in &prompts {
            let encoded = tokenizer.encode(prompt, limit).expect("ids");
            assert_eq!(encoded.ids, golden.ids(&format!("ids.{key}.{name}"))[0], "{key} {name}: {prompt:?}");
            assert_eq!(encoded.cut.is_some(), name == "long" || encoded.n_tokens == limit, "{key} {name}");
        }
    }
}

#[test]
fn from_vocabulary_and_spiece_alone() {
    check("flux-dev");
}

#[test]
fn from_tokenizer_json() {
    check("flux-schnell");
}

#[test]
fn what_is_cut_off_is_the_end_of_the_prompt() {
    let folder = PipelineFolder::open(Source::Dir(golden::dir().join("flux-dev"))).expect("a pipeline folder");
    let tokenizer = Tokenizer::open(&folder, "tokenizer").expect("a tokenizer");
    let encoded = tokenizer.encode("a cat on the lazy dog", 6).expect("ids");
    let cut = encoded.cut.expect("cut");
    assert!("a cat on the lazy dog".ends_with(&cut) && cut.ends_with("lazy dog"), "{cut:?}");
    assert_eq!((encoded.ids.len(), encoded.n_tokens), (6, 6));
}
