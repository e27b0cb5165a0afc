//! What the hub promises, said naively: each session has its own queues of whole frames, and
//! everything else is counted by walking the sessions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::super::{Queued, SessionId, Variant, Visit};
use crate::channel::ChannelId;
use crate::publication::{Format, Patches, Publication};

pub type Checked<T> = Result<T, TestCaseError>;

/// One session and the client behind it.
pub struct Client {
    pub id: SessionId,
    pub format: Format,
    pub channels: BTreeMap<u32, Variant>,
    /// What it got last of the channels with delta.
    bases: BTreeMap<u32, u64>,
    /// `None`: not attached yet.
    pub fd: Option<i32>,
    pub lagging: bool,
    pub closing: bool,
    /// Became writable, or broke, and wasn't visited since: nobody has to have marked it.
    pub unmarked: bool,
    /// Until when all that is queued may wait, milliseconds.
    pub wait_ms: Option<u64>,
    own: VecDeque<Bytes>,
    log: VecDeque<Bytes>,
    /// Bytes of the first frame that the socket has.
    front_sent: usize,
}

impl Client {
    pub fn queued_bytes(&self) -> usize {
        let frames = self.own.iter().chain(&self.log);
        frames.map(Bytes::len).sum::<usize>() - self.front_sent
    }

    /// What was queued before the newest publication of those that are.
    pub fn queued_bytes_before(&self) -> usize {
        let newest = self.log.back().map_or(0, Bytes::len);
        let is_begun = self.own.is_empty() && self.log.len() == 1;
        self.queued_bytes() - if is_begun { newest - self.front_sent } else { newest }
    }

    /// Bytes up to the end of frame `n` of those queued, at most all.
    pub fn bytes_of_frames(&self, n: usize) -> usize {
        let frames = self.own.iter().chain(&self.log).take(n);
        frames.map(Bytes::len).sum::<usize>().saturating_sub(self.front_sent)
    }

    pub fn n_queued(&self) -> usize {
        self.own.len() + self.log.len()
    }

    pub fn own_is_empty(&self) -> bool {
        self.own.is_empty()
    }

    /// A frame that was begun is finished before what comes now.
    fn keep_partial(&mut self) {
        if self.own.is_empty() && self.front_sent > 0 {
            self.own.extend(self.log.pop_front());
        }
    }

    /// What was published to the set of channels so far keeps its place.
    fn change_channels(&mut self, change: impl FnOnce(&mut BTreeMap<u32, Variant>)) {
        self.wait_ms = None;
        self.own.extend(self.log.drain(..));
        change(&mut self.channels);
    }

    fn push(&mut self, frame: Bytes, due_ms: Option<u64>) {
        let waits = self.n_queued() == 0 || self.wait_ms.is_some();
        let due_ms = due_ms.filter(|_| waits);
        self.wait_ms = due_ms.map(|due| self.wait_ms.map_or(due, |before| before.min(due)));
        self.log.push_back(frame);
    }

    /// The socket took these bytes: the next ones of the expected frames, or the test fails.
    fn on_taken(&mut self, mut taken: &[u8]) -> Checked<()> {
        while !taken.is_empty() {
            let queue = if self.own.is_empty() { &mut self.log } else { &mut self.own };
            let Some(frame) = queue.front() else {
                return Err(TestCaseError::fail(format!("{} bytes too many", taken.len())));
            };
            let rest = &frame[self.front_sent..];
            let n = rest.len().min(taken.len());
            prop_assert!(rest[..n] == taken[..n], "other bytes than those of the next frame");
            taken = &taken[n..];
            self.front_sent += n;
            if n == rest.len() {
                self.front_sent = 0;
                queue.pop_front();
            }
        }
        Ok(())
    }
}

struct Open {
    id: ChannelId,
    delay_ms: u64,
    /// It is closed with its last subscriber, not before its first.
    had_subscriber: bool,
}

