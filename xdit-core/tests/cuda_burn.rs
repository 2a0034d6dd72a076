//! Burn's own kernels on an NVIDIA GPU, compiled against the headers that this crate brings: all that a tensor of floats is
//! asked for, against the same on the CPU in f32. Run by `.ci/gpu_tests` on a machine that has one.
#![cfg(feature = "cuda")]

mod gpu;

use burn::tensor::module::{conv_transpose2d, conv2d};
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};
use burn::tensor::{DType, Int, Tensor, activation};

use gpu::{DTYPES, assert_close, gpu, on_gpu, random};

/// What the operations are applied to; `a` and `b` are between -2 and 2, `positive` is between 1 and 3.
struct Inputs {
    a: Tensor<3>,
    b: Tensor<3>,
    positive: Tensor<3>,
    indices: Tensor<3, Int>,
    picture: Tensor<4>,
    filter: Tensor<4>,
    square: Tensor<2>,
}

type Op = (&'static str, fn(&Inputs) -> Tensor<1>);

fn flat<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    x.flatten(0, D - 1)
}

const ELEMENTWISE: &[Op] = &[
    ("add", |x| flat(x.a.clone() + x.b.clone())),
    ("add_scalar", |x| flat(x.a.clone() + 0.375)),
    ("sub", |x| flat(x.a.clone() - x.b.clone())),
    ("mul", |x| flat(x.a.clone() * x.b.clone())),
    ("mul_scalar", |x| flat(x.a.clone() * -1.5)),
    ("div", |x| flat(x.a.clone() / x.positive.clone())),
    ("neg", |x| flat(-x.a.clone())),
    ("abs", |x| flat(x.a.clone().abs())),
    ("sign", |x| flat(x.a.clone().sign())),
    ("exp", |x| flat(x.a.clone().exp())),
    ("log", |x| flat(x.positive.clone().log())),
    ("log1p", |x| flat(x.positive.clone().log1p())),
    ("sqrt", |x| flat(x.positive.clone().sqrt())),
    ("recip", |x| flat(x.positive.clone().recip())),
    ("sin", |x| flat(x.a.clone().sin())),
    ("cos", |x| flat(x.a.clone().cos())),
    ("tan", |x| flat((x.a.clone() * 0.5).tan())),
    ("tanh", |x| flat(x.a.clone().tanh())),
    ("sinh", |x| flat(x.a.clone().sinh())),
    ("cosh", |x| flat(x.a.clone().cosh())),
    ("asinh", |x| flat(x.a.clone().asinh())),
    ("atan2", |x| flat(x.a.clone().atan2(x.positive.clone()))),
    ("erf", |x| flat(x.a.clone().erf())),
    ("powf", |x| flat(x.positive.clone().powf(x.b.clone()))),
    ("powf_scalar", |x| flat(x.positive.clone().powf_scalar(1.5))),
    ("square", |x| flat(x.a.clone().square())),
    ("floor", |x| flat(x.a.clone().floor())),
    ("ceil", |x| flat(x.a.clone().ceil())),
    ("round", |x| flat(x.a.clone().round())),
    ("trunc", |x| flat(x.a.clone().trunc())),
    ("remainder_scalar", |x| flat(x.positive.clone().remainder_scalar(1.0))),
    ("clamp", |x| flat(x.a.clone().clamp(-0.5, 1.0))),
    ("max_pair", |x| flat(x.a.clone().max_pair(x.b.clone()))),
    ("min_pair", |x| flat(x.a.clone().min_pair(x.b.clone()))),
    ("sigmoid", |x| flat(activation::sigmoid(x.a.clone()))),
    ("silu", |x| flat(activation::silu(x.a.clone()))),
    ("gelu", |x| flat(activation::gelu(x.a.clone()))),
    ("gelu_approximate", |x| flat(activation::gelu_approximate(x.a.clone()))),
    ("relu", |x| flat(activation::relu(x.a.clone()))),
    ("leaky_relu", |x| flat(activation::leaky_relu(x.a.clone(), 0.25))),
];

