//! From a request to pictures: the order of things, the same for every architecture.

use std::path::PathBuf;

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use serde::Deserialize;
use xdit_attn::Local;
use xdit_core::checkpoint::LoadError;
use xdit_core::dit::{Dit, TextEmbeddings};
use xdit_core::engine::{self, Cfg, Denoise, EngineError};
use xdit_core::folder::{PipelineFolder, Source};
use xdit_core::noise::TorchGenerator;
use xdit_core::observer::{Observer, Phase};
use xdit_core::sampler::SamplerError;

use crate::autoencoder_kl::AutoencoderKl;
use crate::components::Components;
use crate::error::ModelError;
use crate::hub::HubError;
use crate::latents::Geometry;
use crate::registry::{self, Architecture};
use crate::tokenizer::TokenizerError;
use crate::{builtin, hub};

/// Where a pipeline comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// The small model inside the program.
    Builtin,
    /// A diffusers pipeline folder.
    Folder(PathBuf),
    /// A repository of the Hugging Face hub.
    Hub {
        /// `owner/name`
        id: String,
        /// Branch, tag or commit.
        revision: Option<String>,
    },
}

impl ModelSource {
    /// A folder that exists, else a hub id `owner/name`, else a folder that does not exist.
    pub fn parse(model: &str) -> Self {
        let is_id = model.split('/').count() == 2
            && model.split('/').all(|part| {
                !part.is_empty()
                    && !part.starts_with('.')
                    && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            });
        if is_id && !PathBuf::from(model).exists() {
            Self::Hub { id: model.into(), revision: None }
        } else {
            Self::Folder(model.into())
        }
    }
}

/// How to open a pipeline.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where everything is computed.
    pub device: Device,
    /// Precision of weights and activations; norms, softmax, samplers and latents are f32 in any case.
    pub dtype: FloatDType,
    /// The checkpoint's variant, such as `fp16`.
    pub variant: Option<String>,
}

/// Why there is no picture. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The folder or a checkpoint in it.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A model's configuration.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tokenizer's files.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A scheduler's configuration, or the number of steps.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The hub.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The denoising loop.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The request cannot be served by this model.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// `model_index.json` names a pipeline that is not built.
    #[error("{} holds a {class}, which is not supported; supported are {supported}", path.display())]
    UnknownPipeline {
        /// The folder.
        path: PathBuf,
        /// Its class.
        class: String,
        /// What there is.
        supported: String,
    },
    /// A component has a class that this pipeline cannot run.
    #[error("{component} is a {found}; this pipeline runs {expected}")]
    UnknownClass {
        /// The component.
        component: String,
        /// Its class.
        found: String,
        /// What would run.
        expected: &'static str,
    },
    /// The observer asked for it.
    #[error("cancelled during {0}")]
    Cancelled(Phase),
    /// The picture overflowed.
    #[error("the decoded picture holds {n_bad} non-finite values of {n}; try --dtype bf16 or f32")]
    NotFinite {
        /// NaN and infinite values.
        n_bad: usize,
        /// Values in all.
        n: usize,
    },
    /// The device could not give a result back.
    #[error("reading {what} from the device failed: {message}")]
    Read {
        /// Which result.
        what: &'static str,
        /// What the device says.
        message: String,
    },
}

/// What is wrong with a request.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum RequestError {
    /// Nothing to draw.
    #[error("prompt {index} is empty")]
    EmptyPrompt {
        /// Which, from 1.
        index: usize,
    },
    /// No prompt at all.
    #[error("no prompt given")]
    NoPrompt,
    /// The size does not fit the model's grid.
    #[error("{axis} {size} is not a multiple of {multiple}; the nearest that fit are {below} and {above}")]
    Size {
        /// `height` or `width`
        axis: &'static str,
        /// What was asked for, in pixels.
        size: usize,
        /// What it must be a multiple of.
        multiple: usize,
        /// The nearest that fits, not above.
        below: usize,
        /// The nearest that fits above.
        above: usize,
    },
    /// The size is nothing, or beyond what any model draws.
    #[error("{axis} {size} is not within {min} to {max} pixels")]
    SizeRange {
        /// `height` or `width`
        axis: &'static str,
        /// What was asked for, in pixels.
        size: usize,
        /// Smallest.
        min: usize,
        /// Largest.
        max: usize,
    },
    /// A number outside its range.
    #[error("{name} {value} is not within {min} to {max}")]
    Range {
        /// The parameter.
        name: &'static str,
        /// What was asked for.
        value: f64,
        /// Smallest.
        min: f64,
        /// Largest.
        max: f64,
    },
    /// Neither one negative prompt for all prompts nor one for each.
    #[error("{negative} negative prompts for {prompts} prompts; give one for all or one for each")]
    NegativeCount {
        /// Negative prompts.
        negative: usize,
        /// Prompts.
        prompts: usize,
    },
}

