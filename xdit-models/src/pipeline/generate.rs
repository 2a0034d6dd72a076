//! From a request to pictures: the order of things, the same for every architecture.

use std::ops::{ControlFlow, Range};

use burn::tensor::{Tensor, TensorData};
use xdit_core::checkpoint::LoadError;
use xdit_core::dit::{DitSpec, TextEmbeddings};
use xdit_core::engine::{Cfg, Denoise};
use xdit_core::folder::{PipelineFolder, Source};
use xdit_core::mesh::{Axis, Mesh, PlanFacts};
use xdit_core::noise::TorchGenerator;
use xdit_core::observer::{Observer, Phase};
use xdit_core::stages::stages;

use crate::pipeline::architecture::{Architecture, Guidance};
use crate::pipeline::binning::{self, Binning};
use crate::pipeline::components::{ALL_BLOCKS, Components};
use crate::pipeline::error::PipelineError;
use crate::pipeline::geometry::Geometry;
use crate::pipeline::memory::RankMemory;
use crate::pipeline::options::{ModelSource, Options};
use crate::pipeline::ranks::{self, Denoised, Run, Setup, Stage};
use crate::pipeline::registry;
use crate::pipeline::request::{Content, Defaults, Output, OutputType, Request, RequestError, Settings};
use crate::vae::autoencoder_kl::AutoencoderKl;
use crate::{builtin, hub};

/// A request's guidance, as the engine takes it.
pub(super) struct Applied {
    /// What a distilled model is told.
    pub(super) told: Option<f32>,
    /// Of classifier-free guidance.
    pub(super) scale: f32,
    /// Whether there is any.
    pub(super) guided: bool,
}