const COMPARISONS: &[Op] = &[
    ("equal", |x| flat(x.a.clone().equal(x.a.clone()).float())),
    ("not_equal", |x| flat(x.a.clone().not_equal(x.b.clone()).float())),
    ("lower", |x| flat(x.a.clone().lower(x.b.clone()).float())),
    ("lower_equal", |x| flat(x.a.clone().lower_equal(x.b.clone()).float())),
    ("greater", |x| flat(x.a.clone().greater(x.b.clone()).float())),
    ("greater_equal", |x| flat(x.a.clone().greater_equal(x.b.clone()).float())),
    ("greater_scalar", |x| flat(x.a.clone().greater_scalar(0.5).float())),
    ("is_nan", |x| flat((x.a.clone() / (x.a.clone() - x.a.clone())).is_nan().bool_not().float())),
    ("is_inf", |x| flat((x.positive.clone() / (x.a.clone() - x.a.clone())).is_inf().float())),
    ("mask_where", |x| flat(x.a.clone().mask_where(x.b.clone().greater_scalar(0.0), x.positive.clone()))),
    ("mask_fill", |x| flat(x.a.clone().mask_fill(x.b.clone().greater_scalar(0.0), f32::NEG_INFINITY).exp())),
];

const MOVES: &[Op] = &[
    ("int and back", |x| flat((x.a.clone() * 4.0).int().float())),
    ("permute", |x| flat(x.a.clone().permute([2, 0, 1]) + 0.5)),
    ("slice", |x| flat(x.a.clone().slice([0..1, 3..29, 7..52]) * 2.0)),
    ("slice_assign", |x| flat(x.a.clone().slice_assign([0..1, 3..5, 0..8], x.b.clone().slice([1..2, 7..9, 8..16])))),
    ("cat", |x| flat(Tensor::cat(vec![x.a.clone(), x.b.clone()], 2))),
    ("expand", |x| flat(x.a.clone().slice([0..2, 0..1, 0..64]).expand([2, 33, 64]) + x.b.clone())),
    ("repeat", |x| flat(x.a.clone().repeat(&[1, 2, 1]))),
    ("flip", |x| flat(x.a.clone().flip([1]))),
    ("gather", |x| flat(x.a.clone().gather(1, x.indices.clone()))),
    ("select", |x| flat(x.a.clone().select(1, x.indices.clone().slice([0..1, 0..5, 0..1]).flatten(0, 2)))),
    ("pad", |x| flat(x.a.clone().pad((1, 2, 3, 4), 0.5))),
    ("tril", |x| flat(x.square.clone().tril(0))),
];

const SUMS: &[Op] = &[
    ("sum", |x| x.positive.clone().slice([0..1, 0..33, 0..9]).sum()),
    ("sum_dim", |x| flat(x.positive.clone().sum_dim(2))),
    ("sum_dim, inner", |x| flat(x.positive.clone().sum_dim(1))),
    ("mean_dim", |x| flat(x.positive.clone().mean_dim(2))),
    ("prod_dim", |x| flat(x.positive.clone().slice([0..2, 0..33, 0..4]).prod_dim(2))),
    ("max_dim", |x| flat(x.a.clone().max_dim(2))),
    ("min_dim", |x| flat(x.a.clone().min_dim(1))),
    ("max_abs_dim", |x| flat(x.a.clone().max_abs_dim(2))),
    ("argmax", |x| flat(x.a.clone().gather(2, x.a.clone().argmax(2)))),
    ("argmin", |x| flat(x.a.clone().gather(2, x.a.clone().argmin(2)))),
    ("cumsum", |x| flat(x.positive.clone().slice([0..2, 0..33, 0..8]).cumsum(2))),
    ("var", |x| flat(x.a.clone().var(2))),
    ("softmax", |x| flat(activation::softmax(x.a.clone(), 2))),
    ("log_softmax", |x| flat(activation::log_softmax(x.a.clone(), 2))),
];

