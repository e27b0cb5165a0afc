//! A shard: one thread, its sessions, their subscriptions and their sockets.
//!
//! One loop drains the mailbox in bounded batches and walks the dirty sessions in accept order,
//! [`SLICE`] at a time; what arrives meanwhile joins the sessions not yet reached.
//! After a full turn of the ring that leaves something pending it pauses in proportion to what the turn
//! cost, so that groups grow under load: if they can, which takes sessions that are written to turn after
//! turn. An idle shard writes at once.
//! A panic, in the loop or in a task, ends this life of the shard: its connections are cut, and
//! it starts anew with nothing.
//! **Invariant:** nothing of a shard is reached from another thread but its mailbox.

mod access;
mod cohort;
mod commands;
mod conflate;
mod control;
mod delay;
mod dirty;
mod event;
mod handle;
pub mod hub;
mod outbox;
mod pace;
mod pause;
mod presence;
pub mod reader;
mod recovery;
mod register;
mod served;
mod session;
mod show;
mod socket;
mod spares;
mod state;
mod stream;
mod tell;
mod timers;
mod users;
mod visited;
mod waiting;
mod welcome;

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

pub use event::{Accepted, Gapped, LinkState, Role, ShardEvent};
pub use handle::Shard;
pub use state::Joined;

/// For benches/outbox and benches/flush only.
#[doc(hidden)]
pub use {outbox::Outbox, socket::send};

use crate::broker::Door;
use crate::config::Config;
use crate::mailbox::{self, Receiver, Sender, Unbound};
use crate::node::Node;
use hub::Fanout;
use pause::{FLOOR, PauseTimer, beside, floor_after, pause_after};
use visited::Visited;

/// Sessions written before the mailbox is looked at again: what came joins those not yet reached.
const SLICE: usize = 64;
/// The walk goes on for so many times as long as the reactor's last turn took, or [`WALK_TIME_MAX`],
/// before the next one: a flood of handshakes or commands makes a walk a little longer, not half as
/// long again. They have the pauses, and the time when nothing is to be written, for themselves; a walk
/// that leaves nothing to write goes on for [`FLOOR`] at least, as its shard most likely sleeps next.
const WALK_PER_REACTOR_TURN: u32 = 16;
const WALK_TIME_MAX: Duration = Duration::from_millis(4);
/// Mailbox batches drained before the walk goes on, and how long that may take; the clock is looked at
/// after so many events.
const BATCHES_PER_TURN_MAX: usize = 16;
const DRAIN_TIME_MAX: Duration = Duration::from_micros(200);
const EVENTS_PER_LOOK: usize = 16;
/// Frame bytes drained in one turn of the ring: bounds what a healthy session can have pending before it
/// was visited.
const ROUND_FRAME_BYTES_MAX: usize = 1 << 20;
/// With their copies for all cohorts: bounds the logs. It is far more than the sockets take in a turn, so
/// that sessions with many sets of channels get as much as those with one.
const ROUND_QUEUED_BYTES_MAX: usize = 16 << 20;
/// And no more than this part of `HUB_OUTBOX_TOTAL_BYTES`, on all shards together.
const ROUND_QUEUED_PART: usize = 8;
/// Batches in a shard's mailbox.
const MAILBOX_BATCHES_MAX: usize = 4096;
/// Between a panic and the next life: a fault that comes at once mustn't take a core.
const RESTART_PAUSE: Duration = Duration::from_millis(100);
/// Until a runtime that couldn't start is tried again.
const START_PAUSE: Duration = Duration::from_secs(1);
/// Timers of sessions are looked at this often.
const SWEEP: Duration = Duration::from_millis(100);

/// Makes a shard's mailbox.
pub fn shard_mailbox() -> (Sender<ShardEvent>, Unbound<ShardEvent>) {
    mailbox::mailbox(MAILBOX_BATCHES_MAX)
}

/// Starts shard `idx` on a thread of its own.
pub fn spawn(
    node: Arc<Node>,
    idx: usize,
    events: Unbound<ShardEvent>,
    door: Door,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name(format!("shard-{idx}")).spawn(move || {
        if node.config.pin_shards {
            crate::thread::pin(idx);
        }
        let events = events.bind();
        for life in 0.. {
            match live(&node, idx, life, &events, &door) {
                Ok(Ended::Stopped) => return,
                Ok(Ended::Panicked) => {
                    node.metrics.shards[idx].panics.add(1);
                    tracing::error!(
                        shard = idx,
                        "panicked: its connections are cut, it starts anew"
                    );
                    std::thread::sleep(RESTART_PAUSE);
                }
                Err(error) => {
                    // Out of descriptors, for instance: a shard that gave up would be gone for good.
                    tracing::error!(%error, shard = idx, "the shard's runtime didn't start");
                    std::thread::sleep(START_PAUSE);
                }
            }
        }
    })
}

enum Ended {
    Stopped,
    Panicked,
}

