//! Promise: many slow readers cost their bounded outboxes and no more, in the hub and in its kernel; a
//! client that makes progress is never taken for a dead one. (Scenarios 29 and 32; one that never reads
//! is in `slow_consumer`.)

mod common;

use common::cf::{self, Cf, subscribe};
use common::hub::n_shards;
use common::ws::{Dial, PING, raw_path};
use common::{Hub, Raw, SOON, Viewer, drive, eventually, ms, scaled, secs};
use serde_json::json;
use std::time::{Duration, Instant};

const KIB: u64 = 1024;
const OUTBOX_BYTES_MAX: u64 = 256 * KIB;
const FILLER_BYTES: usize = 10_000;

fn hub() -> Hub {
    let builder = Hub::builder().env("HUB_OUTBOX_BYTES_MAX", "256KiB");
    builder.env("HUB_PUBLICATION_BYTES_MAX", "256KiB").start().wait_ready()
}

fn slow_raw(hub: &Hub, channel: &str) -> Raw {
    Dial::new(hub, &raw_path(&[channel])).rcvbuf(4096).open()
}

fn publish_nth(hub: &Hub, channel: &str, n: usize) {
    hub.publish(channel, format!("{n} {}", "x".repeat(FILLER_BYTES)));
}

fn n_cut(hub: &Hub) -> f64 {
    let metrics = hub.metrics();
    let cut = |code| metrics.get(&format!("hubbub_closes_total{{code=\"{code}\"}}"));
    cut(3008) + cut(3009)
}

/// Waits until the memory is back, on a hub that goes on working: the allocator gives back what is
/// free as it is called.
fn expect_back(hub: &Hub, bytes: u64) {
    let mut fresh = Raw::open(hub, &["fresh"]);
    let began = Instant::now();
    let back = eventually(secs(60), || {
        (0..20).for_each(|n| publish_nth(hub, "fresh", n));
        fresh.pump();
        fresh.frames.clear();
        hub.anon_bytes() <= bytes
    });
    assert!(back, "{} bytes, more than {bytes}", hub.anon_bytes());
    println!("memory is back after {:?}", began.elapsed());
}

/// The most that the kernel keeps for any connection of the hub's, and for all.
fn in_kernel(hub: &Hub) -> (u64, u64) {
    let queued = hub.sockets().into_iter().map(|socket| socket.queued_bytes);
    queued.fold((0, 0), |(most, sum), bytes| (most.max(bytes), sum + bytes))
}

/// All of these come in order, and nothing else.
fn expect_numbers(viewer: &mut Viewer, numbers: std::ops::Range<usize>) {
    let texts = viewer.take_texts();
    let due = numbers.clone().map(|n| format!("\"{n} x"));
    assert_eq!(texts.len(), numbers.len());
    assert!(texts.iter().zip(due).all(|(got, due)| got.text.starts_with(&due)));
}

#[test]
fn memory_follows_the_bound_not_the_slowest_client() {
    let hub = hub();
    let (n_slow, n_stopped, n_good) = (scaled(60, 500), scaled(30, 200), scaled(60, 200));
    let mut good: Vec<Viewer> = (0..n_good)
        .map(|i| if i % 2 == 0 { Viewer::cf(&hub, &["a"]) } else { Viewer::raw(&hub, &["a"]) })
        .collect();
    hub.publish("a", "warm-up");
    assert!(drive(&mut good, SOON, |viewer| viewer.n_received() == 1));
    good.iter_mut().for_each(|viewer| _ = viewer.take_texts());
    let base = hub.anon_bytes();
    let mut slow: Vec<Raw> = (0..n_slow).map(|_| slow_raw(&hub, "a")).collect();
    let stopped: Vec<Raw> = (0..n_stopped).map(|_| slow_raw(&hub, "a")).collect();
    let n_cut_at_most = (n_slow + n_stopped) as u64;
    let (mut peak, mut kernel_peak, mut n_published) = (0, 0, 0);
    let (began, length) = (Instant::now(), secs(scaled(3, 60) as u64));
    let mut passers_by = Vec::new();
    while began.elapsed() < length || n_cut(&hub) < n_cut_at_most as f64 {
        assert!(began.elapsed() < length + secs(30), "{} cut", n_cut(&hub));
        // 2 MB/s, and others come and go in the middle of it.
        for _ in 0..10 {
            publish_nth(&hub, "a", n_published);
            n_published += 1;
        }
        passers_by.push(slow_raw(&hub, "a"));
        passers_by.truncate(if n_published % 40 == 0 { 0 } else { 4 });
        let served = drive(&mut good, SOON, |viewer| viewer.n_received() >= 10);
        assert!(served, "all of it reaches every good client");
        let due = began + ms(50) * (n_published / 10) as u32;
        drive(&mut good, due.saturating_duration_since(Instant::now()), |_| false);
        slow.iter_mut().for_each(|raw| _ = raw.read_crumb(50, Duration::ZERO));
        for viewer in &mut good {
            expect_numbers(viewer, n_published - 10..n_published);
        }
        peak = peak.max(hub.anon_bytes().saturating_sub(base));
        kernel_peak = kernel_peak.max(in_kernel(&hub).0);
    }
    println!(
        "{n_published} publications to {n_slow} slow, {n_stopped} stopped, {n_good} good: {} KiB \
         more at the peak, in the kernel at most {} KiB for one",
        peak / KIB,
        kernel_peak / KIB
    );
    // One channel is kept once for each shard and format, and not once for each client.
    let bound = 8 * n_shards() as u64 * OUTBOX_BYTES_MAX + n_cut_at_most * 16 * KIB;
    assert!(peak < bound, "{peak} of {bound} bytes");
    // `HUB_NOTSENT_BYTES`, the write that went over it, and what the smallest window lets through.
    assert!(kernel_peak < 256 * KIB, "{kernel_peak} bytes in the kernel for one");
    assert!(good.iter().all(|viewer| !viewer.is_closed()), "no good client is cut");
    drop((slow, stopped, passers_by));
    // A fifth more, and what the allocator keeps of so many sessions.
    let kept = scaled(1_024, 8_192) as u64 * KIB;
    expect_back(&hub, base + base / 5 + kept);
    assert!(eventually(SOON, || hub.metric_sum("hubbub_outbox_bytes") == 0.0));
}

