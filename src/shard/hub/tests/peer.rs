//! What the socket of one client does during one visit.

use super::model::{End, Model};
use super::ops::{Room, Socket};
use crate::shard::hub::{Sent, WRITE_BYTES_MAX};

pub struct Peer {
    pub idx: u32,
    fd: Option<i32>,
    pub queued: usize,
    pub room: usize,
    pub writes_left: usize,
    breaks: bool,
    pub taken: Vec<u8>,
    pub n_writes: u64,
    pub end: End,
    /// A write that mustn't have been.
    pub refused: Option<i32>,
}

impl Peer {
    pub fn new(model: &Model, idx: u32, socket: &Socket) -> Self {
        let client = model.clients.iter().find(|client| client.id.idx == idx);
        let queued = client.map_or(0, |client| client.queued_bytes());
        let mut writes_left = usize::MAX;
        let room = match &socket.room {
            Room::All => queued,
            Room::Bytes(bytes) => queued.min(*bytes),
            Room::Part(part) => queued * part / 1_000,
            Room::Frames(n) => client.map_or(0, |client| client.bytes_of_frames(*n)),
            Room::Writes(n) => {
                writes_left = *n;
                queued
            }
        };
        Self {
            idx,
            fd: client.and_then(|client| client.fd),
            queued,
            room,
            writes_left,
            breaks: socket.breaks,
            taken: Vec::new(),
            n_writes: 0,
            end: End::TookAll,
            refused: None,
        }
    }

    pub fn write(&mut self, to: i32, parts: &[&[u8]]) -> Sent {
        self.n_writes += 1;
        let is_bad = |part: &&[u8]| part.is_empty() || part.len() > WRITE_BYTES_MAX;
        if Some(to) != self.fd || self.end != End::TookAll || parts.iter().any(is_bad) {
            self.refused = Some(to);
        }
        if self.taken.len() == self.room || self.writes_left == 0 {
            self.end = if self.breaks { End::Gone } else { End::Full };
            return if self.breaks { Sent::Gone } else { Sent::Full };
        }
        self.writes_left -= 1;
        let before = self.taken.len();
        parts.iter().for_each(|part| self.taken.extend_from_slice(part));
        if self.taken.len() > self.room {
            self.taken.truncate(self.room);
            self.end = End::Full;
        }
        Sent::Bytes(self.taken.len() - before)
    }
}
