//! The Redis side of the broker: two supervised links, the inbox, publishes in flight.
//!
//! All on the broker thread. The supervisors dial for ever with jittered back-off and log one
//! line per change of state. A connection that the kernel calls established may lead nowhere, or
//! to a Redis that delivers nothing. So the pub/sub link is pinged, whatever the command link
//! does; and it is probed from end to end: a publish of the command link to this node's own
//! channel must come back.
//! **Invariant:** what goes wrong on a link that was replaced doesn't touch its successor: each
//! link has a `broken` of its own.

mod backoff;
mod inbox;
mod link;
mod nodes;
mod past;
mod script;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::history::{HistoryError, HistoryPage};
use super::interest::Changes;
use super::survey::Asked;
use super::{Publish, PublishError, envelope};
use crate::node::Node;
use crate::position::Position;
use backoff::Backoff;
use inbox::Inbox;
pub use inbox::Push;
use link::{CommandLink, Dialer, OwnChannels, Plain, PubSubLink, publish_error};
use past::Reads;
pub use script::PUBLISH_SCRIPT;
use script::{Call, PublishReply};

/// How often the links are probed.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
/// A ping must be answered, and a probe that was published have come back, after this: with the
/// interval well under the 15 s after which a node must know. Not less, since both stand in line
/// behind the publications of a link that is merely slow.
const PROBE_TIMEOUT: Duration = Duration::from_secs(8);
/// SUBSCRIBE and UNSUBSCRIBE commands that wait for their confirmations. All at once would queue
/// tens of thousands of confirmations in Redis's output buffer for this node, for which Redis may
/// cut it, again and again.
const CHANGES_MAX: usize = 2;
/// Publishes in flight, and their bytes; more are refused at once. Only a Redis that hangs gets
/// that far, within `HUB_REDIS_TIMEOUT`.
const PUBLISHES_MAX: usize = 50_000;
const PUBLISH_BYTES_MAX: usize = 64 << 20;

/// Between two log lines about commands that Redis refuses.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(1);

/// One publish on its way to Redis.
pub struct PublishRequest {
    pub asked: Option<Asked>,
    pub publish: Publish,
}

/// The answer to a command.
pub enum Finished {
    Publish {
        asked: Option<Asked>,
        result: Result<Position, PublishError>,
    },
    History {
        asked: Asked,
        result: Result<Arc<HistoryPage>, HistoryError>,
    },
    HistoryRemoved {
        asked: Asked,
        result: Result<(), HistoryError>,
    },
    Control {
        asked: Asked,
        result: Result<(), PublishError>,
    },
    /// So many nodes got a survey's question; `None`: it didn't get through.
    NodesAsked {
        survey: u32,
        n_nodes: Option<usize>,
    },
}

pub struct Redis {
    node: Arc<Node>,
    dialer: Dialer,
    inbox: Arc<Inbox>,
    prefix: Vec<u8>,
    probe_channel: Vec<u8>,
    pubsub: RefCell<Option<PubSub>>,
    command: RefCell<Option<Command>>,
    n_in_flight: Cell<usize>,
    bytes_in_flight: Cell<usize>,
    /// Messages to nodes that are on their way.
    n_messages: Cell<usize>,
    message_bytes: Cell<usize>,
    /// As many as there were commands.
    finished: RefCell<Vec<Finished>>,
    reads: Reads,
    complained: Cell<Option<Instant>>,
}

/// The pub/sub link in use.
struct PubSub {
    link: PubSubLink,
    generation: u64,
    broken: Arc<Notify>,
    /// Commands that wait for their confirmations. They have no time limit of their own, since
    /// the link is pinged; they end with it.
    changes: JoinSet<()>,
}

/// The command link in use.
#[derive(Clone)]
struct Command {
    link: CommandLink,
    broken: Rc<Notify>,
}

