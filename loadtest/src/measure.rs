//! One measurement over open connections: warm-up, window, drain.
//!
//! The publisher thread keeps the schedule; the calling thread turns the fleet. In a burst, and in a
//! load without an end, everything is the window. Latency counts for publications *intended* in the
//! window, server CPU and deliveries for the window's time.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::bail;

use crate::checker::Expected;
use crate::clock::{MS_NS, SECOND_NS, now_ns, seconds, thread_cpu_ns};
use crate::fleet::{Fleet, Group};
use crate::process::{Cpu, Memory};
use crate::publish::{self, Job, Progress, Published, Publisher, Schedule};
use crate::timeline::{Looks, Sample, Timeline};

/// How long a turn waits for events: how exact the window's ends are, when nothing is delivered.
const TURN: Duration = Duration::from_millis(2);
/// From the publisher's start to the first publication.
const LEAD_NS: u64 = 20 * MS_NS;

/// What to publish and measure.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Tells this measurement's publications from another's.
    pub run: u16,
    pub payload_bytes: usize,
    /// Publishes to so many of the fleet's channels, the first ones.
    pub n_channels: usize,
    pub load: Load,
    /// The end, if nothing is delivered for so long after the last publication.
    pub drain_ns: u64,
    /// Before each line of progress.
    pub label: String,
    pub looks: Looks,
}

#[derive(Copy, Clone, Debug)]
pub enum Load {
    Steady {
        rate: f64,
        warm_up_ns: u64,
        window_ns: u64,
    },
    Burst {
        n_publications: u64,
    },
    /// Until [`Traffic::finish`]; all of it is the window.
    Endless {
        rate: f64,
    },
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Measured {
    pub published: Published,
    pub groups: Vec<GroupMeasured>,
    pub window: Window,
    pub memory: Memory,
    /// The most of all looks at it, one a progress line.
    pub rss_max: u64,
    pub timeline: Vec<Sample>,
}

#[derive(Clone, Debug)]
pub struct GroupMeasured {
    pub group: Group,
    /// How many deliveries there had to be, by who was ready at the start.
    pub n_expected: u64,
}

impl GroupMeasured {
    pub fn n_lost(&self) -> u64 {
        self.n_expected.saturating_sub(self.group.tally.unique)
    }
}

/// From the window's start to its end.
#[derive(Copy, Clone, Debug, Default)]
pub struct Window {
    pub wall_ns: u64,
    pub server_cpu: Cpu,
    /// Of the thread with the subscribers.
    pub client_cpu_ns: u64,
    pub n_deliveries: u64,
}

/// What is read at both ends of the window.
#[derive(Copy, Clone)]
struct Reading {
    at_ns: u64,
    server_cpu: Cpu,
    client_cpu_ns: u64,
    n_received: u64,
}

impl Reading {
    fn take(fleet: &Fleet, pids: &[u32]) -> Self {
        Self {
            at_ns: now_ns(),
            server_cpu: Cpu::of(pids),
            client_cpu_ns: thread_cpu_ns(),
            n_received: fleet.n_received(),
        }
    }

    fn since(self, before: Self) -> Window {
        Window {
            wall_ns: self.at_ns - before.at_ns,
            server_cpu: self.server_cpu.since(before.server_cpu),
            client_cpu_ns: self.client_cpu_ns - before.client_cpu_ns,
            n_deliveries: self.n_received - before.n_received,
        }
    }
}

impl Spec {
    fn schedule(&self, channels: &[String]) -> Schedule {
        let (rate, n_publications) = match self.load {
            Load::Steady { rate, warm_up_ns, window_ns } => {
                (Some(rate), (rate * seconds(warm_up_ns + window_ns)).round() as u64)
            }
            Load::Burst { n_publications } => (None, n_publications),
            Load::Endless { rate } => (Some(rate), u64::MAX),
        };
        Schedule {
            run: self.run,
            payload_bytes: self.payload_bytes,
            channels: channels[..self.n_channels].to_vec(),
            start_ns: now_ns() + LEAD_NS,
            n_publications,
            rate,
        }
    }

