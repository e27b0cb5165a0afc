//! What the node counts, and the Prometheus page made of it.
//!
//! Every number has one writing thread, so counting is a plain load and store, never a locked
//! instruction; a scrape reads from any thread. Each shard's block is padded to its own cache
//! lines. **Invariant:** no label is ever chosen by a client.

mod page;
mod presence;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;
use tracing_appender::non_blocking::ErrorCounter;

use crate::admission::Refused;
pub use presence::PresenceMetrics;

/// A counter with one writing thread.
#[derive(Default, Debug)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A counter that any thread may write; only off the hot path.
#[derive(Default, Debug)]
pub struct SharedCount(AtomicU64);

impl SharedCount {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The close codes that have a series of their own; any other counts as `other`.
pub const CLOSE_CODES: [u16; 29] = [
    1000, 1001, 1002, 1003, 1007, 1009, 3000, 3001, 3003, 3004, 3005, 3006, 3008, 3009, 3010, 3011,
    3012, 3013, 3014, 3500, 3501, 3502, 3503, 3504, 3505, 3506, 3507, 3508, 3509,
];

/// Why something was dropped. Each is a loss that somebody chose; see the variants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drop {
    /// Frames queued for a slow consumer when it was cut (3008, 3009).
    SlowConsumer,
    /// A payload that isn't UTF-8, per cohort of JSON sessions.
    NotUtf8,
    /// A publication for a shard whose mailbox was full: a gap.
    MailboxFull,
    /// A publication from Redis while the inbox was full: a gap.
    InboxFull,
    /// A payload that claims to be hubbub's own and isn't, or is over the size bound.
    BadEnvelope,
    /// A publication over `HUB_PUBLICATION_BYTES_MAX` that came by plain `PUBLISH`.
    TooLarge,
    /// A message of `ws:control` that isn't one.
    BadControl,
    /// A message of another node while too many waited; or a command of the server API, once per shard
    /// that had no room for it.
    ControlFull,
    /// A join or leave for a shard whose mailbox was full.
    JoinLeave,
    /// A join or leave of a channel with more clients on this node than are told of any.
    TooManyToTell,
}

const DROPS: [(Drop, &str); 10] = [
    (Drop::SlowConsumer, "slow_consumer"),
    (Drop::NotUtf8, "not_utf8"),
    (Drop::MailboxFull, "mailbox_full"),
    (Drop::InboxFull, "inbox_full"),
    (Drop::BadEnvelope, "bad_envelope"),
    (Drop::TooLarge, "too_large"),
    (Drop::BadControl, "bad_control"),
    (Drop::ControlFull, "control_full"),
    (Drop::JoinLeave, "join_leave"),
    (Drop::TooManyToTell, "too_many_to_tell"),
];

/// Why the channels of this node may have missed something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gap {
    MailboxFull,
    InboxFull,
    /// The pub/sub link broke: each channel that was subscribed over it counts once.
    LinkLost,
    /// A publication's offset didn't follow the one before, or another stream began: counted by the
    /// shards that saw it.
    Offset,
    /// A stream turned out to be further, or another one, than what came: counted likewise.
    Behind,
}

const GAPS: [(Gap, &str); 5] = [
    (Gap::MailboxFull, "mailbox_full"),
    (Gap::InboxFull, "inbox_full"),
    (Gap::LinkLost, "link_lost"),
    (Gap::Offset, "offset"),
    (Gap::Behind, "behind"),
];

/// How a client's wish for what it missed ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recovery {
    Recovered,
    /// Trimmed, of another epoch, too much, or unknown.
    Lost,
}

const RECOVERIES: [(Recovery, &str); 2] =
    [(Recovery::Recovered, "recovered"), (Recovery::Lost, "lost")];

