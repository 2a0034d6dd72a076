//! Ranks as processes of MPI against ranks as threads: equal bits and equal words. Each test has mpirun start this program
//! again, with the name of a case; `.ci/mpi_tests` runs them.
#![cfg(feature = "mpi")]

use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Tensor, TensorData};
use xdit_comm::local::World;
use xdit_comm::mpi::{LOST, Process};
use xdit_core::comm::{CommError, Communicator, even_sizes};
use xdit_core::noise::TorchGenerator;
use xdit_testing::mesh::{on_ranks, on_world};

type Comm = Box<dyn Communicator>;

/// Names the case to the processes.
const CASE: &str = "XDIT_MPI_CASE";

/// Random runs of one start of mpirun, which takes longer than a run.
const RUNS_A_START: u64 = 10;

/// Long beside what a busy machine keeps a process waiting.
const DEADLINE: Duration = Duration::from_secs(3);

/// Until all have said what they found.
const PAUSE: Duration = Duration::from_secs(1);

struct Ran {
    status: ExitStatus,
    text: String,
    took: Duration,
}

/// Runs a case on `n` processes.
fn mpirun(n: usize, case: &str, options: &[&str]) -> Ran {
    let start = Instant::now();
    let program = std::env::current_exe().expect("this program");
    // whatever goes wrong, nothing is left behind
    let output = Command::new("timeout")
        .args(["-s", "KILL", "120", "mpirun", "--oversubscribe", "--allow-run-as-root", "-n", &n.to_string()])
        .args(options)
        .arg(program)
        .args(["--ignored", "--exact", "one_process", "--nocapture"])
        .env(CASE, case)
        .stdin(Stdio::null())
        .output()
        .expect("mpirun");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Ran { status: output.status, text, took: start.elapsed() }
}

/// All processes must find it right.
#[track_caller]
fn check(n: usize, case: &str) -> Ran {
    let ran = check_words(n, case);
    assert!(ran.status.success(), "{case} on {n}: {}\n{}", ran.status, ran.text);
    ran
}

/// The same, where a failure is what they must find: MPI cannot be ended in order then, and mpirun complains.
#[track_caller]
fn check_words(n: usize, case: &str) -> Ran {
    let ran = mpirun(n, case, &[]);
    assert_eq!(ran.text.matches("rank says: right").count(), n, "{}", ran.text);
    ran
}

/// What every process of a case does.
#[test]
#[ignore = "is started by mpirun"]
fn one_process() {
    let Ok(case) = std::env::var(CASE) else { return };
    // a lost process is found before the deadline, as in the program
    let lost_first = ["killed", "stopped"].contains(&case.as_str());
    let process = Process::join(if lost_first { 2 * LOST } else { DEADLINE }).expect("MPI");
    let (name, seed) = case.split_once(' ').unwrap_or((&case, "0"));
    let start: u64 = seed.parse().expect("a number");
    match name {
        "collectives" => same(&process, &process.communicator(), collectives),
        "groups" => same(&process, &process.communicator(), groups),
        "random" => {
            let comm = process.communicator();
            (start..start + RUNS_A_START).for_each(|seed| same(&process, &comm, |comm| random(comm, seed)));
        }
        "large" => large(&process.communicator()),
        "gives_up" => says_the_same(&process, |comm| comm.abort("out of memory")),
        "leaves" => says_the_same(&process, drop),
        "panics" => says_the_same(&process, |_comm| panic!("on purpose")),
        "refuses" => says_the_same(&process, |comm| drop(comm.send(x(), 99))),
        "mismatch" => says_the_same(&process, |comm| drop(comm.barrier())),
        "silent" => says_the_same(&process, |comm| {
            thread::sleep(DEADLINE + PAUSE);
            drop(comm.barrier());
        }),
        "beats" => beats(&process.communicator()),
        "killed" => return lost(process, "KILL"),
        "stopped" => return lost(process, "STOP"),
        other => panic!("no case {other}"),
    }
    println!("rank says: right");
    if !["collectives", "groups", "random", "large", "beats"].contains(&name) {
        // mpirun ends all as soon as one ends out of order
        thread::sleep(2 * PAUSE);
    }
    process.finish();
}

fn x() -> Tensor<2> {
    Tensor::ones([4, 6], &Device::flex())
}

fn noise<const D: usize>(shape: [usize; D], seed: usize, dtype: DType) -> Tensor<D> {
    let values = TorchGenerator::seeded(seed as u64).randn(shape.iter().product());
    Tensor::<D>::from_data(TensorData::new(values, shape), &Device::flex()).cast(dtype)
}

fn bits<const D: usize>(x: Tensor<D>) -> Vec<u32> {
    let values: Vec<f32> = x.cast(DType::F32).into_data().try_to_vec().expect("f32");
    values.into_iter().map(f32::to_bits).collect()
}

/// This process must find what the same rank among threads finds.
fn same(process: &Process, comm: &Comm, body: impl Fn(&Comm) -> Result<Vec<u32>, CommError> + Sync) {
    let found = body(comm).expect("no failure");
    let mut expected = on_ranks(process.size(), |comm| body(&comm).expect("no failure"));
    assert!(found == expected.swap_remove(process.rank()), "rank {}", process.rank());
}

