//! Collectives on threads against the same on one whole tensor, for equal bits.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use burn::tensor::{DType, Device, Tensor, TensorData};
use xdit_core::comm::{Communicator, Traffic, even_sizes};
use xdit_core::noise::TorchGenerator;
use xdit_testing::mesh::on_ranks;

const SIZES: std::ops::RangeInclusive<usize> = 1..=8;

fn noise<const D: usize>(shape: [usize; D], seed: u64) -> Tensor<D> {
    let values = TorchGenerator::seeded(seed).randn(shape.iter().product());
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

/// Uneven, and nothing at all for some.
fn n_tokens(rank: usize) -> usize {
    [3, 0, 5, 1, 2, 0, 4, 1][rank]
}

fn tokens(rank: usize) -> Tensor<4> {
    noise(shape(rank), rank as u64)
}

fn sizes(size: usize) -> Vec<usize> {
    (0..size).map(n_tokens).collect()
}

/// Of `tokens`.
fn shape(rank: usize) -> [usize; 4] {
    [2, 9, n_tokens(rank), 3]
}

fn all_tokens(size: usize) -> Tensor<4> {
    Tensor::cat((0..size).map(tokens).collect(), 2)
}

#[track_caller]
fn check<const D: usize>(found: Vec<Tensor<D>>, expected: impl Fn(usize) -> Tensor<D>) {
    for (rank, found) in found.into_iter().enumerate() {
        let expected = expected(rank);
        assert_eq!(found.dims(), expected.dims(), "rank {rank}");
        found.into_data().assert_eq(&expected.into_data(), true);
    }
}

/// Along `dim`, the part of `rank`.
fn part<const D: usize>(x: Tensor<D>, dim: usize, sizes: &[usize], rank: usize) -> Tensor<D> {
    x.split_with_sizes(sizes.to_vec(), dim).remove(rank)
}

fn host(x: Tensor<4>) -> (Vec<usize>, Vec<f32>) {
    (x.dims().to_vec(), x.into_data().try_to_vec().unwrap())
}

#[test]
fn all_to_all_trades_heads_for_tokens_and_back() {
    for n in SIZES {
        let (heads, sizes) = (even_sizes(9, n), sizes(n));
        let inside = on_ranks(n, |comm| comm.all_to_all(tokens(comm.rank()), [1, 2], &heads, &sizes).unwrap());
        // nine heads do not divide by most sizes
        check(inside.clone(), |rank| part(all_tokens(n), 1, &heads, rank));
        let outside = on_ranks(n, |comm| comm.all_to_all(inside[comm.rank()].clone(), [2, 1], &sizes, &heads).unwrap());
        check(outside, tokens);
    }
}

#[test]
fn all_to_all_along_one_dimension_takes_any_sizes() {
    for n in SIZES {
        let sizes = |rank: usize| -> Vec<usize> { (0..n).map(|to| (rank + to) % 3).collect() };
        let whole = |rank: usize| noise([sizes(rank).iter().sum::<usize>(), 2], rank as u64);
        let found = on_ranks(n, |comm| {
            let rank = comm.rank();
            let from: Vec<_> = (0..n).map(|from| sizes(from)[rank]).collect();
            comm.all_to_all(whole(rank), [0, 0], &sizes(rank), &from).unwrap()
        });
        for (rank, found) in found.into_iter().enumerate() {
            let expected: Vec<f32> = (0..n)
                .flat_map(|from| {
                    let start: usize = sizes(from)[..rank].iter().sum();
                    let values: Vec<f32> = whole(from).into_data().try_to_vec().unwrap();
                    values[2 * start..2 * (start + sizes(from)[rank])].to_vec()
                })
                .collect();
            assert_eq!(found.into_data().try_to_vec::<f32>().unwrap(), expected, "rank {rank} of {n}");
        }
    }
}

#[test]
fn trade_gives_every_rank_its_part() {
    for n in SIZES {
        let found = on_ranks(n, |comm| {
            let rank = comm.rank();
            let parts = (0..n).map(|to| noise([to, 3, rank + 1], (rank * n + to) as u64)).collect();
            let shapes: Vec<_> = (0..n).map(|from| [rank, 3, from + 1]).collect();
            comm.trade(parts, &shapes).unwrap()
        });
        for (rank, found) in found.into_iter().enumerate() {
            check(found, |from| noise([rank, 3, from + 1], (from * n + rank) as u64));
        }
    }
}

#[test]
fn ranks_without_heads_get_nothing() {
    let heads = even_sizes(2, 3);
    let x = |rank: usize| noise([1, 2, rank + 1, 4], rank as u64);
    let inside = on_ranks(3, |comm| comm.all_to_all(x(comm.rank()), [1, 2], &heads, &[1, 2, 3]).unwrap());
    assert_eq!(inside.iter().map(Tensor::dims).collect::<Vec<_>>(), [[1, 1, 6, 4], [1, 1, 6, 4], [1, 0, 6, 4]]);
    let outside = on_ranks(3, |comm| comm.all_to_all(inside[comm.rank()].clone(), [2, 1], &[1, 2, 3], &heads).unwrap());
    check(outside, x);
}

#[test]
fn all_gather_gather_and_scatter_keep_rank_order() {
    for n in SIZES {
        check(on_ranks(n, |comm| comm.all_gather(tokens(comm.rank()), 2, &sizes(n)).unwrap()), |_| all_tokens(n));
        for root in [0, n - 1] {
            let found = on_ranks(n, |comm| comm.gather(root, tokens(comm.rank()), 2, &sizes(n)).unwrap());
            for (rank, found) in found.into_iter().enumerate() {
                assert_eq!(found.map(host), (rank == root).then(|| host(all_tokens(n))), "rank {rank} of {n}");
            }
            let found = on_ranks(n, |comm| {
                let parts = (comm.rank() == root).then(|| (0..n).map(tokens).collect());
                comm.scatter(root, parts, shape(comm.rank()), DType::F32).unwrap()
            });
            check(found, tokens);
        }
    }
}

#[test]
fn broadcast_gives_the_roots_tensor() {
    for n in SIZES {
        for root in 0..n {
            let found = on_ranks(n, |comm| {
                let x = (comm.rank() == root).then(|| tokens(root));
                comm.broadcast(root, x, shape(root), DType::F32).unwrap()
            });
            check(found, |_| tokens(root));
        }
    }
}

#[test]
fn all_reduce_adds_in_rank_order() {
    for n in SIZES {
        // fewer elements than ranks, and none
        for shape in [[3, 37], [1, 3], [4, 0]] {
            for dtype in [DType::F32, DType::BF16] {
                let mine = |rank: usize| noise(shape, rank as u64).cast(dtype);
                let found = on_ranks(n, |comm| comm.all_reduce(mine(comm.rank())).unwrap());
                check(found, |_| (0..n).map(|i| mine(i).cast(DType::F32)).reduce(|a, b| a + b).unwrap().cast(dtype));
            }
        }
    }
}

#[test]
fn rotate_is_posted_and_keeps_its_order_while_others_compute() {
    for n in SIZES {
        let all_posted = Barrier::new(n);
        let found = on_ranks(n, |comm| {
            let rank = comm.rank();
            let (k, v) = (tokens(rank), tokens(rank) + 1.0);
            let shape = shape((rank + n - 1) % n);
            let (k, v) = (comm.rotate(k, shape).unwrap(), comm.rotate(v, shape).unwrap());
            // would never be passed if posting waited for a peer
            all_posted.wait();
            let score = tokens(rank).sum();
            let total = comm.all_reduce(score).unwrap();
            // nobody takes this one
            drop(comm.rotate(total.clone(), [1]).unwrap());
            // in another order than posted
            let v = v.wait().unwrap();
            (k.wait().unwrap(), v, comm.all_gather(total, 0, &vec![1; n]).unwrap())
        });
        let previous = |rank: usize| tokens((rank + n - 1) % n);
        check(found.iter().map(|x| x.0.clone()).collect(), previous);
        check(found.iter().map(|x| x.1.clone()).collect(), |rank| previous(rank) + 1.0);
    }
}

#[test]
fn messages_between_two_ranks_keep_their_order() {
    for n in SIZES {
        let found = on_ranks(n, |comm| {
            let rank = comm.rank();
            let sent: Vec<_> =
                (0..n).flat_map(|to| [(to, 0), (to, 1)]).map(|(to, i)| comm.send(tokens(rank) + i, to)).collect();
            let got: Vec<_> =
                (0..n).flat_map(|from| [from; 2]).map(|from| comm.recv(from, shape(from), DType::F32)).collect();
            sent.into_iter().for_each(|sent| sent.unwrap().wait().unwrap());
            got.into_iter().map(|x| host(x.unwrap().wait().unwrap())).collect::<Vec<_>>()
        });
        let expected: Vec<_> = (0..n).flat_map(|from| [host(tokens(from)), host(tokens(from) + 1)]).collect();
        found.into_iter().for_each(|found| assert_eq!(found, expected));
    }
}

#[test]
fn a_message_is_handed_over_without_a_copy() {
    let pointers = on_ranks(2, |comm| {
        // Flex takes a vector as it is, and gives it back to the last holder of the tensor
        let values = vec![comm.rank() as f32; 4096];
        let mine = values.as_ptr() as usize;
        let x = Tensor::<2>::from_data(TensorData::new(values, [64, 64]), &Device::flex());
        let got = comm.rotate(x, [64, 64]).unwrap().wait().unwrap();
        (mine, got.into_data().as_bytes().as_ptr() as usize)
    });
    assert_eq!((pointers[0].0, pointers[1].0), (pointers[1].1, pointers[0].1));
}

#[test]
fn statistics_equal_the_formulas() {
    const BYTES: u64 = 2 * 9 * 4 * 3 * 4;
    for n in SIZES {
        let stats = on_ranks(n, |comm| {
            comm.all_gather(tokens(0), 2, &vec![n_tokens(0); n]).unwrap();
            comm.reset_stats();
            let x = noise([2, 9, 4, 3], 0);
            comm.all_gather(x.clone(), 2, &vec![4; n]).unwrap();
            comm.all_to_all(x.clone(), [1, 2], &even_sizes(9, n), &vec![4; n]).unwrap();
            comm.all_reduce(x.clone()).unwrap();
            comm.broadcast(0, Some(x.clone()), x.dims(), DType::F32).unwrap();
            comm.rotate(x.clone(), x.dims()).unwrap().wait().unwrap();
            comm.barrier().unwrap();
            comm.stats()
        });
        let others = n as u64 - 1;
        for (rank, stats) in stats.into_iter().enumerate() {
            let heads = even_sizes(9, n);
            let share = even_sizes(2 * 9 * 4 * 3, n);
            let to_others = |sizes: &[usize]| {
                let filled = sizes.iter().enumerate().filter(|&(to, &size)| to != rank && size > 0);
                filled.fold((0, 0), |(n, sum), (_, &size)| (n + 1, sum + size as u64))
            };
            let traffic = |messages, bytes| Traffic { messages, bytes };
            assert_eq!(stats.of("all_gather"), traffic(others, others * BYTES));
            let (messages, sent_heads) = to_others(&heads);
            assert_eq!(stats.of("all_to_all"), traffic(messages, BYTES / 9 * sent_heads));
            let (messages, sent) = to_others(&share);
            let bytes = 4 * (sent + others * share[rank] as u64);
            assert_eq!(stats.of("all_reduce"), traffic(messages + others, bytes));
            let is_root = u64::from(rank == 0);
            assert_eq!(stats.of("broadcast"), traffic(is_root * others, is_root * others * BYTES));
            assert_eq!(stats.of("rotate"), traffic(others.min(1), others.min(1) * BYTES));
            assert_eq!(stats.of("barrier"), Traffic::default());
            assert_eq!(stats.total().bytes, stats.ops.values().map(|x| x.bytes).sum::<u64>());
        }
    }
}

#[test]
fn split_orders_by_key_then_rank() {
    let found = on_ranks(6, |comm| {
        let rank = comm.rank();
        let odd = comm.split(rank % 2, 10 - rank).unwrap();
        let three = odd.split(0, 0).unwrap();
        let x = Tensor::<1>::from_floats([rank as f32], &Device::flex());
        let members: Vec<f32> = three.all_gather(x, 0, &[1; 3]).unwrap().into_data().try_to_vec().unwrap();
        (odd.rank(), odd.size(), odd.world_rank(), members)
    });
    assert_eq!(found[1], (2, 3, 1, vec![5.0, 3.0, 1.0]));
    assert_eq!(found[4], (0, 3, 4, vec![4.0, 2.0, 0.0]));
}

/// All groups of a 2x2x2 mesh work at once, each rank with pauses of its own.
fn mesh_of_8(jitter: u64) -> Vec<(Vec<usize>, Vec<f32>)> {
    on_ranks(8, |comm| {
        let rank = comm.rank();
        let mut state = jitter * 8 + rank as u64 + 1;
        let mut pause = || {
            // an LCG is random enough
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if jitter > 0 {
                thread::sleep(Duration::from_micros(state >> 54));
            }
        };
        let groups: Vec<Box<dyn Communicator>> =
            (0..3).map(|bit| comm.split(rank & !(1 << bit), rank).unwrap()).collect();
        let mut x = noise([1, 4, 6, 2], rank as u64);
        for _ in 0..6 {
            for group in &groups {
                let posted = group.rotate(x.clone(), x.dims()).unwrap();
                pause();
                let inside = group.all_to_all(x.clone(), [1, 2], &[2, 2], &[6, 6]).unwrap();
                pause();
                let back = group.all_to_all(inside * 0.5, [2, 1], &[6, 6], &[2, 2]).unwrap();
                pause();
                x = back + posted.wait().unwrap() * 0.25;
            }
            pause();
            x = comm.all_reduce(x).unwrap() * 0.125 + noise([1, 4, 6, 2], rank as u64);
        }
        host(x)
    })
}

#[test]
fn results_do_not_depend_on_timing() {
    let expected = mesh_of_8(0);
    assert_ne!(expected[0], expected[1]);
    for jitter in 1..=4 {
        assert_eq!(mesh_of_8(jitter), expected);
    }
}