impl Redis {
    /// Starts both supervisors on this thread.
    pub fn start(node: Arc<Node>) -> Rc<Self> {
        let config = &node.config;
        let url = config.redis_url.as_ref().expect("invariant: started only with a URL");
        let dialer = Dialer::new(url, config.redis_timeout)
            .expect("invariant: the URL was checked at start");
        let prefix = config.redis_prefix.clone().into_bytes();
        let probe_channel = [&prefix[..], b"ws:node:", node.run_id.to_string().as_bytes()].concat();
        let redis = Rc::new(Self {
            dialer,
            inbox: Arc::new(Inbox::new(config.redis_inbox_bytes_max)),
            prefix,
            probe_channel,
            pubsub: RefCell::new(None),
            command: RefCell::new(None),
            n_in_flight: Cell::new(0),
            bytes_in_flight: Cell::new(0),
            n_messages: Cell::new(0),
            message_bytes: Cell::new(0),
            finished: RefCell::new(Vec::new()),
            reads: Reads::default(),
            complained: Cell::new(None),
            node,
        });
        tokio::task::spawn_local(supervise_pubsub(redis.clone()));
        tokio::task::spawn_local(supervise_command(redis.clone()));
        redis
    }

    /// Something is to be taken.
    pub async fn wakes(&self) {
        self.inbox.notify.notified().await;
    }

    pub fn inbox_bytes(&self) -> usize {
        self.inbox.bytes()
    }

    pub fn take_pushes(&self) -> Vec<Push> {
        self.inbox.take()
    }

    pub fn take_finished(&self) -> Vec<Finished> {
        self.finished.take()
    }

