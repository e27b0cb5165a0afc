//! The Prometheus page of what the node counts.
//!
//! Runs on whichever shard is asked for it; reads every block, writes none.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::{
    CLOSE_CODES, Count, DROPS, Drop, GAPS, Gap, LOG_LINES, Metrics, RECOVERIES, ShardMetrics,
};
use crate::admission::Refused;

impl Metrics {
    /// The Prometheus text page, so many milliseconds after the node's start.
    pub fn page(self: &Arc<Self>, now_ms: u64) -> String {
        let mut registry = Registry::with_prefix("hubbub");
        registry.register_collector(Box::new(Page { metrics: self.clone(), now_ms }));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)
            .expect("invariant: writing to a String");
        text
    }
}

#[derive(Debug)]
struct Page {
    metrics: Arc<Metrics>,
    now_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByShard {
    shard: usize,
}
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: &'static str,
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

const SHARD_COUNTERS: [(&str, &str, ShardCount); 20] = [
    ("deliveries", "Publications queued for a subscriber.", |shard| &shard.deliveries),
    ("sent_bytes", "Bytes written to clients.", |shard| &shard.sent_bytes),
    ("writes", "Writes to client sockets; deliveries by writes is the group size.", |shard| {
        &shard.writes
    }),
    ("turns", "Turns of the ring of sessions that wrote.", |shard| &shard.turns),
    (
        "full_turns",
        "Those that took as many bytes as one may; what else came waited for the next.",
        |shard| &shard.full_turns,
    ),
    ("received_bytes", "Bytes read from clients.", |shard| &shard.received_bytes),
    ("commands", "Client commands handled.", |shard| &shard.commands),
    ("commands_over_rate", "Client commands refused over the rate.", |shard| {
        &shard.commands_over_rate
    }),
    ("repeated", "Publications that came again, or late, and were dropped.", |shard| {
        &shard.repeated
    }),
    ("conflated", "Publications whose place a newer one took, by subscriber.", |shard| {
        &shard.conflated
    }),
    ("delayed", "Publications that waited for their write_delay, by cohort.", |shard| {
        &shard.delayed
    }),
    ("delays_cut", "Waits for a write_delay that a bound in bytes ended, by cohort.", |shard| {
        &shard.delays_cut
    }),
    ("position_checks", "Streams compared with what was delivered.", |shard| {
        &shard.position_checks
    }),
    ("controlled", "Connections that commands of the server API were for.", |shard| {
        &shard.controlled
    }),
    ("serves_refused", "Server-side subscriptions that the API asked for in vain.", |shard| {
        &shard.serves_refused
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
        let metrics = &self.metrics;
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
        self.encode_threads(&mut encoder)?;
        self.encode_losses(&mut encoder)?;
        self.encode_closes(&mut encoder)?;
        self.encode_node(&mut encoder)
    }
}

impl Page {
    fn encode_threads(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Metrics { shards, broker, .. } = &*self.metrics;
        let by_shard = || shards.iter().enumerate();
        family(
            encoder,
            "paused_seconds",
            "Time in pauses between turns, which let the next one write more at once.",
            by_shard().map(|(shard, block)| {
                (ByShard { shard }, ConstCounter::new(block.paused_ns.get() as f64 / 1e9))
            }),
        )?;
        family(
            encoder,
            "shard_panics",
            "Times a shard was started afresh.",
            by_shard()
                .map(|(shard, block)| (ByShard { shard }, ConstCounter::new(block.panics.get()))),
        )?;
        let up = |is_up: bool| ConstGauge::new(i64::from(is_up));
        family(
            encoder,
            "shard_up",
            "Whether a shard answers.",
            by_shard().map(|(shard, block)| (ByShard { shard }, up(block.is_up(self.now_ms)))),
        )?;
        one(encoder, "broker_up", "Whether the broker answers.", &up(broker.is_up(self.now_ms)))
    }

    fn encode_losses(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Metrics { shards, broker, .. } = &*self.metrics;
        family(
            encoder,
            "drops",
            "What was dropped, by reason.",
            DROPS.iter().map(|(drop, reason)| {
                let by_shards = shards.iter().map(|shard| match drop {
                    Drop::SlowConsumer => shard.drops_slow_consumer.get(),
                    Drop::NotUtf8 => shard.drops_not_utf8.get(),
                    Drop::ControlFull => shard.drops_control_full.get(),
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
                let by_shards = shards.iter().map(|shard| match gap {
                    Gap::Offset => shard.gaps_offset.get(),
                    Gap::Behind => shard.gaps_behind.get(),
                    _ => 0,
                });
                let n = broker.gaps[*gap as usize].get() + by_shards.sum::<u64>();
                (ByReason { reason }, ConstCounter::new(n))
            }),
        )?;
        family(
            encoder,
            "recoveries",
            "Subscribers that asked for what they missed, by outcome.",
            RECOVERIES.iter().map(|(recovery, outcome)| {
                let n: u64 =
                    shards.iter().map(|shard| shard.recoveries[*recovery as usize].get()).sum();
                (ByOutcome { outcome }, ConstCounter::new(n))
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
                let n = self.metrics.shards.iter().map(|shard| shard.closes[at].get()).sum::<u64>();
                (ByCode { code }, ConstCounter::new(n))
            }),
        )
    }

    fn node_counters(&self) -> [(&'static str, &'static str, &Count); 17] {
        let Metrics { broker, listener, .. } = &*self.metrics;
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
            (
                "newest_refused",
                "Newest publications that weren't remembered for want of room.",
                &broker.newest_refused,
            ),
            ("chains_refused", "Payloads not kept, for want of room.", &broker.chains_refused),
            ("control_messages", "Messages from nodes.", &broker.control_messages),
            (
                "control_unknown",
                "Those that only newer nodes understand; ignored.",
                &broker.control_unknown,
            ),
            ("surveys", "Questions to all nodes.", &broker.surveys),
            ("surveys_partial", "Those that not all answered in time.", &broker.surveys_partial),
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
        let Metrics { broker, listener, .. } = &*self.metrics;
        let presence = &self.metrics.presence;
        for (name, help, count) in self.node_counters().into_iter().chain(presence.counters()) {
            one(encoder, name, help, &ConstCounter::new(count.get()))?;
        }
        let n_dropped = LOG_LINES.get().map_or(0, |lines| lines.dropped_lines() as u64);
        let help = "Lines that nobody read in time.";
        one(encoder, "log_lines_dropped", help, &ConstCounter::new(n_dropped))?;
        let by = |refused: Refused| self.metrics.sum(|shard| &shard.refused[refused as usize]);
        let refused: [(&'static str, u64); 6] = [
            ("connections_max", by(Refused::ConnectionsMax)),
            ("connect_rate", by(Refused::ConnectRate)),
            ("connections_per_ip", by(Refused::PerAddress)),
            ("outbox_total_bytes", self.metrics.sum(|shard| &shard.relieved)),
            ("handshakes_max", self.metrics.sum(|shard| &shard.evicted_handshakes)),
            ("open_files", listener.refused.get()),
        ];
        family(
            encoder,
            "refused",
            "Connections refused or ended at a limit.",
            refused.into_iter().map(|(reason, n)| (ByReason { reason }, ConstCounter::new(n))),
        )?;
        let gauges: [(&str, &str, &Count); 10] = [
            ("chain_bytes", "Payloads kept for the next one's patch.", &broker.chain_bytes),
            ("history_streams", "Streams in the embedded broker.", &broker.history_streams),
            ("history_bytes", "Bytes of their publications.", &broker.history_bytes),
            ("idempotency_keys", "Keys it remembers.", &broker.idempotency_keys),
            (
                "newest_bytes",
                "Newest publications of channels that show them.",
                &broker.newest_bytes,
            ),
            ("sockets", "Open sockets of the listeners.", &listener.sockets),
            ("sockets_max", "How many there may be.", &listener.sockets_max),
            ("connections_max", "How many clients there may be.", &listener.connections_max),
            ("redis_subscriptions", "Channels subscribed in Redis.", &broker.redis_subscriptions),
            ("inbox_bytes", "Bytes from Redis not yet handed to shards.", &broker.inbox_bytes),
        ];
        for (name, help, count) in gauges.into_iter().chain(presence.gauges()) {
            one(encoder, name, help, &ConstGauge::new(count.get() as i64))?;
        }
        self.encode_registry(encoder)?;
        let rested = ConstCounter::new(broker.rested_ns.get() as f64 / 1e9);
        let help = "Time in rests of the broker thread, in which publications gather.";
        one(encoder, "broker_rested_seconds", help, &rested)?;
        let links = [("pubsub", &broker.pubsub_up), ("command", &broker.command_up)];
        family(
            encoder,
            "redis_up",
            "Whether a link to Redis works.",
            links.iter().map(|(link, up)| (ByLink { link }, ConstGauge::new(up.get() as i64))),
        )
    }
}

impl Page {
    fn encode_registry(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let registry = &self.metrics.broker.registry;
        let gauges: [(&str, &str, &Count); 4] = [
            ("registry_up", "Whether the node's entry in the registry was written.", &registry.up),
            (
                "registry_conflict",
                "Whether another live node has this one's id.",
                &registry.conflict,
            ),
            ("registry_connections", "Connections to be registered.", &registry.connections),
            ("registry_waiting", "Entries to be written or removed at once.", &registry.waiting),
        ];
        for (name, help, count) in gauges {
            one(encoder, name, help, &ConstGauge::new(count.get() as i64))?;
        }
        let counters: [(&str, &str, &Count); 4] = [
            ("registry_writes", "Entries written, renewals too.", &registry.writes),
            ("registry_removals", "Entries removed.", &registry.removals),
            ("registry_given_up", "Removals left to expire.", &registry.given_up),
            ("registry_failures", "Writes that Redis refused, or lost.", &registry.failures),
        ];
        for (name, help, count) in counters {
            one(encoder, name, help, &ConstCounter::new(count.get()))?;
        }
        Ok(())
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
