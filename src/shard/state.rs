//! What a shard owns: the hub, the sessions, names of channels, requests to the broker.
//!
//! Behind the one `RefCell` of `handle`; runs on the shard thread.

use std::collections::VecDeque;
use std::sync::Arc;

use ahash::HashMap;
use slab::Slab;
use tokio::sync::oneshot;

use super::control::Controls;
use super::hub::{Hub, Queued, Run, SessionId, Totals, Visit};
use super::pace::Paces;
use super::presence::Stays;
use super::recovery::catch_up_room;
use super::session::Session;
use super::stream::{ReadKey, Stream};
use super::timers::Drain;
use super::users::Users;
use super::waiting::Waiters;
use super::{LinkState, ShardEvent, socket};
use crate::auth::Auth;
use crate::broker::{
    BrokerCommand, HistoryAsk, HistoryError, HistoryPage, LookUpError, Presence, PresenceError,
    Publish, PublishError, SurveyResult,
};
use crate::channel::ChannelId;
use crate::frame;
use crate::metrics::ShardMetrics;
use crate::node::Node;
use crate::position::Position;
use crate::protocol::{Disconnect, ReplyError};
use crate::publication::Patches;

/// A closing handshake may take this long, milliseconds.
pub(super) const LINGER_MS: u64 = 3_000;
/// Requests are numbered below it; above it stands the life of the shard.
const LIFE_SHIFT: u32 = 24;
/// Commands that wait for room in the broker's mailbox; more publishes, reads and control commands are
/// refused.
pub(super) const WAITING_COMMANDS_MAX: usize = 65_536;

/// What waits for a `write_delay`, on all shards together: this part of `HUB_OUTBOX_TOTAL_BYTES`. It would
/// count against slow clients, who are cut first.
const DELAYED_PART: usize = 8;

/// How joining all channels of a raw session ended.
pub type Joined = Result<(), ReplyError>;

pub(super) enum Local {
    Pending(Waiters),
    Live(u32),
}

pub(super) enum Request {
    /// A publish of a session.
    Session {
        id: SessionId,
        command: u32,
    },
    SessionHistory {
        id: SessionId,
        command: u32,
    },
    SessionPresence {
        id: SessionId,
        command: u32,
    },
    /// A read for those who join a channel.
    Stream {
        id: ChannelId,
        key: ReadKey,
    },
    /// The periodic look at where a stream stands.
    Check {
        id: ChannelId,
        asked_at: Position,
    },
    History(oneshot::Sender<Result<Arc<HistoryPage>, HistoryError>>),
    HistoryRemove(oneshot::Sender<Result<(), HistoryError>>),
    Presence(oneshot::Sender<Result<Arc<Presence>, PresenceError>>),
    Publish(oneshot::Sender<Result<Position, PublishError>>),
    Survey(oneshot::Sender<SurveyResult>),
    Control(oneshot::Sender<Result<(), PublishError>>),
    LookUp(oneshot::Sender<Result<String, LookUpError>>),
}

pub(super) struct State {
    pub node: Arc<Node>,
    pub idx: usize,
    /// How often the shard has started anew.
    pub life: u32,
    pub hub: Hub,
    pub sessions: Vec<Option<Session>>,
    pub users: Users,
    pub controls: Controls,
    pub stays: Stays,
    pub names: HashMap<Box<str>, Local>,
    /// By slot; a stream only for channels with recovery.
    pub streams: Vec<Option<Box<Stream>>>,
    pub paces: Paces,
    /// Where the periodic check of streams goes on.
    pub checked_to: usize,
    pub n_checks: usize,
    /// Channels where a client knows more than was delivered here, and waits.
    pub ahead: Vec<ChannelId>,
    /// Answers to a frame that is still being read: queued behind its last command.
    pub answer_bytes: usize,
    /// What catch-ups may still take until the next tick, bytes.
    pub catch_up_room: usize,
    /// Reads whose askers weren't all answered for want of room, and until when they wait, milliseconds.
    pub put_off: VecDeque<(ChannelId, ReadKey, u64)>,
    pub requests: Slab<Request>,
    pub commands: Vec<BrokerCommand>,
    pub auth: Arc<Auth>,
    pub link: LinkState,
    pub now_ms: u64,
    /// When the timers of sessions were looked at, milliseconds.
    pub swept_ms: u64,
    pub drain: Option<Drain>,
    /// What came before a connect was answered, and is to be run.
    pub held: Vec<(SessionId, Vec<u8>)>,
}

