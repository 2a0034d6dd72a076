//! The thread that calls MPI, and all that it brings and fetches.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor, TensorData};
use xdit_core::comm::{Cause, Form, Part};

use super::error::JoinError;
use super::home::{home, is_gone};
use super::message::{Home, Message, Names};
use super::peer::Peer;
use super::request::{Link, Outgoing, Refused};
use crate::world::shared::Shared;
use crate::world::state::{Away, Failure, Letter, News, Slot, State, Wait};

/// How long a process is not heard of until it is taken for dead. Its courier speaks several times a second, whatever its
/// rank does.
pub const LOST: Duration = Duration::from_secs(8);

/// How long it sleeps between two looks, at least and at most.
const NAP: [Duration; 2] = [Duration::from_micros(20), Duration::from_millis(1)];

/// The same, while something is under way or the rank waits.
const SHORT_NAP: Duration = Duration::from_micros(50);

/// How long the end of a failed process waits for the others to hear of it, and for the first to tell the user.
const FAREWELL: Duration = Duration::from_millis(500);

/// Longest text about a failure, in bytes.
const LONGEST: usize = 4096;

pub struct Courier {
    link: Link,
    shared: Arc<Shared>,
    me: usize,
    here: Home,
    peers: Vec<Peer>,
    names: Names,
    /// Whether the others were told of the failure.
    told: bool,
    next_status: Instant,
    /// Whether the last message was sent.
    said_bye: Option<Instant>,
}

impl Courier {
    pub fn new(link: Link, shared: Arc<Shared>) -> Result<Self, JoinError> {
        let me = link.rank;
        let peer = |peer| Peer::new(&link, peer).map_err(|Refused| JoinError::Refused { peer });
        let peers = (0..link.size).filter(|rank| *rank != me).map(peer).collect::<Result<_, _>>()?;
        let (here, names, now) = (home(), Names::default(), Instant::now());
        Ok(Self { link, shared, me, here, peers, names, told: false, next_status: now, said_bye: None })
    }

    /// Until the process ends, and MPI, if all processes end it.
    pub fn run(mut self) {
        let mut nap = NAP[0];
        let mut last = Instant::now();
        self.tell_all(|_| Message::Hello(home()));
        loop {
            // a process that was stopped itself has not heard of anybody
            let gap = last.elapsed();
            last = Instant::now();
            if gap > LOST / 8 {
                self.peers.iter_mut().for_each(|peer| peer.heard += gap);
            }
            let moved = self.bring() | self.fetch();
            if last >= self.next_status {
                self.next_status = last + (self.shared.deadline() / 8).clamp(Duration::from_millis(20), LOST / 32);
                self.watch();
                self.tell_status();
            }
            match self.is_over() {
                Some(true) => return self.link.end(),
                Some(false) => return,
                None => {}
            }
            let busy = self.peers.iter().any(Peer::is_busy)
                || self.shared.look(|state| (state.missing(self.me).is_some(), false));
            nap = if moved { NAP[0] } else { (nap * 2).min(if busy { SHORT_NAP } else { NAP[1] }) };
            if !moved {
                thread::park_timeout(nap);
            }
        }
    }

    /// What this process's rank has for others.
    fn bring(&mut self) -> bool {
        let (news, failure, ends) = self.shared.look(|state| {
            let failure = state.failure.clone().filter(|_| !self.told);
            let away = state.away.as_mut().map(|Away { news, ends, .. }| (std::mem::take(news), *ends));
            let (news, ends) = away.unwrap_or_default();
            ((news, failure, ends), false)
        });
        let moved = !news.is_empty() || failure.is_some();
        // before whatever follows from it
        if let Some(Failure { peer, cause }) = failure {
            let dead = matches!(cause, Cause::Told { dead: true, .. });
            let mut text = cause.to_string();
            text.truncate(text.floor_char_boundary(LONGEST));
            self.tell_all(|_| Message::Fail { peer, text: text.clone(), dead });
            self.told = true;
        }
        for piece in news {
            match piece {
                News::Letter(slot, letter) => self.send(slot, *letter),
                News::Left(group, op) => self.tell_all(|_| Message::Left { group, op: op.into() }),
            }
        }
        if ends && self.said_bye.is_none() {
            self.tell_all(|_| Message::Bye);
            self.said_bye = Some(Instant::now());
        }
        moved
    }

    fn send(&mut self, slot: Slot, letter: Letter) {
        let Letter { call, part, split, .. } = letter;
        let message = Message::letter(slot, &call, &part.form, split);
        let body = match part.flat().map(Tensor::try_into_data).transpose() {
            Ok(data) => data.map(|data| Outgoing::Body(Box::new(data))),
            Err(error) => return self.shared.with(|state| state.abort(self.me, &error.to_string())),
        };
        if let Some(peer) = self.peers.iter_mut().find(|peer| peer.rank == slot.to)
            && peer.send(&self.link, &message, body).is_err()
        {
            self.lose(slot.to, "cannot be reached by MPI".into());
        }
    }

