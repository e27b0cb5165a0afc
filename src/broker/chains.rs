//! Chains: which publication the patches of a channel are against.
//!
//! Owned by the broker thread; sans-I/O. A channel has a chain from the first subscription with
//! delta on this node until its last subscriber here has left; the others cost one look at a slot.
//! In a chain every publication carries its number and the payload before it, so a patch is made
//! once per node, by the first shard that needs it. Whether its base is what a shard's subscribers
//! got last is the shard's to compare: what was dropped on the way to it (a full mailbox) is no
//! reason for a broken patch.
//!
//! **Invariant:** what is kept is at most one payload a chain, none over [`Bounds::payload_bytes_max`],
//! all together within [`Bounds::bytes_max`]. Over either the next publication has no patch; the
//! latter is counted.
//! **Invariant:** a payload that no JSON session gets is nobody's base.

use crate::channel::ChannelId;
use crate::publication::{Base, Link, Publication};

/// How much is kept at the most, and patched.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub payload_bytes_max: usize,
    pub bytes_max: usize,
}

struct Chain {
    id: ChannelId,
    newest: Option<Base>,
}

impl Chain {
    fn bytes(&self) -> usize {
        self.newest.as_ref().map_or(0, |base| base.payload.bytes().len())
    }
}

/// Patches of larger payloads would take long, and save little of what they say anew.
pub const BOUNDS: Bounds = Bounds { payload_bytes_max: 64 << 10, bytes_max: 64 << 20 };

/// See the module.
pub struct Chains {
    bounds: Bounds,
    by_slot: Vec<Option<Chain>>,
    bytes: usize,
    serial: u64,
    n_refused: u64,
}

impl Chains {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, by_slot: Vec::new(), bytes: 0, serial: 0, n_refused: 0 }
    }

    /// Begins a channel's chain, if it has none.
    pub fn begin(&mut self, id: ChannelId) {
        let at = id.slot as usize;
        if self.by_slot.len() <= at {
            self.by_slot.resize_with(at + 1, || None);
        }
        if self.by_slot[at].as_ref().is_none_or(|chain| chain.id != id) {
            self.end(at);
            self.by_slot[at] = Some(Chain { id, newest: None });
        }
    }

    /// Ends the chains of channels that nobody here has any more.
    pub fn retain(&mut self, is_used: impl Fn(ChannelId) -> bool) {
        for at in 0..self.by_slot.len() {
            if self.by_slot[at].as_ref().is_some_and(|chain| !is_used(chain.id)) {
                self.end(at);
            }
        }
    }

    /// Ends a channel's chain.
    pub fn forget(&mut self, id: ChannelId) {
        let at = id.slot as usize;
        if self.by_slot.get(at).is_some_and(|it| it.as_ref().is_some_and(|it| it.id == id)) {
            self.end(at);
        }
    }

    fn end(&mut self, at: usize) {
        self.bytes -= self.by_slot[at].take().map_or(0, |chain| chain.bytes());
    }

    /// Makes a channel's newest publication the next of its chain, if it has one.
    pub fn link(&mut self, id: ChannelId, publication: &mut Publication) {
        let chain = self.by_slot.get_mut(id.slot as usize).and_then(Option::as_mut);
        let Some(chain) = chain.filter(|chain| chain.id == id) else { return };
        self.serial += 1;
        let bytes = publication.payload_bytes();
        let fits = bytes <= self.bounds.payload_bytes_max;
        let base = chain.newest.clone().filter(|_| fits);
        let newest = publication.chain(Link { serial: self.serial, base });
        if fits && std::str::from_utf8(newest.payload.bytes()).is_err() {
            return;
        }
        self.bytes -= chain.bytes();
        chain.newest = None;
        if fits && self.bytes + bytes > self.bounds.bytes_max {
            self.n_refused += 1;
        } else if fits {
            self.bytes += bytes;
            chain.newest = Some(newest);
        }
    }

    /// Of the payloads that are kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Publications that weren't kept since all together were too many.
    pub fn n_refused(&self) -> u64 {
        self.n_refused
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::channel::Channel;
    use crate::publication::{Body, Patches};

    const BOUNDS: Bounds = Bounds { payload_bytes_max: 100, bytes_max: 150 };

    fn id(slot: u32, generation: u32) -> ChannelId {
        ChannelId { slot, generation }
    }

    fn publish(chains: &mut Chains, id: ChannelId, payload: &[u8]) -> Publication {
        let channel = Arc::new(Channel::new("any"));
        let mut publication = Publication::new(channel, Body::plain(payload.to_vec()));
        chains.link(id, &mut publication);
        publication
    }

    /// Numbers of a publication and of its base.
    #[track_caller]
    fn check(publication: &Publication, serial: u64, base: Option<u64>) {
        assert_eq!(publication.serial(), serial);
        let follows: Vec<u64> = (0..20).filter(|serial| publication.follows(*serial)).collect();
        assert_eq!(follows, Vec::from_iter(base));
    }

    #[test]
    fn only_wanted_channels_have_a_chain() {
        let mut chains = Chains::new(BOUNDS);
        check(&publish(&mut chains, id(3, 1), b"a"), 0, None);
        chains.begin(id(3, 1));
        check(&publish(&mut chains, id(3, 1), b"b"), 1, None);
        check(&publish(&mut chains, id(2, 1), b"b"), 0, None);
        chains.begin(id(3, 1));
        check(&publish(&mut chains, id(3, 1), b"c"), 2, Some(1));
        chains.begin(id(3, 2));
        check(&publish(&mut chains, id(3, 1), b"d"), 0, None);
        check(&publish(&mut chains, id(3, 2), b"e"), 3, None);
        chains.forget(id(3, 1));
        check(&publish(&mut chains, id(3, 2), b"f"), 4, Some(3));
        chains.retain(|id| id.generation != 2);
        check(&publish(&mut chains, id(3, 2), b"g"), 0, None);
        assert_eq!(chains.bytes(), 0);
    }

    #[test]
    fn what_json_cannot_carry_is_no_base() {
        let mut chains = Chains::new(BOUNDS);
        chains.begin(id(0, 1));
        check(&publish(&mut chains, id(0, 1), b"a"), 1, None);
        let skipped = publish(&mut chains, id(0, 1), b"\xff");
        assert!(skipped.whole_frame().is_none());
        assert!(skipped.patch_frame(&mut Patches::default()).is_none());
        check(&publish(&mut chains, id(0, 1), b"b"), 3, Some(1));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut chains = Chains::new(BOUNDS);
        (0..3).for_each(|slot| chains.begin(id(slot, 1)));
        publish(&mut chains, id(0, 1), &[b'a'; 100]);
        check(&publish(&mut chains, id(0, 1), &[b'a'; 101]), 2, None);
        check(&publish(&mut chains, id(0, 1), &[b'a'; 90]), 3, None);
        assert_eq!((chains.bytes(), chains.n_refused()), (90, 0));
        publish(&mut chains, id(1, 1), &[b'a'; 60]);
        check(&publish(&mut chains, id(2, 1), b"b"), 5, None);
        assert_eq!((chains.bytes(), chains.n_refused()), (150, 1));
        check(&publish(&mut chains, id(2, 1), b""), 6, None);
        check(&publish(&mut chains, id(1, 1), &[b'a'; 61]), 7, Some(4));
        assert_eq!((chains.bytes(), chains.n_refused()), (90, 2));
        check(&publish(&mut chains, id(1, 1), b""), 8, None);
    }
}