/// What one shard counts; written by its thread alone, but for the mailbox drops.
#[derive(Default, Debug)]
pub struct ShardMetrics {
    pub connections: Count,
    pub subscriptions: Count,
    pub channels: Count,
    pub cohorts: Count,
    pub outbox_bytes: Count,
    pub mailbox_depth: Count,
    pub http_connections: Count,
    /// API calls that wait for the broker.
    pub http_calls: Count,
    refused: [Count; 3],
    /// Connections closed to get under `HUB_OUTBOX_TOTAL_BYTES`.
    pub relieved: Count,
    pub commands_over_rate: Count,
    pub evicted_handshakes: Count,
    pub deliveries: Count,
    pub sent_bytes: Count,
    pub writes: Count,
    pub received_bytes: Count,
    pub commands: Count,
    pub mailbox_batches: Count,
    pub mailbox_items: Count,
    pub drops_slow_consumer: Count,
    pub drops_not_utf8: Count,
    pub drops_control_full: Count,
    /// Connections for which a command of the server API was carried out.
    pub controlled: Count,
    /// Server-side subscriptions that the API asked for and a session can't have.
    pub serves_refused: Count,
    /// By [`Recovery`].
    pub recoveries: [Count; RECOVERIES.len()],
    /// Publications that came again, or late, and weren't delivered.
    pub repeated: Count,
    pub position_checks: Count,
    pub gaps_offset: Count,
    pub gaps_behind: Count,
    /// Publications that a subscriber never got because a newer one took their place.
    pub conflated: Count,
    pub delayed: Count,
    pub delays_cut: Count,
    /// Turns of the ring of sessions that wrote, and those that took as many bytes as one may.
    pub turns: Count,
    pub full_turns: Count,
    /// What the last one cost, nanoseconds; nothing once there is nothing left to write.
    pub turn_ns: Count,
    /// Spent in pauses between them, nanoseconds.
    pub paused_ns: Count,
    /// Patches made here, their bytes, and those of the payloads that they stand for.
    pub patches: Count,
    pub patch_bytes: Count,
    pub patched_bytes: Count,
    pub panics: SharedCount,
    closes: [Count; CLOSE_CODES.len() + 1],
    /// When the shard last answered the broker's ping, milliseconds since the node's start.
    pub answered_ms: Count,
}

/// A thread that hasn't answered for so long is down, milliseconds.
const SILENCE_MS_MAX: u64 = 2_000;

impl ShardMetrics {
    /// Whether the shard has answered of late.
    pub fn is_up(&self, now_ms: u64) -> bool {
        self.answered_ms.get() >= now_ms.saturating_sub(SILENCE_MS_MAX)
    }

    pub fn on_refused(&self, refused: Refused) {
        self.refused[refused as usize].add(1);
    }

    pub fn on_close(&self, code: u16) {
        let at = CLOSE_CODES.iter().position(|known| *known == code).unwrap_or(CLOSE_CODES.len());
        self.closes[at].add(1);
    }
}

/// What the broker thread counts.
#[derive(Default, Debug)]
pub struct BrokerMetrics {
    pub publications: Count,
    pub drops: [Count; DROPS.len()],
    pub gaps: [Count; GAPS.len()],
    pub channels: Count,
    pub redis_subscriptions: Count,
    pub redis_connects: Count,
    pub redis_refused: Count,
    pub pubsub_up: Count,
    pub command_up: Count,
    pub inbox_bytes: Count,
    /// Spent in rests between two reads of the pub/sub link, nanoseconds.
    pub rested_ns: Count,
    /// What the embedded broker keeps.
    pub history_streams: Count,
    pub history_bytes: Count,
    pub idempotency_keys: Count,
    /// What of that went at a bound.
    pub history_evicted: Count,
    pub history_reads: Count,
    /// Of those, the ones that were answered with another's page.
    pub history_reads_shared: Count,
    /// Streams in Redis that were found damaged: each started a new epoch.
    pub history_resets: Count,
    /// What is remembered for `recovery = "cache"`.
    pub newest_bytes: Count,
    pub newest_refused: Count,
    pub chain_bytes: Count,
    pub chains_refused: Count,
    /// Messages of `ws:control` and of this node's own channel.
    pub control_messages: Count,
    /// Of those, the ones that only newer nodes understand.
    pub control_unknown: Count,
    pub surveys: Count,
    pub surveys_partial: Count,
    pub registry: RegistryMetrics,
    /// When the broker's loop last ran, milliseconds since the node's start.
    pub alive_ms: Count,
}

