//! What processes tell each other, and how it is written: a length and JSON. Elements of tensors follow as they are.

use std::collections::HashSet;

use burn::tensor::DType;
use serde::{Deserialize, Serialize};
use xdit_core::comm::{Call, Form};

use crate::world::state::Slot;

/// Bytes of the longest message; the receive of one is always posted.
pub const MOST_BYTES: usize = 64 << 10;

#[derive(Serialize, Deserialize)]
pub enum Message {
    /// The first one.
    Hello(Home),
    /// A letter; its elements follow.
    Letter { slot: Slot, call: Called, shape: Vec<usize>, dtype: DType, split: [usize; 2] },
    /// How long the rank has been quiet, and what it waits for.
    Status { quiet_ms: u64, waits: Option<(String, Vec<Slot>)> },
    /// The first failure that the process knows of.
    Fail { peer: usize, text: String, dead: bool },
    /// The rank left a group after an operation.
    Left { group: u64, op: String },
    /// The last one: the process ends.
    Bye,
}

/// Where a process is, for those that can look whether it is there.
#[derive(Serialize, Deserialize)]
pub struct Home {
    /// The running system and the space of process numbers in it, if these can be told.
    pub place: Option<String>,
    pub pid: u32,
}

/// A [`Call`].
#[derive(Serialize, Deserialize)]
pub struct Called {
    op: String,
    args: Vec<usize>,
    dtype: Option<DType>,
    shape: Vec<Option<usize>>,
}

impl Message {
    pub fn letter(slot: Slot, call: &Call, form: &Form, split: [usize; 2]) -> Self {
        let Call { op, args, dtype, shape } = call.clone();
        let call = Called { op: op.into(), args, dtype, shape };
        Self::Letter { slot, call, shape: form.shape.clone(), dtype: form.dtype, split }
    }

    /// Bytes of the elements that follow.
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::Letter { shape, dtype, .. } => shape.iter().product::<usize>() * dtype.size(),
            _ => 0,
        }
    }

    /// `None` if it is too long.
    pub fn write(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 4];
        serde_json::to_writer(&mut bytes, self).ok()?;
        let n = u32::try_from(bytes.len() - 4).ok()?;
        bytes[..4].copy_from_slice(&n.to_le_bytes());
        (bytes.len() <= MOST_BYTES).then_some(bytes)
    }

    /// - `bytes`: may be longer than the message
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (n, rest) = bytes.split_first_chunk()?;
        serde_json::from_slice(rest.get(..u32::from_le_bytes(*n) as usize)?).ok()
    }
}

impl Called {
    pub fn call(self, names: &mut Names) -> Call {
        let Self { op, args, dtype, shape } = self;
        Call { op: names.of(&op), args, dtype, shape }
    }
}

/// Names of operations, which live as long as the program; there are few.
#[derive(Default)]
pub struct Names(HashSet<&'static str>);

impl Names {
    pub fn of(&mut self, name: &str) -> &'static str {
        match self.0.get(name) {
            Some(known) => known,
            None => {
                let name = String::leak(name.into());
                self.0.insert(name);
                name
            }
        }
    }
}
