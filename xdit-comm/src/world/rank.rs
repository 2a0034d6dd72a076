//! A rank's handle on a group of threads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use burn::tensor::{Device, Tensor};
use xdit_core::comm::{Call, CommError, Communicator, Form, Part, Pending, Place, Stats};
use xdit_core::device::failure;

use super::shared::Shared;
use super::state::{Lane, Letter, Slot, State};

pub struct Rank {
    seat: Arc<Seat>,
    stats: Mutex<Stats>,
}

/// A rank's place in a group; held until the last of its posted operations is over as well.
struct Seat {
    shared: Arc<Shared>,
    group: u64,
    /// World ranks, in rank order of the group.
    members: Arc<[usize]>,
    /// Number in the group.
    rank: usize,
    device: Device,
    counts: Mutex<Counts>,
}

/// How often what was called; both ends of a way count alike.
struct Counts {
    collectives: u64,
    /// By rank of the group.
    sent: Vec<u64>,
    received: Vec<u64>,
}

impl Rank {
    pub fn new(shared: Arc<Shared>, group: u64, members: Arc<[usize]>, rank: usize, device: Device) -> Self {
        let counts = Counts { collectives: 0, sent: vec![0; members.len()], received: vec![0; members.len()] };
        let seat = Seat { shared, group, members, rank, device, counts: Mutex::new(counts) };
        Self { seat: Arc::new(seat), stats: Mutex::default() }
    }

    /// Posts one letter to every member; returns the number of this collective.
    fn post(&self, letters: Vec<Letter>) -> Result<u64, CommError> {
        let (me, op) = (self.world_rank(), letters[self.rank()].call.op);
        let seat = &*self.seat;
        self.beat();
        let seq = next(&mut seat.counts().collectives);
        seat.shared.with(|state| {
            state.begin(me, op)?;
            for (to, letter) in letters.into_iter().enumerate() {
                self.record(to, &letter);
                state.post(seat.slot(Lane::Collective, self.rank(), to, seq), letter);
            }
            Ok(())
        })?;
        Ok(seq)
    }

    fn record(&self, to: usize, letter: &Letter) {
        if to != self.rank() && letter.part.data.is_some() {
            self.stats_mut().record(letter.call.op, letter.part.n_bytes());
        }
    }

