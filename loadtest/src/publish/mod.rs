//! The publishing side: a schedule kept by one thread, and a small trait for how to publish.
//!
//! Open loop: the schedule is fixed before the first publication, and each carries the time it was
//! to be sent. A publisher that falls behind catches up in batches; nobody waits for an answer to
//! publish the next.

mod http;
mod redis;
mod websocket;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::Context as _;
use hdrhistogram::Histogram;

pub use http::Http;
pub use redis::Redis;
pub use websocket::{WebSocket, WebSocketArgs};

use crate::checker::histogram;
use crate::clock::{SECOND_NS, now_ns, sleep_until, thread_cpu_ns};
use crate::payload::{self, Stamp};

/// How many publications go into one write when the publisher is behind.
const BATCH_MAX: u64 = 16;

/// A way to publish. An answer that says no is a failure of that channel's publication; an `Err` is
/// the end.
pub trait Publisher: Send {
    /// Queues one publication. `channel` is its index, `name` its name.
    fn put(&mut self, channel: u32, name: &str, payload: &[u8]) -> anyhow::Result<()>;

    /// Sends what is queued and takes the answers that are there. Waits only if as much is
    /// unanswered as may be.
    fn flush(&mut self) -> anyhow::Result<()>;

    /// Waits for all answers.
    fn finish(&mut self) -> anyhow::Result<()>;

    /// The channels of the publications that failed since the last call.
    fn take_failed(&mut self) -> Vec<u32>;
}

#[derive(
    Copy, Clone, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum PublisherName {
    /// Pipelined PUBLISH
    Redis,
    /// POST /api/publish, several in flight
    Http,
    /// A message to --publish-path for each
    #[value(name = "websocket")]
    WebSocket,
}

/// When to publish what.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Schedule {
    pub run: u16,
    pub payload_bytes: usize,
    pub channels: Vec<String>,
    pub start_ns: u64,
    pub n_publications: u64,
    /// A second; `None` is a burst: each as soon as the one before is out, intended right then.
    pub rate: Option<f64>,
}

impl Schedule {
    /// When the nth publication is due, on the clock.
    pub fn due_ns(&self, n: u64) -> u64 {
        match self.rate {
            Some(rate) => self.start_ns + (n as f64 * SECOND_NS as f64 / rate) as u64,
            None => self.start_ns,
        }
    }

    /// Channels take turns.
    pub fn channel(&self, n: u64) -> u32 {
        (n % self.channels.len() as u64) as u32
    }
}

/// What the other threads may know while it runs.
#[derive(Default)]
pub struct Progress {
    pub n_sent: AtomicU64,
    pub is_done: AtomicBool,
    /// Set to end early.
    pub stop: AtomicBool,
}

/// What became of the schedule.
#[derive(Clone, Debug)]
pub struct Published {
    /// By channel; failed ones are in both.
    pub sent: Vec<u64>,
    pub failed: Vec<u64>,
    /// From due to handed to the socket, in microseconds, for those due in the window.
    pub late_us: Histogram<u64>,
    pub cpu_ns: u64,
    pub error: Option<String>,
}

impl Published {
    pub(crate) fn new(n_channels: usize) -> Self {
        Self {
            sent: vec![0; n_channels],
            failed: vec![0; n_channels],
            late_us: histogram(),
            cpu_ns: 0,
            error: None,
        }
    }

    pub fn n_sent(&self) -> u64 {
        self.sent.iter().sum()
    }

    pub fn n_failed(&self) -> u64 {
        self.failed.iter().sum()
    }

    /// How many publications each subscriber of the channel must get.
    pub fn delivered(&self, channel: usize) -> u64 {
        self.sent[channel] - self.failed[channel]
    }
}

/// What a publisher thread is given.
pub struct Job {
    pub schedule: Schedule,
    /// Lateness counts in here, on the clock.
    pub window_ns: Range<u64>,
    pub progress: Arc<Progress>,
}

