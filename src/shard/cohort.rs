//! Cohorts: the sessions of a shard with one wire format and one set of subscriptions. Those whose
//! sockets are full are in a cohort of their own, if one of the channels conflates.
//!
//! Owned by the shard's hub; sans-I/O. A subscription is a channel and a [`Share`] of it. A cohort is
//! found by the hash of its set, which is the xor of its subscriptions' random keys, so that adding
//! or taking one costs one xor; the set itself is compared before it is believed.
//!
//! **Invariant:** a cohort has one share of a channel.
//! **Invariant:** `channels[slot].cohorts[ref.at]` and `cohort.channels[at]` point at each other.
//! **Invariant:** a cohort has a member, except between its making and the join that follows,
//! and except the two empty sets, which are kept.

use std::collections::VecDeque;
use std::sync::Arc;

use ahash::{HashMap, RandomState};
use slab::Slab;
use smallvec::SmallVec;

use super::delay::Wait;
use super::dirty::DirtySet;
use super::hub::ChannelSlot;
use super::outbox::Outbox;
use super::spares::Spares;
use crate::channel::{Channel, ChannelId};
use crate::publication::Format;

/// A log is looked over for bytes that everyone has passed when it is this large, or
/// [`TRIM_BYTES_PER_MEMBER`] times its members: the walk over the members then costs less
/// than a hundredth of the writes that filled it.
const TRIM_BYTES_MIN: usize = 64 * 1024;
const TRIM_BYTES_PER_MEMBER: usize = 64;
/// A cohort of at least this many keeps its log's buffer while idle; those of smaller ones are spares.
const KEEP_BUFFER_MEMBERS_MIN: usize = 32;
const KEEP_BUFFER_BYTES_MAX: usize = 256 * 1024;

/// In which form a subscriber gets a channel's publications.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Variant {
    /// As they are.
    #[default]
    Plain,
    /// With delta, and without a base: the next one as a whole; then it is [`Variant::Delta`].
    Fresh,
    /// As patches against what the channel's subscribers on this shard got last.
    Delta,
}

/// What a subscriber gets of a channel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Share {
    pub variant: Variant,
    /// Joins and leaves too.
    pub is_told: bool,
}

impl Share {
    /// What a channel's key becomes.
    fn key(self, key: u64) -> u64 {
        key.rotate_left(21 * self.variant as u32 + 7 * u32::from(self.is_told))
    }
}

impl From<Variant> for Share {
    fn from(variant: Variant) -> Self {
        Self { variant, is_told: false }
    }
}

/// One cohort's place in a channel's list.
#[derive(Clone, Copy)]
pub struct CohortRef {
    pub cohort: u32,
    pub variant: Variant,
    pub is_told: bool,
}

/// A channel and the cohort's share of it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Subscription {
    slot: u32,
    share: Share,
}

type Set = SmallVec<[Subscription; 8]>;

/// One channel of a cohort, and where the cohort stands in that channel's list.
#[derive(Clone, Copy)]
pub struct ChannelRef {
    pub slot: u32,
    at: u32,
    share: Share,
}

/// Where a frame of a channel begins in a log.
#[derive(Clone, Copy)]
pub struct Mark {
    pub position: u64,
    /// [`Mark::NO_SLOT`]: a frame whose place no newer one takes.
    pub slot: u32,
}

impl Mark {
    pub const NO_SLOT: u32 = u32::MAX;
}

/// See the module.
pub struct Cohort {
    pub format: Format,
    /// Its members' sockets are, or just were, full: see `conflate`.
    pub is_conflating: bool,
    /// It has a channel that conflates: its log has marks.
    pub has_marks: bool,
    pub marks: VecDeque<Mark>,
    set_hash: u64,
    /// Sorted by slot.
    pub channels: SmallVec<[ChannelRef; 2]>,
    pub members: Vec<u32>,
    pub log: Outbox,
    /// Members whose position is before the log's end.
    pub n_behind: usize,
    /// Every member is in the dirty set (or waits for its socket).
    pub all_dirty: bool,
    pub trim_at: usize,
    /// Of the newest frame in the log.
    pub last_frame_bytes: usize,
    /// Once a publication of a channel with a delay came.
    pub wait: Option<Box<Wait>>,
}