/// Uneven, and nothing for some ranks.
fn n_tokens(rank: usize) -> usize {
    [3, 0, 5, 1, 2, 7, 4, 1][rank % 8]
}

fn collectives(comm: &Comm) -> Result<Vec<u32>, CommError> {
    let (n, rank) = (comm.size(), comm.rank());
    let sizes: Vec<_> = (0..n).map(n_tokens).collect();
    let mut all = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let heads = even_sizes(9, n);
        let mine = noise([2, 9, sizes[rank], 3], rank, dtype);
        let inside = comm.all_to_all(mine.clone(), [1, 2], &heads, &sizes)?;
        all.extend(bits(inside.clone()));
        all.extend(bits(comm.all_to_all(inside, [2, 1], &sizes, &heads)?));
        all.extend(bits(comm.all_gather(mine, 2, &sizes)?));
        all.extend(bits(comm.all_reduce(noise([5, 3], rank, dtype))?));
        let root = n - 1;
        let parts = (rank == root).then(|| (0..n).map(|i| noise([2, 3], 7 + i, dtype)).collect());
        all.extend(bits(comm.scatter(root, parts, [2, 3], dtype)?));
        all.extend(bits(comm.broadcast(root, (rank == root).then(|| noise([4], 9, dtype)), [4], dtype)?));
        let gathered = comm.gather(0, noise([rank + 1, 2], rank, dtype), 0, &(1..=n).collect::<Vec<_>>())?;
        all.extend(gathered.map(bits).unwrap_or_default());
        // several on their way, and one that nobody wants
        let posted: Vec<_> = (0..3)
            .map(|i| comm.rotate(noise([i + 1, 4], 10 * rank + i, dtype), [i + 1, 4]))
            .collect::<Result<_, _>>()?;
        for (i, posted) in posted.into_iter().enumerate() {
            if i != 1 {
                all.extend(bits(posted.wait()?));
            }
        }
    }
    comm.barrier()?;
    let total = comm.stats().total();
    all.extend([total.messages as u32, total.bytes as u32]);
    Ok(all)
}

fn groups(comm: &Comm) -> Result<Vec<u32>, CommError> {
    let (n, rank) = (comm.size(), comm.rank());
    let pair = comm.split(rank % 2, n - rank)?;
    let inner = pair.split(pair.rank() / 2, 0)?;
    let mut all = vec![pair.rank() as u32, pair.size() as u32, inner.rank() as u32, inner.size() as u32];
    for comm in [&pair, comm, &inner] {
        all.extend(bits(comm.all_reduce(noise([6], rank, DType::F32))?));
        all.extend(bits(comm.rotate(noise([2], rank, DType::F32), [2])?.wait()?));
    }
    Ok(all)
}

/// Forty operations, of groups as well; receives are posted before and waited for behind others.
fn random(comm: &Comm, seed: u64) -> Result<Vec<u32>, CommError> {
    let mut draws = TorchGenerator::seeded(seed);
    // the same on every rank
    let mut draw = |below: usize| (draws.randn(1)[0].abs() * 1e4) as usize % below;
    let n = comm.size();
    let groups = [comm.split(comm.rank() % 2, 0)?, comm.split(comm.rank() / 2, n - comm.rank())?];
    let (mut all, mut posted) = (Vec::new(), Vec::new());
    for step in 0..40 {
        let group: &Comm = match draw(3) {
            0 => comm,
            i => &groups[i - 1],
        };
        let (size, rank) = (group.size(), group.rank());
        let dtype = [DType::F32, DType::BF16][draw(2)];
        let rows = [0, 1, 3, 40, 20_000][draw(5)];
        let mine = noise([rows + rank, 2], comm.rank() + step, dtype);
        let sizes: Vec<_> = (0..size).map(|i| rows + i).collect();
        match draw(5) {
            0 => all.extend(bits(group.all_gather(mine, 0, &sizes)?)),
            1 => all.extend(bits(group.all_reduce(noise([rows + 1], rank, dtype))?)),
            2 => {
                let shapes = vec![[rows + rank, 1]; size];
                let parts = (0..size).map(|to| noise([rows + to, 1], step + to, dtype)).collect();
                group.trade(parts, &shapes)?.into_iter().for_each(|x| all.extend(bits(x)));
            }
            3 => {
                let from = (rank + size - 1) % size;
                posted.push(group.rotate(mine, [rows + from, 2])?);
            }
            _ => {
                while let Some(x) = posted.pop() {
                    all.extend(bits(x.wait()?));
                }
            }
        }
    }
    posted.into_iter().try_for_each(|x| x.wait().map(|x| all.extend(bits(x))))?;
    Ok(all)
}

/// More bytes than a C int counts, from the first rank to the second.
fn large(comm: &Comm) {
    let n = (1 << 29) + 1;
    match comm.rank() {
        0 => comm.send(Tensor::<1>::full([n], 3.0, &Device::flex()), 1).expect("sent").wait().expect("sent"),
        1 => {
            let got = comm.recv::<1>(0, [n], DType::F32).expect("posted").wait().expect("received");
            let data = got.into_data();
            assert!(data.as_slice::<f32>().expect("f32").iter().all(|x| *x == 3.0));
        }
        _ => {}
    }
}

