//! Ranks that live on: signs of life, messages that nobody wants, requests that end early, devices apart.

use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Tensor};
use xdit_comm::local::World;
use xdit_core::comm::{Cause, CommError, Communicator};
use xdit_testing::mesh::{on_ranks, on_world};

type Comm = Box<dyn Communicator>;

/// Long beside what a busy machine keeps a thread waiting.
const DEADLINE: Duration = Duration::from_millis(400);

fn x(value: f32) -> Tensor<1> {
    Tensor::full([4], value, &Device::flex())
}

fn host(x: Tensor<1>) -> Vec<f32> {
    x.cast(DType::F32).into_data().try_to_vec().expect("f32")
}

fn receive(comm: &Comm, from: usize) -> Result<f32, CommError> {
    Ok(host(comm.recv(from, [4], DType::F32)?.wait()?)[0])
}

fn world(n: usize) -> World {
    World::new(vec![Device::flex(); n]).deadline(DEADLINE)
}

/// Computes for three deadlines.
fn compute(sign: impl Fn()) {
    let start = Instant::now();
    while start.elapsed() < 3 * DEADLINE {
        thread::sleep(DEADLINE / 20);
        sign();
    }
}

fn silent(peer: usize, rank: usize, op: &'static str) -> CommError {
    CommError::PeerFailed { rank, op, peer, cause: Cause::Silent { op, deadline: DEADLINE } }
}

#[test]
fn a_rank_that_beats_is_waited_for() {
    let sums = on_world(world(3), |comm| {
        if comm.rank() == 1 {
            compute(|| comm.beat());
        }
        comm.all_reduce(x(1.0)).map(|x| x.dims())
    });
    sums.into_iter().for_each(|sum| assert_eq!(sum.unwrap(), Ok([4])));
}

#[test]
fn a_sign_in_a_group_counts_in_the_world() {
    let sums = on_world(world(2), |comm| {
        let alone = comm.split(comm.rank(), 0)?;
        if comm.rank() == 1 {
            compute(|| alone.beat());
        }
        comm.all_reduce(x(1.0)).map(|x| x.dims())
    });
    sums.into_iter().for_each(|sum| assert_eq!(sum.unwrap(), Ok([4])));
}

#[test]
fn any_call_is_a_sign() {
    let found = on_world(world(2), |comm| {
        if comm.rank() == 1 {
            // sends to itself, which nobody waits for
            compute(|| drop(comm.send(x(0.0), 1)));
        }
        comm.barrier()
    });
    found.into_iter().for_each(|found| assert_eq!(found.unwrap(), Ok(())));
}

#[test]
fn a_rank_that_computes_in_silence_is_named() {
    let start = Instant::now();
    let found = on_world(world(3), |comm| {
        if comm.rank() == 1 {
            compute(|| ());
        }
        comm.barrier().unwrap_err()
    });
    // not before the deadline is over
    assert!(start.elapsed() >= DEADLINE);
    for (rank, found) in found.into_iter().enumerate() {
        assert_eq!(found.unwrap(), silent(1, rank, "barrier"));
    }
}

/// Rank 0 waits for 1 and 1 for 2, which beats for longer than the deadline. What 1 does then is not older than what it got.
#[test]
fn who_waited_for_a_slow_rank_is_not_silent_itself() {
    for _ in 0..3 {
        let found = on_world(world(3), |comm| match comm.rank() {
            0 => receive(&comm, 1),
            1 => {
                let value = receive(&comm, 2)?;
                thread::sleep(DEADLINE / 2);
                comm.send(x(value + 1.0), 0)?.wait().map(|()| value)
            }
            _ => {
                compute(|| comm.beat());
                comm.send(x(1.0), 1)?.wait().map(|()| 0.0)
            }
        });
        let found: Vec<_> = found.into_iter().map(Result::unwrap).collect();
        assert_eq!(found, [Ok(2.0), Ok(1.0), Ok(0.0)]);
    }
}

