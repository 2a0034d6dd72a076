//! From a request to pictures: the order of things, the same for every architecture.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use burn::tensor::Device;
use xdit_core::checkpoint::LoadError;
use xdit_core::comm::Communicator;
use xdit_core::dit::{DitSpec, TextEmbeddings};
use xdit_core::engine::Halt;
use xdit_core::folder::{PipelineFolder, Source};
use xdit_core::mesh::{Axis, Mesh, PlanFacts};
use xdit_core::observer::Observer;
use xdit_core::stages::stages;

use crate::hub::Wanted;
use crate::pipeline::architecture::{Architecture, Guidance};
use crate::pipeline::binning::Binning;
use crate::pipeline::components::Components;
use crate::pipeline::draw::{Beating, Pictures, Product, Stage};
use crate::pipeline::encoding::Encoding;
use crate::pipeline::error::PipelineError;
use crate::pipeline::geometry::Geometry;
use crate::pipeline::idle;
use crate::pipeline::memory::RankMemory;
use crate::pipeline::options::{ModelSource, Options};
use crate::pipeline::reading::{Held, Reader};
use crate::pipeline::registry;
use crate::pipeline::request::{Defaults, Output, OutputType, Request, RequestError, Settings};
use crate::pipeline::worker::Worker;
use crate::pipeline::workers::{Desk, Workers};
use crate::vae::tiles::Tiling;
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

/// Makes ranks, given the number of all of them.
type Launch = dyn FnOnce(usize) -> Vec<Box<dyn Communicator>> + Send;

/// An opened pipeline.
pub struct Pipeline {
    pub(super) components: Arc<Components>,
    pub(super) architecture: &'static dyn Architecture,
    pub(super) geometry: Geometry,
    pub(super) spec: DitSpec,
    binning: Option<Binning>,
    defaults: Defaults,
    is_builtin: bool,
    pub(super) mesh: Mesh,
    launch: Option<Box<Launch>>,
    /// Ranks of this process whose device is the CPU.
    pub(super) on_cpu: Vec<usize>,
    /// GPUs, and the ranks of each.
    pub(super) on_gpus: Vec<(Device, Vec<usize>)>,
    pub(super) workers: Workers,
    pub(super) held: Held,
    ranks: Vec<RankMemory>,
}