impl Cohort {
    fn new(format: Format, is_conflating: bool, set_hash: u64) -> Self {
        Self {
            format,
            is_conflating,
            has_marks: false,
            marks: VecDeque::new(),
            set_hash,
            channels: SmallVec::new(),
            members: Vec::new(),
            log: Outbox::default(),
            n_behind: 0,
            all_dirty: false,
            trim_at: TRIM_BYTES_MIN,
            last_frame_bytes: 0,
            wait: None,
        }
    }

    /// Has every member visited.
    pub fn mark(&mut self, dirty: &mut DirtySet) {
        self.all_dirty = true;
        self.members.iter().for_each(|member| dirty.insert(*member));
    }

    /// Its share of a channel, if it has any.
    pub fn share(&self, slot: u32) -> Option<Share> {
        let found = self.channels.binary_search_by_key(&slot, |channel| channel.slot);
        found.ok().map(|at| self.channels[at].share)
    }

    fn set(&self) -> impl Iterator<Item = Subscription> {
        self.channels
            .iter()
            .map(|ChannelRef { slot, share, .. }| Subscription { slot: *slot, share: *share })
    }

    /// A member's position reached the end: the last one frees the log.
    pub fn on_caught_up(&mut self, spares: &mut Spares) {
        self.n_behind -= 1;
        if self.n_behind == 0 {
            if self.members.len() >= KEEP_BUFFER_MEMBERS_MIN {
                self.log.clear(KEEP_BUFFER_BYTES_MAX);
            } else {
                spares.put(self.log.take_buffer());
            }
            self.marks.clear();
            self.trim_at = TRIM_BYTES_MIN;
        }
    }

    /// Frees what is before `oldest`, the least position of a member.
    pub fn trim(&mut self, oldest: u64) {
        self.log.trim(oldest);
        let start = self.log.start();
        while self.marks.front().is_some_and(|mark| mark.position < start) {
            self.marks.pop_front();
        }
        self.trim_at = TRIM_BYTES_MIN
            .max(self.members.len() * TRIM_BYTES_PER_MEMBER)
            .max(2 * self.log.bytes());
    }

    fn is_set(&self, format: Format, is_conflating: bool, set: &[Subscription]) -> bool {
        self.format == format
            && self.is_conflating == is_conflating
            && self.set().eq(set.iter().copied())
    }
}

/// All cohorts of a shard and the index by channel.
#[derive(Default)]
pub struct Cohorts {
    pub cohorts: Slab<Cohort>,
    pub(super) channels: Vec<ChannelSlot>,
    pub spares: Spares,
    by_set: HashMap<u64, SmallVec<[u32; 2]>>,
    keys: RandomState,
    pub emptied: Vec<(ChannelId, Arc<Channel>)>,
    pub n_open: usize,
}

impl Cohorts {
    /// The cohort of sessions without a subscription.
    pub fn empty_set(&mut self, format: Format) -> u32 {
        self.find_or_make(format, false, format_key(format), &[])
    }

    /// The cohort with the set of `cohort`, and a share of `slot`.
    pub fn with(&mut self, cohort: u32, slot: u32, share: impl Into<Share>) -> u32 {
        let share = share.into();
        let from = &self.cohorts[cohort as usize];
        let (format, is_conflating) = (from.format, from.is_conflating);
        let key = self.channels[slot as usize].key;
        let before = from.share(slot).map_or(0, |before| before.key(key));
        let set_hash = from.set_hash ^ before ^ share.key(key);
        let mut set: Set = from.set().filter(|other| other.slot != slot).collect();
        let at = set.partition_point(|other| other.slot < slot);
        set.insert(at, Subscription { slot, share });
        self.find_or_make(format, is_conflating, set_hash, &set)
    }

    /// The cohort with the set of `cohort` but `slot`.
    pub fn without(&mut self, cohort: u32, slot: u32) -> u32 {
        let from = &self.cohorts[cohort as usize];
        let (format, is_conflating) = (from.format, from.is_conflating);
        let key = self.channels[slot as usize].key;
        let before = from.share(slot).map_or(0, |before| before.key(key));
        let set_hash = from.set_hash ^ before;
        let set: Set = from.set().filter(|other| other.slot != slot).collect();
        self.find_or_make(format, is_conflating, set_hash, &set)
    }

    /// The cohort of the same sessions' channels and format, conflating if this one isn't.
    pub fn twin(&mut self, cohort: u32) -> u32 {
        let from = &self.cohorts[cohort as usize];
        let (format, is_conflating) = (from.format, !from.is_conflating);
        let set_hash = from.set_hash ^ CONFLATING_KEY;
        let set: Set = from.set().collect();
        self.find_or_make(format, is_conflating, set_hash, &set)
    }

