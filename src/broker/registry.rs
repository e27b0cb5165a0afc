//! Who is connected to this node, and which entries of the connection registry are due.
//!
//! Owns one row a connection; on the broker thread. Sans-I/O: `redis::registry` writes what is taken
//! here, and says how that went.
//!
//! An entry lives [`LIFE_MS`] in Redis. A hand goes round the connection ids once in [`LAP_MS`] and
//! has written again what it passes. Ids are random, so that is an even trickle by itself, whenever
//! the connections came, without a timer or a queue for each: a storm of connects doesn't come back
//! as a storm of renewals.
//! **Invariant:** at most one batch is on its way, so a removal never overtakes its write.
//! **Invariant:** batches are bounded and slow down with Redis: see [`Pace`].
//! **Invariant:** a row that was never sent is never removed from Redis.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use uuid::Uuid;

/// How long an entry outlives its last write, milliseconds, by Redis's clock.
pub const LIFE_MS: u64 = 120_000;
/// Once around all connections, milliseconds: 200 writes a second at 15,000 connections, and time
/// for a lap that is held up.
pub const LAP_MS: u64 = 75_000;

/// The ids' upper halves are the hand's circle; positions count on from lap to lap.
const CIRCLE: u128 = 1 << 64;
const STEP_PER_MS: u128 = CIRCLE / LAP_MS as u128;

/// Removals that wait; over it the oldest is left to expire. Only while Redis is away.
const REMOVALS_MAX: usize = 65_536;

/// How a client speaks to the hub.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    WebSocket,
    Raw,
}

impl Transport {
    pub fn name(self) -> &'static str {
        match self {
            Transport::WebSocket => "websocket",
            Transport::Raw => "raw",
        }
    }
}

/// A connection, as the registry tells of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connected {
    pub connection: Uuid,
    /// Empty: anonymous.
    pub user: Box<str>,
    pub address: IpAddr,
    pub transport: Transport,
    /// Unix time, for people.
    pub connected_at_s: u64,
}

/// What is kept of it: the node's connections pay for every byte of this.
struct Row {
    user: Box<str>,
    address: IpAddr,
    transport: Transport,
    /// Of at most 128.
    shard: u8,
    /// Redis may have it.
    is_sent: bool,
    /// Until the year 2106.
    connected_at_s: u32,
}

const _: () = assert!(size_of::<Row>() == 40, "every connection pays for this");

/// What goes to Redis together.
#[derive(PartialEq, Eq, Debug, Default)]
pub struct Batch {
    pub writes: Vec<Uuid>,
    pub removals: Vec<Uuid>,
}

/// How a batch ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Redis answered, if only to refuse: nothing is tried again before the hand comes by.
    Answered,
    /// No answer: it may or may not have been done.
    Lost,
}

/// How much may be sent, and when: small batches first, doubled while Redis is quick, halved when it
/// isn't, and a pause of three times what the last one took. Publications share the link and Redis, and
/// the registry never has more than a quarter of either.
struct Pace {
    batch_max: usize,
    not_before_ms: u64,
}

/// Writes of the first batch.
const BATCH_FIRST: usize = 8;
/// Of any; with so many connections that a thousand batches of it wouldn't be a lap, a thousandth of
/// them.
const BATCH_MAX: usize = 100;
/// A removal is one key of one command.
const REMOVALS_PER_WRITE: usize = 2;
/// A batch that takes longer is too large.
const SLOW_MS: u64 = 25;
const PAUSE: u64 = 3;

impl Pace {
    fn on_done(&mut self, took_ms: u64, n_rows: usize, now_ms: u64) {
        self.batch_max = if took_ms > SLOW_MS {
            (self.batch_max / 2).max(1)
        } else {
            (self.batch_max * 2).min(BATCH_MAX.max(n_rows / 1000))
        };
        self.not_before_ms = now_ms + took_ms * PAUSE;
    }

    fn on_lost(&mut self, took_ms: u64, now_ms: u64) {
        self.batch_max = BATCH_FIRST;
        self.not_before_ms = now_ms + took_ms * PAUSE;
    }
}

pub struct Registry {
    rows: BTreeMap<Uuid, Row>,
    /// New ones, and those whose write got no answer: before the hand comes by.
    soon: BTreeSet<Uuid>,
    removals: VecDeque<Uuid>,
    /// The hand, and where it should be.
    reached: u128,
    target: u128,
    ticked_ms: u64,
    pace: Pace,
    is_batch_out: bool,
    n_given_up: u64,
}

