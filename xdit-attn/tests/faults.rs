//! A rank that fails in the middle of a denoising loop: every rank ends with an error, and none waits for long.

mod bare;

use std::panic;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor};
use xdit_comm::local::World;
use xdit_core::comm::{CommError, Communicator};
use xdit_core::dit::{Attention, Pass, Qkv, Site};
use xdit_core::engine::Halt;
use xdit_testing::mesh::on_world;

use bare::{Dice, Mesh, N_BLOCKS, N_PATCHES, Rank};

/// Short, as faults that are silent wait for it.
const DEADLINE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// In the middle of a block.
    Panic,
    /// Comes when all others are gone.
    Silent,
    /// Says that it cannot go on, and leaves.
    Leave,
    /// Sends fewer tokens than it should.
    Shape,
    /// Leaves out an exchange and goes on with the next.
    Skip,
}

/// Does what `inner` does, but for call number `at`.
struct Faulty<'a> {
    inner: Box<dyn Attention>,
    fault: Fault,
    at: usize,
    calls: usize,
    /// Waits for the other ranks' end.
    others: &'a dyn Fn(),
}

impl Attention for Faulty<'_> {
    fn begin(&mut self, pass: &Pass) {
        self.inner.begin(pass);
    }

    fn joint(&mut self, site: Site, x: Qkv, n_txt: usize) -> Result<Tensor<4>, CommError> {
        self.calls += 1;
        if self.calls - 1 != self.at {
            return self.inner.joint(site, x, n_txt);
        }
        match self.fault {
            Fault::None => self.inner.joint(site, x, n_txt),
            Fault::Panic => panic!("a fault"),
            Fault::Silent => {
                (self.others)();
                self.inner.joint(site, x, n_txt)
            }
            Fault::Leave => Err(CommError::NoTensor { rank: 0, op: "a fault" }),
            Fault::Shape => {
                let less = |x: Tensor<4>| {
                    let [_, h, _, _] = x.dims();
                    x.narrow(1, 0, h - 1)
                };
                self.inner.joint(site, Qkv::new([less(x.q), less(x.k), less(x.v)]), n_txt)
            }
            Fault::Skip => Ok(x.q),
        }
    }

    fn self_attn(&mut self, site: Site, img: Qkv) -> Result<Tensor<4>, CommError> {
        self.inner.self_attn(site, img)
    }
}

/// What every rank says: `Ok` after a whole loop, the error, or "panicked".
fn run(mesh: Mesh, faulty: usize, fault: Fault, at: usize) -> Vec<Result<(), String>> {
    let size: usize = mesh.iter().product();
    // a busy machine is no fault
    let deadline = if fault == Fault::None { Duration::from_secs(60) } else { DEADLINE };
    let (halt, gone) = (Halt::default(), AtomicUsize::new(0));
    let others = || {
        // they are to end by themselves; if they don't, the test is to see that
        let start = Instant::now();
        while gone.load(Ordering::Relaxed) < size - 1 && start.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(1));
        }
    };
    let one = |world: Box<dyn Communicator>| -> Result<(), String> {
        let fault = if world.rank() == faulty { fault } else { Fault::None };
        let (rank, inner) = Rank::new(mesh, world).map_err(|e| e.to_string())?;
        let mut attn = Faulty { inner, fault, at, calls: 0, others: &others };
        rank.draw(2, &mut attn, &halt, &mut ()).map(drop).map_err(|e| e.to_string())
    };
    let outcomes = on_world(World::new(vec![Device::flex(); size]).deadline(deadline), |world| {
        let said = one(world);
        gone.fetch_add(1, Ordering::Relaxed);
        said
    });
    outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|_| Err("panicked".into()))).collect()
}

#[test]
fn a_rank_that_fails_ends_the_request_on_every_rank() {
    // a thousand panics that are meant would fill the screen
    panic::set_hook(Box::new(|_| {}));
    let meshes = [
        [1, 1, 1, 2],
        [1, 1, 2, 1],
        [2, 1, 1, 1],
        [1, 1, 2, 2],
        [2, 1, 1, 2],
        [2, 1, 2, 1],
        [1, 1, 1, 4],
        [1, 1, 4, 1],
        [1, 2, 1, 1],
        [1, 2, 1, 2],
        [1, 2, 2, 1],
        [2, 2, 1, 1],
    ];
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for i in 0..1000 {
        let mesh = meshes[dice.roll(meshes.len())];
        let size: usize = mesh.iter().product();
        // those who wait for a deadline take longest
        let fault = match dice.roll(20) {
            0 => Fault::Silent,
            n => [Fault::Panic, Fault::Leave, Fault::Shape, Fault::Skip][n % 4],
        };
        // two steps; a pipeline's second goes patch by patch
        let n_passes = if mesh[1] == 1 { 2 } else { 1 + N_PATCHES };
        let n_calls = N_BLOCKS / mesh[1] * n_passes * (2 / mesh[0]);
        let (faulty, at) = (dice.roll(size), dice.roll(n_calls));
        let start = Instant::now();
        let said = run(mesh, faulty, fault, at);
        let took = start.elapsed();
        let what = format!(
            "run {i}: {fault:?} in call {at} of rank {faulty} of cfg, stages, ring, ulysses {mesh:?}: {said:?}"
        );
        assert!(took < Duration::from_secs(2), "{what} took {took:?}");
        // a skipped exchange among ranks that have none, and fewer heads where nobody shares them, are no fault
        let alone = mesh[2] * mesh[3] == 1;
        if alone && fault == Fault::Skip {
            continue;
        }
        for (rank, said) in said.iter().enumerate() {
            let Err(error) = said else { panic!("{what}: rank {rank} knows nothing") };
            assert!(!error.contains('\n'), "{what}: more than a line");
            if rank != faulty && error != "panicked" {
                assert!(error.contains("rank"), "{what}: nobody is named");
            }
        }
    }
}

#[test]
fn without_a_fault_there_is_no_error() {
    for mesh in [[1, 1, 1, 1], [1, 1, 1, 2], [2, 1, 2, 2], [1, 2, 1, 1], [2, 2, 2, 1]] {
        assert!(run(mesh, 0, Fault::None, 0).iter().all(Result::is_ok));
    }
}
