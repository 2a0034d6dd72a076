//! What the threads of a world share: messages, who waits for whom, who left, and the first failure.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use xdit_core::comm::{Call, Cause, CommError, Offer, Part};

use super::clock::Clock;

/// Posted receives are not to take what belongs to a collective that is called in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "mpi", derive(serde::Serialize, serde::Deserialize))]
pub enum Lane {
    Collective,
    Point,
}

/// Where a message lies; ranks are those of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "mpi", derive(serde::Serialize, serde::Deserialize))]
pub struct Slot {
    pub group: u64,
    pub lane: Lane,
    pub from: usize,
    pub to: usize,
    /// Its number on this way.
    pub seq: u64,
}

/// A message.
#[derive(Debug)]
pub struct Letter {
    pub call: Arc<Call>,
    pub part: Part,
    /// Where the receiver's device may fetch it by itself.
    pub offer: Option<Offer>,
    /// Colour and key, where it is one of a split.
    pub split: [usize; 2],
}

/// Who failed first and how.
#[derive(Debug, Clone)]
pub struct Failure {
    pub peer: usize,
    pub cause: Cause,
}

/// What other processes are to hear of this one's rank.
#[cfg_attr(not(feature = "mpi"), allow(dead_code, reason = "the courier reads it"))]
pub struct Away {
    pub me: usize,
    pub news: Vec<News>,
    /// Whether there will be no more, as the process ends.
    pub ends: bool,
}

#[cfg_attr(not(feature = "mpi"), allow(dead_code, reason = "the courier reads it"))]
pub enum News {
    Letter(Slot, Box<Letter>),
    /// It left a group, after this operation.
    Left(u64, &'static str),
}

/// What a rank waits for: until all of these letters are there.
pub struct Wait {
    pub op: &'static str,
    pub slots: Vec<Slot>,
}

/// A rank that others wait for, and that does not wait for a letter that may still come.
pub struct Suspect {
    pub rank: usize,
    /// What it should come to.
    pub op: &'static str,
    /// Since when it is waited for without a sign of life.
    pub since: Instant,
}

pub struct State {
    pub letters: HashMap<Slot, Letter>,
    /// Slots whose receiver will not come.
    unwanted: HashSet<Slot>,
    /// What each rank waits for.
    waits: Vec<Option<Wait>>,
    /// The operation that each rank called last.
    last_op: Vec<&'static str>,
    /// By group and rank: the last operation of those that are gone.
    left: HashMap<(u64, usize), &'static str>,
    pub failure: Option<Failure>,
    /// Absent where all ranks are threads of this process.
    pub away: Option<Away>,
    clock: Arc<Clock>,
}

impl State {
    pub fn new(n_ranks: usize, clock: Arc<Clock>) -> Self {
        Self {
            letters: HashMap::new(),
            unwanted: HashSet::new(),
            waits: (0..n_ranks).map(|_| None).collect(),
            last_op: vec!["start"; n_ranks],
            left: HashMap::new(),
            failure: None,
            away: None,
            clock,
        }
    }

    /// `rank` calls `op`.
    pub fn begin(&mut self, rank: usize, op: &'static str) -> Result<(), CommError> {
        self.check(rank, op)?;
        self.last_op[rank] = op;
        Ok(())
    }

    /// Whether `rank` may go on.
    pub fn check(&self, rank: usize, op: &'static str) -> Result<(), CommError> {
        match self.failure.clone() {
            Some(Failure { peer, cause }) => Err(CommError::PeerFailed { rank, op, peer, cause }),
            None => Ok(()),
        }
    }

    /// Ends everyone's operations; the first failure stands.
    pub fn fail(&mut self, peer: usize, cause: Cause) {
        self.failure.get_or_insert(Failure { peer, cause });
    }

    pub fn abort(&mut self, rank: usize, reason: &str) {
        self.fail(rank, Cause::Aborted { op: self.last_op[rank], reason: reason.to_string() });
    }

    pub fn post(&mut self, slot: Slot, letter: Letter) {
        match &mut self.away {
            Some(away) if slot.to != away.me => away.news.push(News::Letter(slot, Box::new(letter))),
            _ => self.deliver(slot, letter),
        }
    }

    /// A letter to a rank of this process.
    pub fn deliver(&mut self, slot: Slot, letter: Letter) {
        if self.unwanted.remove(&slot) {
            return;
        }
        self.letters.insert(slot, letter);
        if self.waits[slot.to].is_some() && !self.is_stuck(slot.to) {
            // it can go on only now: it was not silent so far
            self.clock.beat(slot.to);
        }
    }

    /// Fails if `peer` left the group: nothing more comes from it or is received by it.
    pub fn check_there(&mut self, group: u64, peer: usize) {
        if let Some(&op) = self.left.get(&(group, peer)) {
            self.fail(peer, Cause::Left { op });
        }
    }