const PRODUCTS: &[Op] = &[
    ("a row", |x| flat(x.square.clone().slice([0..1, 0..256]).matmul(x.square.clone()))),
    ("a column", |x| flat(x.square.clone().matmul(x.square.clone().slice([0..256, 0..1])))),
    ("square", |x| flat(x.square.clone().matmul(x.square.clone()))),
    ("transposed", |x| flat(x.square.clone().matmul(x.square.clone().transpose()))),
    ("batched", |x| flat(x.a.clone().matmul(x.b.clone().swap_dims(1, 2)))),
    ("odd", |x| flat(x.square.clone().slice([0..77, 3..34]).matmul(x.square.clone().slice([5..36, 0..45])))),
];

const PICTURES: &[Op] = &[
    ("conv2d", |x| {
        let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
        flat(conv2d(x.picture.clone(), x.filter.clone(), None, options))
    }),
    ("conv_transpose2d", |x| {
        let options = ConvTransposeOptions::new([2, 2], [1, 1], [0, 0], [1, 1], 1);
        flat(conv_transpose2d(x.picture.clone(), x.filter.clone().swap_dims(0, 1), None, options))
    }),
];

fn inputs(dtype: DType) -> Inputs {
    let bounded = |seed| random([2, 33, 64], seed, DType::F32).tanh() * 2.0;
    let exact = |x: Tensor<3>| xdit_core::ops::to_f32(x.cast(dtype));
    let indices = (bounded(4).abs() * 16.0).int();
    Inputs {
        a: exact(bounded(1)),
        b: exact(bounded(2)),
        positive: exact(bounded(3).abs() + 1.0),
        indices,
        picture: random([1, 8, 12, 16], 5, dtype),
        filter: random([24, 8, 3, 3], 6, dtype),
        square: random([256, 256], 7, dtype),
    }
}

fn there(x: &Inputs, dtype: DType) -> Inputs {
    Inputs {
        a: on_gpu(&x.a, dtype),
        b: on_gpu(&x.b, dtype),
        positive: on_gpu(&x.positive, dtype),
        indices: Tensor::from_data(x.indices.to_data(), &gpu()),
        picture: on_gpu(&x.picture, dtype),
        filter: on_gpu(&x.filter, dtype),
        square: on_gpu(&x.square, dtype),
    }
}

/// The rounding of a result, in Burn's kernels also of what it is made of: a convolution here adds 72 products one by one.
fn tolerance(dtype: DType, of_f32: f64) -> f64 {
    match dtype {
        DType::BF16 => 1.2e-2,
        DType::F16 => 1.5e-3,
        _ => of_f32,
    }
}

#[track_caller]
fn check(ops: &[Op], of_f32: f64) {
    for dtype in DTYPES {
        let here = inputs(dtype);
        let there = there(&here, dtype);
        for (name, op) in ops {
            let got = op(&there).cast(dtype);
            assert_close(got, op(&here), tolerance(dtype, of_f32), &format!("{dtype:?} {name}"));
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn elementwise_operations_are_the_cpus() {
    check(ELEMENTWISE, 5e-6);
}

#[test]
#[ignore = "needs a GPU"]
fn comparisons_and_masks_are_the_cpus() {
    check(COMPARISONS, 5e-6);
}

#[test]
#[ignore = "needs a GPU"]
fn moves_and_casts_are_the_cpus() {
    check(MOVES, 5e-6);
}

#[test]
#[ignore = "needs a GPU"]
fn sums_along_an_axis_are_the_cpus() {
    check(SUMS, 5e-6);
}

#[test]
#[ignore = "needs a GPU"]
fn products_are_the_cpus() {
    // Burn's products of f32 are TF32's
    check(PRODUCTS, 1e-3);
}

#[test]
#[ignore = "needs a GPU"]
fn convolutions_are_the_cpus() {
    check(PICTURES, 5e-6);
}