    fn stats_mut(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Communicator for Rank {
    fn rank(&self) -> usize {
        self.seat.rank
    }

    fn size(&self) -> usize {
        self.seat.members.len()
    }

    fn world_rank(&self) -> usize {
        self.seat.world_rank()
    }

    fn device(&self) -> &Device {
        &self.seat.device
    }

    fn slot(&self) -> usize {
        self.seat.shared.slot(self.world_rank())
    }

    fn exchange(&self, call: Call, parts: Vec<Part>, forms: &[Form]) -> Result<Vec<Part>, CommError> {
        let parts = self.post_exchange(call, parts, forms.to_vec(), None)?.wait()?;
        Ok(parts.into_iter().map(|part| part.expect("no place was given")).collect())
    }

    fn post_exchange(
        &self,
        call: Call,
        parts: Vec<Part>,
        forms: Vec<Form>,
        places: Option<Vec<Part>>,
    ) -> Result<Box<dyn Pending<Vec<Option<Part>>>>, CommError> {
        let (seat, op, size) = (Arc::clone(&self.seat), call.op, self.size());
        let given = [parts.len(), forms.len(), places.as_ref().map_or(size, Vec::len)];
        if let Some(n) = given.into_iter().find(|n| *n != size) {
            return Err(self.refuse(CommError::Sizes { rank: self.world_rank(), op, n, sizes: vec![1; n], size }));
        }
        let (call, has_places) = (Arc::new(call), places.is_some());
        let letter = |(to, part)| seat.letter(&call, to, part, has_places);
        let seq = self.post(parts.into_iter().enumerate().map(letter).collect())?;
        let places = places
            .map_or_else(|| forms.iter().map(|_| None).collect(), |places| places.into_iter().map(Place::of).collect());
        Ok(Box::new(Exchanging { seat, op, seq, forms, places, taken: false }))
    }

    fn hides(&self) -> bool {
        self.seat.fetches()
    }

    fn post_send(&self, call: Call, to: usize, part: Part) -> Result<Box<dyn Pending<()>>, CommError> {
        let (me, op, seat) = (self.world_rank(), call.op, &self.seat);
        self.check_peer(op, to)?;
        self.beat();
        let letter = seat.letter(&Arc::new(call), to, part, false);
        let slot = seat.slot(Lane::Point, self.rank(), to, next(&mut seat.counts().sent[to]));
        seat.shared.with(|state| {
            state.check_there(slot.group, slot.to);
            state.begin(me, op)?;
            self.record(to, &letter);
            state.post(slot, letter);
            Ok(())
        })?;
        Ok(Box::new(Sending { seat: Arc::clone(seat), op }))
    }

    fn post_recv(&self, call: Call, from: usize, form: Form) -> Result<Box<dyn Pending<Part>>, CommError> {
        let (me, op, seat) = (self.world_rank(), call.op, &self.seat);
        self.check_peer(op, from)?;
        self.beat();
        let slot = seat.slot(Lane::Point, from, self.rank(), next(&mut seat.counts().received[from]));
        seat.shared.with(|state| state.begin(me, op))?;
        // set aside now, so that what this rank computes until it waits does not hold the copy back
        let fetched = seat.shared.fetches(slot.from, slot.to);
        let place = fetched.then(|| Place::new(&form, &seat.device)).flatten();
        Ok(Box::new(Receiving { seat: Arc::clone(seat), call, from, form, slot, place, taken: false }))
    }

    fn split(&self, color: usize, key: usize) -> Result<Box<dyn Communicator>, CommError> {
        let Seat { shared, group, members, device, .. } = &*self.seat;
        let call = Arc::new(Call::bare("split", &[]));
        let letter = |to| Letter { split: [color, key], ..self.seat.letter(&call, to, Part::nothing(), false) };
        let seq = self.post((0..self.size()).map(letter).collect())?;
        let letters = self.seat.collect(call.op, seq)?;
        let mut chosen: Vec<_> = (0..self.size()).filter(|&i| letters[i].split[0] == color).collect();
        // stable: in rank order where keys are equal
        chosen.sort_by_key(|&i| letters[i].split[1]);
        let rank = chosen.iter().take_while(|&&i| i != self.rank()).count();
        let group = State::group(*group, seq, color);
        let members = chosen.into_iter().map(|i| members[i]).collect();
        Ok(Box::new(Rank::new(Arc::clone(shared), group, members, rank, device.clone())))
    }

    fn stats(&self) -> Stats {
        self.stats_mut().clone()
    }

    fn reset_stats(&self) {
        *self.stats_mut() = Stats::default();
    }

    fn beat(&self) {
        self.seat.shared.beat(self.world_rank());
    }

    fn abort(&self, reason: &str) {
        self.seat.shared.with(|state| state.abort(self.world_rank(), reason));
    }
}

/// Returns the count so far.
fn next(count: &mut u64) -> u64 {
    *count += 1;
    *count - 1
}

impl Seat {
    fn world_rank(&self) -> usize {
        self.members[self.rank]
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, lane: Lane, from: usize, to: usize, seq: u64) -> Slot {
        Slot { group: self.group, lane, from: self.members[from], to: self.members[to], seq }
    }

    /// What each member sent here in a collective, once all of it is there.
    fn collect(&self, op: &'static str, seq: u64) -> Result<Vec<Letter>, CommError> {
        let me = self.world_rank();
        let letters = self.shared.take(me, op, &self.slots(seq))?;
        let calls: Vec<_> = self.members.iter().copied().zip(letters.iter().map(|letter| &*letter.call)).collect();
        self.shared.agree(me, &calls)?;
        Ok(letters)
    }

    /// Where the letters to this rank lie in a collective.
    fn slots(&self, seq: u64) -> Vec<Slot> {
        (0..self.members.len()).map(|from| self.slot(Lane::Collective, from, self.rank, seq)).collect()
    }

    /// Whether this rank's device fetches what others send here.
    fn fetches(&self) -> bool {
        self.members.iter().any(|&from| self.shared.fetches(from, self.world_rank()))
    }

    /// A message to rank `to` of the group.
    ///
    /// - `has_place`: whether this rank's own part goes into a place, too
    fn letter(&self, call: &Arc<Call>, to: usize, part: Part, has_place: bool) -> Letter {
        let own = has_place && to == self.rank && self.fetches();
        let fetched = own || self.shared.fetches(self.world_rank(), self.members[to]);
        let offer = fetched.then(|| part.offer()).flatten();
        Letter { call: Arc::clone(call), part, offer, split: [0; 2] }
    }

    /// Brings what rank `from` of the group sent to this rank's device, if it is what was expected; `None` if it is in its
    /// place there.
    fn land(
        &self,
        op: &'static str,
        from: usize,
        letter: Letter,
        form: &Form,
        place: Option<&Place>,
    ) -> Result<Option<Part>, CommError> {
        let Letter { part, offer, .. } = letter;
        self.shared.expect(self.world_rank(), op, self.members[from], &part.form, form)?;
        if let Some(offer) = offer {
            return Ok(offer.fetch(place, &self.device));
        }
        let slot = |rank| self.shared.slot(self.members[rank]);
        if slot(from) == slot(self.rank) {
            return Ok(Some(part));
        }
        let failed = |reason: String| CommError::Copy { rank: self.world_rank(), op, peer: self.members[from], reason };
        let (form, dtype) = (part.form.clone(), part.form.dtype);
        let Some(sent) = part.flat() else { return Ok(Some(Part::of_flat(form, None))) };
        let here = if sent.device() != self.device {
            let here = sent.clone().to_device(&self.device);
            // Burn 0.22 may reuse the sender's memory while a GPU still reads it, so `sent` lives until then
            self.device.sync().map_err(|e| failed(failure(&self.device, &e.to_string())))?;
            here
        } else {
            // one device that stands for two
            let data = sent.try_into_data().map_err(|e| failed(failure(&self.device, &e.to_string())))?;
            Tensor::from_data(data, (&self.device, dtype))
        };
        Ok(Some(Part::of_flat(form, Some(here))))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let me = self.world_rank();
        let unread = self.shared.with(|state| state.leave(self.group, me, thread::panicking()));
        // tensors are freed without the lock
        drop(unread);
    }
}

/// Once posted, a message needs nothing more of its sender.
struct Sending {
    seat: Arc<Seat>,
    op: &'static str,
}

impl Pending<()> for Sending {
    fn wait(self: Box<Self>) -> Result<(), CommError> {
        self.seat.shared.with(|state| state.check(self.seat.world_rank(), self.op))
    }
}

/// A collective whose letters this rank has posted.
struct Exchanging {
    seat: Arc<Seat>,
    op: &'static str,
    seq: u64,
    forms: Vec<Form>,
    places: Vec<Option<Place>>,
    taken: bool,
}

impl Pending<Vec<Option<Part>>> for Exchanging {
    fn wait(mut self: Box<Self>) -> Result<Vec<Option<Part>>, CommError> {
        self.taken = true;
        let letters = self.seat.collect(self.op, self.seq)?.into_iter().zip(&self.forms).zip(&self.places).enumerate();
        let land = |(from, ((letter, form), place)): (_, ((_, _), &Option<Place>))| {
            self.seat.land(self.op, from, letter, form, place.as_ref())
        };
        letters.map(land).collect()
    }
}

impl Drop for Exchanging {
    fn drop(&mut self) {
        if !self.taken {
            let slots = self.seat.slots(self.seq);
            let unread: Vec<_> =
                self.seat.shared.with(|state| slots.into_iter().map(|slot| state.forget(slot)).collect());
            drop(unread);
        }
    }
}

struct Receiving {
    seat: Arc<Seat>,
    call: Call,
    /// Number in the group.
    from: usize,
    form: Form,
    slot: Slot,
    place: Option<Place>,
    taken: bool,
}

impl Pending<Part> for Receiving {
    fn wait(mut self: Box<Self>) -> Result<Part, CommError> {
        let (seat, op) = (Arc::clone(&self.seat), self.call.op);
        let letter = seat.shared.take(self.slot.to, op, &[self.slot])?.remove(0);
        self.taken = true;
        seat.shared.agree(self.slot.to, &[(self.slot.to, &self.call), (self.slot.from, &letter.call)])?;
        let landed = seat.land(op, self.from, letter, &self.form, self.place.as_ref())?;
        Ok(landed.or_else(|| self.place.take().map(Place::part)).expect("it is in its place"))
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if !self.taken {
            let unread = self.seat.shared.with(|state| state.forget(self.slot));
            drop(unread);
        }
    }
}