/// How the last call of a visit's write function ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    TookAll,
    Full,
    Gone,
}

#[derive(Default)]
pub struct Model {
    pub bound: usize,
    pub now_ms: u64,
    pub clients: Vec<Client>,
    open: BTreeMap<u32, Open>,
    /// Closed channels that weren't taken yet.
    pub emptied: Vec<ChannelId>,
    /// Whose empty set exists.
    formats: BTreeSet<u8>,
    pub deliveries: u64,
    pub dropped_frames: u64,
    pub skipped: u64,
    pub writes: u64,
    pub sent_bytes: u64,
}

impl Model {
    pub fn new(bound: usize) -> Self {
        Self { bound, ..Self::default() }
    }

    pub fn client(&mut self, id: SessionId) -> Option<&mut Client> {
        self.clients.iter_mut().find(|client| client.id == id)
    }

    pub fn client_at(&mut self, idx: u32) -> Option<&mut Client> {
        self.clients.iter_mut().find(|client| client.id.idx == idx)
    }

    pub fn add(&mut self, id: SessionId, format: Format) {
        self.formats.insert(format as u8);
        self.clients.push(Client {
            id,
            format,
            channels: BTreeMap::new(),
            bases: BTreeMap::new(),
            fd: None,
            lagging: false,
            closing: false,
            unmarked: false,
            wait_ms: None,
            own: VecDeque::new(),
            log: VecDeque::new(),
            front_sent: 0,
        });
    }

    pub fn remove(&mut self, id: SessionId) {
        self.clients.retain(|client| client.id != id);
        self.close_emptied();
    }

    // --- channels

    pub fn open(&mut self, id: ChannelId) {
        self.open.insert(id.slot, Open { id, delay_ms: 0, had_subscriber: false });
    }

    pub fn open_id(&self, slot: u32) -> Option<ChannelId> {
        self.open.get(&slot).map(|open| open.id)
    }

    pub fn set_delay(&mut self, slot: u32, ms: u64) {
        self.open.get_mut(&slot).into_iter().for_each(|open| open.delay_ms = ms);
    }

    pub fn n_open(&self) -> usize {
        self.open.len()
    }

    pub fn close_if_unused(&mut self, slot: u32) {
        if self.n_subscribers(slot) == 0
            && let Some(open) = self.open.remove(&slot)
        {
            self.emptied.push(open.id);
        }
    }

    fn close_emptied(&mut self) {
        let had_subscriber = |(slot, open): (&u32, &Open)| open.had_subscriber.then_some(*slot);
        let slots: Vec<u32> = self.open.iter().filter_map(had_subscriber).collect();
        slots.into_iter().for_each(|slot| self.close_if_unused(slot));
    }

    pub fn subscribe(&mut self, id: SessionId, slot: u32, variant: Variant) -> bool {
        let is_open = self.open.contains_key(&slot);
        let Some(client) = self.client(id) else { return false };
        if client.closing || !is_open || client.channels.contains_key(&slot) {
            return false;
        }
        client.change_channels(|channels| {
            channels.insert(slot, variant);
        });
        if let Some(open) = self.open.get_mut(&slot) {
            open.had_subscriber = true;
        }
        true
    }

    pub fn unsubscribe(&mut self, id: SessionId, slot: u32) -> bool {
        let Some(client) = self.client(id) else { return false };
        if !client.channels.contains_key(&slot) {
            return false;
        }
        client.change_channels(|channels| {
            channels.remove(&slot);
        });
        self.close_emptied();
        true
    }

    pub fn n_subscribers(&self, slot: u32) -> usize {
        self.clients.iter().filter(|client| client.channels.contains_key(&slot)).count()
    }

    pub fn n_subscriptions(&self) -> usize {
        self.clients.iter().map(|client| client.channels.len()).sum()
    }

    /// The different sets of channels, and the empty ones.
    pub fn n_cohorts(&self) -> usize {
        let sets = self.clients.iter().filter(|client| !client.channels.is_empty());
        let sets: BTreeSet<_> =
            sets.map(|client| (client.format as u8, &client.channels)).collect();
        sets.len() + self.formats.len()
    }

