//! What a back end and its callers owe each other: forms that are expected, collectives that a back end replaces.

use std::sync::Mutex;

use burn::tensor::{DType, Device, Tensor};
use xdit_core::comm::{Call, CommError, Communicator, Form, Part, Pending, Stats};
use xdit_testing::mesh::on_ranks;

type Comm = Box<dyn Communicator>;

fn x() -> Tensor<2> {
    Tensor::ones([4, 6], &Device::flex())
}

/// All of `n` ranks must hear of the same cause, which reads so.
#[track_caller]
fn check(n: usize, call: impl Fn(&Comm) -> Result<(), CommError> + Sync, expected: &str) {
    for _ in 0..5 {
        // who has nothing against it learns of it with the next call
        let errors = on_ranks(n, |comm| call(&comm).and_then(|()| comm.barrier()).unwrap_err().to_string());
        for (rank, error) in errors.into_iter().enumerate() {
            let (who, cause) = error.split_once(" ended because ").expect("a peer's failure");
            assert!(who.starts_with(&format!("rank {rank}: ")), "{error}");
            assert_eq!(cause, expected);
        }
    }
}

#[test]
fn a_message_of_another_shape_or_dtype_names_both_ranks() {
    let message = |shape, dtype| {
        move |comm: &Comm| match comm.rank() {
            0 => comm.send(x(), 1).map(drop),
            _ => comm.recv::<2>(0, shape, dtype)?.wait().map(drop),
        }
    };
    let cause = "rank 0 sent f32 [4, 6] in send_recv where rank 1 expected f32 [4, 5]";
    check(2, message([4, 5], DType::F32), cause);
    // as many elements, or bytes
    check(2, message([6, 4], DType::F32), &cause.replace("[4, 5]", "[6, 4]"));
    check(2, message([4, 6], DType::I32), &cause.replace("f32 [4, 5]", "i32 [4, 6]"));
    check(2, message([4, 12], DType::BF16), &cause.replace("f32 [4, 5]", "bf16 [4, 12]"));
    check(2, message([4, 0], DType::F32), &cause.replace("[4, 5]", "[4, 0]"));
}

#[test]
fn a_ring_of_which_one_expects_another_shape_names_both_ranks() {
    let rotate = |comm: &Comm| {
        let shape = if comm.rank() == 2 { [3, 6] } else { [4, 6] };
        comm.rotate(x(), shape)?.wait().map(drop)
    };
    check(3, rotate, "rank 1 sent f32 [4, 6] in rotate where rank 2 expected f32 [3, 6]");
}

#[test]
fn sizes_that_are_not_what_a_rank_has_name_both_ranks() {
    let sizes = |comm: &Comm| if comm.rank() == 1 { [4, 4, 5] } else { [4; 3] };
    let cause = "rank 2 sent f32 [4, 6] in all_gather where rank 1 expected f32 [5, 6]";
    check(3, |comm| comm.all_gather(x(), 0, &sizes(comm)).map(drop), cause);
    check(3, |comm| comm.gather(1, x(), 0, &sizes(comm)).map(drop), &cause.replace("all_gather", "gather"));
    let trade = |comm: &Comm| {
        let rows = if comm.rank() == 0 { 2 } else { 1 };
        let part = || Tensor::<2>::ones([1, 3], &Device::flex());
        comm.trade(vec![part(), part()], &[[1, 3], [rows, 3]]).map(drop)
    };
    check(2, trade, "rank 1 sent f32 [1, 3] in all_to_all where rank 0 expected f32 [2, 3]");
    let broadcast = |comm: &Comm| {
        let shape = if comm.rank() == 1 { [6, 4] } else { [4, 6] };
        comm.broadcast(0, Some(x()), shape, DType::F32).map(drop)
    };
    check(2, broadcast, "rank 0 sent f32 [4, 6] in broadcast where rank 1 expected f32 [6, 4]");
    let scatter = |comm: &Comm| {
        let dtype = if comm.rank() == 1 { DType::F16 } else { DType::F32 };
        comm.scatter(0, Some(vec![x(), x()]), [4, 6], dtype).map(drop)
    };
    check(2, scatter, "rank 0 sent f32 [4, 6] in scatter where rank 1 expected f16 [4, 6]");
}

