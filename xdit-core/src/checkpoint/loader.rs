use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::Range;
use std::rc::Rc;

use burn::tensor::{DType, Device, FloatDType, Shape, Tensor};

use super::convert::{Runs, convert, is_float};
use super::drawn::normal;
use super::error::shown;
#[cfg(feature = "cuda")]
use super::header::Place;
use super::quantization::Quantization;
#[cfg(feature = "cuda")]
use super::upload;
use super::weights::Stored;
use super::{LoadError, Weights};
#[cfg(feature = "cuda")]
use crate::cuda::staging::Staging;

/// Reads a model's tensors by name, in the dtype that the model computes in.
///
/// A loader is a place in the tree of names: [`pp`](Self::pp) goes deeper, and all loaders that come from one share
/// what has been read. Each rank uses its own, over shared [`Weights`], and reads only what it asks for.
///
/// A tensor that is not there does not stop the model from being built: its place is taken by zeros that need no
/// memory, and [`finish`](Self::finish) reports all that are missing at once. So a model made with a loader must not
/// be used before `finish` has returned `Ok`.
#[derive(Clone)]
pub struct Loader<'a> {
    origin: Origin<'a>,
    device: Device,
    dtype: FloatDType,
    prefix: String,
    dry: bool,
    quantization: Option<Quantization>,
    progress: Option<&'a dyn Fn(u64)>,
    record: Rc<RefCell<Record<'a>>>,
}

/// Where tensors come from.
#[derive(Clone, Copy)]
enum Origin<'a> {
    Files(&'a Weights),
    /// From nowhere: a component's tensors are random numbers. The name is the component's.
    Drawn(&'a str),
}

/// What has been asked for so far.
#[derive(Default)]
struct Record<'a> {
    read: BTreeSet<&'a str>,
    missing: BTreeSet<String>,
    // the whole tensor's shape, by name
    asked: BTreeMap<String, Vec<usize>>,
    bytes: u64,
    resident: u64,
    largest: u64,
    // made for the first tensor; `None` on another device
    #[cfg(feature = "cuda")]
    staging: Option<Option<Staging>>,
}

/// What loading a component came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadReport {
    /// The component, `"transformer"`.
    pub component: String,
    /// Tensors read.
    pub tensors: usize,
    /// Bytes read from the files.
    pub bytes: u64,
    /// Bytes in memory, in the dtypes that were asked for.
    pub resident: u64,
    /// Those of the largest tensor as it is read. A dense layer holds it twice while it puts its weight in order.
    pub largest: u64,
    /// Tensors of the checkpoint that nobody asked for, sorted.
    pub unused: Vec<String>,
}

impl<'a> Loader<'a> {
    /// A loader at the root of `weights` that puts tensors of `dtype` on `device`.
    pub fn new(weights: &'a Weights, device: &Device, dtype: FloatDType) -> Self {
        Self::of(Origin::Files(weights), device, dtype)
    }

    /// A loader for a model without a checkpoint: every tensor that is asked for is there and is drawn on the device, the
    /// same for the same name; see [`finish`](Self::finish) for what it came to. For measurements: what such a model
    /// draws means nothing.
    pub fn drawn(component: &'a str, device: &Device, dtype: FloatDType) -> Self {
        Self::of(Origin::Drawn(component), device, dtype)
    }

    fn of(origin: Origin<'a>, device: &Device, dtype: FloatDType) -> Self {
        Self {
            origin,
            device: device.clone(),
            dtype,
            prefix: String::new(),
            dry: false,
            quantization: None,
            progress: None,
            record: Rc::default(),
        }
    }

    /// Checks names, shapes and dtypes, and counts as if it read: tensors are zeros that need no memory. The model built
    /// is not to be used; [`finish`](Self::finish) tells what it would come to.
    pub fn dry(self) -> Self {
        Self { dry: true, ..self }
    }

    /// Dense layers inside blocks are to be kept so, or none any more.
    pub fn quantised(self, quantization: Option<Quantization>) -> Self {
        Self { quantization, ..self }
    }

    /// Calls `progress` after each tensor with the bytes read so far, counted as they are in the files; all of them
    /// together are [`Weights::n_bytes`].
    pub fn with_progress(mut self, progress: &'a dyn Fn(u64)) -> Self {
        self.progress = Some(progress);
        self
    }

