//! What this node's clients are to Redis: what is to be written there, and what was.
//!
//! Owned by the broker thread; sans-I/O. An entry is one client in one channel. Whoever comes or goes is
//! queued; [`Ledger::take`] makes the next batch of changes, and [`Ledger::settle`] hears what became of it.
//! Batches go over one connection in order. What was written under an earlier life (see
//! `lua/presence.lua`) isn't known to be there any more: a walk over all entries queues it again.
//!
//! **Invariant:** an entry is there while its client is in the channel, and after that until Redis has
//! confirmed that it is gone, or was never told of it.
//! **Invariant:** what is told to Redis last of an entry is what is true, or the entry is queued, or the
//! walk hasn't reached it.
//! **Invariant:** a join is told once: with an entry that no life had before, or that others were told has
//! left; a leave once: with the removal of the entry.

use std::collections::VecDeque;
use std::sync::Arc;

use ahash::HashMap;
use slab::Slab;
use uuid::Uuid;

use crate::broker::presence::{Bounds, Member};
use crate::channel::Channel;

/// Changes of one batch, and their bytes: Redis serves others in between.
const CHANGES_MAX: usize = 64;
const BYTES_MAX: usize = 128 << 10;
/// Entries that a walk looks at for one batch.
const LOOKED_AT_MAX: usize = 4_096;
/// Channels whose keys are confirmed in one step.
const KEPT_MAX: usize = 64;

/// What Redis was told last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    Nothing,
    Here,
    Gone,
}

/// What became of the life before, when this one began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Before {
    /// Its entries are there, and are moved; or there was none.
    There,
    /// Redis lost it.
    Lost,
    /// It was taken for dead: its clients were told to have left.
    Reaped,
}

struct Entry {
    shard: usize,
    channel: Arc<Channel>,
    member: Box<Member>,
    is_here: bool,
    /// It went and came back, and neither is told yet.
    is_back: bool,
    told: Told,
    /// The life in which that was told; 0: in none that counts.
    told_in: u32,
    /// Redis has confirmed it.
    is_sure: bool,
    n_in_flight: u32,
    is_queued: bool,
}

#[derive(Default)]
struct Roll {
    entries: HashMap<Uuid, u32>,
    n_here: usize,
    n_queued: usize,
    kept_ms: u64,
}

/// Changes on their way.
pub struct Batch {
    life: u32,
    entries: Vec<u32>,
    /// What, channel, client and value, in turn.
    pub args: Vec<Vec<u8>>,
}

/// See the module.
pub struct Ledger {
    entries: Slab<Entry>,
    rolls: HashMap<Box<str>, Roll>,
    queue: VecDeque<u32>,
    /// Where the walk goes on; `None`: it is over.
    walked_to: Option<usize>,
    /// Where confirming keys goes on.
    kept_to: usize,
    life: u32,
    /// What was told up to this life Redis has lost; up to that one, others were told that it left.
    lost_to: u32,
    reaped_to: u32,
    /// Redis lacks what the walk hasn't reached.
    is_missed: bool,
    n_in_flight: usize,
    bytes: usize,
    n_refused: u64,
    bounds: Bounds,
}

impl Ledger {
    pub fn new(bounds: Bounds) -> Self {
        Self {
            entries: Slab::new(),
            rolls: HashMap::default(),
            queue: VecDeque::new(),
            walked_to: None,
            kept_to: 0,
            life: 0,
            lost_to: 0,
            reaped_to: 0,
            is_missed: false,
            n_in_flight: 0,
            bytes: 0,
            n_refused: 0,
            bounds,
        }
    }

    // --- who comes and goes

    /// A client came. False: there is no room to note it.
    pub fn enter(&mut self, shard: usize, channel: &Arc<Channel>, member: Box<Member>) -> bool {
        let known = self.rolls.get(&channel.name).and_then(|roll| roll.entries.get(&member.client));
        let Some(at) = known.copied() else { return self.add(shard, channel, member) };
        let entry = &mut self.entries[at as usize];
        self.bytes = self.bytes + member.bytes() - entry.member.bytes();
        entry.is_back |= !entry.is_here;
        let n_new = usize::from(!entry.is_here);
        (entry.shard, entry.member, entry.is_here) = (shard, member, true);
        self.roll(&channel.name).n_here += n_new;
        self.queue(at);
        true
    }

