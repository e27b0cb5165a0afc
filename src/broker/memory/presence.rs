//! Who is here, of the embedded broker: the truth itself.
//!
//! Owned by the broker thread; sans-I/O.
//! **Invariant:** a channel is there while somebody is in it; `n_entries` and `bytes` are the sums over
//! all members.
//! **Invariant:** a user is counted as often as it has members in the channel.

use std::sync::Arc;

use ahash::HashMap;
use uuid::Uuid;

use crate::broker::presence::{Bounds, Counts, Member, Presence, PresenceError, Wanted};
use crate::channel::Channel;
use crate::protocol::Members;

struct Entry {
    shard: usize,
    member: Box<Member>,
}

struct Roll {
    channel: Arc<Channel>,
    entries: HashMap<Uuid, Entry>,
    users: HashMap<Box<str>, u32>,
}

/// See the module.
pub struct Attendance {
    rolls: HashMap<Box<str>, Roll>,
    n_entries: usize,
    bytes: usize,
    n_refused: u64,
    bounds: Bounds,
}

impl Attendance {
    pub fn new(bounds: Bounds) -> Self {
        Self { rolls: HashMap::default(), n_entries: 0, bytes: 0, n_refused: 0, bounds }
    }

    /// A client came; what was noted of it in this channel before is replaced. False: there is no room.
    pub fn enter(&mut self, shard: usize, channel: &Arc<Channel>, member: Box<Member>) -> bool {
        self.leave(&channel.name, member.client);
        if self.n_entries >= self.bounds.entries_max
            || self.bytes + member.bytes() > self.bounds.bytes_max
        {
            self.n_refused += 1;
            return false;
        }
        self.n_entries += 1;
        self.bytes += member.bytes();
        let roll = self.rolls.entry(channel.name.clone()).or_insert_with(|| Roll {
            channel: channel.clone(),
            entries: HashMap::default(),
            users: HashMap::default(),
        });
        *roll.users.entry(member.user.clone()).or_default() += 1;
        roll.entries.insert(member.client, Entry { shard, member });
        true
    }

    /// A client went; `None`: it wasn't here.
    pub fn leave(&mut self, channel: &str, client: Uuid) -> Option<Box<Member>> {
        let roll = self.rolls.get_mut(channel)?;
        let Entry { member, .. } = roll.entries.remove(&client)?;
        self.n_entries -= 1;
        self.bytes -= member.bytes();
        if let Some(n) = roll.users.get_mut(&member.user) {
            *n -= 1;
            if *n == 0 {
                roll.users.remove(&member.user);
            }
        }
        if roll.entries.is_empty() {
            self.rolls.remove(channel);
        }
        Some(member)
    }

    /// All clients of a shard went with it.
    pub fn forget_shard(&mut self, shard: usize) -> Vec<(Arc<Channel>, Box<Member>)> {
        let of_shard = |(client, entry): (&Uuid, &Entry)| (entry.shard == shard).then_some(*client);
        let gone: Vec<(Arc<Channel>, Uuid)> = self
            .rolls
            .values()
            .flat_map(|roll| {
                roll.entries
                    .iter()
                    .filter_map(of_shard)
                    .map(|client| (roll.channel.clone(), client))
            })
            .collect();
        gone.into_iter()
            .filter_map(|(channel, client)| {
                let member = self.leave(&channel.name, client)?;
                Some((channel, member))
            })
            .collect()
    }

    pub fn read(&self, channel: &str, wanted: Wanted) -> Result<Presence, PresenceError> {
        let roll = self.rolls.get(channel);
        match wanted {
            Wanted::Counts => {
                let counts = roll.map(|roll| Counts {
                    n_clients: roll.entries.len() as u64,
                    n_users: roll.users.len() as u64,
                });
                Ok(Presence::Counts(counts.unwrap_or_default()))
            }
            Wanted::Members { bytes_max } => {
                let mut members = Members::default();
                for Entry { member, .. } in roll.iter().flat_map(|roll| roll.entries.values()) {
                    members.push(&member.client.to_string(), &member.info);
                    if members.bytes() > bytes_max {
                        return Err(PresenceError::TooMany);
                    }
                }
                Ok(Presence::Members(members.finish()))
            }
        }
    }

    /// Clients in a channel.
    pub fn n_in(&self, channel: &str) -> usize {
        self.rolls.get(channel).map_or(0, |roll| roll.entries.len())
    }

    pub fn n_entries(&self) -> usize {
        self.n_entries
    }

    pub fn n_refused(&self) -> u64 {
        self.n_refused
    }
}

#[cfg(test)]
mod tests;
