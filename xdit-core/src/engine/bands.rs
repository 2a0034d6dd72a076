//! A rank's latents: its band of each patch, as the sampler left it.

use burn::tensor::Tensor;

use super::error::EngineError;
use super::halt::{Halt, Reason};
use crate::comm::{CommError, Communicator};
use crate::device::failure;
use crate::layout::Shares;
use crate::ops::cat;
use crate::sampler::{History, Sampler, Tokens};
use crate::schedule::Work;

/// This rank's latents of a picture.
pub struct Bands<'t> {
    sampler: &'t dyn Sampler,
    shares: Shares,
    rank: usize,
    latents: Vec<Tensor<3>>,
    histories: Vec<History>,
    /// The step's noise, of the whole picture.
    noise: Option<Tensor<3>>,
}

impl<'t> Bands<'t> {
    /// - `noise`: unit normal, of the whole picture
    pub fn new(sampler: &'t dyn Sampler, shares: Shares, rank: usize, noise: Tensor<3>) -> Self {
        let noise = match sampler.initial_scale() {
            1.0 => noise,
            scale => noise * scale,
        };
        let band = |patch| {
            let band = shares.img(patch, rank);
            noise.clone().narrow(1, band.start, band.len())
        };
        let latents: Vec<_> = (0..shares.n_patches()).map(band).collect();
        Self { sampler, rank, histories: vec![History::default(); latents.len()], latents, shares, noise: None }
    }

    /// Of a patch, or of all of them, one after the other.
    pub fn of(&self, patch: Option<usize>) -> Tensor<3> {
        cat(self.latents[self.shares.patches(patch)].to_vec(), 1)
    }

    /// Of a message with the latents of a patch, or of all of them.
    pub fn shape(&self, patch: Option<usize>) -> [usize; 3] {
        let [b, _, channels] = self.latents[0].dims();
        [b, self.shares.n_img(patch, self.rank), channels]
    }

    /// How many tokens of a patch, or of all of them, each rank holds.
    pub fn sizes(&self, patch: Option<usize>) -> Vec<usize> {
        self.shares.all_n_img(patch)
    }

    /// Of the whole picture.
    pub fn whole_shape(&self) -> [usize; 3] {
        let [b, _, channels] = self.latents[0].dims();
        [b, self.sizes(None).iter().sum(), channels]
    }

    /// Puts others in their place.
    pub fn set(&mut self, patch: Option<usize>, latents: Tensor<3>) {
        let mut at = 0;
        for patch in self.shares.patches(patch) {
            let n = self.shares.img(patch, self.rank).len();
            self.latents[patch] = latents.clone().narrow(1, at, n);
            at += n;
        }
    }

    /// The sampler's step.
    ///
    /// - `more_noise`: draws the whole picture's noise; called at the step's first patch if the sampler wants some
    pub fn step(&mut self, work: Work, prediction: Tensor<3>, more_noise: &mut dyn FnMut() -> Tensor<3>) {
        let Work { step, patch } = work;
        if work.is_first() {
            self.noise = self.sampler.needs_noise(step).then(more_noise);
        }
        let mut at = 0;
        for patch in self.shares.patches(patch) {
            let band = self.shares.img(patch, self.rank);
            let tokens = Tokens {
                latents: self.latents[patch].clone(),
                prediction: prediction.clone().narrow(1, at, band.len()),
                noise: self.noise.as_ref().map(|noise| noise.clone().narrow(1, band.start, band.len())),
            };
            self.latents[patch] = self.sampler.step(step, tokens, &mut self.histories[patch]);
            at += band.len();
        }
    }

    /// Ends the picture if what a step left is no numbers any more.
    pub fn check_finite(&self, work: Work, halt: &Halt) -> Result<(), EngineError> {
        let latents = self.of(work.patch);
        let device = latents.device();
        let data = latents.try_into_data().map_err(|e| EngineError::Read(failure(&device, &e.to_string())))?;
        let values = data.try_to_vec::<f32>().map_err(|e| EngineError::Read(e.to_string()))?;
        let n_bad = values.iter().filter(|x| !x.is_finite()).count();
        if n_bad > 0 {
            halt.ask(Reason::NotFinite { step: work.step, n_bad, n: values.len() });
        }
        Ok(())
    }

    /// The whole picture's latents, on every rank of the last stage.
    pub fn gather(self, sequence: &dyn Communicator) -> Result<Tensor<3>, CommError> {
        let shares = &self.shares;
        let gather = |(i, patch): (usize, Tensor<3>)| sequence.all_gather(patch, 1, &shares.all_n_img(Some(i)));
        Ok(cat(self.latents.into_iter().enumerate().map(gather).collect::<Result<_, _>>()?, 1))
    }
}