/// Rank 0 waits for all others: for 1, which beats, and for 2, which does not.
#[test]
fn a_silent_rank_is_found_behind_one_that_beats() {
    let found = on_world(world(3), |comm| {
        let start = Instant::now();
        match comm.rank() {
            1 => {
                compute(|| comm.beat());
                comm.barrier()
            }
            2 => {
                thread::sleep(4 * DEADLINE);
                comm.barrier()
            }
            _ => {
                let found = comm.barrier();
                assert!(start.elapsed() < 2 * DEADLINE, "{:?}", start.elapsed());
                found
            }
        }
    });
    for (rank, found) in found.into_iter().enumerate() {
        assert_eq!(found.unwrap(), Err(silent(2, rank, "barrier")));
    }
}

/// Silence is counted from when somebody waits: ranks that had nothing to do are not late.
#[test]
fn a_rank_that_nobody_waited_for_was_not_silent() {
    let found = on_world(world(2), |comm| {
        comm.barrier()?;
        thread::sleep(2 * DEADLINE);
        if comm.rank() == 1 {
            thread::sleep(DEADLINE / 4);
        }
        comm.barrier()
    });
    found.into_iter().for_each(|found| assert_eq!(found.unwrap(), Ok(())));
}

#[test]
fn a_dropped_receive_takes_its_message_along() {
    for n in [1, 2] {
        for late in [false, true] {
            let got = on_ranks(n, |comm| {
                let (to, from) = ((comm.rank() + 1) % n, (comm.rank() + n - 1) % n);
                let send = |value| comm.send(x(value), to).map(drop);
                if !late {
                    send(1.0)?;
                    comm.barrier()?;
                }
                drop(comm.recv::<1>(from, [4], DType::F32)?);
                if late {
                    comm.barrier()?;
                    send(1.0)?;
                }
                send(2.0)?;
                receive(&comm, from)
            });
            assert!(got.iter().all(|got| *got == Ok(2.0)), "{got:?}");
        }
    }
}

/// Steps of a request that all ranks end before step `stop`, where only what will be sent is posted.
fn request(comm: &Comm, ring: &Comm, steps: usize, stop: usize) -> Result<f32, CommError> {
    let (rank, n) = (comm.rank(), comm.size());
    let mut value = rank as f32;
    for _ in 0..steps.min(stop) {
        value = host(ring.rotate(x(value), [4])?.wait()?)[0];
        comm.beat();
    }
    Ok(host(comm.all_gather(x(value), 0, &vec![4; n])?)[4 * rank])
}

#[test]
fn a_world_outlives_requests_that_all_ranks_end_at_one_step() {
    let found = on_ranks(4, |comm| {
        let ring = comm.split(0, comm.rank())?;
        let mut values = Vec::new();
        for stop in [5, 2, 0, 3, 5] {
            values.push(request(&comm, &ring, 5, stop)?);
        }
        Ok::<_, CommError>(values)
    });
    for (rank, found) in found.into_iter().enumerate() {
        // each step brings the value of the rank before
        let value = |stop: usize| ((rank + 8 - stop) % 4) as f32;
        assert_eq!(found, Ok([5, 2, 0, 3, 5].map(value).to_vec()));
    }
}

#[test]
fn equal_devices_are_one_unless_they_stand_apart() {
    for (world, slots) in [(World::new as fn(_) -> World, [0, 0, 0]), (World::apart, [0, 1, 2])] {
        for dtype in [DType::F32, DType::BF16] {
            let found = on_world(world(vec![Device::flex(); 3]), |comm| {
                let mine = x(comm.rank() as f32).cast(dtype);
                // the sender keeps its own
                let got = comm.rotate(mine.clone(), [4])?.wait()?;
                let all = comm.all_gather(got, 0, &[4; 3])?;
                Ok::<_, CommError>((comm.slot(), host(mine), all.dtype(), host(all)))
            });
            for (rank, found) in found.into_iter().enumerate() {
                let all = [2.0, 0.0, 1.0].map(|x| [x; 4]).as_flattened().to_vec();
                assert_eq!(found.unwrap(), Ok((slots[rank], vec![rank as f32; 4], dtype, all)));
            }
        }
    }
}