/// One life of a shard, from empty to stop or panic. The mailbox outlives it.
fn live(
    node: &Arc<Node>,
    idx: usize,
    life: u32,
    events: &Receiver<ShardEvent>,
    door: &Door,
) -> std::io::Result<Ended> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    let shard = Shard::new(node.clone(), idx, life, door.clone());
    let ran = catch_unwind(AssertUnwindSafe(|| runtime.block_on(run(shard.clone(), events))));
    if ran.is_err() {
        shard.break_down();
    }
    // Ends the tasks, and with them the sockets: of a broken shard without looking at its state.
    drop(runtime);
    Ok(if shard.is_broken() { Ended::Panicked } else { Ended::Stopped })
}

/// Where the rolling walk is.
struct Walk {
    cursor: u32,
    /// Positions left in this turn of the ring.
    left: u32,
    cost: Duration,
    /// Walked since the reactor's last turn.
    since_reactor: Duration,
    not_before: Instant,
    /// Drained in this turn of the ring.
    round: Fanout,
    /// In this turn of the ring and the one before.
    visited: Visited,
    queued_bytes_max: usize,
}

enum Next {
    Go,
    PauseUntil(Instant),
    Sleep,
}

impl Walk {
    fn new(config: &Config) -> Self {
        let part = config.outbox_total_bytes / ROUND_QUEUED_PART / config.shards;
        Self {
            cursor: 0,
            left: 0,
            cost: Duration::ZERO,
            since_reactor: Duration::ZERO,
            not_before: Instant::now(),
            round: Fanout::default(),
            visited: Visited::default(),
            queued_bytes_max: part.min(ROUND_QUEUED_BYTES_MAX),
        }
    }

    /// Visits the next slice.
    fn step(&mut self, shard: &Shard) -> Next {
        let now = Instant::now();
        if shard.is_clean() {
            self.end_round(shard, now);
            return Next::Sleep;
        }
        if now < self.not_before {
            return Next::PauseUntil(self.not_before);
        }
        let n_seats = shard.n_seats();
        if self.left == 0 {
            self.left = n_seats;
        }
        let mut room = SLICE;
        while room > 0 && self.left > 0 {
            if self.cursor >= n_seats {
                self.cursor = 0;
            }
            let to = n_seats.min(self.cursor.saturating_add(self.left));
            let run = shard.visit_run(self.cursor, to, room, |idx| self.visited.insert(idx));
            room -= run.n_visited;
            self.go_to(run.next.unwrap_or(to));
            if let Some(idx) = run.next
                && room > 0
            {
                room -= 1;
                self.go_to(idx + 1);
                self.visited.insert(idx);
                shard.visit(idx);
            }
        }
        let cost = now.elapsed();
        self.cost += cost;
        self.since_reactor += cost;
        if self.left == 0 || shard.is_clean() {
            self.end_round(shard, Instant::now());
        }
        Next::Go
    }

    fn go_to(&mut self, cursor: u32) {
        self.left -= cursor - self.cursor;
        self.cursor = cursor;
    }

    fn end_round(&mut self, shard: &Shard, now: Instant) {
        if self.cost > Duration::ZERO {
            shard.metrics().turns.add(1);
            shard.metrics().full_turns.add(u64::from(self.is_full()));
            let n_shards = shard.node.config.shards;
            let (n_visited, again) = self.visited.end_turn();
            let group = self.round.deliveries as f64 / n_visited.max(1) as f64;
            // Everybody has everything: the next publication is the first of a new group.
            let pause = if shard.is_clean() {
                Duration::ZERO
            } else {
                beside(self.cost, pause_after(self.cost, again, group), again, n_shards)
            };
            let floor = floor_after(self.cost, again, n_shards).saturating_sub(self.cost);
            let pause = pause.max(floor);
            self.not_before = now + pause + shard.node.config.write_delay;
        }
        let turn_ns = if shard.is_clean() { 0 } else { self.cost.as_nanos() as u64 };
        shard.metrics().turn_ns.set(turn_ns);
        self.cost = Duration::ZERO;
        self.left = 0;
        self.round = Fanout::default();
    }

    /// Whether what else came waits for the next turn of the ring.
    fn is_full(&self) -> bool {
        self.round.frame_bytes >= ROUND_FRAME_BYTES_MAX
            || self.round.queued_bytes >= self.queued_bytes_max
    }
}

async fn run(shard: Rc<Shard>, events: &Receiver<ShardEvent>) {
    let timer = PauseTimer::new();
    shard.spawn(sweep(shard.clone()));
    shard.spawn(show_due(shard.clone()));
    shard.spawn(control::obey(shard.clone()));
    let mut walk = Walk::new(&shard.node.config);
    let mut reactor_turn = Duration::ZERO;
    let mut taken = Taken::default();
    loop {
        drain(&shard, events, &mut taken, &mut walk);
        if shard.has_stopped() || shard.is_broken() {
            return;
        }
        match walk.step(&shard) {
            Next::Go => {
                let mut longest = (reactor_turn * WALK_PER_REACTOR_TURN).min(WALK_TIME_MAX);
                if shard.is_clean() {
                    longest = longest.max(FLOOR);
                }
                if walk.since_reactor >= longest {
                    walk.since_reactor = Duration::ZERO;
                    shard.allow_input();
                    let began = Instant::now();
                    tokio::task::yield_now().await;
                    reactor_turn = began.elapsed();
                }
            }
            _ if taken.len() > 0 => {
                shard.allow_input();
                tokio::task::yield_now().await;
            }
            Next::PauseUntil(until) => pause(&shard, events, &timer, until, &mut walk).await,
            Next::Sleep => sleep(&shard, events, &mut walk).await,
        }
    }
}

