//! Numbers out of all measure in a folder's configurations: each gives a picture or one line, never a panic, an abort or
//! minutes of silence. `PROPTEST_CASES` asks for more of them.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use burn::tensor::FloatDType;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use xdit_models::pipeline::{ModelSource, Options, Pipeline, PipelineError, Request};
use xdit_testing::golden;

const FOLDERS: &[&str] = &[
    "flux-dev",
    "flux-schnell",
    "sd3",
    "sd35",
    "hunyuan-v11",
    "hunyuan-v12",
    "pixart-256",
    "pixart-alpha",
    "pixart-sigma",
    "../../xdit-models/tiny-flux",
];

/// Far beyond what a tiny model takes on a busy machine: only a hang reaches it.
const HANG: Duration = Duration::from_secs(120);

/// A place in a configuration.
#[derive(Debug, Clone)]
struct Site {
    file: String,
    at: Vec<String>,
}

/// Configurations of a folder, below it.
fn files(dir: &Path) -> Vec<String> {
    let mut all = vec![];
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        if !path.is_dir() {
            all.extend(Some(name(&path)).filter(|file| file == "xdit.json"));
            continue;
        }
        for file in std::fs::read_dir(&path).expect("a folder") {
            let file = name(&file.expect("an entry").path());
            if file == "config.json" || file.ends_with("_config.json") || file == "special_tokens_map.json" {
                all.push(format!("{}/{file}", name(&path)));
            }
        }
    }
    all.sort();
    all
}

/// A configuration. Python writes infinities by name.
fn json_of(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("text");
    serde_json::from_str(&text.replace("Infinity", "1e308")).expect("JSON")
}

/// Every number, text, switch and list of a configuration, but for the long tables of tokens.
fn sites(file: &str, value: &Value, at: &mut Vec<String>, all: &mut Vec<Site>) {
    if !at.is_empty() {
        all.push(Site { file: file.into(), at: at.clone() });
    }
    let entries: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(list) => list.iter().enumerate().map(|(i, value)| (i.to_string(), value)).collect(),
        _ => return,
    };
    for (key, value) in entries.into_iter().filter(|(key, _)| !key.starts_with('_')).take(40) {
        at.push(key);
        sites(file, value, at, all);
        at.pop();
    }
}

fn place<'a>(value: &'a mut Value, at: &[String]) -> &'a mut Value {
    at.iter().fold(value, |value, key| match value {
        Value::Array(list) => &mut list[key.parse::<usize>().expect("a number")],
        other => &mut other[key.as_str()],
    })
}

/// What takes the place of a value.
fn mutations(value: &Value) -> Vec<Value> {
    let mut all = vec![
        json!(0),
        json!(1),
        json!(2),
        json!(3),
        json!(7),
        json!(64),
        json!(-1),
        json!(1_u64 << 31),
        json!(1_000_000_000),
        json!(1_u64 << 53),
        json!(1_u64 << 62),
        json!(u64::MAX),
        json!(1e308),
        json!(-1e308),
        json!(0.5),
        json!(1e-300),
        json!(null),
        json!("x"),
        json!(true),
        json!([]),
        json!({}),
    ];
    if let Some(n) = value.as_u64() {
        all.extend([n.saturating_mul(2), n / 2, n.saturating_add(1), n.saturating_sub(1)].map(|n| json!(n)));
    }
    if let Value::Array(list) = value {
        all.push(json!([list]));
        all.push(list.iter().chain(list).cloned().collect());
        all.push(list.iter().skip(1).cloned().collect());
        all.push(vec![list.first().cloned().unwrap_or(json!(1)); 100_000].into());
    }
    all.retain(|new| new != value);
    all
}

/// A copy of a golden folder, of links where the system has them.
fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let to = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            std::fs::create_dir_all(&to).expect("a folder");
            copy(&path, &to);
        } else {
            #[cfg(unix)]
            std::os::unix::fs::symlink(path.canonicalize().expect("a path"), &to).expect("a link");
            #[cfg(not(unix))]
            std::fs::copy(&path, &to).expect("a copy");
        }
    }
}

