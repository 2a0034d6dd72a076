//! Between stages: streams and latents as tensors on their way.

use std::collections::VecDeque;

use burn::tensor::{DType, Tensor};

use super::halt::Halt;
use crate::comm::{CommError, Communicator, Posted, Sent};
use crate::dit::Streams;
use crate::schedule::{Action, Message};

/// What a stream of a pass is made of on its way.
#[derive(Debug, Clone)]
pub struct StreamShapes {
    /// Where the text goes along.
    pub txt: Option<[usize; 3]>,
    pub img: [usize; 3],
    pub n_skips: usize,
}

/// A stage's messages, in the order in which they come and go.
pub struct Mail<'t> {
    stages: &'t dyn Communicator,
    halt: &'t Halt,
    /// Of the streams.
    dtype: DType,
    /// To come, in their order; the first one is posted.
    incoming: VecDeque<(usize, Message)>,
    posted: Vec<Posted<3>>,
    sent: Vec<Sent>,
}

impl<'t> Mail<'t> {
    pub fn new(stages: &'t dyn Communicator, halt: &'t Halt, dtype: DType, actions: &[Action]) -> Self {
        let incoming = actions.iter().filter_map(|action| match action {
            Action::Receive { from, message } => Some((*from, *message)),
            _ => None,
        });
        Self { stages, halt, dtype, incoming: incoming.collect(), posted: Vec::new(), sent: Vec::new() }
    }

    /// The message that comes next, if it is not posted yet and anybody will send it.
    pub fn to_post(&self) -> Option<Message> {
        let (_, message) = self.incoming.front().filter(|_| self.posted.is_empty())?;
        self.halt.enter(message.work.step).then_some(*message)
    }

    /// Starts to receive the next message, whenever it comes: latents of one shape, or streams of several passes.
    pub fn post_latents(&mut self, shape: [usize; 3]) -> Result<(), CommError> {
        self.post(shape, DType::F32)
    }

    /// See [`post_latents`](Self::post_latents).
    pub fn post_streams(&mut self, shapes: &StreamShapes, n_passes: usize) -> Result<(), CommError> {
        for _ in 0..n_passes {
            shapes.txt.map_or(Ok(()), |txt| self.post(txt, self.dtype))?;
            (0..=shapes.n_skips).try_for_each(|_| self.post(shapes.img, self.dtype))?;
        }
        Ok(())
    }

    fn post(&mut self, shape: [usize; 3], dtype: DType) -> Result<(), CommError> {
        let (from, _) = self.incoming.front().expect("a message to come");
        self.posted.push(self.stages.recv(*from, shape, dtype)?);
        Ok(())
    }

    /// Waits for what was posted.
    fn receive(&mut self) -> Result<VecDeque<Tensor<3>>, CommError> {
        self.incoming.pop_front();
        std::mem::take(&mut self.posted).into_iter().map(Posted::wait).collect()
    }

    /// Waits for the latents that were posted.
    pub fn receive_latents(&mut self) -> Result<Tensor<3>, CommError> {
        Ok(self.receive()?.pop_front().expect("one was posted"))
    }

    /// Waits for the streams that were posted, of each pass.
    pub fn receive_streams(&mut self, shapes: &StreamShapes) -> Result<Vec<Streams>, CommError> {
        let mut tensors = self.receive()?;
        let mut all = Vec::new();
        while !tensors.is_empty() {
            let mut next = || tensors.pop_front().expect("as many as were posted");
            let txt = shapes.txt.map(|_| next());
            all.push(Streams { txt, img: next(), skips: (0..shapes.n_skips).map(|_| next()).collect() });
        }
        Ok(all)
    }

    /// Sends tensors; never waits for their receiver.
    fn send(&mut self, to: usize, tensors: impl Iterator<Item = Tensor<3>>) -> Result<(), CommError> {
        // those of the last time have been read by now, or are about to be
        std::mem::take(&mut self.sent).into_iter().try_for_each(Sent::wait)?;
        self.sent = tensors.map(|x| self.stages.send(x, to)).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Sends latents; never waits for their receiver.
    pub fn send_latents(&mut self, to: usize, latents: Tensor<3>) -> Result<(), CommError> {
        self.send(to, std::iter::once(latents))
    }

    /// Sends the streams of each pass; never waits for their receiver.
    ///
    /// - `with_txt`: whether the text goes along
    pub fn send_streams(&mut self, to: usize, streams: Vec<Streams>, with_txt: bool) -> Result<(), CommError> {
        let flat = |x: Streams| x.txt.filter(|_| with_txt).into_iter().chain([x.img]).chain(x.skips);
        self.send(to, streams.into_iter().flat_map(flat))
    }

    /// Waits until all that was sent has been taken over.
    pub fn finish(self) -> Result<(), CommError> {
        self.sent.into_iter().try_for_each(Sent::wait)
    }
}