    pub fn wait_for(&mut self, rank: usize, op: &'static str, slots: &[Slot]) {
        if self.waits[rank].is_none() {
            self.waits[rank] = Some(Wait { op, slots: slots.to_vec() });
        }
    }

    pub fn waited(&mut self, rank: usize) {
        self.waits[rank] = None;
    }

    /// What `rank` waits for, as far as it is not there.
    #[cfg(feature = "mpi")]
    pub fn missing(&self, rank: usize) -> Option<Wait> {
        let wait = self.waits[rank].as_ref()?;
        let slots = wait.slots.iter().filter(|slot| !self.letters.contains_key(slot)).copied().collect();
        Some(Wait { op: wait.op, slots })
    }

    /// A rank of another process waits for this.
    #[cfg(feature = "mpi")]
    pub fn other_waits(&mut self, rank: usize, wait: Option<Wait>) {
        self.waits[rank] = wait;
    }

    /// A rank of another process dropped its handle on a group.
    #[cfg(feature = "mpi")]
    pub fn other_left(&mut self, group: u64, rank: usize, op: &'static str) {
        self.left.insert((group, rank), op);
    }

    /// The ranks whose letters `rank` waits for.
    fn awaited(&self, rank: usize) -> impl Iterator<Item = usize> + '_ {
        let slots = self.waits[rank].iter().flat_map(|wait| &wait.slots);
        slots.filter(|slot| !self.letters.contains_key(slot)).map(|slot| slot.from)
    }

    /// Whether `rank` can do nothing before another does something.
    fn is_stuck(&self, rank: usize) -> bool {
        self.awaited(rank).next().is_some()
    }

    /// Those whom `rank` waits for, whom they wait for, and so on.
    fn awaited_in_the_end(&self, rank: usize) -> Vec<usize> {
        let mut found: Vec<usize> = Vec::new();
        let mut at = 0;
        let mut next = Some(rank);
        while let Some(rank) = next {
            for peer in self.awaited(rank) {
                if !found.contains(&peer) {
                    found.push(peer);
                }
            }
            next = found.get(at).copied();
            at += 1;
        }
        found
    }

    /// Whom `rank` should watch: of those whom it waits for and who wait for nobody the one that is silent for longest. A
    /// rank that waits itself watches its own peers; but if all wait in a circle, it is the lowest of that circle, so that
    /// all name the same one.
    pub fn suspect(&self, rank: usize) -> Option<Suspect> {
        let since = |peer| self.clock.last(peer).max(self.clock.last(rank));
        let active = self.awaited(rank).filter(|&peer| !self.is_stuck(peer)).map(|peer| (since(peer), peer)).min();
        if let Some((since, peer)) = active {
            return Some(Suspect { rank: peer, op: self.op_awaited(peer, rank)?, since });
        }
        let all = self.awaited_in_the_end(rank);
        if all.iter().any(|&peer| !self.is_stuck(peer)) {
            return None;
        }
        let lowest = all.iter().copied().filter(|&peer| self.awaited_in_the_end(peer).contains(&peer)).min()?;
        let since = all.iter().copied().map(since).max()?;
        Some(Suspect { rank: lowest, op: self.op_awaited(lowest, rank)?, since })
    }

    /// What `peer` should come to: the operation of a rank that waits for it before all others, or that of `rank`. So
    /// those who watch the same one name the same operation, wherever they wait themselves.
    fn op_awaited(&self, peer: usize, rank: usize) -> Option<&'static str> {
        let first = |waiting: &usize| self.awaited(*waiting).next() == Some(peer);
        let waiting = (0..self.waits.len()).find(first).unwrap_or(rank);
        Some(self.waits[waiting].as_ref()?.op)
    }

    /// Nobody will come for this; what already came is returned.
    pub fn forget(&mut self, slot: Slot) -> Option<Letter> {
        let letter = self.letters.remove(&slot);
        if letter.is_none() {
            self.unwanted.insert(slot);
        }
        letter
    }

    /// `rank` dropped its handle on a group; returns what it did not receive.
    pub fn leave(&mut self, group: u64, rank: usize, panicking: bool) -> Vec<Letter> {
        let op = self.last_op[rank];
        if panicking {
            self.fail(rank, Cause::Panicked { op });
        }
        self.left.insert((group, rank), op);
        if let Some(away) = &mut self.away {
            away.news.push(News::Left(group, op));
        }
        let mine = |slot: &Slot| (slot.group, slot.to) == (group, rank);
        self.unwanted.retain(|slot| !mine(slot));
        self.letters.extract_if(|slot, _| mine(slot)).map(|(_, letter)| letter).collect()
    }

    /// The group of those that gave this colour; the same number for all of them, in whatever process they are.
    pub fn group(parent: u64, seq: u64, color: usize) -> u64 {
        // two of the few groups of a world get the same number once in 2^60 worlds
        let mut hasher = DefaultHasher::new();
        (parent, seq, color).hash(&mut hasher);
        hasher.finish()
    }
}