/// Counters go on where they were before a panic.
fn totals_of(metrics: &ShardMetrics) -> Totals {
    Totals {
        deliveries: metrics.deliveries.get(),
        writes: metrics.writes.get(),
        sent_bytes: metrics.sent_bytes.get(),
        dropped_frames: metrics.drops_slow_consumer.get(),
        skipped: metrics.drops_not_utf8.get(),
        conflated: metrics.conflated.get(),
        delayed: metrics.delayed.get(),
        delays_cut: metrics.delays_cut.get(),
        patches: Patches {
            n: metrics.patches.get(),
            bytes: metrics.patch_bytes.get(),
            full_bytes: metrics.patched_bytes.get(),
        },
    }
}

impl State {
    pub fn new(node: Arc<Node>, idx: usize, life: u32) -> Self {
        let config = &node.config;
        let mut hub = Hub::new(config.outbox_bytes_max, totals_of(&node.metrics.shards[idx]));
        hub.delays.bytes_max = config.outbox_total_bytes / DELAYED_PART / config.shards;
        Self {
            hub,
            sessions: Vec::new(),
            users: Users::default(),
            controls: Controls::default(),
            stays: Stays::default(),
            auth: node.auth(),
            names: HashMap::default(),
            streams: Vec::new(),
            paces: Paces::default(),
            checked_to: 0,
            n_checks: 0,
            ahead: Vec::new(),
            answer_bytes: 0,
            catch_up_room: catch_up_room(&node.config, 0),
            put_off: VecDeque::new(),
            requests: Slab::new(),
            // After a panic the broker has to forget what this shard wanted before.
            commands: if life == 0 {
                Vec::new()
            } else {
                vec![BrokerCommand::Forget { shard: idx }]
            },
            link: if node.config.redis_url.is_some() { LinkState::Down } else { LinkState::Up },
            now_ms: node.now_ms(),
            swept_ms: node.now_ms(),
            drain: None,
            held: Vec::new(),
            idx,
            life,
            node,
        }
    }

    pub fn session(&mut self, id: SessionId) -> Option<&mut Session> {
        if self.hub.id_at(id.idx) != Some(id) {
            return None;
        }
        self.sessions.get_mut(id.idx as usize)?.as_mut()
    }

    /// The slot of a channel that is live here.
    pub fn live_slot(&self, channel: &str) -> Option<u32> {
        match self.names.get(channel) {
            Some(Local::Live(slot)) => Some(*slot),
            _ => None,
        }
    }

    /// Whether a session is subscribed to a channel, really and already.
    pub fn is_live(&self, id: SessionId, channel: &str) -> bool {
        self.live_slot(channel).is_some_and(|slot| self.hub.is_subscribed(id, slot))
    }

    /// Whether a session still listens: no close is queued, or waits for replies.
    pub fn is_open(&mut self, id: SessionId) -> bool {
        !self.hub.is_closing(id) && self.session(id).is_some_and(|session| !session.is_ending())
    }

    /// Hands a publish to the broker, or answers at once that it can't.
    pub fn publish(&mut self, publish: Publish, request: Request) {
        let shard = self.idx;
        if self.is_overrun() {
            self.on_published(request, Err(PublishError::Unavailable));
            return;
        }
        let request = self.ask(request);
        self.commands.push(BrokerCommand::Publish { shard, request, publish: Box::new(publish) });
    }