/// Starts the publisher thread.
pub fn start(mut publisher: Box<dyn Publisher>, job: Job) -> anyhow::Result<JoinHandle<Published>> {
    let body = move || {
        let Job { schedule, window_ns, progress } = job;
        let n_channels = schedule.channels.len();
        let mut published = Published::new(n_channels);
        let outcome = publish(&mut *publisher, &schedule, &window_ns, &progress, &mut published);
        published.error =
            outcome.and_then(|()| publisher.finish()).err().map(|it| format!("{it:#}"));
        for channel in publisher.take_failed() {
            published.failed[channel as usize] += 1;
        }
        published.cpu_ns = thread_cpu_ns();
        progress.is_done.store(true, Ordering::Release);
        published
    };
    std::thread::Builder::new().name("publisher".to_owned()).spawn(body).context("a thread")
}

/// Keeps the schedule on the calling thread.
pub(crate) fn publish(
    publisher: &mut dyn Publisher,
    schedule: &Schedule,
    window_ns: &Range<u64>,
    progress: &Progress,
    published: &mut Published,
) -> anyhow::Result<()> {
    let mut payload = Vec::with_capacity(schedule.payload_bytes);
    sleep_until(schedule.start_ns);
    for n in 0..schedule.n_publications {
        let mut due = schedule.due_ns(n);
        if n % BATCH_MAX == 0 || due > now_ns() {
            publisher.flush()?;
            progress.n_sent.store(n, Ordering::Relaxed);
            if progress.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            sleep_until(due);
        }
        let now = now_ns();
        if schedule.rate.is_none() {
            due = now;
        }
        if window_ns.contains(&due) {
            published.late_us.saturating_record(now.saturating_sub(due) / 1000);
        }
        let channel = schedule.channel(n);
        let sent = &mut published.sent[channel as usize];
        let stamp = Stamp {
            run: schedule.run,
            channel,
            seq: *sent as u32,
            intended_ns: due - schedule.start_ns,
        };
        payload::put(&mut payload, stamp, schedule.payload_bytes);
        publisher.put(channel, &schedule.channels[channel as usize], &payload)?;
        *sent += 1;
        if schedule.rate.is_some() && schedule.due_ns(n + 1) > now_ns() {
            publisher.flush()?;
        }
    }
    publisher.flush()?;
    progress.n_sent.store(schedule.n_publications, Ordering::Relaxed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MS_NS;

    /// Takes what is published, and dawdles once.
    struct Dawdler {
        taken: Vec<Stamp>,
        dawdle_at: usize,
    }

    impl Publisher for Dawdler {
        fn put(&mut self, _: u32, _: &str, payload: &[u8]) -> anyhow::Result<()> {
            self.taken.push(payload::get(payload).expect("a payload"));
            if self.taken.len() == self.dawdle_at {
                sleep_until(now_ns() + 50 * MS_NS);
            }
            Ok(())
        }

        fn flush(&mut self) -> anyhow::Result<()> {
            Ok(())
        }

        fn finish(&mut self) -> anyhow::Result<()> {
            Ok(())
        }

        fn take_failed(&mut self) -> Vec<u32> {
            Vec::new()
        }
    }

    #[test]
    fn a_late_publisher_keeps_to_the_intended_times_and_says_so() {
        let schedule = Schedule {
            run: 9,
            payload_bytes: 64,
            channels: vec!["a".to_owned(), "b".to_owned()],
            start_ns: now_ns(),
            n_publications: 100,
            rate: Some(1000.0),
        };
        let mut dawdler = Dawdler { taken: Vec::new(), dawdle_at: 10 };
        let mut published = Published::new(2);
        let progress = Progress::default();
        publish(&mut dawdler, &schedule, &(0..u64::MAX), &progress, &mut published).unwrap();
        assert_eq!(published.sent, [50, 50]);
        assert_eq!(progress.n_sent.load(Ordering::Relaxed), 100);
        for (stamp, n) in dawdler.taken.iter().zip(0..) {
            let intended_ns = n * MS_NS;
            let (channel, seq) = ((n % 2) as u32, (n / 2) as u32);
            assert_eq!(*stamp, Stamp { run: 9, channel, seq, intended_ns });
        }
        // The 11th was due 1 ms after the 10th, and went out 50 ms after it.
        assert!(published.late_us.max() >= 48_000, "{}", published.late_us.max());
    }
}