/// What to draw. `None` means the model's default.
#[derive(Debug, Clone)]
pub struct Request {
    /// One or more captions.
    pub prompts: Vec<String>,
    /// None, one for all prompts, or one for each.
    pub negative_prompts: Vec<String>,
    /// Pixels.
    pub height: Option<usize>,
    /// Pixels.
    pub width: Option<usize>,
    /// Denoising steps.
    pub num_inference_steps: Option<usize>,
    /// For guidance-distilled models: the guidance they are told.
    pub guidance_scale: Option<f32>,
    /// Classifier-free guidance with the negative prompt, where above 1.
    pub true_cfg_scale: Option<f32>,
    /// Tokens of the T5 encoder.
    pub max_sequence_length: Option<usize>,
    /// Of the first picture of each prompt; picture `k` has `seed + k`.
    pub seed: u64,
    /// Pictures per prompt.
    pub num_images: usize,
    /// Latents instead of pictures.
    pub output: OutputType,
}

impl Request {
    /// One picture of `prompt` with the model's defaults and seed 42.
    pub fn new(prompt: &str) -> Self {
        Self {
            prompts: vec![prompt.into()],
            negative_prompts: Vec::new(),
            height: None,
            width: None,
            num_inference_steps: None,
            guidance_scale: None,
            true_cfg_scale: None,
            max_sequence_length: None,
            seed: 42,
            num_images: 1,
            output: OutputType::Picture,
        }
    }
}

/// What [`Pipeline::generate`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutputType {
    /// Decoded pictures.
    #[default]
    Picture,
    /// Latents as diffusers' `output_type="latent"` returns them.
    Latent,
}

/// One result.
#[derive(Debug, Clone)]
pub struct Output {
    /// Index of the prompt.
    pub prompt: usize,
    /// Index of the picture among its prompt's.
    pub image: usize,
    /// The seed that draws it again.
    pub seed: u64,
    /// What was drawn.
    pub content: Content,
}

/// A picture or its latents.
#[derive(Debug, Clone)]
pub enum Content {
    /// Rows from the top, three bytes a pixel.
    Picture {
        /// Pixels.
        width: usize,
        /// Pixels.
        height: usize,
        /// `3 * width * height` bytes
        rgb: Vec<u8>,
    },
    /// f32 latents.
    Latent {
        /// `[1, img_tokens, channels]`
        dims: [usize; 3],
        /// Row-major.
        values: Vec<f32>,
    },
}

/// A request with every default filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Pixels.
    pub height: usize,
    /// Pixels.
    pub width: usize,
    /// Denoising steps.
    pub num_inference_steps: usize,
    /// The guidance that a distilled model is told; of no effect on others.
    pub guidance_scale: f32,
    /// 1 where there is no negative prompt to guide away from.
    pub true_cfg_scale: f32,
    /// Tokens of the T5 encoder.
    pub max_sequence_length: usize,
}

/// Recommended settings. A folder may bring its own in `xdit.json`; what is absent there is the architecture's.
#[derive(Debug, Clone, Copy, Deserialize, Default)]
pub struct Defaults {
    /// Pixels.
    pub height: Option<usize>,
    /// Pixels.
    pub width: Option<usize>,
    /// Denoising steps.
    pub num_inference_steps: Option<usize>,
    /// Guidance of distilled models.
    pub guidance_scale: Option<f32>,
    /// Classifier-free guidance.
    pub true_cfg_scale: Option<f32>,
    /// Tokens of the T5 encoder.
    pub max_sequence_length: Option<usize>,
}

impl Defaults {
    /// `self`, and `other` where `self` says nothing.
    pub fn or(self, other: Self) -> Self {
        Self {
            height: self.height.or(other.height),
            width: self.width.or(other.width),
            num_inference_steps: self.num_inference_steps.or(other.num_inference_steps),
            guidance_scale: self.guidance_scale.or(other.guidance_scale),
            true_cfg_scale: self.true_cfg_scale.or(other.true_cfg_scale),
            max_sequence_length: self.max_sequence_length.or(other.max_sequence_length),
        }
    }
}

/// Largest side of a picture.
const MAX_SIDE: usize = 16_384;

