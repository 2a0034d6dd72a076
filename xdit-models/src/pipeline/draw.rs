//! What a rank does for a request: its share of each of its replica's pictures, and the decoding of them.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use xdit_core::comm::Sent;
use xdit_core::device::failure;
use xdit_core::dit::{Dit, TextEmbeddings, TextStates};
use xdit_core::engine::{self, Cfg, Denoise, EngineError, Halt, Reason, SkipLayers};
use xdit_core::mesh::Mesh;
use xdit_core::noise::TorchGenerator;
use xdit_core::observer::{Observer, Phase};
use xdit_core::sampler::Sampler;

use crate::pipeline::binning;
use crate::pipeline::error::PipelineError;
use crate::pipeline::geometry::Geometry;
use crate::pipeline::request::{Content, OutputType, Settings};
use crate::pipeline::worker::Worker;
use crate::pipeline::workers::Desk;
use crate::vae::Vae;
use crate::vae::bands::{BandError, Bands};
use crate::vae::tiles::{Cancelled, Tiling};

/// A pipeline stage: the transformer with its blocks alone, on a device.
pub struct Stage {
    /// Numbers of its blocks.
    pub blocks: Range<usize>,
    /// Bytes that were read from the checkpoint for it.
    pub weight_bytes: u64,
    /// The transformer.
    pub dit: Box<dyn Dit>,
}

/// All pictures of a request.
pub struct Pictures {
    /// Who works with whom.
    pub mesh: Mesh,
    /// Of a picture.
    pub geometry: Geometry,
    /// Of all pictures.
    pub settings: Settings,
    /// What they are drawn with.
    pub sampler: Arc<dyn Sampler>,
    /// What distilled models are told.
    pub guidance: Option<f32>,
    /// Scale of classifier-free guidance.
    pub cfg_scale: f32,
    /// On top of it.
    pub skip_layers: Option<SkipLayers>,
    /// Patches that pipeline stages work on at once.
    pub n_patches: usize,
    /// Steps in which they work on the whole picture.
    pub warmup_steps: usize,
    /// Encoded.
    pub prompts: Vec<TextEmbeddings>,
    /// One for all prompts, one for each, or no guidance.
    pub negative: Vec<TextEmbeddings>,
    /// By prompt and picture of it.
    pub seeds: Vec<Vec<u64>>,
    /// Pictures or latents.
    pub output: OutputType,
    /// By picture.
    pub halts: Vec<Halt>,
    /// Whether ranks are processes, of which the first hands over all pictures.
    pub apart: bool,
}

/// What a rank hands over.
pub enum Product {
    /// A picture, by its prompt and its number among the prompt's.
    Picture { prompt: usize, image: usize, content: Content },
    /// Bytes of keys and values that the rank kept from step to step.
    Kept(u64),
}

impl Pictures {
    /// Draws a rank's share.
    ///
    /// - `vae`: on devices that decode
    pub fn draw(
        &self,
        worker: &mut Worker,
        stage: &Stage,
        vae: Option<&dyn Vae>,
        desk: &mut Desk<Product>,
    ) -> Result<(), PipelineError> {
        let device = worker.device().clone();
        let here = |texts: &[TextEmbeddings]| texts.iter().map(|text| on_device(text, &device)).collect::<Vec<_>>();
        let (prompts, negative) = (here(&self.prompts), here(&self.negative));
        let per_prompt = self.seeds.first().map_or(1, Vec::len);
        let (mut outcome, mut like) = (Ok(()), None);
        for i in self.mesh.share(worker.replica, self.halts.len()) {
            if desk.is_cancelled() {
                // the ranks of the picture may be at it already: then it goes on as far as they are
                self.halts[i].ask(Reason::Cancelled);
            }
            let (prompt, image) = (i / per_prompt, i % per_prompt);
            let negative = negative.get(prompt).or(negative.last());
            let request = self.request(&prompts[prompt], negative, self.seeds[prompt][image], &device);
            let latents = match self.denoise(worker, stage, request, &self.halts[i], desk) {
                Ok(latents) => latents,
                Err(error) => {
                    outcome = outcome.and(Err(error.into()));
                    break;
                }
            };
            let decoding = Decoding { vae, worker, halt: &self.halts[i] };
            match self.content(latents, &decoding, desk) {
                Ok(None) => {}
                Ok(Some(content)) if !self.apart => desk.hand_over(Product::Picture { prompt, image, content }),
                Ok(Some(content)) if worker.world.rank() == 0 => {
                    like.get_or_insert_with(|| content.clone());
                    desk.hand_over(Product::Picture { prompt, image, content });
                }
                Ok(Some(content)) => {
                    let sent = worker.world.send(content.to_tensor(&device), 0).and_then(Sent::wait);
                    outcome = outcome.and(sent.map_err(Into::into));
                }
                // ranks of the replica that know nothing of it end with the next picture
                Err(error) => {
                    desk.cancel();
                    outcome = outcome.and(Err(error));
                }
            }
        }
        desk.hand_over(Product::Kept(worker.attn.kept_bytes()));
        if let (Ok(()), Some(like)) = (&outcome, like) {
            self.collect(worker, &like, desk)?;
        }
        outcome
    }

