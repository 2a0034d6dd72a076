//! Encoded prompts out of nothing.

use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};
use xdit_core::dit::{TextEmbeddings, TextStates};

/// What a model is told of a prompt, in numbers of tokens and channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextSizes {
    /// Tokens and channels of the states.
    pub txt: [usize; 2],
    /// Those of a second encoder that enter the model apart.
    pub txt_2: Option<[usize; 2]>,
    /// Channels of the vector for the whole prompt.
    pub pooled: Option<usize>,
    /// Whether the model is told which tokens are padding.
    pub masked: bool,
}

impl TextSizes {
    /// Tokens of all encoders together.
    pub fn n_tokens(&self) -> usize {
        self.txt[0] + self.txt_2.map_or(0, |txt| txt[0])
    }

    /// A prompt of unit normal numbers, none of whose tokens is padding.
    pub fn random(&self, device: &Device, dtype: FloatDType) -> TextEmbeddings {
        let options = || (device, DType::from(dtype));
        let states = |[n, d]: [usize; 2]| TextStates {
            states: Tensor::random([1, n, d], Distribution::Normal(0.0, 1.0), options()),
            seen: self.masked.then(|| vec![vec![true; n]]),
        };
        TextEmbeddings {
            txt: states(self.txt),
            txt_2: self.txt_2.map(states),
            pooled: self.pooled.map(|d| Tensor::random([1, d], Distribution::Normal(0.0, 1.0), options())),
        }
    }
}
