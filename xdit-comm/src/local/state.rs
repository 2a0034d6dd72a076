//! What the threads of a world share: messages, who waits for whom, who left, and the first failure.

use std::collections::{HashMap, HashSet};

use xdit_core::comm::{Call, Cause, CommError, Part};

/// Posted receives are not to take what belongs to a collective that is called in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    Collective,
    Point,
}

/// Where a message lies; ranks are those of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
    pub call: Call,
    pub part: Part,
    /// Colour and key, where it is one of a split.
    pub split: [usize; 2],
}

/// Who failed first and how.
#[derive(Debug, Clone)]
struct Failure {
    peer: usize,
    cause: Cause,
}

#[derive(Debug, Clone, Copy)]
struct Wait {
    peer: usize,
    op: &'static str,
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
    failure: Option<Failure>,
    /// Sub-groups by parent, number of the split and colour.
    groups: HashMap<(u64, u64, usize), u64>,
}

impl State {
    pub fn new(n_ranks: usize) -> Self {
        Self {
            letters: HashMap::new(),
            unwanted: HashSet::new(),
            waits: vec![None; n_ranks],
            last_op: vec!["start"; n_ranks],
            left: HashMap::new(),
            failure: None,
            groups: HashMap::new(),
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
        if !self.unwanted.remove(&slot) {
            self.letters.insert(slot, letter);
        }
    }

    /// Fails if `peer` left the group: nothing more comes from it or is received by it.
    pub fn check_there(&mut self, group: u64, peer: usize) {
        if let Some(&op) = self.left.get(&(group, peer)) {
            self.fail(peer, Cause::Left { op });
        }
    }

    pub fn wait_for(&mut self, rank: usize, peer: usize, op: &'static str) {
        self.waits[rank] = Some(Wait { peer, op });
    }

    pub fn waited(&mut self, rank: usize) {
        self.waits[rank] = None;
    }

    /// Whom `rank` waits for in the end, and in what: its peer may itself wait for another. Of ranks that wait for each
    /// other it is the lowest, so that all name the same one.
    pub fn culprit(&self, rank: usize) -> Option<(usize, &'static str)> {
        let mut path = vec![rank];
        let mut culprit = rank;
        while let Some(Wait { peer, .. }) = self.waits[culprit] {
            if let Some(start) = path.iter().position(|&x| x == peer) {
                culprit = path[start..].iter().copied().min()?;
                break;
            }
            path.push(peer);
            culprit = peer;
        }
        let wait = self.waits.iter().flatten().find(|wait| wait.peer == culprit)?;
        Some((culprit, wait.op))
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
        let mine = |slot: &Slot| (slot.group, slot.to) == (group, rank);
        self.unwanted.retain(|slot| !mine(slot));
        self.letters.extract_if(|slot, _| mine(slot)).map(|(_, letter)| letter).collect()
    }

    /// The group of those that gave this colour; the same number for all of them.
    pub fn group(&mut self, parent: u64, seq: u64, color: usize) -> u64 {
        // 0 is the world
        let next = self.groups.len() as u64 + 1;
        *self.groups.entry((parent, seq, color)).or_insert(next)
    }
}
