//! The connection registry in Redis: entries written, renewed and removed, the node's heartbeat.
//!
//! On the broker thread. What is due is [`Registry`]'s to know; here it becomes pipelines on the
//! command link, one at a time. A node without Redis, or with `HUB_REGISTRY=off`, has none of it.
//! A registry that can't be written is a metric and a line in the log: delivery needs none of it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::time::timeout;
use uuid::Uuid;

use super::heartbeat::Heartbeat;
use super::link::CommandLink;
use super::{Command, Redis};
use crate::broker::registry::{Batch, Connected, LIFE_MS, Outcome, Registry};

/// Taking all entries back at the end may take so long; what is left expires.
const GOODBYE_TIME_MAX: Duration = Duration::from_secs(1);

/// The value of `ws:conn:<connection id>`.
#[derive(Serialize)]
struct Entry<'a> {
    instance_id: &'a str,
    run_id: &'a str,
    user: &'a str,
    connected_at: u64,
    transport: &'static str,
    address: std::net::IpAddr,
}

/// Keeps this node in the registry.
pub struct Registrar(Option<Rc<Kept>>);

pub(super) struct Kept {
    pub redis: Rc<Redis>,
    pub instance_id: String,
    pub run_id: String,
    pub registry: RefCell<Registry>,
    pub heartbeat: Heartbeat,
    pub n_looking_up: Cell<usize>,
    /// The node ends: no beat may come behind the last word.
    pub is_over: Cell<bool>,
    is_refused: Cell<bool>,
}

impl Registrar {
    /// `None`: there is no registry.
    pub fn new(redis: Option<&Rc<Redis>>) -> Self {
        Self(redis.map(|redis| {
            Rc::new(Kept {
                instance_id: redis.node.instance_id(),
                run_id: redis.node.run_id.to_string(),
                registry: RefCell::new(Registry::new(redis.node.now_ms())),
                heartbeat: Heartbeat::default(),
                n_looking_up: Cell::new(0),
                is_over: Cell::new(false),
                is_refused: Cell::new(false),
                redis: redis.clone(),
            })
        }))
    }

    pub(super) fn kept(&self) -> Option<&Rc<Kept>> {
        self.0.as_ref()
    }

    pub fn on_connected(&self, shard: usize, connected: Connected) {
        if let Some(kept) = &self.0 {
            kept.registry.borrow_mut().on_connected(shard, connected);
        }
    }

    pub fn on_disconnected(&self, connection: Uuid) {
        if let Some(kept) = &self.0 {
            kept.registry.borrow_mut().on_disconnected(connection);
        }
    }

    /// A shard started afresh: its connections are gone.
    pub fn forget_shard(&self, shard: usize) {
        if let Some(kept) = &self.0 {
            kept.registry.borrow_mut().forget_shard(shard);
        }
    }

    pub fn on_tick(&self, now_ms: u64) {
        let Some(kept) = &self.0 else { return };
        kept.report();
        let Some(Command { link, .. }) = kept.redis.command.borrow().clone() else {
            return kept.heartbeat.on_link_down();
        };
        kept.beat(link.clone(), now_ms);
        let batch = kept.registry.borrow_mut().poll_batch(now_ms);
        if let Some(batch) = batch {
            let kept = kept.clone();
            tokio::task::spawn_local(async move { kept.send(link, batch).await });
        }
    }

    /// The node ends: takes back all that Redis has of it.
    pub async fn say_goodbye(&self) {
        let Some(kept) = &self.0 else { return };
        kept.is_over.set(true);
        kept.registry.borrow_mut().forget_all();
        let Some(Command { mut link, .. }) = kept.redis.command.borrow().clone() else { return };
        let all = async {
            loop {
                let removals = kept.registry.borrow_mut().take_removals();
                if removals.is_empty() {
                    return kept.give_up(&mut link).await;
                }
                let batch = Batch { writes: Vec::new(), removals };
                link.pipeline(&mut kept.pipeline(&batch)).await.ok()?;
            }
        };
        if timeout(GOODBYE_TIME_MAX, all).await.ok().flatten().is_none() {
            tracing::warn!("the node's registry entries were not all removed: they expire");
        }
    }
}

impl Kept {
    pub fn key(&self, kind: &str, id: &str) -> Vec<u8> {
        [&self.redis.prefix[..], kind.as_bytes(), id.as_bytes()].concat()
    }

    fn report(&self) {
        let (metrics, registry) =
            (&self.redis.node.metrics.broker.registry, self.registry.borrow());
        metrics.connections.set(registry.len() as u64);
        metrics.waiting.set(registry.n_waiting() as u64);
        metrics.given_up.set(registry.n_given_up());
    }

    /// SETs, then one DEL: a client that came back has another id.
    fn pipeline(&self, batch: &Batch) -> redis::Pipeline {
        let mut pipe = redis::Pipeline::with_capacity(batch.writes.len() + 1);
        let registry = self.registry.borrow();
        for connection in &batch.writes {
            let Some(connected) = registry.get(*connection) else { continue };
            let key = self.key("ws:conn:", &connection.to_string());
            pipe.cmd("SET").arg(key).arg(self.value(&connected)).arg("PX").arg(LIFE_MS);
        }
        if !batch.removals.is_empty() {
            let ids = batch.removals.iter().map(Uuid::to_string);
            pipe.cmd("DEL").arg(ids.map(|id| self.key("ws:conn:", &id)).collect::<Vec<_>>());
        }
        pipe
    }

    fn value(&self, connected: &Connected) -> String {
        let entry = Entry {
            instance_id: &self.instance_id,
            run_id: &self.run_id,
            user: &connected.user,
            connected_at: connected.connected_at_s,
            transport: connected.transport.name(),
            address: connected.address,
        };
        serde_json::to_string(&entry).expect("invariant: plain values are JSON")
    }

    /// One line, until a batch is taken: it goes on for as long as Redis is full.
    fn on_refused(&self, error: &redis::RedisError) {
        if !self.is_refused.replace(true) {
            tracing::warn!(%error, "Redis refuses the registry's entries");
        }
    }

    async fn send(&self, mut link: CommandLink, batch: Batch) {
        let began = Instant::now();
        let mut pipe = self.pipeline(&batch);
        let metrics = &self.redis.node.metrics.broker.registry;
        let outcome = match link.pipeline(&mut pipe).await {
            Ok(replies) => {
                let refusals: Vec<_> = replies.into_iter().filter_map(Result::err).collect();
                metrics.writes.add(batch.writes.len() as u64);
                metrics.removals.add(batch.removals.len() as u64);
                metrics.failures.add(refusals.len() as u64);
                if let Some(error) = refusals.first() {
                    self.on_refused(error);
                } else {
                    self.is_refused.set(false);
                }
                Outcome::Answered
            }
            // The link's own ping finds out whether it is broken.
            Err(_) => {
                metrics.failures.add(1);
                Outcome::Lost
            }
        };
        let (took_ms, now_ms) = (began.elapsed().as_millis() as u64, self.redis.node.now_ms());
        self.registry.borrow_mut().on_batch_end(batch, outcome, took_ms, now_ms);
    }
}