    /// The loader of the names below `name`: `pp("blocks").pp(3)` reads `blocks.3.*`.
    pub fn pp(&self, name: impl Display) -> Self {
        Self { prefix: self.full_name(name), ..self.clone() }
    }

    /// The same place, read as f32 whatever the model computes in: for norms and tables that need the precision.
    pub fn f32(&self) -> Self {
        Self { dtype: FloatDType::F32, ..self.clone() }
    }

    /// The device that tensors are put on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The dtype that tensors are read as.
    pub fn dtype(&self) -> FloatDType {
        self.dtype
    }

    /// The name of this place, `"blocks.3"`; empty at the root.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether the checkpoint has the tensor `name` here. Asking does not count as reading.
    pub fn has(&self, name: &str) -> bool {
        match self.origin {
            Origin::Files(weights) => weights.info(&self.full_name(name)).is_some(),
            Origin::Drawn(_) => true,
        }
    }

    /// Reads the tensor `name` of shape `shape`. If it is missing, gives zeros and notes it for
    /// [`finish`](Self::finish). A tensor of no dimensions is read as shape `[1]`.
    ///
    /// # Errors
    ///
    /// Fails if the file's tensor has another shape, or is not of a float dtype of 16 bits or more.
    pub fn tensor<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Tensor<D>, LoadError> {
        self.read(name, shape, 0, 0..shape[0])
    }

    /// Reads the tensor `weight`, that of a dense layer, and says how to keep it. It is counted as it is kept.
    ///
    /// # Errors
    ///
    /// As [`tensor`](Self::tensor).
    pub fn matrix(&self, shape: [usize; 2]) -> Result<(Tensor<2>, Option<Quantization>), LoadError> {
        let weight = self.tensor("weight", shape)?;
        // checkpoints have every block below a name such as `transformer_blocks.3`
        let in_block = self.prefix.split('.').any(|part| part.ends_with("blocks"));
        let quantization = self.quantization.filter(|kind| in_block && kind.serves(shape));
        if let Some(kind) = quantization.filter(|_| self.has("weight")) {
            let mut record = self.record.borrow_mut();
            record.resident = record.resident - self.resident(&shape) + kind.bytes(shape);
        }
        Ok((weight, quantization.filter(|_| !self.dry)))
    }

