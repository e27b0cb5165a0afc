//! A shard between a broker that is played and clients that check what they get against a naive log of
//! what was published.

use std::collections::{HashMap, VecDeque};

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use serde_json::{Value, json};
use uuid::Uuid;

use super::super::*;
use crate::broker::{
    BrokerCommand, Control, HistoryAsk, HistoryError, Order, Stored, Target, UnsubscribeUser, Verb,
};
use crate::channel::Channel;
use crate::config::{Config, Machine, Namespaces};
use crate::node::Node;
use crate::position::Epoch;
use crate::publication::Body;
use crate::shard::control::Left;
use crate::shard::hub::Sent;
use crate::shard::reader::{Input, MessageKind};
use crate::shard::session::Session;
use crate::shard::{Gapped, ShardEvent};

mod client;
pub use client::{Client, Stand};

pub type Checked<T> = Result<T, TestCaseError>;

const KEPT: usize = 8;
const NAME: &str = "s:a";

/// One publish after the other, and what of them is still kept.
pub struct Truth {
    pub top: Position,
    pub n_kept: usize,
}

impl Truth {
    fn page(&self, ask: &HistoryAsk) -> HistoryPage {
        let first = self.top.offset + 1 - self.n_kept as u64;
        let since = ask.since.map_or(0, |since| since.offset);
        let mut offsets: Vec<u64> = (first..=self.top.offset).collect();
        match ask.order {
            Order::Forward => offsets.retain(|offset| *offset > since),
            Order::Reverse => offsets.reverse(),
        }
        offsets.truncate(ask.limit);
        let stored = |offset: u64| {
            let body = body(Position { offset, epoch: self.top.epoch });
            Arc::new(Stored { offset, body })
        };
        HistoryPage::new(self.top, offsets.into_iter().map(stored).collect())
    }
}

fn text(at: Position) -> String {
    format!("{}-{}", at.epoch.as_str(), at.offset)
}

pub fn body(at: Position) -> Body {
    Body::plain(json!(text(at)).to_string().into_bytes())
}

/// What is on its way to the shard, and the publication that it is, or says to be lost.
struct Passing {
    event: ShardEvent,
    at: Option<Position>,
}

/// A read that was asked for, and what it found once it was carried out.
pub struct Read {
    request: u32,
    pub ask: HistoryAsk,
    page: Option<HistoryPage>,
}

pub struct Rig {
    pub state: State,
    is_cache: bool,
    pub truth: Truth,
    pub channel: Arc<Channel>,
    generation: u32,
    /// The channel was the shard's a moment ago: it gets the same id.
    lingers: bool,
    /// The channel is the shard's, at the broker.
    pub live: Option<ChannelId>,
    wire: VecDeque<Passing>,
    epochs: Vec<Epoch>,
    /// Up to here everything came to the shard, or it was told that it won't.
    passed: Position,
    pub reads: Vec<Read>,
    pub clients: Vec<Client>,
}

#[derive(Clone, Debug)]
pub enum Op {
    Publish(usize),
    /// One that stays away: the shard is told, or not.
    Lose {
        told: bool,
    },
    Deliver(usize),
    Reset,
    Expire,
    CarryOut(usize),
    Answer {
        n: usize,
        fails: bool,
    },
    Join {
        n: usize,
        recovers: bool,
    },
    Leave(usize),
    /// The server API unsubscribes a client.
    End(usize),
    /// A client that waits changes its mind.
    Change {
        n: usize,
        recovers: bool,
    },
    Vanish(usize),
    /// Another node tells a client more than this one was told.
    Elsewhere(usize),
    Pass(u64),
}

