//! What travels between ranks.

use std::fmt;

use burn::tensor::{DType, Device, Tensor};

#[cfg(feature = "cuda")]
use super::views::Views;

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

/// A tensor on its way.
#[derive(Debug, Clone)]
pub struct Part {
    /// What it looks like.
    pub form: Form,
    /// Its elements; `None` if there are none, as not every back end of Burn can hold that.
    pub data: Option<Data>,
}

/// The elements of a [`Part`].
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "few are alive at a time")]
pub enum Data {
    /// Row-major, one run of memory: what every transport can send.
    Flat(Tensor<1>),
    /// On an NVIDIA GPU where they are, as that needs no copy: see [`Part::flat`].
    #[cfg(feature = "cuda")]
    Views(Views),
}

impl Part {
    /// A whole tensor; a strided view is copied unless it is an NVIDIA GPU's.
    pub fn new<const D: usize>(x: Tensor<D>) -> Self {
        Self::of_blocks(vec![x], 0)
    }

    /// Tensors that follow each other along a dimension, as one.
    pub fn of_blocks<const D: usize>(blocks: Vec<Tensor<D>>, along: usize) -> Self {
        let mut shape = blocks[0].dims();
        shape[along] = blocks.iter().map(|block| block.dims()[along]).sum();
        let form = Form::new(&shape, blocks[0].dtype());
        let n = form.n();
        if n == 0 {
            return Self { form, data: None };
        }
        #[cfg(feature = "cuda")]
        if let Some(views) = Views::of(&blocks, along) {
            return Self { form, data: Some(Data::Views(views)) };
        }
        let x = if blocks.len() == 1 { blocks[0].clone() } else { join(blocks, along) };
        Self { form, data: Some(Data::Flat(x.reshape([n]))) }
    }

    /// For ranks that are sent nothing.
    pub fn nothing() -> Self {
        Self { form: Form::nothing(), data: None }
    }

    /// Elements in one run of memory.
    pub fn of_flat(form: Form, data: Option<Tensor<1>>) -> Self {
        Self { form, data: data.map(Data::Flat) }
    }

    /// Its elements in one run of memory, for transports that send nothing else; `None` if there are none.
    pub fn flat(self) -> Option<Tensor<1>> {
        self.data.map(|data| match data {
            Data::Flat(data) => data,
            #[cfg(feature = "cuda")]
            Data::Views(views) => views.flat(),
        })
    }

    /// Bytes of the elements.
    pub fn n_bytes(&self) -> u64 {
        (self.form.n() * self.form.dtype.size()) as u64
    }

    /// The tensor; on `device` if it has no elements, else where they are.
    ///
    /// # Panics
    /// If it has not as many elements as `shape`.
    pub fn into_tensor<const D: usize>(self, shape: [usize; D], device: &Device) -> Tensor<D> {
        match self.data {
            Some(Data::Flat(data)) => data.reshape(shape),
            #[cfg(feature = "cuda")]
            Some(Data::Views(views)) => views.into_tensor(shape),
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
        let part = match form.n() {
            0 => Part { form, data: None },
            _ => Part::new(crate::ops::narrow(x, dim, start..start + size)),
        };
        start += size;
        part
    };
    sizes.iter().map(part).collect()
}

/// Cuts a part's elements, whatever its shape.
pub(super) fn cut_flat(part: Part, sizes: &[usize]) -> Vec<Part> {
    let dtype = part.form.dtype;
    match part.flat() {
        Some(data) => cut(&data, 0, sizes),
        None => vec![Part { form: Form::new(&[0], dtype), data: None }; sizes.len()],
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
    let sum = parts.into_iter().filter_map(Part::flat).map(|x| x.cast(wide)).reduce(|a, b| a + b);
    Part::of_flat(form.clone(), sum.map(|x| x.cast(form.dtype)))
}
