//! DeepSpeed-Ulysses (arXiv 2309.14509): every rank trades its share of the tokens for a share of the heads.

use std::ops::Range;

use burn::tensor::Tensor;
use xdit_core::comm::{CommError, Communicator, Span, Stats, Trade, even_sizes};
use xdit_core::dit::{Attention, Pass, Qkv, Site};
use xdit_core::ops;

/// All-to-all before and after an attention of fewer heads over more tokens.
///
/// Per call and rank, of `u` ranks, `2 (u - 1)` messages: of queries, keys and values before and of the output after, each
/// time `(u - 1) / u` of the rank's bytes. Heads that `u` does not divide are spread as evenly as they can be.
///
/// Where messages travel beside the device's work, heads go in two groups, in twice as many messages: while one is attended to,
/// the other's queries, keys and values come in, or its output goes out.
///
/// On the CPU the result has the bits of one device's, if `inner` has: each head sees all keys in their order.
pub struct Ulysses<A> {
    comm: Box<dyn Communicator>,
    inner: A,
    pass: Option<Pass>,
    /// The place of these ranks in the rings.
    ring: usize,
}

/// What each rank's sequence is made of.
struct Pieces {
    /// By rank: the sizes of its text and of its band of each patch, in the order in which they lie there.
    of_rank: Vec<Vec<usize>>,
}

impl<A: Attention> Ulysses<A> {
    /// - `comm`: the ranks that share the heads, in the order of their tokens
    /// - `inner`: what attends once the heads are shared out: [`Local`](crate::Local), or [`Ring`](crate::Ring) where
    ///   other groups hold more tokens
    pub fn new(comm: Box<dyn Communicator>, inner: A) -> Self {
        Self { comm, inner, pass: None, ring: 0 }
    }

    /// Of several groups, which are in each other's rings.
    ///
    /// - `ring`: this group's place there
    pub fn in_ring(self, ring: usize) -> Self {
        Self { ring, ..self }
    }

    /// What this rank has sent in its group.
    pub fn stats(&self) -> Stats {
        self.comm.stats()
    }

    fn pieces(&self, with_txt: bool) -> Pieces {
        let Pass { patch, shares, .. } = self.pass.as_ref().expect("a pass was begun");
        let of_rank = |rank: usize| {
            let txt = with_txt.then(|| shares.txt(rank).len());
            txt.into_iter().chain(shares.patches(*patch).map(|patch| shares.img(patch, rank).len())).collect()
        };
        Pieces { of_rank: shares.group(self.ring).map(of_rank).collect() }
    }

    /// Starts to make queries, keys and values, each `[batch, heads, tokens of this rank, d]`, to one after the other
    /// `[batch, tokens of all ranks, heads of this rank, d]`. Keys and values come in the picture's order, the text first, then
    /// patch by patch; queries rank by rank, this one last.
    ///
    /// - `heads`: by rank, the heads that it takes
    fn to_heads(&self, qkv: &[Tensor<4>; 3], heads: &[Range<usize>], pieces: &Pieces) -> Result<Trade<4>, CommError> {
        let [b, _, n, d] = qkv[0].dims();
        let (me, whole) = (self.comm.rank(), [n]);
        let (mine, n_heads) = (&pieces.of_rank[me], heads[me].len());
        let blocks = |heads: &Range<usize>| {
            let of_heads = |x: &Tensor<4>| ops::narrow(&by_token(x.clone()), 2, heads.clone());
            let cut = |i: usize| ops::pieces(of_heads(&qkv[i]), TOKENS, if i == 0 { &whole } else { mine });
            (0..3).flat_map(cut).collect()
        };
        let blocks = heads.iter().map(blocks).collect();
        let span = |i: usize, at, n| Span { start: [i * b, at, 0, 0], shape: [b, n, n_heads, d] };
        let spans = |queries: Range<usize>, places: Vec<(usize, usize)>| {
            let keys = |i: usize| places.iter().map(move |(at, n)| span(i, *at, *n));
            std::iter::once(span(0, queries.start, queries.len())).chain(keys(1)).chain(keys(2)).collect()
        };
        let of_rank = pieces.queries(me).into_iter().zip(pieces.places());
        let spans = of_rank.map(|(queries, places)| spans(queries, places.collect())).collect();
        self.comm.post_trade(blocks, TOKENS, spans, [3 * b, pieces.total(), n_heads, d], None)
    }

