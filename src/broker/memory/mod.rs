//! The embedded broker's memory: streams of the channels with history, and idempotency keys.
//!
//! Owned by the broker thread; sans-I/O: time comes in as monotonic milliseconds, so a stepped wall
//! clock moves nothing. The Redis scripts promise the same (see `redis/stream.lua`).
//! A stream's publications go when the namespace's `history_ttl` has passed since the newest; its
//! epoch and top offset stay for [`META_MS`] more, so that who was away can be told what it missed.
//!
//! **Invariant:** an epoch's offsets are handed out once, in order and without a gap.
//! **Invariant:** everything is bounded: streams by [`Bounds`] in number and bytes, keys in number
//! and age, epochs of channels that were only read in number: reading takes no stream's place. At a
//! bound the stream that rested longest (of a sample) goes, epoch and all, and is
//! counted; touched again it starts a new epoch, so that nobody takes what is left for the whole.

mod once;
mod presence;
mod stream;
mod unused;

use std::sync::Arc;

use ahash::HashMap;

use super::Publish;
use super::history::{HistoryAsk, HistoryError, HistoryPage, Stored, check_epoch};
use crate::config::Keep;
use crate::position::Position;
use once::Once;
pub use presence::Attendance;
use stream::Stream;
use unused::Unused;

/// How long epoch and top offset outlive the publications, milliseconds: 30 days.
const META_MS: u64 = 30 * 24 * 3600 * 1000;
/// Streams looked at in one tick, for what has expired.
const SWEPT_PER_TICK: usize = 1_000;
/// Streams among which the one that rested longest goes at a bound.
const SAMPLE: usize = 16;

/// How much is kept at the most.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub streams_max: usize,
    pub bytes_max: usize,
    pub keys_max: usize,
    pub unused_max: usize,
}

/// What the embedded broker keeps. A stream's bytes are its publications'; a tenth of a million
/// streams with their names are some 50 MiB more, keys and unused names at worst 60 MiB.
pub const BOUNDS: Bounds =
    Bounds { streams_max: 100_000, bytes_max: 256 << 20, keys_max: 65_536, unused_max: 20_000 };

/// What a publish comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// To be delivered, as this position.
    New(Position),
    /// Not to be delivered: its idempotency key had been seen, or its version isn't newer.
    Old(Position),
}

/// See the module.
pub struct Memory {
    bounds: Bounds,
    names: HashMap<Box<str>, usize>,
    streams: slab::Slab<Stream>,
    /// Of all streams.
    bytes: usize,
    /// Where the sweep goes on, and the sampling.
    cursor: usize,
    once: Once,
    unused: Unused,
    n_evicted: u64,
    pub attendance: Attendance,
}

impl Memory {
    pub fn new(bounds: Bounds) -> Self {
        Self {
            names: HashMap::default(),
            streams: slab::Slab::new(),
            bytes: 0,
            cursor: 0,
            once: Once::new(bounds.keys_max),
            unused: Unused::new(bounds.unused_max),
            n_evicted: 0,
            attendance: Attendance::new(super::presence::BOUNDS),
            bounds,
        }
    }

    /// Takes one publish: idempotency key first, then version, then the offset.
    pub fn publish(&mut self, publish: &Publish, now_ms: u64) -> Outcome {
        if let Some(key) = &publish.idempotency_key
            && let Some(position) = self.once.result(&publish.channel, key, now_ms)
        {
            return Outcome::Old(position);
        }
        let position = match publish.keep {
            Some(keep) => match self.append(publish, keep, now_ms) {
                Outcome::New(position) => position,
                old => return old,
            },
            None => Position::default(),
        };
        if let Some(key) = &publish.idempotency_key {
            self.once.remember(&publish.channel, key, position, now_ms);
        }
        Outcome::New(position)
    }

    fn append(&mut self, publish: &Publish, keep: Keep, now_ms: u64) -> Outcome {
        let slot = self.touch(&publish.channel, now_ms);
        let stream = &mut self.streams[slot];
        if !stream.accepts(publish) {
            return Outcome::Old(stream.top());
        }
        let bytes = stream.bytes();
        let position = stream.append(publish, keep, now_ms);
        self.bytes = self.bytes + stream.bytes() - bytes;
        while self.bytes > self.bounds.bytes_max && self.streams.len() > 1 {
            self.evict(slot);
        }
        // A stream alone may be over the bound: it gives up its own oldest.
        let stream = &mut self.streams[slot];
        while self.bytes > self.bounds.bytes_max && stream.len() > 1 {
            self.bytes -= stream.drop_oldest();
        }
        Outcome::New(position)
    }

