//! Who would hold what, without reading a weight.

use std::ops::Range;

use burn::tensor::{DType, Device};
use xdit_core::checkpoint::LoadReport;
use xdit_core::comm::even_sizes;
use xdit_core::dit::TokenGrid;
use xdit_core::layout::{Shares, TokenLayout};
use xdit_core::mesh::{Axis, Mesh};

use crate::pipeline::activations::{self, Activations, BlockPass, Memory};
use crate::pipeline::components::{ALL_BLOCKS, Components};
use crate::pipeline::encoding::Encoding;
use crate::pipeline::error::PipelineError;
use crate::pipeline::generate::{Applied, Pipeline};
use crate::pipeline::memory::{ComponentMemory, Plan, RankMemory};
use crate::pipeline::request::{OutputType, Request, Settings};
use crate::text::bert::BertConfig;
use crate::vae::tiles::{Tiles, Tiling};

impl Pipeline {
    /// Who would hold what to serve this request. Reads the headers of the files alone.
    ///
    /// # Errors
    /// A request that cannot be served; files that cannot be read.
    pub fn plan(&self, request: &Request) -> Result<Plan, PipelineError> {
        let settings = self.settings(request)?;
        let guidance = self.guidance(request, &settings);
        self.n_patches(&settings, &guidance)?;
        if self.components.drawn {
            // a plan is of everything, and random weights come without encoders: says so
            self.encoder_memory(&settings)?;
        }
        let [height, width] = settings.drawn;
        let n_tokens = self.geometry.grid(height, width).n_tokens();
        let sampler = self.architecture.sampler(&self.components, settings.num_inference_steps, n_tokens)?;
        self.plan_steps(request, &settings, &guidance, sampler.timesteps().len())
    }

    /// [`plan`](Self::plan) for a sampler of so many steps.
    pub(super) fn plan_steps(
        &self,
        request: &Request,
        settings: &Settings,
        guidance: &Applied,
        n_steps: usize,
    ) -> Result<Plan, PipelineError> {
        let blocks = self.blocks()?;
        let (mesh, n_patches) = (self.mesh, self.n_patches(settings, guidance)?);
        let [height, width] = settings.drawn;
        let grid = self.geometry.grid(height, width);
        let passes = Passes::new(request, guidance, &mesh, n_steps);
        let n_txt = self.architecture.n_txt_tokens(&self.components, settings.max_sequence_length)?;
        let share = Share::new(self, grid, n_patches, n_txt);

        let reports = blocks.iter().map(|stage| self.stage_report(stage, blocks.len() == 1));
        let reports = reports.collect::<Result<Vec<_>, _>>()?;
        let rank = |rank: usize| {
            let stage = mesh.coordinate(rank, Axis::Pipefusion);
            let kept_bytes = self.kept_bytes(rank, &blocks[stage], &share, &passes)?;
            Ok(RankMemory { stage, blocks: blocks[stage].clone(), weight_bytes: reports[stage].bytes, kept_bytes })
        };
        let memory = (0..mesh.world_size()).map(rank).collect::<Result<_, PipelineError>>()?;
        let denoise = |stage: usize, patch| self.denoise_bytes(&blocks, stage, &share, patch, &passes);
        let staged = mesh.config().pipefusion > 1;
        let at_patches = (0..blocks.len()).map(|stage| if staged { denoise(stage, Some(0)) } else { Ok(0) });
        let at_patches = at_patches.collect::<Result<_, PipelineError>>()?;
        let stages = reports.into_iter().enumerate();
        let stages = stages.map(|(stage, report)| Ok(ComponentMemory::new(report, denoise(stage, None)?)));
        let n_texts = request.prompts.len() + if guidance.guided { request.negative_prompts.len().max(1) } else { 0 };
        // texts of random numbers come from no encoder
        let (encoders, text) = if self.components.drawn { (Vec::new(), 0) } else { self.encoder_memory(settings)? };
        let (decoder, at_bands) = match request.output {
            OutputType::Picture => {
                let (decoder, at_bands) = self.decoder_memory(settings)?;
                (Some(decoder), at_bands)
            }
            OutputType::Latent => (None, Vec::new()),
        };
        Ok(Plan {
            mesh,
            grid,
            n_patches,
            n_txt,
            memory,
            encoders,
            decoder,
            at_bands,
            stages: stages.collect::<Result<_, PipelineError>>()?,
            at_patches,
            texts: n_texts as u64 * text,
            keeps_encoders: self.components.options.keep_encoders,
        })
    }

