//! What a shard owns: the hub, the sessions, names of channels, requests to the broker.
//!
//! One `RefCell`, borrowed for the length of one event and never over an await.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};

use ahash::HashMap;
use slab::Slab;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::hub::{Hub, Queued, SessionId, Visit};
use super::reader::{Flow, Input, Limits, Reader};
use super::session::Session;
use super::timers::Drain;
use super::waiting::Waiters;
use super::{LinkState, ShardEvent, socket};
use crate::broker::{BrokerCommand, Door, Position, Publish, PublishError, SurveyResult};
use crate::frame;
use crate::http::Handshakes;
use crate::mailbox::Urgency;
use crate::metrics::ShardMetrics;
use crate::node::{Node, SocketPermit};
use crate::protocol::{Disconnect, ReplyError};
use crate::publication::Format;

/// A closing handshake may take this long, milliseconds.
pub(super) const LINGER_MS: u64 = 3_000;
/// Commands that wait for room in the broker's mailbox; more publishes are refused.
const WAITING_COMMANDS_MAX: usize = 65_536;

/// How joining all channels of a raw session ended.
pub type Joined = Result<(), ReplyError>;

pub(super) enum Local {
    Pending(Waiters),
    Live(u32),
}

pub(super) enum Request {
    Session { id: SessionId, command: u32 },
    Publish(oneshot::Sender<Result<Position, PublishError>>),
    Survey(oneshot::Sender<SurveyResult>),
}

pub(super) struct State {
    pub node: Arc<Node>,
    pub idx: usize,
    pub hub: Hub,
    pub sessions: Vec<Option<Session>>,
    pub names: HashMap<Box<str>, Local>,
    pub requests: Slab<Request>,
    pub commands: Vec<BrokerCommand>,
    pub link: LinkState,
    pub now_ms: u64,
    pub drain: Option<Drain>,
}

/// One shard, on its thread.
pub struct Shard {
    pub node: Arc<Node>,
    idx: usize,
    door: Door,
    state: RefCell<State>,
    loop_waker: RefCell<Option<Waker>>,
    stopped: Cell<bool>,
    /// Connections that aren't upgraded.
    pub handshakes: Handshakes,
}

impl Shard {
    pub(super) fn new(node: Arc<Node>, idx: usize, door: Door) -> Rc<Self> {
        let state = State {
            hub: Hub::new(node.config.outbox_bytes_max),
            sessions: Vec::new(),
            names: HashMap::default(),
            requests: Slab::new(),
            commands: Vec::new(),
            link: if node.config.redis_url.is_some() { LinkState::Down } else { LinkState::Up },
            now_ms: node.now_ms(),
            drain: None,
            idx,
            node: node.clone(),
        };
        let handshakes_max = node.config.handshakes_max.div_ceil(node.config.shards);
        Rc::new(Self {
            node,
            idx,
            door,
            state: RefCell::new(state),
            loop_waker: RefCell::new(None),
            stopped: Cell::new(false),
            handshakes: Handshakes::new(handshakes_max),
        })
    }

    pub fn metrics(&self) -> &ShardMetrics {
        &self.node.metrics.shards[self.idx]
    }

    // --- the loop

    pub(super) fn is_clean(&self) -> bool {
        self.state.borrow().hub.is_clean()
    }

    pub(super) fn n_seats(&self) -> u32 {
        self.state.borrow().hub.seats_len()
    }

    pub(super) fn next_dirty(&self, from: u32, to: u32) -> Option<u32> {
        self.state.borrow().hub.next_dirty(from, to)
    }

    pub(super) fn visit(&self, idx: u32) {
        self.state.borrow_mut().visit(idx);
    }

    pub(super) fn has_stopped(&self) -> bool {
        self.stopped.get()
    }

    pub(super) fn set_loop_waker(&self, cx: &Context<'_>) {
        self.loop_waker.replace(Some(cx.waker().clone()));
    }

    fn wake_loop(&self) {
        if !self.is_clean()
            && let Some(waker) = self.loop_waker.take()
        {
            waker.wake();
        }
    }

    /// Sends what is for the broker. Ends every event and every read, so it also reports.
    pub fn flush_door(&self) {
        let mut state = self.state.borrow_mut();
        state.report_gauges(self.metrics());
        if let Err(batch) = self.door.try_send(std::mem::take(&mut state.commands), Urgency::Prompt)
        {
            state.commands = batch;
        }
    }

