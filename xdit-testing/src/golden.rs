//! Golden cases: what the upstream Python computed from the same weights and inputs.
//!
//! They lie in `golden/` with the scripts that made them and a README that explains the keys.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData, bf16, f16};
use safetensors::tensor::{Metadata, TensorInfo, TensorView};
use safetensors::{Dtype, SafeTensors};
use xdit_core::checkpoint::Weights;
use xdit_core::ops::to_f32;

/// The folder of golden cases.
pub fn dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// A file of named tensors. Every method panics, with the key, where something is not as asked for.
pub struct Golden {
    path: PathBuf,
    bytes: Vec<u8>,
    // parsed once: a file of a thousand tensors has a long header
    metadata: Metadata,
    data_at: usize,
}

impl Golden {
    /// Reads `golden/<name>.golden.safetensors`.
    #[track_caller]
    pub fn open(name: &str) -> Self {
        let path = dir().join(format!("{name}.golden.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (header, metadata) =
            SafeTensors::read_metadata(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        // eight bytes say how long the header is
        Self { path, bytes, metadata, data_at: 8 + header }
    }

    /// All keys, sorted.
    #[track_caller]
    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<_> = self.metadata.tensors().into_keys().collect();
        keys.sort();
        keys
    }

    /// Whether there is such a key.
    #[track_caller]
    pub fn has(&self, key: &str) -> bool {
        self.metadata.info(key).is_some()
    }

    /// The dimensions at `key`.
    #[track_caller]
    pub fn dims(&self, key: &str) -> Vec<usize> {
        self.info(key).shape.clone()
    }

    /// The tensor at `key`, as f32 on the CPU, whatever number type the file has.
    #[track_caller]
    pub fn tensor<const D: usize>(&self, key: &str) -> Tensor<D> {
        self.tensor_on(key, &Device::flex())
    }

    /// As [`tensor`](Self::tensor), on a device of choice.
    #[track_caller]
    pub fn tensor_on<const D: usize>(&self, key: &str, device: &Device) -> Tensor<D> {
        let dims = self.dims(key);
        let dims = <[usize; D]>::try_from(dims.as_slice())
            .unwrap_or_else(|_| panic!("{}: {key} has shape {dims:?}, expected {D} dimensions", self.path.display()));
        let values: Vec<f32> = self.values(key).into_iter().map(|x| x as f32).collect();
        Tensor::from_data(TensorData::new(values, dims), device)
    }

    /// Row by row, the token ids of a `[batch, tokens]` tensor.
    #[track_caller]
    pub fn ids(&self, key: &str) -> Vec<Vec<u32>> {
        let dims = self.dims(key);
        let [_, tokens] = dims[..] else { panic!("{}: {key} has shape {dims:?}", self.path.display()) };
        self.values(key).chunks(tokens).map(|row| row.iter().map(|id| *id as u32).collect()).collect()
    }

    /// A number; a tensor of one element.
    #[track_caller]
    pub fn scalar(&self, key: &str) -> f64 {
        let values = self.values(key);
        assert_eq!(values.len(), 1, "{}: {key} is not one number", self.path.display());
        values[0]
    }

    /// All elements at `key` in row-major order.
    #[track_caller]
    pub fn values(&self, key: &str) -> Vec<f64> {
        fn each<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f64) -> Vec<f64> {
            bytes.chunks_exact(N).map(|x| f(x.try_into().expect("chunks of N"))).collect()
        }
        let info = self.info(key);
        let (start, end) = info.data_offsets;
        let bytes = &self.bytes[self.data_at + start..self.data_at + end];
        match info.dtype {
            Dtype::F64 => each(bytes, f64::from_le_bytes),
            Dtype::F32 => each(bytes, |x| f32::from_le_bytes(x).into()),
            Dtype::F16 => each(bytes, |x| f16::from_le_bytes(x).into()),
            Dtype::BF16 => each(bytes, |x| bf16::from_le_bytes(x).into()),
            Dtype::I64 => each(bytes, |x| i64::from_le_bytes(x) as f64),
            Dtype::I32 => each(bytes, |x| i32::from_le_bytes(x).into()),
            Dtype::U8 | Dtype::BOOL => each(bytes, |[x]: [u8; 1]| x.into()),
            other => panic!("{}: {key} is {other:?}", self.path.display()),
        }
    }

    #[track_caller]
    fn info(&self, key: &str) -> &TensorInfo {
        self.metadata.info(key).unwrap_or_else(|| {
            panic!("{}: no {key} among {}", self.path.display(), self.keys().join(", "));
        })
    }
}

/// A transformer of more blocks than the file has: block `i` has the weights of the file's block `order[i]`. It tells
/// nothing of the model upstream, but takes part in comparisons with itself.
///
/// # Panics
/// For weights other than f32.
pub fn with_blocks(weights: &Weights, order: &[usize]) -> Weights {
    const PREFIX: &str = "transformer_blocks.";
    let mut tensors = Vec::new();
    for name in weights.names() {
        let info = weights.info(name).expect("a name of its own");
        assert_eq!(info.dtype.name(), "F32", "{name}");
        let bytes = weights.bytes(name).expect("a name of its own");
        let view = TensorView::new(Dtype::F32, info.shape.to_vec(), bytes).expect("as it was read");
        let block = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.'));
        match block {
            None => tensors.push((name.to_owned(), view)),
            Some((number, rest)) => {
                let copies = (0..order.len()).filter(|i| order[*i].to_string() == number);
                tensors.extend(copies.map(|i| (format!("{PREFIX}{i}.{rest}"), view.clone())));
            }
        }
    }
    let file = safetensors::serialize(tensors, None).expect("tensors that fit");
    Weights::from_static(weights.component(), &[("more blocks".into(), file.leak())])
        .expect("a file that was just made")
}

/// Copies the folder `name` into `to`.
pub fn copy(name: &str, to: &Path) {
    copy_dir(&dir().join(name), to).expect("a copy of a folder");
}

fn copy_dir(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_dir(&entry.path(), &to)?,
            false => std::fs::write(&to, std::fs::read(entry.path())?)?,
        }
    }
    Ok(())
}

