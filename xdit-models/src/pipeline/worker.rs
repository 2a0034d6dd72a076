//! A rank: its communicators and its device.

use std::ops::Range;

use burn::tensor::Device;
use xdit_core::comm::{CommError, Communicator};
use xdit_core::dit::Attention;
use xdit_core::engine::{Halt, Team};
use xdit_core::mesh::{Axis, Mesh};
use xdit_core::ops;

/// One rank, on a thread of its own, for as long as the pipeline lives. Whoever drops it leaves the world.
pub struct Worker {
    /// Which replica's pictures it draws.
    pub replica: usize,
    /// Its pipeline stage.
    pub stage: usize,
    /// Whether it hands the replica's pictures over: all its ranks have the latents.
    pub speaks: bool,
    /// The ranks that decode the replica's pictures, one for each of its devices, the one that speaks first; absent where
    /// another rank decodes for this one's device.
    pub decoders: Option<Box<dyn Communicator>>,
    /// Ranks that share the picture's tokens.
    pub sequence: Box<dyn Communicator>,
    /// Ranks that share classifier-free guidance.
    pub cfg: Box<dyn Communicator>,
    /// Ranks that share the blocks.
    pub stages: Box<dyn Communicator>,
    /// The attention of its tokens.
    pub attn: Box<dyn Attention>,
    /// All ranks.
    pub world: Box<dyn Communicator>,
}

impl Worker {
    /// Every rank of the world must come here.
    ///
    /// - `decodes`: whether it is one of [`decoders`](Self::decoders)
    ///
    /// # Errors
    /// A rank that failed.
    pub fn new(mesh: &Mesh, world: Box<dyn Communicator>, decodes: bool) -> Result<Self, CommError> {
        let rank = world.rank();
        let group = |axes: &[Axis]| world.split(mesh.color(rank, axes), rank);
        let (ulysses, ring) = (group(&[Axis::Ulysses])?, group(&[Axis::Ring])?);
        let replica = mesh.coordinate(rank, Axis::Data);
        let decoders = world.split(2 * replica + usize::from(decodes), rank)?;
        Ok(Self {
            attn: match mesh.config().pipefusion {
                1 => xdit_attn::usp(ulysses, ring),
                _ => xdit_attn::pipefusion(ulysses, ring),
            },
            replica,
            stage: mesh.coordinate(rank, Axis::Pipefusion),
            speaks: mesh.speaks(rank),
            decoders: decodes.then_some(decoders),
            sequence: group(Axis::SEQUENCE)?,
            cfg: group(&[Axis::Cfg])?,
            stages: group(&[Axis::Pipefusion])?,
            world,
        })
    }

    /// Its share in a picture.
    ///
    /// - `n_patches`, `warmup_steps`: see [`Team`]
    pub fn team<'a>(
        &'a mut self,
        mesh: &Mesh,
        blocks: Range<usize>,
        [n_patches, warmup_steps]: [usize; 2],
        halt: &'a Halt,
    ) -> Team<'a> {
        Team {
            sequence: &*self.sequence,
            ulysses: mesh.config().ulysses,
            cfg: &*self.cfg,
            stages: &*self.stages,
            blocks,
            n_patches,
            warmup_steps,
            joins_prompts: ops::is_gpu(self.world.device()),
            attn: &mut *self.attn,
            halt,
        }
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        self.world.device()
    }
}