    /// Handles an event. Returns the publication bytes that were queued.
    pub(super) fn on_event(self: &Rc<Self>, event: ShardEvent) -> usize {
        match event {
            ShardEvent::Publication { channel, publication } => {
                return self.state.borrow_mut().hub.publish(channel, &publication);
            }
            ShardEvent::Accepted(accepted) => {
                tokio::task::spawn_local(crate::http::serve(self.clone(), *accepted));
            }
            ShardEvent::Drain { spread_ms } => {
                let mut state = self.state.borrow_mut();
                let n_at_start = state.hub.n_sessions();
                let started_ms = self.node.now_ms();
                self.handshakes.close_idle();
                state.drain = Some(Drain::new(started_ms, spread_ms, n_at_start));
            }
            ShardEvent::Stop => self.stopped.set(true),
            ShardEvent::Ping => self.metrics().answered_ms.set(self.node.now_ms()),
            event => self.state.borrow_mut().on_broker(event),
        }
        0
    }

    pub(super) fn on_tick(&self) {
        let mut state = self.state.borrow_mut();
        state.now_ms = self.node.now_ms();
        state.sweep();
        state.drain();
        state.report(self.metrics());
        self.metrics().http_connections.set(self.handshakes.n_open() as u64);
        drop(state);
        self.flush_door();
        self.wake_loop();
    }

    // --- sessions

    /// Takes a seat for a new session; it isn't written to before [`Shard::attach`]. `None`:
    /// the node has as many clients as it may.
    pub fn add(&self, connection: Uuid, format: Format) -> Option<SessionId> {
        if !self.node.admit_client() {
            self.metrics().refused_clients.add(1);
            return None;
        }
        let mut state = self.state.borrow_mut();
        let id = state.hub.add_session(format);
        let at = id.idx as usize;
        if state.sessions.len() <= at {
            state.sessions.resize_with(at + 1, || None);
        }
        let session = Session::new(connection, format, self.node.now_ms(), &self.node.config);
        state.sessions[at] = Some(session);
        state.report_gauges(self.metrics());
        Some(id)
    }

    /// Joins a raw session to its channels; resolves once all are live.
    pub fn join(&self, id: SessionId, channels: &[String]) -> oneshot::Receiver<Joined> {
        let (sender, receiver) = oneshot::channel();
        self.state.borrow_mut().join_raw(id, channels, sender);
        self.flush_door();
        receiver
    }

    /// Starts the task of an upgraded connection.
    pub fn start(
        self: &Rc<Self>,
        id: SessionId,
        stream: tokio::net::TcpStream,
        leftover: Vec<u8>,
        permit: SocketPermit,
    ) {
        tokio::task::spawn_local(socket::serve(self.clone(), id, stream, leftover, permit));
    }

    pub(super) fn attach(&self, id: SessionId, fd: i32) {
        let mut state = self.state.borrow_mut();
        state.hub.attach(id, fd);
        state.visit(id.idx);
    }

    /// Ends a session. Idempotent.
    pub fn remove(&self, id: SessionId) {
        let mut state = self.state.borrow_mut();
        if state.hub.id_at(id.idx) == Some(id) {
            state.hub.remove_session(id);
            state.sessions[id.idx as usize] = None;
            state.release_emptied();
            self.node.client_left();
        }
        drop(state);
        self.flush_door();
    }

    pub(super) fn set_waker(&self, id: SessionId, cx: &Context<'_>) {
        if let Some(session) = self.state.borrow_mut().session(id)
            && !session.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            session.waker = Some(cx.waker().clone());
        }
    }

    pub(super) fn is_dead(&self, id: SessionId) -> bool {
        self.state.borrow_mut().session(id).is_none_or(|session| session.dead)
    }

    pub(super) fn is_lagging(&self, id: SessionId) -> bool {
        let mut state = self.state.borrow_mut();
        state.hub.is_lagging(id) && state.session(id).is_some_and(|session| !session.dead)
    }

    pub(super) fn write_on(&self, id: SessionId) {
        let mut state = self.state.borrow_mut();
        state.hub.on_writable(id);
        state.visit(id.idx);
    }

    /// Handles what a client sent.
    pub(super) fn on_bytes(&self, id: SessionId, reader: &mut Reader, bytes: &mut [u8]) {
        self.metrics().received_bytes.add(bytes.len() as u64);
        let limits = Limits {
            message_bytes_max: self.node.config.message_bytes_max,
            fragments_max: super::reader::FRAGMENTS_MAX,
        };
        let mut state = self.state.borrow_mut();
        if state.is_open(id) {
            let outcome = reader.feed(bytes, &limits, &mut |input: Input<'_>| {
                state.on_input(id, input);
                if state.is_open(id) { Flow::Continue } else { Flow::Stop }
            });
            if let Err(violation) = outcome {
                // SDKs expect 1009 without a reason (client protocol, 1.6).
                let reason = if violation.close_code() == 1009 { "" } else { violation.reason() };
                state.close_with(id, violation.close_code(), reason, Queued::Flush);
            }
            if !state.hub.is_lagging(id) {
                state.visit(id.idx);
            }
        }
        drop(state);
        self.flush_door();
        self.wake_loop();
    }

    // --- the server API

    /// Publishes; the answer comes through the receiver.
    pub fn publish(&self, publish: Publish) -> oneshot::Receiver<Result<Position, PublishError>> {
        let (sender, receiver) = oneshot::channel();
        self.state.borrow_mut().publish(publish, Request::Publish(sender));
        self.flush_door();
        receiver
    }

    /// Asks all shards for their channels.
    pub fn survey(&self) -> oneshot::Receiver<SurveyResult> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state.borrow_mut();
        let request = state.requests.insert(Request::Survey(sender)) as u32;
        let shard = self.idx;
        state.commands.push(BrokerCommand::Survey { shard, request });
        drop(state);
        self.flush_door();
        receiver
    }
}