    /// Returns the frame bytes queued, counted once per set of channels.
    pub fn publish(&mut self, id: ChannelId, publication: &Publication) -> usize {
        if self.open_id(id.slot) != Some(id) {
            return 0;
        }
        let due_ms = self.open.get(&id.slot).map(|open| self.now_ms + open.delay_ms);
        let due_ms = due_ms.filter(|due| *due > self.now_ms);
        let mut sets = BTreeSet::new();
        let mut queued_bytes = 0;
        for client in &mut self.clients {
            let Some(variant) = client.channels.get(&id.slot).copied() else { continue };
            let is_first = sets.insert((client.format as u8, client.channels.clone()));
            let base = client.bases.get(&id.slot).copied().unwrap_or_default();
            let frame = match variant {
                Variant::Plain => publication.frame(client.format),
                Variant::Delta if publication.follows(base) => {
                    publication.patch_frame(&mut Patches::default())
                }
                Variant::Fresh | Variant::Delta => publication.whole_frame(),
            };
            if let Some(frame) = frame {
                client.push(frame.clone(), due_ms);
                client.bases.insert(id.slot, publication.serial());
                self.deliveries += 1;
                queued_bytes += if is_first { frame.len() } else { 0 };
            } else if is_first {
                self.skipped += 1;
            }
            if variant == Variant::Fresh && frame.is_some() {
                client.change_channels(|channels| {
                    channels.insert(id.slot, Variant::Delta);
                });
            }
        }
        queued_bytes
    }

    // --- one session

    pub fn push_own(&mut self, id: SessionId, frames: &[Bytes]) -> bool {
        let bound = self.bound;
        let Some(client) = self.client(id).filter(|client| !client.closing) else { return false };
        let waits = client.lagging || client.fd.is_none();
        if waits && client.queued_bytes() > bound {
            return false;
        }
        client.wait_ms = None;
        client.keep_partial();
        client.own.extend(frames.iter().cloned());
        true
    }

    pub fn close(&mut self, id: SessionId, close_frame: Bytes, queued: Queued) {
        let Some(client) = self.client(id).filter(|client| !client.closing) else { return };
        let mut n_dropped = 0;
        if queued == Queued::Drop {
            client.keep_partial();
            let n_kept = usize::from(client.front_sent > 0);
            n_dropped = client.n_queued() - n_kept;
            client.own.truncate(n_kept);
            client.log.clear();
        }
        client.change_channels(BTreeMap::clear);
        client.own.push_back(close_frame);
        client.closing = true;
        self.dropped_frames += n_dropped as u64;
        self.close_emptied();
    }

    /// What a visit returns that doesn't write.
    pub fn visit_later(&mut self, idx: u32) -> Option<Visit> {
        let bound = self.bound;
        let Some(client) = self.client_at(idx) else { return Some(Visit::Waiting) };
        let waits = client.lagging || client.fd.is_none();
        if waits && !client.closing && client.queued_bytes_before() > bound {
            return Some(Visit::OverBound);
        }
        waits.then_some(Visit::Waiting)
    }

    /// What a visit returns that wrote these bytes.
    pub fn on_visited(&mut self, idx: u32, taken: &[u8], end: End) -> Checked<Visit> {
        self.sent_bytes += taken.len() as u64;
        let Some(client) = self.client_at(idx) else {
            return Err(TestCaseError::fail("a write for a session that isn't there"));
        };
        client.on_taken(taken)?;
        client.wait_ms = None;
        client.lagging = end == End::Full;
        client.unmarked = end == End::Gone;
        Ok(match end {
            End::TookAll if client.closing => Visit::Closed,
            End::TookAll => Visit::CaughtUp,
            End::Full => Visit::Full,
            End::Gone => Visit::Gone,
        })
    }
}
