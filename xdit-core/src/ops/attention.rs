//! Softmax attention that also returns the log-sum-exp, so that partial results can be merged.

use burn::tensor::{Tensor, activation};

use super::choose::choose;
use super::cpu;
#[cfg(feature = "cuda")]
use super::cuda;
use super::input::Input;
use super::linear::Linears;
use super::rope::norm_rope;
use super::tensors::{cat, to_dtype, to_f32};
#[cfg(feature = "cuda")]
use super::types::QkvPart;
use super::types::{Attended, HeadNorm, RopeTable};

/// `softmax(scale q k^T + bias) v`.
///
/// - `q`: `[batch, heads, queries, head_dim]`
/// - `k`, `v`: `[batch, heads, keys, head_dim]`
/// - `bias`: added to the scores, `[1 | batch, 1 | heads, 1 | queries, keys]`; `-inf` hides a key
///
/// Scores and sums are f32 in every dtype. Any `head_dim`. A row whose keys are all hidden yields zeros and `-inf`.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, bias: Option<Tensor<4>>, scale: f64) -> Attended {
    attention_into(q, k, v, bias, scale, None)
}

/// The same into the place that the caller has for the output, if there is one and the device can.
///
/// - `place`: `[batch, queries, heads * head_dim]`
pub fn attention_into(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    bias: Option<Tensor<4>>,
    scale: f64,
    place: Option<Tensor<3>>,
) -> Attended {
    choose!(
        &q,
        cpu: cpu::attention(&q, &k, &v, bias.as_ref(), scale),
        cuda: cuda::attention(&q, &k, &v, bias.as_ref(), scale, place.as_ref()),
        portable: {
            drop(place);
            portable(q, k, v, bias, scale)
        },
    )
}

fn portable(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, bias: Option<Tensor<4>>, scale: f64) -> Attended {
    let dtype = q.dtype();
    let scores = (to_f32(q) * scale).matmul(to_f32(k).swap_dims(2, 3));
    let scores = match bias {
        Some(bias) => scores + to_f32(bias),
        None => scores,
    };
    // an all-hidden row has the maximum -inf: clamped, so that no inf - inf arises
    let max = scores.clone().max_dim(3).clamp_min(f32::MIN / 2.0);
    let sum = (scores.clone() - max.clone()).exp().sum_dim(3);
    let lse = (max + sum.log()).squeeze_dim::<3>(3);
    let weights = activation::softmax(scores, 3);
    Attended { out: to_dtype(weights, dtype).matmul(v), lse }
}

/// Attention over the keys of both, from attention over either: each output weighted by its share of the sum of
/// exponentials, in f32.
pub fn merge_attended(a: Attended, b: Attended) -> Attended {
    choose!(
        &a.out,
        cpu: cpu::merge_attended(&a, &b),
        cuda: cuda::merge_attended(&a, &b),
        portable: portable_merge(a, b),
    )
}

fn portable_merge(a: Attended, b: Attended) -> Attended {
    let max = a.lse.clone().max_pair(b.lse.clone()).clamp_min(f32::MIN / 2.0);
    let (wa, wb) = ((a.lse - max.clone()).exp(), (b.lse - max.clone()).exp());
    let sum = wa.clone() + wb.clone();
    let share = |w: Tensor<3>| (w / sum.clone().clamp_min(f32::MIN_POSITIVE)).unsqueeze_dim::<4>(3);
    let out = to_f32(a.out) * share(wa) + to_f32(b.out) * share(wb);
    Attended { out, lse: max + sum.log() }
}

/// What a stream's queries, keys and values are made of.
#[derive(Debug, Clone)]
pub struct QkvOf<'a> {
    /// `[batch, tokens, d_model]`, normalised
    pub x: Input<3>,
    /// The layers of queries, keys and values.
    pub layers: &'a Linears,
    /// Of the queries' heads.
    pub norm_q: &'a HeadNorm,
    /// Of the keys' heads.
    pub norm_k: &'a HeadNorm,
    /// How both are turned.
    pub rope: Option<&'a RopeTable>,
}

