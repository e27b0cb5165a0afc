//! All subscribers, on one thread and one epoll.
//!
//! Owns the connections and what is counted about them, by group. One `turn` waits for events and
//! handles them; the caller's loop decides what happens between turns. Level-triggered, one `recv`
//! an event into one shared buffer: a delivery costs no allocation and no copy unless a read ends
//! in the middle of a frame.

mod connection;

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind::{ConnectionRefused, ConnectionReset};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use socket2::{Domain, Socket, Type};

use crate::checker::{Expected, Tally, histogram};
use crate::clock::{MS_NS, SECOND_NS, now_ns};
use crate::protocol::{Protocol, Tokens};
use connection::Connection;

/// How often slow readers read.
const SLOW_TICK_NS: u64 = 20 * MS_NS;
const BUFFER_BYTES: usize = 1 << 20;
const EVENTS_MAX: usize = 2048;

/// How a connection reads.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Pace {
    Full,
    /// Until ready, then never again.
    Never,
    BytesPerSecond(u64),
}

/// One connection to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Indices into [`Shared::channels`].
    pub channels: Vec<u32>,
    /// Index of the [`Group`] that counts it.
    pub group: usize,
    pub pace: Pace,
    /// SO_RCVBUF.
    pub rcvbuf_bytes: Option<usize>,
}

/// What all connections have in common.
pub struct Shared {
    pub target: SocketAddr,
    /// Source addresses, taken in turn: each has ports for some 28,000 connections.
    pub sources: Vec<Ipv4Addr>,
    pub channels: Vec<String>,
    pub protocol: Box<dyn Protocol>,
    pub tokens: Option<Tokens>,
    pub expected: Expected,
    /// How many connections are being opened at a time.
    pub n_opening_max: usize,
}

/// What is counted about a group of connections.
#[derive(Clone, Debug)]
pub struct Group {
    pub tally: Tally,
    pub n_planned: u64,
    /// That got ready, without those that were hung up since.
    pub n_ready: u64,
    /// From when a connection was to be dialed to ready, in microseconds.
    pub opening_us: Histogram<u64>,
    /// How connections that were ready ended, by close code or what else it was.
    pub ended: BTreeMap<String, u64>,
    /// Why connections never became ready.
    pub refused: BTreeMap<String, u64>,
    /// Subscriptions that the server ended.
    pub unsubscribed: BTreeMap<String, u64>,
}

impl Default for Group {
    fn default() -> Self {
        Self {
            tally: Tally::default(),
            n_planned: 0,
            n_ready: 0,
            opening_us: histogram(),
            ended: BTreeMap::new(),
            refused: BTreeMap::new(),
            unsubscribed: BTreeMap::new(),
        }
    }
}

impl Group {
    /// Ready and not ended.
    pub fn n_alive(&self) -> u64 {
        self.n_ready - self.n_ended()
    }

    /// What went wrong with connections since the last call, by kind.
    pub fn take_failures(&mut self) -> BTreeMap<String, u64> {
        self.n_ready -= self.n_ended();
        let mut failures = std::mem::take(&mut self.refused);
        for (reason, n) in std::mem::take(&mut self.ended) {
            failures.insert(format!("ended: {reason}"), n);
        }
        for (reason, n) in std::mem::take(&mut self.unsubscribed) {
            failures.insert(format!("unsubscribed: {reason}"), n);
        }
        failures
    }

    pub fn n_ended(&self) -> u64 {
        self.ended.values().sum()
    }

    pub fn n_refused(&self) -> u64 {
        self.refused.values().sum()
    }
}

/// When the next connection is dialed, besides [`Shared::n_opening_max`].
#[derive(Copy, Clone, Debug)]
enum DialPace {
    AtOnce,
    /// Open loop: the next one's time is fixed, whatever became of the one before.
    Schedule {
        next_ns: u64,
        interval_ns: u64,
    },
}

