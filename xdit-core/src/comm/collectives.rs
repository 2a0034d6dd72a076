//! Collectives on tensors, written once for every back end. Ranks are numbers in the group; errors are those of
//! [`Communicator`], and sizes or roots that cannot be, which end the request on every rank as well.

use burn::tensor::{DType, Device, Tensor};

use super::parts::{cut, join};
use super::{Call, CommError, Communicator, Form, Part, Pending, whole};
use crate::ops::{self, put, room};

/// `n` in `size` parts, none larger than another by more than one, the larger ones first.
pub fn even_sizes(n: usize, size: usize) -> Vec<usize> {
    (0..size).map(|i| n / size + usize::from(i < n % size)).collect()
}

/// A tensor that is on its way to this rank, and maybe one from it.
#[must_use = "what is not waited for is not received"]
pub struct Posted<const D: usize> {
    send: Option<Sent>,
    recv: Box<dyn Pending<Part>>,
    shape: [usize; D],
    device: Device,
}

impl<const D: usize> Posted<D> {
    /// Waits for it.
    ///
    /// # Errors
    /// A peer that failed, left, kept silent or sent something else.
    pub fn wait(self) -> Result<Tensor<D>, CommError> {
        if let Some(send) = self.send {
            send.wait()?;
        }
        Ok(self.recv.wait()?.into_tensor(self.shape, &self.device))
    }
}

/// A tensor that is on its way from this rank. It gets there even if nobody waits for that.
pub struct Sent(Box<dyn Pending<()>>);

impl Sent {
    /// Waits until the tensor's memory is free again.
    ///
    /// # Errors
    /// A peer that failed.
    pub fn wait(self) -> Result<(), CommError> {
        self.0.wait()
    }
}

/// Where a block lies in a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span<const D: usize> {
    /// Its first element.
    pub start: [usize; D],
    /// Its dimensions.
    pub shape: [usize; D],
}

impl<const D: usize> Span<D> {
    /// The shape of blocks that follow each other.
    fn hull(spans: &[Self], along: usize) -> [usize; D] {
        let mut shape = spans[0].shape;
        shape[along] = spans.iter().map(|span| span.shape[along]).sum();
        shape
    }

    /// A tensor of blocks that follow each other, cut into them; those that also follow each other where they are to lie
    /// stay together.
    fn cut(whole: Tensor<D>, spans: &[Self], along: usize) -> Vec<(Self, Tensor<D>)> {
        let mut runs: Vec<Self> = Vec::new();
        for span in spans.iter().filter(|span| !span.shape.contains(&0)) {
            match runs.last_mut() {
                Some(run) if run.goes_on_with(span, along) => run.shape[along] += span.shape[along],
                _ => runs.push(*span),
            }
        }
        if let [run] = runs[..] {
            return vec![(run, whole)];
        }
        let mut at = 0;
        let block = |run: Self| {
            at += run.shape[along];
            (run, ops::narrow(&whole, along, at - run.shape[along]..at))
        };
        runs.into_iter().map(block).collect()
    }

    fn goes_on_with(&self, next: &Self, along: usize) -> bool {
        let end = |i: usize| self.start[i] + if i == along { self.shape[i] } else { 0 };
        (0..D).all(|i| next.start[i] == end(i) && (i == along || next.shape[i] == self.shape[i]))
    }

    /// The part of `x`, a view.
    fn of(&self, x: &Tensor<D>) -> Tensor<D> {
        (0..D).fold(x.clone(), |x, i| ops::narrow(&x, i, self.start[i]..self.start[i] + self.shape[i]))
    }
}

/// Blocks on their way to one tensor.
#[must_use = "what is not waited for is not received"]
pub struct Trade<const D: usize> {
    pending: Box<dyn Pending<Vec<Option<Part>>>>,
    /// By rank.
    spans: Vec<Vec<Span<D>>>,
    along: usize,
    /// The tensor's first dimension.
    first: usize,
    place: Option<Tensor<D>>,
    device: Device,
}

impl<const D: usize> Trade<D> {
    /// Waits for them.
    ///
    /// # Errors
    /// A peer that failed, left, kept silent or sent something else.
    pub fn wait(self) -> Result<Tensor<D>, CommError> {
        let [whole] = self.wait_apart()?;
        Ok(whole)
    }