    /// The channel behind a Redis channel; `None`: not ours.
    pub fn channel_of<'a>(&self, redis_channel: &'a [u8]) -> Option<&'a [u8]> {
        redis_channel.strip_prefix(&self.prefix[..])
    }

    fn redis_channels(&self, channels: &[Box<str>]) -> Vec<Vec<u8>> {
        channels.iter().map(|channel| [&self.prefix[..], channel.as_bytes()].concat()).collect()
    }

    /// Whether another command may be sent on the current link; if not, wakes once it may.
    pub fn may_change_subscriptions(&self) -> bool {
        let mut pubsub = self.pubsub.borrow_mut();
        let Some(PubSub { changes, .. }) = pubsub.as_mut() else { return false };
        while changes.try_join_next().is_some() {}
        changes.len() < CHANGES_MAX
    }

    /// Sends what should change on the current link; a failure breaks it, and the next link
    /// starts from what should be.
    pub fn change_subscriptions(&self, changes: &Changes) {
        let mut pubsub = self.pubsub.borrow_mut();
        let Some(pubsub) = pubsub.as_mut() else { return };
        let (mut link, broken) = (pubsub.link.clone(), pubsub.broken.clone());
        let (subscribe, unsubscribe) =
            (self.redis_channels(&changes.subscribe), self.redis_channels(&changes.unsubscribe));
        let (inbox, generation) = (self.inbox.clone(), pubsub.generation);
        pubsub.changes.spawn_local(async move {
            match link.subscribe(&subscribe).await {
                Ok(forbidden) => {
                    for channel in forbidden {
                        inbox.push(generation, Push::Refused { channel });
                    }
                }
                Err(_) => broken.notify_one(),
            }
            if link.unsubscribe(&unsubscribe).await.is_err() {
                broken.notify_one();
            }
            inbox.notify.notify_one();
        });
    }

    /// Publishes a turn's batch in one pipeline. What needs the publish script (history, an
    /// idempotency key) comes behind what doesn't: a channel's publications keep their order unless
    /// one turn has both kinds of them, whose publishers hadn't waited for each other.
    pub fn publish(self: &Rc<Self>, batch: Vec<PublishRequest>) {
        let Some(Command { mut link, broken }) = self.command.borrow().clone() else {
            batch.into_iter().for_each(|request| self.refuse(request.asked));
            return;
        };
        let deadline_ms = link.deadline_ms();
        let (mut asked, mut plain) = (Vec::with_capacity(batch.len()), Vec::new());
        let (mut asked_of_calls, mut calls) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        for PublishRequest { asked: by, publish } in batch {
            let is_scripted = publish.keep.is_some() || publish.idempotency_key.is_some();
            let publish_bytes = publish.bytes();
            if (is_scripted && deadline_ms.is_none()) || !self.try_admit(publish_bytes) {
                self.refuse(by);
                continue;
            }
            bytes += publish_bytes;
            if let Some(deadline_ms) = deadline_ms.filter(|_| is_scripted) {
                calls.push(Call::publish(&self.prefix, &publish, deadline_ms, link.server()));
                asked_of_calls.push(by);
            } else {
                let channel = [&self.prefix[..], publish.channel.as_bytes()].concat();
                plain.push(Plain { channel, payload: envelope::encode(publish.body) });
                asked.push(by);
            }
        }
        if plain.is_empty() && calls.is_empty() {
            return;
        }
        let redis = self.clone();
        tokio::task::spawn_local(async move {
            let n = plain.len() + calls.len();
            let published = link.publish(plain.into_iter(), calls).await;
            redis.n_in_flight.set(redis.n_in_flight.get() - n);
            redis.bytes_in_flight.set(redis.bytes_in_flight.get() - bytes);
            let results =
                published.results.into_iter().map(|result| result.map(|()| Position::default()));
            let called = published.called.into_iter().map(|reply| redis.on_published(&link, reply));
            let finished = asked.into_iter().zip(results);
            let finished = finished.chain(asked_of_calls.into_iter().zip(called));
            redis.finish(finished.map(|(asked, result)| Finished::Publish { asked, result }));
            if published.broken {
                broken.notify_one();
            }
        });
    }

    /// What the publish script answered.
    fn on_published(
        &self,
        link: &CommandLink,
        reply: Result<redis::Value, redis::RedisError>,
    ) -> Result<Position, PublishError> {
        match reply.map(PublishReply::read) {
            Ok(Some(reply)) => {
                link.set_clock(reply.now_ms);
                self.count_reset(reply.was_reset);
                reply.result
            }
            Ok(None) => Err(PublishError::Unknown),
            Err(error) => {
                self.complain("Redis refuses publishes", &error);
                Err(publish_error(&error))
            }
        }
    }

    fn count_reset(&self, was_reset: bool) {
        self.node.metrics.broker.history_resets.add(u64::from(was_reset));
    }

    /// One line a second: whoever is told no reason (a client) or a short one (the API) finds it in
    /// the log.
    fn complain(&self, what: &'static str, error: &redis::RedisError) {
        let is_news = self.complained.get().is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL);
        if is_news {
            self.complained.set(Some(Instant::now()));
            tracing::warn!(%error, "{what}");
        }
    }

    fn finish(&self, finished: impl IntoIterator<Item = Finished>) {
        self.finished.borrow_mut().extend(finished);
        self.inbox.notify.notify_one();
    }

    /// Counts a publish as in flight; false: too much is. One alone may be of any size.
    fn try_admit(&self, bytes: usize) -> bool {
        let (n_in_flight, bytes_in_flight) =
            (self.n_in_flight.get() + 1, self.bytes_in_flight.get() + bytes);
        let admitted = n_in_flight == 1
            || (n_in_flight <= PUBLISHES_MAX && bytes_in_flight <= PUBLISH_BYTES_MAX);
        if admitted {
            self.n_in_flight.set(n_in_flight);
            self.bytes_in_flight.set(bytes_in_flight);
        }
        admitted
    }

    fn refuse(&self, asked: Option<Asked>) {
        self.finish([Finished::Publish { asked, result: Err(PublishError::Unavailable) }]);
    }

    /// Publishes a probe. True: Redis took it.
    async fn send_probe(&self) -> bool {
        let Some(Command { mut link, .. }) = self.command.borrow().clone() else { return false };
        let probe = Plain { channel: self.probe_channel.clone(), payload: link::PROBE.to_vec() };
        let published = link.publish([probe].into_iter(), Vec::new()).await;
        !published.broken
    }
}

