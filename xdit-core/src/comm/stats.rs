//! How much was sent.

use std::collections::BTreeMap;

/// What a rank sent to others, by operation. What stays on a rank, and messages without elements, do not count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Keyed by [`super::Call::op`].
    pub ops: BTreeMap<&'static str, Traffic>,
}

/// Messages and their size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages.
    pub messages: u64,
    /// Bytes of their elements.
    pub bytes: u64,
}

impl Stats {
    /// Adds a message.
    pub fn record(&mut self, op: &'static str, bytes: u64) {
        let traffic = self.ops.entry(op).or_default();
        traffic.messages += 1;
        traffic.bytes += bytes;
    }

    /// What one operation sent.
    pub fn of(&self, op: &str) -> Traffic {
        self.ops.get(op).copied().unwrap_or_default()
    }

    /// What all operations sent.
    pub fn total(&self) -> Traffic {
        self.ops.values().fold(Traffic::default(), |sum, x| Traffic {
            messages: sum.messages + x.messages,
            bytes: sum.bytes + x.bytes,
        })
    }
}