impl Registry {
    pub fn new(now_ms: u64) -> Self {
        Self {
            rows: BTreeMap::new(),
            soon: BTreeSet::new(),
            removals: VecDeque::new(),
            reached: 0,
            target: 0,
            ticked_ms: now_ms,
            pace: Pace { batch_max: BATCH_FIRST, not_before_ms: 0 },
            is_batch_out: false,
            n_given_up: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Writes and removals that wait, beside what the hand will pass.
    pub fn n_waiting(&self) -> usize {
        self.soon.len() + self.removals.len()
    }

    /// Removals left to expire, so far.
    pub fn n_given_up(&self) -> u64 {
        self.n_given_up
    }

    pub fn get(&self, connection: Uuid) -> Option<Connected> {
        self.rows.get(&connection).map(|row| Connected {
            connection,
            user: row.user.clone(),
            address: row.address,
            transport: row.transport,
            connected_at_s: row.connected_at_s.into(),
        })
    }

    pub fn on_connected(&mut self, shard: usize, connected: Connected) {
        let Connected { connection, user, address, transport, connected_at_s } = connected;
        let shard = u8::try_from(shard).expect("invariant: HUB_SHARDS is at most 128");
        let connected_at_s = u32::try_from(connected_at_s).unwrap_or(u32::MAX);
        let row = Row { user, address, transport, shard, is_sent: false, connected_at_s };
        self.rows.insert(connection, row);
        self.soon.insert(connection);
    }

    pub fn on_disconnected(&mut self, connection: Uuid) {
        self.soon.remove(&connection);
        if self.rows.remove(&connection).is_some_and(|row| row.is_sent) {
            self.remove(connection);
        }
    }

    /// A shard started afresh: its connections are gone.
    pub fn forget_shard(&mut self, shard: usize) {
        let of_it = self.rows.iter().filter(|(_, row)| usize::from(row.shard) == shard);
        let gone: Vec<Uuid> = of_it.map(|(connection, _)| *connection).collect();
        gone.into_iter().for_each(|connection| self.on_disconnected(connection));
    }

    /// The node ends: all go, for good.
    pub fn forget_all(&mut self) {
        self.soon.clear();
        let sent = std::mem::take(&mut self.rows).into_iter().filter(|(_, row)| row.is_sent);
        self.removals.extend(sent.map(|(connection, _)| connection));
    }

    fn remove(&mut self, connection: Uuid) {
        if self.removals.len() >= REMOVALS_MAX {
            self.removals.pop_front();
            self.n_given_up += 1;
        }
        self.removals.push_back(connection);
    }

    /// Redis lost what was written: the hand goes round once as fast as batches may.
    pub fn write_all_again(&mut self) {
        self.target = self.reached + CIRCLE;
    }

    /// What is to be sent now. Its end is to be reported, before anything else is.
    pub fn poll_batch(&mut self, now_ms: u64) -> Option<Batch> {
        self.move_target(now_ms);
        if self.is_batch_out || now_ms < self.pace.not_before_ms {
            return None;
        }
        let batch = self.take_batch();
        let is_empty = batch.writes.is_empty() && batch.removals.is_empty();
        self.is_batch_out = !is_empty;
        (!is_empty).then_some(batch)
    }

    /// The next removals of a node that ends, at no pace but their answers'.
    pub fn take_removals(&mut self) -> Vec<Uuid> {
        let n = self.removals.len().min(BATCH_MAX * REMOVALS_PER_WRITE);
        self.removals.drain(..n).collect()
    }

    fn move_target(&mut self, now_ms: u64) {
        let elapsed_ms = now_ms.saturating_sub(self.ticked_ms);
        self.ticked_ms = now_ms;
        // Never more than a lap: who was passed over twice is written once.
        let target = self.target + u128::from(elapsed_ms) * STEP_PER_MS;
        self.target = target.min(self.reached + CIRCLE);
    }

    fn take_batch(&mut self) -> Batch {
        let room = self.pace.batch_max;
        let n_removals = self.removals.len().min(room * REMOVALS_PER_WRITE);
        let removals = self.removals.drain(..n_removals).collect();
        // Half of it is for who is new, so that neither waits for the other.
        let n_new = self.soon.len().min(room.div_ceil(2));
        let mut writes = self.pass(room - n_new);
        while writes.len() < room {
            let Some(connection) = self.soon.pop_first() else { break };
            writes.push(connection);
        }
        for connection in &writes {
            if let Some(row) = self.rows.get_mut(connection) {
                row.is_sent = true;
            }
        }
        Batch { writes, removals }
    }

    /// Moves the hand over at most so many rows.
    fn pass(&mut self, n_max: usize) -> Vec<Uuid> {
        let mut passed = Vec::new();
        while self.reached < self.target {
            if passed.len() == n_max {
                return passed;
            }
            let lap = self.reached & !(CIRCLE - 1);
            let from = Uuid::from_u128((self.reached - lap) << 64);
            let next = self.rows.range(from..).next().map(|(connection, _)| *connection);
            // Behind the last one the next lap begins.
            let next_at =
                next.map_or(lap + CIRCLE, |connection| lap + (connection.as_u128() >> 64));
            if next_at >= self.target {
                self.reached = self.target;
                break;
            }
            self.reached = next_at;
            if let Some(connection) = next {
                self.reached += 1;
                self.soon.remove(&connection);
                passed.push(connection);
            }
        }
        passed
    }

    pub fn on_batch_end(&mut self, batch: Batch, outcome: Outcome, took_ms: u64, now_ms: u64) {
        self.is_batch_out = false;
        match outcome {
            Outcome::Answered => self.pace.on_done(took_ms, self.rows.len(), now_ms),
            Outcome::Lost => {
                self.pace.on_lost(took_ms, now_ms);
                let rows = &self.rows;
                let still = batch.writes.into_iter().filter(|it| rows.contains_key(it));
                self.soon.extend(still);
                batch.removals.into_iter().for_each(|connection| self.remove(connection));
            }
        }
    }
}

#[cfg(test)]
mod tests;
