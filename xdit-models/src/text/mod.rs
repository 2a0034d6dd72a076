//! Text encoders, one file each, and their tokenizers.

pub mod bert;
pub mod clip;
mod config;
pub mod t5;
pub mod tokenizer;

use burn::tensor::{DType, Int, Tensor, TensorData};

/// Rows of an embedding.
///
/// - `weight`: `[vocab_size, d_model]`
pub fn embed(weight: &Tensor<2>, ids: &[Vec<u32>]) -> Tensor<3> {
    let [vocab_size, d] = weight.dims();
    let (b, n) = (ids.len(), ids[0].len());
    let flat: Vec<i32> = ids.iter().flatten().map(|id| *id as i32).collect();
    assert_eq!(flat.len(), b * n, "texts of one batch have equally many tokens");
    if let Some(id) = flat.iter().find(|id| !(0..vocab_size as i64).contains(&i64::from(**id))) {
        panic!("token {id} is not in a vocabulary of {vocab_size}");
    }
    let at = Tensor::<1, Int>::from_data(TensorData::new(flat, [b * n]), (&weight.device(), DType::I32));
    weight.clone().select(0, at).reshape([b, n, d])
}

/// `[batch, 1, 1, tokens]`, on the device of `like`: `-inf` at tokens that may not be looked at.
pub fn hide<const D: usize>(mask: &[Vec<bool>], like: &Tensor<D>) -> Tensor<4> {
    let values: Vec<f32> = mask.iter().flatten().map(|seen| if *seen { 0.0 } else { f32::NEG_INFINITY }).collect();
    let dims = [mask.len(), 1, 1, mask[0].len()];
    Tensor::from_data(TensorData::new(values, dims), (&like.device(), DType::F32))
}
