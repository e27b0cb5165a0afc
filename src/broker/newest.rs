//! The newest publication of each channel whose namespace has `recovery = "cache"`.
//!
//! Owned by the broker thread; sans-I/O. A plain `PUBLISH` leaves nothing behind that could be read
//! later, so the node remembers what it saw: for a channel that it is subscribed to, from the first
//! subscriber on until the subscription ends or something may have been missed.
//!
//! **Invariant:** what is here is the newest that was handed out, so it is never older than what a
//! shard that has the channel has delivered.
//! **Invariant:** at most `bytes_max` of payload; over it a channel's newest is not known, and counted.

use std::sync::Arc;

use ahash::HashMap;

use crate::position::Position;
use crate::publication::{Body, Publication};

/// Payload of the newest publications of channels with `recovery = "cache"`.
pub const BYTES_MAX: usize = 256 << 20;
/// How often those of channels that are gone are looked for, milliseconds.
const SWEEP_MS: u64 = 10_000;

/// See the module.
pub struct Newest {
    by_name: HashMap<Box<str>, Option<Arc<Publication>>>,
    bytes: usize,
    bytes_max: usize,
    n_refused: u64,
    swept_ms: u64,
}

impl Newest {
    pub fn new(bytes_max: usize) -> Self {
        Self { by_name: HashMap::default(), bytes: 0, bytes_max, n_refused: 0, swept_ms: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// From now on the channel's newest is remembered.
    pub fn watch(&mut self, name: &str) {
        if !self.by_name.contains_key(name) {
            self.by_name.insert(name.into(), None);
        }
    }

    pub fn of(&self, name: &str) -> Option<Arc<Publication>> {
        self.by_name.get(name)?.clone()
    }

    /// A publication was handed out.
    pub fn on_publication(&mut self, name: &str, publication: &Arc<Publication>) {
        let Some(newest) = self.by_name.get_mut(name) else { return };
        self.bytes -= newest.take().map_or(0, |old| old.payload_bytes());
        if self.bytes + publication.payload_bytes() > self.bytes_max {
            self.n_refused += 1;
            return;
        }
        self.bytes += publication.payload_bytes();
        *newest = Some(publication.clone());
    }

    /// One came while no shard had the channel: it is the newest all the same.
    pub fn on_unheard(&mut self, name: &[u8], body: Body, position: Position) {
        let Ok(name) = std::str::from_utf8(name) else { return };
        if let Some(newest) = self.of(name) {
            let publication = Publication::at(newest.channel().clone(), body, position);
            self.on_publication(name, &Arc::new(publication));
        }
    }

    /// A channel's history was removed.
    pub fn on_removed(&mut self, name: &[u8]) {
        let newest = std::str::from_utf8(name).ok().and_then(|name| self.by_name.get_mut(name));
        let newest = newest.and_then(Option::take);
        self.bytes -= newest.map_or(0, |newest| newest.payload_bytes());
    }

    /// Something may have been missed, of whatever channel.
    pub fn on_gap(&mut self) {
        self.by_name.values_mut().for_each(|newest| *newest = None);
        self.bytes = 0;
    }

    /// The subscription ends.
    pub fn forget(&mut self, name: &str) {
        let newest = self.by_name.remove(name).flatten();
        self.bytes -= newest.map_or(0, |newest| newest.payload_bytes());
    }

    /// Forgets, from time to time, the channels that were asked for and never subscribed.
    pub fn sweep(&mut self, now_ms: u64, mut is_known: impl FnMut(&str) -> bool) {
        if now_ms < self.swept_ms + SWEEP_MS {
            return;
        }
        self.swept_ms = now_ms;
        let gone: Vec<Box<str>> =
            self.by_name.keys().filter(|name| !is_known(name)).cloned().collect();
        gone.iter().for_each(|name| self.forget(name));
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Publications that weren't remembered, at the bound.
    pub fn n_refused(&self) -> u64 {
        self.n_refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Channel;

    fn publication(name: &str, bytes: usize) -> Arc<Publication> {
        let channel = Arc::new(Channel::new(name));
        Arc::new(Publication::new(channel, Body::plain(vec![b'x'; bytes])))
    }

    #[test]
    fn only_what_is_watched_is_kept_within_the_bound() {
        let mut newest = Newest::new(10);
        newest.on_publication("a", &publication("a", 1));
        assert!(newest.of("a").is_none() && newest.is_empty());
        newest.watch("a");
        newest.watch("b");
        newest.on_publication("a", &publication("a", 8));
        newest.watch("a");
        assert_eq!(newest.of("a").map(|it| it.payload_bytes()), Some(8));
        newest.on_publication("b", &publication("b", 3));
        assert!(newest.of("b").is_none(), "no room");
        newest.on_publication("a", &publication("a", 5));
        newest.on_publication("b", &publication("b", 3));
        assert_eq!((newest.bytes(), newest.n_refused()), (8, 1));
        newest.on_unheard(b"b", Body::plain(b"yy".to_vec()), Position::default());
        assert_eq!(newest.of("b").map(|it| it.payload_bytes()), Some(2));
        newest.on_removed(b"b");
        newest.on_removed(b"c");
        assert!(newest.of("b").is_none() && newest.bytes() == 5);
        newest.on_gap();
        assert!(newest.of("a").is_none() && newest.bytes() == 0);
        newest.on_publication("a", &publication("a", 5));
        newest.sweep(SWEEP_MS - 1, |_| false);
        assert_eq!(newest.bytes(), 5, "not yet");
        newest.sweep(SWEEP_MS, |name| name == "b");
        assert_eq!((newest.bytes(), newest.by_name.len()), (0, 1));
    }
}