#[cfg(feature = "cuda")]
impl QkvOf<'_> {
    fn part(&self) -> Option<QkvPart<'_>> {
        let (factors, bias) = self.layers.factors(&self.x)?;
        Some(QkvPart { factors, bias, norms: [self.norm_q, self.norm_k], rope: self.rope })
    }
}

/// Queries, keys and values of streams that attend as one sequence, in the order of the streams; each
/// `[batch, heads, tokens of all, head_dim]`.
pub fn joint_qkv(streams: Vec<QkvOf<'_>>, n_heads: usize) -> [Tensor<4>; 3] {
    choose!(
        streams[0].x.made_of(),
        cpu: None,
        cuda: cuda::joint_qkv(&streams.iter().map(QkvOf::part).collect::<Option<Vec<_>>>()?, n_heads),
        portable: portable_joint_qkv(streams, n_heads),
    )
}

fn portable_joint_qkv(streams: Vec<QkvOf<'_>>, n_heads: usize) -> [Tensor<4>; 3] {
    let mut parts: [Vec<Tensor<4>>; 3] = Default::default();
    for QkvOf { x, layers, norm_q, norm_k, rope } in streams {
        let mut heads = layers.forward(x).into_iter().map(|x| split_heads(x, n_heads));
        let mut next = || heads.next().expect("layers of queries, keys and values");
        let [q, k, v] = [next(), next(), next()];
        for (part, x) in parts.iter_mut().zip([norm_rope(q, norm_q, rope), norm_rope(k, norm_k, rope), v]) {
            part.push(x);
        }
    }
    parts.map(|mut part| if part.len() == 1 { part.remove(0) } else { cat_tokens(part) })
}

/// `[batch, tokens, heads * head_dim] -> [batch, heads, tokens, head_dim]`, a view.
pub fn split_heads(x: Tensor<3>, n_heads: usize) -> Tensor<4> {
    let [b, n, d] = x.dims();
    choose!(
        &x,
        cpu: None,
        cuda: cuda::split_heads(&x, n_heads),
        portable: x.reshape([b, n, n_heads, d / n_heads]).swap_dims(1, 2),
    )
}

/// `[batch, heads, tokens, head_dim] -> [batch, tokens, heads * head_dim]`
pub fn merge_heads(x: Tensor<4>) -> Tensor<3> {
    let [b, h, n, d] = x.dims();
    choose!(
        &x,
        cpu: None,
        cuda: cuda::merge_heads(&x),
        portable: x.swap_dims(1, 2).reshape([b, n, h * d]),
    )
}