pub struct Fleet {
    pub groups: Vec<Group>,
    pub shared: Shared,
    epoll: OwnedFd,
    events: Vec<Event>,
    plans: Vec<Plan>,
    /// As many as plans; `None` before the first dial and after a failed one.
    connections: Vec<Option<Connection>>,
    /// Indices.
    to_dial: VecDeque<usize>,
    pace: DialPace,
    n_opening: usize,
    /// Indices of slow readers.
    slow: Vec<usize>,
    next_slow_tick_ns: u64,
    buffer: Vec<u8>,
}

impl Fleet {
    pub fn new(shared: Shared, plans: Vec<Plan>) -> anyhow::Result<Self> {
        let n_groups = plans.iter().map(|plan| plan.group + 1).max().unwrap_or(1);
        let mut groups = vec![Group::default(); n_groups];
        for plan in &plans {
            groups[plan.group].n_planned += 1;
        }
        let is_slow = |plan: &Plan| matches!(plan.pace, Pace::BytesPerSecond(_));
        Ok(Self {
            groups,
            shared,
            epoll: epoll::create(CreateFlags::CLOEXEC).context("epoll_create")?,
            events: Vec::with_capacity(EVENTS_MAX),
            slow: (0..plans.len()).filter(|&idx| is_slow(&plans[idx])).collect(),
            connections: plans.iter().map(|_| None).collect(),
            to_dial: (0..plans.len()).collect(),
            pace: DialPace::AtOnce,
            plans,
            n_opening: 0,
            next_slow_tick_ns: 0,
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    /// Whether every connection is ready or was refused.
    pub fn is_open(&self) -> bool {
        self.to_dial.is_empty() && self.n_opening == 0
    }

    pub fn n_received(&self) -> u64 {
        self.groups.iter().map(|group| group.tally.received).sum()
    }

    /// Subscriptions to each channel by the living connections of a group.
    pub fn subscribers(&self, group: usize) -> Vec<u64> {
        let mut subscribers = vec![0; self.shared.channels.len()];
        for (plan, connection) in self.plans.iter().zip(&self.connections) {
            let lives = |it: &Connection| it.was_ready() && it.is_alive();
            if plan.group == group && connection.as_ref().is_some_and(lives) {
                for &channel in &plan.channels {
                    subscribers[channel as usize] += 1;
                }
            }
        }
        subscribers
    }

    /// Forgets what was received; the connections stay, and so does what is counted about them. From
    /// now on it's this that they must receive.
    pub fn begin(&mut self, expected: Expected) {
        self.shared.expected = expected;
        for connection in self.connections.iter_mut().flatten() {
            connection.forget();
        }
        for group in &mut self.groups {
            group.tally = Tally::default();
        }
    }

    /// Drops all connections of a group at once, by RST, and forgets that there were any. Dials
    /// nothing: that is for [`redial`](Self::redial).
    pub fn hang_up(&mut self, group: usize) {
        for (plan, connection) in self.plans.iter().zip(&mut self.connections) {
            if plan.group == group
                && let Some(old) = connection.take()
            {
                let is_open = old.was_ready() && old.is_alive();
                self.groups[group].n_ready -= u64::from(is_open);
                self.n_opening -= usize::from(!old.was_ready());
            }
        }
        self.to_dial.retain(|&idx| self.plans[idx].group != group);
        self.groups[group].opening_us.reset();
    }

    /// Dials those of a group that aren't there: at once, or so many a second, each at its time.
    /// Does nothing while some have yet to be dialed.
    pub fn redial(&mut self, group: usize, per_second: Option<f64>) {
        if !self.to_dial.is_empty() {
            return;
        }
        for (idx, plan) in self.plans.iter().enumerate() {
            let is_there = self.connections[idx].as_ref().is_some_and(Connection::is_alive);
            if plan.group == group && !is_there {
                self.to_dial.push_back(idx);
            }
        }
        self.pace = per_second.map_or(DialPace::AtOnce, |rate| DialPace::Schedule {
            next_ns: now_ns(),
            interval_ns: (SECOND_NS as f64 / rate) as u64,
        });
    }

    /// Publications that a group's connections skipped and that haven't come since: lost, but for
    /// what was lost at the very end.
    pub fn n_skipped(&self, group: usize) -> u64 {
        let of_group = self.plans.iter().zip(&self.connections);
        let reached: u64 = of_group
            .filter(|(plan, _)| plan.group == group)
            .filter_map(|(_, connection)| connection.as_ref().map(Connection::n_reached))
            .sum();
        reached.saturating_sub(self.groups[group].tally.unique)
    }

    /// Opens what may be opened, waits at most so long for events, and handles them.
    pub fn turn(&mut self, timeout: Duration) -> anyhow::Result<()> {
        self.dial_all_due()?;
        let timeout = match self.pace {
            DialPace::Schedule { next_ns, .. } if !self.to_dial.is_empty() => {
                timeout.min(Duration::from_nanos(next_ns.saturating_sub(now_ns())))
            }
            _ => timeout,
        };
        let timeout = Timespec::try_from(timeout).context("a timeout out of range")?;
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        let spare = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, spare, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => bail!("epoll_wait: {error}"),
        }
        for event in &events {
            self.on_event(event.data.u64() as usize, event.flags)?;
        }
        self.events = events;
        if !self.slow.is_empty() && now_ns() >= self.next_slow_tick_ns {
            self.next_slow_tick_ns = now_ns() + SLOW_TICK_NS;
            self.read_slowly();
        }
        Ok(())
    }

    /// Stalled and slow readers read what there is, so that what became of them shows. Returns when
    /// nothing more comes at once.
    pub fn read_to_the_end(&mut self) {
        for idx in 0..self.connections.len() {
            if self.plans[idx].pace != Pace::Full {
                while self.read(idx, usize::MAX) {}
            }
        }
    }

    fn dial_all_due(&mut self) -> anyhow::Result<()> {
        while self.n_opening < self.shared.n_opening_max
            && let Some(&idx) = self.to_dial.front()
        {
            let now = now_ns();
            let due_ns = match &mut self.pace {
                DialPace::AtOnce => now,
                DialPace::Schedule { next_ns, .. } if *next_ns > now => break,
                DialPace::Schedule { next_ns, interval_ns } => {
                    let due_ns = *next_ns;
                    *next_ns += *interval_ns;
                    due_ns
                }
            };
            self.to_dial.pop_front();
            self.dial(idx, due_ns)?;
        }
        Ok(())
    }

    fn dial(&mut self, idx: usize, due_ns: u64) -> anyhow::Result<()> {
        let plan = &self.plans[idx];
        let source = self.shared.sources[idx % self.shared.sources.len()];
        let socket = match dial(self.shared.target, source, plan.rcvbuf_bytes) {
            Ok(socket) => socket,
            // The server's doing, and not the end; what remains is want of ports or descriptors.
            Err(error) if matches!(error.kind(), ConnectionRefused | ConnectionReset) => {
                let refused = &mut self.groups[plan.group].refused;
                *refused.entry(error.kind().to_string()).or_default() += 1;
                return Ok(());
            }
            Err(error) => {
                return Err(error).with_context(|| format!("connection {idx} from {source}"));
            }
        };
        epoll::add(&self.epoll, &socket, EventData::new_u64(idx as u64), EventFlags::OUT)
            .context("epoll_ctl")?;
        self.connections[idx] = Some(Connection::new(socket.into(), plan, idx, due_ns));
        self.n_opening += 1;
        Ok(())
    }

    fn on_event(&mut self, idx: usize, flags: EventFlags) -> anyhow::Result<()> {
        let Some(connection) = self.connections[idx].as_mut().filter(|it| it.is_alive()) else {
            return Ok(());
        };
        if connection.is_dialing() {
            match connection.on_connected(&self.shared) {
                Ok(()) => self.watch(idx, EventFlags::IN)?,
                Err(reason) => self.end(idx, reason),
            }
            return Ok(());
        }
        let was_ready = connection.was_ready();
        let pace = self.plans[idx].pace;
        if was_ready && pace != Pace::Full {
            // Not asked for, so the connection is broken. What has arrived stays readable.
            debug_assert!(flags.intersects(EventFlags::HUP | EventFlags::ERR));
            let stream = self.connections[idx].as_ref().map(Connection::stream);
            return match stream {
                Some(stream) => epoll::delete(&self.epoll, stream).context("epoll_ctl"),
                None => Ok(()),
            };
        }
        self.read(idx, usize::MAX);
        let is_ready = self.connections[idx].as_ref().is_some_and(Connection::was_ready);
        if is_ready && !was_ready && pace != Pace::Full {
            self.watch(idx, EventFlags::empty())?;
        }
        Ok(())
    }

    fn watch(&mut self, idx: usize, flags: EventFlags) -> anyhow::Result<()> {
        match &self.connections[idx] {
            Some(connection) if connection.is_alive() => {
                let data = EventData::new_u64(idx as u64);
                epoll::modify(&self.epoll, connection.stream(), data, flags).context("epoll_ctl")
            }
            _ => Ok(()),
        }
    }

    fn read_slowly(&mut self) {
        for at in 0..self.slow.len() {
            let idx = self.slow[at];
            if let Pace::BytesPerSecond(bytes) = self.plans[idx].pace
                && self.connections[idx].as_ref().is_some_and(|it| it.was_ready() && it.is_alive())
            {
                self.read(idx, (bytes * SLOW_TICK_NS / 1_000_000_000).max(1) as usize);
            }
        }
    }

    /// One read; false if nothing came.
    fn read(&mut self, idx: usize, n_bytes_max: usize) -> bool {
        let Some(connection) = self.connections[idx].as_mut().filter(|it| it.is_alive()) else {
            return false;
        };
        let was_ready = connection.was_ready();
        let group = &mut self.groups[self.plans[idx].group];
        let outcome = connection.read(&self.shared, group, &mut self.buffer, n_bytes_max);
        if connection.was_ready() && !was_ready {
            group.n_ready += 1;
            let opening_ns = now_ns().saturating_sub(connection.due_ns());
            group.opening_us.saturating_record(opening_ns / 1000);
            self.n_opening -= 1;
        }
        match outcome {
            Ok(n_bytes) => n_bytes > 0,
            Err(reason) => {
                self.end(idx, reason);
                false
            }
        }
    }

    fn end(&mut self, idx: usize, reason: String) {
        let Some(connection) = self.connections[idx].as_mut() else { return };
        let group = &mut self.groups[self.plans[idx].group];
        if connection.was_ready() {
            *group.ended.entry(reason).or_default() += 1;
            connection.hang_up();
        } else {
            *group.refused.entry(reason).or_default() += 1;
            self.n_opening -= 1;
            self.connections[idx] = None;
        }
    }
}

/// A socket on its way to `target`: not blocking, no Nagle, RST instead of TIME_WAIT at the end (a
/// harness that leaves its ports behind can't run twice).
pub fn dial(
    target: SocketAddr,
    source: Ipv4Addr,
    rcvbuf_bytes: Option<usize>,
) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    if let Some(bytes) = rcvbuf_bytes {
        socket.set_recv_buffer_size(bytes)?;
    }
    if target.ip().is_loopback() && target.is_ipv4() {
        socket.bind(&SocketAddr::new(IpAddr::V4(source), 0).into())?;
    }
    match socket.connect(&target.into()) {
        Ok(()) => Ok(socket),
        Err(error)
            if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) =>
        {
            Ok(socket)
        }
        Err(error) => Err(error),
    }
}
