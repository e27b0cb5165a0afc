//! What the node counts, and the Prometheus page made of it.
//!
//! Every number has one writing thread, so counting is a plain load and store, never a locked
//! instruction; a scrape reads from any thread. Each shard's block is padded to its own cache
//! lines. **Invariant:** no label is ever chosen by a client.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crossbeam::utils::CachePadded;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tracing_appender::non_blocking::ErrorCounter;

use crate::admission::Refused;

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
}

const DROPS: [(Drop, &str); 6] = [
    (Drop::SlowConsumer, "slow_consumer"),
    (Drop::NotUtf8, "not_utf8"),
    (Drop::MailboxFull, "mailbox_full"),
    (Drop::InboxFull, "inbox_full"),
    (Drop::BadEnvelope, "bad_envelope"),
    (Drop::TooLarge, "too_large"),
];

/// Why the channels of this node may have missed something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gap {
    MailboxFull,
    InboxFull,
    /// The pub/sub link broke: each channel that was subscribed over it counts once.
    LinkLost,
}

const GAPS: [(Gap, &str); 3] = [
    (Gap::MailboxFull, "mailbox_full"),
    (Gap::InboxFull, "inbox_full"),
    (Gap::LinkLost, "link_lost"),
];

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
    /// Patches made here, their bytes, and those of the payloads that they stand for.
    pub patches: Count,
    pub patch_bytes: Count,
    pub patched_bytes: Count,
    pub panics: SharedCount,
    closes: [Count; CLOSE_CODES.len() + 1],
    /// When the shard last answered the broker's ping, milliseconds since the node's start.
    pub answered_ms: Count,
}

impl ShardMetrics {
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
    pub chain_bytes: Count,
    pub chains_refused: Count,
    /// When the broker's loop last ran, milliseconds since the node's start.
    pub alive_ms: Count,
}

impl BrokerMetrics {
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
}

/// What the process's log counts, once it is started.
pub static LOG_LINES: OnceLock<ErrorCounter> = OnceLock::new();

/// All of a node's numbers.
#[derive(Debug)]
pub struct Metrics {
    pub shards: Box<[CachePadded<ShardMetrics>]>,
    pub broker: CachePadded<BrokerMetrics>,
    pub listener: CachePadded<ListenerMetrics>,
}

impl Metrics {
    pub fn new(n_shards: usize) -> Self {
        Self {
            shards: (0..n_shards).map(|_| CachePadded::default()).collect(),
            broker: CachePadded::default(),
            listener: CachePadded::default(),
        }
    }

    pub fn sum(&self, count: impl Fn(&ShardMetrics) -> &Count) -> u64 {
        self.shards.iter().map(|shard| count(shard).get()).sum()
    }

    /// The Prometheus text page.
    pub fn page(self: &Arc<Self>) -> String {
        let mut registry = Registry::with_prefix("hubbub");
        registry.register_collector(Box::new(Page(self.clone())));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)
            .expect("invariant: writing to a String");
        text
    }
}