pub fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (1..4usize).prop_map(Op::Publish),
        1 => any::<bool>().prop_map(|told| Op::Lose { told }),
        8 => (1..5usize).prop_map(Op::Deliver),
        1 => Just(Op::Reset),
        1 => Just(Op::Expire),
        6 => any::<usize>().prop_map(Op::CarryOut),
        6 => (any::<usize>(), prop::bool::weighted(0.1))
            .prop_map(|(n, fails)| Op::Answer { n, fails }),
        8 => (any::<usize>(), prop::bool::weighted(0.8))
            .prop_map(|(n, recovers)| Op::Join { n, recovers }),
        3 => any::<usize>().prop_map(Op::Leave),
        2 => any::<usize>().prop_map(Op::End),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(n, recovers)| Op::Change { n, recovers }),
        1 => any::<usize>().prop_map(Op::Vanish),
        2 => any::<usize>().prop_map(Op::Elsewhere),
        2 => (1..30u64).prop_map(Op::Pass),
    ]
}

impl Rig {
    pub fn new(mode: &str, n_clients: usize) -> Self {
        Self::with(mode, n_clients, |_| {})
    }

    pub fn with(mode: &str, n_clients: usize, set: impl FnOnce(&mut Config)) -> Self {
        let machine = Machine { cores: 1, open_files_max: 1_000, memory_bytes: 1 << 30 };
        let text = format!(
            "[namespaces.s]\nhistory_size = {KEPT}\nhistory_ttl = \"60s\"\nrecovery = \"{mode}\"\n\
             subscribe = \"anyone\"\n"
        );
        let mut config = Config::defaults(machine);
        config.dev = true;
        config.command_rate = None;
        config.namespaces = Arc::new(Namespaces::parse(&text).expect("a namespace"));
        set(&mut config);
        let truth = Truth { top: Position { offset: 0, epoch: Epoch::draw() }, n_kept: 0 };
        let mut rig = Self {
            state: State::new(Node::new(config), 0, 0),
            is_cache: mode.starts_with("cache"),
            channel: Arc::new(Channel::new(NAME)),
            generation: 0,
            lingers: false,
            live: None,
            wire: VecDeque::new(),
            epochs: vec![truth.top.epoch],
            passed: truth.top,
            truth,
            reads: Vec::new(),
            clients: Vec::new(),
        };
        (0..n_clients).for_each(|_| rig.connect());
        rig
    }

    fn connect(&mut self) {
        let state = &mut self.state;
        let id = state.hub.add_session(Format::Json);
        let address = std::net::Ipv4Addr::LOCALHOST.into();
        let permit = state.node.admission.admit(address, 0).expect("room");
        let session = Session::new(Uuid::new_v4(), permit, Format::Json, 0, &state.node.config);
        let at = id.idx as usize;
        if state.sessions.len() <= at {
            state.sessions.resize_with(at + 1, || None);
        }
        state.sessions[at] = Some(session);
        state.hub.attach(id, id.idx as i32);
        let client = Client {
            id,
            stand: Stand::Away,
            at: None,
            n_commands: 0,
            subscribe: 0,
            is_ended: false,
            bytes: Vec::new(),
            n_bytes: 0,
        };
        self.clients.push(client);
        self.send(self.clients.len() - 1, json!({ "connect": {} }));
    }

    fn send(&mut self, n: usize, mut command: Value) {
        self.clients[n].n_commands += 1;
        command["id"] = json!(self.clients[n].n_commands);
        let text = command.to_string();
        let input = Input::Message { bytes: text.as_bytes(), kind: MessageKind::Text };
        self.state.on_input(self.clients[n].id, input);
    }

    pub fn join(&mut self, n: usize, recovers: bool) {
        if self.clients[n].stand != Stand::Away {
            return;
        }
        self.clients[n].stand = Stand::Waits;
        self.clients[n].is_ended = false;
        let mut subscribe = json!({ "channel": NAME, "flag": 1 });
        if let Some(at) = self.clients[n].at.filter(|_| recovers) {
            subscribe["recover"] = json!(true);
            subscribe["offset"] = json!(at.offset);
            subscribe["epoch"] = json!(at.epoch.as_str());
        } else {
            self.clients[n].at = None;
        }
        self.send(n, json!({ "subscribe": subscribe }));
        self.clients[n].subscribe = self.clients[n].n_commands;
    }