/// What was taken from the mailbox and isn't handled yet.
type Taken = std::vec::IntoIter<ShardEvent>;

/// Handles what came, for a bounded time: a thousand channels that the broker confirms at once mustn't
/// hold up a walk.
fn drain(shard: &Rc<Shard>, events: &Receiver<ShardEvent>, taken: &mut Taken, walk: &mut Walk) {
    let began = Instant::now();
    let mut has_publication = false;
    let mut n_batches = 0;
    loop {
        let mut n_events = 0;
        for event in taken.by_ref() {
            let fanout = shard.on_event(event);
            walk.round += fanout;
            has_publication |= fanout.queued_bytes > 0;
            n_events += 1;
            if n_events % EVENTS_PER_LOOK == 0 && began.elapsed() >= DRAIN_TIME_MAX {
                break;
            }
        }
        let is_full = walk.is_full() || n_batches == BATCHES_PER_TURN_MAX;
        if taken.len() > 0 || is_full {
            break;
        }
        let Some(batch) = events.try_recv() else { break };
        n_batches += 1;
        let counts = shard.metrics();
        counts.mailbox_batches.add(1);
        counts.mailbox_items.add(batch.len() as u64);
        *taken = batch.into_iter();
    }
    shard.flush_door();
    // A turn of the ring that has hardly begun (some replies, say) begins anew: else those behind
    // the cursor would get the publication after a pause.
    if has_publication && walk.cost < FLOOR {
        walk.left = 0;
    }
}

async fn pause(
    shard: &Rc<Shard>,
    events: &Receiver<ShardEvent>,
    timer: &PauseTimer,
    until: Instant,
    walk: &mut Walk,
) {
    let began = Instant::now();
    timer.set(until.saturating_duration_since(began));
    poll_fn(|cx| {
        shard.set_loop_waker(cx);
        if shard.allow_input() {
            cx.waker().wake_by_ref();
        }
        if shard.is_broken() || timer.poll(cx).is_ready() || events.poll_paused(cx).is_ready() {
            Poll::Ready(())
        } else {
            walk.since_reactor = Duration::ZERO;
            Poll::Pending
        }
    })
    .await;
    events.set_awake();
    shard.metrics().paused_ns.add(began.elapsed().as_nanos() as u64);
}

async fn sleep(shard: &Rc<Shard>, events: &Receiver<ShardEvent>, walk: &mut Walk) {
    poll_fn(|cx| {
        shard.set_loop_waker(cx);
        if shard.allow_input() {
            cx.waker().wake_by_ref();
        }
        if shard.is_broken() || !shard.is_clean() || events.poll_wait(cx).is_ready() {
            Poll::Ready(())
        } else {
            walk.since_reactor = Duration::ZERO;
            Poll::Pending
        }
    })
    .await;
    events.set_awake();
}

async fn sweep(shard: Rc<Shard>) {
    let mut ticks = tokio::time::interval(SWEEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        shard.on_tick();
    }
}

/// Fans out what `max_rate` held back, and has written what a `write_delay` did, when it is due.
async fn show_due(shard: Rc<Shard>) {
    loop {
        let due = shard.next_due();
        let sleep = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep => shard.show_due(),
            // Perhaps one that is due before.
            () = shard.is_held.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(env: [(&str, &str); 2]) -> Walk {
        let env = env.map(|(name, value)| (name.into(), value.into()));
        Walk::new(&Config::load([], env).expect("a configuration").config)
    }

    /// Publications that go to so many cohorts, until the round is full.
    fn drained(walk: &mut Walk, n_cohorts: usize) -> usize {
        let mut n = 0;
        while !walk.is_full() {
            walk.round +=
                Fanout { frame_bytes: 128, queued_bytes: 128 * n_cohorts, ..Fanout::default() };
            n += 1;
        }
        n
    }

    #[test]
    fn a_round_drains_as_much_for_many_cohorts_as_for_one() {
        let roomy = [("HUB_OUTBOX_TOTAL_BYTES", "1GiB"), ("HUB_SHARDS", "2")];
        let (one, many) = (drained(&mut walk(roomy), 1), drained(&mut walk(roomy), 16));
        assert_eq!((one, many), (8_192, 8_192), "a session's bound");
        assert_eq!(drained(&mut walk(roomy), 1_000), 132, "16 MiB of logs, and not 9");
        let tight = [("HUB_OUTBOX_TOTAL_BYTES", "16MiB"), ("HUB_SHARDS", "2")];
        assert_eq!(drained(&mut walk(tight), 1_000), 9, "its part of what all may hold");
    }
}
