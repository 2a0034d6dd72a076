//! How many processes there are: one, or one per rank under a launcher.

use anyhow::{Result, bail};
use xdit_core::comm::Communicator;

use crate::args::Compute;

/// Variables by which torchrun, Slurm, Open MPI and MPICH say how many processes they have started.
const WORLD_SIZE: [(&str, &str); 4] =
    [("WORLD_SIZE", "torchrun"), ("SLURM_NTASKS", "Slurm"), ("OMPI_COMM_WORLD_SIZE", "mpirun"), ("PMI_SIZE", "mpirun")];

/// With more, making their groups takes minutes, in which nobody can stop it.
const MOST_RANKS: usize = 256;

/// Ranks are threads of one process until there is a transport between processes: many processes would each draw all
/// pictures.
pub fn check_environment() -> Result<()> {
    for (name, launcher) in WORLD_SIZE {
        if let Some(size) = std::env::var(name).ok().and_then(|value| value.parse::<usize>().ok()).filter(|n| *n > 1) {
            bail!(
                "{name}={size} says that {launcher} started {size} processes, and there is no transport between processes \
                 yet; start one process, whose ranks are threads (--ulysses-degree and the like)"
            );
        }
    }
    Ok(())
}

/// What makes the ranks of this process, one thread each: on one device, or each on a device of its own.
pub fn ranks(
    compute: &Compute,
    n_ranks: usize,
) -> Result<impl FnOnce(usize) -> Vec<Box<dyn Communicator>> + Send + 'static> {
    if n_ranks > MOST_RANKS {
        bail!("{n_ranks} ranks are more than the {MOST_RANKS} that one process has as threads");
    }
    let world = compute.world(n_ranks)?;
    Ok(move |_| world.communicators())
}
