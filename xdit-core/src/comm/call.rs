//! What ranks must agree on before tensors pass.

use std::fmt;

use burn::tensor::{DType, Tensor};

/// What a member called; it travels with the tensors, so that members that call different things learn it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The operation.
    pub op: &'static str,
    /// The dimensions, sizes or roots that it was given.
    pub args: Vec<usize>,
    /// Of the tensor; `None` where this member does not know.
    pub dtype: Option<DType>,
    /// Of the tensor; `None` where members may differ, or where this one does not know.
    pub shape: Vec<Option<usize>>,
}

impl Call {
    /// An operation without a tensor.
    pub fn bare(op: &'static str, args: &[usize]) -> Self {
        Self { op, args: args.to_vec(), dtype: None, shape: Vec::new() }
    }

    /// One on a tensor of `D` dimensions of which nothing else is known.
    pub fn unknown<const D: usize>(op: &'static str, args: &[usize]) -> Self {
        Self { shape: vec![None; D], ..Self::bare(op, args) }
    }

    /// One on a tensor like `x` on every member.
    pub fn on<const D: usize>(op: &'static str, args: &[usize], x: &Tensor<D>) -> Self {
        let shape = x.dims().into_iter().map(Some).collect();
        Self { dtype: Some(x.dtype()), shape, ..Self::bare(op, args) }
    }

    /// Lets the members' tensors differ along `dim`.
    pub fn any_size_of(mut self, dim: usize) -> Self {
        self.shape[dim] = None;
        self
    }

    /// Whether both members can go on.
    pub fn agrees(&self, other: &Self) -> bool {
        fn same<T: PartialEq>(a: &Option<T>, b: &Option<T>) -> bool {
            a.is_none() || b.is_none() || a == b
        }
        self.op == other.op
            && self.args == other.args
            && same(&self.dtype, &other.dtype)
            && self.shape.len() == other.shape.len()
            && self.shape.iter().zip(&other.shape).all(|(a, b)| same(a, b))
    }
}

/// `all_gather(1) of f32 [2, _, 64]`
impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let args: Vec<_> = self.args.iter().map(usize::to_string).collect();
        write!(f, "{}({})", self.op, args.join(", "))?;
        if !self.shape.is_empty() {
            let shape: Vec<_> = self.shape.iter().map(|n| n.map_or("_".into(), |n| n.to_string())).collect();
            write!(f, " of {} [{}]", self.dtype.map_or("_", |dtype| dtype.name()), shape.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn unknown_dtypes_and_sizes_agree_with_any() {
        let x = Tensor::<3>::zeros([2, 5, 64], &Device::flex());
        let call = Call::on("all_gather", &[1], &x).any_size_of(1);
        assert_eq!(call.to_string(), "all_gather(1) of f32 [2, _, 64]");
        assert!(call.agrees(&Call::on("all_gather", &[1], &x)));
        assert!(call.agrees(&Call::unknown::<3>("all_gather", &[1])));
        assert!(!call.agrees(&Call::unknown::<2>("all_gather", &[1])));
        assert!(!call.agrees(&Call::unknown::<3>("all_gather", &[2])));
        assert!(!call.agrees(&Call::on("all_gather", &[1], &x.cast(DType::BF16))));
        assert_eq!(Call::bare("barrier", &[]).to_string(), "barrier()");
    }
}