    /// Hands over what the other replicas, which are other processes, have drawn.
    ///
    /// - `like`: a picture of this request
    fn collect(&self, worker: &Worker, like: &Content, desk: &mut Desk<Product>) -> Result<(), PipelineError> {
        let per_prompt = self.seeds.first().map_or(1, Vec::len);
        let n = self.halts.len();
        let speakers: Vec<_> = (0..worker.world.size()).filter(|rank| self.mesh.speaks(*rank)).collect();
        for i in (0..n).filter(|i| i % speakers.len() != worker.replica) {
            let dims = [like.n_values()];
            let values = worker.world.recv(speakers[i % speakers.len()], dims, DType::F32)?.wait()?;
            let content = like.with(read(values, "a picture")?);
            desk.hand_over(Product::Picture { prompt: i / per_prompt, image: i % per_prompt, content });
        }
        Ok(())
    }

    pub fn request<'a>(
        &'a self,
        text: &'a TextEmbeddings,
        negative: Option<&'a TextEmbeddings>,
        seed: u64,
        device: &'a Device,
    ) -> Denoise<'a> {
        let [height, width] = self.settings.drawn;
        let mut generator = TorchGenerator::seeded(seed);
        Denoise {
            noise: Box::new(move || {
                // drawn on the host from the seed alone, in the shape in which diffusers draws it
                let dims = self.geometry.latent_dims(height, width);
                let values = generator.randn(dims.iter().product());
                self.geometry.pack(Tensor::from_data(TensorData::new(values, dims), device))
            }),
            grid: self.geometry.grid(height, width),
            size: self.settings.drawn,
            text,
            guidance: self.guidance,
            cfg: negative.map(|negative| Cfg {
                negative,
                scale: self.cfg_scale,
                rescale: self.settings.guidance_rescale,
                skip_layers: self.skip_layers.as_ref(),
            }),
        }
    }

    pub fn denoise(
        &self,
        worker: &mut Worker,
        stage: &Stage,
        request: Denoise<'_>,
        halt: &Halt,
        observer: &mut dyn Observer,
    ) -> Result<Tensor<3>, EngineError> {
        let team = worker.team(&self.mesh, stage.blocks.clone(), [self.n_patches, self.warmup_steps], halt);
        let latents = engine::denoise(stage.dit.as_ref(), team, self.sampler.as_ref(), request, observer);
        if let Err(error) = &latents
            && !error.is_agreed()
        {
            // the others learn why
            worker.world.abort(&error.to_string());
        }
        latents
    }

    /// What the rank that speaks hands over.
    fn content(
        &self,
        latents: Tensor<3>,
        decoding: &Decoding<'_>,
        desk: &mut Desk<Product>,
    ) -> Result<Option<Content>, PipelineError> {
        let [height, width] = self.settings.drawn;
        let unpack = |latents| self.geometry.unpack(latents, height, width);
        let content = |values, dims: &[usize]| Content::Latent { dims: dims.into(), values };
        match self.output {
            OutputType::Latent if !decoding.worker.speaks => Ok(None),
            OutputType::Latent if self.geometry.packed => {
                let dims = latents.dims();
                Ok(Some(content(read(latents, "the latents")?, &dims)))
            }
            OutputType::Latent => {
                let latents = unpack(latents);
                let dims = latents.dims();
                Ok(Some(content(read(latents, "the latents")?, &dims)))
            }
            OutputType::Picture => {
                let picture = self.decode(unpack(latents), decoding, desk)?;
                picture.map(|picture| self.picture(picture)).transpose()
            }
        }
    }

    /// The picture, on the rank that speaks.
    fn decode(
        &self,
        latents: Tensor<4>,
        decoding: &Decoding<'_>,
        desk: &mut Desk<Product>,
    ) -> Result<Option<Tensor<4>>, PipelineError> {
        let Decoding { vae, worker, halt } = *decoding;
        let in_tiles = Tiling::of_picture(self.settings.drawn) != Tiling::Off;
        let rows = latents.dims()[2];
        // there is no band for each rank of a picture of few rows, which is no work
        let bands = match worker.decoders.as_deref() {
            Some(ranks) if !in_tiles && ranks.size() <= rows => Bands::of(ranks, rows),
            _ if worker.speaks => Bands::WHOLE,
            _ => return Ok(None),
        };
        let vae = vae.expect("ranks that decode have a decoder");
        if in_tiles {
            let picture = vae.decode_observed(latents, &mut Beating { worker, inner: desk });
            return Ok(Some(picture.map_err(BandError::Cancelled)?));
        }
        desk.begin(Phase::Decode, "vae", 1);
        // the steps behind those of denoising, the first of which the latents are
        let mut step = self.sampler.timesteps().len();
        let mut go_on = || {
            worker.world.beat();
            if desk.advance(Phase::Decode, 0).is_break() {
                halt.ask(Reason::Cancelled);
            }
            step += 1;
            if halt.enter(step) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let band = vae.decode_band(vae.unscale(latents), &bands, &mut go_on)?;
        let picture = bands.gather(band, vae.factors().height)?;
        if desk.advance(Phase::Decode, 1).is_break() {
            return Err(BandError::Cancelled(Cancelled).into());
        }
        desk.end(Phase::Decode);
        Ok(picture)
    }

    /// - `picture`: `[1, 3, height, width]`, nominally in -1..=1
    fn picture(&self, picture: Tensor<4>) -> Result<Content, PipelineError> {
        let dtype = picture.dtype();
        let values = read(picture.permute([0, 2, 3, 1]), "the picture")?;
        let n_bad = values.iter().filter(|x| !x.is_finite()).count();
        if n_bad > 0 {
            return Err(PipelineError::NotFinite { dtype, n_bad, n: values.len() });
        }
        let (height, width) = (self.settings.height, self.settings.width);
        let values = binning::resize_and_crop(values, self.settings.drawn, [height, width]);
        // as diffusers: to [0, 1], clamped, rounded half to even
        let rgb = values.iter().map(|x| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8).collect();
        Ok(Content::Picture { width, height, rgb })
    }
}