    /// What a stage would read.
    pub(super) fn stage_report(&self, blocks: &Range<usize>, alone: bool) -> Result<LoadReport, PipelineError> {
        let blocks = if alone { ALL_BLOCKS } else { blocks.clone() };
        let build = |dry: &Components| self.architecture.dit(dry, &Device::flex(), blocks, &mut ()).map(drop);
        Ok(self.components.count(build)?.remove(0))
    }

    /// Every text encoder, and the bytes of what they make of a text.
    fn encoder_memory(&self, settings: &Settings) -> Result<(Vec<ComponentMemory>, u64), PipelineError> {
        let limit = settings.max_sequence_length;
        // all of them are read, in their order, and none gets a text
        let build = |dry: &Components| {
            self.architecture.encode(dry, &Encoding::alone(&Device::flex()), &[], limit, &mut ()).map(drop)
        };
        let (components, memory, mut text) = (&self.components, self.kernels(), 0);
        let encoder = |report: LoadReport| {
            let name = report.component.clone();
            let n = || self.architecture.encoder_tokens(components, &name, limit);
            let (n, d, activations) = match components.folder.component(&name)?.class.as_str() {
                "T5EncoderModel" => {
                    let (config, n) = (components.t5_config(&name)?, n()?);
                    (n, config.d_model, activations::t5(&config, n, memory))
                }
                "BertModel" => {
                    let (config, n): (BertConfig, _) = (components.config(&name)?, n()?);
                    let widths = [config.hidden_size, config.intermediate_size];
                    (n, config.hidden_size, activations::layers(config.num_hidden_layers, widths, n, memory))
                }
                _ => {
                    let config = components.clip_config(&name)?;
                    let n = components.clip_limit("tokenizer", &config)?;
                    let widths = [config.hidden_size, config.intermediate_size];
                    (n, config.hidden_size, activations::layers(config.num_hidden_layers, widths, n, memory))
                }
            };
            text += n as u64 * d as u64 * memory.size;
            Ok(ComponentMemory::new(report, activations))
        };
        let encoders = components.count(build)?.into_iter().map(encoder).collect::<Result<_, PipelineError>>()?;
        Ok((encoders, text))
    }

    /// The decoder, and its activations with one device, with two, .. that decode a band each.
    fn decoder_memory(&self, settings: &Settings) -> Result<(ComponentMemory, Vec<u64>), PipelineError> {
        let (mut activations, mut at_bands) = (0, Vec::new());
        let [height, width] = settings.drawn;
        let [_, _, rows, cols] = self.geometry.latent_dims(height, width);
        let most = (self.mesh.world_size() / self.mesh.config().data).min(rows);
        let memory = self.kernels();
        let build = |dry: &Components| {
            let vae = dry.vae(&Device::flex(), &mut ())?;
            let tiles = vae.tiles(vae.tiling([rows, cols]), [rows, cols]);
            let tile = tiles.as_ref().map_or([rows, cols], Tiles::largest);
            // rows of tiles, and the picture that is put together of them
            let picture = 3 * (height * width) as u64 * memory.size;
            let pieces = if tiles.is_some() { 3 } else { 2 } * picture;
            let config = dry.vae_config()?;
            activations = pieces + activations::decoder(&config, tile, 1, memory);
            if vae.tiling([rows, cols]) == Tiling::Off {
                // a band; then the first rank puts the picture together
                let of_bands = |n: usize| {
                    let pieces = pieces * rows.div_ceil(n) as u64 / rows as u64;
                    (pieces + activations::decoder(&config, [rows, cols], n, memory)).max(3 * picture)
                };
                at_bands = std::iter::once(activations).chain((2..=most).map(of_bands)).collect();
            }
            Ok(())
        };
        let report = self.components.count(build)?.remove(0);
        Ok((ComponentMemory::new(report, activations), at_bands))
    }

    fn kernels(&self) -> Memory {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
        Memory { size: DType::from(self.components.options.dtype).size() as u64, threads }
    }

