//! Collectives on parts by [`Communicator::exchange`] alone, for transports that have none of their own.

use burn::tensor::Tensor;

use super::parts::{cut_flat, sum};
use super::{Call, CommError, Communicator, Form, Part, even_sizes};

/// See [`Communicator::all_reduce_part`]. Each rank adds up its share, in rank order, so that no element is summed or sent
/// more often than it must be.
pub fn all_reduce(comm: &(impl Communicator + ?Sized), call: Call, part: Part) -> Result<Part, CommError> {
    let form = part.form.clone();
    let sizes = even_sizes(form.n(), comm.size());
    let of = |n: usize| Form::new(&[n], form.dtype);
    let mine = vec![of(sizes[comm.rank()]); comm.size()];
    let share = sum(comm.exchange(call.clone(), cut_flat(part, &sizes), &mine)?);
    let forms: Vec<_> = sizes.iter().map(|n| of(*n)).collect();
    let shares = comm.all_gather_parts(call, share, &forms)?;
    let data: Vec<Tensor<1>> = shares.into_iter().filter_map(Part::flat).collect();
    let data = (!data.is_empty()).then(|| crate::ops::cat(data, 0));
    Ok(Part::of_flat(form, data))
}

/// `parts[i]` of rank `root`, which alone has some, on rank `i`.
pub fn scatter(
    comm: &(impl Communicator + ?Sized),
    call: Call,
    root: usize,
    parts: Option<Vec<Part>>,
    form: Form,
) -> Result<Part, CommError> {
    let parts = parts.unwrap_or_else(|| vec![Part::nothing(); comm.size()]);
    let mut forms = vec![Form::nothing(); comm.size()];
    forms[root] = form;
    Ok(comm.exchange(call, parts, &forms)?.swap_remove(root))
}