/// Who decodes a picture.
struct Decoding<'a> {
    vae: Option<&'a dyn Vae>,
    worker: &'a Worker,
    halt: &'a Halt,
}

/// An observer that also gives a sign of life to the ranks that may wait for this one.
pub struct Beating<'a, 'd, T> {
    pub worker: &'a Worker,
    pub inner: &'d mut Desk<T>,
}

impl<T> Observer for Beating<'_, '_, T> {
    fn begin(&mut self, phase: Phase, what: &str, total: u64) {
        self.inner.begin(phase, what, total);
    }

    fn advance(&mut self, phase: Phase, done: u64) -> ControlFlow<()> {
        self.worker.world.beat();
        self.inner.advance(phase, done)
    }

    fn end(&mut self, phase: Phase) {
        self.inner.end(phase);
    }

    fn warn(&mut self, message: &str) {
        self.inner.warn(message);
    }
}

fn on_device(text: &TextEmbeddings, device: &Device) -> TextEmbeddings {
    let states = |txt: &TextStates| TextStates { states: txt.states.clone().to_device(device), seen: txt.seen.clone() };
    TextEmbeddings {
        txt: states(&text.txt),
        txt_2: text.txt_2.as_ref().map(states),
        pooled: text.pooled.as_ref().map(|pooled| pooled.clone().to_device(device)),
    }
}

fn read<const D: usize>(x: Tensor<D>, what: &'static str) -> Result<Vec<f32>, PipelineError> {
    let fail = |message: String| PipelineError::Read { what, message };
    let device = x.device();
    let data = xdit_core::ops::to_f32(x).try_into_data().map_err(|e| fail(failure(&device, &e.to_string())))?;
    data.try_to_vec::<f32>().map_err(|e| fail(e.to_string()))
}
