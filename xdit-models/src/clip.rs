//! stub
use burn::tensor::Tensor; use xdit_core::checkpoint::Loader; use crate::error::ModelError;
#[derive(serde::Deserialize)] pub struct ClipTextConfig{}
pub struct ClipText; pub struct ClipOutput{pub pooled:Tensor<2>}
impl ClipText{ pub const UNUSED:&[&str]=&[]; pub fn load(_:&Loader<'_>,_:&ClipTextConfig)->Result<Self,ModelError>{Ok(Self)} pub fn forward(&self,_:&[Vec<u32>])->ClipOutput{todo!()} }