    fn tell_all(&mut self, message: impl Fn(usize) -> Message) {
        let mut lost = Vec::new();
        for peer in &mut self.peers {
            if peer.send(&self.link, &message(peer.rank), None).is_err() {
                lost.push(peer.rank);
            }
        }
        lost.into_iter().for_each(|rank| self.lose(rank, "cannot be reached by MPI".into()));
    }

    /// What others have for this process.
    fn fetch(&mut self) -> bool {
        let mut moved = false;
        for i in 0..self.peers.len() {
            // also one that said its last word: it waits for this process's
            while !self.peers[i].is_dead {
                let rank = self.peers[i].rank;
                match self.peers[i].poll(&self.link) {
                    Ok(None) => break,
                    Ok(Some((message, body))) => {
                        moved = true;
                        self.hear(i, message, body);
                    }
                    Err(Refused) => self.lose(rank, "cannot be reached by MPI".into()),
                }
            }
        }
        moved
    }

    fn hear(&mut self, i: usize, message: Message, body: Vec<u8>) {
        let from = self.peers[i].rank;
        let change = |f: &mut dyn FnMut(&mut State)| self.shared.look(|state| (f(state), true));
        match message {
            Message::Hello(home) => self.peers[i].home = Some(home),
            Message::Bye => self.peers[i].said_bye = true,
            Message::Left { group, op } => {
                let op = self.names.of(&op);
                change(&mut |state| state.other_left(group, from, op));
            }
            Message::Fail { peer, text, dead } => {
                change(&mut |state| state.fail(peer, Cause::Told { text: text.clone(), dead }));
            }
            Message::Status { quiet_ms, waits } => {
                let waits = waits.map(|(op, slots)| Wait { op: self.names.of(&op), slots });
                self.shared.quiet(from, Duration::from_millis(quiet_ms));
                self.shared.look(|state| (state.other_waits(from, waits), false));
            }
            Message::Letter { slot, call, shape, dtype, split } => {
                let form = Form { shape, dtype };
                let n = form.n();
                let data = (n > 0).then(|| {
                    let data = TensorData::from_bytes_vec(body, [n], dtype);
                    Tensor::from_data(data, (&Device::flex(), dtype))
                });
                let (call, part) = (Arc::new(call.call(&mut self.names)), Part::of_flat(form, data));
                let letter = Letter { call, part, offer: None, split };
                self.shared.look(|state| (state.deliver(slot, letter), true));
            }
        }
    }

    /// Whether everybody is still there.
    fn watch(&mut self) {
        let mut lost = Vec::new();
        for peer in self.peers.iter().filter(|peer| !peer.is_gone()) {
            if peer.home.as_ref().is_some_and(|home| is_gone(home, &self.here)) {
                lost.push((peer.rank, "died: its process is gone".to_string()));
            } else if peer.heard.elapsed() > LOST {
                let text = format!("is not heard of for {LOST:?}: its process or host died, or was stopped");
                lost.push((peer.rank, text));
            }
        }
        lost.into_iter().for_each(|(rank, text)| self.lose(rank, text));
    }

    fn lose(&mut self, rank: usize, text: String) {
        self.peers.iter_mut().filter(|peer| peer.rank == rank).for_each(|peer| peer.is_dead = true);
        self.shared.look(|state| (state.fail(rank, Cause::Told { text: text.clone(), dead: true }), true));
    }

    fn tell_status(&mut self) {
        let quiet_ms = self.shared.quiet_for(self.me).as_millis() as u64;
        let waits = self.shared.look(|state| (state.missing(self.me), false));
        let waits = waits.map(|Wait { op, slots }| (op.to_string(), slots));
        if self.said_bye.is_none() {
            self.tell_all(|_| Message::Status { quiet_ms, waits: waits.clone() });
        }
    }

    /// Whether this process may end: everybody has said the last word, or knows of the failure. Then, whether MPI can be
    /// ended in order.
    fn is_over(&self) -> Option<bool> {
        let said = self.said_bye?;
        let failed = self.shared.look(|state| (state.failure.is_some(), false));
        let sent = self.peers.iter().all(|peer| peer.is_dead || peer.is_sent());
        match failed {
            // launchers end all as soon as one ends like that, so the one that tells the user goes first
            true => ((self.is_first() && sent && self.told) || said.elapsed() > FAREWELL).then_some(false),
            false => self.peers.iter().all(|peer| peer.said_bye && peer.is_sent()).then_some(true),
        }
    }

    /// Whether it is the first of those that live.
    fn is_first(&self) -> bool {
        self.peers.iter().filter(|peer| !peer.is_dead).all(|peer| peer.rank > self.me)
    }
}
