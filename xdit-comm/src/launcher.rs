//! What a launcher tells each process that it starts: torchrun, mpirun or srun, by their variables.

use std::fmt;

/// Who started the processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// torchrun, or whoever sets its variables.
    Torchrun,
    /// Open MPI's mpirun.
    OpenMpi,
    /// MPICH's mpirun, or another that speaks PMI.
    Mpich,
    /// srun.
    Slurm,
}

/// As on a command line.
impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Torchrun => "torchrun",
            Self::OpenMpi => "Open MPI's mpirun",
            Self::Mpich => "MPICH's mpirun",
            Self::Slurm => "srun",
        })
    }
}

/// One of many processes that a launcher started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launched {
    /// By whom.
    pub launcher: Launcher,
    /// Its number among all.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// Its number among those of its host, and how many these are, where the launcher says so.
    pub local: Option<[usize; 2]>,
    /// `MASTER_ADDR` and `MASTER_PORT`, set by torchrun or by hand. torchrun's own agent listens there.
    pub rendezvous: Option<(String, u16)>,
    /// How often torchrun has started all of them anew.
    pub restarts: usize,
}

/// Variables that make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LauncherError {
    /// One without the other.
    #[error("{given} is set and {missing} is not; a launcher sets both")]
    Half {
        /// What is there.
        given: &'static str,
        /// What is not.
        missing: &'static str,
    },
    /// Not what it should be.
    #[error("{name}={value:?} is no number")]
    NoNumber {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// A rank that cannot be.
    #[error("{name}={rank} is no rank of {size}")]
    Rank {
        /// The variable.
        name: &'static str,
        /// Its value.
        rank: usize,
        /// How many ranks there are.
        size: usize,
    },
}

/// Variables of a launcher: rank and size, local rank and size. In the order in which they are asked for: mpirun inside a
/// job of Slurm, and torchrun inside anything, leave the outer one's variables in place.
const VARIABLES: [(Launcher, [&str; 4]); 4] = [
    (Launcher::Torchrun, ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]),
    (
        Launcher::OpenMpi,
        ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"],
    ),
    (Launcher::Mpich, ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"]),
    // the script of sbatch itself has a SLURM_PROCID and SLURM_NTASKS; only srun sets this size. The local size is in
    // SLURM_STEP_TASKS_PER_NODE
    (Launcher::Slurm, ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""]),
];

impl Launched {
    /// What this process's environment says; `None` without a launcher.
    ///
    /// # Errors
    /// Variables that make no sense.
    pub fn from_env() -> Result<Option<Self>, LauncherError> {
        Self::read(|name| std::env::var(name).ok())
    }

    /// - `get`: a variable's value
    fn read(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, LauncherError> {
        let number = |name: &'static str| {
            let value = get(name).filter(|value| !value.is_empty());
            let parse = |value: String| value.parse().map_err(|_| LauncherError::NoNumber { name, value });
            value.map(parse).transpose()
        };
        for (launcher, [rank_name, size_name, local_rank, local_size]) in VARIABLES {
            let (rank, size) = match (number(rank_name)?, number(size_name)?) {
                (Some(rank), Some(size)) => (rank, size),
                (None, None) => continue,
                // a batch script's, see above
                (Some(_), None) if launcher == Launcher::Slurm => continue,
                (Some(_), None) => return Err(LauncherError::Half { given: rank_name, missing: size_name }),
                (None, Some(_)) => return Err(LauncherError::Half { given: size_name, missing: rank_name }),
            };
            if rank >= size {
                return Err(LauncherError::Rank { name: rank_name, rank, size });
            }
            let local_size = match launcher {
                Launcher::Slurm => tasks_of_node(&get),
                _ => number(local_size)?,
            };
            return Ok(Some(Self {
                launcher,
                rank,
                size,
                local: number(local_rank)?.zip(local_size).map(|(rank, size)| [rank, size]),
                rendezvous: get("MASTER_ADDR").zip(get("MASTER_PORT").and_then(|port| port.parse().ok())),
                restarts: number("TORCHELASTIC_RESTART_COUNT")?.unwrap_or(0),
            }));
        }
        Ok(None)
    }
}

