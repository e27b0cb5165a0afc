//! Which shard wants which channel, and how far each channel's subscription is.
//!
//! Owned by the broker thread; sans-I/O: time comes in, names to (un)subscribe go out.
//! Two sets meet here: what *should* be subscribed (some shard is interested, or the last one
//! left less than the unsubscribe delay ago) and what *is* subscribed (confirmed by Redis on the
//! current link). Whatever changes either set queues the channel; [`Interest::take_changes`]
//! turns queued channels into commands. Reconnection, resubscription and races between
//! subscribe and unsubscribe are all this one mechanism.
//!
//! **Invariant:** at most one command per channel is in flight, so the last confirmation of a
//! channel is about the last command.
//! **Invariant:** a shard is confirmed only while the channel is `Live` or was when it joined.

use std::borrow::Borrow;
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use ahash::HashMap;
use smallvec::SmallVec;

use crate::channel::{Channel, ChannelId};

/// Channels handed out for commands in one millisecond. Clients that ask for ever new names come in
/// bursts; handed on as one, a burst keeps a core for milliseconds, Redis's answers included, and
/// publications wait.
const CHANGES_PER_MS_MAX: usize = 32;

/// A set of shards; `HUB_SHARDS` is at most 128.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct ShardSet(u128);

impl ShardSet {
    pub fn insert(&mut self, shard: usize) {
        self.0 |= 1 << shard;
    }

    pub fn remove(&mut self, shard: usize) {
        self.0 &= !(1 << shard);
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let shard = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            Some(shard)
        })
    }
}

/// How far a channel is on the current link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Idle,
    Subscribing,
    Live,
    Unsubscribing,
    /// Redis won't let this node have it: until the next link, or until somebody asks anew.
    Refused,
}

struct Entry {
    id: ChannelId,
    channel: Arc<Channel>,
    /// Confirmed: these get publications.
    shards: ShardSet,
    /// Asked, not yet confirmed: the shard, and until when it waits, milliseconds.
    waiting: SmallVec<[(usize, u64); 1]>,
    stage: Stage,
    queued: bool,
    /// Until when an unused channel stays subscribed, milliseconds.
    linger_until_ms: u64,
}

impl Entry {
    fn is_used(&self) -> bool {
        !self.shards.is_empty() || !self.waiting.is_empty()
    }

    /// Has subscribers, from before the link broke, and isn't subscribed.
    fn is_lost(&self) -> bool {
        !self.shards.is_empty() && !matches!(self.stage, Stage::Live | Stage::Refused)
    }

    fn is_wanted(&self, now_ms: u64) -> bool {
        self.is_used() || now_ms < self.linger_until_ms
    }
}

#[derive(Clone)]
struct ByName(Arc<Channel>);

impl Borrow<[u8]> for ByName {
    fn borrow(&self) -> &[u8] {
        self.0.name.as_bytes()
    }
}
impl PartialEq for ByName {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}
impl Eq for ByName {}
impl Hash for ByName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name.as_bytes().hash(state);
    }
}

/// A channel that is live now.
pub struct Confirmed {
    pub id: ChannelId,
    pub channel: Arc<Channel>,
    /// These asked for it.
    pub shards: ShardSet,
    /// These had it before the link broke: what was published meanwhile they missed.
    pub resumed: ShardSet,
}

/// Where a publication of a channel goes.
pub struct Target<'a> {
    pub id: ChannelId,
    pub channel: &'a Arc<Channel>,
    pub shards: ShardSet,
}

/// Commands for Redis, by channel name.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Changes {
    pub subscribe: Vec<Box<str>>,
    pub unsubscribe: Vec<Box<str>>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.subscribe.is_empty() && self.unsubscribe.is_empty()
    }
}

