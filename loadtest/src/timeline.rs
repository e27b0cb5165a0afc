//! What changes while it is measured: a [`Sample`] every so often.
//!
//! On the subscribers' thread, which receives nothing meanwhile: a light look copies a histogram and
//! reads a few files of /proc; a full one visits all connections, too, and is for who asks for it.

use std::ops::Range;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::checker::histogram;
use crate::clock::{MS_NS, SECOND_NS, seconds};
use crate::fleet::{Fleet, Group};
use crate::html::{Axis, Plot, Scale};
use crate::process::{self, Cpu, Memory};
use crate::report::Latency;

/// How many samples a run's plot has, about.
const N_SAMPLES: u64 = 600;
/// The last look of a window may be this late.
const END_SLACK_NS: u64 = 50 * MS_NS;

/// When to look at what.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Looks {
    pub every_ns: u64,
    pub depth: Depth,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Depth {
    Light,
    /// Descriptors and what was lost so far, too.
    Full,
}

impl Looks {
    /// Once a second, less often in a long window.
    pub fn over(window_ns: u64) -> Self {
        Self { every_ns: SECOND_NS.max(window_ns / N_SAMPLES), depth: Depth::Light }
    }
}

/// From the look before to this one.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Since the window's start.
    pub at_s: f64,
    pub publications_per_s: f64,
    pub deliveries_per_s: f64,
    /// Of publications intended in the window; of all subscribers but slow readers and the like.
    pub latency_ms: Latency,
    pub memory: Memory,
    /// Of a core.
    pub server_cpu_share: f64,
    /// Connections that the server ended, so far.
    pub closed: u64,
    /// In a full look.
    pub fds: Option<usize>,
    /// Skipped by the same subscribers, so far. In a full look.
    pub lost: Option<u64>,
}

impl std::fmt::Display for Sample {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "{:.0} s: published {:.0}/s, delivered {:.0}/s, p50 {:.2} ms, p99 {:.2} ms, closed {}, \
             server CPU {:.0} %, RSS {:.1} MB",
            self.at_s,
            self.publications_per_s,
            self.deliveries_per_s,
            self.latency_ms.p50,
            self.latency_ms.p99,
            self.closed,
            self.server_cpu_share * 1e2,
            self.memory.rss as f64 / 1e6,
        )?;
        if let (Some(fds), Some(lost)) = (self.fds, self.lost) {
            write!(out, ", anon {:.1} MB, fds {fds}, lost {lost}", self.memory.anon as f64 / 1e6)?;
        }
        Ok(())
    }
}

/// The looks so far.
pub struct Timeline {
    looks: Looks,
    window_ns: Range<u64>,
    next_ns: u64,
    before: Before,
    samples: Vec<Sample>,
}

/// Sums at the look before.
struct Before {
    at_ns: u64,
    n_sent: u64,
    n_received: u64,
    latency_us: Histogram<u64>,
    cpu: Cpu,
}

impl Timeline {
    pub fn new(start_ns: u64, window_ns: Range<u64>, pids: &[u32], looks: Looks) -> Self {
        let before = Before {
            at_ns: start_ns,
            n_sent: 0,
            n_received: 0,
            latency_us: histogram(),
            cpu: Cpu::of(pids),
        };
        let next_ns = start_ns + looks.every_ns;
        Self { looks, window_ns, next_ns, before, samples: Vec::new() }
    }