/// An opened pipeline.
pub struct Pipeline {
    pub(super) components: Components,
    pub(super) architecture: &'static dyn Architecture,
    pub(super) geometry: Geometry,
    pub(super) spec: DitSpec,
    binning: Option<Binning>,
    defaults: Defaults,
    // read by the first request and kept for the next
    stages: Vec<Stage>,
    vae: Option<AutoencoderKl>,
    ranks: Vec<RankMemory>,
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
        let spec = architecture.spec(&components)?;
        let binning = architecture.binning(&components)?;
        let defaults = own.or(architecture.defaults(&components)?);
        Ok(Self {
            components,
            architecture,
            geometry,
            spec,
            binning,
            defaults,
            stages: Vec::new(),
            vae: None,
            ranks: Vec::new(),
        })
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
        let n_blocks = self.spec.n_blocks;
        if let Some(block) = request.skip_layers.iter().flat_map(|s| &s.blocks).copied().find(|b| *b >= n_blocks) {
            return Err(RequestError::SkipLayer { block, n_blocks });
        }
        request.settings(&self.defaults, &self.geometry, self.binning.as_ref())
    }

    /// Draws all pictures of a request, prompt by prompt.
    ///
    /// # Errors
    /// A request that cannot be served, weights that cannot be read, a cancelled or failed denoising loop.
    pub fn generate(&mut self, request: &Request, observer: &mut dyn Observer) -> Result<Vec<Output>, PipelineError> {
        let mut all = Vec::new();
        self.generate_each(request, observer, &mut |output| {
            all.push(output);
            ControlFlow::Continue(())
        })?;
        all.sort_by_key(|output| (output.prompt, output.image));
        Ok(all)
    }

    /// Draws all pictures of a request and hands each over as soon as it is done, in whatever order that is. A break ends
    /// the request as cancelled.
    ///
    /// # Errors
    /// As [`generate`](Self::generate); what was handed over before stays good.
    pub fn generate_each(
        &mut self,
        request: &Request,
        observer: &mut dyn Observer,
        each: &mut dyn FnMut(Output) -> ControlFlow<()>,
    ) -> Result<(), PipelineError> {
        let settings = self.settings(request)?;
        let guidance = self.guidance(request, &settings, observer);
        let [height, width] = settings.drawn;
        if [height, width] != [settings.height, settings.width]
            || request.height.is_some_and(|h| h != settings.height)
            || request.width.is_some_and(|w| w != settings.width)
        {
            observer.warn(&format!(
                "drawn at {height}x{width} (height x width), the nearest size that the model was trained on; \
                 without resolution binning it is drawn at the size asked for"
            ));
        }
        // before any weight is read: a scheduler that is not supported shows here
        let grid = self.geometry.grid(height, width);
        let sampler = self.architecture.sampler(&self.components, settings.num_inference_steps, grid.n_tokens())?;
        let blocks = self.blocks()?;
        let (mesh, n_patches) = self.mesh(&settings, &guidance)?;
        let (prompts, negative) = self.encode(request, &settings, &guidance, observer)?;

        if self.stages.is_empty() {
            self.stages = self.read_stages(blocks, observer)?;
        }

        let n = prompts.len() * request.num_images;
        let seed = |i: usize| request.seed.wrapping_add((i % request.num_images) as u64);
        let picture = |i: usize, denoise: &mut Run<'_>| {
            let prompt = i / request.num_images;
            let mut generator = TorchGenerator::seeded(seed(i));
            let noise = self.noise(&mut generator, &settings);
            denoise(Denoise {
                noise,
                more_noise: &mut || self.noise(&mut generator, &settings),
                grid,
                size: settings.drawn,
                text: &prompts[prompt],
                guidance: guidance.told,
                // one negative prompt serves all prompts
                cfg: negative.get(prompt).or(negative.last()).map(|negative| Cfg {
                    negative,
                    scale: guidance.scale,
                    rescale: settings.guidance_rescale,
                    skip_layers: request.skip_layers.as_ref(),
                }),
            })
        };
        let Options { device, pipefusion, .. } = &self.components.options;
        let (stages, warmup_steps) = (&self.stages, pipefusion.warmup_steps);
        let setup = Setup { mesh: &mesh, device, stages, n_patches, warmup_steps };
        let Denoised { latents: all, kept_bytes } = ranks::denoise_all(setup, sampler.as_ref(), n, &picture, observer)?;
        let memory = |(rank, kept_bytes): (usize, u64)| {
            let stage = mesh.coordinate(rank, Axis::Pipefusion);
            let Stage { blocks, weight_bytes, .. } = &self.stages[stage];
            RankMemory { stage, blocks: blocks.clone(), weight_bytes: *weight_bytes, kept_bytes }
        };
        self.ranks = kept_bytes.into_iter().enumerate().map(memory).collect();

        for (i, latents) in all.into_iter().enumerate() {
            let (prompt, image, seed) = (i / request.num_images, i % request.num_images, seed(i));
            let content = match request.output {
                OutputType::Picture => self.decode(latents, &settings, observer)?,
                OutputType::Latent if self.geometry.packed => {
                    Content::Latent { dims: latents.dims().into(), values: read(latents, "the latents")? }
                }
                OutputType::Latent => {
                    let latents = self.geometry.unpack(latents, height, width);
                    Content::Latent { dims: latents.dims().into(), values: read(latents, "the latents")? }
                }
            };
            if each(Output { prompt, image, seed, content }).is_break() {
                return Err(PipelineError::Cancelled(Phase::Decode));
            }
        }
        Ok(())
    }

    /// What each rank of the last request held.
    pub fn ranks(&self) -> &[RankMemory] {
        &self.ranks
    }

    /// The blocks of each stage.
    pub(super) fn blocks(&self) -> Result<Vec<Range<usize>>, PipelineError> {
        let Options { parallel, pipefusion, .. } = &self.components.options;
        let costs = self.architecture.costs(&self.components)?;
        Ok(stages(&costs, parallel.pipefusion, pipefusion.split.as_deref())?)
    }

    fn read_stages(&self, blocks: Vec<Range<usize>>, observer: &mut dyn Observer) -> Result<Vec<Stage>, PipelineError> {
        let alone = blocks.len() == 1;
        let read = |blocks: Range<usize>| {
            let wanted = if alone { ALL_BLOCKS } else { blocks.clone() };
            let (dit, weight_bytes) = self.architecture.dit(&self.components, wanted, observer)?;
            Ok(Stage { blocks, weight_bytes, dit })
        };
        blocks.into_iter().map(read).collect()
    }

    /// How the request is shared out: the ranks, and the number of patches.
    pub(super) fn mesh(&self, settings: &Settings, guidance: &Applied) -> Result<(Mesh, usize), PipelineError> {
        let Options { parallel, pipefusion, .. } = &self.components.options;
        let [height, width] = settings.drawn;
        let n_patches = match parallel.pipefusion {
            1 => 1,
            n_stages => pipefusion.n_patches.unwrap_or(n_stages),
        };
        parallel.fits(&PlanFacts {
            n_heads: self.spec.n_heads,
            grid: self.geometry.grid(height, width),
            n_patches,
            // at least: other encoders may add to them
            n_txt_tokens: self.spec.joint.then_some(settings.max_sequence_length),
            guided: guidance.guided,
            rescaled: settings.guidance_rescale != 0.0,
        })?;
        let mesh = Mesh::new(*parallel, parallel.world_size())?;
        Ok((mesh, n_patches))
    }

    /// What the request's scales mean to this model.
    pub(super) fn guidance(&self, request: &Request, settings: &Settings, observer: &mut dyn Observer) -> Applied {
        let given = !request.negative_prompts.is_empty();
        let (told, name, scale, guided) = match self.architecture.guidance() {
            Guidance::Told => {
                let scale = settings.true_cfg_scale;
                (Some(settings.guidance_scale), "true-cfg-scale", scale, given && scale > 1.0)
            }
            Guidance::ClassifierFree => {
                if request.true_cfg_scale.is_some() {
                    observer.warn("true-cfg-scale has no effect on this model, whose guidance is guidance-scale");
                }
                (None, "guidance-scale", settings.guidance_scale, settings.guidance_scale > 1.0)
            }
        };
        if given && !guided {
            observer.warn(&format!("the negative prompt has no effect with {name} {scale}; give one above 1"));
        }
        Applied { told, scale, guided }
    }

    /// Every prompt once; the encoders are gone when this returns.
    fn encode(
        &self,
        request: &Request,
        settings: &Settings,
        guidance: &Applied,
        observer: &mut dyn Observer,
    ) -> Result<(Vec<TextEmbeddings>, Vec<TextEmbeddings>), PipelineError> {
        let mut texts: Vec<&str> = request.prompts.iter().map(String::as_str).collect();
        if guidance.guided && request.negative_prompts.is_empty() {
            texts.push("");
        } else if guidance.guided {
            texts.extend(request.negative_prompts.iter().map(String::as_str));
        }
        let mut all = self.architecture.encode(&self.components, &texts, settings.max_sequence_length, observer)?;
        let negative = all.split_off(request.prompts.len());
        Ok((all, negative))
    }

    /// Unit normal noise: drawn on the host from the seed alone, in the shape that diffusers draws it.
    fn noise(&self, generator: &mut TorchGenerator, settings: &Settings) -> Tensor<3> {
        let dims = self.geometry.latent_dims(settings.drawn[0], settings.drawn[1]);
        let values = generator.randn(dims.iter().product());
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
        let [drawn_height, drawn_width] = settings.drawn;
        let latents = self.geometry.unpack(latents, drawn_height, drawn_width);
        let picture = vae.decode_observed(latents, observer).map_err(|_| PipelineError::Cancelled(Phase::Decode))?;
        let values = read(picture.permute([0, 2, 3, 1]), "the picture")?;
        let n_bad = values.iter().filter(|x| !x.is_finite()).count();
        if n_bad > 0 {
            return Err(PipelineError::NotFinite { n_bad, n: values.len() });
        }
        let (height, width) = (settings.height, settings.width);
        let values = binning::resize_and_crop(values, settings.drawn, [height, width]);
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