/// Opens, plans and draws one step of a small picture.
fn draw(dir: PathBuf, side: usize) -> Result<(), PipelineError> {
    let source = ModelSource::Folder(dir);
    let mut pipeline = Pipeline::open(&source, Options::new(FloatDType::F32), xdit_comm::local::world, &mut ())?;
    let request = Request {
        height: Some(side),
        width: Some(side),
        num_inference_steps: Some(1),
        resolution_binning: false,
        max_sequence_length: Some(16),
        ..Request::new("a red cat")
    };
    // the model's own size is planned only
    pipeline.plan(&Request { height: None, width: None, resolution_binning: true, ..request.clone() })?;
    pipeline.generate(&request, &mut ()).map(|_| ())
}

/// What is wrong with how it ended.
fn ended(dir: &Path, side: usize) -> Result<(), String> {
    let (send, receive) = mpsc::channel();
    let dir = dir.to_owned();
    let thread = std::thread::spawn(move || send.send(draw(dir, side)));
    match receive.recv_timeout(HANG) {
        Ok(Ok(())) => Ok(()),
        // what a panic in a rank's thread looks like from outside
        Ok(Err(error @ PipelineError::LostRank { .. })) => Err(error.to_string()),
        Ok(Err(error)) => {
            let message = error.to_string();
            match message.contains('\n') || message.is_empty() || message.len() > 1000 {
                true => Err(format!("not one line: {message}")),
                false => Ok(()),
            }
        }
        Err(mpsc::RecvTimeoutError::Timeout) => Err("it hangs".into()),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            let panic = thread.join().expect_err("a panic");
            let text = panic.downcast_ref::<String>().cloned();
            Err(format!("a panic: {}", text.unwrap_or_else(|| "of another kind".into())))
        }
    }
}