    pub fn leave(&mut self, n: usize, stand: Stand) {
        if self.clients[n].stand == stand {
            self.clients[n].stand = Stand::Away;
            self.clients[n].subscribe = 0;
            self.send(n, json!({ "unsubscribe": { "channel": NAME } }));
        }
    }

    fn end(&mut self, n: usize) {
        let client = &mut self.clients[n];
        client.is_ended |= client.stand == Stand::Waits;
        let connection = self.state.session(client.id).expect("a session").connection;
        let target = Target { client: Some(connection), ..Target::default() };
        let verb = Verb::Unsubscribe(UnsubscribeUser { channel: NAME.into() });
        self.state.on_control(Arc::new(Control { target, verb }));
        while self.state.obey_some() == Left::More {}
    }

    fn publish(&mut self) {
        self.truth.top.offset += 1;
        self.truth.n_kept = (self.truth.n_kept + 1).min(KEPT);
    }

    fn push_newest(&mut self) {
        if let Some(channel) = self.live {
            let at = self.truth.top;
            let publication = Publication::at(self.channel.clone(), body(at), at);
            let publication = Arc::new(publication);
            let event = ShardEvent::Publication { channel, publication };
            self.wire.push_back(Passing { event, at: Some(at) });
        }
    }

    pub fn deliver(&mut self) {
        let Some(Passing { event, at }) = self.wire.pop_front() else { return };
        self.passed = at.unwrap_or(self.passed);
        match event {
            ShardEvent::Publication { channel, publication } => {
                self.state.on_publication(channel, &publication);
            }
            event => self.state.on_broker(event),
        }
    }

    /// What the broker does with what the shard asks.
    pub fn take_commands(&mut self) {
        for command in std::mem::take(&mut self.state.commands) {
            match command {
                BrokerCommand::Acquire { .. } => {
                    self.generation += u32::from(!std::mem::take(&mut self.lingers));
                    let id = ChannelId { slot: 0, generation: self.generation };
                    self.live = Some(id);
                    let channel = self.channel.clone();
                    let event = ShardEvent::Acquired { id, channel, newest: None };
                    self.wire.push_back(Passing { event, at: None });
                }
                BrokerCommand::Release { id, .. } if self.live == Some(id) => {
                    (self.live, self.lingers) = (None, true);
                }
                BrokerCommand::History { request, ask, .. } => {
                    self.reads.push(Read { request, ask: *ask, page: None });
                }
                _ => {}
            }
        }
    }

    pub fn step(&mut self, op: &Op) -> Checked<()> {
        let n_clients = self.clients.len();
        match *op {
            Op::Publish(n) => (0..n).for_each(|_| {
                self.publish();
                self.push_newest();
            }),
            Op::Lose { told } => {
                self.publish();
                if let Some(id) = self.live.filter(|_| told) {
                    let event = ShardEvent::Gap(Gapped::Channel(id));
                    self.wire.push_back(Passing { event, at: Some(self.truth.top) });
                }
            }
            Op::Deliver(n) => (0..n).for_each(|_| self.deliver()),
            Op::Reset => {
                let epoch = Epoch::draw();
                self.truth = Truth { top: Position { offset: 0, epoch }, n_kept: 0 };
                self.epochs.push(epoch);
            }
            Op::Expire => self.truth.n_kept = 0,
            Op::CarryOut(n) => self.carry_out(n),
            Op::Answer { n, fails } => self.answer(n, fails),
            Op::Join { n, recovers } => self.join(n % n_clients, recovers),
            Op::Leave(n) => self.leave(n % n_clients, Stand::Subscribed),
            Op::End(n) => self.end(n % n_clients),
            Op::Change { n, recovers } => {
                let n = n % n_clients;
                self.leave(n, Stand::Waits);
                self.join(n, recovers);
            }
            Op::Vanish(n) => {
                let client = self.clients.swap_remove(n % n_clients);
                self.state.hub.remove_session(client.id);
                self.state.sessions[client.id.idx as usize] = None;
                self.state.release_emptied();
                self.connect();
                self.clients.last_mut().expect("one").at = client.at;
            }
            Op::Elsewhere(n) => {
                let client = &mut self.clients[n % n_clients];
                if client.stand == Stand::Away {
                    client.at = Some(self.truth.top);
                }
            }
            Op::Pass(n) => {
                self.lingers = false;
                (0..n).for_each(|_| self.tick());
            }
        }
        self.take_commands();
        self.read_all()
    }