    /// Reads the part `range` along dimension `dim` of the tensor `name`, whose whole shape is `shape`. Only the
    /// bytes of that part are read.
    ///
    /// # Errors
    ///
    /// As [`tensor`](Self::tensor).
    ///
    /// # Panics
    ///
    /// Panics if `dim` or `range` lies outside `shape`.
    pub fn narrow<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        dim: usize,
        range: Range<usize>,
    ) -> Result<Tensor<D>, LoadError> {
        assert!(
            dim < D && range.start <= range.end && range.end <= shape[dim],
            "{range:?} of dimension {dim} lies outside {shape:?}"
        );
        self.read(name, shape, dim, range)
    }

    /// The number of parameters of a model that has been built: the elements of all tensors that were asked for,
    /// whether the checkpoint has them or not.
    pub fn n_params(&self) -> u64 {
        self.record.borrow().asked.values().map(|shape| shape.iter().map(|n| *n as u64).product::<u64>()).sum()
    }

    /// The names and whole shapes of all tensors that were asked for, whether the checkpoint has them or not.
    pub fn asked(&self) -> Vec<(String, Vec<usize>)> {
        self.record.borrow().asked.clone().into_iter().collect()
    }

    /// Ends loading. Tensors that nobody asked for are no error but listed, except those whose name contains one of
    /// `ignore`.
    ///
    /// # Errors
    ///
    /// Fails with [`LoadError::Missing`] if any tensor was asked for that the checkpoint has not.
    pub fn finish(&self, ignore: &[&str]) -> Result<LoadReport, LoadError> {
        /// Enough to see what is wrong; a wrong prefix makes all of them missing.
        const N_NAMES: usize = 8;
        let record = self.record.borrow();
        let report = |component: &str, tensors, unused| LoadReport {
            component: component.into(),
            tensors,
            bytes: record.bytes,
            resident: record.resident,
            largest: record.largest,
            unused,
        };
        let weights = match self.origin {
            Origin::Files(weights) => weights,
            Origin::Drawn(component) => return Ok(report(component, record.asked.len(), Vec::new())),
        };
        if !record.missing.is_empty() {
            return Err(LoadError::Missing {
                component: weights.component().into(),
                names: record.missing.iter().take(N_NAMES).cloned().collect(),
                n: record.missing.len(),
            });
        }
        let unused = weights
            .names()
            .filter(|name| !record.read.contains(name) && !ignore.iter().any(|part| name.contains(part)));
        Ok(report(weights.component(), record.read.len(), unused.map(String::from).collect()))
    }

    fn full_name(&self, name: impl Display) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    fn read<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        dim: usize,
        range: Range<usize>,
    ) -> Result<Tensor<D>, LoadError> {
        let mut part = shape;
        part[dim] = range.len();
        let name = self.full_name(name);
        self.record.borrow_mut().asked.insert(name.clone(), shape.into());
        let weights = match self.origin {
            Origin::Files(weights) => weights,
            Origin::Drawn(_) => return Ok(self.draw(&name, part)),
        };
        let Some((name, stored)) = weights.stored(&name) else {
            self.record.borrow_mut().missing.insert(name);
            return Ok(self.placeholder(part));
        };
        self.check(weights, name, stored, &shape)?;

        let place = &stored.place;
        let runs = runs(&shape, dim, range, place.dtype.bits() / 8);
        self.record.borrow_mut().read.insert(name);
        let done = self.note((runs.n * runs.len) as u64, self.resident(&part));
        if self.dry {
            return Ok(self.placeholder(part));
        }
        let bytes = weights.bytes_of(stored);
        // From the first to the last byte that is needed; runs of a column cut have the others' bytes between them.
        let at = place.range.start;
        let span = match runs.n {
            0 => at..at,
            n => at + runs.first..at + runs.first + (n - 1) * runs.stride + runs.len,
        };
        bytes.will_need(span.clone());
        #[cfg(feature = "cuda")]
        if let Some(tensor) = self.upload(weights, name, stored, runs, part)? {
            self.tell(done);
            return Ok(tensor);
        }
        let src = &bytes.as_slice()[place.range.clone()];
        let data = convert(src, place.dtype, runs, self.dtype, Shape::from(part));
        bytes.done_with(span);

        self.tell(done);
        Ok(Tensor::from_data(data, (&self.device, DType::from(self.dtype))))
    }

    /// The tensor in a GPU's memory, if that is where it belongs and the device can convert it.
    #[cfg(feature = "cuda")]
    fn upload<const D: usize>(
        &self,
        weights: &'a Weights,
        name: &str,
        stored: &Stored,
        runs: Runs,
        part: [usize; D],
    ) -> Result<Option<Tensor<D>>, LoadError> {
        let file = weights.file_of(stored);
        let mut record = self.record.borrow_mut();
        if record.staging.is_none() {
            let staging = Staging::new(&self.device, weights.n_bytes());
            record.staging = Some(staging.map_err(|error| upload::refused(file, name, error))?);
        }
        let Some(Some(staging)) = &mut record.staging else { return Ok(None) };
        let Place { dtype, range, .. } = &stored.place;
        let source = upload::Source { file, bytes: weights.bytes_of(stored), first: range.start, dtype: *dtype, runs };
        upload::upload(staging, &source, name, part, self.dtype)
    }

    /// A tensor without a file, whose bytes count as if they had been read.
    fn draw<const D: usize>(&self, name: &str, shape: [usize; D]) -> Tensor<D> {
        let bytes = self.resident(&shape);
        let done = self.note(bytes, bytes);
        if self.dry {
            return self.placeholder(shape);
        }
        let tensor = normal(name, shape, &self.device, self.dtype);
        self.tell(done);
        tensor
    }

    fn tell(&self, done: u64) {
        if let Some(progress) = self.progress {
            progress(done);
        }
    }

    /// Bytes in memory of a tensor of this shape.
    fn resident(&self, shape: &[usize]) -> u64 {
        (shape.iter().product::<usize>() * DType::from(self.dtype).size()) as u64
    }

    /// Counts a tensor; returns the bytes read of all so far.
    fn note(&self, bytes: u64, resident: u64) -> u64 {
        let mut record = self.record.borrow_mut();
        record.bytes += bytes;
        record.resident += resident;
        record.largest = record.largest.max(resident);
        record.bytes
    }

    fn check(&self, weights: &Weights, name: &str, stored: &Stored, shape: &[usize]) -> Result<(), LoadError> {
        let found = &stored.place.shape;
        if found != shape && !(found.is_empty() && shape == [1]) {
            return Err(LoadError::Shape {
                file: weights.file_of(stored).into(),
                tensor: shown(name),
                expected: shape.into(),
                found: found.clone(),
            });
        }
        if !is_float(stored.place.dtype) {
            return Err(LoadError::Dtype {
                file: weights.file_of(stored).into(),
                tensor: shown(name),
                found: stored.place.dtype,
            });
        }
        Ok(())
    }

    /// Zeros of `shape` that are one zero in memory.
    fn placeholder<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        let options = (&self.device, DType::from(self.dtype));
        if shape.contains(&0) {
            return Tensor::zeros(shape, options);
        }
        Tensor::<D>::zeros([1; D], options).expand(shape)
    }
}

