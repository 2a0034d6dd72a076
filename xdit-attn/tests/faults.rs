//! A rank that fails in the middle of a denoising loop: every rank ends with an error, and none waits for long.

use std::panic;
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Tensor};
use xdit_attn::{pipefusion, usp};
use xdit_comm::local::World;
use xdit_core::comm::{CommError, Communicator};
use xdit_core::dit::{
    Attention, Cond, Ctx, Dit, DitSpec, Inputs, Pass, Positions, Qkv, Site, Streams, TextEmbeddings, TextStates,
    TokenGrid, parted,
};
use xdit_core::engine::{Cfg, Denoise, Halt, Team, denoise};
use xdit_core::sampler::{FlowMatchEuler, FlowMatchEulerConfig};
use xdit_testing::mesh::on_world;

const GRID: TokenGrid = TokenGrid::picture(5, 3);
const N_BLOCKS: usize = 2;
/// The picture of five rows as three and two.
const N_PATCHES: usize = 2;
/// Short, as faults that are silent wait for it.
const DEADLINE: Duration = Duration::from_millis(40);

/// A transformer of nothing but attention.
struct Bare;

impl Dit for Bare {
    fn spec(&self) -> DitSpec {
        DitSpec { n_blocks: N_BLOCKS, n_heads: 4, head_dim: 4, channels: 16, joint: true, txt_each_step: false }
    }

    fn dtype(&self) -> DType {
        DType::F32
    }

    fn positions(&self, _grid: TokenGrid, _n_txt: usize) -> Positions {
        Positions::default()
    }

    fn condition(&self, inputs: Inputs<'_>) -> Cond {
        let temb = Tensor::zeros([1, 16], &inputs.text.txt.states.device());
        Cond { temb, modulation: None, txt_bias: None }
    }

    fn embed_txt(&self, text: &TextEmbeddings, _cond: &Cond, _positions: &Positions) -> Tensor<3> {
        text.txt.states.clone()
    }

    fn embed_img(&self, latents: Tensor<3>, _positions: &Positions) -> Tensor<3> {
        latents
    }

    fn block(&self, ctx: &mut Ctx<'_>, i: usize, x: Streams, _cond: &Cond) -> Result<Streams, CommError> {
        let heads = |x: &Tensor<3>| xdit_core::ops::split_heads(x.clone(), 4);
        let qkv = |x: &Tensor<3>| Qkv { q: heads(x), k: heads(x), v: heads(x) };
        let (both, n_txt) = Qkv::joined(x.txt.as_ref().map(qkv), qkv(&x.img));
        let (txt, img) = parted(ctx.attn.joint(Site::first(i), both, n_txt)?, n_txt);
        let merge = xdit_core::ops::merge_heads;
        let txt = x.txt.zip(txt).map(|(x, txt)| x + merge(txt));
        Ok(Streams::new(txt, x.img + merge(img)))
    }

    fn head(&self, x: Streams, _cond: &Cond) -> Tensor<3> {
        x.img
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// In the middle of a block.
    Panic,
    /// Comes too late, and then not at all.
    Silent,
    /// Says that it cannot go on, and leaves.
    Leave,
    /// Sends fewer tokens than it should.
    Shape,
    /// Leaves out an exchange and goes on with the next.
    Skip,
}

/// Does what `inner` does, but for call number `at`.
struct Faulty {
    inner: Box<dyn Attention>,
    fault: Fault,
    at: usize,
    calls: usize,
}

impl Attention for Faulty {
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
                thread::sleep(3 * DEADLINE);
                self.inner.joint(site, x, n_txt)
            }
            Fault::Leave => Err(CommError::NoTensor { rank: 0, op: "a fault" }),
            Fault::Shape => {
                let less = |x: Tensor<4>| {
                    let [_, h, _, _] = x.dims();
                    x.narrow(1, 0, h - 1)
                };
                self.inner.joint(site, Qkv { q: less(x.q), k: less(x.k), v: less(x.v) }, n_txt)
            }
            Fault::Skip => Ok(x.q),
        }
    }

    fn self_attn(&mut self, site: Site, img: Qkv) -> Result<Tensor<4>, CommError> {
        self.inner.self_attn(site, img)
    }
}

/// What every rank says: `Ok` after a whole loop, the error, or "panicked".
fn run([cfg, stages, ring, ulysses]: [usize; 4], faulty: usize, fault: Fault, at: usize) -> Vec<Result<(), String>> {
    let sequence = ring * ulysses;
    // a busy machine is no fault
    let deadline = if fault == Fault::None { Duration::from_secs(60) } else { DEADLINE };
    let replica = stages * sequence;
    let world = World::new(vec![Device::flex(); cfg * replica]).deadline(deadline);
    let halt = Halt::default();
    let outcomes = on_world(world, |world: Box<dyn Communicator>| -> Result<(), String> {
        let rank = world.rank();
        let group = |color: usize| world.split(color, rank).map_err(|e| e.to_string());
        let (u, r) = (group(rank / ulysses)?, group(rank % ulysses + rank / sequence * ulysses)?);
        let (tokens, branches) = (group(rank / sequence)?, group(rank % replica)?);
        let pipeline = group(rank % sequence + rank / replica * sequence)?;
        let fault = if rank == faulty { fault } else { Fault::None };
        let inner = if stages == 1 { usp(u, r) } else { pipefusion(u, r) };
        let mut attn = Faulty { inner, fault, at, calls: 0 };
        let device = Device::flex();
        let text = |value: f32| TextEmbeddings {
            txt: TextStates::all(Tensor::full([1, 9, 16], value, &device)),
            txt_2: None,
            pooled: None,
        };
        let sampler =
            FlowMatchEuler::new(&FlowMatchEulerConfig::default(), 2, None, None).map_err(|e| e.to_string())?;
        let request = Denoise {
            noise: Box::new(|| Tensor::ones([1, 15, 16], &device)),
            grid: GRID,
            size: [80, 48],
            text: &text(0.1),
            guidance: None,
            cfg: Some(Cfg { negative: &text(0.2), scale: 2.0, rescale: 0.0, skip_layers: None }),
        };
        let n_blocks = N_BLOCKS / stages;
        let first = pipeline.rank() * n_blocks;
        let team = Team {
            sequence: &*tokens,
            ulysses,
            cfg: &*branches,
            stages: &*pipeline,
            blocks: first..first + n_blocks,
            n_patches: N_PATCHES,
            warmup_steps: 1,
            attn: &mut attn,
            halt: &halt,
        };
        denoise(&Bare, team, &sampler, request, &mut ()).map(|_| ()).map_err(|e| e.to_string())
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
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut dice = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % n
    };
    for i in 0..1000 {
        let mesh = meshes[dice(meshes.len())];
        let size: usize = mesh.iter().product();
        // those who wait for a deadline take longest
        let fault = match dice(20) {
            0 => Fault::Silent,
            n => [Fault::Panic, Fault::Leave, Fault::Shape, Fault::Skip][n % 4],
        };
        // two steps; a pipeline's second goes patch by patch
        let n_passes = if mesh[1] == 1 { 2 } else { 1 + N_PATCHES };
        let n_calls = N_BLOCKS / mesh[1] * n_passes * (2 / mesh[0]);
        let (faulty, at) = (dice(size), dice(n_calls));
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
