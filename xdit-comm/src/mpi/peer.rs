//! The way to another process and back.

use std::collections::VecDeque;
use std::time::Instant;

use super::message::{Home, MOST_BYTES, Message};
use super::request::{Link, Outgoing, Refused, Request};

const HEAD: i32 = 1;
const BODY: i32 = 2;

pub struct Peer {
    pub rank: usize,
    sending: VecDeque<Request<Outgoing>>,
    /// The receive of the next message; none after the last.
    head: Option<Request<Vec<u8>>>,
    /// In the order in which they came.
    inbox: VecDeque<(Message, Option<Request<Vec<u8>>>)>,
    pub home: Option<Home>,
    pub heard: Instant,
    /// Whether its last message came. It hears this process until both have said theirs.
    pub said_bye: bool,
    pub is_dead: bool,
}

impl Peer {
    pub fn new(link: &Link, rank: usize) -> Result<Self, Refused> {
        let head = Some(link.receive(rank, HEAD, vec![0; MOST_BYTES])?);
        let (sending, inbox) = (VecDeque::new(), VecDeque::new());
        Ok(Self { rank, sending, head, inbox, home: None, heard: Instant::now(), said_bye: false, is_dead: false })
    }

    /// - `body`: elements, where there are some
    pub fn send(&mut self, link: &Link, message: &Message, body: Option<Outgoing>) -> Result<(), Refused> {
        if self.is_dead {
            return Ok(());
        }
        let head = message.write().ok_or(Refused)?;
        self.sending.push_back(link.send(self.rank, HEAD, Outgoing::Head(head))?);
        if let Some(body) = body {
            self.sending.push_back(link.send(self.rank, BODY, body)?);
        }
        Ok(())
    }

    /// Whether nothing more comes from it.
    pub fn is_gone(&self) -> bool {
        self.said_bye || self.is_dead
    }

    /// Whether all that was sent is out of this process's hands.
    pub fn is_sent(&self) -> bool {
        self.sending.is_empty()
    }

    /// Whether it still has something under way.
    pub fn is_busy(&self) -> bool {
        !self.sending.is_empty() || !self.inbox.is_empty()
    }

    /// Lets MPI go on; returns the next message that is whole, with its elements.
    pub fn poll(&mut self, link: &Link) -> Result<Option<(Message, Vec<u8>)>, Refused> {
        while let Some(sending) = self.sending.front_mut() {
            if sending.poll()?.is_none() {
                break;
            }
            self.sending.pop_front();
        }
        if let Some(head) = &mut self.head
            && let Some(bytes) = head.poll()?
        {
            self.heard = Instant::now();
            let message = Message::read(&bytes).ok_or(Refused)?;
            self.head = match message {
                Message::Bye => None,
                _ => Some(link.receive(self.rank, HEAD, bytes)?),
            };
            let n_bytes = message.n_bytes();
            let body = (n_bytes > 0).then(|| link.receive(self.rank, BODY, vec![0; n_bytes])).transpose()?;
            match message {
                // these are not about what came before
                Message::Status { .. } | Message::Fail { .. } => return Ok(Some((message, Vec::new()))),
                _ => self.inbox.push_back((message, body)),
            }
        }
        let body = match self.inbox.front_mut() {
            None => return Ok(None),
            Some((_, None)) => Vec::new(),
            Some((_, Some(body))) => match body.poll()? {
                None => return Ok(None),
                Some(bytes) => {
                    self.heard = Instant::now();
                    bytes
                }
            },
        };
        Ok(self.inbox.pop_front().map(|(message, _)| (message, body)))
    }
}