impl State {
    pub fn session(&mut self, id: SessionId) -> Option<&mut Session> {
        if self.hub.id_at(id.idx) != Some(id) {
            return None;
        }
        self.sessions.get_mut(id.idx as usize)?.as_mut()
    }

    /// Whether a session still listens: no close is queued, or waits for replies.
    fn is_open(&mut self, id: SessionId) -> bool {
        !self.hub.is_closing(id) && self.session(id).is_some_and(|session| !session.is_ending())
    }

    /// Hands a publish to the broker, or answers at once that it can't.
    pub fn publish(&mut self, publish: Publish, request: Request) {
        let shard = self.idx;
        if self.commands.len() >= WAITING_COMMANDS_MAX {
            self.on_published(request, Err(PublishError::Unavailable));
            return;
        }
        let request = self.requests.insert(request) as u32;
        self.commands.push(BrokerCommand::Publish { shard, request, publish: Box::new(publish) });
    }

    fn on_published(&mut self, request: Request, result: Result<Position, PublishError>) {
        match request {
            Request::Session { id, command } => self.reply_published(id, command, result.is_ok()),
            Request::Publish(sender) => drop(sender.send(result)),
            Request::Survey(_) => {}
        }
    }

    fn on_broker(&mut self, event: ShardEvent) {
        match event {
            ShardEvent::Acquired { id, channel } => self.on_acquired(id, channel),
            ShardEvent::AcquireFailed { name } => self.on_acquire_failed(&name),
            ShardEvent::Published { request, result } => {
                if let Some(request) = self.requests.try_remove(request as usize) {
                    self.on_published(request, result);
                }
            }
            ShardEvent::Surveyed { request, result } => {
                if let Some(Request::Survey(sender)) = self.requests.try_remove(request as usize) {
                    drop(sender.send(*result));
                }
            }
            ShardEvent::Survey { survey } => {
                let live = self.names.iter().filter_map(|(name, local)| match local {
                    Local::Live(slot) => Some((name.clone(), self.hub.n_subscribers(*slot) as u32)),
                    Local::Pending(_) => None,
                });
                let channels = live.collect();
                self.commands.push(BrokerCommand::SurveyPart { survey, channels });
            }
            ShardEvent::Link(link) => self.link = link,
            _ => {}
        }
    }

    /// Writes what is pending for a session, and draws the consequences.
    pub fn visit(&mut self, idx: u32) {
        let visit = self.hub.visit(idx, &mut |fd, parts| socket::send(fd, parts));
        if visit == Visit::Waiting {
            return;
        }
        let Some(id) = self.hub.id_at(idx) else { return };
        let now_ms = self.now_ms;
        let own_is_empty = self.hub.own_is_empty(id);
        let Some(session) = self.sessions[idx as usize].as_mut() else { return };
        if session.ping_queued && own_is_empty {
            session.ping_queued = false;
            session.pong_by_ms = now_ms + self.node.config.pong_timeout.as_millis() as u64;
        }
        match visit {
            Visit::CaughtUp | Visit::Waiting => session.stalled_ms = 0,
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
        self.release_emptied();
        let now_ms = self.now_ms;
        if let Some(session) = self.session(id) {
            session.linger_until_ms = now_ms + LINGER_MS;
        }
        self.node.metrics.shards[self.idx].on_close(code);
    }

    /// What decisions are taken on (drain, limits) or clients are told (`info`): never stale.
    fn report_gauges(&self, metrics: &ShardMetrics) {
        metrics.connections.set(self.hub.n_sessions() as u64);
        metrics.subscriptions.set(self.hub.n_subscriptions() as u64);
        metrics.channels.set(self.hub.n_channels() as u64);
        metrics.cohorts.set(self.hub.n_cohorts() as u64);
    }

    fn report(&self, metrics: &ShardMetrics) {
        let totals = self.hub.totals;
        metrics.deliveries.set(totals.deliveries);
        metrics.writes.set(totals.writes);
        metrics.sent_bytes.set(totals.sent_bytes);
        metrics.drops_slow_consumer.set(totals.dropped_frames);
        metrics.drops_not_utf8.set(totals.skipped);
        metrics.outbox_bytes.set(self.hub.outbox_bytes() as u64);
    }
}