/// Where the elements `range` along `dim` of a tensor of `shape` lie, counted in bytes from its start.
fn runs(shape: &[usize], dim: usize, range: Range<usize>, size: usize) -> Runs {
    let whole = shape[dim];
    let inner = shape[dim + 1..].iter().product::<usize>() * size;
    let outer: usize = shape[..dim].iter().product();
    if range.len() == whole {
        let len = outer * whole * inner;
        return Runs { first: 0, len, stride: len, n: 1 };
    }
    Runs { first: range.start * inner, len: range.len() * inner, stride: whole * inner, n: outer }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{Dtype as StDtype, TensorView, serialize};
    use std::cell::Cell;

    /// `blocks.0.weight` = 0..24 as F32 [2, 3, 4], `scale` = 2 as BF16 [], `ids` as I64 [1].
    fn weights() -> Weights {
        let w: Vec<u8> = (0..24).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let views = [
            ("blocks.0.weight", TensorView::new(StDtype::F32, vec![2, 3, 4], &w).unwrap()),
            ("scale", TensorView::new(StDtype::BF16, vec![], &[0, 0x40]).unwrap()),
            ("ids", TensorView::new(StDtype::I64, vec![1], &[0; 8]).unwrap()),
        ];
        let file = serialize(views, None).unwrap();
        Weights::from_static("vae", &[("vae/m.safetensors".into(), Vec::leak(file))]).unwrap()
    }

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        let data = tensor.into_data().convert::<f32>();
        data.as_slice::<f32>().unwrap().to_vec()
    }

    #[test]
    fn reads_by_prefix_in_the_dtype_asked_for() {
        let weights = weights();
        let loader = Loader::new(&weights, &Device::flex(), FloatDType::BF16);
        let block = loader.pp("blocks").pp(0);
        let w = block.tensor("weight", [2, 3, 4]).unwrap();
        assert_eq!(w.dtype(), DType::BF16);
        assert_eq!(values(w), (0..24).map(|i| i as f32).collect::<Vec<_>>());
        let w = block.f32().tensor("weight", [2, 3, 4]).unwrap();
        assert_eq!(w.dtype(), DType::F32);
        assert!(block.has("weight") && !block.has("bias"));
        assert_eq!(block.prefix(), "blocks.0");
        assert_eq!(values(loader.tensor("scale", [1]).unwrap()), [2.0]);
    }

    #[test]
    fn narrow_is_slice_of_the_whole() {
        let weights = weights();
        let loader = Loader::new(&weights, &Device::flex(), FloatDType::F32).pp("blocks.0");
        let whole: Tensor<3> = loader.tensor("weight", [2, 3, 4]).unwrap();
        for (dim, size) in [2, 3, 4].into_iter().enumerate() {
            for start in 0..=size {
                for end in start..=size {
                    let part = loader.narrow("weight", [2, 3, 4], dim, start..end).unwrap();
                    assert_eq!(part.dims()[dim], end - start);
                    if start < end {
                        let slice = whole.clone().narrow(dim, start, end - start);
                        assert_eq!(values(part), values(slice), "{dim} {start}..{end}");
                    }
                }
            }
        }
    }

    #[test]
    fn wrong_shape_and_dtype_name_the_tensor_and_the_file() {
        let weights = weights();
        let loader = Loader::new(&weights, &Device::flex(), FloatDType::F32);
        let error = loader.pp("blocks.0").tensor::<1>("weight", [24]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "vae/m.safetensors: tensor \"blocks.0.weight\" has shape [2, 3, 4], expected [24]"
        );
        let error = loader.tensor::<1>("ids", [1]).unwrap_err();
        assert_eq!(error.to_string(), "vae/m.safetensors: tensor \"ids\" is I64, expected F64, F32, F16 or BF16");
    }

    #[test]
    fn finish_lists_all_missing_and_all_unused() {
        let weights = weights();
        let loader = Loader::new(&weights, &Device::flex(), FloatDType::F32);
        loader.pp("blocks.0").tensor("weight", [2, 3, 4]).unwrap();
        let report = loader.finish(&["ids"]).unwrap();
        assert_eq!((report.tensors, report.bytes), (1, 96));
        assert_eq!(report.unused, ["scale"]);

        // A shape that could not be allocated: a placeholder takes no memory.
        let absent: Tensor<2> = loader.pp("head").tensor("weight", [1 << 20, 1 << 20]).unwrap();
        assert_eq!(absent.dims(), [1 << 20, 1 << 20]);
        for i in 0..10 {
            loader.pp("b").pp(i).tensor("bias", [0]).unwrap();
        }
        let error = loader.finish(&[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "vae: 11 tensors are missing: b.0.bias, b.1.bias, b.2.bias, b.3.bias, b.4.bias, b.5.bias, b.6.bias, \
             b.7.bias, ..."
        );
    }

    #[test]
    fn a_dry_loader_counts_what_another_reads() {
        let weights = weights();
        let of = |loader: Loader<'_>| {
            let w: Tensor<3> = loader.pp("blocks.0").tensor("weight", [2, 3, 4]).unwrap();
            loader.f32().tensor::<1>("scale", [1]).unwrap();
            loader.pp("blocks.0").tensor::<1>("weight", [24]).unwrap_err();
            (values(w), loader.finish(&[]).unwrap())
        };
        let loader = || Loader::new(&weights, &Device::flex(), FloatDType::BF16);
        let ((zeros, dry), (_, read)) = (of(loader().dry()), of(loader()));
        assert_eq!(dry, read);
        assert_eq!((dry.bytes, dry.resident, dry.largest), (96 + 2, 48 + 4, 48));
        assert_eq!(zeros, [0.0; 24]);
    }

    #[test]
    fn what_is_quantised_counts_as_it_is_kept() {
        let report = |quantization, prefix: &str, shape| {
            let loader = Loader::drawn("transformer", &Device::flex(), FloatDType::BF16).dry().quantised(quantization);
            let (_, kind) = loader.pp(prefix).matrix(shape).unwrap();
            assert_eq!(kind, None, "nothing to be kept");
            let report = loader.finish(&[]).unwrap();
            (report.bytes, report.resident)
        };
        let fp8 = Some(Quantization::Fp8);
        assert_eq!(report(fp8, "transformer_blocks.0.attn.to_q", [64, 32]), (4096, 64 * 32 + 64 * 4));
        assert_eq!(report(None, "transformer_blocks.0.attn.to_q", [64, 32]), (4096, 4096));
        // outside of blocks, and of other sides
        assert_eq!(report(fp8, "proj_out", [64, 32]), (4096, 4096));
        assert_eq!(report(fp8, "blocks.0.attn.to_q", [64, 40]), (5120, 5120));
        let loader = Loader::drawn("transformer", &Device::flex(), FloatDType::BF16).quantised(fp8);
        assert_eq!(loader.pp("blocks.7.ff").matrix([32, 16]).unwrap().1, fp8);
    }

    #[test]
    fn progress_counts_to_the_bytes_read() {
        let weights = weights();
        let done = Cell::new(0);
        let progress = |bytes| done.set(bytes);
        let loader = Loader::new(&weights, &Device::flex(), FloatDType::F32).with_progress(&progress);
        loader.tensor::<3>("blocks.0.weight", [2, 3, 4]).unwrap();
        assert_eq!(done.get(), 96);
        assert_eq!(loader.finish(&[]).unwrap().bytes, 96);
    }
}