/// An opened pipeline.
pub struct Pipeline {
    components: Components,
    architecture: &'static dyn Architecture,
    geometry: Geometry,
    defaults: Defaults,
    // read by the first request and kept for the next
    dit: Option<Box<dyn Dit>>,
    vae: Option<AutoencoderKl>,
}

impl Pipeline {
    /// Reads the pipeline's configuration; the weights stay on disk until a request needs them.
    ///
    /// # Errors
    /// A hub that does not answer; a folder that is no pipeline, or of a class that is not built.
    pub fn open(source: &ModelSource, options: Options, observer: &mut dyn Observer) -> Result<Self, PipelineError> {
        let source = match source {
            ModelSource::Builtin => Source::Embedded(builtin::FILES),
            ModelSource::Folder(path) => Source::Dir(path.clone()),
            ModelSource::Hub { id, revision } => {
                Source::Dir(hub::fetch_observed(id, revision.as_deref(), options.variant.as_deref(), observer)?)
            }
        };
        let folder = PipelineFolder::open(source)?;
        let architecture = registry::find(folder.class_name()).ok_or_else(|| PipelineError::UnknownPipeline {
            path: folder.path(""),
            class: folder.class_name().into(),
            supported: registry::ARCHITECTURES.iter().map(|a| a.class_name()).collect::<Vec<_>>().join(", "),
        })?;
        let own = match folder.exists("xdit.json") {
            true => serde_json::from_str(&folder.read_text("xdit.json")?)
                .map_err(|source| LoadError::Json { path: folder.path("xdit.json"), source })?,
            false => Defaults::default(),
        };
        let components = Components::new(folder, options);
        architecture.check(&components)?;
        let geometry = architecture.geometry(&components)?;
        let defaults = own.or(architecture.defaults(&components)?);
        Ok(Self { components, architecture, geometry, defaults, dit: None, vae: None })
    }

    /// The folder behind it.
    pub fn folder(&self) -> &PipelineFolder {
        &self.components.folder
    }

    /// The request's settings with this model's defaults.
    ///
    /// # Errors
    /// A setting that this model cannot serve.
    pub fn settings(&self, request: &Request) -> Result<Settings, RequestError> {
        let d = &self.defaults;
        let settings = Settings {
            height: request.height.or(d.height).unwrap_or(1024),
            width: request.width.or(d.width).unwrap_or(1024),
            num_inference_steps: request.num_inference_steps.or(d.num_inference_steps).unwrap_or(28),
            guidance_scale: request.guidance_scale.or(d.guidance_scale).unwrap_or(3.5),
            true_cfg_scale: request.true_cfg_scale.or(d.true_cfg_scale).unwrap_or(1.0),
            max_sequence_length: request.max_sequence_length.or(d.max_sequence_length).unwrap_or(512),
        };
        let multiple = self.geometry.pixels_per_token();
        for (axis, size) in [("height", settings.height), ("width", settings.width)] {
            if !(multiple..=MAX_SIDE).contains(&size) {
                return Err(RequestError::SizeRange { axis, size, min: multiple, max: MAX_SIDE });
            }
            if !size.is_multiple_of(multiple) {
                let below = size / multiple * multiple;
                return Err(RequestError::Size { axis, size, multiple, below, above: below + multiple });
            }
        }
        let range = |name, value: f64, min: f64, max: f64| match (min..=max).contains(&value) {
            true => Ok(()),
            false => Err(RequestError::Range { name, value, min, max }),
        };
        range("num-inference-steps", settings.num_inference_steps as f64, 1.0, 1000.0)?;
        range("max-sequence-length", settings.max_sequence_length as f64, 1.0, 512.0)?;
        range("guidance-scale", settings.guidance_scale.into(), 0.0, 1000.0)?;
        range("true-cfg-scale", settings.true_cfg_scale.into(), 0.0, 1000.0)?;
        range("num-images", request.num_images as f64, 1.0, 100_000.0)?;
        if request.prompts.is_empty() {
            return Err(RequestError::NoPrompt);
        }
        if let Some(i) = request.prompts.iter().position(|p| p.trim().is_empty()) {
            return Err(RequestError::EmptyPrompt { index: i + 1 });
        }
        let (negative, prompts) = (request.negative_prompts.len(), request.prompts.len());
        if negative > 1 && negative != prompts {
            return Err(RequestError::NegativeCount { negative, prompts });
        }
        Ok(settings)
    }