    /// Reads, and makes the stream's epoch if there was none.
    pub fn read(&mut self, ask: &HistoryAsk, now_ms: u64) -> Result<HistoryPage, HistoryError> {
        let Some(slot) = self.find(&ask.channel, now_ms) else {
            let top = Position { offset: 0, epoch: self.unused.epoch(&ask.channel) };
            check_epoch(ask.since, top.epoch)?;
            return Ok(HistoryPage::new(top, Vec::new()));
        };
        let stream = &self.streams[slot];
        let top = stream.top();
        check_epoch(ask.since, top.epoch)?;
        let mut publications: Vec<Arc<Stored>> = Vec::new();
        let mut bytes = 0;
        for stored in stream.range(ask.since.map(|since| since.offset), ask.order).take(ask.limit) {
            bytes += stored.bytes();
            publications.push(stored.clone());
            if bytes >= ask.bytes_max {
                break;
            }
        }
        Ok(HistoryPage::new(top, publications))
    }

    /// Drops a channel's publications; epoch and top offset stay.
    pub fn remove(&mut self, channel: &str) {
        if let Some(slot) = self.names.get(channel) {
            self.bytes -= self.streams[*slot].clear();
        }
    }

    /// Forgets what has expired, some of it at a time.
    pub fn on_tick(&mut self, now_ms: u64) {
        self.once.expire(now_ms);
        for slot in self.next_slots(SWEPT_PER_TICK) {
            let stream = &mut self.streams[slot];
            self.bytes -= stream.expire(now_ms);
            if stream.is_forgotten(now_ms) {
                self.forget(slot);
            }
        }
    }

    pub fn n_streams(&self) -> usize {
        self.streams.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn n_keys(&self) -> usize {
        self.once.len()
    }

    /// Streams and keys that went at a bound, before their time.
    pub fn n_evicted(&self) -> u64 {
        self.n_evicted + self.once.n_evicted()
    }

    /// The channel's stream, without what has expired.
    fn find(&mut self, channel: &str, now_ms: u64) -> Option<usize> {
        let slot = *self.names.get(channel)?;
        let stream = &mut self.streams[slot];
        self.bytes -= stream.expire(now_ms);
        if stream.is_forgotten(now_ms) {
            self.forget(slot);
            return None;
        }
        stream.touched_ms = now_ms;
        Some(slot)
    }

    /// The same; a new one if there is none.
    fn touch(&mut self, channel: &str, now_ms: u64) -> usize {
        if let Some(slot) = self.find(channel, now_ms) {
            return slot;
        }
        if self.streams.len() >= self.bounds.streams_max {
            self.evict(usize::MAX);
        }
        let mut stream = Stream::new(channel, self.unused.take(channel));
        stream.touched_ms = now_ms;
        let slot = self.streams.insert(stream);
        self.names.insert(channel.into(), slot);
        slot
    }

    /// Slots that are taken, from where the last call stopped, each at most once.
    fn next_slots(&mut self, n_max: usize) -> Vec<usize> {
        let end = self.streams.capacity();
        let n_taken = self.streams.len();
        let mut found = Vec::with_capacity(n_max.min(n_taken));
        for _ in 0..end {
            if found.len() == n_max.min(n_taken) {
                break;
            }
            self.cursor = if self.cursor + 1 < end { self.cursor + 1 } else { 0 };
            if self.streams.contains(self.cursor) {
                found.push(self.cursor);
            }
        }
        found
    }

    /// Makes room. Losing a whole stream is honest: its next epoch says so.
    fn evict(&mut self, but: usize) {
        let sample = self.next_slots(SAMPLE);
        let rested = |slot: &usize| self.streams[*slot].touched_ms;
        let victim = sample.into_iter().filter(|slot| *slot != but).min_by_key(rested);
        if let Some(slot) = victim {
            self.forget(slot);
            self.n_evicted += 1;
        }
    }

    fn forget(&mut self, slot: usize) {
        let stream = self.streams.remove(slot);
        self.bytes -= stream.bytes();
        self.names.remove(stream.channel());
    }
}

#[cfg(test)]
mod tests;
