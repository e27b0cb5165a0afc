//! Promise: where a channel conflates, a slow client skips values and shows the newest it can, in bounded
//! memory, and nobody else notices; and with `max_rate` nobody gets more than they asked for.

mod common;

use common::cf::{Cf, subscribe};
use common::ws::{Dial, raw_path};
use common::{Hub, Raw, SOON, eventually, ms, scaled, secs, sys};
use serde_json::json;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

const NAMESPACES: &str = r#"
[namespaces.c]
slow_consumer = "conflate"
subscribe = "anyone"
[namespaces.m]
max_rate = 10
subscribe = "anyone"
recovery = "cache"
[namespaces.all]
subscribe = "anyone"
"#;

fn start() -> (Hub, tempfile::NamedTempFile) {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(NAMESPACES.as_bytes()).expect("written");
    let hub = Hub::builder().env("HUB_CONFIG", file.path().display());
    // On a busy machine who reads nothing yet is not to be cut for it.
    let hub = hub.env("HUB_MESSAGE_BYTES_MAX", "64KiB").env("HUB_WRITE_TIMEOUT", "2m");
    let hub = hub.start().wait_ready();
    (hub, file)
}

/// A publication: its number, filled up to 128 bytes.
fn payload(number: u64) -> serde_json::Value {
    json!(format!("{number} {}", "x".repeat(120 - number.to_string().len())))
}

fn number(text: &str) -> u64 {
    let digits = text.trim_start_matches('"').split(' ').next().expect("a word");
    digits.parse().unwrap_or_else(|_| panic!("no number: {text:.40}"))
}

/// What one reader saw.
#[derive(Default)]
struct Seen {
    n: u64,
    last: u64,
    /// How old, in publications, what it read was at the most.
    lag_max: u64,
}

impl Seen {
    fn take(&mut self, raw: &mut Raw, published: &AtomicU64) {
        while let Some(frame) = raw.frames.pop_front() {
            let number = number(frame.text());
            assert!(number > self.last, "{number} after {}", self.last);
            self.lag_max = self.lag_max.max(published.load(SeqCst).saturating_sub(number));
            (self.last, self.n) = (number, self.n + 1);
        }
    }
}

/// Reads so many bytes a second for as long as there is something, in steps of a twentieth.
fn read_slowly(raw: &mut Raw, bytes_per_second: usize, published: &AtomicU64, end: u64) -> Seen {
    let (mut seen, start) = (Seen::default(), Instant::now());
    let mut n_steps = 0;
    while seen.last < end {
        let is_open = raw.read_crumb(bytes_per_second / 20, SOON);
        assert!(is_open, "{:?} at {} of {end}", raw.next_close(ms(0)), seen.last);
        seen.take(raw, published);
        n_steps += 1;
        sys::pause((start + n_steps * ms(50)).saturating_duration_since(Instant::now()));
    }
    seen
}

fn read_all(raw: &mut Raw, published: &AtomicU64, end: u64) -> Seen {
    let mut seen = Seen::default();
    while seen.last < end {
        let frame = raw.next_data(SOON).expect("still open");
        raw.frames.push_front(frame);
        seen.take(raw, published);
    }
    seen
}

/// What didn't come is counted, no more and no less.
#[track_caller]
fn await_conflated(hub: &Hub, n_missing: u64) {
    let n_counted = || hub.metric_sum("hubbub_conflated_total");
    assert!(eventually(SOON, || n_counted() == n_missing as f64), "{} {n_missing}", n_counted());
}