/// Repeats collectives of the world and of groups until one fails.
fn work(comm: &Comm) -> CommError {
    let work = || -> Result<(), CommError> {
        let pair = comm.split(comm.rank() / 2, 0)?;
        loop {
            pair.all_to_all(x(), [0, 1], &even_sizes(4, pair.size()), &vec![6; pair.size()])?;
            comm.rotate(x(), [4, 6])?.wait()?;
            comm.all_reduce(x())?;
        }
    };
    work().expect_err("a failure")
}

/// All ranks but the third work, which takes part once and then does what it must not. They must name it in the words in
/// which threads do.
fn says_the_same(process: &Process, fault: impl Fn(Comm) + Sync) {
    let body = |comm: Comm| {
        if comm.rank() != 2 {
            // which operation learns of it is chance
            return work(&comm).to_string().split_once(" ended because ").expect("a peer's failure").1.to_string();
        }
        let pair = comm.split(1, 0).expect("no failure yet");
        pair.all_to_all(x(), [0, 1], &even_sizes(4, pair.size()), &vec![6; pair.size()]).expect("no failure yet");
        comm.rotate(x(), [4, 6]).expect("no failure yet").wait().expect("no failure yet");
        fault(comm);
        String::new()
    };
    let body = &body;
    let world = World::new(vec![Device::flex(); process.size()]).deadline(DEADLINE);
    // first, so that all processes are at the same from then on
    let expected = on_world(world, body).swap_remove(process.rank());
    let comm = process.communicator();
    comm.barrier().expect("no failure yet");
    let found = thread::scope(|scope| scope.spawn(move || body(comm)).join());
    // or both panicked
    assert_eq!(found.ok(), expected.ok(), "rank {}", process.rank());
}

fn beats(comm: &Comm) {
    let start = Instant::now();
    while comm.rank() == 1 && start.elapsed() < 2 * DEADLINE {
        thread::sleep(DEADLINE / 20);
        comm.beat();
    }
    comm.all_reduce(x()).expect("it was waited for");
}

/// The third process gets a signal in the middle of work.
fn lost(process: Process, signal: &'static str) {
    let comm = process.communicator();
    if process.rank() == 2 {
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            let me = std::process::id().to_string();
            Command::new("kill").args([&format!("-{}", signal), &me]).status()
        });
    }
    let error = work(&comm);
    println!("rank says: {error}");
    // mpirun ends all as soon as one fails
    thread::sleep(PAUSE / 2);
    // as a program that failed
    drop(comm);
    process.finish();
    std::process::exit(17);
}

#[test]
#[ignore = "needs mpirun"]
fn collectives_give_the_bits_of_threads() {
    for n in [1, 2, 4, 5] {
        check(n, "collectives");
        check(n, "groups");
    }
}

#[test]
#[ignore = "needs mpirun and 8 GiB"]
fn a_tensor_may_have_more_bytes_than_an_int_counts() {
    check(2, "large");
}

/// `XDIT_MPI_RUNS` asks for another number than 200.
#[test]
#[ignore = "needs mpirun"]
fn random_runs_give_the_bits_of_threads() {
    let runs = std::env::var("XDIT_MPI_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    for seed in (0..runs).step_by(RUNS_A_START as usize) {
        let n = 2 + (seed / RUNS_A_START) % 4;
        println!("{n} processes, runs from {seed}: {:?}", check(n as usize, &format!("random {seed}")).took);
    }
}

#[test]
#[ignore = "needs mpirun"]
fn failures_are_told_in_the_words_of_threads() {
    for case in ["gives_up", "leaves", "refuses", "mismatch", "silent", "panics"] {
        check_words(4, case);
    }
}

#[test]
#[ignore = "needs mpirun"]
fn a_process_that_beats_is_waited_for() {
    check(4, "beats");
}

/// All others must end by themselves, with one and the same cause.
#[track_caller]
fn check_lost(case: &str, options: &[&str], cause: &str, within: Duration) {
    let ran = mpirun(4, case, options);
    println!("{case}: {:?}", ran.took);
    assert!(!ran.status.success() && ran.took < within, "{:?} {}\n{}", ran.took, ran.status, ran.text);
    assert_eq!(ran.text.matches(cause).count(), 3, "{}", ran.text);
}

#[test]
#[ignore = "needs mpirun"]
fn a_killed_process_ends_the_others_at_once() {
    check_lost("killed", &[], "ended because rank 2 died: its process is gone", Duration::from_secs(5));
}

/// As where a launcher does not look.
#[test]
#[ignore = "needs mpirun"]
fn a_process_that_is_not_heard_of_ends_the_others_within_ten_seconds() {
    let text = format!("ended because rank 2 is not heard of for {LOST:?}: its process or host died, or was stopped");
    check_lost("stopped", &[], &text, Duration::from_secs(13));
}