    fn find_or_make(
        &mut self,
        format: Format,
        is_conflating: bool,
        set_hash: u64,
        set: &[Subscription],
    ) -> u32 {
        let found = self.by_set.get(&set_hash).and_then(|candidates| {
            let is_it =
                |idx: &&u32| self.cohorts[**idx as usize].is_set(format, is_conflating, set);
            candidates.iter().find(is_it)
        });
        if let Some(idx) = found {
            return *idx;
        }
        let mut cohort = Cohort::new(format, is_conflating, set_hash);
        let idx = self.cohorts.vacant_key() as u32;
        for Subscription { slot, share } in set.iter().copied() {
            let Share { variant, is_told } = share;
            let channel = &mut self.channels[slot as usize];
            cohort.has_marks |= !is_conflating && channel.conflates;
            cohort.channels.push(ChannelRef { slot, at: channel.cohorts.len() as u32, share });
            channel.cohorts.push(CohortRef { cohort: idx, variant, is_told });
            channel.n_told += u32::from(is_told);
        }
        self.cohorts.insert(cohort);
        self.by_set.entry(set_hash).or_default().push(idx);
        idx
    }

    /// Forgets a cohort without members. Channels without another cohort are closed.
    pub fn remove(&mut self, idx: u32) {
        let cohort = &self.cohorts[idx as usize];
        if cohort.channels.is_empty() && !cohort.is_conflating {
            return; // The empty sets are kept: every new session starts in one.
        }
        let cohort = self.cohorts.remove(idx as usize);
        let candidates = self
            .by_set
            .get_mut(&cohort.set_hash)
            .expect("invariant: every cohort is found by its set");
        candidates.retain(|other| *other != idx);
        if candidates.is_empty() {
            self.by_set.remove(&cohort.set_hash);
        }
        for ChannelRef { slot, at, share } in cohort.channels {
            let channel = &mut self.channels[slot as usize];
            channel.n_told -= u32::from(share.is_told);
            let list = &mut channel.cohorts;
            list.swap_remove(at as usize);
            if let Some(moved) = list.get(at as usize) {
                let moved = &mut self.cohorts[moved.cohort as usize].channels;
                let found = moved.binary_search_by_key(&slot, |channel| channel.slot);
                moved[found.expect("invariant: a cohort in a channel's list has the channel")].at =
                    at;
            }
            self.close_if_unused(slot);
        }
    }

    pub fn open_channel(&mut self, id: ChannelId, channel: Arc<Channel>) {
        let at = id.slot as usize;
        if self.channels.len() <= at {
            self.channels.resize_with(at + 1, ChannelSlot::default);
        }
        let key = self.keys.hash_one((id.slot, id.generation));
        debug_assert!(self.channels[at].channel.is_none());
        self.channels[at] = ChannelSlot {
            generation: id.generation,
            key,
            channel: Some(channel),
            ..ChannelSlot::default()
        };
        self.n_open += 1;
    }

    pub fn is_open(&self, slot: u32) -> bool {
        self.channels.get(slot as usize).is_some_and(|entry| entry.channel.is_some())
    }

    pub fn close_if_unused(&mut self, slot: u32) {
        let entry = &mut self.channels[slot as usize];
        if entry.cohorts.is_empty()
            && entry.n_pins == 0
            && let Some(channel) = entry.channel.take()
        {
            entry.cohorts = Vec::new();
            entry.newest = Default::default();
            self.n_open -= 1;
            self.emptied.push((ChannelId { slot, generation: entry.generation }, channel));
        }
    }

    pub fn n_subscribers(&self, slot: u32) -> usize {
        let Some(entry) = self.channels.get(slot as usize) else { return 0 };
        entry.cohorts.iter().map(|cohort| self.cohorts[cohort.cohort as usize].members.len()).sum()
    }
}

/// Tells a conflating set from its twin.
const CONFLATING_KEY: u64 = 0xd1b5_4a32_d192_ed03;

