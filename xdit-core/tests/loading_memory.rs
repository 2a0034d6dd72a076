//! Loading a model must need the model's memory and no more. The only test of its process, so that the numbers are
//! its own.
#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use burn::tensor::{Device, FloatDType, Tensor};
use xdit_core::checkpoint::{Loader, Weights};
use xdit_core::ops::Linear;

const MIB: u64 = 1 << 20;
/// 24 MiB in f32, and 288 MiB for a model of `N_TENSORS`: large enough that one copy too many shows.
const SHAPE: [usize; 2] = [3 * 1024, 2 * 1024];
const N_TENSORS: usize = 12;

/// A line of `/proc/self/status` in bytes.
fn status(line: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let value = text.lines().find_map(|l| l.strip_prefix(line)).unwrap();
    let kib: u64 = value.trim_end_matches("kB").trim().parse().unwrap();
    kib * 1024
}

/// A checkpoint of `N_TENSORS` tensors of ones.
fn generate(path: &Path, dtype: &str, one: &[u8]) {
    let n = SHAPE[0] * SHAPE[1];
    let size = n * one.len();
    let entries: Vec<_> = (0..N_TENSORS)
        .map(|i| {
            let (start, end) = (i * size, (i + 1) * size);
            format!(r#""blocks.{i}.weight":{{"dtype":"{dtype}","shape":{SHAPE:?},"data_offsets":[{start},{end}]}}"#)
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut file = BufWriter::new(File::create(path).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let row = one.repeat(SHAPE[1]);
    for _ in 0..N_TENSORS * SHAPE[0] {
        file.write_all(&row).unwrap();
    }
    file.flush().unwrap();
}

#[test]
fn loading_needs_the_models_memory_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    for (from, one, to, size) in [
        ("BF16", &[0x80, 0x3f][..], FloatDType::F32, 4),
        ("F32", &[0, 0, 0x80, 0x3f], FloatDType::F32, 4),
        ("F32", &[0, 0, 0x80, 0x3f], FloatDType::BF16, 2),
        ("BF16", &[0x80, 0x3f], FloatDType::BF16, 2),
    ] {
        let path = dir.path().join(format!("{from}-{to:?}.safetensors"));
        generate(&path, from, one);
        let tensor = (SHAPE[0] * SHAPE[1]) as u64 * size;
        let model = tensor * N_TENSORS as u64;

        let before = status("RssAnon:");
        let (peak, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let started = Instant::now();
        let ((tensors, layers), n_bytes, after_open, file_pages) = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    peak.fetch_max(status("RssAnon:"), Relaxed);
                    std::thread::sleep(Duration::from_micros(200));
                }
            });
            let weights = Weights::open("transformer", std::slice::from_ref(&path)).unwrap();
            let after_open = status("RssAnon:");
            let file_before = status("RssFile:");
            let loader = Loader::new(&weights, &Device::flex(), to);
            let block = |i: usize| loader.pp("blocks").pp(i);
            let tensors: Vec<Tensor<2>> =
                (0..N_TENSORS / 2).map(|i| block(i).tensor("weight", SHAPE).unwrap()).collect();
            // dense layers keep their weights in an order of their own
            let layers: Vec<Linear> = (N_TENSORS / 2..N_TENSORS)
                .map(|i| Linear::load_no_bias(&block(i), SHAPE[1], SHAPE[0]).unwrap())
                .collect();
            loader.finish(&[]).unwrap();
            let file_pages = status("RssFile:").saturating_sub(file_before);
            peak.fetch_max(status("RssAnon:"), Relaxed);
            stop.store(true, Relaxed);
            ((tensors, layers), weights.n_bytes(), after_open, file_pages)
        });
        let peak = peak.load(Relaxed);
        println!(
            "{from} -> {to:?}: file {} MiB, model {} MiB, RssAnon before {} MiB, peak {} MiB, file pages left {} MiB, \
             {:.0} ms",
            n_bytes / MIB,
            model / MIB,
            before / MIB,
            peak / MIB,
            file_pages / MIB,
            started.elapsed().as_secs_f64() * 1e3,
        );
        let last = tensors.last().unwrap().clone().slice([0..1, 0..2]);
        assert_eq!(last.into_data().convert::<f32>().as_slice::<f32>().unwrap(), [1.0, 1.0]);
        drop((tensors, layers));

        // Opening reads headers only.
        assert!(after_open < before + 8 * MIB);
        // What a loader may add is a tensor and some slack for threads; a second copy of the model would be 144 MiB
        // or more.
        assert!(peak <= before + model + tensor + 32 * MIB, "peak of {peak} bytes");
        assert!(file_pages <= 32 * MIB, "{file_pages} bytes of the file stay resident");
        std::fs::remove_file(&path).unwrap();
    }
}