    fn add(&mut self, shard: usize, channel: &Arc<Channel>, member: Box<Member>) -> bool {
        if self.entries.len() >= self.bounds.entries_max
            || self.bytes + member.bytes() > self.bounds.bytes_max
        {
            self.n_refused += 1;
            return false;
        }
        self.bytes += member.bytes();
        let client = member.client;
        let at = self.entries.insert(Entry {
            shard,
            channel: channel.clone(),
            member,
            is_here: true,
            is_back: false,
            told: Told::Nothing,
            told_in: 0,
            is_sure: false,
            n_in_flight: 0,
            is_queued: false,
        }) as u32;
        let roll = self.rolls.entry(channel.name.clone()).or_default();
        roll.entries.insert(client, at);
        roll.n_here += 1;
        self.queue(at);
        true
    }

    /// A client went.
    pub fn leave(&mut self, channel: &str, client: Uuid) {
        let known = self.rolls.get(channel).and_then(|roll| roll.entries.get(&client)).copied();
        let Some(at) = known.filter(|at| self.entries[*at as usize].is_here) else { return };
        self.roll(channel).n_here -= 1;
        let entry = &mut self.entries[at as usize];
        entry.is_here = false;
        match entry.told {
            Told::Nothing => self.remove(at),
            _ => self.queue(at),
        }
    }

    /// All clients of a shard went with it.
    pub fn forget_shard(&mut self, shard: usize) {
        let of_shard = self.entries.iter().filter(|(_, entry)| entry.shard == shard);
        let gone: Vec<(Arc<Channel>, Uuid)> =
            of_shard.map(|(_, entry)| (entry.channel.clone(), entry.member.client)).collect();
        gone.into_iter().for_each(|(channel, client)| self.leave(&channel.name, client));
    }

    fn roll(&mut self, channel: &str) -> &mut Roll {
        self.rolls.get_mut(channel).expect("invariant: an entry's channel has a roll")
    }

    fn queue(&mut self, at: u32) {
        let entry = &mut self.entries[at as usize];
        if !std::mem::replace(&mut entry.is_queued, true) {
            self.queue.push_back(at);
            let channel = entry.channel.clone();
            self.roll(&channel.name).n_queued += 1;
        }
    }

    fn unqueue(&mut self, at: u32) {
        let entry = &mut self.entries[at as usize];
        if std::mem::take(&mut entry.is_queued) {
            let channel = entry.channel.clone();
            self.roll(&channel.name).n_queued -= 1;
        }
    }

    fn remove(&mut self, at: u32) {
        self.unqueue(at);
        let entry = self.entries.remove(at as usize);
        self.bytes -= entry.member.bytes();
        let roll = self.roll(&entry.channel.name);
        roll.entries.remove(&entry.member.client);
        if roll.entries.is_empty() {
            self.rolls.remove(&entry.channel.name);
        }
    }

    // --- to Redis

    /// A life begins: everything is to be written anew.
    pub fn begin(&mut self, before: Before) {
        match before {
            Before::There => {}
            Before::Lost => self.lost_to = self.life,
            Before::Reaped => self.reaped_to = self.life,
        }
        self.life += 1;
        self.walked_to = Some(0);
        self.is_missed |= before == Before::Lost;
    }

    /// Whether Redis has, or is about to be sent, all that it had before.
    pub fn is_whole(&self) -> bool {
        !self.is_missed
    }

    /// Whether all is written.
    pub fn is_settled(&self) -> bool {
        self.walked_to.is_none() && self.n_in_flight == 0 && self.queue.is_empty()
    }

    /// The next batch; `None`: there is nothing to be written.
    pub fn take(&mut self) -> Option<Batch> {
        self.walk();
        let mut batch = self.batch();
        while batch.has_room() {
            let Some(at) = self.queue.pop_front() else { break };
            self.change(at, &mut batch);
        }
        self.send(batch)
    }

    /// What is to be written of a channel before it is read: this node has at least its own.
    pub fn take_of(&mut self, channel: &str) -> Option<Batch> {
        let roll = self.rolls.get(channel).filter(|roll| roll.n_queued > 0)?;
        let queued = roll.entries.values().filter(|at| self.entries[**at as usize].is_queued);
        let queued: Vec<u32> = queued.copied().collect();
        let mut batch = self.batch();
        for at in queued {
            if !batch.has_room() {
                break;
            }
            self.change(at, &mut batch);
        }
        self.send(batch)
    }

    fn batch(&self) -> Batch {
        Batch { life: self.life, entries: Vec::new(), args: Vec::new() }
    }

    fn send(&mut self, batch: Batch) -> Option<Batch> {
        self.n_in_flight += usize::from(!batch.args.is_empty());
        (!batch.args.is_empty()).then_some(batch)
    }

