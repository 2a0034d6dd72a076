//! A whole denoising loop of a transformer without weights, on a mesh of threads.

use burn::tensor::{DType, Device, Tensor};
use std::collections::BTreeMap;
use xdit_attn::{pipefusion, usp};
use xdit_core::comm::{CommError, Communicator};
use xdit_core::dit::{
    Attention, Cond, Ctx, Dit, DitSpec, Inputs, Positions, Qkv, Site, Streams, TextEmbeddings, TextStates, TokenGrid,
    parted,
};
use xdit_core::engine::{Cfg, Denoise, EngineError, Halt, Team, denoise};
use xdit_core::observer::Observer;
use xdit_core::sampler::{FlowMatchEuler, FlowMatchEulerConfig};

const GRID: TokenGrid = TokenGrid::picture(5, 3);
pub const N_BLOCKS: usize = 2;
/// The picture of five rows as three and two.
pub const N_PATCHES: usize = 2;

/// Sizes of cfg, stages, ring, ulysses.
pub type Mesh = [usize; 4];

/// A transformer of nothing but attention.
pub struct Bare;

impl Dit for Bare {
    fn spec(&self) -> DitSpec {
        DitSpec { n_blocks: N_BLOCKS, n_heads: 4, head_dim: 4, channels: 16, joint: true, txt_each_step: false }
    }

    fn dtype(&self) -> DType {
        DType::F32
    }

    fn positions(&self, _grid: TokenGrid, _n_txt: usize) -> Positions {
        Positions::default()
    }

    fn condition(&self, inputs: Inputs<'_>) -> Vec<Cond> {
        let temb = Tensor::zeros([1, 16], &inputs.text.txt.states.device());
        let cond = Cond { temb, modulations: BTreeMap::new(), txt_bias: None };
        vec![cond; inputs.timesteps.len()]
    }

    fn embed_txt(&self, text: &TextEmbeddings, _cond: &Cond, _positions: &Positions) -> Tensor<3> {
        text.txt.states.clone()
    }

    fn embed_img(&self, latents: Tensor<3>, _positions: &Positions) -> Tensor<3> {
        latents
    }

    fn block(&self, ctx: &mut Ctx<'_>, i: usize, x: Streams, _cond: &Cond) -> Result<Streams, CommError> {
        let heads = |x: &Tensor<3>| xdit_core::ops::split_heads(x.clone(), 4);
        let qkv = |x: &Tensor<3>| Qkv::new([heads(x), heads(x), heads(x)]);
        let (both, n_txt) = Qkv::joined(x.txt.as_ref().map(qkv), qkv(&x.img));
        let (txt, img) = parted(ctx.attn.joint(Site::first(i), both, n_txt)?, n_txt);
        let merge = xdit_core::ops::merge_heads;
        let txt = x.txt.zip(txt).map(|(x, txt)| x + merge(txt));
        Ok(Streams::new(txt, x.img + merge(img)))
    }

    fn head(&self, x: Streams, _cond: &Cond) -> Tensor<3> {
        x.img
    }
}

/// A rank's communicators.
pub struct Rank {
    sequence: Box<dyn Communicator>,
    cfg: Box<dyn Communicator>,
    stages: Box<dyn Communicator>,
    ulysses: usize,
    _world: Box<dyn Communicator>,
}

impl Rank {
    /// And its attention strategy.
    pub fn new(
        [_, stages, ring, ulysses]: Mesh,
        world: Box<dyn Communicator>,
    ) -> Result<(Self, Box<dyn Attention>), CommError> {
        let (rank, sequence) = (world.rank(), ring * ulysses);
        let replica = stages * sequence;
        let group = |color: usize| world.split(color, rank);
        let (u, r) = (group(rank / ulysses)?, group(rank % ulysses + rank / sequence * ulysses)?);
        let attn = if stages == 1 { usp(u, r) } else { pipefusion(u, r) };
        let groups = Self {
            sequence: group(rank / sequence)?,
            cfg: group(rank % replica)?,
            stages: group(rank % sequence + rank / replica * sequence)?,
            ulysses,
            _world: world,
        };
        Ok((groups, attn))
    }

    /// This rank's share in a picture of `n_steps` steps; of a pipeline's the first goes without patches.
    pub fn draw(
        &self,
        n_steps: usize,
        attn: &mut dyn Attention,
        halt: &Halt,
        observer: &mut dyn Observer,
    ) -> Result<Tensor<3>, EngineError> {
        let device = Device::flex();
        let text = |value: f32| TextEmbeddings {
            txt: TextStates::all(Tensor::full([1, 9, 16], value, &device)),
            txt_2: None,
            pooled: None,
        };
        let sampler =
            FlowMatchEuler::new(&FlowMatchEulerConfig::default(), n_steps, None, None).expect("its own settings");
        let ramp = || Tensor::arange(0..240, &device).float().reshape([1, 15, 16]) / 240.0;
        let request = Denoise {
            noise: Box::new(ramp),
            grid: GRID,
            size: [80, 48],
            text: &text(0.1),
            guidance: None,
            cfg: Some(Cfg { negative: &text(0.2), scale: 2.0, rescale: 0.0, skip_layers: None }),
        };
        let n_blocks = N_BLOCKS / self.stages.size();
        let first = self.stages.rank() * n_blocks;
        let team = Team {
            sequence: &*self.sequence,
            ulysses: self.ulysses,
            cfg: &*self.cfg,
            stages: &*self.stages,
            blocks: first..first + n_blocks,
            n_patches: N_PATCHES,
            joins_prompts: false,
            warmup_steps: 1,
            attn,
            halt,
        };
        denoise(&Bare, team, &sampler, request, observer)
    }
}

/// Numbers that are random enough, the same each time.
pub struct Dice(pub u64);

impl Dice {
    /// From 0 to `n - 1`.
    pub fn roll(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % n
    }
}
