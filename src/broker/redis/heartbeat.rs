//! The node's own entry, `ws:instance:<instance id>`: what it says of itself, and who may have the id.
//!
//! An entry lives [`LIFE_MS`] and is renewed every [`INTERVAL_MS`], by a script that compares run_ids,
//! so that two nodes never overwrite each other. Life is judged by how long the entry has left, by
//! Redis's clock: nobody's wall clock matters. One that should have been renewed by half an interval
//! and wasn't ([`DEAD_LEFT_MS`]) is that of a dead node, and its id free: a node that crashed is back
//! after 15 s at the most, while one that lives shows it within [`INTERVAL_MS`] and the second is
//! refused (`claim`). A node that could not ask at its start, Redis being away, and finds its id taken
//! later, serves on, says so, and goes on trying: its clients are worth more than its name.

use std::cell::Cell;
use std::rc::Rc;

use serde::Serialize;

use super::link::CommandLink;
use super::registry::Kept;
use super::script::{Call, Items, Script};
use crate::node::Node;

pub const LIFE_MS: u64 = 30_000;
pub const INTERVAL_MS: u64 = 10_000;
/// An entry with no more than this left wasn't renewed for one and a half intervals.
const DEAD_LEFT_MS: u64 = LIFE_MS - INTERVAL_MS * 3 / 2;
/// After a failure.
const RETRY_MS: u64 = 1_000;

/// The value of `ws:instance:<instance id>`.
#[derive(Serialize)]
struct Entry<'a> {
    instance_id: &'a str,
    run_id: &'a str,
    version: &'static str,
    shards: usize,
    connections: u64,
    channels: u64,
    /// Seconds.
    uptime: u64,
}

/// Who has the id, as far as is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Holder {
    #[default]
    Unknown,
    Us,
    Another,
}

#[derive(Default)]
pub struct Heartbeat {
    due_ms: Cell<u64>,
    is_out: Cell<bool>,
    holder: Cell<Holder>,
    is_failing: Cell<bool>,
}

/// What the script answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Beat {
    /// Another run holds the id, and its entry has so long left.
    Taken {
        left_ms: u64,
        run_id: String,
    },
    Renewed,
    /// There was no entry, or that of a dead node.
    Claimed,
}

impl Beat {
    pub fn read(value: redis::Value) -> Option<Self> {
        let mut items = Items::of(value)?;
        match items.number()? {
            0 => Some(Beat::Taken {
                left_ms: items.number()?,
                run_id: String::from_utf8_lossy(&items.bytes()?).into_owned(),
            }),
            1 => Some(Beat::Renewed),
            2 => Some(Beat::Claimed),
            _ => None,
        }
    }
}

/// One beat; with a life of 0 the entry is given up.
pub fn call(node: &Node, life_ms: u64) -> Call {
    let (instance_id, run_id) = (node.instance_id(), node.run_id.to_string());
    let entry = Entry {
        instance_id: &instance_id,
        run_id: &run_id,
        version: env!("CARGO_PKG_VERSION"),
        shards: node.config.shards,
        connections: node.metrics.sum(|shard| &shard.connections),
        channels: node.metrics.broker.redis_subscriptions.get(),
        uptime: node.uptime_s(),
    };
    let value = serde_json::to_string(&entry).expect("invariant: plain values are JSON");
    let key = format!("{}ws:instance:{instance_id}", node.config.redis_prefix);
    let args = [run_id.clone(), value, life_ms.to_string(), DEAD_LEFT_MS.to_string()];
    Call {
        script: Script::Instance,
        keys: vec![key.into_bytes()],
        args: args.map(String::into_bytes).into(),
    }
}

impl Heartbeat {
    /// Once the link is back it is time to show that we live.
    pub fn on_link_down(&self) {
        self.due_ms.set(0);
    }
}

impl Kept {
    pub fn beat(self: &Rc<Self>, mut link: CommandLink, now_ms: u64) {
        if self.heartbeat.is_out.get() || now_ms < self.heartbeat.due_ms.get() {
            return;
        }
        self.heartbeat.is_out.set(true);
        let kept = self.clone();
        tokio::task::spawn_local(async move {
            if kept.is_over.get() {
                return;
            }
            let answer = link.call(&call(&kept.redis.node, LIFE_MS)).await;
            kept.heartbeat.is_out.set(false);
            let wait_ms = match answer.map(Beat::read) {
                Ok(Some(beat)) => {
                    kept.on_beat(&beat);
                    INTERVAL_MS
                }
                Ok(None) => RETRY_MS,
                Err(error) => {
                    kept.on_failure(&error);
                    RETRY_MS
                }
            };
            kept.heartbeat.due_ms.set(now_ms + wait_ms);
        });
    }

    fn on_beat(&self, beat: &Beat) {
        let metrics = &self.redis.node.metrics.broker.registry;
        if self.heartbeat.is_failing.replace(false) {
            tracing::info!("the node is in the registry again");
        }
        let holder = match beat {
            Beat::Taken { .. } => Holder::Another,
            Beat::Renewed | Beat::Claimed => Holder::Us,
        };
        let before = self.heartbeat.holder.replace(holder);
        metrics.up.set(u64::from(holder == Holder::Us));
        metrics.conflict.set(u64::from(holder == Holder::Another));
        match beat {
            Beat::Taken { run_id, .. } if before != Holder::Another => tracing::error!(
                instance_id = %self.instance_id,
                run_id = %run_id.escape_debug(),
                "another live node has this HUB_NODE_ID: this one serves, but `hubbub nodes` lacks it"
            ),
            Beat::Claimed if before == Holder::Us => {
                tracing::warn!("the node was gone from the registry: all of it is written again");
                self.registry.borrow_mut().write_all_again();
            }
            Beat::Claimed if before == Holder::Another => {
                tracing::info!(instance_id = %self.instance_id, "the HUB_NODE_ID is this node's now");
            }
            _ => {}
        }
    }

    fn on_failure(&self, error: &redis::RedisError) {
        let metrics = &self.redis.node.metrics.broker.registry;
        metrics.failures.add(1);
        metrics.up.set(0);
        if !self.heartbeat.is_failing.replace(true) {
            tracing::warn!(%error, "the registry can't be written: nodes and connections are missing there");
        }
    }

    /// Gives the id up, if it is ours. `None`: that failed.
    pub async fn give_up(&self, link: &mut CommandLink) -> Option<()> {
        link.call(&call(&self.redis.node, 0)).await.ok().map(drop)
    }
}