    /// The same for a read of history.
    pub fn read_history(&mut self, ask: HistoryAsk, request: Request) {
        let shard = self.idx;
        if self.is_overrun() {
            self.on_page(request, Err(HistoryError::Unavailable));
            return;
        }
        let request = self.ask(request);
        self.commands.push(BrokerCommand::History { shard, request, ask: Box::new(ask) });
    }

    /// More commands wait for the broker than may.
    pub fn is_overrun(&self) -> bool {
        self.commands.len() >= WAITING_COMMANDS_MAX
    }

    /// Remembers a question to the broker. Its number names this life of the shard too, so that
    /// the answer to an earlier one is no answer.
    pub fn ask(&mut self, request: Request) -> u32 {
        let at = self.requests.insert(request) as u32;
        debug_assert!(at < 1 << LIFE_SHIFT);
        (self.life << LIFE_SHIFT) | at
    }

    fn answered(&mut self, request: u32) -> Option<Request> {
        let at = (request & ((1 << LIFE_SHIFT) - 1)) as usize;
        (request >> LIFE_SHIFT == self.life & 0xff).then(|| self.requests.try_remove(at)).flatten()
    }

    fn on_published(&mut self, request: Request, result: Result<Position, PublishError>) {
        match request {
            Request::Session { id, command } => self.reply_published(id, command, result.is_ok()),
            Request::Publish(sender) => drop(sender.send(result)),
            _ => {}
        }
    }

    fn on_page(&mut self, request: Request, result: Result<Arc<HistoryPage>, HistoryError>) {
        match request {
            Request::SessionHistory { id, command } => self.reply_history(id, command, result),
            Request::Stream { id, key } => self.on_stream_page(id, key, result.ok().as_ref()),
            Request::Check { id, asked_at } => self.on_checked(id, asked_at, result.ok().as_ref()),
            Request::History(sender) => drop(sender.send(result)),
            _ => {}
        }
    }

    pub fn on_broker(&mut self, event: ShardEvent) {
        match event {
            ShardEvent::Acquired { id, channel, newest } => {
                self.on_acquired(id, channel, newest);
            }
            ShardEvent::AcquireFailed { name } => self.on_acquire_failed(&name),
            ShardEvent::Published { request, result } => {
                if let Some(request) = self.answered(request) {
                    self.on_published(request, result);
                }
            }
            ShardEvent::History { request, result } => {
                if let Some(request) = self.answered(request) {
                    self.on_page(request, result);
                }
            }
            ShardEvent::Present { request, result } => {
                if let Some(request) = self.answered(request) {
                    self.on_present(request, result);
                }
            }
            ShardEvent::HistoryRemoved { request, result } => {
                if let Some(Request::HistoryRemove(sender)) = self.answered(request) {
                    let _ = sender.send(result);
                }
            }
            ShardEvent::Surveyed { request, result } => {
                if let Some(Request::Survey(sender)) = self.answered(request) {
                    drop(sender.send(*result));
                }
            }
            ShardEvent::ListChannels { owed, ask } => self.list_channels(owed, &ask),
            ShardEvent::Controlled { request, result } => {
                if let Some(Request::Control(sender)) = self.answered(request) {
                    let _ = sender.send(result);
                }
            }
            ShardEvent::LookedUp { request, result } => {
                if let Some(Request::LookUp(sender)) = self.answered(request) {
                    let _ = sender.send(result);
                }
            }
            ShardEvent::Emptied { channel } => self.on_removed(channel),
            ShardEvent::Link(link) => self.link = link,
            ShardEvent::Gap(gapped) => self.on_gap(gapped),
            ShardEvent::Access(auth) => {
                self.auth = auth;
                self.set_delays();
                self.end_unkept_streams();
            }
            _ => {}
        }
    }

    /// Writes what is pending for a session, and draws the consequences.
    pub fn visit(&mut self, idx: u32) {
        let id = self.hub.id_at(idx);
        let had_own = id.is_some_and(|id| !self.hub.own_is_empty(id));
        let visit = self.hub.visit(idx, &mut |fd, parts| socket::send(fd, parts));
        // Nearly always it got publications, and its cold part needn't be looked at.
        if visit != Visit::Waiting && (visit != Visit::CaughtUp || had_own) {
            self.on_visited(idx, visit);
        }
    }