    fn window(&self, start_ns: u64) -> Range<u64> {
        match self.load {
            Load::Steady { warm_up_ns, window_ns, .. } => {
                start_ns + warm_up_ns..start_ns + warm_up_ns + window_ns
            }
            Load::Burst { .. } | Load::Endless { .. } => start_ns..u64::MAX,
        }
    }
}

/// Publishes by the spec and counts what the fleet receives.
pub fn measure(
    fleet: &mut Fleet,
    pids: &[u32],
    publisher: Box<dyn Publisher>,
    spec: &Spec,
) -> anyhow::Result<Measured> {
    Traffic::start(fleet, pids, publisher, spec)?.finish(fleet)
}

/// The same with whoever keeps the schedule: `start` gives the thread that does, or waits for it.
pub fn measure_with(
    fleet: &mut Fleet,
    pids: &[u32],
    start: impl FnOnce(Job) -> anyhow::Result<JoinHandle<Published>>,
    spec: &Spec,
) -> anyhow::Result<Measured> {
    Traffic::start_with(fleet, pids, start, spec)?.finish(fleet)
}

/// A measurement under way: for callers that do something to the fleet meanwhile.
pub struct Traffic<'a> {
    pids: &'a [u32],
    label: &'a str,
    window_ns: Range<u64>,
    drain_ns: u64,
    /// Of each group, by channel that is published to, at the start.
    subscribers: Vec<Vec<u64>>,
    progress: Arc<Progress>,
    publisher: Option<JoinHandle<Published>>,
    is_endless: bool,
    start: Option<Reading>,
    end: Option<Reading>,
    timeline: Timeline,
    rss_max: u64,
}

impl<'a> Traffic<'a> {
    pub fn start(
        fleet: &mut Fleet,
        pids: &'a [u32],
        publisher: Box<dyn Publisher>,
        spec: &'a Spec,
    ) -> anyhow::Result<Self> {
        Self::start_with(fleet, pids, |job| publish::start(publisher, job), spec)
    }

    fn start_with(
        fleet: &mut Fleet,
        pids: &'a [u32],
        start: impl FnOnce(Job) -> anyhow::Result<JoinHandle<Published>>,
        spec: &'a Spec,
    ) -> anyhow::Result<Self> {
        let schedule = spec.schedule(&fleet.shared.channels);
        let window_ns = spec.window(schedule.start_ns);
        fleet.begin(Expected {
            run: spec.run,
            payload_bytes: spec.payload_bytes,
            epoch_ns: schedule.start_ns,
            window_ns: window_ns.clone(),
        });
        let subscribers = |group| {
            let mut all = fleet.subscribers(group);
            all.truncate(spec.n_channels);
            all
        };
        let subscribers = (0..fleet.groups.len()).map(subscribers).collect();
        let progress = Arc::new(Progress::default());
        let start_ns = schedule.start_ns;
        let job = Job { schedule, window_ns: window_ns.clone(), progress: progress.clone() };
        let publisher = start(job)?;
        Ok(Self {
            pids,
            label: &spec.label,
            timeline: Timeline::new(start_ns, window_ns.clone(), pids, spec.looks),
            window_ns,
            drain_ns: spec.drain_ns,
            subscribers,
            progress,
            publisher: Some(publisher),
            is_endless: matches!(spec.load, Load::Endless { .. }),
            start: None,
            end: None,
            rss_max: 0,
        })
    }

    /// Waits a little for events, handles them, and looks at the clock.
    pub fn turn(&mut self, fleet: &mut Fleet) -> anyhow::Result<()> {
        fleet.turn(TURN)?;
        let now = now_ns();
        if self.start.is_none() && now + LEAD_NS / 2 >= self.window_ns.start {
            // Without a warm-up the first publication must not be before this.
            if self.window_ns.end == u64::MAX || now >= self.window_ns.start {
                self.start = Some(Reading::take(fleet, self.pids));
            }
        }
        if self.end.is_none() && now >= self.window_ns.end {
            self.end = Some(Reading::take(fleet, self.pids));
        }
        if self.timeline.is_due(now) {
            self.look(fleet, now);
        }
        Ok(())
    }

    fn look(&mut self, fleet: &Fleet, now: u64) {
        let n_sent = self.progress.n_sent.load(Ordering::Relaxed);
        let sample = self.timeline.look(fleet, self.pids, n_sent, now);
        self.rss_max = self.rss_max.max(sample.memory.rss);
        eprintln!("{} {sample}", self.label);
    }