/// Heads of several streams one after the other along the tokens, in token-major memory.
///
/// - `xs`: each `[batch, heads, tokens_i, head_dim]`
pub fn cat_tokens(xs: Vec<Tensor<4>>) -> Tensor<4> {
    let by_token = xs.into_iter().map(|x| x.swap_dims(1, 2)).collect();
    cat(by_token, 1).swap_dims(1, 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::test::{assert_close, random};
    use burn::tensor::{DType, Device};

    /// Exponentials by polynomial and sums in another order.
    const TOLERANCE: f32 = 3e-6;

    fn check(nq: usize, nk: usize, d: usize, bias: Option<[usize; 4]>) {
        let dev = Device::flex();
        let (b, h) = (2, 3);
        let q = random([b, nq, h, d], 1, &dev).swap_dims(1, 2) * 3.0;
        let k = random([b, h, nk, d], 2, &dev);
        let v = random([b, nk, h, d], 3, &dev).swap_dims(1, 2);
        let bias = bias.map(|dims| random(dims, 4, &dev));
        let want = portable(q.clone(), k.clone(), v.clone(), bias.clone(), 0.3);
        let got = attention(q, k, v, bias, 0.3);
        assert_close(got.out, want.out, TOLERANCE);
        assert_close(got.lse, want.lse, TOLERANCE);
    }

    #[test]
    fn cpu_kernel_matches_burn() {
        check(5, 7, 8, None);
        check(300, 700, 24, None);
        check(130, 1030, 88, None);
        check(1, 40, 64, None);
        check(9, 11, 8, Some([1, 3, 9, 11]));
        check(200, 600, 16, Some([2, 1, 1, 600]));
    }

    #[test]
    fn scores_are_f32_in_half_precision() {
        let dev = Device::flex();
        let half = |seed| random([1, 2, 9, 32], seed, &dev).cast(DType::BF16);
        let (q, k, v) = (half(1), half(2), half(3));
        let got = portable(q.clone(), k.clone(), v.clone(), None, 0.7);
        let want = portable(to_f32(q), to_f32(k), to_f32(v), None, 0.7);
        assert_close(got.lse, want.lse, TOLERANCE);
    }

    #[test]
    fn hidden_keys_take_no_part() {
        let dev = Device::flex();
        let (q, k, v) = (random([1, 2, 4, 8], 1, &dev), random([1, 2, 6, 8], 2, &dev), random([1, 2, 6, 8], 3, &dev));
        let hide = [0.0, 0.0, 0.0, 0.0, f32::NEG_INFINITY, f32::NEG_INFINITY];
        let bias = Tensor::<1>::from_floats(hide, &dev).reshape([1, 1, 1, 6]);
        let got = attention(q.clone(), k.clone(), v.clone(), Some(bias), 0.5);
        let keep = |x: Tensor<4>| x.slice([0..1, 0..2, 0..4]);
        let want = attention(q.clone(), keep(k.clone()), keep(v.clone()), None, 0.5);
        assert_close(got.out, want.out, TOLERANCE);
        assert_close(got.lse, want.lse, TOLERANCE);

        let all = Tensor::<4>::full([1, 1, 1, 6], f32::NEG_INFINITY, &dev);
        let got = attention(q, k, v, Some(all), 0.5);
        assert_eq!(got.out.into_data().try_to_vec::<f32>().expect("f32"), vec![0.0; 64]);
        assert!(got.lse.into_data().try_to_vec::<f32>().expect("f32").iter().all(|x| *x == f32::NEG_INFINITY));
    }

    #[test]
    fn parts_merge_to_the_whole() {
        let dev = Device::flex();
        let (q, k, v) = (random([2, 3, 5, 8], 1, &dev), random([2, 3, 20, 8], 2, &dev), random([2, 3, 20, 8], 3, &dev));
        let part = |from: usize, n: usize| {
            attention(q.clone(), k.clone().narrow(2, from, n), v.clone().narrow(2, from, n), None, 0.4)
        };
        let want = attention(q.clone(), k.clone(), v.clone(), None, 0.4);
        for merge in [merge_attended, portable_merge] {
            let got = merge(merge(part(0, 7), part(7, 1)), part(8, 12));
            assert_close(got.out, want.out.clone(), TOLERANCE);
            assert_close(got.lse, want.lse.clone(), TOLERANCE);
        }
        // a part without any key to see changes nothing
        let hidden = Tensor::<4>::full([1, 1, 1, 20], f32::NEG_INFINITY, &dev);
        let none = || attention(q.clone(), k.clone(), v.clone(), Some(hidden.clone()), 0.4);
        for merge in [merge_attended, portable_merge] {
            assert_close(merge(none(), part(0, 20)).out, want.out.clone(), TOLERANCE);
            assert_eq!(merge(none(), none()).out.into_data().try_to_vec::<f32>().expect("f32"), vec![0.0; 240]);
        }
    }

    #[test]
    fn rows_do_not_depend_on_their_neighbours() {
        let dev = Device::flex();
        let (q, k, v) =
            (random([1, 2, 301, 24], 1, &dev), random([1, 2, 700, 24], 2, &dev), random([1, 2, 700, 24], 3, &dev));
        let whole = attention(q.clone(), k.clone(), v.clone(), None, 0.2).out;
        let part = attention(q.slice([0..1, 0..2, 77..201]), k, v, None, 0.2).out;
        whole.slice([0..1, 0..2, 77..201]).into_data().assert_eq(&part.into_data(), true);
    }
}