/// Changes one place of one folder.
fn check(folder: usize, site: prop::sample::Index, change: prop::sample::Index) -> Result<(), String> {
    let from = golden::dir().join(FOLDERS[folder]);
    let mut all = Vec::new();
    for file in files(&from) {
        sites(&file, &json_of(&from.join(&file)), &mut Vec::new(), &mut all);
    }
    // tokenizers' files have the most places and the fewest numbers
    let (tokens, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|site| site.file.contains("token"));
    let pool = if site.index(5) == 0 { tokens } else { others };
    let Site { file, at } = site.get(&pool).clone();
    let mut config = json_of(&from.join(&file));
    let value = place(&mut config, &at);
    let new = change.get(&mutations(value)).clone();
    *value = new.clone();

    let dir = tempfile::tempdir().expect("a folder");
    copy(&from, dir.path());
    std::fs::remove_file(dir.path().join(&file)).expect("a file");
    std::fs::write(dir.path().join(&file), config.to_string()).expect("written");
    let side = if FOLDERS[folder].contains("pixart") || FOLDERS[folder].contains("hunyuan") { 64 } else { 32 };
    ended(dir.path(), side).map_err(|why| {
        let shown: String = new.to_string().chars().take(60).collect();
        format!("{} {file} {} = {shown}: {why}", FOLDERS[folder], at.join("."))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 0, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_configuration_gives_a_picture_or_one_line(
        folder in 0..FOLDERS.len(),
        site in any::<prop::sample::Index>(),
        change in any::<prop::sample::Index>(),
    ) {
        check(folder, site, change).map_err(TestCaseError::fail)?;
    }
}

/// Keys that the property test cannot hit often: as many of them at once as a folder can have.
#[test]
fn what_was_found_stays_found() {
    let found: &[(&str, &str, &[&str], Value)] = &[
        ("flux-dev", "transformer/config.json", &["num_layers"], json!(1_000_000_000)),
        ("flux-dev", "transformer/config.json", &["num_attention_heads"], json!(1_u64 << 62)),
        ("flux-dev", "transformer/config.json", &["axes_dims_rope"], json!([1_u64 << 63, 1_u64 << 63, 2])),
        ("flux-dev", "text_encoder/config.json", &["num_hidden_layers"], json!(1_000_000_000)),
        ("flux-dev", "text_encoder_2/config.json", &["num_layers"], json!(1_000_000_000)),
        ("flux-dev", "text_encoder_2/config.json", &["d_model"], json!(96)),
        ("flux-dev", "vae/config.json", &["latent_channels"], json!(8)),
        ("flux-dev", "vae/config.json", &["layers_per_block"], json!(1_000_000_000)),
        ("flux-dev", "vae/config.json", &["out_channels"], json!(4)),
        ("sd3", "transformer/config.json", &["patch_size"], json!(1_u64 << 33)),
        ("sd3", "transformer/config.json", &["sample_size"], json!(u64::MAX)),
        ("sd3", "transformer/config.json", &["in_channels"], json!(1_u64 << 40)),
        ("hunyuan-v11", "transformer/config.json", &["text_len"], json!(4096)),
        ("hunyuan-v11", "transformer/config.json", &["num_layers"], json!(0)),
        ("pixart-256", "transformer/config.json", &["interpolation_scale"], json!(0)),
        ("pixart-256", "scheduler/scheduler_config.json", &["num_train_timesteps"], json!(1_u64 << 62)),
    ];
    for (folder, file, at, new) in found {
        let from = golden::dir().join(folder);
        let mut config = json_of(&from.join(file));
        let (last, before) = at.split_last().expect("a key");
        let before: Vec<String> = before.iter().map(|key| (*key).into()).collect();
        let map: &mut Map<String, Value> = place(&mut config, &before).as_object_mut().expect("an object");
        map.insert((*last).into(), new.clone());
        let dir = tempfile::tempdir().expect("a folder");
        copy(&from, dir.path());
        std::fs::remove_file(dir.path().join(file)).expect("a file");
        std::fs::write(dir.path().join(file), config.to_string()).expect("written");
        let error = draw(dir.path().into(), 32).expect_err("refused").to_string();
        assert!(error.len() < 400 && !error.contains("rank"), "{folder} {file} {at:?} = {new}: {error}");
        println!("{folder} {file} {at:?} = {new}: {error}");
    }
}

/// Sizes at which upstream's scheduler yields NaN, and ones for which there is no memory.
#[test]
fn a_size_that_cannot_be_drawn_is_named() {
    for (source, expected) in [
        (ModelSource::Builtin, "image tokens are too many"),
        (ModelSource::Folder(golden::dir().join("flux-dev")), "image tokens are too many"),
    ] {
        let options = Options::new(FloatDType::F32);
        let mut pipeline = Pipeline::open(&source, options, xdit_comm::local::world, &mut ()).expect("a pipeline");
        let request = Request { height: Some(16_384), width: Some(16_384), ..Request::new("a cat") };
        let error = pipeline.generate(&request, &mut ()).expect_err("too large").to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// As diffusers does.
#[test]
fn an_empty_prompt_is_drawn() {
    let source = ModelSource::Folder(golden::dir().join("flux-dev"));
    let options = Options::new(FloatDType::F32);
    let mut pipeline = Pipeline::open(&source, options, xdit_comm::local::world, &mut ()).expect("a pipeline");
    for prompt in ["", " \t "] {
        let request = Request {
            height: Some(32),
            width: Some(32),
            num_inference_steps: Some(1),
            max_sequence_length: Some(16),
            ..Request::new(prompt)
        };
        pipeline.generate(&request, &mut ()).expect("a picture");
    }
}

/// Settings of one file that another component cannot follow.
#[test]
fn components_that_do_not_fit_name_what_differs() {
    let said = |folder: &str, file: &str, key: &str, value: Value| {
        let from = golden::dir().join(folder);
        let mut config = json_of(&from.join(file));
        config[key] = value;
        let dir = tempfile::tempdir().expect("a folder");
        copy(&from, dir.path());
        std::fs::remove_file(dir.path().join(file)).expect("a file");
        std::fs::write(dir.path().join(file), config.to_string()).expect("written");
        draw(dir.path().into(), 32).map_err(|e| e.to_string())
    };
    // a token with the id 814 or so, where the table ends there
    let error = said("flux-dev", "tokenizer/tokenizer_config.json", "pad_token", json!("[PAD]")).expect_err("no entry");
    assert!(error.contains("tokenizer: token \"[PAD]\" has the id") && error.contains("entries"), "{error}");
    let long =
        said("flux-dev", "tokenizer/tokenizer_config.json", "model_max_length", json!(500)).expect_err("too long");
    assert!(long.contains("model_max_length of the tokenizer is 500"), "{long}");
    said("flux-dev", "tokenizer/tokenizer_config.json", "model_max_length", json!(10)).expect("a picture");
    said("sd3", "tokenizer/tokenizer_config.json", "model_max_length", json!(10)).expect("a picture");
}