#[derive(Debug)]
struct Page(Arc<Metrics>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByShard {
    shard: usize,
}
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCode {
    code: String,
}
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByLink {
    link: &'static str,
}

type ShardCount = fn(&ShardMetrics) -> &Count;

const SHARD_GAUGES: [(&str, &str, ShardCount); 7] = [
    ("connections", "Client connections.", |shard| &shard.connections),
    ("subscriptions", "Subscriptions of clients.", |shard| &shard.subscriptions),
    ("channels", "Channels with a subscriber.", |shard| &shard.channels),
    ("cohorts", "Groups of sessions with one format and one set of channels.", |shard| {
        &shard.cohorts
    }),
    ("outbox_bytes", "Bytes queued for clients.", |shard| &shard.outbox_bytes),
    ("mailbox_depth", "Items in the shard's mailbox.", |shard| &shard.mailbox_depth),
    ("http_connections", "Connections that are not WebSockets (yet).", |shard| {
        &shard.http_connections
    }),
];

const SHARD_COUNTERS: [(&str, &str, ShardCount); 11] = [
    ("deliveries", "Publications queued for a subscriber.", |shard| &shard.deliveries),
    ("sent_bytes", "Bytes written to clients.", |shard| &shard.sent_bytes),
    ("writes", "Writes to client sockets; deliveries by writes is the group size.", |shard| {
        &shard.writes
    }),
    ("received_bytes", "Bytes read from clients.", |shard| &shard.received_bytes),
    ("commands", "Client commands handled.", |shard| &shard.commands),
    ("commands_over_rate", "Client commands refused over the rate.", |shard| {
        &shard.commands_over_rate
    }),
    ("mailbox_batches", "Batches taken from the mailbox.", |shard| &shard.mailbox_batches),
    ("mailbox_items", "Items taken from the mailbox; by batches is the batch size.", |shard| {
        &shard.mailbox_items
    }),
    ("patches", "Fossil patches made, one a publication.", |shard| &shard.patches),
    ("patch_bytes", "Bytes of these patches.", |shard| &shard.patch_bytes),
    ("patched_bytes", "Bytes of the payloads that they stand for.", |shard| &shard.patched_bytes),
];

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let metrics = &self.0;
        for (name, help, count) in SHARD_GAUGES {
            family(
                &mut encoder,
                name,
                help,
                metrics.shards.iter().enumerate().map(|(shard, block)| {
                    (ByShard { shard }, ConstGauge::new(count(block).get() as i64))
                }),
            )?;
        }
        for (name, help, count) in SHARD_COUNTERS {
            family(
                &mut encoder,
                name,
                help,
                metrics.shards.iter().enumerate().map(|(shard, block)| {
                    (ByShard { shard }, ConstCounter::new(count(block).get()))
                }),
            )?;
        }
        family(
            &mut encoder,
            "shard_panics",
            "Times a shard was started afresh.",
            metrics
                .shards
                .iter()
                .enumerate()
                .map(|(shard, block)| (ByShard { shard }, ConstCounter::new(block.panics.get()))),
        )?;
        self.encode_losses(&mut encoder)?;
        self.encode_closes(&mut encoder)?;
        self.encode_node(&mut encoder)
    }
}

impl Page {
    fn encode_losses(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Metrics { shards, broker, .. } = &*self.0;
        family(
            encoder,
            "drops",
            "What was dropped, by reason.",
            DROPS.iter().map(|(drop, reason)| {
                let by_shards = shards.iter().map(|shard| match drop {
                    Drop::SlowConsumer => shard.drops_slow_consumer.get(),
                    Drop::NotUtf8 => shard.drops_not_utf8.get(),
                    _ => 0,
                });
                let n = broker.drops[*drop as usize].get() + by_shards.sum::<u64>();
                (ByReason { reason }, ConstCounter::new(n))
            }),
        )?;
        family(
            encoder,
            "gaps",
            "Channels that may have missed publications, by reason.",
            GAPS.iter().map(|(gap, reason)| {
                (ByReason { reason }, ConstCounter::new(broker.gaps[*gap as usize].get()))
            }),
        )
    }

    fn encode_closes(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let codes = CLOSE_CODES.iter().map(u16::to_string).chain(["other".to_owned()]);
        family(
            encoder,
            "closes",
            "Connections closed by the hub, by code.",
            codes.enumerate().map(|(at, code)| {
                let n = self.0.shards.iter().map(|shard| shard.closes[at].get()).sum::<u64>();
                (ByCode { code }, ConstCounter::new(n))
            }),
        )
    }