    /// Turns for so long.
    pub fn turn_for(&mut self, fleet: &mut Fleet, duration_ns: u64) -> anyhow::Result<()> {
        let end_ns = now_ns() + duration_ns;
        while now_ns() < end_ns {
            self.turn(fleet)?;
        }
        Ok(())
    }

    /// Turns until the publisher is at its end and all is delivered, or nothing comes any more. If
    /// the load has no end of its own, this is it.
    pub fn finish(mut self, fleet: &mut Fleet) -> anyhow::Result<Measured> {
        if self.is_endless {
            self.progress.stop.store(true, Ordering::Relaxed);
            self.end = Some(Reading::take(fleet, self.pids));
        }
        let (mut n_received, mut last_delivery_ns) = (0, now_ns());
        loop {
            self.turn(fleet)?;
            let now = now_ns();
            let received = fleet.groups[0].tally.received;
            if received > n_received {
                (n_received, last_delivery_ns) = (received, now);
            }
            if !self.progress.is_done.load(Ordering::Acquire) {
                last_delivery_ns = now;
            } else if now > last_delivery_ns + self.drain_ns || self.is_complete(fleet) {
                break;
            }
        }
        // All may be there a moment before the last look is due.
        if self.timeline.is_nearly_due(now_ns()) {
            self.look(fleet, now_ns());
        }
        let end = self.end.unwrap_or_else(|| Reading::take(fleet, self.pids));
        let publisher = self.publisher.take().map(JoinHandle::join);
        let Some(Ok(published)) = publisher else { bail!("the publisher's thread panicked") };
        let Some(start) = self.start else {
            bail!("the window never began: {}", published.error.unwrap_or_default());
        };
        let of_group = |(group, subscribers): (&Group, &Vec<u64>)| GroupMeasured {
            group: group.clone(),
            n_expected: subscribers
                .iter()
                .zip(0..)
                .map(|(n, ch)| n * published.delivered(ch))
                .sum(),
        };
        let memory = Memory::of(self.pids);
        Ok(Measured {
            groups: fleet.groups.iter().zip(&self.subscribers).map(of_group).collect(),
            published,
            window: end.since(start),
            memory,
            rss_max: self.rss_max.max(memory.rss),
            timeline: self.timeline.take_samples(),
        })
    }

    /// Whether the first group has all (the others may be slow). With one channel, or all channels
    /// by all: exact. Otherwise the drain ends it.
    fn is_complete(&self, fleet: &Fleet) -> bool {
        let n_subscribers: u64 = self.subscribers[0].iter().sum();
        let unique = fleet.groups[0].tally.unique;
        let n_channels = self.subscribers[0].len() as u64;
        unique * n_channels >= self.progress.n_sent.load(Ordering::Relaxed) * n_subscribers
    }
}

impl Drop for Traffic<'_> {
    /// After an error there may be a publisher yet.
    fn drop(&mut self) {
        self.progress.stop.store(true, Ordering::Relaxed);
        if let Some(publisher) = self.publisher.take() {
            let _ = publisher.join();
        }
    }
}

/// Opens all connections of the fleet; how long it took.
pub fn connect(fleet: &mut Fleet, timeout_ns: u64) -> anyhow::Result<u64> {
    let start_ns = now_ns();
    let mut next_line_ns = start_ns + SECOND_NS;
    while !fleet.is_open() {
        fleet.turn(TURN)?;
        let now = now_ns();
        if now > start_ns + timeout_ns {
            let n_ready: u64 = fleet.groups.iter().map(|group| group.n_ready).sum();
            bail!("only {n_ready} connections are ready after {:.0} s", seconds(timeout_ns));
        }
        if now >= next_line_ns {
            next_line_ns += SECOND_NS;
            eprintln!("{} ready", fleet.groups.iter().map(|group| group.n_ready).sum::<u64>());
        }
    }
    Ok(now_ns() - start_ns)
}

/// Turns the fleet for so long: pings are answered, replies read.
pub fn idle(fleet: &mut Fleet, duration_ns: u64) -> anyhow::Result<()> {
    let end_ns = now_ns() + duration_ns;
    while now_ns() < end_ns {
        fleet.turn(TURN)?;
    }
    Ok(())
}
