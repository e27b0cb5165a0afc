//! Promise: with `write_delay` in a namespace, publications of its channels go out together, none later
//! than it says, whatever else is written takes them along, and nothing of them is lost or left behind.

mod common;

use common::cf::{Cf, subscribe, unsubscribe};
use common::past::{publish_each, recover};
use common::ws::{Dial, raw_path};
use common::{Hub, QUIET, Raw, SOON, eventually, ms, secs};
use serde_json::json;
use std::io::Write;
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// `long` is as long as it can be: what comes within [`SOON`] of a test's start didn't wait for it.
const NAMESPACES: &str = r#"
[namespaces.d]
write_delay = "500ms"
[namespaces.long]
write_delay = "10s"
history_size = 100
history_ttl = "60s"
recovery = "stream"
[namespaces.slow]
write_delay = "3s"
[namespaces.newest]
write_delay = "20ms"
slow_consumer = "conflate"
[namespaces.now]
"#;
const DELAY: Duration = Duration::from_millis(500);

fn start() -> (Hub, NamedTempFile) {
    let mut file = NamedTempFile::new().expect("a temporary file");
    file.write_all(NAMESPACES.as_bytes()).expect("written");
    // Whose sessions are on which shard shall not matter to the counts.
    let hub = Hub::builder().env("HUB_CONFIG", file.path().display()).env("HUB_SHARDS", 1);
    (hub.start().wait_ready(), file)
}

/// A subscriber whose channels' delay has begun just now. Returns when that was at the earliest.
fn begun(hub: &Hub, channels: &[&str], delayed: &str) -> (Raw, Instant) {
    let mut raw = Raw::open(hub, channels);
    let at = Instant::now();
    hub.publish(delayed, "first");
    assert_eq!(raw.next_data(SOON).expect("at once").text(), "\"first\"");
    (raw, at)
}

#[track_caller]
fn expect(raw: &mut Raw, expected: &[&str]) {
    for text in expected {
        let frame = raw.next_data(SOON).expect("it comes");
        assert_eq!(frame.text().trim_matches('"'), *text);
    }
}

/// However slow the machine: no more writes than delays went by, nothing earlier than after one.
#[test]
fn publications_within_the_delay_go_out_together() {
    const N: usize = 200;
    let (hub, _file) = start();
    let (mut raw, start) = begun(&hub, &["d:a"], "d:a");
    let n_writes = || hub.metric_sum("hubbub_writes_total") as u128;
    let before = n_writes();
    for n in 0..N {
        hub.publish("d:a", n);
    }
    let mut first_at = None;
    for n in 0..N {
        let frame = raw.next_data(SOON).expect("all come");
        assert_eq!(frame.text(), n.to_string());
        first_at.get_or_insert(frame.at);
    }
    let n_delays = start.elapsed().as_millis() / DELAY.as_millis();
    assert!(first_at.expect("there were some") >= start + DELAY, "it waited");
    let counted = eventually(SOON, || n_writes() > before);
    // The very first write may have been counted late.
    let n = n_writes() - before;
    assert!(counted && n <= n_delays + 1, "{n} writes in {n_delays} delays");
    assert!(hub.metric_sum("hubbub_delayed_total") > 0.0);
    assert_eq!(hub.metric_sum("hubbub_delays_cut_total"), 0.0);
}

/// A steady stream: each publication is there when its delay is over, but for what the machine takes.
#[test]
fn none_is_later_than_the_delay() {
    let (hub, _file) = start();
    let mut raw = Raw::open(&hub, &["d:a"]);
    let (mut sent_at, mut frames) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while start.elapsed() < 4 * DELAY {
        sent_at.push(Instant::now());
        hub.publish("d:a", sent_at.len() - 1);
        // Read as it comes, for that is when it is there.
        frames.extend(raw.next_data(ms(5)));
    }
    while frames.len() < sent_at.len() {
        frames.push(raw.next_data(SOON).expect("all come"));
    }
    let mut late = Vec::new();
    for ((n, sent_at), frame) in sent_at.iter().enumerate().zip(frames) {
        assert_eq!(frame.text(), n.to_string());
        late.push(frame.at.saturating_duration_since(*sent_at + DELAY));
    }
    late.sort();
    assert!(late[late.len() / 2] < DELAY, "half of them within twice the delay: {late:?}");
    assert!(late[late.len() - 1] < secs(5), "{late:?}");
}

