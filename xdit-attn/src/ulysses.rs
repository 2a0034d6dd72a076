//! DeepSpeed-Ulysses (arXiv 2309.14509): every rank trades its share of the tokens for a share of the heads.

use burn::tensor::Tensor;
use xdit_core::comm::{CommError, Communicator, Stats, even_sizes};
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
        let heads = even_sizes(n_heads, self.comm.size());
        let mine = heads[self.comm.rank()];
        let shapes: Vec<_> = pieces.of_rank.iter().map(|sizes| [b, sizes.iter().sum(), mine, d]).collect();
        let all = self.comm.trade(x.split_with_sizes(heads, 2), &shapes)?;
        Ok(by_token(pieces.in_order(all)))
    }

    /// The way back. Tokens are cut as evenly as the engine cuts them.
    ///
    /// - `n_heads`: of all ranks
    fn to_tokens(&self, x: Tensor<4>, n_heads: usize, pieces: &Pieces) -> Result<Tensor<4>, CommError> {
        let x = by_token(x);
        let [b, _, _, d] = x.dims();
        let mine = pieces.of_rank[self.comm.rank()].iter().sum();
        let heads = even_sizes(n_heads, self.comm.size());
        let shapes: Vec<_> = heads.iter().map(|heads| [b, mine, *heads, d]).collect();
        Ok(by_token(Tensor::cat(self.comm.trade(pieces.by_rank(&x), &shapes)?, 2)))
    }
}

impl Pieces {
    /// Every rank's sequence as one: all ranks' first pieces, then their second ones, and so on.
    ///
    /// - `all`: by rank, `[batch, tokens, heads, d]`
    fn in_order(&self, all: Vec<Tensor<4>>) -> Tensor<4> {
        if self.of_rank[0].len() == 1 {
            return Tensor::cat(all, 1);
        }
        let cut = |(x, sizes): (Tensor<4>, &Vec<usize>)| x.split_with_sizes(sizes.clone(), 1);
        let all: Vec<Vec<Tensor<4>>> = all.into_iter().zip(&self.of_rank).map(cut).collect();
        let piece = |i: usize| all.iter().map(move |pieces| pieces[i].clone());
        Tensor::cat((0..self.of_rank[0].len()).flat_map(piece).collect(), 1)
    }

    /// Each rank's sequence out of all ranks' as one.
    ///
    /// - `x`: `[batch, tokens, heads, d]`
    fn by_rank(&self, x: &Tensor<4>) -> Vec<Tensor<4>> {
        let (mut at, mut out) = (0, vec![Vec::new(); self.of_rank.len()]);
        for piece in 0..self.of_rank[0].len() {
            for (sizes, out) in self.of_rank.iter().zip(&mut out) {
                out.push(x.clone().narrow(1, at, sizes[piece]));
                at += sizes[piece];
            }
        }
        out.into_iter().map(|pieces| ops::cat(pieces, 1)).collect()
    }
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
        let n_heads = x.q.dims()[1];
        // three messages: to put them into one would copy all of them once more
        let heads = |x: Tensor<4>| self.to_heads(x, &pieces);
        let x = Qkv::new([heads(x.q)?, heads(x.k)?, heads(x.v)?]);
        let n_txt = if n_txt > 0 { pieces.of_rank.iter().map(|sizes| sizes[0]).sum() } else { 0 };
        let out = self.inner.joint(site, x, n_txt)?;
        self.to_tokens(out, n_heads, &pieces)
    }
}
