//! Tensors from files into a GPU's memory: several threads read into pinned buffers, from which the device copies. They read
//! the file rather than its map, whose pages the process would take on one by one.

use std::io::{self, ErrorKind};
use std::path::Path;

use burn::tensor::{DType, FloatDType, Tensor};
use rayon::prelude::*;

use super::convert::Runs;
use super::error::shown;
use super::map::Bytes;
use super::{Dtype, LoadError};
use crate::cuda::CudaError;
use crate::cuda::raw::DeviceTensor;
use crate::cuda::staging::Staging;

/// Bytes that a thread reads at a time.
const PIECE: usize = 512 << 10;

/// Where a tensor's numbers are: those of `runs` in the tensor that begins `first` bytes into the file.
pub(super) struct Source<'a> {
    pub file: &'a Path,
    pub bytes: &'a Bytes,
    pub first: usize,
    pub dtype: Dtype,
    pub runs: Runs,
}

/// What can go wrong with a tensor.
enum Fault {
    Device(CudaError),
    Read(LoadError),
}

impl From<CudaError> for Fault {
    fn from(error: CudaError) -> Self {
        Self::Device(error)
    }
}

/// The tensor `name`, in `dtype`; `None` if the device cannot make it of the file's numbers.
pub(super) fn upload<const D: usize>(
    staging: &mut Staging,
    source: &Source<'_>,
    name: &str,
    dims: [usize; D],
    dtype: FloatDType,
) -> Result<Option<Tensor<D>>, LoadError> {
    let from = match source.dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        _ => return Ok(None),
    };
    if dims.contains(&0) {
        return Ok(None);
    }
    let fill = |at: usize, part: &mut [u8]| source.read(at, part).map_err(Fault::Read);
    match staging.upload(&dims, [from, dtype.into()], fill) {
        Ok(tensor) => Ok(tensor.map(DeviceTensor::tensor)),
        Err(Fault::Read(error)) => Err(error),
        Err(Fault::Device(error)) => Err(refused(source.file, name, error)),
    }
}

/// What is said of a tensor that the device does not take.
pub(super) fn refused(file: &Path, name: &str, source: CudaError) -> LoadError {
    LoadError::Device { file: file.into(), tensor: shown(name), source }
}

impl Source<'_> {
    /// Reads `part` of the numbers' bytes, from the one `at` on, by as many threads as there are.
    fn read(&self, at: usize, part: &mut [u8]) -> Result<(), LoadError> {
        let pieces = part.par_chunks_mut(PIECE).enumerate();
        pieces.try_for_each(|(i, piece)| self.read_piece(at + i * PIECE, piece))
    }

    fn read_piece(&self, mut at: usize, mut piece: &mut [u8]) -> Result<(), LoadError> {
        let Runs { first, len, stride, .. } = self.runs;
        // a run after the other
        while !piece.is_empty() {
            let (run, skip) = (at / len, at % len);
            let (part, rest) = piece.split_at_mut(piece.len().min(len - skip));
            let place = self.first + first + run * stride + skip;
            self.bytes.read_at(place, part).map_err(|error| self.unread(place + part.len(), error))?;
            (at, piece) = (at + part.len(), rest);
        }
        Ok(())
    }

    fn unread(&self, expected: usize, source: io::Error) -> LoadError {
        let file = self.file;
        match (source.kind(), std::fs::metadata(file)) {
            (ErrorKind::UnexpectedEof, Ok(found)) => {
                LoadError::Truncated { file: file.into(), len: found.len(), expected: expected as u64 }
            }
            _ => LoadError::Io { path: file.into(), source },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn bytes(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    /// As pieces of several threads, and from a cut of a tensor.
    #[test]
    fn what_is_read_is_what_the_file_has() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("m");
        let all = bytes(3 * PIECE);
        fs::write(&file, &all).expect("a file");
        let mapped = Bytes::open(&file).expect("a map");
        let source = |bytes, runs| Source { file: &file, bytes, first: 11, dtype: Dtype::BF16, runs };
        let fixed = Bytes::Static(all.clone().leak());
        for bytes in [&mapped, &fixed] {
            let runs = Runs { first: 0, len: 2 * PIECE + 6, stride: 0, n: 1 };
            let mut part = vec![0; 2 * PIECE];
            source(bytes, runs).read(4, &mut part).expect("bytes");
            assert!(part == all[15..15 + 2 * PIECE]);

            let runs = Runs { first: 3, len: 10, stride: 32, n: 4 };
            let mut part = vec![0; 25];
            source(bytes, runs).read(8, &mut part).expect("bytes");
            let want: Vec<u8> = (8..33).map(|i| all[11 + 3 + i / 10 * 32 + i % 10]).collect();
            assert_eq!(part, want);
        }
    }

    #[test]
    fn a_file_that_was_cut_meanwhile_is_an_error() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("m");
        fs::write(&file, bytes(100)).expect("a file");
        let mapped = Bytes::open(&file).expect("a map");
        fs::File::options().write(true).open(&file).and_then(|file| file.set_len(50)).expect("a shorter file");
        let runs = Runs { first: 0, len: 90, stride: 0, n: 1 };
        let source = Source { file: &file, bytes: &mapped, first: 10, dtype: Dtype::F32, runs };
        let error = source.read(0, &mut [0; 90]).expect_err("too few bytes");
        let expected =
            format!("{} is cut off: it has 50 bytes and its header speaks of 100; download it again", file.display());
        assert_eq!(error.to_string(), expected);
    }
}
