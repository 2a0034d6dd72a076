//! Collectives on tensors, written once for every back end. Ranks are numbers in the group; errors are those of
//! [`Communicator`], and sizes or roots that cannot be, which end the request on every rank as well.

use burn::tensor::{Device, Tensor};

use super::part::{cut, cut_flat, join, sum};
use super::{Call, CommError, Communicator, Part, Pending};

/// `n` in `size` parts, none larger than another by more than one, the larger ones first.
pub fn even_sizes(n: usize, size: usize) -> Vec<usize> {
    (0..size).map(|i| n / size + usize::from(i < n % size)).collect()
}

/// A tensor that is on its way to this rank, and maybe one from it.
#[must_use = "what is not waited for is not received"]
pub struct Posted<const D: usize> {
    send: Option<Sent>,
    recv: Box<dyn Pending<Part>>,
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
        Ok(self.recv.wait()?.into_tensor(&self.device))
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

impl dyn Communicator + '_ {
    /// Cuts `x` along `split_dim` into one part per rank, as even as can be, and puts together what every rank sent
    /// here along `concat_dim`.
    ///
    /// Ranks' tensors may differ along `concat_dim`.
    pub fn all_to_all<const D: usize>(
        &self,
        x: Tensor<D>,
        split_dim: usize,
        concat_dim: usize,
    ) -> Result<Tensor<D>, CommError> {
        let sizes = even_sizes(x.dims()[split_dim], self.size());
        self.all_to_all_sized(x, split_dim, &sizes, concat_dim)
    }

    /// `all_to_all` with `sizes[i]` of `split_dim` for rank `i`, the same on every rank unless both dimensions
    /// are one.
    pub fn all_to_all_sized<const D: usize>(
        &self,
        x: Tensor<D>,
        split_dim: usize,
        sizes: &[usize],
        concat_dim: usize,
    ) -> Result<Tensor<D>, CommError> {
        let op = "all_to_all";
        let n = x.dims()[split_dim];
        if sizes.len() != self.size() || sizes.iter().sum::<usize>() != n {
            let (rank, sizes) = (self.world_rank(), sizes.to_vec());
            return self.refuse(CommError::Sizes { rank, op, n, sizes, size: self.size() });
        }
        let mut call = Call::on(op, &[split_dim, concat_dim], &x).any_size_of(concat_dim);
        if split_dim != concat_dim {
            call.args.extend(sizes);
        }
        let parts = self.exchange(call, cut(x, split_dim, sizes))?;
        Ok(join(parts, concat_dim, self.device()))
    }

    /// Every rank's tensor, in rank order along `dim`, on every rank. They may differ along `dim`.
    pub fn all_gather<const D: usize>(&self, x: Tensor<D>, dim: usize) -> Result<Tensor<D>, CommError> {
        let call = Call::on("all_gather", &[dim], &x).any_size_of(dim);
        let parts = self.exchange(call, vec![Part::new(x); self.size()])?;
        Ok(join(parts, dim, self.device()))
    }

    /// The sum of every rank's tensor, on every rank. Added in rank order, halves in f32: all ranks get the same bits.
    pub fn all_reduce<const D: usize>(&self, x: Tensor<D>) -> Result<Tensor<D>, CommError> {
        let shape = x.dims().to_vec();
        let call = Call::on("all_reduce", &[], &x);
        // each rank adds up its share, so that no element is summed or sent more often than it must be
        let sizes = even_sizes(shape.iter().product(), self.size());
        let share = sum(self.exchange(call.clone(), cut_flat(Part::new(x), &sizes))?);
        let shares = self.exchange(call, vec![share; self.size()])?;
        let flat: Tensor<1> = join(shares, 0, self.device());
        Ok(Part { shape, ..Part::new(flat) }.into_tensor(self.device()))
    }

    /// The tensor of rank `root`, on every rank; others' `x` is not looked at.
    pub fn broadcast<const D: usize>(&self, root: usize, x: Option<Tensor<D>>) -> Result<Tensor<D>, CommError> {
        let parts = x.map(|x| vec![Part::new(x); self.size()]);
        self.send_from("broadcast", root, parts)
    }

