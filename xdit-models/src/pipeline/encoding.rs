//! Where a request's encoders run: one after the other on one rank, or each on a rank of its own.

use std::cell::Cell;

use burn::tensor::{DType, Device, Tensor, TensorData};
use xdit_core::comm::Communicator;
use xdit_core::dit::TextStates;

use crate::pipeline::error::PipelineError;

/// Numbers that say what a text became: see [`Made::head`].
const HEAD: usize = 6;

/// What an encoder made of a text.
#[derive(Debug, Clone)]
pub struct Made {
    /// Of its tokens.
    pub states: Option<TextStates>,
    /// Of the whole text, `[1, d_pooled]`.
    pub pooled: Option<Tensor<2>>,
}

/// The ranks that encode, seen from one of them. All of them start the same encoders in the same order, and then ask for
/// what these made in the same order.
pub struct Encoding<'a> {
    device: &'a Device,
    ranks: Option<&'a dyn Communicator>,
    started: Cell<usize>,
}

/// An encoder that was started.
pub struct Started {
    by: usize,
    made: Option<Vec<Made>>,
}

impl<'a> Encoding<'a> {
    /// This rank runs all encoders.
    pub fn alone(device: &'a Device) -> Self {
        Self { device, ranks: None, started: Cell::new(0) }
    }

    /// Each of these ranks runs some, at the same time, and sends what they made to all.
    pub fn shared(ranks: &'a dyn Communicator) -> Self {
        Self { device: ranks.device(), ranks: Some(ranks), started: Cell::new(0) }
    }

    /// Where encoders are to be.
    pub fn device(&self) -> &Device {
        self.device
    }

    /// Runs an encoder, if it is this rank's turn.
    ///
    /// # Errors
    /// The encoder's.
    pub fn start(&self, encode: impl FnOnce() -> Result<Vec<Made>, PipelineError>) -> Result<Started, PipelineError> {
        let by = self.ranks.map_or(0, |ranks| self.started.get() % ranks.size());
        self.started.set(self.started.get() + 1);
        let is_mine = self.ranks.is_none_or(|ranks| ranks.rank() == by);
        Ok(Started { by, made: is_mine.then(encode).transpose()? })
    }

    /// What it made of each of `n` texts.
    ///
    /// # Errors
    /// A rank that failed; a device that does not give results back.
    pub fn take(&self, started: Started, n: usize) -> Result<Vec<Made>, PipelineError> {
        let Started { by, made } = started;
        match (self.ranks, made) {
            (None, Some(made)) => Ok(made),
            (Some(ranks), made) => {
                (0..n).map(|i| Made::broadcast(ranks, by, made.as_ref().map(|made| &made[i]))).collect()
            }
            (None, None) => unreachable!("a rank alone runs all encoders"),
        }
    }
}

impl Made {
    /// Of tokens alone.
    pub fn states(states: TextStates) -> Self {
        Self { states: Some(states), pooled: None }
    }

    /// Its states.
    ///
    /// # Panics
    /// If there are none.
    pub fn into_states(self) -> TextStates {
        self.states.expect("an encoder of tokens")
    }

    /// Its vector.
    ///
    /// # Panics
    /// If there is none.
    pub fn into_pooled(self) -> Tensor<2> {
        self.pooled.expect("an encoder with a vector for the whole text")
    }

    /// Of which kind the numbers are; then tokens and channels of the states, whether there is a mask, channels of the
    /// pooled vector. 0 tokens or channels: none.
    fn head(&self) -> [f32; HEAD] {
        let [_, n, d] = self.states.as_ref().map_or([0; 3], |states| states.states.dims());
        let masked = self.states.as_ref().is_some_and(|states| states.seen.is_some());
        let pooled = self.pooled.as_ref().map_or(0, |pooled| pooled.dims()[1]);
        let of = |dtype: DType| match dtype {
            DType::BF16 => 1.0,
            DType::F16 => 2.0,
            _ => 0.0,
        };
        let kinds = [
            self.states.as_ref().map_or(0.0, |states| of(states.states.dtype())),
            self.pooled.as_ref().map_or(0.0, |pooled| of(pooled.dtype())),
        ];
        [kinds[0], kinds[1], n as f32, d as f32, f32::from(u8::from(masked)), pooled as f32]
    }

    /// That of rank `by`, on all ranks.
    fn broadcast(ranks: &dyn Communicator, by: usize, made: Option<&Self>) -> Result<Self, PipelineError> {
        let device = ranks.device();
        let upload = |values: Vec<f32>| {
            let n = values.len();
            Tensor::<1>::from_data(TensorData::new(values, [n]), device)
        };
        let head = ranks.broadcast(by, made.map(|made| upload(made.head().to_vec())), [HEAD], DType::F32)?;
        let head = read(head, "what an encoder made")?;
        let kind = |x: f32| [DType::F32, DType::BF16, DType::F16][x as usize];
        let [n, d, masked, pooled] = [2, 3, 4, 5].map(|i| head[i] as usize);
        let mine = made.and_then(|made| made.states.as_ref());
        let states = match n {
            0 => None,
            _ => {
                let states = mine.map(|states| states.states.clone());
                let states = ranks.broadcast(by, states, [1, n, d], kind(head[0]))?;
                let seen = match masked {
                    0 => None,
                    _ => {
                        let marks = |seen: &Vec<Vec<bool>>| {
                            seen.iter().flatten().map(|seen| f32::from(u8::from(*seen))).collect()
                        };
                        let mine = mine.and_then(|states| states.seen.as_ref()).map(|seen| upload(marks(seen)));
                        let seen = read(ranks.broadcast(by, mine, [n], DType::F32)?, "what an encoder may look at")?;
                        Some(vec![seen.into_iter().map(|x| x != 0.0).collect()])
                    }
                };
                Some(TextStates { states, seen })
            }
        };
        let pooled = match pooled {
            0 => None,
            d => {
                let mine = made.and_then(|made| made.pooled.clone());
                Some(ranks.broadcast(by, mine, [1, d], kind(head[1]))?)
            }
        };
        Ok(Self { states, pooled })
    }
}

fn read(x: Tensor<1>, what: &'static str) -> Result<Vec<f32>, PipelineError> {
    let fail = |message: String| PipelineError::Read { what, message };
    x.try_into_data().map_err(|e| fail(e.to_string()))?.try_to_vec().map_err(|e| fail(e.to_string()))
}
