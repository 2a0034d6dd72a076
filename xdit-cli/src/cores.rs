//! How many threads this process computes with, where others of its host compute as well.

use std::fs;
use std::thread;

use xdit_comm::launcher::{Launched, Launcher};

/// Takes a fair share of the host's processors where nobody has given this process its own; the first process also gets a
/// line to print where that leaves it one of many.
pub fn share(launched: &Launched) -> Option<String> {
    let allowed = thread::available_parallelism().map_or(1, usize::from);
    let online = fs::read_to_string("/sys/devices/system/cpu/online").ok().and_then(|list| count(list.trim()))?;
    let bound = fs::read_to_string("/proc/self/status").ok().and_then(|status| {
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        count(list.trim())
    })? < online;
    match launched.local {
        _ if bound => (allowed == 1 && launched.rank == 0).then(|| {
            let how = match launched.launcher {
                Launcher::OpenMpi => "mpirun --bind-to none, or --map-by slot:PE=THREADS, gives it more",
                Launcher::Slurm => "srun --cpus-per-task=THREADS gives it more",
                Launcher::Torchrun | Launcher::Mpich => "its launcher can give it more",
            };
            format!("each process is bound to one of {online} processors; {how}")
        }),
        Some([_, processes]) if std::env::var_os("RAYON_NUM_THREADS").is_none() => {
            // it fails where threads run already, and then they stay
            let _ = rayon::ThreadPoolBuilder::new().num_threads((allowed / processes).max(1)).build_global();
            None
        }
        _ => None,
    }
}

/// Of a list such as `0-3,8`.
fn count(list: &str) -> Option<usize> {
    let size = |range: &str| match range.split_once('-') {
        Some((first, last)) => Some(last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)? + 1),
        None => range.parse::<usize>().ok().map(|_| 1),
    };
    list.split(',').map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_counted() {
        assert_eq!(count("0"), Some(1));
        assert_eq!(count("0-3,8,10-11"), Some(7));
        assert_eq!(count("3-0"), None);
        assert_eq!(count(""), None);
    }
}