/// Each on a channel of its own: nothing is shared, so each really holds its outbox. Beyond the bound
/// there is half as much again, left behind in the allocator by buffers that grew by doubling.
#[test]
fn each_outbox_of_its_own_is_bounded_too() {
    let hub = Hub::start();
    let (n_slow, bound) = (scaled(20, 400), 1024 * KIB);
    let name = |i: usize| format!("own{i}");
    let mut slow: Vec<Raw> = (0..n_slow).map(|i| slow_raw(&hub, &name(i))).collect();
    let base = hub.anon_bytes();
    let mut peak = 0;
    for n in 0..140 {
        let channels: Vec<String> = (0..n_slow).map(name).collect();
        let data = format!("{n} {}", "x".repeat(FILLER_BYTES));
        let response = hub.api("broadcast", &json!({ "channels": channels, "data": data }));
        assert_eq!(response.status, 200);
        peak = peak.max(hub.anon_bytes().saturating_sub(base));
    }
    assert!(eventually(SOON, || n_cut(&hub) == n_slow as f64), "{} cut", n_cut(&hub));
    println!("{n_slow} outboxes of {} KiB: {} KiB at the peak", bound / KIB, peak / KIB);
    assert!(peak < n_slow as u64 * (bound + bound * 3 / 4), "{peak} bytes");
    // Cut means that what was queued is gone, whether or not the client ever notices.
    assert!(eventually(SOON, || hub.metric_sum("hubbub_outbox_bytes") < 64.0 * 1024.0));
    expect_back(&hub, base + base / 5 + peak / 20);
    assert!(slow.iter_mut().all(|raw| raw.wait_eof(SOON)));
}

#[test]
fn all_at_once_stop_in_the_middle_and_miss_nothing_within_the_bound() {
    let hub = hub();
    let n_viewers = scaled(80, 1_000);
    let viewer = |i| match i % 2 {
        0 => Viewer::Raw { raw: slow_raw(&hub, "a"), channels: vec!["a".to_owned()] },
        _ => {
            let mut cf = Cf::over(Dial::new(&hub, cf::PATH).rcvbuf(4096).open());
            cf.command(json!({ "connect": {} }));
            cf.subscribe("a");
            Viewer::Cf { cf, channels: vec!["a".to_owned()] }
        }
    };
    let mut viewers: Vec<Viewer> = (0..n_viewers).map(viewer).collect();
    let mut n_published = 0;
    for _ in 0..3 {
        let first = n_published;
        // Nobody reads: some in the middle of a frame, all with a full window.
        for _ in 0..20 {
            publish_nth(&hub, "a", n_published);
            n_published += 1;
        }
        let queued = || hub.metric_sum("hubbub_outbox_bytes") > 0.0;
        assert!(eventually(SOON, queued), "it is queued, not in the kernel");
        let newcomer = Viewer::raw(&hub, &["a"]);
        let n_due = n_published - first;
        assert!(drive(&mut viewers, secs(20), |viewer| viewer.n_received() == n_due), "all of it");
        viewers.iter_mut().for_each(|viewer| expect_numbers(viewer, first..n_published));
        assert_eq!(newcomer.n_received(), 0);
        // Some leave before the next round.
        viewers.truncate(viewers.len() - n_viewers / 10);
    }
    assert_eq!(n_cut(&hub), 0.0);
}

/// Reads at most so many bytes a second, in steps of 50 ms, for as long as it is called.
struct Link {
    bytes_per_step: usize,
    next: Instant,
}

impl Link {
    const STEP: Duration = Duration::from_millis(50);

    fn new(bytes_per_second: usize) -> Self {
        Self { bytes_per_step: bytes_per_second / 20, next: Instant::now() }
    }

