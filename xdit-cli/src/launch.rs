//! Which ranks this process has: all of them as threads, or one where a launcher started a process for each.

use anyhow::{Context, Result, bail};
use xdit_comm::launcher::Launched;
use xdit_core::comm::Communicator;
use xdit_core::mesh::ParallelConfig;

use crate::args::Compute;
use crate::cores;
use crate::device::Devices;
use crate::failure::Failure;
use crate::processes::Process;

/// With more, making their groups takes minutes, in which nobody can stop it.
const MOST_RANKS: usize = 256;

/// Makes ranks, given the number of all of them.
type Ranks = Box<dyn FnOnce(usize) -> Vec<Box<dyn Communicator>> + Send>;

/// Refuses what only threads do so far.
///
/// # Errors
/// A launcher that started several processes.
pub fn check_alone() -> Result<()> {
    match Launched::from_env()? {
        Some(Launched { launcher, size, .. }) if size > 1 => bail!(
            "{launcher} started {size} processes, and xdit bench measures the ranks of one process; start it by itself"
        ),
        _ => Ok(()),
    }
}

/// What makes the ranks of this process, one thread each: on one device, or each on a device of its own.
pub fn threads(compute: &Compute, n_ranks: usize) -> Result<Ranks> {
    if n_ranks > MOST_RANKS {
        bail!("{n_ranks} ranks are more than the {MOST_RANKS} that one process has as threads");
    }
    let world = compute.world(n_ranks)?;
    Ok(Box::new(move |_| world.communicators()))
}

/// This process among all.
pub struct Place {
    rank: usize,
    /// What the user should know.
    hint: Option<String>,
    /// Absent where there is no other.
    process: Option<Process>,
    /// The handle of its rank, until the pipeline has it.
    world: Option<Box<dyn Communicator>>,
}

impl Place {
    /// Joins the other processes, if a launcher started some. Whoever comes back with one is to [`end`](Self::end) it.
    ///
    /// # Errors
    /// Variables that make no sense; processes that cannot be joined.
    pub fn find(devices: &Devices) -> Result<Self> {
        let Some(launched) = Launched::from_env()?.filter(|launched| launched.size > 1) else {
            return Ok(Self { rank: 0, hint: None, process: None, world: None });
        };
        if !devices.are_cpu() {
            bail!(
                "{} started {} processes, and ranks on GPUs are threads of one process so far; start it by itself",
                launched.launcher,
                launched.size
            );
        }
        let process = Process::join(&launched)?;
        let world = Some(process.communicator());
        Ok(Self { rank: launched.rank, hint: cores::share(&launched), process: Some(process), world })
    }

    /// Whether this process prints and writes files.
    pub fn speaks(&self) -> bool {
        self.rank == 0
    }

    /// Whether there are others.
    pub fn is_one_of_many(&self) -> bool {
        self.process.is_some()
    }

    /// What the user should know.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// A number of the first process, on all of them.
    ///
    /// # Errors
    /// A process that failed.
    pub fn same(&self, number: u64) -> Result<u64> {
        match &self.world {
            Some(world) => crate::processes::same(&**world, number).context("cannot agree on a seed"),
            None => Ok(number),
        }
    }

    /// What makes the ranks of this process.
    ///
    /// # Errors
    /// Devices or processes that are not as many as the ranks.
    pub fn ranks(&mut self, compute: &Compute, parallel: ParallelConfig) -> Result<Ranks> {
        match self.world.take() {
            // that it is one of as many as the degrees need is the pipeline's to find
            Some(world) => Ok(Box::new(move |_| vec![world])),
            None => threads(compute, parallel.world_size()),
        }
    }

    /// Parts from the others, which learn of a failure.
    pub fn end(self, failure: Option<&mut Failure>) {
        let Self { process, world, .. } = self;
        if let (Some(process), Some(failure)) = (&process, failure) {
            process.abort(failure.message());
            // launchers may end this process as soon as another has ended
            failure.record(&std::env::args_os().collect::<Vec<_>>());
        }
        drop(world);
        if let Some(process) = process {
            process.finish();
        }
    }
}
