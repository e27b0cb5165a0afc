//! What the broker's loop does about history: reads and removals, and what follows from these.

use std::sync::Arc;

use super::Core;
use crate::broker::history::HistoryAsk;
use crate::broker::survey::Asked;
use crate::shard::ShardEvent;

impl Core {
    pub(super) fn read_history(&mut self, asked: Asked, ask: HistoryAsk, now_ms: u64) {
        if let Some(redis) = self.redis.clone() {
            // What was published before it is to be seen.
            self.send_publishes();
            redis.read_history(asked, ask);
            return;
        }
        let Asked { shard, request } = asked;
        self.node.metrics.broker.history_reads.add(1);
        let result = self.memory.read(&ask, now_ms).map(Arc::new);
        self.doors[shard].push(ShardEvent::History { request, result });
    }

    pub(super) fn remove_history(&mut self, asked: Asked, channel: Box<str>) {
        if let Some(redis) = self.redis.clone() {
            self.send_publishes();
            redis.remove_history(asked, &channel);
            return;
        }
        let Asked { shard, request } = asked;
        self.memory.remove(&channel);
        self.on_removed(channel.as_bytes());
        self.doors[shard].push(ShardEvent::HistoryRemoved { request, result: Ok(()) });
    }

    /// Nobody is to see what was newest as the newest.
    pub(super) fn on_removed(&mut self, channel: &[u8]) {
        self.newest.on_removed(channel);
        let Some(target) = self.interest.target(channel) else { return };
        let (id, shards) = (target.id, target.shards);
        for shard in shards.iter() {
            self.doors[shard].push(ShardEvent::Emptied { channel: id });
        }
    }
}
