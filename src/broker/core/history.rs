//! History: reads and removals, by whichever broker there is.

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
        self.doors[shard].push(ShardEvent::HistoryRemoved { request, result: Ok(()) });
    }
}