    /// The heads that each rank takes, in groups that are attended to one after the other, if that hides something: while the
    /// device is busy with one, others are on their way.
    ///
    /// - `bytes`: of what comes for all heads
    fn groups(&self, n_heads: usize, bytes: usize) -> Vec<Vec<Range<usize>>> {
        let of_rank = even_sizes(n_heads, self.comm.size());
        let is_cut = self.comm.hides() && bytes >= WORTH_HIDING && of_rank.iter().all(|n| *n >= GROUPS);
        let n_groups = if is_cut { GROUPS } else { 1 };
        let part = |group: usize| {
            let of_rank = one_after_the_other(&of_rank).map(move |(first, n)| {
                let (at, n) = one_after_the_other(&even_sizes(n, n_groups)).nth(group).expect("a group");
                first + at..first + at + n
            });
            of_rank.collect()
        };
        (0..n_groups).map(part).collect()
    }

    /// Attention, and `work` while queries, keys and values are under way.
    fn attend(
        &mut self,
        site: Site,
        x: Qkv,
        n_txt: usize,
        work: Option<&mut dyn FnMut()>,
    ) -> Result<Tensor<4>, CommError> {
        let pieces = self.pieces(n_txt > 0);
        let [b, n_heads, n, d] = x.q.dims();
        let place = x.place.map(|place| by_token(ops::split_heads(place, n_heads)));
        let place = place.or_else(|| ops::room(&x.q, [b, n, n_heads, d]));
        // the same on all ranks, whose shares may differ by a token
        let bytes = 3 * b * pieces.total() / self.comm.size() * n_heads * d * x.q.dtype().size();
        let groups = self.groups(n_heads, if work.is_none() { bytes } else { 0 });
        let qkv = [x.q, x.k, x.v];
        let trade = |heads: &Vec<_>| self.to_heads(&qkv, heads, &pieces);
        let coming = groups.iter().map(trade).collect::<Result<Vec<_>, _>>()?;
        drop(qkv);
        if let Some(work) = work {
            work();
        }
        let n_txt = if n_txt > 0 { pieces.of_rank.iter().map(|sizes| sizes[0]).sum() } else { 0 };
        let mut going = Vec::new();
        for (group, (trade, heads)) in coming.into_iter().zip(&groups).enumerate() {
            let x = Qkv::new(trade.wait_apart::<3>()?.map(by_token));
            let site = Site { group, ..site };
            going.push(match &place {
                None => {
                    let out = self.inner.joint(site, x, n_txt)?;
                    to_tokens(&*self.comm, out, heads, n_heads, &pieces, None)?
                }
                Some(place) => self.attend_into(place, site, x, n_txt, heads, &pieces)?,
            });
        }
        let mut out = None;
        for trade in going {
            out = Some(trade.wait()?);
        }
        Ok(by_token(out.expect("there is a group of heads")))
    }

    /// Attention of a group of heads: other ranks' queries first, so that their output is under way while this rank's own are
    /// attended to, whose output goes to its place at once.
    fn attend_into(
        &mut self,
        place: &Tensor<4>,
        site: Site,
        x: Qkv,
        n_txt: usize,
        heads: &[Range<usize>],
        pieces: &Pieces,
    ) -> Result<Trade<4>, CommError> {
        let Self { comm, inner, .. } = self;
        let (me, n_heads) = (comm.rank(), place.dims()[2]);
        let own_place = ops::narrow(place, 2, heads[me].clone());
        let own = pieces.queries(me)[me].clone();
        if own.is_empty() || own.start == 0 {
            let out = inner.joint(site, x, n_txt)?;
            return to_tokens(&**comm, out, heads, n_heads, pieces, Some(place.clone()));
        }
        let mut trade = None;
        let mut send = |out| {
            trade = Some(to_tokens(&**comm, out, heads, n_heads, pieces, Some(place.clone()))?);
            Ok(())
        };
        let x = x.into_place(Some(ops::merge_heads(by_token(own_place.clone()))));
        let out = by_token(inner.joint_in_two(site, x, n_txt, own.start, &mut send)?);
        ops::put(&out, &own_place);
        Ok(trade.expect("other ranks' output was sent"))
    }
}

