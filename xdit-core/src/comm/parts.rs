//! What travels between ranks.

use std::fmt;

use burn::tensor::{DType, Device, Tensor};

/// What a tensor looks like: what its receiver must know before it comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its dtype; of no meaning where there are no elements.
    pub dtype: DType,
}

impl Form {
    /// Of a tensor.
    pub fn new(shape: &[usize], dtype: DType) -> Self {
        Self { shape: shape.to_vec(), dtype }
    }

    /// From ranks that send nothing.
    pub fn nothing() -> Self {
        Self::new(&[0], DType::F32)
    }

    /// How many elements it has.
    pub fn n(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether `self` is what was expected. Where there are no elements, their dtype is of no meaning.
    pub fn is(&self, expected: &Self) -> bool {
        match (self.n(), expected.n()) {
            (0, 0) => true,
            _ => self == expected,
        }
    }
}

/// `f32 [2, 3, 64]`
impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype.name(), self.shape)
    }
}

/// A tensor on its way, flat: one run of memory is what every transport can send.
#[derive(Debug, Clone)]
pub struct Part {
    /// What it looks like.
    pub form: Form,
    /// Its elements, row-major; `None` if there are none, as not every back end of Burn can hold that.
    pub data: Option<Tensor<1>>,
}

impl Part {
    /// A whole tensor; copies only where it is a strided view.
    pub fn new<const D: usize>(x: Tensor<D>) -> Self {
        let form = Form::new(&x.dims(), x.dtype());
        let n = form.n();
        Self { form, data: (n > 0).then(|| x.reshape([n])) }
    }

    /// For ranks that are sent nothing.
    pub fn nothing() -> Self {
        Self { form: Form::nothing(), data: None }
    }

    /// Bytes of the elements.
    pub fn n_bytes(&self) -> u64 {
        self.data.as_ref().map_or(0, |data| (data.dims()[0] * self.form.dtype.size()) as u64)
    }

    /// The tensor; on `device` if it has no elements, else where they are.
    ///
    /// # Panics
    /// If it has not as many elements as `shape`.
    pub fn into_tensor<const D: usize>(self, shape: [usize; D], device: &Device) -> Tensor<D> {
        match self.data {
            Some(data) => data.reshape(shape),
            None => Tensor::empty(shape, (device, self.form.dtype)),
        }
    }
}

/// Cuts `x` along `dim`. Sizes may be 0, which Burn cannot narrow to.
pub(super) fn cut<const D: usize>(x: &Tensor<D>, dim: usize, sizes: &[usize]) -> Vec<Part> {
    let (mut shape, dtype) = (x.dims(), x.dtype());
    let mut start = 0;
    let part = |&size: &usize| {
        shape[dim] = size;
        let form = Form::new(&shape, dtype);
        let n = form.n();
        let data = (n > 0).then(|| x.clone().narrow(dim, start, size).reshape([n]));
        start += size;
        Part { form, data }
    };
    sizes.iter().map(part).collect()
}

/// Cuts a part's elements, whatever its shape.
pub(super) fn cut_flat(part: Part, sizes: &[usize]) -> Vec<Part> {
    match part.data {
        Some(data) => cut(&data, 0, sizes),
        None => vec![Part { form: Form { shape: vec![0], ..part.form }, data: None }; sizes.len()],
    }
}

/// Puts tensors together along `dim`; they agree in all other dimensions. Some or all may have no elements, which Burn
/// cannot put together.
pub(super) fn join<const D: usize>(parts: Vec<Tensor<D>>, dim: usize) -> Tensor<D> {
    let mut shape = parts[0].dims();
    shape[dim] = parts.iter().map(|part| part.dims()[dim]).sum();
    let like = (&parts[0].device(), parts[0].dtype());
    let full: Vec<_> = parts.into_iter().filter(|part| !part.dims().contains(&0)).collect();
    if full.is_empty() { Tensor::empty(shape, like) } else { crate::ops::cat(full, dim) }
}

/// The sum of parts of one shape, in their order; halves are added in f32 and rounded once.
pub(super) fn sum(parts: Vec<Part>) -> Part {
    let form = parts[0].form.clone();
    let wide = if form.dtype.size() < 4 { DType::F32 } else { form.dtype };
    let sum = parts.into_iter().filter_map(|part| part.data).map(|x| x.cast(wide)).reduce(|a, b| a + b);
    Part { data: sum.map(|x| x.cast(form.dtype)), form }
}