    /// Waits for them; the tensor in `N` parts along the first dimension, of which no block is in two.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn wait_apart<const N: usize>(self) -> Result<[Tensor<D>; N], CommError> {
        let n = self.first / N;
        let part = |i: usize| i * n..(i + 1) * n;
        Ok(match self.land()? {
            Landed::There(whole) => std::array::from_fn(|i| ops::narrow(&whole, 0, part(i))),
            Landed::Blocks(mut blocks) => std::array::from_fn(|i| {
                assemble(blocks.extract_if(.., |(span, _)| part(i).contains(&span.start[0])).collect(), 0)
            }),
        })
    }

    fn land(self) -> Result<Landed<D>, CommError> {
        let Self { pending, spans, along, place, device, .. } = self;
        let cut = |(part, spans): (Option<Part>, Vec<Span<D>>)| {
            part.map(|part| Span::cut(part.into_tensor(Span::hull(&spans, along), &device), &spans, along))
        };
        let landed = pending.wait()?.into_iter().zip(spans).filter_map(cut).flatten();
        let Some(tensor) = place else { return Ok(Landed::Blocks(landed.collect())) };
        for (span, block) in landed {
            put(&block, &span.of(&tensor));
        }
        Ok(Landed::There(tensor))
    }
}

/// What came, in its place or in blocks that fill a tensor.
#[allow(clippy::large_enum_variant, reason = "one is alive at a time")]
enum Landed<const D: usize> {
    There(Tensor<D>),
    Blocks(Vec<(Span<D>, Tensor<D>)>),
}

/// One tensor of blocks that fill it.
///
/// - `dim`: those before are the same for all of them
fn assemble<const D: usize>(mut blocks: Vec<(Span<D>, Tensor<D>)>, dim: usize) -> Tensor<D> {
    if blocks.len() == 1 {
        return blocks.remove(0).1;
    }
    blocks.sort_by_key(|(span, _)| span.start[dim]);
    let layers = blocks.chunk_by(|(a, _), (b, _)| a.start[dim] == b.start[dim]);
    join(layers.map(|layer| assemble(layer.to_vec(), dim + 1)).collect(), dim)
}

