//! Who is here: noted by whichever broker there is, and told to the shards.

use std::sync::Arc;

use uuid::Uuid;

use super::Core;
use crate::broker::presence::{Change, Member, PresenceAsk, TOLD_MAX};
use crate::broker::survey::Asked;
use crate::channel::Channel;
use crate::metrics::Drop;
use crate::protocol::JoinOrLeave;
use crate::shard::ShardEvent;

impl Core {
    /// A client came to a channel. With Redis, its join comes back through the channel as others' do.
    pub(super) fn enter(&mut self, shard: usize, channel: &Arc<Channel>, member: Box<Member>) {
        if let Some(redis) = &self.redis {
            redis.enter(shard, channel, member);
            return self.report_presence();
        }
        let info = member.is_told.then(|| member.info.clone());
        let has_entered = self.memory.attendance.enter(shard, channel, member);
        if let Some(info) = info.filter(|_| has_entered) {
            self.hand_out_change(channel.name.as_bytes(), JoinOrLeave::Join, info);
        }
    }

    pub(super) fn leave(&mut self, channel: &Arc<Channel>, client: Uuid) {
        if let Some(redis) = &self.redis {
            return redis.leave(&channel.name, client);
        }
        if let Some(member) = self.memory.attendance.leave(&channel.name, client) {
            self.tell_gone(channel, *member);
        }
    }

    fn tell_gone(&mut self, channel: &Arc<Channel>, member: Member) {
        if member.is_told {
            self.hand_out_change(channel.name.as_bytes(), JoinOrLeave::Leave, member.info);
        }
    }

    /// A shard started afresh: nobody is there any more.
    pub(super) fn forget_members(&mut self, shard: usize) {
        if let Some(redis) = &self.redis {
            return redis.forget_members(shard);
        }
        for (channel, member) in self.memory.attendance.forget_shard(shard) {
            self.tell_gone(&channel, *member);
        }
    }

    pub(super) fn read_presence(&mut self, asked: Asked, ask: PresenceAsk) {
        self.node.metrics.presence.reads.add(1);
        if let Some(redis) = &self.redis {
            return redis.read_presence(asked, ask);
        }
        let Asked { shard, request } = asked;
        let result = self.memory.attendance.read(&ask.channel, ask.what).map(Arc::new);
        self.doors[shard].push(ShardEvent::Present { request, result });
    }

    /// A join or a leave goes to the shards that have the channel, behind the publications before it. It is
    /// dropped, and counted, where they are behind, or too many would be told: no channel has a gap for it,
    /// and who is here can still be asked.
    pub(super) fn hand_out_change(&mut self, channel: &[u8], what: JoinOrLeave, info: Box<[u8]>) {
        let Some(target) = self.interest.target(channel) else { return };
        let (id, shards) = (target.id, target.shards);
        let n_members = match &self.redis {
            Some(redis) => redis.n_members_in(&target.channel.name),
            None => self.memory.attendance.n_in(&target.channel.name),
        };
        if n_members > TOLD_MAX {
            self.node.metrics.broker.on_drop(Drop::TooManyToTell, 1);
            return;
        }
        let change = Arc::new(Change::new(target.channel.clone(), what, info));
        self.node.metrics.presence.changes.add(1);
        for shard in shards.iter() {
            let event = ShardEvent::Change { channel: id, change: change.clone() };
            if !self.doors[shard].try_push_change(event) {
                self.node.metrics.broker.on_drop(Drop::JoinLeave, 1);
            }
        }
    }

    pub(super) fn report_presence(&self) {
        let metrics = &self.node.metrics.presence;
        let attendance = &self.memory.attendance;
        let (n_entries, n_refused) = match &self.redis {
            Some(redis) => (redis.n_entries(), redis.n_entries_refused()),
            None => (attendance.n_entries(), attendance.n_refused()),
        };
        metrics.entries.set(n_entries as u64);
        metrics.refused.set(n_refused);
    }
}
