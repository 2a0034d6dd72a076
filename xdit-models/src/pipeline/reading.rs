//! Weights in memory, and who reads them.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use burn::tensor::Device;
use xdit_core::mesh::{Axis, Mesh};
use xdit_core::observer::Observer;

use crate::pipeline::architecture::Architecture;
use crate::pipeline::components::{ALL_BLOCKS, Components};
use crate::pipeline::draw::{Beating, Stage};
use crate::pipeline::error::PipelineError;
use crate::pipeline::worker::Worker;
use crate::pipeline::workers::{Desk, Workers};
use crate::vae::Vae;
use crate::vae::tiles::Tiling;

/// What was read for a request and is kept for the next. Ranks of one slot share it; see
/// [`Communicator::slot`](xdit_core::comm::Communicator::slot).
#[derive(Default, Clone)]
pub struct Held {
    /// By slot and stage.
    stages: Vec<(usize, usize, Arc<Stage>)>,
    /// By slot.
    vaes: Vec<(usize, Arc<dyn Vae>)>,
}

impl Held {
    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty() && self.vaes.is_empty()
    }

    /// A stage that was read for a rank of this slot.
    pub fn stage(&self, slot: usize, stage: usize) -> Arc<Stage> {
        let found = self.stages.iter().find(|(at, i, _)| (*at, *i) == (slot, stage));
        Arc::clone(&found.expect("every rank's stage was read").2)
    }

    /// The decoder, if a rank of this slot decodes.
    pub fn vae(&self, slot: usize) -> Option<Arc<dyn Vae>> {
        self.vaes.iter().find(|(at, _)| *at == slot).map(|(_, vae)| Arc::clone(vae))
    }
}

/// What a rank has read.
enum Weights {
    Stage(usize, Stage),
    Vae(Box<dyn Vae>),
}

/// Has ranks read what is not there yet.
pub struct Reader<'a> {
    /// Who reads.
    pub workers: &'a Workers,
    /// What is read.
    pub components: &'a Arc<Components>,
    /// Who needs what.
    pub mesh: Mesh,
}

impl Reader<'_> {
    /// Has one rank of each device read what its ranks need, if they have not got it yet: all devices at once.
    fn read(
        &self,
        wanted: Vec<Vec<usize>>,
        observer: &mut dyn Observer,
        read: impl Fn(&Components, &Device, usize, &mut dyn Observer) -> Result<Weights, PipelineError>
        + Send
        + Sync
        + 'static,
    ) -> Result<Vec<(usize, Weights)>, PipelineError> {
        let places = self.workers.ranks();
        let readers: Vec<usize> = (0..places.len()).filter(|i| !wanted[*i].is_empty()).collect();
        let components = Arc::clone(self.components);
        let at = places.iter().map(|(rank, _)| *rank).zip(wanted).collect::<Vec<_>>();
        let job = move |worker: &mut Worker, desk: &mut Desk<Weights>| {
            let mine = at.iter().filter(|(rank, _)| *rank == worker.world.rank()).flat_map(|(_, wanted)| wanted);
            mine.copied().try_for_each(|what| {
                let weights = read(&components, worker.device(), what, &mut Beating { worker, inner: desk })?;
                desk.hand_over(weights);
                Ok(())
            })
        };
        let mut all = Vec::new();
        self.workers.run(&readers, job, observer, &mut |rank, weights| {
            all.push((places[rank].1, weights));
            ControlFlow::Continue(())
        })?;
        Ok(all)
    }

    /// What each rank is to read: of several that need the same on the same device only the first reads it.
    fn wanted(&self, need: impl Fn(usize) -> Option<usize>, has: impl Fn(usize, usize) -> bool) -> Vec<Vec<usize>> {
        let places = self.workers.ranks();
        let mut wanted: Vec<Vec<usize>> = vec![Vec::new(); places.len()];
        for (rank, slot) in &places {
            let Some(what) = need(*rank).filter(|what| !has(*slot, *what)) else { continue };
            let reader = places.iter().position(|(_, at)| at == slot).expect("the rank itself at least");
            if !wanted[reader].contains(&what) {
                wanted[reader].push(what);
            }
        }
        wanted
    }

    /// The stages of the ranks of this process.
    pub fn stages(
        &self,
        architecture: &'static dyn Architecture,
        blocks: Vec<Range<usize>>,
        held: &mut Held,
        observer: &mut dyn Observer,
    ) -> Result<(), PipelineError> {
        let (mesh, alone) = (self.mesh, blocks.len() == 1);
        let has = |slot, stage| held.stages.iter().any(|(at, i, _)| (*at, *i) == (slot, stage));
        let wanted = self.wanted(|rank| Some(mesh.coordinate(rank, Axis::Pipefusion)), has);
        let read = self.read(wanted, observer, move |components, device, stage, observer| {
            let blocks = blocks[stage].clone();
            let wanted = if alone { ALL_BLOCKS } else { blocks.clone() };
            let (dit, weight_bytes) = architecture.dit(components, device, wanted, observer)?;
            Ok(Weights::Stage(stage, Stage { blocks, weight_bytes, dit }))
        })?;
        for (slot, weights) in read {
            if let Weights::Stage(i, stage) = weights {
                held.stages.push((slot, i, Arc::new(stage)));
            }
        }
        Ok(())
    }

    /// The decoders of the devices that decode: those of all ranks, or of those that speak.
    pub fn vaes(&self, tiling: Tiling, held: &mut Held, observer: &mut dyn Observer) -> Result<(), PipelineError> {
        let mesh = self.mesh;
        let has = |slot, _| held.vaes.iter().any(|(at, _)| *at == slot);
        let wanted = self.wanted(|rank| (tiling == Tiling::Off || mesh.speaks(rank)).then_some(0), has);
        let read = self.read(wanted, observer, |components, device, _, observer| {
            Ok(Weights::Vae(components.vae(device, observer)?))
        })?;
        for (slot, weights) in read {
            if let Weights::Vae(vae) = weights {
                held.vaes.push((slot, Arc::from(vae)));
            }
        }
        Ok(())
    }
}