    /// Draws all pictures of a request, prompt by prompt.
    ///
    /// # Errors
    /// A request that cannot be served, weights that cannot be read, a cancelled or failed denoising loop.
    pub fn generate(&mut self, request: &Request, observer: &mut dyn Observer) -> Result<Vec<Output>, PipelineError> {
        let settings = self.settings(request)?;
        let guided = !request.negative_prompts.is_empty() && settings.true_cfg_scale > 1.0;
        if !request.negative_prompts.is_empty() && !guided {
            observer.warn(&format!(
                "the negative prompt has no effect with true-cfg-scale {}; give one above 1",
                settings.true_cfg_scale
            ));
        }
        // before any weight is read: a scheduler that is not supported shows here
        let positions = self.geometry.positions(settings.height, settings.width);
        let sampler = self.architecture.sampler(&self.components, settings.num_inference_steps, positions.len())?;
        let (prompts, negative) = self.encode(request, &settings, guided, observer)?;

        if self.dit.is_none() {
            self.dit = Some(self.architecture.dit(&self.components, observer)?);
        }
        let dit = self.dit.as_deref().expect("read above");

        let mut outputs = Vec::new();
        for (prompt, text) in prompts.iter().enumerate() {
            // one negative prompt serves all prompts
            let negative = negative.get(prompt).or(negative.last());
            for image in 0..request.num_images {
                let seed = request.seed.wrapping_add(image as u64);
                let request_one = Denoise {
                    noise: self.noise(seed, &settings),
                    positions: &positions,
                    text,
                    guidance: Some(settings.guidance_scale),
                    cfg: negative.map(|negative| Cfg { negative, scale: settings.true_cfg_scale }),
                };
                let latents = engine::denoise(dit, &mut Local, sampler.as_ref(), request_one, observer)?;
                outputs.push((prompt, image, seed, latents));
            }
        }

        let mut results = Vec::with_capacity(outputs.len());
        for (prompt, image, seed, latents) in outputs {
            let content = match request.output {
                OutputType::Picture => self.decode(latents, &settings, observer)?,
                OutputType::Latent => Content::Latent { dims: latents.dims(), values: read(latents, "the latents")? },
            };
            results.push(Output { prompt, image, seed, content });
        }
        Ok(results)
    }

    /// Every prompt once; the encoders are gone when this returns.
    fn encode(
        &self,
        request: &Request,
        settings: &Settings,
        guided: bool,
        observer: &mut dyn Observer,
    ) -> Result<(Vec<TextEmbeddings>, Vec<TextEmbeddings>), PipelineError> {
        let mut texts: Vec<&str> = request.prompts.iter().map(String::as_str).collect();
        if guided {
            texts.extend(request.negative_prompts.iter().map(String::as_str));
        }
        let mut all = self.architecture.encode(&self.components, &texts, settings.max_sequence_length, observer)?;
        let negative = all.split_off(request.prompts.len());
        Ok((all, negative))
    }

    /// The starting latents: drawn on the host from the seed alone, in the shape that diffusers draws them.
    fn noise(&self, seed: u64, settings: &Settings) -> Tensor<3> {
        let dims = self.geometry.latent_dims(settings.height, settings.width);
        let values = TorchGenerator::seeded(seed).randn(dims.iter().product());
        self.geometry.pack(Tensor::from_data(TensorData::new(values, dims), &self.components.options.device))
    }

    fn decode(
        &mut self,
        latents: Tensor<3>,
        settings: &Settings,
        observer: &mut dyn Observer,
    ) -> Result<Content, PipelineError> {
        if self.vae.is_none() {
            self.vae = Some(self.components.vae(observer)?);
        }
        let vae = self.vae.as_ref().expect("read above");
        let (height, width) = (settings.height, settings.width);
        let latents = self.geometry.unpack(latents, height, width);
        let picture = vae.decode_observed(latents, observer).map_err(|_| PipelineError::Cancelled(Phase::Decode))?;
        let values = read(picture.permute([0, 2, 3, 1]), "the picture")?;
        let n_bad = values.iter().filter(|x| !x.is_finite()).count();
        if n_bad > 0 {
            return Err(PipelineError::NotFinite { n_bad, n: values.len() });
        }
        // as diffusers: to [0, 1], clamped, rounded half to even
        let rgb = values.iter().map(|x| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8).collect();
        Ok(Content::Picture { width, height, rgb })
    }
}

fn read<const D: usize>(x: Tensor<D>, what: &'static str) -> Result<Vec<f32>, PipelineError> {
    let fail = |message: String| PipelineError::Read { what, message };
    let data = xdit_core::ops::to_f32(x).try_into_data().map_err(|e| fail(e.to_string()))?;
    data.try_to_vec::<f32>().map_err(|e| fail(e.to_string()))
}
