//! stub
use burn::tensor::Tensor; use xdit_core::checkpoint::Loader; use crate::error::ModelError;
#[derive(serde::Deserialize)] pub struct T5Config{}
pub struct T5Encoder;
impl T5Encoder{ pub const UNUSED:&[&str]=&[]; pub fn load(_:&Loader<'_>,_:&T5Config)->Result<Self,ModelError>{Ok(Self)} pub fn forward(&self,_:&[Vec<u32>],_:Option<()>)->Tensor<3>{todo!()} }
