//! What all threads of one node share, read-only or atomic: configuration, numbers, the clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use uuid::Uuid;

use crate::admission::Admission;
use crate::auth::Auth;
use crate::config::Config;
use crate::metrics::Metrics;

/// One hubbub process. Shared by `Arc`; nothing in it is touched per publication.
#[derive(Debug)]
pub struct Node {
    pub config: Config,
    pub metrics: Arc<Metrics>,
    /// Drawn at every start: the wire's `node`, and the name of the probe channel.
    pub run_id: Uuid,
    started: Instant,
    draining: AtomicBool,
    pub admission: Arc<Admission>,
    /// What clients may do. Shards hold a copy and are told of a change.
    auth: Mutex<Arc<Auth>>,
}

/// A shard that hasn't answered for so long is stuck, milliseconds.
const LIVE_AGE_MS_MAX: u64 = 30_000;

/// Why a node isn't ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotReady {
    #[error("draining")]
    Draining,
    #[error("a shard does not answer")]
    Shard,
    #[error("the broker thread does not answer")]
    Broker,
    #[error("the Redis pub/sub link is down")]
    PubSubLink,
    #[error("the Redis command link is down")]
    CommandLink,
}

impl Node {
    pub fn new(config: Config) -> Arc<Self> {
        let metrics = Arc::new(Metrics::new(config.shards));
        let admission = Admission::new(&config);
        let auth = Mutex::new(Arc::new(Auth::new(&config)));
        metrics.listener.sockets_max.set(config.sockets_max() as u64);
        metrics.listener.connections_max.set(config.connections_max as u64);
        let node = Self {
            config,
            metrics,
            run_id: Uuid::new_v4(),
            started: Instant::now(),
            draining: AtomicBool::new(false),
            admission,
            auth,
        };
        Arc::new(node)
    }

    /// Milliseconds since the node's start: monotonic.
    pub fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// The `instance_id` of the registry.
    pub fn instance_id(&self) -> String {
        self.config.node_id.clone().unwrap_or_else(|| self.run_id.to_string())
    }

    pub fn uptime_s(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    pub fn auth(&self) -> Arc<Auth> {
        self.auth.lock().clone()
    }

    pub fn set_auth(&self, auth: Arc<Auth>) {
        *self.auth.lock() = auth;
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether traffic should be sent here.
    pub fn ready(&self) -> Result<(), NotReady> {
        if self.is_draining() {
            return Err(NotReady::Draining);
        }
        let now_ms = self.now_ms();
        if !self.metrics.shards.iter().all(|shard| shard.is_up(now_ms)) {
            return Err(NotReady::Shard);
        }
        let broker = &self.metrics.broker;
        if !broker.is_up(now_ms) {
            return Err(NotReady::Broker);
        }
        if self.config.redis_url.is_some() {
            if broker.pubsub_up.get() == 0 {
                return Err(NotReady::PubSubLink);
            }
            if broker.command_up.get() == 0 {
                return Err(NotReady::CommandLink);
            }
        }
        Ok(())
    }

    /// Whether the process should be kept: false only if a shard is stuck.
    pub fn live(&self) -> bool {
        let oldest = self.now_ms().saturating_sub(LIVE_AGE_MS_MAX);
        self.metrics.shards.iter().all(|shard| shard.answered_ms.get() >= oldest)
    }
}

/// Milliseconds of the wall clock, for payloads and random seeds only.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
