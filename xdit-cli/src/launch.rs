//! How many processes there are: one, or one per rank under a launcher.

use anyhow::{Result, bail};

/// Variables by which torchrun, Slurm, Open MPI and MPICH say how many processes they have started.
const WORLD_SIZE: [(&str, &str); 4] =
    [("WORLD_SIZE", "torchrun"), ("SLURM_NTASKS", "Slurm"), ("OMPI_COMM_WORLD_SIZE", "mpirun"), ("PMI_SIZE", "mpirun")];

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
