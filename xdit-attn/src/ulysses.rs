//! DeepSpeed-Ulysses (arXiv 2309.14509): every rank trades its share of the tokens for a share of the heads.

use burn::tensor::Tensor;
use xdit_core::comm::{CommError, Communicator, Span, Stats, even_sizes};
use xdit_core::dit::{Attention, Pass, Qkv, Site};
use xdit_core::ops;

/// All-to-all before and after an attention of fewer heads over more tokens.
///
/// Per call and rank, of `u` ranks, `4 (u - 1)` messages: of queries, keys and values before and of the output after, each
/// time `(u - 1) / u` of the rank's bytes. Heads that `u` does not divide are spread as evenly as they can be.
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

    /// `[batch, heads, tokens of this rank, d]` to `[batch, heads of this rank, tokens of all ranks, d]`, in the
    /// picture's order: the text first, then patch by patch.
    fn to_heads(&self, x: Tensor<4>, pieces: &Pieces) -> Result<Tensor<4>, CommError> {
        let x = by_token(x);
        let [b, _, n_heads, d] = x.dims();
        let (me, heads) = (self.comm.rank(), even_sizes(n_heads, self.comm.size()));
        let blocks = cut(&x, 2, &heads).map(|x| ops::pieces(x, TOKENS, &pieces.of_rank[me])).collect();
        let span = |at, n| Span { start: [0, at, 0, 0], shape: [b, n, heads[me], d] };
        let spans: Vec<Vec<_>> = pieces.places().map(|rank| rank.map(|(at, n)| span(at, n)).collect()).collect();
        let shape = [b, pieces.total(), heads[me], d];
        Ok(by_token(self.comm.trade_into(blocks, TOKENS, &spans, shape, None)?))
    }

    /// The way back. Tokens are cut as evenly as the engine cuts them.
    ///
    /// - `n_heads`: of all ranks
    /// - `place`: see [`Qkv`]
    fn to_tokens(
        &self,
        x: Tensor<4>,
        n_heads: usize,
        pieces: &Pieces,
        place: Option<Tensor<3>>,
    ) -> Result<Tensor<4>, CommError> {
        let x = by_token(x);
        let [b, _, _, d] = x.dims();
        let heads = even_sizes(n_heads, self.comm.size());
        let mine = &pieces.of_rank[self.comm.rank()];
        let n: usize = mine.iter().sum();
        let block = |(at, n): (usize, usize)| ops::narrow(&x, TOKENS, at..at + n);
        let blocks: Vec<Vec<_>> =
            pieces.places().map(|rank| rank.filter(|(_, n)| *n > 0).map(block).collect()).collect();
        let spans = |(first, heads): (usize, usize)| {
            let span = move |(at, n)| Span { start: [0, at, first, 0], shape: [b, n, heads, d] };
            one_after_the_other(mine).map(span).collect()
        };
        let spans: Vec<Vec<_>> = one_after_the_other(&heads).map(spans).collect();
        let place = place.map(|place| by_token(ops::split_heads(place, n_heads)));
        Ok(by_token(self.comm.trade_into(blocks, TOKENS, &spans, [b, n, n_heads, d], place)?))
    }
}

impl Pieces {
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

fn cut<'a>(x: &'a Tensor<4>, dim: usize, sizes: &'a [usize]) -> impl Iterator<Item = Tensor<4>> + 'a {
    one_after_the_other(sizes).map(move |(at, n)| ops::narrow(x, dim, at..at + n))
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
        let pieces = self.pieces(n_txt > 0);
        let (n_heads, place) = (x.q.dims()[1], x.place);
        // three messages: to put them into one would copy all of them once more
        let heads = |x: Tensor<4>| self.to_heads(x, &pieces);
        let x = Qkv::new([heads(x.q)?, heads(x.k)?, heads(x.v)?]);
        let n_txt = if n_txt > 0 { pieces.of_rank.iter().map(|sizes| sizes[0]).sum() } else { 0 };
        let out = self.inner.joint(site, x, n_txt)?;
        self.to_tokens(out, n_heads, &pieces, place)
    }
}