impl Pipeline {
    /// Reads the pipeline's configuration; the weights stay on disk until a request needs them.
    ///
    /// - `launch`: makes the ranks of this process, such as `xdit_comm::local::world`; called with the number of all ranks
    ///   when the first request is known to fit. They live as long as the pipeline.
    ///
    /// # Errors
    /// A hub that does not answer; a folder that is no pipeline, or of a class that is not built; degrees that cannot be.
    pub fn open(
        source: &ModelSource,
        options: Options,
        launch: impl FnOnce(usize) -> Vec<Box<dyn Communicator>> + Send + 'static,
        observer: &mut dyn Observer,
    ) -> Result<Self, PipelineError> {
        let mesh = Mesh::new(options.parallel, options.parallel.world_size())?;
        let is_builtin = *source == ModelSource::Builtin;
        let drawn = matches!(source, ModelSource::Random(_));
        let source = match source {
            ModelSource::Builtin => Source::Embedded(builtin::FILES),
            ModelSource::Random(published) => Source::Embedded(published.files),
            ModelSource::Folder(path) => Source::Dir(path.clone()),
            ModelSource::Hub { id, revision } => {
                let (revision, variant) = (revision.as_deref(), options.variant.as_deref());
                let classes = registry::class_names();
                Source::Dir(hub::fetch_observed(Wanted { id, revision, variant, classes: &classes }, observer)?)
            }
        };
        let folder = PipelineFolder::open(source)?;
        let architecture = registry::find(folder.class_name()).ok_or_else(|| PipelineError::UnknownPipeline {
            path: folder.path(""),
            class: folder.class_name().into(),
            supported: registry::class_names().join(", "),
        })?;
        let own = match folder.exists("xdit.json") {
            true => serde_json::from_str(&folder.read_text("xdit.json")?)
                .map_err(|source| LoadError::Json { path: folder.path("xdit.json"), source })?,
            false => Defaults::default(),
        };
        let components = Components::new(folder, options);
        let components = match drawn {
            true => components.drawn(),
            false => {
                architecture.check(&components)?;
                components.check_files(observer)?;
                components
            }
        };
        Ok(Self {
            geometry: architecture.geometry(&components)?,
            spec: architecture.spec(&components)?,
            binning: architecture.binning(&components)?,
            defaults: own.or(architecture.defaults(&components)?),
            components: Arc::new(components),
            architecture,
            is_builtin,
            launch: Some(Box::new(launch)),
            on_cpu: Vec::new(),
            on_gpus: Vec::new(),
            workers: Workers::default(),
            mesh,
            held: Held::default(),
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
        // all that can be refused is refused before any weight is read
        let settings = self.settings(request)?;
        let guidance = self.guidance(request, &settings);
        self.tell_idle(request, &guidance, observer)?;
        let [height, width] = settings.drawn;
        self.tell_other_size(request, &settings, observer);
        self.tell_unknown(request, &settings, observer);
        let n_tokens = self.geometry.grid(height, width).n_tokens();
        let blocks = self.blocks()?;
        let n_patches = self.n_patches(&settings, &guidance)?;
        self.launch()?;
        // before the sampler: what a huge size would take says more than that its schedule ends
        self.check_memory(request, &settings, &guidance, observer)?;
        let sampler = self.architecture.sampler(&self.components, settings.num_inference_steps, n_tokens)?;
        let (prompts, negative) = self.encode(request, &settings, &guidance, observer)?;
        let reader = Reader { workers: &self.workers, components: &self.components, mesh: self.mesh };
        reader.stages(self.architecture, blocks, &mut self.held, observer)?;
        if request.output == OutputType::Picture {
            reader.vaes(Tiling::of_picture(settings.drawn), &mut self.held, observer)?;
        }
        let seeds = (0..request.num_images).map(|i| request.seed.wrapping_add(i as u64)).collect();
        let pictures = Pictures {
            mesh: self.mesh,
            geometry: self.geometry,
            sampler: Arc::from(sampler),
            guidance: guidance.told,
            cfg_scale: guidance.scale,
            skip_layers: request.skip_layers.clone(),
            n_patches,
            warmup_steps: self.components.options.pipefusion.warmup_steps,
            halts: (0..prompts.len() * request.num_images).map(|_| Halt::default()).collect(),
            seeds: vec![seeds; prompts.len()],
            prompts,
            negative,
            output: request.output,
            settings,
            apart: self.workers.are_apart(),
        };
        self.draw(pictures, observer, each)
    }

    /// Starts the ranks, if that has not been done.
    pub(super) fn launch(&mut self) -> Result<(), PipelineError> {
        let Some(launch) = self.launch.take() else { return Ok(()) };
        let ranks = launch(self.mesh.world_size());
        // a launcher's ranks must be as many as the degrees need
        Mesh::new(*self.mesh.config(), ranks.first().map_or(0, |rank| rank.size()))?;
        for rank in &ranks {
            if *rank.device() == Device::flex() {
                self.on_cpu.push(rank.rank());
                continue;
            }
            match self.on_gpus.iter_mut().find(|(device, _)| device == rank.device()) {
                Some((_, ranks)) => ranks.push(rank.rank()),
                None => self.on_gpus.push((rank.device().clone(), vec![rank.rank()])),
            }
        }
        self.workers = Workers::launch(&self.mesh, ranks);
        Ok(())
    }

    fn draw(
        &mut self,
        pictures: Pictures,
        observer: &mut dyn Observer,
        each: &mut dyn FnMut(Output) -> ControlFlow<()>,
    ) -> Result<(), PipelineError> {
        let pictures = Arc::new(pictures);
        let (mesh, held) = (self.mesh, self.held.clone());
        let places = self.workers.ranks();
        let stage_of = |rank: usize| mesh.coordinate(rank, Axis::Pipefusion);
        self.ranks = places
            .iter()
            .map(|(rank, slot)| {
                let Stage { blocks, weight_bytes, .. } = &*held.stage(*slot, stage_of(*rank));
                RankMemory {
                    stage: stage_of(*rank),
                    blocks: blocks.clone(),
                    weight_bytes: *weight_bytes,
                    kept_bytes: 0,
                }
            })
            .collect();
        let (plan, ranks) = (Arc::clone(&pictures), &mut self.ranks);
        let job = move |worker: &mut Worker, desk: &mut Desk<Product>| {
            let slot = worker.world.slot();
            let (stage, vae) = (held.stage(slot, worker.stage), held.vae(slot));
            pictures.draw(worker, &stage, vae.as_deref(), desk)
        };
        let all: Vec<usize> = (0..places.len()).collect();
        self.workers.run(&all, job, observer, &mut |rank, product| match product {
            Product::Kept(bytes) => {
                ranks[rank].kept_bytes = bytes;
                ControlFlow::Continue(())
            }
            Product::Picture { prompt, image, content } => {
                each(Output { prompt, image, seed: plan.seeds[prompt][image], content })
            }
        })
    }

    /// What each rank of this process held in the last request.
    pub fn ranks(&self) -> &[RankMemory] {
        &self.ranks
    }

    /// Whether an earlier request has read them.
    pub(super) fn holds_weights(&self) -> bool {
        !self.held.is_empty()
    }

    /// The blocks of each stage.
    pub(super) fn blocks(&self) -> Result<Vec<Range<usize>>, PipelineError> {
        let Options { parallel, pipefusion, .. } = &self.components.options;
        let costs = self.architecture.costs(&self.components)?;
        Ok(stages(&costs, parallel.pipefusion, pipefusion.split.as_deref())?)
    }

    /// The number of patches, if the request can be shared out.
    pub(super) fn n_patches(&self, settings: &Settings, guidance: &Applied) -> Result<usize, PipelineError> {
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
        Ok(n_patches)
    }

    /// What the request's scales mean to this model.
    pub(super) fn guidance(&self, request: &Request, settings: &Settings) -> Applied {
        let (told, scale, given) = match self.architecture.guidance() {
            Guidance::Told => {
                (Some(settings.guidance_scale), settings.true_cfg_scale, !request.negative_prompts.is_empty())
            }
            Guidance::ClassifierFree => (None, settings.guidance_scale, true),
        };
        Applied { told, scale, guided: given && scale > 1.0 }
    }

    /// Warns of settings that have no effect.
    fn tell_idle(
        &self,
        request: &Request,
        guidance: &Applied,
        observer: &mut dyn Observer,
    ) -> Result<(), PipelineError> {
        let facts = idle::Facts {
            guidance: self.architecture.guidance(),
            is_told: self.architecture.is_told(&self.components)?,
            guided: guidance.guided,
            scale: guidance.scale,
            has_sizes: self.binning.is_some(),
            takes_length: self.architecture.takes_length(),
        };
        idle::warnings(request, &facts).iter().for_each(|line| observer.warn(line));
        Ok(())
    }

    /// What the built-in model was not trained on.
    fn tell_unknown(&self, request: &Request, settings: &Settings, observer: &mut dyn Observer) {
        if !self.is_builtin {
            return;
        }
        let side = builtin::SIDE;
        if settings.drawn != [side, side] {
            let [height, width] = settings.drawn;
            observer.warn(&format!(
                "the built-in model was trained at {side}x{side} and draws worse at {height}x{width} (height x width)"
            ));
        }
        let mut beyond: Vec<_> = request.prompts.iter().filter_map(|prompt| builtin::beyond(prompt)).collect();
        beyond.dedup();
        beyond.iter().for_each(|line| observer.warn(line));
    }

    fn tell_other_size(&self, request: &Request, settings: &Settings, observer: &mut dyn Observer) {
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
    }

    /// Every prompt once: on the first rank, or each encoder on a rank of its own where these are processes. The encoders
    /// are gone when this returns, unless they are to stay.
    fn encode(
        &self,
        request: &Request,
        settings: &Settings,
        guidance: &Applied,
        observer: &mut dyn Observer,
    ) -> Result<(Vec<TextEmbeddings>, Vec<TextEmbeddings>), PipelineError> {
        let mut texts = request.prompts.clone();
        if guidance.guided && request.negative_prompts.is_empty() {
            texts.push(String::new());
        } else if guidance.guided {
            texts.extend(request.negative_prompts.iter().cloned());
        }
        let (components, architecture) = (Arc::clone(&self.components), self.architecture);
        let limit = settings.max_sequence_length;
        let apart = self.workers.are_apart();
        let job = move |worker: &mut Worker, desk: &mut Desk<Vec<TextEmbeddings>>| {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let ranks = if apart { Encoding::shared(&*worker.world) } else { Encoding::alone(worker.device()) };
            let mut beating = Beating { worker, inner: desk };
            let encoded = architecture.encode(&components, &ranks, &texts, limit, &mut beating)?;
            desk.hand_over(encoded);
            Ok(())
        };
        let mut all = Vec::new();
        self.workers.run(&[0], job, observer, &mut |_, encoded| {
            all = encoded;
            ControlFlow::Continue(())
        })?;
        let negative = all.split_off(request.prompts.len());
        Ok((all, negative))
    }
}