/// Starts the way back, of the queries' order.
///
/// - `x`: the output of all queries, or of all but this rank's
/// - `heads`: by rank, the heads that it took
/// - `n_heads`: of the whole output
/// - `place`: of the whole output, `[batch, tokens, heads, d]`
fn to_tokens(
    comm: &dyn Communicator,
    x: Tensor<4>,
    heads: &[Range<usize>],
    n_heads: usize,
    pieces: &Pieces,
    place: Option<Tensor<4>>,
) -> Result<Trade<4>, CommError> {
    let x = by_token(x);
    let ([b, n_here, _, d], me) = (x.dims(), comm.rank());
    let n: usize = pieces.of_rank[me].iter().sum();
    let block = |queries: Range<usize>| {
        let is_there = !queries.is_empty() && queries.end <= n_here;
        is_there.then(|| ops::narrow(&x, TOKENS, queries)).into_iter().collect()
    };
    let blocks = pieces.queries(me).into_iter().map(block).collect();
    let span = |(rank, heads): (usize, &Range<usize>)| {
        let is_sent = rank != me || n_here == pieces.total();
        let shape = [b, if is_sent { n } else { 0 }, heads.len(), d];
        vec![Span { start: [0, 0, heads.start, 0], shape }]
    };
    let spans = heads.iter().enumerate().map(span).collect();
    comm.post_trade(blocks, TOKENS, spans, [b, n, n_heads, d], place)
}

/// Of a rank's heads, where their exchange can be hidden. More would leave too little work for a GPU at once.
const GROUPS: usize = 2;

/// Bytes that take a GPU longer to fetch from another than the host to say so once more.
const WORTH_HIDING: usize = 16 << 20;

impl Pieces {
    /// By rank, its tokens among the queries of rank `me`: those of others first, its own last.
    fn queries(&self, me: usize) -> Vec<Range<usize>> {
        let sizes: Vec<usize> = self.of_rank.iter().map(|sizes| sizes.iter().sum()).collect();
        let others = self.total() - sizes[me];
        let mut at = 0;
        let range = |(rank, n): (usize, &usize)| {
            if rank == me {
                return others..others + n;
            }
            at += n;
            at - n..at
        };
        sizes.iter().enumerate().map(range).collect()
    }

    /// Tokens of all ranks.
    fn total(&self) -> usize {
        self.of_rank.iter().flatten().sum()
    }

    /// By rank, where its pieces begin in the sequence of all, and how long they are: all ranks' first pieces, then their
    /// second ones, and so on.
    fn places(&self) -> impl Iterator<Item = impl Iterator<Item = (usize, usize)>> {
        let before = |rank: usize, piece: usize| {
            let earlier: usize = self.of_rank.iter().map(|sizes| sizes[..piece].iter().sum::<usize>()).sum();
            earlier + self.of_rank[..rank].iter().map(|sizes| sizes[piece]).sum::<usize>()
        };
        self.of_rank
            .iter()
            .enumerate()
            .map(move |(rank, sizes)| sizes.iter().enumerate().map(move |(piece, n)| (before(rank, piece), *n)))
    }
}

/// The dimension of the tokens, as they travel.
const TOKENS: usize = 1;

/// Where pieces of these sizes begin, and the sizes.
fn one_after_the_other(sizes: &[usize]) -> impl Iterator<Item = (usize, usize)> + '_ {
    let mut at = 0;
    sizes.iter().map(move |n| {
        at += n;
        (at - n, *n)
    })
}

/// Heads and tokens exchanged, a view. Projections and attention write token by token: cut and joined in that order,
/// memory is copied in long runs.
fn by_token(x: Tensor<4>) -> Tensor<4> {
    x.swap_dims(1, 2)
}

impl<A: Attention> Attention for Ulysses<A> {
    fn begin(&mut self, pass: &Pass) {
        self.pass = Some(pass.clone());
        self.inner.begin(pass);
    }

    fn kept_bytes(&self) -> u64 {
        self.inner.kept_bytes()
    }

    /// # Panics
    /// If [`begin`](Attention::begin) has not said who holds how many tokens.
    fn joint(&mut self, site: Site, x: Qkv, n_txt: usize) -> Result<Tensor<4>, CommError> {
        self.attend(site, x, n_txt, None)
    }

    /// # Panics
    /// As [`Self::joint`].
    fn joint_beside(
        &mut self,
        site: Site,
        x: Qkv,
        n_txt: usize,
        work: &mut dyn FnMut(),
    ) -> Result<Tensor<4>, CommError> {
        self.attend(site, x, n_txt, Some(work))
    }
}