/// Keeps a pub/sub link: dial, hand it to the broker, probe it until it breaks.
async fn supervise_pubsub(redis: Rc<Redis>) {
    let up = &redis.node.metrics.broker.pubsub_up;
    let mut backoff = Backoff::new("pub/sub");
    for generation in 1.. {
        redis.inbox.start(generation);
        let broken = Arc::new(Notify::new());
        let dialled = redis.dialer.pubsub(
            redis.inbox.clone(),
            generation,
            broken.clone(),
            OwnChannels { node: redis.probe_channel.clone(), all: redis.to_all_nodes() },
        );
        match dialled.await {
            Ok(link) => {
                let since = Instant::now();
                tracing::info!("Redis pub/sub link is up");
                redis.node.metrics.broker.redis_connects.add(1);
                redis.pubsub.replace(Some(PubSub {
                    link: link.clone(),
                    generation,
                    broken: broken.clone(),
                    changes: JoinSet::new(),
                }));
                up.set(1);
                redis.inbox.push(generation, Push::Up);
                let reason = tokio::select! {
                    () = broken.notified() => "connection lost",
                    () = until_silent(link) => "a ping was not answered",
                    () = until_deaf(&redis) => "a probe did not come back",
                };
                up.set(0);
                redis.pubsub.replace(None);
                redis.inbox.push(generation, Push::Down);
                tracing::warn!(reason, "Redis pub/sub link is down");
                backoff.on_lost(since.elapsed());
            }
            Err(error) => backoff.on_failed(&error),
        }
        backoff.wait().await;
    }
}

/// Resolves once the link answers no ping.
async fn until_silent(mut link: PubSubLink) {
    loop {
        sleep(PROBE_INTERVAL).await;
        if !matches!(timeout(PROBE_TIMEOUT, link.ping()).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// Resolves once what the command link publishes doesn't come back.
async fn until_deaf(redis: &Redis) {
    struct Sent {
        at: Instant,
        n_back_before: u64,
    }
    let mut unseen: Option<Sent> = None;
    loop {
        sleep(PROBE_INTERVAL).await;
        let n_back = redis.inbox.n_probes();
        match &unseen {
            Some(sent) if n_back > sent.n_back_before => unseen = None,
            Some(sent) if sent.at.elapsed() >= PROBE_TIMEOUT => return,
            _ => {}
        }
        let at = Instant::now();
        // A probe that couldn't be sent proves nothing about this link.
        if redis.send_probe().await && unseen.is_none() {
            unseen = Some(Sent { at, n_back_before: n_back });
        }
    }
}

/// Keeps a command link: dial, ping it until it breaks.
async fn supervise_command(redis: Rc<Redis>) {
    let up = &redis.node.metrics.broker.command_up;
    let mut backoff = Backoff::new("command");
    loop {
        match redis.dialer.command().await {
            Ok(mut link) => {
                let since = Instant::now();
                tracing::info!("Redis command link is up");
                redis.node.metrics.broker.redis_connects.add(1);
                let broken = Rc::new(Notify::new());
                redis.command.replace(Some(Command { link: link.clone(), broken: broken.clone() }));
                up.set(1);
                loop {
                    if timeout(PROBE_INTERVAL, broken.notified()).await.is_ok()
                        || link.ping().await.is_err()
                    {
                        break;
                    }
                }
                up.set(0);
                redis.command.replace(None);
                tracing::warn!("Redis command link is down");
                backoff.on_lost(since.elapsed());
            }
            Err(error) => backoff.on_failed(&error),
        }
        backoff.wait().await;
    }
}
