//! Token ids against transformers, from every form in which folders bring tokenizers.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
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
            assert_eq!(encoded.cut.is_some(), name == "long" || encoded.tokens.len() == limit, "{key} {name}");
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
    assert_eq!((encoded.ids.len(), encoded.tokens.len()), (6, 6));
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

/// What transformers refuses, and what is plain here all the same: tokens with flags but without `"__type"`, as its map
/// has them, and settings that are null where the class has a default.
const TAKEN: &[&str] = &[
    r#""pad_token":{"content":"[PAD]""#,
    r#""extra_special_tokens":["cat",{"content":"xyz""#,
    r#""added_tokens":"(delete)""#,
    r#""model_max_length":12.0"#,
    r#""do_lower_case":null"#,
    r#""tokenize_chinese_chars":null"#,
    r#""init_inputs":["x"]"#,
];

/// What transformers takes, and what is refused by name here: ends that are null, for which it puts fixed ids, and a
/// role's number where another file overrides it.
const REFUSED: &[&str] = &[r#""cls_token":null"#, r#""sep_token":null"#, r#""pad_token":3"#];

/// A copy of the golden tokenizer `base` with changed settings.
fn changed(base: &str, class: &str, files: &Map<String, Value>) -> (tempfile::TempDir, PipelineFolder) {
    let dir = tempfile::tempdir().expect("a folder");
    let at = dir.path().join("tokenizer");
    std::fs::create_dir(&at).expect("a folder");
    for entry in std::fs::read_dir(golden::dir().join(base)).expect(base) {
        let path = entry.expect(base).path();
        std::fs::copy(&path, at.join(path.file_name().expect("a name"))).expect("copied");
    }
    for (name, change) in files {
        let path = at.join(name);
        let Some(change) = change.as_object() else {
            std::fs::remove_file(&path).expect(name);
            continue;
        };
        let before = std::fs::read_to_string(&path).unwrap_or_else(|_| "{}".into());
        let mut keys: Map<String, Value> = serde_json::from_str(&before).expect(name);
        for (key, value) in change {
            match value.as_str() {
                Some("(delete)") => keys.remove(key),
                _ => keys.insert(key.clone(), value.clone()),
            };
        }
        std::fs::write(&path, Value::Object(keys).to_string()).expect("written");
    }
    let index = format!(r#"{{"_class_name": "X", "tokenizer": ["transformers", "{class}"]}}"#);
    std::fs::write(dir.path().join("model_index.json"), index).expect("written");
    let folder = PipelineFolder::open(Source::Dir(dir.path().into())).expect("a pipeline folder");
    (dir, folder)
}

/// Ids and masks of all prompts, and the most tokens of a text.
fn drawn(case: &Value, all: &Value) -> Result<Value, String> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let files = case["files"].as_object().expect("files");
    let (_dir, folder) = changed(&text(&case["base"]), &text(&case["class"]), files);
    let tokenizer = Tokenizer::open(&folder, "tokenizer").map_err(|e| e.to_string())?;
    let clip = case["class"] == "CLIPTokenizer";
    let model_max_length = if clip { tokenizer.model_max_length().map_err(|e| e.to_string())? } else { None };
    let (mut ids, mut mask) = (Map::new(), Map::new());
    for (name, prompt) in all["prompts"].as_object().expect("prompts") {
        let limit = all["max_length"].as_u64().expect("a length") as usize;
        let encoded = tokenizer.encode(&text(prompt), limit).map_err(|e| e.to_string())?;
        ids.insert(name.clone(), encoded.ids.clone().into());
        mask.insert(name.clone(), encoded.mask().iter().map(u32::to_string).collect::<String>().into());
    }
    Ok(serde_json::json!({ "model_max_length": model_max_length, "ids": ids, "mask": mask }))
}

#[test]
fn every_setting_of_the_files_is_followed_or_refused() {
    let json = std::fs::read_to_string(golden::dir().join("tokenizers.cases.json")).expect("cases");
    let all: Value = serde_json::from_str(&json).expect("cases");
    let mut wrong = Vec::new();
    let mut plain = BTreeMap::new();
    for case in all["cases"].as_array().expect("cases") {
        let (base, files) = (case["base"].to_string(), case["files"].to_string());
        let mut fail = |why: String| wrong.push(format!("{base} {files}: {why}"));
        let got = drawn(case, &all);
        if case["files"].as_object().expect("files").is_empty() {
            plain.insert(base.clone(), case);
        }
        match (got, case.get("refused")) {
            (Err(error), Some(_)) if error.contains('\n') => fail(format!("not one line: {error}")),
            (Err(_), Some(_)) => {}
            (Ok(_), Some(_)) if TAKEN.iter().any(|part| files.contains(part)) => {}
            (Ok(_), Some(why)) => fail(format!("taken, but transformers says {why}")),
            (Err(_), None) if REFUSED.iter().any(|part| files.contains(part)) => {}
            (Err(error), None) => fail(error),
            (Ok(got), None) => {
                let want = if case.get("as_base").is_some() { plain[&base] } else { case };
                for key in ["ids", "mask", "model_max_length"] {
                    if got[key] != want[key] && (key != "model_max_length" || case["class"] == "CLIPTokenizer") {
                        fail(format!("{key}: {} instead of {}", got[key], want[key]));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));
}