/// Of this node, out of a list such as `4(x2),3`: four on each of the first two nodes, three on the third.
fn tasks_of_node(get: impl Fn(&str) -> Option<String>) -> Option<usize> {
    let mut node: usize = get("SLURM_NODEID")?.parse().ok()?;
    for group in get("SLURM_STEP_TASKS_PER_NODE")?.split(',') {
        let (tasks, times) = match group.split_once("(x") {
            Some((tasks, times)) => (tasks, times.strip_suffix(')')?.parse().ok()?),
            None => (group, 1),
        };
        if node < times {
            return tasks.parse().ok();
        }
        node -= times;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Launched>, LauncherError> {
        Launched::read(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into()))
    }

    fn plain(launcher: Launcher, [rank, size]: [usize; 2], local: Option<[usize; 2]>) -> Launched {
        Launched { launcher, rank, size, local, rendezvous: None, restarts: 0 }
    }

    #[test]
    fn each_launcher_is_known_by_its_variables() {
        assert_eq!(read(&[]), Ok(None));
        let torchrun = [
            ("RANK", "3"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("MASTER_ADDR", "node-a"),
            ("MASTER_PORT", "29500"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
        ];
        let expected = Launched {
            rendezvous: Some(("node-a".into(), 29500)),
            restarts: 2,
            ..plain(Launcher::Torchrun, [3, 4], Some([1, 2]))
        };
        assert_eq!(read(&torchrun), Ok(Some(expected)));
        let open_mpi = [
            ("OMPI_COMM_WORLD_RANK", "0"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "0"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        assert_eq!(read(&open_mpi), Ok(Some(plain(Launcher::OpenMpi, [0, 2], Some([0, 2])))));
        let mpich = [("PMI_RANK", "1"), ("PMI_SIZE", "2"), ("PMI_FD", "7")];
        assert_eq!(read(&mpich), Ok(Some(plain(Launcher::Mpich, [1, 2], None))));
        let mpich = [mpich.as_slice(), &[("MPI_LOCALRANKID", "1"), ("MPI_LOCALNRANKS", "2")]].concat();
        assert_eq!(read(&mpich), Ok(Some(plain(Launcher::Mpich, [1, 2], Some([1, 2])))));
    }

    #[test]
    fn slurm_is_asked_for_the_step_and_not_for_the_job() {
        let script = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "2")];
        assert_eq!(read(&script), Ok(None));
        for (node, tasks) in [("0", Some(4)), ("1", Some(4)), ("2", Some(3)), ("3", None)] {
            let step = [
                ("SLURM_PROCID", "1"),
                ("SLURM_STEP_NUM_TASKS", "11"),
                ("SLURM_LOCALID", "1"),
                ("SLURM_NODEID", node),
                ("SLURM_STEP_TASKS_PER_NODE", "4(x2),3"),
            ];
            assert_eq!(read(&step), Ok(Some(plain(Launcher::Slurm, [1, 11], tasks.map(|n| [1, n])))));
        }
    }

    #[test]
    fn the_innermost_launcher_counts() {
        let slurm = [("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1")];
        let open_mpi = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")];
        let torchrun = [("RANK", "2"), ("WORLD_SIZE", "3")];
        let who = |variables: &[&[(&str, &str)]]| read(&variables.concat()).unwrap().unwrap().launcher;
        assert_eq!(who(&[&slurm, &open_mpi]), Launcher::OpenMpi);
        assert_eq!(who(&[&slurm, &open_mpi, &torchrun]), Launcher::Torchrun);
    }

    #[test]
    fn variables_that_make_no_sense_are_named() {
        let says = |variables: &[(&str, &str)]| read(variables).unwrap_err().to_string();
        assert_eq!(says(&[("WORLD_SIZE", "4")]), "WORLD_SIZE is set and RANK is not; a launcher sets both");
        assert_eq!(says(&[("RANK", "x"), ("WORLD_SIZE", "4")]), "RANK=\"x\" is no number");
        assert_eq!(says(&[("PMI_RANK", "4"), ("PMI_SIZE", "4")]), "PMI_RANK=4 is no rank of 4");
    }
}
