//! What all threads of one node share, read-only or atomic: configuration, numbers, the clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

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
    n_sockets: AtomicUsize,
    n_clients: AtomicUsize,
}

/// A socket of a listener, counted while it is open.
#[derive(Debug)]
pub struct SocketPermit(Arc<Node>);

impl Drop for SocketPermit {
    fn drop(&mut self) {
        self.0.n_sockets.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sockets over the limit that may be open while idle ones are being closed for them; half of
/// the reserve of descriptors.
const SOCKETS_OVER_MAX: usize = 32;

/// A shard or the broker that hasn't answered for so long isn't ready, milliseconds.
const READY_AGE_MS_MAX: u64 = 2_000;
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
        let node = Self {
            config,
            metrics,
            run_id: Uuid::new_v4(),
            started: Instant::now(),
            draining: AtomicBool::new(false),
            n_sockets: AtomicUsize::new(0),
            n_clients: AtomicUsize::new(0),
        };
        Arc::new(node)
    }

    /// Milliseconds since the node's start: monotonic.
    pub fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    pub fn uptime_s(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// Counts an accepted socket; `None`: there is no descriptor to spare.
    pub fn open_socket(self: &Arc<Self>) -> Option<SocketPermit> {
        let permit = SocketPermit(self.clone());
        let n_sockets = self.n_sockets.fetch_add(1, Ordering::Relaxed);
        (n_sockets < self.config.sockets_max() + SOCKETS_OVER_MAX).then_some(permit)
    }

    /// Whether idle sockets have to go for new ones.
    pub fn is_crowded(&self) -> bool {
        self.n_sockets.load(Ordering::Relaxed) > self.config.sockets_max()
    }

    pub fn n_sockets(&self) -> usize {
        self.n_sockets.load(Ordering::Relaxed)
    }

    /// Counts a client, unless there are `HUB_CONNECTIONS_MAX`. Each that was counted is
    /// followed by one [`Node::client_left`].
    pub fn admit_client(&self) -> bool {
        let admitted = self.n_clients.fetch_add(1, Ordering::Relaxed) < self.config.connections_max;
        if !admitted {
            self.client_left();
        }
        admitted
    }

    pub fn client_left(&self) {
        self.n_clients.fetch_sub(1, Ordering::Relaxed);
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
        let oldest = self.now_ms().saturating_sub(READY_AGE_MS_MAX);
        if self.metrics.shards.iter().any(|shard| shard.answered_ms.get() < oldest) {
            return Err(NotReady::Shard);
        }
        let broker = &self.metrics.broker;
        if broker.alive_ms.get() < oldest {
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