    /// One step; waits for its time.
    fn read(&mut self, cf: &mut Cf) {
        let mut left = self.bytes_per_step;
        while left > 0 {
            // A crumb is at most what is left; one that finds nothing ends the step.
            let before = cf.raw.n_read();
            cf.read_crumb(left, Duration::ZERO);
            let n_read = cf.raw.n_read() - before;
            if n_read == 0 {
                break;
            }
            left -= n_read;
        }
        self.next += Self::STEP;
        common::sys::pause(self.next.saturating_duration_since(Instant::now()));
    }
}

/// A client behind a link that the stream uses to 95 %, and a queue that never quite empties.
#[test]
fn a_busy_link_is_not_a_dead_one() {
    let builder = Hub::builder().env("HUB_PING_INTERVAL", "1s").env("HUB_PONG_TIMEOUT", "500ms");
    let hub = builder.env("HUB_WRITE_TIMEOUT", "500ms").start().wait_ready();
    let mut cf = Cf::over(Dial::new(&hub, cf::PATH).rcvbuf(16 * 1024).open());
    cf.command(json!({ "connect": {} }));
    cf.subscribe("a");
    let n_periods = scaled(6, 20);
    let stream_bytes = 10 * FILLER_BYTES * 2;
    let mut link = Link::new(stream_bytes * 100 / 95);
    // A backlog to begin with, so that everything has to wait for its turn.
    let mut n_published = 20;
    (0..n_published).for_each(|n| publish_nth(&hub, "a", n));
    let (began, mut n_lagging) = (Instant::now(), 0);
    while began.elapsed() < secs(n_periods as u64) {
        publish_nth(&hub, "a", n_published);
        n_published += 1;
        link.read(&mut cf);
        n_lagging += usize::from(hub.metric_sum("hubbub_outbox_bytes") > 0.0);
        assert!(!cf.raw.is_closed(), "cut after {:?}: {:?}", began.elapsed(), cf.next_close(ms(0)));
        cf.log.clear();
    }
    let steps = began.elapsed().as_millis() / 50;
    println!("{} pings in {n_periods} s; a backlog at {n_lagging} of {steps} steps", cf.n_pings);
    assert!(n_lagging as u128 > steps / 2, "the link was busy");
    assert!(cf.n_pings >= n_periods - 2, "{} pings", cf.n_pings);
    cf.wait(SOON, |cf| cf.pubs.len() == n_published);
    assert_eq!(cf.pubs.len(), n_published, "and nothing is lost");
    assert_eq!(n_cut(&hub) + hub.metrics().get("hubbub_closes_total{code=\"3012\"}"), 0.0);
}

/// Its pings, the protocol's and its own, overtake what is queued for it.
#[test]
fn pings_are_answered_before_what_is_queued() {
    let hub = hub();
    let mut cf = Cf::over(Dial::new(&hub, cf::PATH).rcvbuf(4096).open());
    cf.command(json!({ "connect": {} }));
    cf.subscribe("a");
    let queued = || hub.metric_sum("hubbub_outbox_bytes");
    let mut n_published = 20;
    (0..n_published).for_each(|n| publish_nth(&hub, "a", n));
    while queued() < OUTBOX_BYTES_MAX as f64 * 0.8 {
        publish_nth(&hub, "a", n_published);
        n_published += 1;
        assert!(n_published < 100 && n_cut(&hub) == 0.0, "{} queued", queued());
        assert!(
            eventually(secs(1), || hub.metric_sum("hubbub_deliveries_total") == n_published as f64)
        );
        // The gauge is of the last tick.
        let seen = queued();
        let _ = eventually(ms(150), || queued() > seen);
    }
    let began = Instant::now();
    cf.raw.send_frame(PING, b"own");
    let id = cf.send(vec![json!({ "ping": {} })])[0];
    while cf.raw.pongs.is_empty() || !cf.replies.contains_key(&id) {
        assert!(began.elapsed() < secs(5), "not answered");
        cf.read_crumb(1_000, SOON);
    }
    assert_eq!(cf.raw.pongs, [b"own"]);
    println!("answered after {:?} and {} of {n_published} queued", began.elapsed(), cf.pubs.len());
    assert!(cf.pubs.len() < n_published / 2, "behind {} of {n_published}", cf.pubs.len());
    cf.wait(SOON, |cf| cf.pubs.len() == n_published);
    assert_eq!(cf.pubs.len(), n_published);
}

#[test]
fn a_hundred_pings_a_second_disturb_nobody() {
    let hub = hub();
    let mut good = Cf::subscribed(&hub, &["a"]);
    let mut eager = Cf::connect(&hub);
    for n in 0..scaled(100, 1_000) {
        eager.raw.send_frame(PING, &[n as u8]);
        assert_eq!(eager.raw.next_pong(SOON), Some(vec![n as u8]));
        if n % 10 == 0 {
            hub.publish("a", n);
            assert_eq!(good.next_pub(secs(1)).expect("served").data, n.to_string());
        }
    }
    eager.send(vec![subscribe("a")]);
    assert!(eventually(SOON, || hub.metric_sum("hubbub_subscriptions") == 2.0), "still welcome");
}
