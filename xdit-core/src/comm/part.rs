//! What travels between ranks.

use burn::tensor::{DType, Device, Tensor};

/// A tensor on its way, flat: one run of memory is what every transport can send. The shape travels with it, so that
/// who receives it need not know how large it is.
#[derive(Debug, Clone)]
pub struct Part {
    /// The tensor's shape.
    pub shape: Vec<usize>,
    /// Its dtype; of no meaning in [`Part::nothing`].
    pub dtype: DType,
    /// Its elements, row-major; `None` if there are none, as not every back end of Burn can hold that.
    pub data: Option<Tensor<1>>,
}

impl Part {
    /// A whole tensor; copies only where it is a strided view.
    pub fn new<const D: usize>(x: Tensor<D>) -> Self {
        let (shape, dtype) = (x.dims().to_vec(), x.dtype());
        let n: usize = shape.iter().product();
        Self { shape, dtype, data: (n > 0).then(|| x.reshape([n])) }
    }

    /// For ranks that are sent nothing.
    pub fn nothing() -> Self {
        Self { shape: Vec::new(), dtype: DType::F32, data: None }
    }

    /// Bytes of the elements.
    pub fn n_bytes(&self) -> u64 {
        self.data.as_ref().map_or(0, |data| (data.dims()[0] * self.dtype.size()) as u64)
    }

    /// The tensor; on `device` if it has no elements, else where they are.
    ///
    /// # Panics
    /// If it has not `D` dimensions.
    pub fn into_tensor<const D: usize>(self, device: &Device) -> Tensor<D> {
        let shape: [usize; D] = self.shape.try_into().expect("members agreed on the number of dimensions");
        match self.data {
            Some(data) => data.reshape(shape),
            None => Tensor::empty(shape, (device, self.dtype)),
        }
    }
}

/// Cuts `x` along `dim`.
pub(super) fn cut<const D: usize>(x: Tensor<D>, dim: usize, sizes: &[usize]) -> Vec<Part> {
    let (mut shape, dtype) = (x.dims().to_vec(), x.dtype());
    let mut start = 0;
    let part = |&size: &usize| {
        shape[dim] = size;
        let n: usize = shape.iter().product();
        let data = (n > 0).then(|| x.clone().narrow(dim, start, size).reshape([n]));
        start += size;
        Part { shape: shape.clone(), dtype, data }
    };
    sizes.iter().map(part).collect()
}

/// Cuts a part's elements, whatever its shape.
pub(super) fn cut_flat(part: Part, sizes: &[usize]) -> Vec<Part> {
    match part.data {
        Some(data) => cut(data, 0, sizes),
        None => vec![Part { shape: vec![0], ..part }; sizes.len()],
    }
}

/// Puts parts together along `dim`; they agree in all others.
pub(super) fn join<const D: usize>(parts: Vec<Part>, dim: usize, device: &Device) -> Tensor<D> {
    let n: usize = parts.iter().map(|part| part.shape[dim]).sum();
    let mut empty = Part { data: None, ..parts[0].clone() };
    empty.shape[dim] = n;
    let mut full: Vec<Tensor<D>> =
        parts.into_iter().filter(|part| part.data.is_some()).map(|part| part.into_tensor(device)).collect();
    match full.len() {
        0 => empty.into_tensor(device),
        1 => full.remove(0),
        _ => Tensor::cat(full, dim),
    }
}

/// The sum of parts of one shape, in their order; halves are added in f32 and rounded once.
pub(super) fn sum(parts: Vec<Part>) -> Part {
    let whole = Part { data: None, ..parts[0].clone() };
    let wide = if whole.dtype.size() < 4 { DType::F32 } else { whole.dtype };
    let sum = parts.into_iter().filter_map(|part| part.data).map(|x| x.cast(wide)).reduce(|a, b| a + b);
    Part { data: sum.map(|x| x.cast(whole.dtype)), ..whole }
}