    pub fn is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.next_ns
    }

    /// More than half of the way.
    pub fn is_nearly_due(&self, now_ns: u64) -> bool {
        now_ns + self.looks.every_ns / 2 >= self.next_ns
    }

    /// Looks, and keeps what it saw if that is all of the window.
    pub fn look(&mut self, fleet: &Fleet, pids: &[u32], n_sent: u64, now_ns: u64) -> Sample {
        self.next_ns = now_ns.max(self.next_ns + self.looks.every_ns);
        let tally = &fleet.groups[0].tally;
        let is_full = self.looks.depth == Depth::Full;
        let cpu = Cpu::of(pids);
        let before = &mut self.before;
        let n_received = fleet.n_received();
        let interval_s = seconds(now_ns.saturating_sub(before.at_ns)).max(1e-9);
        let per_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / interval_s;
        let cpu_ns = cpu.since(before.cpu).run_ns;
        let sample = Sample {
            at_s: seconds(now_ns.saturating_sub(self.window_ns.start)),
            publications_per_s: per_second(n_sent, before.n_sent),
            deliveries_per_s: per_second(n_received, before.n_received),
            latency_ms: Latency::of(&since(&tally.latency_us, &before.latency_us)),
            memory: Memory::of(pids),
            server_cpu_share: seconds(cpu_ns) / interval_s,
            closed: fleet.groups.iter().map(Group::n_ended).sum(),
            fds: is_full.then(|| process::n_fds(pids)),
            lost: is_full.then(|| fleet.n_skipped(0)),
        };
        let is_whole = before.at_ns >= self.window_ns.start
            && now_ns <= self.window_ns.end.saturating_add(END_SLACK_NS);
        *before =
            Before { at_ns: now_ns, n_sent, n_received, latency_us: tally.latency_us.clone(), cpu };
        if is_whole {
            self.samples.push(sample.clone());
        }
        sample
    }

    pub fn take_samples(&mut self) -> Vec<Sample> {
        std::mem::take(&mut self.samples)
    }
}

/// The samples over time. One sample alone makes no line.
pub fn plots(samples: &[Sample]) -> Vec<Plot> {
    if samples.len() < 2 {
        return Vec::new();
    }
    let plot = |title: &str, unit: &str| {
        Plot::new(title, Axis::new("seconds", Scale::Linear), Axis::new(unit, Scale::Linear))
    };
    let line = |value: fn(&Sample) -> Option<f64>| -> Vec<(f64, f64)> {
        samples.iter().filter_map(|it| Some((it.at_s, value(it)?))).collect()
    };
    vec![
        Plot::new(
            "Latency over time",
            Axis::new("seconds", Scale::Linear),
            Axis::new("ms", Scale::Log),
        )
        .with("p50", line(|it| Some(it.latency_ms.p50)))
        .with("p99", line(|it| Some(it.latency_ms.p99)))
        .with("max", line(|it| Some(it.latency_ms.max))),
        plot("Deliveries", "a second").with("", line(|it| Some(it.deliveries_per_s))),
        plot("Publications", "a second").with("", line(|it| Some(it.publications_per_s))),
        plot("Server memory", "MB")
            .with("RSS", line(|it| known(it.memory.rss)))
            .with("RssAnon", line(|it| known(it.memory.anon))),
        plot("Server CPU", "% of a core")
            .with("", line(|it| known(it.memory.rss).map(|_| it.server_cpu_share * 1e2))),
        plot("Server descriptors", "open").with("", line(|it| it.fds.map(|n| n as f64))),
        plot("Lost so far", "deliveries").with("", line(|it| it.lost.map(|n| n as f64))),
    ]
}

/// In megabytes; 0 is a server whose process is unknown.
fn known(bytes: u64) -> Option<f64> {
    (bytes > 0).then_some(bytes as f64 / 1e6)
}

fn since(now: &Histogram<u64>, before: &Histogram<u64>) -> Histogram<u64> {
    let mut since = now.clone();
    match since.subtract(before) {
        Ok(()) => since,
        // Only if the fleet began anew in between: then all of it is since.
        Err(_) => now.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_is_of_the_interval_only() {
        let mut before = histogram();
        before.record_n(1000, 500).unwrap();
        let mut now = before.clone();
        now.record_n(9000, 10).unwrap();
        let since = since(&now, &before);
        assert_eq!((since.len(), since.value_at_quantile(0.5) / 100), (10, 90));
    }
}