#[test]
fn what_is_written_for_another_reason_takes_them_along() {
    let (hub, _file) = start();
    let (mut raw, start) = begun(&hub, &["long:a", "now:a"], "long:a");
    let mut other = Raw::open(&hub, &["now:a"]);
    let (mut alone, _) = begun(&hub, &["long:b"], "long:b");
    for n in ["1", "2"] {
        hub.publish("long:a", n);
        hub.publish("long:b", n);
    }
    assert!(raw.stays_quiet(QUIET) && alone.stays_quiet(QUIET), "they wait");
    hub.publish("now:a", "3");
    expect(&mut raw, &["1", "2", "3"]);
    expect(&mut other, &["3"]);
    // A pong is a reply of this session's own.
    alone.send_frame(9, b"?");
    assert!(alone.next_pong(SOON).is_some());
    expect(&mut alone, &["1", "2"]);
    assert!(start.elapsed() < secs(10), "not for their own sake");
}

#[test]
fn who_leaves_the_channel_gets_what_was_published_before() {
    let (hub, _file) = start();
    let mut cf = Cf::subscribed(&hub, &["long:a", "long:b"]);
    hub.publish("long:a", "first");
    cf.next_pub(SOON).expect("at once");
    hub.publish("long:a", "1");
    hub.publish("long:b", "2");
    assert!(cf.stays_quiet(QUIET));
    cf.command(unsubscribe("long:a"));
    cf.wait(SOON, |cf| cf.pubs.len() == 2);
    hub.publish("long:a", "not for us");
    hub.publish("long:b", "3");
    cf.command(subscribe("now:a"));
    cf.wait(SOON, |cf| cf.pubs.len() == 3);
    let all: Vec<&str> = cf.pubs.iter().map(|it| it.data.trim_matches('"')).collect();
    assert_eq!(all, ["1", "2", "3"]);
}

#[test]
fn a_drain_leaves_nothing_behind() {
    let (mut hub, _file) = start();
    let (mut raw, _) = begun(&hub, &["long:a"], "long:a");
    (0..3).for_each(|n| hub.publish("long:a", n));
    assert!(raw.stays_quiet(QUIET));
    hub.signal(libc::SIGTERM);
    expect(&mut raw, &["0", "1", "2"]);
    assert_eq!(raw.next_close(SOON).map(|close| close.code), Some(3001));
    assert!(hub.wait_exit(SOON).is_some_and(|status| status.success()));
}

/// What waits counts as queued. Who reads is not cut for it, however much it is.
#[test]
fn who_does_not_read_is_a_slow_consumer() {
    let (hub, _file) = start();
    let path = raw_path(&["slow:a"]);
    let mut stalled = Dial::new(&hub, &path).rcvbuf(4096).open();
    let mut reads = Raw::open(&hub, &["slow:a"]);
    let filler = "x".repeat(50_000);
    let is_cut = || hub.metrics().get("hubbub_closes_total{code=\"3008\"}") == 1.0;
    let mut n = 0;
    let cut = eventually(SOON, || {
        hub.publish("slow:a", format!("{n} {filler}"));
        n += 1;
        is_cut()
    });
    assert!(cut, "{n} publications");
    for i in 0..n {
        let frame = reads.next_data(SOON).expect("all come");
        assert!(frame.text().starts_with(&format!("\"{i} ")));
    }
    assert!(stalled.wait_eof(SOON));
    let were_cut = || hub.metric_sum("hubbub_delays_cut_total") > 0.0;
    assert!(eventually(SOON, were_cut), "two of them are more than a write");
}

#[test]
fn who_is_slow_sees_the_newest_where_it_conflates() {
    let (hub, _file) = start();
    let path = raw_path(&["newest:a"]);
    let mut slow = Dial::new(&hub, &path).rcvbuf(4096).open();
    let n = 1_000u64;
    for number in 1..=n {
        hub.publish("newest:a", json!({ "n": number, "filler": "x".repeat(1_000) }));
    }
    let mut seen = Vec::new();
    while seen.last() != Some(&n) {
        let frame = slow.next_data(SOON).expect("the last one comes");
        let value: serde_json::Value = serde_json::from_str(frame.text()).expect("JSON");
        seen.push(value["n"].as_u64().expect("a number"));
    }
    assert!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
    let n_missing = n as f64 - seen.len() as f64;
    assert!(eventually(SOON, || hub.metric_sum("hubbub_conflated_total") == n_missing));
}