/// See the module.
pub struct Interest {
    names: HashMap<ByName, u32>,
    entries: Vec<Option<Entry>>,
    generations: Vec<u32>,
    free: Vec<u32>,
    changed: VecDeque<u32>,
    lingering: VecDeque<(u64, ChannelId)>,
    deadlines: VecDeque<(u64, ChannelId, usize)>,
    n_live: usize,
    /// Channels that shards have subscribers of and the current link hasn't confirmed yet.
    n_lost: usize,
    /// What was handed out in this millisecond.
    taken_ms: u64,
    n_taken: usize,
    unsubscribe_delay_ms: u64,
    acquire_timeout_ms: u64,
}

impl Interest {
    pub fn new(unsubscribe_delay_ms: u64, acquire_timeout_ms: u64) -> Self {
        Self {
            names: HashMap::default(),
            entries: Vec::new(),
            generations: Vec::new(),
            free: Vec::new(),
            changed: VecDeque::new(),
            lingering: VecDeque::new(),
            deadlines: VecDeque::new(),
            n_live: 0,
            n_lost: 0,
            taken_ms: 0,
            n_taken: 0,
            unsubscribe_delay_ms,
            acquire_timeout_ms,
        }
    }

    /// Where a publication goes; `None` if nobody here wants it.
    pub fn target(&self, name: &[u8]) -> Option<Target<'_>> {
        let slot = *self.names.get(name)?;
        let entry = self.entries[slot as usize].as_ref().expect("invariant: a name has an entry");
        if entry.shards.is_empty() {
            return None;
        }
        Some(Target { id: entry.id, channel: &entry.channel, shards: entry.shards })
    }

    /// Whether a channel is, or is to be, subscribed.
    pub fn knows(&self, name: &str) -> bool {
        self.names.contains_key(name.as_bytes())
    }

    /// Whether any shard has a channel.
    pub fn has_shards(&self, id: ChannelId) -> bool {
        let entry = self.entries.get(id.slot as usize).and_then(Option::as_ref);
        entry.is_some_and(|entry| entry.id == id && !entry.shards.is_empty())
    }

    /// A shard's first subscriber of a channel. `Some` if the channel is live already.
    pub fn acquire(&mut self, name: &str, shard: usize, now_ms: u64) -> Option<Confirmed> {
        let slot = match self.names.get(name.as_bytes()) {
            Some(slot) => *slot,
            None => self.open(name),
        };
        let timeout_ms = self.acquire_timeout_ms;
        let entry = self.entry(slot);
        if entry.stage == Stage::Live {
            entry.shards.insert(shard);
            let mut shards = ShardSet::default();
            shards.insert(shard);
            return Some(Confirmed {
                id: entry.id,
                channel: entry.channel.clone(),
                shards,
                resumed: ShardSet::default(),
            });
        }
        entry.waiting.push((shard, now_ms + timeout_ms));
        let n_lost = usize::from(entry.stage == Stage::Refused && !entry.shards.is_empty());
        if entry.stage == Stage::Refused {
            entry.stage = Stage::Idle;
        }
        let id = entry.id;
        self.n_lost += n_lost;
        self.deadlines.push_back((now_ms + timeout_ms, id, shard));
        self.queue(slot);
        None
    }

    /// A shard's last subscriber left.
    pub fn release(&mut self, id: ChannelId, shard: usize, now_ms: u64) {
        let delay_ms = self.unsubscribe_delay_ms;
        let Some(entry) = self.entry_of(id) else { return };
        let was_lost = entry.is_lost();
        entry.shards.remove(shard);
        let n_found = usize::from(was_lost && !entry.is_lost());
        if !entry.is_used() {
            entry.linger_until_ms = now_ms + delay_ms;
            self.lingering.push_back((now_ms + delay_ms, id));
        }
        self.n_lost -= n_found;
    }

    /// A shard started afresh: it wants nothing any more.
    pub fn forget_shard(&mut self, shard: usize, now_ms: u64) {
        for slot in 0..self.entries.len() {
            if let Some(entry) = &mut self.entries[slot] {
                entry.waiting.retain(|(other, _)| *other != shard);
                let id = entry.id;
                self.release(id, shard, now_ms);
            }
        }
    }

    /// Redis confirmed a SUBSCRIBE.
    pub fn on_subscribed(&mut self, name: &[u8]) -> Option<Confirmed> {
        let slot = *self.names.get(name)?;
        let entry = self.entry(slot);
        if entry.stage != Stage::Subscribing {
            return None;
        }
        let n_found = usize::from(entry.is_lost());
        entry.stage = Stage::Live;
        let resumed = entry.shards;
        let mut waiting = ShardSet::default();
        for (shard, _) in std::mem::take(&mut entry.waiting) {
            waiting.insert(shard);
            entry.shards.insert(shard);
        }
        let channel = entry.channel.clone();
        let confirmed = Confirmed { id: entry.id, channel, shards: waiting, resumed };
        self.n_live += 1;
        self.n_lost -= n_found;
        self.queue(slot);
        (!confirmed.shards.is_empty() || !resumed.is_empty()).then_some(confirmed)
    }

    /// Redis refused a SUBSCRIBE for good. Returns the shards that waited for it; those that had
    /// it on an earlier link don't hold up the others.
    pub fn on_refused(&mut self, name: &[u8]) -> Option<(Arc<Channel>, ShardSet)> {
        let slot = *self.names.get(name)?;
        let entry = self.entry(slot);
        if entry.stage != Stage::Subscribing {
            return None;
        }
        let n_found = usize::from(entry.is_lost());
        entry.stage = Stage::Refused;
        let mut waiting = ShardSet::default();
        entry.waiting.drain(..).for_each(|(shard, _)| waiting.insert(shard));
        let channel = entry.channel.clone();
        self.n_lost -= n_found;
        self.queue(slot);
        Some((channel, waiting))
    }

    /// Redis confirmed an UNSUBSCRIBE.
    pub fn on_unsubscribed(&mut self, name: &[u8]) {
        let Some(slot) = self.names.get(name).copied() else { return };
        let entry = self.entry(slot);
        if entry.stage == Stage::Unsubscribing {
            entry.stage = Stage::Idle;
            self.queue(slot);
        }
    }

    /// The link broke: nothing is subscribed. Returns how many channels were.
    pub fn on_link_down(&mut self) -> usize {
        self.n_lost = 0;
        for slot in 0..self.entries.len() {
            if let Some(entry) = &mut self.entries[slot] {
                entry.stage = Stage::Idle;
                self.n_lost += usize::from(entry.is_lost());
                self.queue(slot as u32);
            }
        }
        std::mem::take(&mut self.n_live)
    }

    /// The oldest queued changes, at most `n_max` channels, and fewer if there were many in this
    /// millisecond; what a lost link had is as urgent as can be. Unwanted channels that aren't
    /// subscribed are forgotten here.
    pub fn take_changes(&mut self, n_max: usize, now_ms: u64) -> Changes {
        let mut changes = Changes::default();
        if self.taken_ms != now_ms {
            (self.taken_ms, self.n_taken) = (now_ms, 0);
        }
        let n_max = match self.is_restored() {
            true => n_max.min(CHANGES_PER_MS_MAX.saturating_sub(self.n_taken)),
            false => n_max,
        };
        while changes.subscribe.len() + changes.unsubscribe.len() < n_max {
            let Some(slot) = self.changed.pop_front() else { break };
            let Some(entry) = self.entries[slot as usize].as_mut() else { continue };
            entry.queued = false;
            match (entry.stage, entry.is_wanted(now_ms)) {
                (Stage::Idle, true) => {
                    entry.stage = Stage::Subscribing;
                    changes.subscribe.push(entry.channel.name.clone());
                }
                (Stage::Live, false) => {
                    entry.stage = Stage::Unsubscribing;
                    changes.unsubscribe.push(entry.channel.name.clone());
                    self.n_live -= 1;
                }
                (Stage::Idle | Stage::Refused, false) => self.close(slot),
                // In flight, or as it should be: the confirmation queues it again.
                _ => {}
            }
        }
        self.n_taken += changes.subscribe.len() + changes.unsubscribe.len();
        changes
    }

    pub fn has_changes(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Channels whose delay is over are queued; shards that waited too long come back.
    pub fn on_tick(&mut self, now_ms: u64) -> Vec<(Arc<Channel>, usize)> {
        let mut any_unwanted = false;
        while self.lingering.front().is_some_and(|(due_ms, _)| *due_ms <= now_ms) {
            let (_, id) = self.lingering.pop_front().expect("invariant: just seen");
            if self.entry_of(id).is_some_and(|entry| !entry.is_wanted(now_ms)) {
                self.queue(id.slot);
                any_unwanted = true;
            }
        }
        let mut expired = Vec::new();
        while self.deadlines.front().is_some_and(|(due_ms, ..)| *due_ms <= now_ms) {
            let (_, id, shard) = self.deadlines.pop_front().expect("invariant: just seen");
            let Some(entry) = self.entry_of(id) else { continue };
            let n_waiting = entry.waiting.len();
            // A deadline of an earlier wait that ended well says nothing about this one.
            entry.waiting.retain(|(other, due_ms)| *other != shard || now_ms < *due_ms);
            if entry.waiting.len() != n_waiting {
                expired.push((entry.channel.clone(), shard));
                self.queue(id.slot);
                any_unwanted = true;
            }
        }
        if any_unwanted {
            self.forget_unwanted(now_ms);
        }
        expired
    }

    /// While the link is down, or doesn't keep up, nothing is taken: new names that nobody waits
    /// for any more must not pile up until it does.
    fn forget_unwanted(&mut self, now_ms: u64) {
        for slot in std::mem::take(&mut self.changed) {
            match &self.entries[slot as usize] {
                Some(entry)
                    if matches!(entry.stage, Stage::Idle | Stage::Refused)
                        && !entry.is_wanted(now_ms) =>
                {
                    self.close(slot);
                }
                Some(_) => self.changed.push_back(slot),
                None => {}
            }
        }
    }

    /// Whether what was subscribed on an earlier link is subscribed again.
    pub fn is_restored(&self) -> bool {
        self.n_lost == 0
    }

    /// Channels that are subscribed.
    pub fn n_live(&self) -> usize {
        self.n_live
    }

    fn open(&mut self, name: &str) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.generations.push(0);
            self.entries.len() as u32 - 1
        });
        let generation = &mut self.generations[slot as usize];
        *generation = generation.wrapping_add(1);
        let id = ChannelId { slot, generation: *generation };
        let channel = Arc::new(Channel::new(name));
        self.names.insert(ByName(channel.clone()), slot);
        self.entries[slot as usize] = Some(Entry {
            id,
            channel,
            shards: ShardSet::default(),
            waiting: SmallVec::new(),
            stage: Stage::Idle,
            queued: false,
            linger_until_ms: 0,
        });
        slot
    }

    fn close(&mut self, slot: u32) {
        if let Some(entry) = self.entries[slot as usize].take() {
            self.names.remove(entry.channel.name.as_bytes());
            self.free.push(slot);
        }
    }

    fn queue(&mut self, slot: u32) {
        let entry = self.entry(slot);
        if !entry.queued {
            entry.queued = true;
            self.changed.push_back(slot);
        }
    }

    fn entry(&mut self, slot: u32) -> &mut Entry {
        self.entries[slot as usize].as_mut().expect("invariant: the slot is taken")
    }

    fn entry_of(&mut self, id: ChannelId) -> Option<&mut Entry> {
        self.entries.get_mut(id.slot as usize)?.as_mut().filter(|entry| entry.id == id)
    }
}

#[cfg(test)]
mod tests;