    /// Queues what this life hasn't got.
    fn walk(&mut self) {
        let Some(from) = self.walked_to else { return };
        // Slots of removed entries, at the end, aren't counted by `len`.
        let end = self.entries.capacity();
        let to = end.min(from + LOOKED_AT_MAX);
        for at in from..to {
            if self.queue.len() >= 2 * CHANGES_MAX {
                self.walked_to = Some(at);
                return;
            }
            if self.entries.get(at).is_some_and(|entry| entry.told_in != self.life) {
                self.queue(at as u32);
            }
        }
        self.walked_to = (to < end).then_some(to);
        self.is_missed &= self.walked_to.is_some();
    }

    /// Puts what is to be told of an entry into a batch.
    fn change(&mut self, at: u32, batch: &mut Batch) {
        // It may be another one's by now, or was taken out of turn.
        let Some(entry) = self.entries.get(at as usize).filter(|entry| entry.is_queued) else {
            return;
        };
        let life = self.life;
        let is_told_now = entry.told_in == life;
        // It is gone with a life, and others were told of it, or weren't.
        let was_reaped = entry.told_in <= self.reaped_to;
        let was_lost = entry.told_in <= self.lost_to && entry.told_in > self.reaped_to;
        let is_told = entry.member.is_told;
        let n_args = batch.args.len();
        if (!entry.is_here || entry.is_back) && !(is_told_now && entry.told == Told::Gone) {
            let is_due = was_lost && entry.told == Told::Here;
            batch.push(if is_due && is_told { b"f" } else { b"l" }, entry);
        }
        if entry.is_here && (entry.is_back || !is_told_now || entry.told != Told::Here) {
            // Redis tells of it only if it doesn't find it.
            let is_new = entry.is_back || !entry.is_sure || was_reaped;
            batch.push(if is_new && is_told { b"j" } else { b"e" }, entry);
        }
        let is_news = batch.args.len() > n_args;
        self.unqueue(at);
        if !is_news {
            return self.remove_if_over(at);
        }
        let entry = &mut self.entries[at as usize];
        entry.told = if entry.is_here { Told::Here } else { Told::Gone };
        (entry.told_in, entry.is_back, entry.is_sure) = (life, false, false);
        entry.n_in_flight += 1;
        batch.entries.push(at);
    }

    /// What became of a batch. What failed, or perhaps did, is told again.
    pub fn settle(&mut self, batch: Batch, is_written: bool) {
        self.n_in_flight -= 1;
        for at in batch.entries {
            let entry = &mut self.entries[at as usize];
            entry.n_in_flight -= 1;
            if entry.told_in == batch.life {
                entry.is_sure = is_written;
                if !is_written {
                    entry.told_in = 0;
                    self.queue(at);
                }
            }
            self.remove_if_over(at);
        }
    }

    /// Redis has confirmed that a client is gone.
    fn remove_if_over(&mut self, at: u32) {
        let entry = &self.entries[at as usize];
        let is_over = !entry.is_here && entry.told == Told::Gone && entry.is_sure;
        if is_over && entry.n_in_flight == 0 {
            self.remove(at);
        }
    }

    /// The next channels whose keys are due to be confirmed, of a part of all entries.
    pub fn take_kept(&mut self, now_ms: u64, every_ms: u64, n_looked_at: usize) -> Vec<Vec<u8>> {
        let mut channels = Vec::new();
        let end = self.entries.capacity();
        for _ in 0..n_looked_at.min(end) {
            if channels.len() >= KEPT_MAX {
                break;
            }
            self.kept_to = (self.kept_to + 1) % end;
            let Some(entry) = self.entries.get(self.kept_to) else { continue };
            let channel = entry.channel.clone();
            let roll = self.roll(&channel.name);
            if roll.kept_ms + every_ms <= now_ms {
                roll.kept_ms = now_ms;
                channels.push(channel.name.as_bytes().to_vec());
            }
        }
        channels
    }

    // --- numbers

    /// Clients of this node in a channel.
    pub fn n_in(&self, channel: &str) -> usize {
        self.rolls.get(channel).map_or(0, |roll| roll.n_here)
    }

    pub fn n_entries(&self) -> usize {
        self.entries.len()
    }

    pub fn n_refused(&self) -> u64 {
        self.n_refused
    }
}

impl Batch {
    fn has_room(&self) -> bool {
        self.entries.len() < CHANGES_MAX && self.bytes() < BYTES_MAX
    }

    fn bytes(&self) -> usize {
        self.args.iter().map(Vec::len).sum()
    }

    fn push(&mut self, what: &[u8; 1], entry: &Entry) {
        let Member { client, info, is_told, .. } = &*entry.member;
        let told: &[u8] = if *is_told { b"1" } else { b"0" };
        self.args.extend([
            what.to_vec(),
            entry.channel.name.as_bytes().to_vec(),
            client.to_string().into_bytes(),
            [told, info].concat(),
        ]);
    }
}

#[cfg(test)]
mod tests;
