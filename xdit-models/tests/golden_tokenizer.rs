//! Token ids against transformers, from every form in which folders bring tokenizers.

use std::collections::BTreeMap;

use xdit_core::folder::{PipelineFolder, Source};
use xdit_models::text::tokenizer::Tokenizer;
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

/// Prompts of a JSON file by name.
#[track_caller]
fn texts(file: &str) -> BTreeMap<String, String> {
    let json = std::fs::read_to_string(golden::dir().join(file)).expect(file);
    serde_json::from_str(&json).expect(file)
}

/// Token ids, which of them are padding, and what diffusers warns of.
#[track_caller]
fn check_masked(name: &str) {
    let folder = PipelineFolder::open(Source::Dir(golden::dir().join(name))).expect("a pipeline folder");
    let golden = Golden::open(name);
    let cut = std::fs::read_to_string(golden::dir().join(format!("{name}.cut.json"))).expect("what is cut off");
    let cut: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(&cut).expect("what is cut off");
    for (component, key, limit) in [("tokenizer", "bert", 77), ("tokenizer_2", "t5", 256)] {
        let tokenizer = Tokenizer::open(&folder, component).expect("a tokenizer");
        for (text, prompt) in &texts("hunyuan.prompts.json") {
            let encoded = tokenizer.encode(prompt, limit).expect("ids");
            assert_eq!(encoded.ids, golden.ids(&format!("ids.{key}.{text}"))[0], "{key} {text}: {prompt:?}");
            assert_eq!(encoded.mask(), golden.ids(&format!("mask.{key}.{text}"))[0], "{key} {text}");
            assert_eq!(encoded.cut.as_ref(), cut[key].get(text), "{key} {text}");
        }
    }
}

#[test]
fn bert_from_vocabulary_and_mt5_from_spiece() {
    check_masked("hunyuan-v11");
}

#[test]
fn bert_and_mt5_from_tokenizer_json() {
    check_masked("hunyuan-v12");
}

#[test]
fn berts_options_come_from_the_configuration() {
    let golden = Golden::open("hunyuan");
    let vocab = golden::dir().join("hunyuan-v11/tokenizer/vocab.txt");
    for (variant, options) in [
        ("lower", "{}"),
        ("cased", r#"{"do_lower_case": false, "strip_accents": null}"#),
        ("cased_stripped", r#"{"do_lower_case": false, "strip_accents": true}"#),
        ("accents", r#"{"strip_accents": false}"#),
        ("whole", r#"{"tokenize_chinese_chars": false}"#),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
        std::fs::create_dir(dir.path().join("tokenizer")).expect("a folder");
        write("model_index.json", r#"{"_class_name": "X", "tokenizer": ["transformers", "BertTokenizerFast"]}"#);
        write("tokenizer/tokenizer_config.json", options);
        std::fs::copy(&vocab, dir.path().join("tokenizer/vocab.txt")).expect("copied");
        let folder = PipelineFolder::open(Source::Dir(dir.path().into())).expect("a pipeline folder");
        let tokenizer = Tokenizer::open(&folder, "tokenizer").expect("a tokenizer");
        for (text, prompt) in &texts("hunyuan.prompts.json") {
            let encoded = tokenizer.encode(prompt, 77).expect("ids");
            let want = &golden.ids(&format!("ids.bert.{variant}.{text}"))[0];
            assert_eq!(&encoded.ids, want, "{variant} {text}: {prompt:?}");
        }
    }
}
