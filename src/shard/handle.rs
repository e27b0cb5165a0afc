//! A shard as its tasks and its loop hold it: the state behind one `RefCell`, borrowed for the
//! length of one event and never over an await, and the way out to the broker.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use uuid::Uuid;

use super::control::Left;
use super::hub::{Fanout, Queued, Run, SessionId};
use super::reader::{Flow, Input, Limits, Reader};
use super::session::Session;
use super::state::{Joined, Request, State};
use super::timers::Drain;
use super::{ShardEvent, socket};
use crate::admission::{Refused, SocketPermit};
use crate::auth::Denial;
use crate::broker::{
    BrokerCommand, Control, Door, HistoryAsk, HistoryError, HistoryPage, LookUp, LookUpError,
    Presence, PresenceAsk, PresenceError, Publish, PublishError, SurveyResult, Topic,
};
use crate::config::Namespace;
use crate::http::Handshakes;
use crate::mailbox::Urgency;
use crate::metrics::ShardMetrics;
use crate::node::Node;
use crate::position::Position;
use crate::protocol::command::Subscribe;
use crate::publication::Format;

/// Connections (handshakes, what clients send, ends) have so long between two turns of the loop: however
/// much comes, from however many, the walk gets its share.
const INPUT_TIME_MAX: Duration = Duration::from_micros(100);
/// Connections woken for a turn: few handshakes, or many short commands, fill one.
const WOKEN_MAX: usize = 32;

/// One shard, on its thread.
pub struct Shard {
    pub node: Arc<Node>,
    idx: usize,
    door: Door,
    state: RefCell<State>,
    loop_waker: RefCell<Option<Waker>>,
    /// Spent on connections since the loop's last turn.
    input_time: Cell<Duration>,
    /// Connections whose turn comes after the loop's. Each is there once, or twice if something else
    /// woke it too.
    put_off: RefCell<VecDeque<Waker>>,
    /// Something is held back by `max_rate`, or by a `write_delay`, for a shorter time than anything else.
    pub(super) is_held: Notify,
    /// The server API asks something of sessions.
    pub(super) has_controls: Notify,
    stopped: Cell<bool>,
    broken: Cell<bool>,
    /// Connections that aren't upgraded.
    pub handshakes: Handshakes,
}

