//! What dense layers take.

use std::cell::OnceCell;
use std::rc::Rc;

use burn::tensor::Tensor;

#[cfg(feature = "cuda")]
use super::cuda;
use super::norm::modulated_norm;
#[cfg(feature = "cuda")]
use super::types::Fp8;

/// What dense layers take: rows that are there, or those of a norm, which is computed when the first layer asks for them,
/// in the precision that it multiplies in. Whoever has FP8 weights then gets FP8 from the norm at no cost. Copies share
/// what was computed.
#[derive(Debug, Clone)]
pub struct Input<const D: usize>(Kind<D>);

#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "on its way to a layer, not kept")]
enum Kind<const D: usize> {
    Rows(Tensor<D>),
    Normed(Rc<Normed<D>>),
}

/// See [`modulated_norm`]. There are norms of `[batch, tokens, d]` alone, which these functions know, as types cannot.
#[derive(Debug)]
struct Normed<const D: usize> {
    x: Tensor<D>,
    shift: Tensor<2>,
    scale: Tensor<2>,
    eps: f64,
    norm: fn(Tensor<D>, Tensor<2>, Tensor<2>, f64) -> Tensor<D>,
    rows: OnceCell<Tensor<D>>,
    #[cfg(feature = "cuda")]
    norm_fp8: fn(&Tensor<D>, &Tensor<2>, &Tensor<2>, f64) -> Option<Fp8>,
    #[cfg(feature = "cuda")]
    fp8: OnceCell<Option<Fp8>>,
}

impl<const D: usize> From<Tensor<D>> for Input<D> {
    fn from(rows: Tensor<D>) -> Self {
        Self(Kind::Rows(rows))
    }
}

impl Input<3> {
    /// [`modulated_norm`] of these.
    pub fn modulated_norm(x: Tensor<3>, shift: Tensor<2>, scale: Tensor<2>, eps: f64) -> Self {
        Self(Kind::Normed(Rc::new(Normed {
            x,
            shift,
            scale,
            eps,
            norm: modulated_norm,
            rows: OnceCell::new(),
            #[cfg(feature = "cuda")]
            norm_fp8: cuda::modulated_norm_fp8,
            #[cfg(feature = "cuda")]
            fp8: OnceCell::new(),
        })))
    }
}

impl<const D: usize> Input<D> {
    /// Dimensions of the rows.
    pub fn dims(&self) -> [usize; D] {
        self.made_of().dims()
    }

    /// The rows, or what they are a norm of.
    pub(super) fn made_of(&self) -> &Tensor<D> {
        match &self.0 {
            Kind::Rows(rows) => rows,
            Kind::Normed(normed) => &normed.x,
        }
    }

    /// The rows.
    pub(super) fn rows(&self) -> Tensor<D> {
        match &self.0 {
            Kind::Rows(rows) => rows.clone(),
            Kind::Normed(normed) => normed.rows(),
        }
    }

    /// The rows of several side by side in FP8.
    #[cfg(feature = "cuda")]
    pub(super) fn fp8(parts: &[Self]) -> Option<Fp8> {
        match parts {
            [Self(Kind::Normed(normed))] => normed.fp8(),
            _ => cuda::fp8(&parts.iter().map(Self::rows).collect::<Vec<_>>()),
        }
    }
}

impl<const D: usize> Normed<D> {
    fn rows(&self) -> Tensor<D> {
        let compute = || (self.norm)(self.x.clone(), self.shift.clone(), self.scale.clone(), self.eps);
        self.rows.get_or_init(compute).clone()
    }

    #[cfg(feature = "cuda")]
    fn fp8(&self) -> Option<Fp8> {
        let compute = || {
            let normed = (self.norm_fp8)(&self.x, &self.shift, &self.scale, self.eps);
            normed.or_else(|| cuda::fp8(&[self.rows()]))
        };
        self.fp8.get_or_init(compute).clone()
    }
}
