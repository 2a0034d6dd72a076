//! Loading into an NVIDIA GPU's memory, and what is said where that is too small. Run by `.ci/gpu_tests` on a machine that
//! has one.
#![cfg(feature = "cuda")]

use std::path::PathBuf;

use burn::tensor::{DType, Device, FloatDType, Tensor};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use xdit_core::checkpoint::{LoadError, Loader, Weights};
use xdit_core::cuda::CudaError;
use xdit_core::cuda::staging::Staging;
use xdit_core::device;
use xdit_core::ops::{Activation, to_f32};

fn gpu() -> Device {
    Device::cuda(0)
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    to_f32(x).into_data().try_to_vec::<f32>().expect("f32")
}

/// Bytes in no order, none of which makes a NaN of 16 or 32 bits: those keep no payload where they are converted.
fn bytes(n: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    // the byte of the sign and of most of the exponent is every second or fourth
    (0..n).map(|i| if i % 2 == 1 { next() & 0xbf } else { next() }).collect()
}

/// Names, dtypes and shapes of two files: odd sizes, no dimension, and more than all buffers together hold.
const FILES: [&[(&str, Dtype, &[usize])]; 2] = [
    &[
        ("odd.half", Dtype::F16, &[3, 5, 7]),
        ("scale", Dtype::BF16, &[]),
        ("large", Dtype::BF16, &[4099, 10007]),
        ("bias", Dtype::F32, &[33]),
    ],
    &[
        ("large.half", Dtype::F16, &[3001, 8191]),
        ("large.single", Dtype::F32, &[2053, 6007]),
        ("one", Dtype::F16, &[1]),
        ("odd", Dtype::BF16, &[13, 1, 3]),
        ("double", Dtype::F64, &[9, 2]),
    ],
];

fn checkpoint(folder: &tempfile::TempDir) -> Weights {
    let mut paths: Vec<PathBuf> = Vec::new();
    for (i, tensors) in FILES.iter().enumerate() {
        let data: Vec<_> = tensors
            .iter()
            .enumerate()
            .map(|(j, (_, dtype, shape))| {
                let n = shape.iter().product::<usize>() * dtype.bitsize() / 8;
                bytes(n, (10 * i + j) as u64 * 77 + 5)
            })
            .collect();
        let views = tensors.iter().zip(&data).map(|((name, dtype, shape), data)| {
            (*name, TensorView::new(*dtype, shape.to_vec(), data).expect("as many bytes as the shape says"))
        });
        let path = folder.path().join(format!("m-{i}.safetensors"));
        serialize_to_file(views, None, &path).expect("a file");
        paths.push(path);
    }
    Weights::open("transformer", &paths).expect("a checkpoint")
}

/// All tensors as the loader gives them, flat.
fn load(weights: &Weights, device: &Device, dtype: FloatDType) -> Vec<(String, Tensor<1>)> {
    let loader = Loader::new(weights, device, dtype);
    let all = FILES.iter().copied().flatten();
    let tensor = |(name, _, shape): &(&str, Dtype, &[usize])| {
        let tensor = match **shape {
            [] => loader.tensor(name, [1]),
            [a] => loader.tensor(name, [a]),
            [a, b] => loader.tensor(name, [a, b]).map(|x: Tensor<2>| x.flatten(0, 1)),
            [a, b, c] => loader.tensor(name, [a, b, c]).map(|x: Tensor<3>| x.flatten(0, 2)),
            _ => unreachable!("no such shape above"),
        };
        (name.to_string(), tensor.expect("a tensor"))
    };
    all.map(tensor).collect()
}

