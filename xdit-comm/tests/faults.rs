//! Ranks that fail: everyone else learns who and how, soon.

use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Tensor};
use xdit_comm::local::World;
use xdit_core::comm::{Call, Cause, CommError, Communicator, Posted, even_sizes};
use xdit_testing::mesh::{on_ranks, on_world};

type Comm = Box<dyn Communicator>;

fn x() -> Tensor<2> {
    Tensor::ones([4, 6], &Device::flex())
}

fn trade(comm: &Comm, x: Tensor<2>) -> Result<Tensor<2>, CommError> {
    comm.all_to_all(x, [0, 1], &even_sizes(4, comm.size()), &vec![6; comm.size()])
}

fn receive(comm: &Comm, from: usize) -> Result<Posted<2>, CommError> {
    comm.recv(from, [4, 6], DType::F32)
}

fn gather(comm: &Comm, x: Tensor<2>, dim: usize) -> Result<Tensor<2>, CommError> {
    let size = x.dims()[dim];
    comm.all_gather(x, dim, &vec![size; comm.size()])
}

fn world(n: usize, deadline: Duration) -> World {
    World::new(vec![Device::flex(); n]).deadline(deadline)
}

/// Repeats collectives of the world and of sub-groups until one fails.
fn work(comm: &Comm) -> CommError {
    let work = || -> Result<(), CommError> {
        let pair = comm.split(comm.rank() / 2, 0)?;
        loop {
            trade(&pair, x())?;
            comm.rotate(x(), [4, 6])?.wait()?;
            comm.all_reduce(x())?;
        }
    };
    work().unwrap_err()
}

/// Every rank but `culprit` works; all must end within two seconds and name it, and their later operations as well.
#[track_caller]
fn check(n: usize, culprit: usize, fault: impl Fn(Comm) + Sync, is_cause: impl Fn(&Cause) -> bool) {
    let start = Instant::now();
    let errors = on_world(world(n, Duration::from_secs(60)), |comm| {
        if comm.rank() == culprit {
            let pair = comm.split(comm.rank() / 2, 0).unwrap();
            trade(&pair, x()).unwrap();
            fault(comm);
            return None;
        }
        let errors = [work(&comm), comm.barrier().unwrap_err(), comm.send(x(), 0).err().unwrap()];
        Some((comm.rank(), errors))
    });
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let mut causes = Vec::new();
    for (me, errors) in errors.into_iter().filter_map(|outcome| outcome.ok().flatten()) {
        for error in errors {
            let CommError::PeerFailed { rank, peer, cause, .. } = error else { panic!("{error}") };
            assert_eq!((rank, peer), (me, culprit));
            causes.push(cause);
        }
    }
    assert_eq!(causes.len(), 3 * (n - 1));
    assert!(causes.iter().all(|cause| *cause == causes[0] && is_cause(cause)), "{causes:?}");
}

#[test]
fn a_rank_that_panics_ends_all() {
    for (n, culprit) in [(2, 0), (4, 1), (8, 7)] {
        check(n, culprit, |_comm| panic!("on purpose"), |cause| matches!(cause, Cause::Panicked { op: "all_to_all" }));
    }
}

#[test]
fn a_rank_that_leaves_ends_all() {
    for (n, culprit) in [(2, 0), (4, 1), (8, 7)] {
        check(n, culprit, drop, |cause| matches!(cause, Cause::Left { op: "all_to_all" }));
    }
}

#[test]
fn a_rank_that_gives_up_ends_all() {
    for (n, culprit) in [(2, 0), (4, 1), (8, 7)] {
        let fault = |comm: Comm| {
            comm.abort("out of memory");
            comm.abort("only the first counts");
        };
        check(n, culprit, fault, |cause| matches!(cause, Cause::Aborted { reason, .. } if reason == "out of memory"));
    }
}

#[test]
fn a_refused_argument_ends_all() {
    let refuse = |comm: Comm| {
        let error = comm.all_to_all(x(), [0, 1], &[1, 1, 1, 2], &[6; 4]).unwrap_err();
        assert_eq!(error.to_string(), "rank 2: all_to_all cannot split 4 into [1, 1, 1, 2] for 4 ranks");
    };
    check(4, 2, refuse, |cause| matches!(cause, Cause::Aborted { .. }));
    let refuse = |comm: Comm| {
        let error = comm.send(x(), 4).err().unwrap();
        assert_eq!(error.to_string(), "rank 2: send_recv with rank 4 of a group of 4");
    };
    check(4, 2, refuse, |cause| matches!(cause, Cause::Aborted { .. }));
    let refuse = |comm: Comm| {
        let error = comm.broadcast::<2>(2, None, [4, 6], DType::F32).unwrap_err();
        assert_eq!(error.to_string(), "rank 2: broadcast from this rank without a tensor");
    };
    check(4, 2, refuse, |cause| matches!(cause, Cause::Aborted { .. }));
}