/// What waits for others was delivered as far as the stream is concerned: who joins gets it at once and
/// the rest live, once each.
#[test]
fn who_recovers_meanwhile_gets_each_once() {
    let (hub, _file) = start();
    let mut waits = Cf::connect(&hub);
    waits.command(subscribe("long:a"));
    let had = publish_each(&hub, "long:a", 1..=1);
    waits.next_pub(SOON).expect("at once");
    publish_each(&hub, "long:a", 2..=4);
    assert!(waits.stays_quiet(QUIET));
    let mut joins = Cf::connect(&hub);
    let reply = joins.command(recover("long:a", &had))["subscribe"].clone();
    assert_eq!(reply["recovered"], true, "{reply}");
    let caught_up = reply["publications"].as_array().expect("publications");
    let offset = |value: &serde_json::Value| value["offset"].as_u64().expect("an offset");
    assert_eq!(caught_up.iter().map(offset).collect::<Vec<_>>(), [2, 3, 4]);
    publish_each(&hub, "long:a", 5..=6);
    for cf in [&mut waits, &mut joins] {
        cf.command(subscribe("now:a"));
    }
    waits.wait(SOON, |cf| cf.pubs.len() == 5);
    joins.wait(SOON, |cf| cf.pubs.len() == 2);
    let offsets = |cf: &Cf| cf.pubs.iter().map(|it| offset(&it.body)).collect::<Vec<_>>();
    assert_eq!((offsets(&waits), offsets(&joins)), (vec![2, 3, 4, 5, 6], vec![5, 6]));
}

#[test]
fn a_reload_counts_for_open_channels() {
    let file = NamedTempFile::new().expect("a temporary file");
    let write = |keys: &str| {
        let text = format!("[namespaces.x]\n{keys}\n[namespaces.\"\"]\n");
        std::fs::write(file.path(), text).expect("written");
    };
    write("");
    let hub = Hub::builder().env("HUB_CONFIG", file.path().display()).start().wait_ready();
    let reload = |keys: &str| {
        let n_before = hub.metric_sum("hubbub_reloads_total");
        write(keys);
        hub.signal(libc::SIGHUP);
        assert!(eventually(SOON, || hub.metric_sum("hubbub_reloads_total") > n_before));
    };
    let mut raw = Raw::open(&hub, &["x:a"]);
    let start = Instant::now();
    reload("write_delay = \"10s\"");
    let waits = eventually(SOON, || {
        hub.publish("x:a", "waits");
        hub.metric_sum("hubbub_delayed_total") > 0.0
    });
    assert!(waits);
    reload("");
    let leaves = eventually(SOON, || {
        hub.publish("x:a", "leaves");
        while let Some(frame) = raw.next_data(QUIET) {
            if frame.text() == "\"leaves\"" {
                return true;
            }
        }
        false
    });
    assert!(leaves && start.elapsed() < secs(10), "and took along what waited");
}

/// Turns that are cut off at their bound, and the time in pauses between turns.
#[test]
fn turns_and_pauses_are_counted() {
    const BATCH: usize = 24;
    let start = Instant::now();
    let hub = Hub::builder().env("HUB_SHARDS", 1).env("HUB_WRITE_DELAY", "500ms").start();
    let mut raw = Raw::open(&hub, &["a"]);
    let large = "x".repeat(60_000);
    let batch = || {
        for _ in 0..BATCH {
            hub.publish("a", format!("\"{large}\""));
        }
    };
    let counts = || {
        let names = ["turns_total", "full_turns_total", "paused_seconds_total"];
        names.map(|name| hub.metric_sum(&format!("hubbub_{name}")))
    };
    hub.publish("a", 0);
    expect(&mut raw, &["0"]);
    let [turns, full_turns, _] = counts();
    assert_eq!([turns, full_turns], [1.0, 0.0]);
    // On a slow machine a batch may take longer than the delay: then the next one is the proof.
    let is_counted = eventually(SOON, || {
        batch();
        (0..BATCH).for_each(|_| drop(raw.next_data(SOON).expect("all come")));
        let [turns, full_turns, paused_s] = counts();
        assert!(full_turns < turns && paused_s <= start.elapsed().as_secs_f64());
        full_turns > 0.0 && paused_s > 0.0
    });
    assert!(is_counted, "{:?}", counts());
}