    fn node_counters(&self) -> [(&'static str, &'static str, &Count); 12] {
        let Metrics { broker, listener, .. } = &*self.0;
        [
            ("history_reads", "Histories asked for.", &broker.history_reads),
            (
                "history_reads_shared",
                "Those that waited together with an equal one and were read once.",
                &broker.history_reads_shared,
            ),
            (
                "history_evicted",
                "Streams and idempotency keys that the embedded broker gave up at a bound.",
                &broker.history_evicted,
            ),
            (
                "history_resets",
                "Streams in Redis that were found damaged and started anew.",
                &broker.history_resets,
            ),
            ("chains_refused", "Payloads not kept, for want of room.", &broker.chains_refused),
            ("reloads", "Times the namespaces were read again.", &listener.reloads),
            ("failed_reloads", "Times that failed and changed nothing.", &listener.failed_reloads),
            ("publications", "Publications that came in.", &broker.publications),
            ("redis_connects", "Connections made to Redis.", &broker.redis_connects),
            ("redis_refused", "Subscriptions that Redis's ACL forbids.", &broker.redis_refused),
            ("accepted", "Sockets accepted.", &listener.accepted),
            (
                "accept_errors",
                "Failed accepts, such as out of descriptors.",
                &listener.accept_errors,
            ),
        ]
    }

    fn encode_node(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Metrics { broker, listener, .. } = &*self.0;
        for (name, help, count) in self.node_counters() {
            one(encoder, name, help, &ConstCounter::new(count.get()))?;
        }
        let n_dropped = LOG_LINES.get().map_or(0, |lines| lines.dropped_lines() as u64);
        let help = "Lines that nobody read in time.";
        one(encoder, "log_lines_dropped", help, &ConstCounter::new(n_dropped))?;
        let by = |refused: Refused| self.0.sum(|shard| &shard.refused[refused as usize]);
        let refused: [(&'static str, u64); 6] = [
            ("connections_max", by(Refused::ConnectionsMax)),
            ("connect_rate", by(Refused::ConnectRate)),
            ("connections_per_ip", by(Refused::PerAddress)),
            ("outbox_total_bytes", self.0.sum(|shard| &shard.relieved)),
            ("handshakes_max", self.0.sum(|shard| &shard.evicted_handshakes)),
            ("open_files", listener.refused.get()),
        ];
        family(
            encoder,
            "refused",
            "Connections refused or ended at a limit.",
            refused.into_iter().map(|(reason, n)| (ByReason { reason }, ConstCounter::new(n))),
        )?;
        let gauges: [(&str, &str, &Count); 7] = [
            ("chain_bytes", "Payloads kept for the next one's patch.", &broker.chain_bytes),
            ("history_streams", "Streams in the embedded broker.", &broker.history_streams),
            ("history_bytes", "Bytes of their publications.", &broker.history_bytes),
            ("idempotency_keys", "Keys it remembers.", &broker.idempotency_keys),
            ("sockets", "Open sockets of the listeners.", &listener.sockets),
            ("redis_subscriptions", "Channels subscribed in Redis.", &broker.redis_subscriptions),
            ("inbox_bytes", "Bytes from Redis not yet handed to shards.", &broker.inbox_bytes),
        ];
        for (name, help, count) in gauges {
            one(encoder, name, help, &ConstGauge::new(count.get() as i64))?;
        }
        let links = [("pubsub", &broker.pubsub_up), ("command", &broker.command_up)];
        family(
            encoder,
            "redis_up",
            "Whether a link to Redis works.",
            links.iter().map(|(link, up)| (ByLink { link }, ConstGauge::new(up.get() as i64))),
        )
    }
}

fn one(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn family<L: EncodeLabelSet, M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl Iterator<Item = (L, M)>,
) -> fmt::Result {
    let mut series = series.peekable();
    let Some((_, first)) = series.peek() else { return Ok(()) };
    let mut metrics = encoder.encode_descriptor(name, help, None, first.metric_type())?;
    for (labels, metric) in series {
        metric.encode(metrics.encode_family(&labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_every_series() {
        let metrics = Arc::new(Metrics::new(2));
        metrics.shards[1].connections.set(3);
        metrics.shards[0].on_close(3008);
        metrics.shards[1].on_close(4242);
        metrics.broker.on_gap(Gap::LinkLost, 5);
        let page = metrics.page();
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
