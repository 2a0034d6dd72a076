//! Requests that end early on ranks that live on: all ranks end behind the same step, and the next picture is what it
//! would have been.

mod bare;

use std::ops::ControlFlow;
use std::time::Duration;

use burn::tensor::{Device, Tensor};
use xdit_comm::local::World;
use xdit_core::dit::Attention;
use xdit_core::engine::{EngineError, Halt};
use xdit_core::observer::{Observer, Phase};
use xdit_testing::mesh::on_world;

use bare::{Dice, Mesh, N_BLOCKS, N_PATCHES, Rank};

const N_STEPS: usize = 5;
const N_PICTURES: usize = 4;

/// Breaks once a rank has done so much.
struct Break {
    steps: Option<u64>,
    blocks: Option<usize>,
    seen: usize,
}

impl Observer for Break {
    fn advance(&mut self, _phase: Phase, done: u64) -> ControlFlow<()> {
        if self.steps == Some(done) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn blocks(&mut self, _step: usize, _done: usize, _total: usize) -> ControlFlow<()> {
        self.seen += 1;
        if self.blocks == Some(self.seen) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// Which rank breaks, and when.
type Stop = (usize, Option<u64>, Option<usize>);

/// What each rank says of each picture: its bits, or after how many steps it was cancelled.
fn run(mesh: Mesh, stops: &[Option<Stop>]) -> Vec<Vec<Result<Vec<u32>, usize>>> {
    let halts: Vec<_> = stops.iter().map(|_| Halt::default()).collect();
    let world = World::new(vec![Device::flex(); mesh.iter().product()]).deadline(Duration::from_secs(10));
    let said = on_world(world, |world| {
        let me = world.rank();
        let (rank, mut attn) = Rank::new(mesh, world).expect("groups");
        let mut draw = |(stop, halt): (&Option<Stop>, &Halt)| {
            let (steps, blocks) = stop.filter(|stop| stop.0 == me).map_or((None, None), |stop| (stop.1, stop.2));
            let mut observer = Break { steps, blocks, seen: 0 };
            let attn: &mut dyn Attention = &mut *attn;
            match rank.draw(N_STEPS, attn, halt, &mut observer) {
                Ok(latents) => Ok(bits(latents)),
                Err(EngineError::Cancelled { step, .. }) => Err(step),
                Err(error) => panic!("{mesh:?}, {stops:?}: {error}"),
            }
        };
        stops.iter().zip(&halts).map(&mut draw).collect()
    });
    said.into_iter().map(|said| said.expect("no panic")).collect()
}

/// After how many steps, if not all were done. Behind the last one a rank may be asked after others have ended.
fn cut_short(said: &Result<Vec<u32>, usize>) -> Option<usize> {
    said.as_ref().err().copied().filter(|&step| step < N_STEPS)
}

fn bits(x: Tensor<3>) -> Vec<u32> {
    let values: Vec<f32> = x.into_data().try_to_vec().expect("f32");
    values.into_iter().map(f32::to_bits).collect()
}

#[test]
fn the_picture_after_a_cancelled_one_is_what_it_would_have_been() {
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    let mut n_cancelled = 0;
    for mesh in [[1, 1, 1, 2], [2, 1, 2, 1], [1, 2, 1, 1], [2, 2, 1, 1], [1, 2, 1, 2], [1, 2, 2, 1]] {
        let size: usize = mesh.iter().product();
        let whole = run(mesh, &[None]).remove(0).remove(0).expect("nobody breaks");
        for _ in 0..20 {
            // the last one is never cancelled
            let mut stops: Vec<Option<Stop>> = Vec::new();
            for _ in 1..N_PICTURES {
                let (steps, blocks) =
                    (1 + dice.roll(N_STEPS) as u64, 1 + dice.roll(2 * N_BLOCKS * N_PATCHES * N_STEPS));
                let stop = if dice.roll(2) == 0 { (Some(steps), None) } else { (None, Some(blocks)) };
                stops.push(Some((dice.roll(size), stop.0, stop.1)));
            }
            stops.push(None);
            let said = run(mesh, &stops);
            for (i, first) in said[0].iter().enumerate() {
                let what = format!("{mesh:?}, {stops:?}, picture {i}");
                for said in &said {
                    assert_eq!(cut_short(&said[i]), cut_short(first), "{what}");
                    assert!(said[i].as_ref().is_ok_and(|bits| *bits == whole) || said[i].is_err(), "{what}");
                }
                n_cancelled += usize::from(cut_short(first).is_some());
            }
            assert!(said[0].last().is_some_and(Result::is_ok), "{mesh:?}, {stops:?}");
        }
    }
    assert!(n_cancelled > 100, "{n_cancelled} pictures of 360 were cancelled");
}
