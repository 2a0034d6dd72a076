//! Who would hold what, without reading a weight.

use std::ops::Range;

use xdit_core::comm::even_sizes;
use xdit_core::dit::TokenGrid;
use xdit_core::layout::{Shares, TokenLayout};
use xdit_core::mesh::{Axis, Mesh};
use xdit_core::sampler::Sampler;

use crate::pipeline::error::PipelineError;
use crate::pipeline::generate::{Applied, Pipeline};
use crate::pipeline::memory::RankMemory;
use crate::pipeline::options::Options;
use crate::pipeline::request::{Request, Settings};

/// How a request would be shared out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The ranks.
    pub mesh: Mesh,
    /// The picture in tokens.
    pub grid: TokenGrid,
    /// Patches that pipeline stages work on.
    pub n_patches: usize,
    /// Rank by rank.
    pub memory: Vec<RankMemory>,
}

impl Pipeline {
    /// Who would hold what to serve this request. Reads the headers of the transformer's files alone.
    ///
    /// # Errors
    /// A request that cannot be served; files that cannot be read.
    pub fn plan(&self, request: &Request) -> Result<Plan, PipelineError> {
        let settings = self.settings(request)?;
        let guidance = self.guidance(request, &settings);
        let blocks = self.blocks()?;
        let (mesh, n_patches) = (self.mesh, self.n_patches(&settings, &guidance)?);
        let [height, width] = settings.drawn;
        let grid = self.geometry.grid(height, width);
        let sampler = self.architecture.sampler(&self.components, settings.num_inference_steps, grid.n_tokens())?;

        let weights = blocks.iter().map(|stage| self.weight_bytes(stage)).collect::<Result<Vec<_>, _>>()?;
        let rank = |rank: usize| {
            let stage = mesh.coordinate(rank, Axis::Pipefusion);
            let passes = Passes::new(request, &guidance, &mesh, sampler.as_ref());
            let kept_bytes = self.kept_bytes(&mesh, rank, &blocks[stage], (grid, n_patches), &settings, &passes)?;
            Ok(RankMemory { stage, blocks: blocks[stage].clone(), weight_bytes: weights[stage], kept_bytes })
        };
        let memory = (0..mesh.world_size()).map(rank).collect::<Result<_, PipelineError>>()?;
        Ok(Plan { mesh, grid, n_patches, memory })
    }

    /// The bytes of these blocks and of all that belongs to no block.
    fn weight_bytes(&self, stage: &Range<usize>) -> Result<u64, PipelineError> {
        let names = self.architecture.block_names(&self.components)?;
        let unused = self.architecture.unused();
        let Options { variant, .. } = &self.components.options;
        let weights = self.components.folder.weights("transformer", variant.as_deref())?;
        let wanted = |name: &&str| {
            let block = names.iter().position(|prefix| name.starts_with(prefix.as_str()));
            block.is_none_or(|block| stage.contains(&block)) && !unused.iter().any(|part| name.contains(part))
        };
        let bytes = |name: &str| weights.bytes(name).map_or(0, |bytes| bytes.len() as u64);
        Ok(weights.names().filter(wanted).map(bytes).sum())
    }

    /// Of every block `2 tokens heads head_dim` numbers for each pass: this rank's share of the text's and image's tokens,
    /// and of the heads.
    fn kept_bytes(
        &self,
        mesh: &Mesh,
        rank: usize,
        blocks: &Range<usize>,
        (grid, n_patches): (TokenGrid, usize),
        settings: &Settings,
        passes: &Passes<'_>,
    ) -> Result<u64, PipelineError> {
        let config = mesh.config();
        if config.pipefusion == 1 {
            return Ok(0);
        }
        let n_txt = match self.spec.joint {
            true => self.architecture.n_txt_tokens(&self.components, settings.max_sequence_length)?,
            false => 0,
        };
        let layout = TokenLayout::new(grid, n_patches);
        let shares = Shares::new(&layout, n_txt, config.ulysses * config.ring, config.ulysses);
        let group = || shares.group(mesh.coordinate(rank, Axis::Ring));
        let n_img: usize = group().map(|rank| shares.n_img(None, rank)).sum();
        let n_txt: usize = group().map(|rank| shares.txt(rank).len()).sum();
        let heads = even_sizes(self.spec.n_heads, config.ulysses)[mesh.coordinate(rank, Axis::Ulysses)];
        let dtype = burn::tensor::DType::from(self.components.options.dtype);
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
    /// One more, but for these blocks.
    without: Option<&'a [usize]>,
}

impl<'a> Passes<'a> {
    fn new(request: &'a Request, guidance: &Applied, mesh: &Mesh, sampler: &dyn Sampler) -> Self {
        let n_steps = sampler.timesteps().len();
        let skip = request.skip_layers.as_ref().filter(|_| guidance.guided);
        let skip = skip.filter(|skip| (0..n_steps).any(|step| skip.at(step, n_steps)));
        Self {
            n_prompts: if guidance.guided && mesh.config().cfg == 1 { 2 } else { 1 },
            without: skip.map(|skip| skip.blocks.as_slice()),
        }
    }

    fn of(&self, block: usize) -> usize {
        self.n_prompts + usize::from(self.without.is_some_and(|without| !without.contains(&block)))
    }
}