impl dyn Communicator + '_ {
    /// Cuts `x` along the first dimension into one part per rank, and puts together along the second what every rank sent
    /// here. Who wants the parts as they come, or has more to cut and join, calls `trade`.
    ///
    /// - `split_sizes`: of the first dimension, how much goes to each rank
    /// - `concat_sizes`: of the second, how much comes from each rank
    ///
    /// Both are the same on every rank, unless the dimensions are one.
    pub fn all_to_all<const D: usize>(
        &self,
        x: Tensor<D>,
        [split_dim, concat_dim]: [usize; 2],
        split_sizes: &[usize],
        concat_sizes: &[usize],
    ) -> Result<Tensor<D>, CommError> {
        let op = "all_to_all";
        let n = x.dims()[split_dim];
        self.check_sizes(op, Some(n), split_sizes)?;
        self.check_sizes(op, None, concat_sizes)?;
        let mut call = Call::on(op, &[split_dim, concat_dim], &x).any_size_of(concat_dim);
        let mut shape = x.dims();
        if split_dim != concat_dim {
            call.args.extend(split_sizes);
            shape[split_dim] = split_sizes[self.rank()];
        }
        let shapes: Vec<_> = along(shape, concat_dim, concat_sizes).collect();
        Ok(join(self.swap(call, cut(&x, split_dim, split_sizes), &shapes, x.dtype())?, concat_dim))
    }

    /// Sends `parts[i]` to rank `i`; returns what each rank sent here, in rank order.
    ///
    /// - `shapes`: of what each rank sends here
    pub fn trade<const D: usize>(
        &self,
        parts: Vec<Tensor<D>>,
        shapes: &[[usize; D]],
    ) -> Result<Vec<Tensor<D>>, CommError> {
        let dtype = parts.first().map_or(DType::F32, Tensor::dtype);
        let call = Call { dtype: Some(dtype), ..Call::unknown::<D>("all_to_all", &[]) };
        self.swap(call, parts.into_iter().map(Part::new).collect(), shapes, dtype)
    }

    /// Starts to send `blocks[i]` to rank `i` and to make one tensor of what every rank sends here. What was posted is waited
    /// for in its order.
    ///
    /// - `blocks`: those for a rank follow each other along the dimension `along`
    /// - `spans`: where those of each rank are to lie in a tensor of `shape`; they fill it, or what the caller wants of `place`
    /// - `place`: where the caller wants the tensor; it may be elsewhere if the spans fill it
    pub fn post_trade<const D: usize>(
        &self,
        blocks: Vec<Vec<Tensor<D>>>,
        along: usize,
        spans: Vec<Vec<Span<D>>>,
        shape: [usize; D],
        place: Option<Tensor<D>>,
    ) -> Result<Trade<D>, CommError> {
        let first = blocks.iter().flatten().next();
        let dtype = first.map_or(DType::F32, Tensor::dtype);
        let place = place.or_else(|| room(first?, shape));
        let call = Call { dtype: Some(dtype), ..Call::unknown::<D>("all_to_all", &[]) };
        let part = |blocks: Vec<_>| if blocks.is_empty() { Part::nothing() } else { Part::of_blocks(blocks, along) };
        let parts = blocks.into_iter().map(part).collect();
        let forms: Vec<_> = spans.iter().map(|spans| Form::new(&Span::hull(spans, along), dtype)).collect();
        let places = place.as_ref().map(|tensor| {
            let place = |(spans, form): (&Vec<Span<D>>, &Form)| {
                let full = spans.iter().filter(|span| !span.shape.contains(&0));
                let views: Vec<_> = full.map(|span| span.of(tensor)).collect();
                if views.is_empty() { Part::of_flat(form.clone(), None) } else { Part::of_blocks(views, along) }
            };
            spans.iter().zip(&forms).map(place).collect()
        });
        let pending = self.post_exchange(call, parts, forms, places)?;
        Ok(Trade { pending, spans, along, first: shape[0], place, device: self.device().clone() })
    }

    fn swap<const D: usize>(
        &self,
        call: Call,
        parts: Vec<Part>,
        shapes: &[[usize; D]],
        dtype: DType,
    ) -> Result<Vec<Tensor<D>>, CommError> {
        let forms: Vec<_> = shapes.iter().map(|shape| Form::new(shape, dtype)).collect();
        Ok(self.tensors(self.exchange(call, parts, &forms)?, shapes))
    }

    fn tensors<const D: usize>(&self, parts: Vec<Part>, shapes: &[[usize; D]]) -> Vec<Tensor<D>> {
        parts.into_iter().zip(shapes).map(|(part, shape)| part.into_tensor(*shape, self.device())).collect()
    }

    /// Every rank's tensor, in rank order along `dim`, on every rank.
    ///
    /// - `sizes`: of every rank's tensor along `dim`
    pub fn all_gather<const D: usize>(
        &self,
        x: Tensor<D>,
        dim: usize,
        sizes: &[usize],
    ) -> Result<Tensor<D>, CommError> {
        let op = "all_gather";
        self.check_sizes(op, None, sizes)?;
        let shapes: Vec<_> = along(x.dims(), dim, sizes).collect();
        let forms: Vec<_> = shapes.iter().map(|shape| Form::new(shape, x.dtype())).collect();
        let call = Call::on(op, &[dim], &x).any_size_of(dim);
        let parts = self.all_gather_parts(call, Part::new(x), &forms)?;
        Ok(join(self.tensors(parts, &shapes), dim))
    }

    /// The sum of every rank's tensor, on every rank. Added in rank order, halves in f32: all ranks get the same bits.
    pub fn all_reduce<const D: usize>(&self, x: Tensor<D>) -> Result<Tensor<D>, CommError> {
        let shape = x.dims();
        let call = Call::on("all_reduce", &[], &x);
        Ok(self.all_reduce_part(call, Part::new(x))?.into_tensor(shape, self.device()))
    }

    /// The tensor of rank `root`, on every rank; others' `x` is not looked at.
    ///
    /// - `shape`, `dtype`: of that tensor
    pub fn broadcast<const D: usize>(
        &self,
        root: usize,
        x: Option<Tensor<D>>,
        shape: [usize; D],
        dtype: DType,
    ) -> Result<Tensor<D>, CommError> {
        let op = "broadcast";
        self.check_root(op, root, x.is_some())?;
        let part = x.filter(|_| self.rank() == root).map(Part::new);
        let part = self.broadcast_part(Call::unknown::<D>(op, &[root]), root, part, Form::new(&shape, dtype))?;
        Ok(part.into_tensor(shape, self.device()))
    }

    /// `parts[i]` of rank `root` on rank `i`; others' `parts` are not looked at.
    ///
    /// - `shape`, `dtype`: of this rank's part
    pub fn scatter<const D: usize>(
        &self,
        root: usize,
        parts: Option<Vec<Tensor<D>>>,
        shape: [usize; D],
        dtype: DType,
    ) -> Result<Tensor<D>, CommError> {
        let op = "scatter";
        self.check_root(op, root, parts.is_some())?;
        let parts = parts.filter(|_| self.rank() == root);
        if let Some(parts) = &parts {
            self.check_sizes(op, None, &vec![1; parts.len()])?;
        }
        let parts = parts.map(|parts| parts.into_iter().map(Part::new).collect());
        let part = whole::scatter(self, Call::unknown::<D>(op, &[root]), root, parts, Form::new(&shape, dtype))?;
        Ok(part.into_tensor(shape, self.device()))
    }

    /// Every rank's tensor, in rank order along `dim`, on rank `root`; `None` on others.
    ///
    /// - `sizes`: of every rank's tensor along `dim`
    pub fn gather<const D: usize>(
        &self,
        root: usize,
        x: Tensor<D>,
        dim: usize,
        sizes: &[usize],
    ) -> Result<Option<Tensor<D>>, CommError> {
        let op = "gather";
        self.check_root(op, root, true)?;
        self.check_sizes(op, None, sizes)?;
        let shapes: Vec<_> = along(x.dims(), dim, sizes).collect();
        let is_root = self.rank() == root;
        let form = |shape: &[usize; D]| if is_root { Form::new(shape, x.dtype()) } else { Form::nothing() };
        let forms: Vec<_> = shapes.iter().map(form).collect();
        let call = Call::on(op, &[root, dim], &x).any_size_of(dim);
        let mut parts = vec![Part::nothing(); self.size()];
        parts[root] = Part::new(x);
        let parts = self.exchange(call, parts, &forms)?;
        Ok(is_root.then(|| join(self.tensors(parts, &shapes), dim)))
    }

    /// Starts to send `x` to the next rank of the ring and to receive what the previous one sends; never waits. Several
    /// may be on their way.
    ///
    /// - `shape`: of what the previous one sends
    pub fn rotate<const D: usize>(&self, x: Tensor<D>, shape: [usize; D]) -> Result<Posted<D>, CommError> {
        let (rank, size) = (self.rank(), self.size());
        let call = Call { dtype: Some(x.dtype()), ..Call::unknown::<D>("rotate", &[]) };
        let form = Form::new(&shape, x.dtype());
        let send = Sent(self.post_send(call.clone(), (rank + 1) % size, Part::new(x))?);
        let recv = self.post_recv(call, (rank + size - 1) % size, form)?;
        Ok(Posted { send: Some(send), recv, shape, device: self.device().clone() })
    }

    /// Starts to send `x` to rank `to`; never waits.
    pub fn send<const D: usize>(&self, x: Tensor<D>, to: usize) -> Result<Sent, CommError> {
        Ok(Sent(self.post_send(Call::on("send_recv", &[], &x), to, Part::new(x))?))
    }

    /// Starts to receive the next tensor of rank `from`; never waits.
    ///
    /// - `shape`, `dtype`: of that tensor
    pub fn recv<const D: usize>(&self, from: usize, shape: [usize; D], dtype: DType) -> Result<Posted<D>, CommError> {
        let recv = self.post_recv(Call::unknown::<D>("send_recv", &[]), from, Form::new(&shape, dtype))?;
        Ok(Posted { send: None, recv, shape, device: self.device().clone() })
    }

    /// Whether there is one size per rank, and they make up `n`.
    fn check_sizes(&self, op: &'static str, n: Option<usize>, sizes: &[usize]) -> Result<(), CommError> {
        let sum = sizes.iter().sum::<usize>();
        if sizes.len() == self.size() && n.is_none_or(|n| n == sum) {
            return Ok(());
        }
        let (rank, n, sizes) = (self.world_rank(), n.unwrap_or(sum), sizes.to_vec());
        Err(self.refuse(CommError::Sizes { rank, op, n, sizes, size: self.size() }))
    }

    /// Whether there is such a rank, and it has something to send.
    fn check_root(&self, op: &'static str, root: usize, has_tensor: bool) -> Result<(), CommError> {
        self.check_peer(op, root)?;
        match self.rank() == root && !has_tensor {
            true => Err(self.refuse(CommError::NoTensor { rank: self.world_rank(), op })),
            false => Ok(()),
        }
    }
}

/// A shape with each of these sizes along `dim`.
fn along<const D: usize>(mut shape: [usize; D], dim: usize, sizes: &[usize]) -> impl Iterator<Item = [usize; D]> {
    sizes.iter().map(move |size| {
        shape[dim] = *size;
        shape
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_differ_by_one_at_most() {
        assert_eq!(even_sizes(7, 3), [3, 2, 2]);
        assert_eq!(even_sizes(2, 3), [1, 1, 0]);
        assert_eq!(even_sizes(0, 2), [0, 0]);
    }
}
