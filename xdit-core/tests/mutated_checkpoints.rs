//! Checkpoints and pipeline folders that are damaged or hostile: an error or a result, never a panic, and never an
//! allocation that a number in the file decides.
#![allow(unsafe_code)] // the counting allocator

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use burn::tensor::{Device, FloatDType};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use xdit_core::checkpoint::{Loader, Weights};
use xdit_core::folder::{PipelineFolder, Source};

/// The system's allocator, which counts what is in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = IN_USE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// All tests of this file together, in bytes. The files have a few hundred bytes.
const MAX_PEAK: usize = 64 << 20;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Tensors that the model below asks for.
fn checkpoint() -> Vec<u8> {
    let bytes: Vec<u8> = (0..48).collect();
    let views = [
        ("blocks.0.weight", TensorView::new(Dtype::F32, vec![2, 3], &bytes[..24]).unwrap()),
        ("blocks.0.bias", TensorView::new(Dtype::BF16, vec![2], &bytes[..4]).unwrap()),
        ("scale", TensorView::new(Dtype::F16, vec![], &bytes[..2]).unwrap()),
        ("ids", TensorView::new(Dtype::I64, vec![2], &bytes[..16]).unwrap()),
    ];
    let metadata = [("format".to_string(), "pt".to_string())];
    serialize(views, Some(metadata.into())).unwrap()
}

/// Opens and reads the checkpoint at `path` as a model would.
fn use_checkpoint(weights: &Weights) {
    let n: usize = weights.names().map(|name| weights.bytes(name).unwrap().len()).sum();
    assert_eq!(n as u64, weights.n_bytes());
    let _ = weights.n_params();
    for dtype in [FloatDType::F32, FloatDType::BF16] {
        let loader = Loader::new(weights, &Device::flex(), dtype);
        let block = loader.pp("blocks").pp(0);
        let results = [
            block.tensor::<2>("weight", [2, 3]).err(),
            block.tensor::<1>("bias", [2]).err(),
            block.narrow::<2>("weight", [2, 3], 1, 1..3).err(),
            loader.tensor::<1>("scale", [1]).err(),
            loader.tensor::<1>("ids", [2]).err(),
            loader.finish(&[]).err(),
        ];
        for error in results.into_iter().flatten() {
            one_line(&error);
        }
    }
}

/// Opens `bytes` as a file. What is accepted, the `safetensors` crate accepts too, with the same content.
fn check(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    std::fs::write(&path, bytes).unwrap();
    match Weights::open("vae", &[path]) {
        Err(error) => one_line(&error),
        Ok(weights) => {
            let theirs = SafeTensors::deserialize(bytes).expect("accepted here, refused there");
            assert_eq!(weights.names().len(), theirs.len());
            for (name, view) in theirs.iter() {
                assert_eq!(weights.bytes(name), Some(view.data()));
                assert_eq!(weights.info(name).unwrap().shape, view.shape());
            }
            use_checkpoint(&weights);
        }
    }
    assert!(PEAK.load(Relaxed) < MAX_PEAK);
}

fn one_line(error: &impl std::fmt::Display) {
    let message = error.to_string();
    assert!(!message.contains('\n') && message.len() < 4096 && !message.ends_with('.'), "{message}");
}

/// Numbers at which arithmetic goes wrong.
fn number() -> impl Strategy<Value = u64> {
    let special = [0, 1, 2, 3, 4, 6, 8, 24, 1 << 31, 1 << 32, 1 << 61, 1 << 62];
    let top = [u64::MAX, u64::MAX - 7, i64::MAX as u64, u32::MAX as u64];
    prop_oneof![
        4 => select([&special[..], &top[..]].concat()),
        1 => any::<u64>(),
        2 => 0..64u64,
    ]
}

/// A header's entry made of plausible and implausible parts.
fn entry() -> impl Strategy<Value = String> {
    let names = select(vec!["blocks.0.weight", "blocks.0.bias", "scale", "__metadata__", "x", ""]);
    let dtypes = select(vec!["F32", "BF16", "F16", "F64", "I64", "F4", "F6_E2M3", "f32", ""]);
    let shape = prop::collection::vec(number(), 0..5);
    (names, dtypes, shape, number(), number()).prop_map(|(name, dtype, shape, start, end)| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
    })
}