impl Shard {
    pub(super) fn new(node: Arc<Node>, idx: usize, life: u32, door: Door) -> Rc<Self> {
        let state = State::new(node.clone(), idx, life);
        let handshakes_max = node.config.handshakes_max.div_ceil(node.config.shards);
        Rc::new(Self {
            node,
            idx,
            door,
            state: RefCell::new(state),
            loop_waker: RefCell::new(None),
            input_time: Cell::new(Duration::ZERO),
            put_off: RefCell::new(VecDeque::new()),
            is_held: Notify::new(),
            has_controls: Notify::new(),
            stopped: Cell::new(false),
            broken: Cell::new(false),
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

    pub(super) fn visit(&self, idx: u32) {
        self.state.borrow_mut().visit(idx);
    }

    pub(super) fn visit_run(
        &self,
        from: u32,
        to: u32,
        n_max: usize,
        on_visited: impl FnMut(u32),
    ) -> Run {
        self.state.borrow_mut().visit_run(from, to, n_max, on_visited)
    }

    pub(super) fn has_stopped(&self) -> bool {
        self.stopped.get()
    }

    /// Starts a task; a panic in it breaks the shard.
    pub(super) fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let guard = PanicGuard(self.clone());
        tokio::task::spawn_local(async move {
            let _guard = guard;
            task.await;
        });
    }

    /// Ends this life of the shard: the state can't be trusted any more.
    pub fn break_down(&self) {
        self.broken.set(true);
        self.wake_loop_anyway();
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.get()
    }

    pub(super) fn set_loop_waker(&self, cx: &Context<'_>) {
        self.loop_waker.replace(Some(cx.waker().clone()));
    }

    fn wake_loop(&self) {
        if !self.is_clean() {
            self.wake_loop_anyway();
        }
    }

    fn wake_loop_anyway(&self) {
        if let Some(waker) = self.loop_waker.take() {
            waker.wake();
        }
    }

    /// Polls a connection's task, or puts it off until the loop had its turn.
    pub(super) fn poll_in_turn(
        &self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<()>,
    ) -> Poll<()> {
        if self.is_flooded() {
            self.put_off.borrow_mut().push_back(cx.waker().clone());
            self.wake_loop_anyway();
            return Poll::Pending;
        }
        let (began, before) = (Instant::now(), self.input_time.get());
        let polled = poll(cx);
        self.input_time.set(before + began.elapsed());
        polled
    }

    /// Whether connections had as much time since the loop's last turn as they may have.
    pub(super) fn is_flooded(&self) -> bool {
        self.input_time.get() >= INPUT_TIME_MAX
    }

    /// The loop had its turn: those put off longest come next. True: more wait for the turn after.
    pub(super) fn allow_input(&self) -> bool {
        self.input_time.set(Duration::ZERO);
        let mut put_off = self.put_off.borrow_mut();
        let n = put_off.len().min(WOKEN_MAX);
        put_off.drain(..n).for_each(Waker::wake);
        !put_off.is_empty()
    }

    /// Sends what is for the broker. Ends every event and every read, so it also reports, and runs what
    /// waited for it.
    pub fn flush_door(&self) {
        let mut state = self.state.borrow_mut();
        state.run_held();
        if state.take_new_due() {
            self.is_held.notify_one();
        }
        state.report_gauges(self.metrics());
        if let Err(batch) = self.door.try_send(std::mem::take(&mut state.commands), Urgency::Prompt)
        {
            state.commands = batch;
        }
    }

    /// Handles an event. Returns the publication bytes that were queued.
    pub(super) fn on_event(self: &Rc<Self>, event: ShardEvent) -> Fanout {
        match event {
            ShardEvent::Publication { channel, publication } => {
                return self.state.borrow_mut().on_publication(channel, &publication);
            }
            ShardEvent::Change { channel, change } => {
                return self.state.borrow_mut().on_change(channel, &change);
            }
            ShardEvent::Accepted(accepted) => {
                let shard = self.clone();
                let mut serve = Box::pin(crate::http::serve(self.clone(), *accepted));
                self.spawn(poll_fn(move |cx| shard.poll_in_turn(cx, |cx| serve.as_mut().poll(cx))));
            }
            ShardEvent::Drain { until_ms } => {
                let mut state = self.state.borrow_mut();
                state.show_all(Instant::now());
                state.drain =
                    Some(Drain::new(self.node.now_ms(), until_ms, state.hub.n_sessions()));
            }
            ShardEvent::Control(control) => {
                self.state.borrow_mut().on_control(control);
                self.has_controls.notify_one();
            }
            ShardEvent::Stop => self.stopped.set(true),
            ShardEvent::Ping => self.metrics().answered_ms.set(self.node.now_ms()),
            event => self.state.borrow_mut().on_broker(event),
        }
        Fanout::default()
    }

    pub(super) fn on_tick(&self) {
        let mut state = self.state.borrow_mut();
        state.now_ms = self.node.now_ms();
        // Before pings are queued, which the walk that follows writes at once.
        state.report(self.metrics());
        state.relieve();
        state.hub.free_unused();
        state.sweep();
        state.catch_up();
        state.check_streams();
        state.drain();
        self.metrics().http_connections.set(self.handshakes.n_open() as u64);
        drop(state);
        self.flush_door();
        self.wake_loop();
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.state.borrow().next_due()
    }

    pub(super) fn show_due(&self) {
        self.state.borrow_mut().show_due(Instant::now());
        self.wake_loop();
    }

    /// Carries out a slice of what the server API asked.
    pub(super) fn obey_some(&self) -> Left {
        let left = self.state.borrow_mut().obey_some();
        self.flush_door();
        self.wake_loop();
        left
    }

    // --- sessions

    /// Takes a seat for a new session; it isn't written to before [`Shard::attach`].
    pub fn add(
        &self,
        connection: Uuid,
        format: Format,
        address: IpAddr,
    ) -> Result<SessionId, Refused> {
        let permit = self.node.admission.admit(address, self.node.now_ms());
        let permit = permit.inspect_err(|refused| self.metrics().on_refused(*refused))?;
        let mut state = self.state.borrow_mut();
        let id = state.hub.add_session(format);
        let at = id.idx as usize;
        if state.sessions.len() <= at {
            state.sessions.resize_with(at + 1, || None);
        }
        let session = Session::new(
            connection,
            address,
            permit,
            format,
            self.node.now_ms(),
            &self.node.config,
        );
        state.sessions[at] = Some(session);
        state.report_gauges(self.metrics());
        Ok(id)
    }

    /// Signs a raw session in and looks whether it may have all its channels.
    pub fn admit_raw(&self, id: SessionId, token: &str, channels: &[String]) -> Result<(), Denial> {
        let mut state = self.state.borrow_mut();
        // A raw client has the channels that it names, and no others.
        state.sign_in(id, token)?;
        for channel in channels {
            let subscribe = Subscribe { channel: channel.into(), ..Subscribe::default() };
            state.authorize(id, &subscribe)?;
        }
        Ok(())
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
        self.state.borrow_mut().register_raw(id);
        tokio::task::spawn_local(socket::serve(self.clone(), id, stream, leftover, permit));
    }

    pub(super) fn attach(&self, id: SessionId, fd: i32) {
        let mut state = self.state.borrow_mut();
        state.hub.attach(id, fd);
        state.visit(id.idx);
    }

    /// Ends a session. Idempotent.
    pub fn remove(&self, id: SessionId) {
        if self.is_broken() {
            return;
        }
        let mut state = self.state.borrow_mut();
        if state.hub.id_at(id.idx) == Some(id) {
            state.deregister(id);
            state.go(id);
            state.hub.remove_session(id);
            if let Some(session) = state.sessions[id.idx as usize].take() {
                state.users.remove(session.user(), id.idx);
            }
            state.release_emptied();
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
        let began = Instant::now();
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
            // Who is told that somebody came, or went, finds it so.
            drop(state);
            self.flush_door();
            state = self.state.borrow_mut();
            if !state.hub.is_lagging(id) {
                state.visit(id.idx);
            }
        }
        drop(state);
        self.flush_door();
        self.wake_loop();
        self.input_time.set(self.input_time.get() + began.elapsed());
    }

    // --- the server API

    /// Publishes; the answer comes through the receiver.
    pub fn publish(&self, publish: Publish) -> oneshot::Receiver<Result<Position, PublishError>> {
        let (sender, receiver) = oneshot::channel();
        self.state.borrow_mut().publish(publish, Request::Publish(sender));
        self.flush_door();
        receiver
    }

    /// Reads history; the answer comes through the receiver.
    pub fn read_history(
        &self,
        ask: HistoryAsk,
    ) -> oneshot::Receiver<Result<Arc<HistoryPage>, HistoryError>> {
        let (sender, receiver) = oneshot::channel();
        self.state.borrow_mut().read_history(ask, Request::History(sender));
        self.flush_door();
        receiver
    }

    /// Asks who is in a channel; the answer comes through the receiver.
    pub fn read_presence(
        &self,
        ask: PresenceAsk,
    ) -> oneshot::Receiver<Result<Arc<Presence>, PresenceError>> {
        let (sender, receiver) = oneshot::channel();
        self.state.borrow_mut().read_presence(ask, Request::Presence(sender));
        self.flush_door();
        receiver
    }

    /// Drops a channel's publications.
    pub fn remove_history(&self, channel: &str) -> oneshot::Receiver<Result<(), HistoryError>> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state.borrow_mut();
        let request = state.ask(Request::HistoryRemove(sender));
        let (shard, channel) = (self.idx, channel.into());
        state.commands.push(BrokerCommand::HistoryRemove { shard, request, channel });
        drop(state);
        self.flush_door();
        receiver
    }

    /// What holds for a channel; `None`: there is no such.
    pub fn namespace_of(&self, channel: &str) -> Option<Namespace> {
        self.state.borrow().auth.namespaces().of(channel).copied()
    }

    /// Reads the connection registry, where there is one.
    pub fn look_up(&self, ask: LookUp) -> oneshot::Receiver<Result<String, LookUpError>> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state.borrow_mut();
        let request = state.ask(Request::LookUp(sender));
        let (shard, ask) = (self.idx, Box::new(ask));
        state.commands.push(BrokerCommand::LookUp { shard, request, ask });
        drop(state);
        self.flush_door();
        receiver
    }

    /// Asks all nodes.
    pub fn survey(&self, topic: Topic) -> oneshot::Receiver<SurveyResult> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state.borrow_mut();
        let request = state.ask(Request::Survey(sender));
        let shard = self.idx;
        state.commands.push(BrokerCommand::Survey { shard, request, topic });
        drop(state);
        self.flush_door();
        receiver
    }

    /// Asks something of a user's connections on all nodes; answered once it is on its way to them.
    pub fn control(&self, control: Control) -> oneshot::Receiver<Result<(), PublishError>> {
        let (sender, receiver) = oneshot::channel();
        self.state.borrow_mut().control(control, sender);
        self.flush_door();
        receiver
    }
}

/// Breaks the shard when its task panics.
struct PanicGuard(Rc<Shard>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.break_down();
        }
    }
}
