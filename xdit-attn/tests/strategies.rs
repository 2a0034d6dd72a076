//! Strategies on a mesh of threads against one device, and what they send against the formulas of `docs/parallel.md`.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use xdit_attn::{Local, Ring, Ulysses, usp};
use xdit_core::comm::{Communicator, even_sizes};
use xdit_core::dit::{Attention, Pass, Qkv, Site, parted};
use xdit_core::layout::{Shares, TokenGrid, TokenLayout};
use xdit_core::noise::TorchGenerator;
use xdit_testing::golden::rel_l2;
use xdit_testing::mesh::on_ranks;

const SITE: Site = Site { block: 0, call: 0, group: 0 };
const HEAD_DIM: usize = 8;
/// Parts added up in another order.
const RING: f64 = 1e-6;

fn random(seed: u64, n_heads: usize, n: usize) -> Tensor<4> {
    let dims = [2, n, n_heads, HEAD_DIM];
    let values = TorchGenerator::seeded(seed).randn(dims.iter().product());
    // as dense layers write it: token-major
    Tensor::<4>::from_data(TensorData::new(values, dims), &Device::flex()).swap_dims(1, 2)
}

fn qkv(seed: u64, n_heads: usize, n: usize) -> Qkv {
    let x = |i: u64| random(seed + i, n_heads, n);
    Qkv::new([x(0), x(1), x(2)])
}

/// Band `rank` of `size` of the tokens.
fn band(x: &Qkv, rank: usize, size: usize) -> Qkv {
    let sizes = even_sizes(x.q.dims()[2], size);
    let from = sizes[..rank].iter().sum();
    let cut = |x: &Tensor<4>| x.clone().narrow(2, from, sizes[rank]);
    Qkv::new([cut(&x.q), cut(&x.k), cut(&x.v)])
}

/// The whole picture's first pass: `n_img` tokens in one patch.
fn pass(n_txt: usize, n_img: usize, size: usize, ulysses: usize) -> Pass {
    let layout = TokenLayout::new(TokenGrid::picture(1, n_img), 1);
    Pass { step: 0, prompt: 0, patch: None, shares: Arc::new(Shares::new(&layout, n_txt, size, ulysses)) }
}

/// A strategy on its group, and what the communicators were used for.
fn strategy(comm: &dyn Communicator, ulysses: usize) -> (Box<dyn Attention>, Box<dyn Communicator>) {
    let rank = comm.rank();
    let group = |color: usize| comm.split(color, rank).expect("a group");
    let (u, r) = (group(rank / ulysses), group(rank % ulysses));
    (usp(u, r), comm.split(0, rank).expect("the whole"))
}

#[track_caller]
fn check(ulysses: usize, ring: usize, n_heads: usize, n_txt: usize, n_img: usize) {
    let size = ulysses * ring;
    let (txt, img) = (qkv(1, n_heads, n_txt), qkv(11, n_heads, n_img));
    let whole = Qkv::joined(Some(txt.clone()), img.clone()).0;
    let (of_txt, of_img) = parted(Local.joint(SITE, whole, n_txt).expect("one device"), n_txt);
    let of_txt = of_txt.expect("a text");
    let own = Local.self_attn(SITE, img.clone()).expect("one device");
    let parts = on_ranks(size, |comm| {
        let (mut attn, all) = strategy(&*comm, ulysses);
        let (my_txt, my_img) = (band(&txt, comm.rank(), size), band(&img, comm.rank(), size));
        attn.begin(&pass(n_txt, n_img, size, ulysses));
        let (mine, my_n_txt) = Qkv::joined(Some(my_txt), my_img.clone());
        let (t, i) = parted(attn.joint(SITE, mine, my_n_txt).expect("joint"), my_n_txt);
        let s = attn.self_attn(SITE, my_img).expect("self");
        let whole = |x: Tensor<4>, n: usize| all.all_gather(x, 2, &even_sizes(n, size)).expect("gather");
        [whole(t.expect("a text"), n_txt), whole(i, n_img), whole(s, n_img)]
    });
    for [t, i, s] in parts {
        for (got, want) in [(t, &of_txt), (i, &of_img), (s, &own)] {
            let error = rel_l2(got, want.clone());
            let tolerance = if ring == 1 { 0.0 } else { RING };
            assert!(error <= tolerance, "ulysses {ulysses} ring {ring}: {error:.1e}");
        }
    }
}

#[test]
fn shared_attention_is_one_devices() {
    for (ulysses, ring) in [(2, 1), (3, 1), (4, 1), (8, 1), (1, 2), (1, 5), (2, 2), (4, 2), (2, 4)] {
        check(ulysses, ring, 8, 19, 37);
    }
    // heads that the ranks do not divide; a token each
    check(3, 1, 4, 3, 3);
    check(2, 2, 3, 4, 7);
    // more than a block of keys, and of queries
    check(2, 2, 2, 301, 900);
}

/// One `self_attn` of 24 tokens with 4 heads, which all sizes divide.
#[test]
fn bytes_are_the_formulas() {
    const HEADS: usize = 4;
    const N: usize = 24;
    let x = qkv(5, HEADS, N);
    // of all ranks' queries together
    let all = (2 * N * HEADS * HEAD_DIM * size_of::<f32>()) as u64;
    for size in [1, 2, 4] {
        let (others, share) = (size as u64 - 1, all / size as u64);
        let sent = on_ranks(size, |comm| {
            let mut attn = Ulysses::new(comm.split(0, comm.rank()).expect("a group"), Local);
            attn.begin(&pass(0, N, size, size));
            attn.self_attn(SITE, band(&x, comm.rank(), size)).expect("one call");
            attn.stats().total()
        });
        for traffic in sent {
            assert_eq!(traffic.messages, 2 * others, "ulysses {size}");
            assert_eq!(traffic.bytes, 4 * share * others / size as u64, "ulysses {size}");
        }
        let sent = on_ranks(size, |comm| {
            let mut attn = Ring::new(comm.split(0, comm.rank()).expect("a group"));
            attn.begin(&pass(0, N, size, 1));
            attn.self_attn(SITE, band(&x, comm.rank(), size)).expect("one call");
            attn.stats().total()
        });
        for traffic in sent {
            assert_eq!(traffic.messages, others, "ring {size}");
            assert_eq!(traffic.bytes, 2 * share * others, "ring {size}");
        }
    }
}