/// A header whose tensors do follow each other, with at most one thing wrong.
fn nearly_right() -> impl Strategy<Value = (String, usize)> {
    let tensor = (select(vec![("F32", 4), ("BF16", 2), ("U8", 1)]), prop::collection::vec(0..4usize, 0..3));
    (prop::collection::vec(tensor, 0..6), any::<Index>(), -1..2i64).prop_map(|(tensors, wrong, by)| {
        let wrong = if tensors.is_empty() { 0 } else { wrong.index(tensors.len()) };
        let mut at = 0;
        let entries: Vec<_> = tensors
            .iter()
            .enumerate()
            .map(|(i, ((dtype, size), shape))| {
                let start = at;
                at += size * shape.iter().product::<usize>();
                let end = at as i64 + if i == wrong { by } else { 0 };
                format!(r#""t{i}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
            })
            .collect();
        (format!("{{{}}}", entries.join(",")), at)
    })
}

fn with_header(len: u64, header: &[u8], n_data: usize) -> Vec<u8> {
    let mut bytes = len.to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.resize(bytes.len() + n_data, 1);
    bytes
}

#[test]
fn the_unchanged_checkpoint_is_accepted() {
    let weights = Weights::from_static("vae", &[("m".into(), checkpoint().leak())]).unwrap();
    assert_eq!(weights.names().len(), 4);
    use_checkpoint(&weights);
}

#[test]
fn a_long_header_of_a_short_file_costs_nothing() {
    let before = PEAK.load(Relaxed);
    for len in [99_999_999, 100_000_001, u64::MAX, u64::MAX - 7] {
        check(&with_header(len, b"{}", 100));
    }
    assert!(PEAK.load(Relaxed) < before.max(8 << 20));
}

#[test]
fn deep_and_wide_json_is_refused() {
    let wide = format!(r#"{{"x":{{"dtype":"F32","shape":[{}1],"data_offsets":[0,4]}}}}"#, "1,".repeat(1 << 20));
    for header in ["[".repeat(1 << 20), r#"{"a":"#.repeat(1 << 20), wide] {
        check(&with_header(header.len() as u64, header.as_bytes(), 4));
    }
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn flipped_bytes(flips in prop::collection::vec((any::<Index>(), any::<u8>()), 1..6), header_only: bool) {
        let mut bytes = checkpoint();
        let end = if header_only { 8 + bytes[0] as usize + 256 * bytes[1] as usize } else { bytes.len() };
        for (at, xor) in flips {
            bytes[at.index(end)] ^= xor;
        }
        check(&bytes);
    }

    #[test]
    fn cut_and_extended(keep in any::<Index>(), tail in prop::collection::vec(any::<u8>(), 0..40)) {
        let mut bytes = checkpoint();
        bytes.truncate(keep.index(bytes.len() + 1));
        bytes.extend(tail);
        check(&bytes);
    }

    #[test]
    fn made_up_headers(
        entries in prop::collection::vec(entry(), 0..4),
        len in prop::option::weighted(0.1, number()),
        n_data in 0..80usize,
    ) {
        let header = format!("{{{}}}", entries.join(","));
        check(&with_header(len.unwrap_or(header.len() as u64), header.as_bytes(), n_data));
    }

    #[test]
    fn nearly_right_headers((header, n_data) in nearly_right()) {
        let bytes = with_header(header.len() as u64, header.as_bytes(), n_data);
        check(&bytes);
        // The other way round: what the crate accepts is accepted here. No name stands twice in these.
        if SafeTensors::deserialize(&bytes).is_ok() {
            Weights::from_static("vae", &[("m".into(), bytes.leak())]).unwrap();
        }
    }
}

/// The JSON files of a pipeline folder with one sharded component.
const FILES: [(&str, &str); 3] = [
    (
        "model_index.json",
        r#"{"_class_name": "P", "_diffusers_version": "0.30", "flag": true, "none": [null, null], "vae": ["diffusers", "Vae"]}"#,
    ),
    (
        "vae/diffusion_pytorch_model.safetensors.index.json",
        r#"{"metadata": {"total_size": 46}, "weight_map": {"scale": "m.safetensors", "ids": "m.safetensors"}}"#,
    ),
    ("vae/config.json", r#"{"heads": 4, "channels": [1, 2, 3], "scale": 0.5, "name": null}"#),
];

#[derive(serde::Deserialize)]
#[allow(dead_code)]
struct Config {
    heads: usize,
    channels: Vec<usize>,
    scale: f64,
    name: Option<String>,
}

/// Opens and reads a folder of `FILES` of which one has the content `changed`.
fn check_folder(which: usize, changed: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, bytes: &[u8]| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    for (i, (path, text)) in FILES.iter().enumerate() {
        write(path, if i == which { changed } else { text.as_bytes() });
    }
    write("vae/m.safetensors", &checkpoint());
    open_folder(dir.path());
    assert!(PEAK.load(Relaxed) < MAX_PEAK);
}

fn open_folder(root: &Path) {
    let folder = match PipelineFolder::open(Source::Dir(root.into())) {
        Err(error) => return one_line(&error),
        Ok(folder) => folder,
    };
    let components = folder.components().map(|c| c.name.clone());
    for name in components.chain(["vae".to_string()]) {
        for variant in [None, Some("fp16")] {
            match folder.weights(&name, variant) {
                Err(error) => one_line(&error),
                Ok(weights) => use_checkpoint(&weights),
            }
        }
        if let Err(error) = folder.config::<Config>(&name, "config.json") {
            one_line(&error);
        }
    }
}

proptest! {
    #![proptest_config(config(1000))]

    #[test]
    fn folders_with_flipped_bytes(
        which in 0..FILES.len(),
        flips in prop::collection::vec((any::<Index>(), any::<u8>()), 0..4),
        keep in prop::option::weighted(0.2, any::<Index>()),
    ) {
        let mut bytes = FILES[which].1.as_bytes().to_vec();
        for (at, xor) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= xor;
        }
        if let Some(keep) = keep {
            bytes.truncate(keep.index(bytes.len()));
        }
        check_folder(which, &bytes);
    }

    #[test]
    fn folders_with_exchanged_values(which in 0..FILES.len(), at in any::<Index>(), value in select(vec![
        "null", "[]", "{}", "-1", "1e999", "18446744073709551616", "\"\"", "\"..\"", "\"../m.safetensors\"",
        "\"/m.safetensors\"", "\"a\\u0000.safetensors\"", "\"\\n\"", "[null, null]", "[\"\", \"\"]", "[1, 2]",
        "[\"diffusers\", null]", "[[[[[[]]]]]]", "true", "\"vae\"", "\"\\ud800\"",
    ])) {
        // Tokens are what stands between spaces here: a value, or a key and its colon.
        let mut tokens: Vec<_> = FILES[which].1.split(' ').collect();
        let at = at.index(tokens.len());
        let tail = tokens[at].trim_start_matches(|c| !matches!(c, ',' | ':' | '}' | ']'));
        let changed = format!("{value}{tail}");
        tokens[at] = &changed;
        check_folder(which, tokens.join(" ").as_bytes());
    }
}