#[test]
fn a_slow_client_shows_the_newest_and_nobody_else_notices() {
    let (hub, _file) = start();
    let (n_fast, n_slow, n_publications) = (scaled(16, 400), scaled(4, 100), scaled(2_000, 30_000));
    let last = n_publications as u64;
    let path = raw_path(&["c:a"]);
    let published = AtomicU64::new(0);
    let mut fast: Vec<Raw> = (0..n_fast).map(|_| Raw::open(&hub, &["c:a"])).collect();
    let mut slow: Vec<Raw> =
        (0..n_slow).map(|_| Dial::new(&hub, &path).rcvbuf(4096).open()).collect();
    let (seen_fast, seen_slow) = std::thread::scope(|scope| {
        let published = &published;
        let fast: Vec<_> = fast
            .iter_mut()
            .map(|raw| scope.spawn(move || read_all(raw, published, last)))
            .collect();
        let slow: Vec<_> = slow
            .iter_mut()
            .map(|raw| scope.spawn(move || read_slowly(raw, 5_000, published, last)))
            .collect();
        for number in 1..=last {
            hub.publish("c:a", payload(number));
            published.store(number, SeqCst);
        }
        let join = |threads: Vec<std::thread::ScopedJoinHandle<'_, Seen>>| -> Vec<Seen> {
            threads.into_iter().map(|it| it.join().expect("read")).collect()
        };
        (join(fast), join(slow))
    });
    assert!(seen_fast.iter().all(|seen| seen.n == last), "the fast ones miss nothing");
    let n_missing: u64 = seen_slow.iter().map(|seen| last - seen.n).sum();
    assert!(n_missing > 0, "the slow ones were slow");
    await_conflated(&hub, n_missing);
    assert_eq!(hub.metric_sum("hubbub_closes_total"), 0.0);
    assert!(eventually(SOON, || hub.metric_sum("hubbub_outbox_bytes") == 0.0));
}

#[test]
fn other_channels_of_a_slow_client_lose_nothing() {
    let (hub, _file) = start();
    let published = AtomicU64::new(0);
    let path = raw_path(&["c:a", "all:a"]);
    let mut raw = Dial::new(&hub, &path).rcvbuf(4096).open();
    let n = 2_000u64;
    for number in 1..=n {
        hub.publish("c:a", payload(number));
        if number % 20 == 0 {
            hub.publish("all:a", json!(format!("all {number}")));
        }
        published.store(number, SeqCst);
    }
    let (mut all, mut newest) = (Vec::new(), 0);
    while newest < n || all.last() != Some(&n) {
        let frame = raw.next_data(SOON).expect("the end comes");
        match frame.text().strip_prefix("\"all ") {
            Some(rest) => all.push(rest.trim_end_matches('"').parse().expect("a number")),
            None => {
                assert!(number(frame.text()) > newest);
                newest = number(frame.text());
            }
        }
    }
    assert_eq!(all, (1..=n / 20).map(|i| i * 20).collect::<Vec<u64>>());
    assert!(hub.metric_sum("hubbub_conflated_total") > 0.0);
}

#[test]
fn a_rate_is_kept_and_the_last_value_comes() {
    let (hub, _file) = start();
    let mut cf = Cf::subscribed(&hub, &["m:a"]);
    let start = Instant::now();
    let mut n_published = 0u64;
    while start.elapsed() < secs(2) {
        n_published += 1;
        hub.publish("m:a", json!(n_published));
    }
    let mut seen: Vec<(Duration, u64)> = Vec::new();
    while seen.last().is_none_or(|(_, number)| *number < n_published) {
        let publication = cf.next_pub(SOON).expect("the last one comes");
        let number = publication.data.parse().expect("a number");
        seen.push((publication.at - start, number));
    }
    assert!(seen.is_sorted_by(|a, b| a.1 < b.1), "{seen:?}");
    // 2 s and what was published at their end: at most one each tenth, and the first.
    assert!((10..=22).contains(&seen.len()), "{seen:?}");
    await_conflated(&hub, n_published - seen.len() as u64);
    // Who joins sees what the others see.
    let mut late = Cf::connect(&hub);
    let reply = late.command(subscribe("m:a"));
    assert_eq!(reply["subscribe"]["publications"][0]["data"], n_published, "{reply}");
}