    pub fn tick(&mut self) {
        self.state.now_ms += 100;
        let node = self.state.node.clone();
        self.state.report(&node.metrics.shards[0]);
        self.state.catch_up();
        self.state.check_streams();
    }

    pub fn carry_out(&mut self, n: usize) {
        if !self.reads.is_empty() {
            let at = n % self.reads.len();
            let page = self.truth.page(&self.reads[at].ask);
            self.reads[at].page.get_or_insert(page);
        }
    }

    pub fn answer(&mut self, n: usize, fails: bool) {
        let done: Vec<usize> =
            (0..self.reads.len()).filter(|at| self.reads[*at].page.is_some()).collect();
        if done.is_empty() {
            return;
        }
        let read = self.reads.remove(done[n % done.len()]);
        let page = read.page.map(Arc::new).filter(|_| !fails);
        let result = page.ok_or(HistoryError::Unavailable);
        self.state.on_broker(ShardEvent::History { request: read.request, result });
    }

    /// Every client reads what is there for it.
    pub fn read_all(&mut self) -> Checked<()> {
        let mut taken: HashMap<i32, Vec<u8>> = HashMap::new();
        while let Some(idx) = self.state.hub.next_dirty(0, self.state.hub.seats_len()) {
            self.state.hub.visit(idx, &mut |fd, parts| {
                let bytes = parts.concat();
                taken.entry(fd).or_default().extend_from_slice(&bytes);
                Sent::Bytes(bytes.len())
            });
        }
        for client in &mut self.clients {
            client.bytes.extend(taken.remove(&(client.id.idx as i32)).unwrap_or_default());
            client.read(self.is_cache)?;
        }
        let order = |at: Position| (self.epochs.iter().position(|it| *it == at.epoch), at.offset);
        for client in &self.clients {
            if client.stand == Stand::Subscribed {
                let at = client.at.expect("a position");
                prop_assert!(order(at) >= order(self.passed), "{:?} lacks {:?}", at, self.passed);
            }
        }
        Ok(())
    }

    /// Nothing is lost any more, and everything is answered: whoever is subscribed has all there is.
    pub fn settle(&mut self) -> Checked<()> {
        for _ in 0..1_500 {
            while !self.wire.is_empty() {
                self.deliver();
            }
            self.take_commands();
            while !self.reads.is_empty() {
                self.carry_out(0);
                self.answer(0, false);
                self.take_commands();
            }
            self.tick();
            self.take_commands();
        }
        self.read_all()?;
        for client in &self.clients {
            prop_assert_ne!(client.stand, Stand::Waits, "never answered");
            if client.stand == Stand::Subscribed {
                prop_assert_eq!(client.at, Some(self.truth.top), "silently behind");
            }
        }
        prop_assert!(self.state.n_checks == 0 && self.state.ahead.is_empty());
        prop_assert!(self.state.put_off.is_empty());
        if let Some(stream) = self.state.stream(0) {
            prop_assert!(stream.joining.is_empty() && stream.ahead.is_empty());
            prop_assert!(stream.reads.is_empty() && !stream.is_pinned);
        }
        Ok(())
    }
}