#[test]
fn a_rank_that_never_comes_is_named_after_the_deadline() {
    let deadline = Duration::from_millis(200);
    let start = Instant::now();
    let outcomes = on_world(world(8, deadline), |comm| {
        let pair = comm.split(comm.rank() / 2, 0).unwrap();
        if comm.rank() == 5 {
            thread::sleep(Duration::from_millis(600));
            return comm.barrier().unwrap_err().to_string();
        }
        // 4 waits for 5, all others in the end for 4; some of them from earlier on
        let error = gather(&pair, x(), 0).and_then(|_| comm.all_reduce(x())).unwrap_err();
        error.to_string()
    });
    assert!(start.elapsed() < Duration::from_secs(2));
    for (rank, found) in outcomes.into_iter().enumerate() {
        let op = ["all_reduce", "all_gather", "barrier"][usize::from(rank == 4) + 2 * usize::from(rank == 5)];
        let cause = "ended because rank 5 did not come to all_gather and gave no sign of life for 200ms";
        assert_eq!(found.unwrap(), format!("rank {rank}: {op} {cause}"));
    }
}

#[test]
fn ranks_that_wait_for_each_other_name_the_lowest() {
    let outcomes = on_world(world(4, Duration::from_millis(100)), |comm| {
        // each for the next
        receive(&comm, (comm.rank() + 1) % 4).unwrap().wait().unwrap_err().to_string()
    });
    for (rank, found) in outcomes.into_iter().enumerate() {
        let cause = "ended because rank 0 did not come to send_recv and gave no sign of life for 100ms";
        assert_eq!(found.unwrap(), format!("rank {rank}: send_recv {cause}"));
    }
}

/// All ranks must get the same cause, which reads so.
#[track_caller]
fn check_mismatch(call: impl Fn(&Comm) -> Result<(), CommError> + Sync, expected: &str) {
    for _ in 0..5 {
        for (rank, error) in on_ranks(4, |comm| call(&comm).unwrap_err().to_string()).into_iter().enumerate() {
            let (who, cause) = error.split_once(" ended because ").unwrap();
            assert!(who.starts_with(&format!("rank {rank}: ")), "{error}");
            assert_eq!(cause, expected);
        }
    }
}

#[test]
fn different_operations_are_named() {
    check_mismatch(
        |comm| match comm.rank() {
            2 => comm.barrier(),
            _ => gather(comm, x(), 1).map(drop),
        },
        "rank 2 called barrier() where rank 0 called all_gather(1) of f32 [4, _]",
    );
}

#[test]
fn different_shapes_dimensions_and_dtypes_are_named() {
    check_mismatch(
        |comm| comm.all_reduce(x().narrow(0, 0, 4 - comm.rank() / 3)).map(drop),
        "rank 3 called all_reduce() of f32 [3, 6] where rank 0 called all_reduce() of f32 [4, 6]",
    );
    check_mismatch(
        |comm| gather(comm, x(), comm.rank() / 2).map(drop),
        "rank 2 called all_gather(1) of f32 [4, _] where rank 0 called all_gather(0) of f32 [_, 6]",
    );
    check_mismatch(
        |comm| trade(comm, if comm.rank() == 1 { x().cast(DType::BF16) } else { x() }).map(drop),
        "rank 1 called all_to_all(0, 1, 1, 1, 1, 1) of bf16 [4, _] where rank 0 called all_to_all(0, 1, 1, 1, 1, 1) of \
         f32 [4, _]",
    );
}

#[test]
fn a_message_of_another_kind_is_named() {
    let errors = on_ranks(2, |comm| match comm.rank() {
        0 => comm.send(x(), 1).and_then(|_| comm.barrier()).unwrap_err(),
        _ => comm.recv(0, [4, 6, 1], DType::F32).unwrap().wait().unwrap_err(),
    });
    let cause = "rank 0 called send_recv() of f32 [4, 6] where rank 1 called send_recv() of _ [_, _, _]";
    assert_eq!(errors[0].to_string(), format!("rank 0: barrier ended because {cause}"));
    assert_eq!(errors[1].to_string(), format!("rank 1: send_recv ended because {cause}"));
}

#[test]
fn what_was_sent_before_leaving_is_received() {
    on_ranks(2, |comm| {
        if comm.rank() == 0 {
            comm.send(x(), 1).unwrap();
            return;
        }
        let early = receive(&comm, 0).unwrap();
        let late = receive(&comm, 0).unwrap();
        thread::sleep(Duration::from_millis(50));
        assert_eq!(early.wait().unwrap().dims(), [4, 6]);
        let error = late.wait().unwrap_err();
        let cause = Cause::Left { op: "send_recv" };
        assert_eq!(error, CommError::PeerFailed { rank: 1, op: "send_recv", peer: 0, cause });
    });
}

#[test]
fn a_handle_outlives_its_communicator() {
    let found = on_ranks(3, |comm| {
        let posted = comm.rotate(x(), [4, 6]).unwrap();
        drop(comm);
        posted.wait().map(|x| x.dims())
    });
    assert_eq!(found, [Ok([4, 6]), Ok([4, 6]), Ok([4, 6])]);
}

#[test]
fn a_wrong_number_of_parts_is_refused() {
    let error = on_ranks(1, |comm| comm.exchange(Call::bare("parts", &[]), vec![], &[]).unwrap_err()).remove(0);
    assert_eq!(error.to_string(), "rank 0: parts cannot split 0 into [] for 1 ranks");
}
