//! From a file's bytes to a tensor's elements, in one pass into one new buffer.

use burn::tensor::{FloatDType, Shape, TensorData};
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::Dtype;

/// A part of a tensor that is cut along one dimension: `n` runs of `len` bytes, `stride` bytes apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Runs {
    pub first: usize,
    pub len: usize,
    pub stride: usize,
    pub n: usize,
}

/// Whether tensors of this dtype can be read as floats.
pub(super) fn is_float(from: Dtype) -> bool {
    matches!(from, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// The elements of `src` that `runs` selects, converted from `from` to `to`, of shape `shape`.
///
/// The product of `shape` is the number of elements that `runs` selects, and `is_float(from)` holds.
pub(super) fn convert(src: &[u8], from: Dtype, runs: Runs, to: FloatDType, shape: Shape) -> TensorData {
    let n = runs.len * runs.n / (from.bits() / 8);
    // Zeroed vectors of integers and floats come from the allocator untouched, so this is the only pass over them.
    match to {
        FloatDType::F32 | FloatDType::Flex32 => {
            let mut dst = vec![0f32; n];
            fill(&mut dst, src, from, runs, to_f32(from));
            TensorData::new(dst, shape)
        }
        FloatDType::F64 => {
            let mut dst = vec![0f64; n];
            fill(&mut dst, src, from, runs, to_f64(from));
            TensorData::new(dst, shape)
        }
        FloatDType::BF16 => {
            let mut dst = vec![0u16; n];
            fill(&mut dst, src, from, runs, to_bf16(from));
            TensorData::new(dst.reinterpret_into::<bf16>(), shape)
        }
        FloatDType::F16 => {
            let mut dst = vec![0u16; n];
            fill(&mut dst, src, from, runs, to_f16(from));
            TensorData::new(dst.reinterpret_into::<f16>(), shape)
        }
    }
}

/// Converts bytes into as many elements.
type Convert<T> = fn(&[u8], &mut [T]);

/// Runs `convert` over all of `dst` on the threads of rayon's pool.
fn fill<T: Send>(dst: &mut [T], src: &[u8], from: Dtype, runs: Runs, convert: Convert<T>) {
    /// Elements that are worth a task.
    const TASK: usize = 1 << 16;
    let size = from.bits() / 8;
    let run = runs.len / size;
    if run == 0 {
        return;
    }
    if runs.n == 1 {
        let src = &src[runs.first..runs.first + runs.len];
        dst.par_chunks_mut(TASK).zip(src.par_chunks(TASK * size)).for_each(|(dst, src)| convert(src, dst));
    } else {
        dst.par_chunks_mut(run).with_min_len(TASK.div_ceil(run)).enumerate().for_each(|(i, dst)| {
            let at = runs.first + i * runs.stride;
            convert(&src[at..at + runs.len], dst);
        });
    }
}

/// `dst[i] = each(src[i])`, with the elements of `src` as arrays of their bytes.
fn map<const SIZE: usize, T>(src: &[u8], dst: &mut [T], each: impl Fn([u8; SIZE]) -> T) {
    let (src, rest) = src.as_chunks::<SIZE>();
    debug_assert!(rest.is_empty() && src.len() == dst.len());
    for (dst, src) in dst.iter_mut().zip(src) {
        *dst = each(*src);
    }
}

/// Elements that go through the stack at a time, where `half` has a conversion of slices.
const BLOCK: usize = 512;

fn to_f32(from: Dtype) -> Convert<f32> {
    match from {
        Dtype::F32 => |src, dst| map(src, dst, f32::from_le_bytes),
        Dtype::BF16 => |src, dst| map(src, dst, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        Dtype::F16 => |src, dst| {
            // Through `half`'s slices, which use the processor's own instruction.
            let mut block = [f16::ZERO; BLOCK];
            for (src, dst) in src.chunks(2 * BLOCK).zip(dst.chunks_mut(BLOCK)) {
                let block = &mut block[..dst.len()];
                map(src, block, f16::from_le_bytes);
                block.convert_to_f32_slice(dst);
            }
        },
        Dtype::F64 => |src, dst| map(src, dst, |b| f64::from_le_bytes(b) as f32),
        other => unreachable!("{other} is no float"),
    }
}

fn to_f64(from: Dtype) -> Convert<f64> {
    match from {
        Dtype::F32 => |src, dst| map(src, dst, |b| f64::from(f32::from_le_bytes(b))),
        Dtype::BF16 => |src, dst| map(src, dst, |b| bf16::from_le_bytes(b).to_f64()),
        Dtype::F16 => |src, dst| map(src, dst, |b| f16::from_le_bytes(b).to_f64()),
        Dtype::F64 => |src, dst| map(src, dst, f64::from_le_bytes),
        other => unreachable!("{other} is no float"),
    }
}

/// The bits of bfloat16.
fn to_bf16(from: Dtype) -> Convert<u16> {
    match from {
        Dtype::F32 => |src, dst| map(src, dst, |b| bf16::from_f32(f32::from_le_bytes(b)).to_bits()),
        Dtype::BF16 => |src, dst| map(src, dst, u16::from_le_bytes),
        Dtype::F16 => |src, dst| map(src, dst, |b| bf16::from_f32(f16::from_le_bytes(b).to_f32()).to_bits()),
        Dtype::F64 => |src, dst| map(src, dst, |b| bf16::from_f64(f64::from_le_bytes(b)).to_bits()),
        other => unreachable!("{other} is no float"),
    }
}

/// The bits of IEEE half precision. What is too large for it becomes infinite.
fn to_f16(from: Dtype) -> Convert<u16> {
    fn through_f32<const SIZE: usize>(src: &[u8], dst: &mut [u16], each: impl Fn([u8; SIZE]) -> f32) {
        let mut block = [0f32; BLOCK];
        for (src, dst) in src.chunks(SIZE * BLOCK).zip(dst.chunks_mut(BLOCK)) {
            let block = &mut block[..dst.len()];
            map(src, block, &each);
            dst.reinterpret_cast_mut::<f16>().convert_from_f32_slice(block);
        }
    }
    match from {
        Dtype::F32 => |src, dst| through_f32(src, dst, f32::from_le_bytes),
        Dtype::BF16 => |src, dst| through_f32(src, dst, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F16 => |src, dst| map(src, dst, u16::from_le_bytes),
        Dtype::F64 => |src, dst| map(src, dst, |b| f16::from_f64(f64::from_le_bytes(b)).to_bits()),
        other => unreachable!("{other} is no float"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More than a block and not a multiple of it; all exact in bf16 and f16.
    fn values() -> Vec<f32> {
        (0..1500).map(|i| (i % 256) as f32 / 8.0 - 4.0).collect()
    }

    fn bytes(from: Dtype) -> Vec<u8> {
        let one = |x: f32| match from {
            Dtype::F64 => f64::from(x).to_le_bytes().to_vec(),
            Dtype::F32 => x.to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
            _ => bf16::from_f32(x).to_le_bytes().to_vec(),
        };
        values().into_iter().flat_map(one).collect()
    }

    #[test]
    fn every_pair_of_dtypes_keeps_exact_values() {
        for from in [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16] {
            // One byte in front: nothing in a file is aligned.
            let src = [vec![0], bytes(from)].concat();
            let runs = Runs { first: 1, len: src.len() - 1, stride: 0, n: 1 };
            for to in [FloatDType::F64, FloatDType::F32, FloatDType::F16, FloatDType::BF16] {
                let data = convert(&src, from, runs, to, [1500].into());
                assert_eq!(data.dtype(), to.into());
                let back = data.convert::<f32>();
                assert_eq!(back.as_slice::<f32>().unwrap(), values(), "{from} to {to:?}");
            }
        }
    }

    #[test]
    fn rounds_to_nearest_even_and_keeps_nan() {
        let src: Vec<u8> =
            [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::NAN, 1e30].iter().flat_map(|x| x.to_le_bytes()).collect();
        let runs = Runs { first: 0, len: 16, stride: 0, n: 1 };
        let read = |to| {
            let data = convert(&src, Dtype::F32, runs, to, [4].into()).convert::<f32>();
            data.as_slice::<f32>().unwrap().to_vec()
        };
        let in_bf16 = read(FloatDType::BF16);
        assert_eq!(in_bf16[..2], [1.0, 1.015625]);
        assert!(in_bf16[2].is_nan());
        assert_eq!(read(FloatDType::F16)[3], f32::INFINITY);
    }
}