/// What of this node is in the connection registry.
#[derive(Default, Debug)]
pub struct RegistryMetrics {
    /// Whether the node's own entry was written at the last try.
    pub up: Count,
    /// Another live node has this one's id.
    pub conflict: Count,
    pub connections: Count,
    /// Writes and removals that are due at once.
    pub waiting: Count,
    pub writes: Count,
    pub removals: Count,
    /// Removals left to expire, for want of room while Redis was away.
    pub given_up: Count,
    pub failures: Count,
}

impl BrokerMetrics {
    /// Whether its loop has run of late.
    pub fn is_up(&self, now_ms: u64) -> bool {
        self.alive_ms.get() >= now_ms.saturating_sub(SILENCE_MS_MAX)
    }

    pub fn on_drop(&self, drop: Drop, n: u64) {
        self.drops[drop as usize].add(n);
    }

    pub fn n_gaps(&self) -> u64 {
        self.gaps.iter().map(Count::get).sum()
    }

    pub fn on_gap(&self, gap: Gap, n: u64) {
        self.gaps[gap as usize].add(n);
    }
}

/// What the listener counts.
#[derive(Default, Debug)]
pub struct ListenerMetrics {
    pub accepted: Count,
    pub refused: Count,
    pub reloads: Count,
    pub failed_reloads: Count,
    pub accept_errors: Count,
    /// Open sockets; set by the broker's tick.
    pub sockets: Count,
    /// How many there may be, and how many of them clients; set at the start.
    pub sockets_max: Count,
    pub connections_max: Count,
}

/// What the process's log counts, once it is started.
pub static LOG_LINES: OnceLock<ErrorCounter> = OnceLock::new();

/// All of a node's numbers.
#[derive(Debug)]
pub struct Metrics {
    pub shards: Box<[CachePadded<ShardMetrics>]>,
    pub broker: CachePadded<BrokerMetrics>,
    /// Written by the broker's thread too.
    pub presence: PresenceMetrics,
    pub listener: CachePadded<ListenerMetrics>,
}

impl Metrics {
    pub fn new(n_shards: usize) -> Self {
        Self {
            shards: (0..n_shards).map(|_| CachePadded::default()).collect(),
            broker: CachePadded::default(),
            presence: PresenceMetrics::default(),
            listener: CachePadded::default(),
        }
    }

    pub fn sum(&self, count: impl Fn(&ShardMetrics) -> &Count) -> u64 {
        self.shards.iter().map(|shard| count(shard).get()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_page_names_every_series() {
        let metrics = Arc::new(Metrics::new(2));
        metrics.shards[1].connections.set(3);
        metrics.shards[0].on_close(3008);
        metrics.shards[1].on_close(4242);
        metrics.broker.on_gap(Gap::LinkLost, 5);
        let page = metrics.page(0);
        for line in [
            "hubbub_connections{shard=\"1\"} 3",
            "hubbub_closes_total{code=\"3008\"} 1",
            "hubbub_closes_total{code=\"other\"} 1",
            "hubbub_gaps_total{reason=\"link_lost\"} 5",
            "hubbub_drops_total{reason=\"mailbox_full\"} 0",
            "hubbub_redis_up{link=\"pubsub\"} 0",
            "hubbub_publications_total 0",
        ] {
            assert!(page.contains(line), "{line} is missing in\n{page}");
        }
    }
}
