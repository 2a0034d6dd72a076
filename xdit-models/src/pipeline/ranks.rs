//! Running the denoising loop on every rank of a mesh.
//!
//! Ranks are threads of this process. The caller's thread is rank 0, which the observer watches; each stage of the
//! transformer is in memory once and shared.

use std::ops::Range;
use std::thread;

use burn::tensor::{Device, Tensor};
use xdit_comm::local::World;
use xdit_core::comm::{CommError, Communicator};
use xdit_core::dit::{Attention, Dit};
use xdit_core::engine::{self, Denoise, EngineError, Team};
use xdit_core::mesh::{Axis, Mesh};
use xdit_core::observer::Observer;
use xdit_core::sampler::Sampler;

/// A pipeline stage: the transformer with its blocks alone.
pub struct Stage {
    /// Numbers of its blocks.
    pub blocks: Range<usize>,
    /// Bytes that were read from the checkpoint for it.
    pub weight_bytes: u64,
    /// The transformer.
    pub dit: Box<dyn Dit>,
}

/// Who denoises.
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    /// The ranks.
    pub mesh: &'a Mesh,
    /// The device that all of them share.
    pub device: &'a Device,
    /// As many as the mesh has pipeline stages.
    pub stages: &'a [Stage],
    /// See [`Team`].
    pub n_patches: usize,
    /// See [`Team`].
    pub warmup_steps: usize,
}

/// What came of it.
pub struct Denoised {
    /// Of each picture.
    pub latents: Vec<Tensor<3>>,
    /// Of each rank, the keys and values that it kept from step to step.
    pub kept_bytes: Vec<u64>,
}

/// A rank's pictures, if it hands them over, and the bytes that it kept.
type Share = (Vec<(usize, Tensor<3>)>, u64);

/// One rank's communicators. Whoever drops it leaves the world.
struct Rank {
    replica: usize,
    world: Box<dyn Communicator>,
    sequence: Box<dyn Communicator>,
    cfg: Box<dyn Communicator>,
    stages: Box<dyn Communicator>,
    attn: Box<dyn Attention>,
}

impl Rank {
    /// Every rank of the world must come here.
    fn new(mesh: &Mesh, world: Box<dyn Communicator>) -> Result<Self, CommError> {
        let rank = world.rank();
        let group = |axes: &[Axis]| world.split(mesh.color(rank, axes), rank);
        let (ulysses, ring) = (group(&[Axis::Ulysses])?, group(&[Axis::Ring])?);
        Ok(Self {
            attn: match mesh.config().pipefusion {
                1 => xdit_attn::usp(ulysses, ring),
                _ => xdit_attn::pipefusion(ulysses, ring),
            },
            replica: mesh.coordinate(rank, Axis::Data),
            sequence: group(Axis::SEQUENCE)?,
            cfg: group(&[Axis::Cfg])?,
            stages: group(&[Axis::Pipefusion])?,
            world,
        })
    }

    /// Whether this one hands the replica's pictures over: all ranks have them.
    fn speaks(&self) -> bool {
        self.sequence.rank() == 0 && self.cfg.rank() == 0 && self.stages.rank() == 0
    }
}

/// What denoises a picture on one rank.
pub type Run<'a> = dyn FnMut(Denoise<'_>) -> Result<(), EngineError> + 'a;

/// Denoises `n` pictures on the mesh, in their order.
///
/// - `picture`: hands picture `i`'s request to the rank that asks for it; every rank that shares the picture asks
///
/// # Errors
/// Of several ranks' errors the one that is not about another rank, else the first.
pub fn denoise_all(
    setup: Setup<'_>,
    sampler: &dyn Sampler,
    n: usize,
    picture: &(dyn Fn(usize, &mut Run<'_>) -> Result<(), EngineError> + Sync),
    observer: &mut dyn Observer,
) -> Result<Denoised, EngineError> {
    let Setup { mesh, device, stages, n_patches, warmup_steps } = setup;
    let run = |world: Box<dyn Communicator>, observer: &mut dyn Observer| {
        let mut rank = Rank::new(mesh, world)?;
        let mut mine = Vec::new();
        for i in mesh.share(rank.replica, n) {
            let done = picture(i, &mut |request| {
                let Stage { blocks, dit, .. } = &stages[rank.stages.rank()];
                let team = Team {
                    sequence: &*rank.sequence,
                    ulysses: mesh.config().ulysses,
                    cfg: &*rank.cfg,
                    stages: &*rank.stages,
                    blocks: blocks.clone(),
                    n_patches,
                    warmup_steps,
                    attn: &mut *rank.attn,
                };
                let latents = engine::denoise(dit.as_ref(), team, sampler, request, observer)?;
                mine.push((i, latents));
                Ok(())
            });
            if let Err(error) = done {
                // the others learn why
                rank.world.abort(&error.to_string());
                return Err(error);
            }
        }
        let kept = rank.attn.kept_bytes();
        Ok(if rank.speaks() { (mine, kept) } else { (Vec::new(), kept) })
    };

    let mut ranks = World::new(vec![device.clone(); mesh.world_size()]).communicators().into_iter();
    let first = ranks.next().expect("a mesh has a rank");
    let results: Vec<Result<Share, EngineError>> = thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = ranks.map(|world| scope.spawn(move || run(world, &mut ()))).collect();
        let first = run(first, observer);
        // a rank that panicked has said so, and the others have an error that names it
        let others = threads.into_iter().filter_map(|thread| thread.join().ok());
        std::iter::once(first).chain(others).collect()
    });

    let mut latents: Vec<Option<Tensor<3>>> = vec![None; n];
    let (mut kept_bytes, mut failed) = (Vec::new(), None::<EngineError>);
    for result in results {
        match result {
            Ok((pictures, kept)) => {
                pictures.into_iter().for_each(|(i, x)| latents[i] = Some(x));
                kept_bytes.push(kept);
            }
            Err(error) => {
                let told = matches!(error, EngineError::Comm(_));
                if failed.is_none() || (!told && matches!(failed, Some(EngineError::Comm(_)))) {
                    failed = Some(error);
                }
            }
        }
    }
    match failed {
        Some(error) => Err(error),
        None => {
            let latents = latents.into_iter().map(|x| x.expect("every picture belongs to a replica")).collect();
            Ok(Denoised { latents, kept_bytes })
        }
    }
}