    /// The same for a run of sessions; tells which it visited.
    pub fn visit_run(
        &mut self,
        from: u32,
        to: u32,
        n_max: usize,
        mut on_visited: impl FnMut(u32),
    ) -> Run {
        // Nearly always empty.
        let mut not_caught_up = Vec::new();
        let write = &mut |fd, slice: &[u8]| socket::send_slice(fd, slice);
        let run = self.hub.visit_run(from, to, n_max, write, &mut |idx, visit| {
            on_visited(idx);
            if visit != Visit::CaughtUp {
                not_caught_up.push((idx, visit));
            }
        });
        not_caught_up.into_iter().for_each(|(idx, visit)| self.on_visited(idx, visit));
        run
    }

    fn on_visited(&mut self, idx: u32, visit: Visit) {
        let Some(id) = self.hub.id_at(idx) else { return };
        let now_ms = self.now_ms;
        let own_is_empty = self.hub.own_is_empty(id);
        let Some(session) = self.sessions[idx as usize].as_mut() else { return };
        if session.ping_queued && own_is_empty {
            session.ping_queued = false;
            session.pong_by_ms = now_ms + self.node.config.pong_timeout.as_millis() as u64;
        }
        match visit {
            Visit::CaughtUp | Visit::Waiting => {}
            Visit::Full => {
                session.stalled_ms = now_ms;
                session.wake();
            }
            Visit::OverBound => self.close(id, Disconnect::SLOW, Queued::Drop),
            Visit::Closed => {
                // The peer answers with its own close, or just ends; reading goes on until then.
                if let Some(fd) = self.hub.fd(id) {
                    socket::shut_down_write(fd);
                }
            }
            Visit::Gone => session.kill(),
        }
    }

    pub fn close(&mut self, id: SessionId, disconnect: Disconnect, queued: Queued) {
        self.close_with(id, disconnect.code, disconnect.reason, queued);
    }

    pub fn close_with(&mut self, id: SessionId, code: u16, reason: &str, queued: Queued) {
        if self.hub.is_closing(id) {
            return;
        }
        let mut out = Vec::with_capacity(reason.len() + 4);
        frame::put_close(&mut out, code, reason);
        self.hub.close(id, &out, queued);
        self.go(id);
        self.release_emptied();
        let now_ms = self.now_ms;
        if let Some(session) = self.session(id) {
            session.linger_until_ms = now_ms + LINGER_MS;
        }
        self.node.metrics.shards[self.idx].on_close(code);
    }

    /// What decisions are taken on (drain, limits) or clients are told (`info`): never stale.
    pub fn report_gauges(&self, metrics: &ShardMetrics) {
        metrics.connections.set(self.hub.n_sessions() as u64);
        metrics.subscriptions.set(self.hub.n_subscriptions() as u64);
        metrics.channels.set(self.hub.n_channels() as u64);
        metrics.cohorts.set(self.hub.n_cohorts() as u64);
    }

    pub fn report(&self, metrics: &ShardMetrics) {
        let totals = self.hub.totals;
        metrics.deliveries.set(totals.deliveries);
        metrics.writes.set(totals.writes);
        metrics.sent_bytes.set(totals.sent_bytes);
        metrics.drops_slow_consumer.set(totals.dropped_frames);
        metrics.drops_not_utf8.set(totals.skipped);
        metrics.conflated.set(totals.conflated);
        metrics.delayed.set(totals.delayed);
        metrics.delays_cut.set(totals.delays_cut);
        metrics.patches.set(totals.patches.n);
        metrics.patch_bytes.set(totals.patches.bytes);
        metrics.patched_bytes.set(totals.patches.full_bytes);
        metrics.outbox_bytes.set(self.hub.outbox_bytes() as u64);
    }
}