#[test]
#[ignore = "needs a GPU"]
fn a_checkpoint_arrives_bit_by_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let weights = checkpoint(&folder);
    for dtype in [FloatDType::BF16, FloatDType::F16, FloatDType::F32] {
        let (there, here) = (load(&weights, &gpu(), dtype), load(&weights, &Device::flex(), dtype));
        for ((name, got), (_, want)) in there.into_iter().zip(here) {
            assert_eq!(got.dtype(), DType::from(dtype), "{name}");
            let got = got.try_into_data().expect("numbers");
            let as_stored = weights.info(&name).expect("a tensor").dtype.name() == format!("{dtype:?}");
            if as_stored {
                assert!(
                    got.as_bytes() == weights.bytes(&name).expect("bytes"),
                    "{name} as {dtype:?} is not the file's"
                );
            }
            assert!(got.as_bytes() == want.into_data().as_bytes(), "{name} as {dtype:?} is not the CPU's");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_part_of_a_tensor_is_that_of_the_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let weights = checkpoint(&folder);
    for dtype in [FloatDType::BF16, FloatDType::F16] {
        let of = |device: &Device, dim, range| {
            let loader = Loader::new(&weights, device, dtype);
            let part: Tensor<2> = loader.narrow("large", [4099, 10007], dim, range).expect("a part");
            part.into_data()
        };
        for (dim, range) in [(0, 17..4099), (1, 5..10001), (1, 10006..10007), (0, 3..3)] {
            let (got, want) = (of(&gpu(), dim, range.clone()), of(&Device::flex(), dim, range.clone()));
            assert!(got.as_bytes() == want.as_bytes(), "{range:?} of dimension {dim} as {dtype:?}");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_file_that_was_cut_meanwhile_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let weights = checkpoint(&folder);
    let cut = std::fs::File::options().write(true).open(&weights.files()[0]).expect("a file");
    cut.set_len(1 << 20).expect("a shorter file");
    let loader = Loader::new(&weights, &gpu(), FloatDType::BF16);
    let error = loader.tensor::<2>("large", [4099, 10007]).expect_err("too few bytes");
    assert!(matches!(error, LoadError::Truncated { len: 1_048_576, .. }), "{error}");
    // what is in another file comes
    loader.tensor::<3>("odd", [13, 1, 3]).expect("a tensor");
}

/// The first words of what is said of memory that is not there.
fn wanting(gib: &str) -> String {
    format!("cuda:0 is out of memory: {gib} GiB were asked for, ")
}

#[test]
#[ignore = "needs a GPU"]
fn a_tensor_that_finds_no_room_says_how_much_there_is() {
    let mut staging = Staging::new(&gpu(), 1 << 20).expect("buffers").expect("a CUDA device");
    let upload = staging.upload(&[1 << 40], [DType::BF16; 2], |_, _| Ok::<(), CudaError>(()));
    let error = upload.expect_err("two terabytes").to_string();
    assert!(error.starts_with(&wanting("2048.00")) && !error.contains('\n'), "{error}");
    let memory = device::memory(&gpu()).expect("a GPU tells");
    assert!(memory.free > 1 << 30 && memory.free < memory.total && memory.device == "cuda:0", "{memory:?}");
    assert!(error.contains(" are free; bf16 in place of f32"), "{error}");
    // and the next one that fits is served
    let small = staging.upload(&[3], [DType::F16; 2], |_, part| {
        part.copy_from_slice(&[0, 0x3c, 0, 0x40, 0, 0x42]);
        Ok::<(), CudaError>(())
    });
    let small = small.expect("room").expect("known precisions").tensor::<1>();
    assert_eq!(values(small), [1.0, 2.0, 3.0]);
}

#[test]
#[ignore = "needs a GPU"]
fn an_operation_that_finds_no_room_says_so_when_it_is_read() {
    let x = Tensor::<2>::ones([1, 128], (&gpu(), DType::BF16));
    let said = |x: Tensor<2>| device::failure(&gpu(), &x.try_into_data().expect_err("terabytes").to_string());
    // an operation of ours whose result is too large, then others that have none to work on
    let large = Activation::Silu.apply(x.clone().expand([1 << 30, 128]));
    let error = said(Activation::Silu.apply(large).slice([0..1, 0..128]) + x.clone());
    assert!(error.starts_with(&wanting("256.00")) && !error.contains('\n'), "{error}");
    // one of Burn's
    let large = Tensor::<2>::ones([1 << 30, 128], (&gpu(), DType::BF16));
    let error = said(large.slice([0..1, 0..128]) + x.clone());
    assert!(error.starts_with(&wanting("256.00")) && !error.contains('\n'), "{error}");
    // the device works on
    assert_eq!(values(x.clone() + x), [2.0; 128]);
}