/// Puts `value` in the place of the first element of an f32 tensor of `component` in `folder`.
pub fn spoil(folder: &Path, component: &str, tensor: &str, value: f32) {
    let file = folder.join(component).join("diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&file).expect("a file of weights");
    let (header, metadata) = SafeTensors::read_metadata(&bytes).expect("a header");
    let at = 8 + header + metadata.info(tensor).expect("the tensor").data_offsets.0;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    std::fs::write(&file, bytes).expect("written weights");
}

/// `|got - want| / |want|` over all elements; infinite where an element of `got` is no number.
#[track_caller]
pub fn rel_l2<const D: usize>(got: Tensor<D>, want: Tensor<D>) -> f64 {
    assert_eq!(got.dims(), want.dims(), "shape, left as computed, right as it should be");
    let read = |x: Tensor<D>| to_f32(x).into_data().try_to_vec::<f32>().expect("f32");
    let square = |x: f32| f64::from(x) * f64::from(x);
    let (got, want) = (read(got), read(want));
    let error: f64 = got.iter().zip(&want).map(|(a, b)| square(a - b)).sum();
    let norm: f64 = want.iter().map(|x| square(*x)).sum();
    match (error / norm).sqrt() {
        _ if error == 0.0 => 0.0,
        relative if relative.is_nan() => f64::INFINITY,
        relative => relative,
    }
}

/// Panics if [`rel_l2`] is above `tolerance`; returns it otherwise.
#[track_caller]
pub fn assert_rel_l2<const D: usize>(got: Tensor<D>, want: Tensor<D>, tolerance: f64) -> f64 {
    let error = rel_l2(got, want);
    assert!(error <= tolerance, "relative L2 error {error:.2e} above {tolerance:.0e}");
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: [f32; 3]) -> Tensor<1> {
        Tensor::from_floats(values, &Device::flex())
    }

    #[test]
    fn relative_error_is_that_of_the_whole() {
        assert_eq!(rel_l2(row([0.0; 3]), row([0.0; 3])), 0.0);
        assert!((rel_l2(row([3.0, 0.0, 4.4]), row([3.0, 0.0, 4.0])) - 0.08).abs() < 1e-6);
        assert_eq!(rel_l2(row([f32::NAN, 0.0, 0.0]), row([1.0, 0.0, 0.0])), f64::INFINITY);
        assert_eq!(rel_l2(row([1.0, 0.0, 0.0]), row([0.0; 3])), f64::INFINITY);
    }

    #[test]
    #[should_panic(expected = "above 1e-4")]
    fn an_error_above_the_tolerance_panics() {
        assert_rel_l2(row([1.0, 2.0, 3.001]), row([1.0, 2.0, 3.0]), 1e-4);
    }
}