    /// What a rank of a stage has in memory beside weights and kept keys and values, in a pass over a patch or the whole
    /// picture.
    fn denoise_bytes(
        &self,
        blocks: &[Range<usize>],
        stage: usize,
        share: &Share,
        patch: Option<usize>,
        passes: &Passes<'_>,
    ) -> Result<u64, PipelineError> {
        let (config, spec, memory) = (*self.mesh.config(), &self.spec, self.kernels());
        let (n_img, n_txt) = (share.shares.n_img(patch, 0), share.shares.txt(0).len());
        let pass = BlockPass {
            memory,
            n_txt,
            n_img,
            in_ring: config.ring > 1,
            kept: (config.pipefusion > 1).then(|| n_txt + share.shares.n_img(None, 0)),
            blocks: blocks[stage].clone(),
        };
        let Activations { widest, position } = self.architecture.activations(&self.components, &pass)?;
        let n_passes = blocks[stage].clone().map(|block| passes.of(block)).max().unwrap_or(1) as u64;
        let d = spec.d_model() as u64;
        let stream = (n_txt + n_img) as u64 * d * memory.size;
        let txt = if spec.joint && stage > 0 { 0 } else { share.n_txt as u64 * d * memory.size };
        let all = (share.grid.n_tokens() + if spec.joint { share.n_txt } else { 0 }) as u64;
        // of all tokens, and those of the rank's patches picked out of them
        let positions = position * (all + if share.shares.n_patches() > 1 { (n_txt + n_img) as u64 } else { 0 });
        // noise of the whole picture; this rank's latents, the model's input and the prediction
        let latents = 4 * spec.channels as u64 * (share.grid.n_tokens() + 3 * n_img) as u64;
        Ok(widest + (n_passes - 1) * stream + passes.n_texts as u64 * (txt + positions) + latents)
    }

    /// Of every block `2 tokens heads head_dim` numbers for each pass: this rank's share of the text's and image's tokens,
    /// and of the heads.
    fn kept_bytes(
        &self,
        rank: usize,
        blocks: &Range<usize>,
        share: &Share,
        passes: &Passes<'_>,
    ) -> Result<u64, PipelineError> {
        let (mesh, config, shares) = (&self.mesh, self.mesh.config(), &share.shares);
        if config.pipefusion == 1 {
            return Ok(0);
        }
        let group = || shares.group(mesh.coordinate(rank, Axis::Ring));
        let n_img: usize = group().map(|rank| shares.n_img(None, rank)).sum();
        let n_txt: usize = group().map(|rank| shares.txt(rank).len()).sum();
        let heads = even_sizes(self.spec.n_heads, config.ulysses)[mesh.coordinate(rank, Axis::Ulysses)];
        let dtype = DType::from(self.components.options.dtype);
        let row = 2 * heads * self.spec.head_dim * dtype.size();
        let mut rows = 0;
        for block in blocks.clone() {
            let second = self.architecture.attends_twice(&self.components, block)?;
            rows += passes.of(block) * (n_txt + n_img + if second { n_img } else { 0 });
        }
        Ok((rows * row) as u64)
    }
}

/// A rank's passes through the blocks at each step.
struct Passes<'a> {
    n_prompts: usize,
    /// Prompts that the picture has.
    n_texts: usize,
    /// One more, but for these blocks.
    without: Option<&'a [usize]>,
}

impl<'a> Passes<'a> {
    fn new(request: &'a Request, guidance: &Applied, mesh: &Mesh, n_steps: usize) -> Self {
        let skip = request.skip_layers.as_ref().filter(|_| guidance.guided);
        let skip = skip.filter(|skip| (0..n_steps).any(|step| skip.at(step, n_steps)));
        Self {
            n_prompts: if guidance.guided && mesh.config().cfg == 1 { 2 } else { 1 },
            n_texts: if guidance.guided { 2 } else { 1 },
            without: skip.map(|skip| skip.blocks.as_slice()),
        }
    }

    fn of(&self, block: usize) -> usize {
        self.n_prompts + usize::from(self.without.is_some_and(|without| !without.contains(&block)))
    }
}

/// What the ranks share of a picture.
struct Share {
    grid: TokenGrid,
    n_txt: usize,
    shares: Shares,
}

impl Share {
    fn new(pipeline: &Pipeline, grid: TokenGrid, n_patches: usize, n_txt: usize) -> Self {
        let config = pipeline.mesh.config();
        let shared = if pipeline.spec.joint { n_txt } else { 0 };
        let layout = TokenLayout::new(grid, n_patches);
        Self { grid, n_txt, shares: Shares::new(&layout, shared, config.ulysses * config.ring, config.ulysses) }
    }
}