    /// `parts[i]` of rank `root` on rank `i`; others' `parts` are not looked at.
    pub fn scatter<const D: usize>(&self, root: usize, parts: Option<Vec<Tensor<D>>>) -> Result<Tensor<D>, CommError> {
        self.send_from("scatter", root, parts.map(|parts| parts.into_iter().map(Part::new).collect()))
    }

    /// Every rank's tensor, in rank order along `dim`, on rank `root`; `None` on others. They may differ along `dim`.
    pub fn gather<const D: usize>(
        &self,
        root: usize,
        x: Tensor<D>,
        dim: usize,
    ) -> Result<Option<Tensor<D>>, CommError> {
        let op = "gather";
        self.check_root(op, root)?;
        let call = Call::on(op, &[root, dim], &x).any_size_of(dim);
        let mut parts = vec![Part::nothing(); self.size()];
        parts[root] = Part::new(x);
        let parts = self.exchange(call, parts)?;
        Ok((self.rank() == root).then(|| join(parts, dim, self.device())))
    }

    /// Starts to send `x` to the next rank of the ring and to receive what the previous one sends; never waits. Several
    /// may be on their way.
    pub fn rotate<const D: usize>(&self, x: Tensor<D>) -> Result<Posted<D>, CommError> {
        let (rank, size) = (self.rank(), self.size());
        let call = Call { dtype: Some(x.dtype()), ..Call::unknown::<D>("rotate", &[]) };
        let send = Sent(self.post_send(call.clone(), (rank + 1) % size, Part::new(x))?);
        let recv = self.post_recv(call, (rank + size - 1) % size)?;
        Ok(Posted { send: Some(send), recv, device: self.device().clone() })
    }

    /// Starts to send `x` to rank `to`; never waits.
    pub fn send<const D: usize>(&self, x: Tensor<D>, to: usize) -> Result<Sent, CommError> {
        Ok(Sent(self.post_send(Call::on("send_recv", &[], &x), to, Part::new(x))?))
    }

    /// Starts to receive the next tensor of rank `from`; never waits.
    pub fn recv<const D: usize>(&self, from: usize) -> Result<Posted<D>, CommError> {
        let recv = self.post_recv(Call::unknown::<D>("send_recv", &[]), from)?;
        Ok(Posted { send: None, recv, device: self.device().clone() })
    }

    /// Waits for every rank.
    pub fn barrier(&self) -> Result<(), CommError> {
        self.exchange(Call::bare("barrier", &[]), vec![Part::nothing(); self.size()])?;
        Ok(())
    }

    fn send_from<const D: usize>(
        &self,
        op: &'static str,
        root: usize,
        parts: Option<Vec<Part>>,
    ) -> Result<Tensor<D>, CommError> {
        self.check_root(op, root)?;
        let (rank, size) = (self.world_rank(), self.size());
        let parts = match parts {
            _ if self.rank() != root => vec![Part::nothing(); size],
            None => return self.refuse(CommError::NoTensor { rank, op }),
            Some(parts) if parts.len() != size => {
                return self.refuse(CommError::Sizes { rank, op, n: size, sizes: vec![1; parts.len()], size });
            }
            Some(parts) => parts,
        };
        let mut parts = self.exchange(Call::unknown::<D>(op, &[root]), parts)?;
        Ok(parts.swap_remove(root).into_tensor(self.device()))
    }

    fn check_root(&self, op: &'static str, peer: usize) -> Result<(), CommError> {
        let (rank, size) = (self.world_rank(), self.size());
        match peer < size {
            true => Ok(()),
            false => self.refuse(CommError::NoSuchRank { rank, op, peer, size }),
        }
    }

    fn refuse<T>(&self, error: CommError) -> Result<T, CommError> {
        // else the others would wait until this rank drops its handle
        self.abort(&error.to_string());
        Err(error)
    }
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