fn format_key(format: Format) -> u64 {
    (format as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::TestCaseError;

    use super::*;

    impl Cohorts {
        /// The module's invariants, for the hub's tests too.
        pub fn check_inside(&self) -> Result<(), TestCaseError> {
            for (idx, cohort) in &self.cohorts {
                let idx = idx as u32;
                prop_assert!(!cohort.members.is_empty() || cohort.channels.is_empty());
                prop_assert!(cohort.channels.is_sorted_by(|a, b| a.slot < b.slot));
                let mut set_hash = format_key(cohort.format);
                set_hash ^= if cohort.is_conflating { CONFLATING_KEY } else { 0 };
                for ChannelRef { slot, at, share } in &cohort.channels {
                    let entry = &self.channels[*slot as usize];
                    let there = &entry.cohorts[*at as usize];
                    prop_assert_eq!(there.cohort, idx);
                    prop_assert_eq!(there.variant, share.variant);
                    prop_assert_eq!(there.is_told, share.is_told);
                    set_hash ^= share.key(entry.key);
                }
                prop_assert_eq!(cohort.set_hash, set_hash);
                prop_assert!(self.by_set[&set_hash].contains(&idx));
            }
            let n_refs: usize = self.channels.iter().map(|entry| entry.cohorts.len()).sum();
            let n_back: usize = self.cohorts.iter().map(|(_, cohort)| cohort.channels.len()).sum();
            prop_assert_eq!(n_refs, n_back);
            let n_found: usize = self.by_set.values().map(|found| found.len()).sum();
            prop_assert_eq!(n_found, self.cohorts.len());
            let is_whole =
                |entry: &ChannelSlot| entry.cohorts.is_empty() || entry.channel.is_some();
            prop_assert!(self.channels.iter().all(is_whole), "a cohort of a closed channel");
            for entry in &self.channels {
                let n_told = entry.cohorts.iter().filter(|cohort| cohort.is_told).count();
                prop_assert_eq!(entry.n_told as usize, n_told);
            }
            let n_open = self.channels.iter().filter(|entry| entry.channel.is_some()).count();
            prop_assert_eq!(self.n_open, n_open);
            Ok(())
        }
    }

    #[test]
    fn sets_with_one_hash_are_told_apart() {
        let mut cohorts = Cohorts::default();
        for slot in 0..3 {
            cohorts.open_channel(ChannelId { slot, generation: 1 }, Arc::new(Channel::new("any")));
            cohorts.channels[slot as usize].key = 0;
        }
        let empty = cohorts.empty_set(Format::Raw);
        let one = cohorts.with(empty, 1, Variant::Plain);
        let fresh = cohorts.with(empty, 1, Variant::Fresh);
        let two = cohorts.with(empty, 2, Variant::Plain);
        let both = cohorts.with(one, 2, Variant::Plain);
        let all = cohorts.with(both, 0, Variant::Plain);
        let told = cohorts.with(empty, 1, Share { is_told: true, ..Share::default() });
        let other_format = cohorts.empty_set(Format::Json);
        let mut different = vec![empty, one, fresh, two, both, all, told, other_format];
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), 8);
        assert_eq!(cohorts.with(two, 1, Variant::Plain), both, "whatever the order");
        assert_eq!(cohorts.with(one, 1, Variant::Fresh), fresh, "it changes its variant");
        assert_eq!(cohorts.with(fresh, 1, Variant::Plain), one);
        assert_eq!(cohorts.with(told, 1, Variant::Plain), one);
        assert_eq!(cohorts.without(told, 1), empty);
        assert_eq!(cohorts.without(fresh, 1), empty);
        assert_eq!(cohorts.without(all, 0), both);
        assert_eq!(cohorts.without(one, 1), empty);
    }

    #[test]
    fn a_channel_is_closed_with_its_last_cohort() {
        let mut cohorts = Cohorts::default();
        let id = ChannelId { slot: 3, generation: 7 };
        cohorts.open_channel(id, Arc::new(Channel::new("any")));
        let sets = [Format::Json, Format::Raw].map(|format| {
            let empty = cohorts.empty_set(format);
            cohorts.with(empty, 3, Variant::Plain)
        });
        cohorts.close_if_unused(3);
        assert!(cohorts.emptied.is_empty() && cohorts.is_open(3));
        cohorts.remove(sets[0]);
        assert!(cohorts.emptied.is_empty() && cohorts.is_open(3));
        cohorts.remove(sets[1]);
        assert_eq!(cohorts.emptied.len(), 1);
        assert_eq!(cohorts.emptied[0].0, id);
        assert!(!cohorts.is_open(3) && !cohorts.is_open(2) && !cohorts.is_open(4));
        cohorts.close_if_unused(3);
        assert_eq!((cohorts.emptied.len(), cohorts.n_open, cohorts.cohorts.len()), (1, 0, 2));
    }
}
