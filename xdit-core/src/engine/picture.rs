//! What is to be denoised, and by whom.

use std::ops::Range;

use burn::tensor::Tensor;

use super::guidance::Cfg;
use super::halt::Halt;
use crate::comm::Communicator;
use crate::dit::{Attention, Dit, TextEmbeddings, TokenGrid};

/// One picture (or one batch of equal size) to denoise.
pub struct Denoise<'a> {
    /// Draws unit normal noise for the whole picture, `[batch, img_tokens, channels]`, f32: at first what it starts from,
    /// then what samplers add at some steps. Every rank draws the same.
    pub noise: Box<dyn FnMut() -> Tensor<3> + 'a>,
    /// The picture in tokens.
    pub grid: TokenGrid,
    /// Its height and width in pixels.
    pub size: [usize; 2],
    /// The encoded prompt.
    pub text: &'a TextEmbeddings,
    /// For guidance-distilled models.
    pub guidance: Option<f32>,
    /// Classifier-free guidance, where it is wanted.
    pub cfg: Option<Cfg<'a>>,
}

/// A rank's share in one picture: whom it shares it with, and how its attention finds their keys.
pub struct Team<'a> {
    /// The ranks that share the picture's tokens, in the order of their bands. Each holds one band of every patch, as even
    /// as can be, and of the text tokens where the model's blocks change them.
    pub sequence: &'a dyn Communicator,
    /// How many of them, neighbours, trade heads.
    pub ulysses: usize,
    /// The ranks that share classifier-free guidance: the first predicts with the prompt, the second with the negative one.
    pub cfg: &'a dyn Communicator,
    /// The stages that share the blocks, the first one first.
    pub stages: &'a dyn Communicator,
    /// This stage's blocks.
    pub blocks: Range<usize>,
    /// Patches that the stages work on at once; one where there is one stage.
    pub n_patches: usize,
    /// Steps in which the stages work on the whole picture, one after the other.
    pub warmup_steps: usize,
    /// Whether the prompts of guidance that a rank predicts with go through the blocks as one batch, where they are of one
    /// shape and there is one stage: a GPU has more to do at a time, and the results have the same bits.
    pub joins_prompts: bool,
    /// The attention of this rank's tokens.
    pub attn: &'a mut dyn Attention,
    /// Shared by all ranks of the picture.
    pub halt: &'a Halt,
}

impl<'a> Team<'a> {
    /// One device.
    pub fn alone(dit: &dyn Dit, comm: &'a dyn Communicator, attn: &'a mut dyn Attention, halt: &'a Halt) -> Self {
        let blocks = 0..dit.spec().n_blocks;
        Self {
            sequence: comm,
            ulysses: 1,
            cfg: comm,
            stages: comm,
            blocks,
            n_patches: 1,
            warmup_steps: 0,
            joins_prompts: false,
            attn,
            halt,
        }
    }
}
