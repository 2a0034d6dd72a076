//! Processes as ranks, by MPI where this program was built for it.

use anyhow::{Result, bail};
use burn::tensor::{DType, Tensor, TensorData};
use xdit_comm::launcher::Launched;
use xdit_core::comm::{CommError, Communicator};

#[cfg(feature = "mpi")]
pub struct Process(xdit_comm::mpi::Process);

/// There is none.
#[cfg(not(feature = "mpi"))]
pub enum Process {}

#[cfg(not(feature = "mpi"))]
impl Process {
    pub fn join(launched: &Launched) -> Result<Self> {
        bail!(
            "{} started {} processes, and this program was built without what joins them; build it with --features mpi, or \
             start one process, whose ranks are threads (--ulysses-degree and the like)",
            launched.launcher,
            launched.size
        )
    }

    pub fn communicator(&self) -> Box<dyn Communicator> {
        match *self {}
    }

    pub fn abort(&self, _reason: &str) {
        match *self {}
    }

    pub fn finish(self) {
        match self {}
    }
}

#[cfg(feature = "mpi")]
impl Process {
    /// Every process that the launcher started must come here.
    ///
    /// # Errors
    /// An MPI that sees other processes than the launcher started.
    pub fn join(launched: &Launched) -> Result<Self> {
        use xdit_comm::launcher::Launcher;
        use xdit_comm::mpi;

        let process = mpi::Process::join(xdit_comm::local::DEADLINE)?;
        let Launched { launcher, rank, size, .. } = launched;
        if (process.rank(), process.size()) == (*rank, *size) {
            return Ok(Self(process));
        }
        let (found, seen) = (process.rank(), process.size());
        process.abort("was started as another rank");
        process.finish();
        let advice = match launcher {
            Launcher::Torchrun => "processes on CPUs find each other by MPI, so start them with mpirun or srun",
            Launcher::OpenMpi | Launcher::Mpich => "start it with the mpirun of the MPI that it was built with",
            Launcher::Slurm => "see srun --mpi=list, and use the one for the MPI that it was built with",
        };
        bail!("{launcher} started {size} processes, but to MPI rank {rank} is rank {found} of {seen}; {advice}")
    }

    pub fn communicator(&self) -> Box<dyn Communicator> {
        self.0.communicator()
    }

    pub fn abort(&self, reason: &str) {
        self.0.abort(reason);
    }

    pub fn finish(self) {
        self.0.finish();
    }
}

/// A number of the first rank, on all ranks.
///
/// # Errors
/// A rank that failed.
pub fn same(world: &dyn Communicator, number: u64) -> Result<u64, CommError> {
    // in digits that any float holds
    let digits: Vec<f32> = number.to_be_bytes().map(f32::from).into();
    let mine = (world.rank() == 0).then(|| Tensor::<1>::from_data(TensorData::new(digits, [8]), world.device()));
    let digits = world.broadcast(0, mine, [8], DType::F32)?.into_data();
    Ok(digits.iter::<f32>().fold(0, |number, digit| number << 8 | digit as u64))
}