#[test]
fn sizes_that_are_not_one_per_rank_are_refused() {
    let error = on_ranks(1, |comm| comm.all_gather(x(), 0, &[4, 4]).unwrap_err()).remove(0);
    assert_eq!(error.to_string(), "rank 0: all_gather cannot split 8 into [4, 4] for 1 ranks");
    let error = on_ranks(1, |comm| comm.trade(vec![x()], &[[4, 6]; 2]).unwrap_err()).remove(0);
    assert_eq!(error.to_string(), "rank 0: all_to_all cannot split 2 into [1, 1] for 1 ranks");
    let error = on_ranks(1, |comm| comm.recv::<2>(1, [4, 6], DType::F32).err().expect("no such rank")).remove(0);
    assert_eq!(error.to_string(), "rank 0: send_recv with rank 1 of a group of 1");
}

/// A back end with collectives of its own: it writes down which were called, and has them done by another.
struct Own {
    inner: Comm,
    called: Mutex<Vec<&'static str>>,
}

impl Own {
    fn note(&self, what: &'static str) {
        self.called.lock().expect("one thread").push(what);
    }
}

impl Communicator for Own {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn world_rank(&self) -> usize {
        self.inner.world_rank()
    }

    fn device(&self) -> &Device {
        self.inner.device()
    }

    fn slot(&self) -> usize {
        self.inner.slot()
    }

    fn exchange(&self, call: Call, parts: Vec<Part>, forms: &[Form]) -> Result<Vec<Part>, CommError> {
        self.note("exchange");
        self.inner.exchange(call, parts, forms)
    }

    fn post_send(&self, call: Call, to: usize, part: Part) -> Result<Box<dyn Pending<()>>, CommError> {
        self.inner.post_send(call, to, part)
    }

    fn post_recv(&self, call: Call, from: usize, form: Form) -> Result<Box<dyn Pending<Part>>, CommError> {
        self.inner.post_recv(call, from, form)
    }

    fn all_gather_parts(&self, call: Call, part: Part, forms: &[Form]) -> Result<Vec<Part>, CommError> {
        self.note("all_gather");
        self.inner.all_gather_parts(call, part, forms)
    }

    fn broadcast_part(&self, call: Call, root: usize, part: Option<Part>, form: Form) -> Result<Part, CommError> {
        self.note("broadcast");
        self.inner.broadcast_part(call, root, part, form)
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.note("barrier");
        self.inner.barrier()
    }

    fn split(&self, color: usize, key: usize) -> Result<Comm, CommError> {
        self.inner.split(color, key)
    }

    fn beat(&self) {
        self.inner.beat();
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }

    fn reset_stats(&self) {
        self.inner.reset_stats();
    }

    fn abort(&self, reason: &str) {
        self.inner.abort(reason);
    }
}

#[test]
fn a_back_end_may_replace_collectives() {
    let found = on_ranks(2, |inner| {
        let rank = inner.rank();
        let own = Own { inner, called: Mutex::default() };
        let comm: &dyn Communicator = &own;
        let mine = Tensor::<1>::full([rank + 1], rank as f32, &Device::flex());
        let values = |x: Tensor<1>| x.into_data().try_to_vec::<f32>().expect("f32");
        let all = comm.all_gather(mine.clone(), 0, &[1, 2])?;
        // has no way of its own: an exchange, then the back end's all_gather
        let sum = comm.all_reduce(all.clone())?;
        let from_1 = comm.broadcast(1, (rank == 1).then_some(mine), [2], DType::F32)?;
        comm.barrier()?;
        let called = own.called.lock().expect("one thread").clone();
        Ok::<_, CommError>((values(all), values(sum), values(from_1), called))
    });
    let called = vec!["all_gather", "exchange", "all_gather", "broadcast", "barrier"];
    let expected = Ok((vec![0.0, 1.0, 1.0], vec![0.0, 2.0, 2.0], vec![1.0, 1.0], called));
    found.into_iter().for_each(|found| assert_eq!(found, expected));
}
