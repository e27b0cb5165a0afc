//! Promise: who does not read, or reads a few bytes at a time, costs only itself.

mod common;

use common::cf::{self, Cf, subscribe};
use common::ws::{Dial, raw_path};
use common::{Hub, Pump, Raw, SOON, Viewer, drive, eventually, ms, scaled, secs, sys};
use serde_json::json;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

const FILLER_BYTES: usize = 10_000;

fn n_closed(hub: &Hub, code: u16) -> f64 {
    hub.metrics().get(&format!("hubbub_closes_total{{code=\"{code}\"}}"))
}

/// The publication `i`: a JSON string that starts with its number.
fn publish_nth(hub: &Hub, i: usize) {
    hub.publish("a", format!("{i} {}", "x".repeat(FILLER_BYTES)));
}

/// A viewer that checks each publication when it comes and keeps only when that was.
struct Checked {
    viewer: Viewer,
    seen_at: Vec<Instant>,
}

impl Checked {
    fn new(viewer: Viewer) -> Self {
        Self { viewer, seen_at: Vec::new() }
    }

    fn open(hub: &Hub, n: usize) -> Vec<Self> {
        let viewer =
            |i| if i % 4 == 0 { Viewer::cf(hub, &["a"]) } else { Viewer::raw(hub, &["a"]) };
        (0..n).map(|i| Self::new(viewer(i))).collect()
    }

    fn n_seen(&self) -> usize {
        self.seen_at.len()
    }

    fn check(&mut self, at: Instant, data: &str) {
        let expected = format!("\"{} x", self.n_seen());
        assert!(data.starts_with(&expected), "due: {expected}, got {:.20}", data);
        assert_eq!(data.len(), expected.len() + FILLER_BYTES);
        self.seen_at.push(at);
    }
}

impl Pump for Checked {
    fn fd(&self) -> RawFd {
        self.viewer.fd()
    }

    fn pump(&mut self) -> bool {
        let open = self.viewer.pump();
        loop {
            let next = match &mut self.viewer {
                Viewer::Cf { cf, .. } => {
                    cf.log.clear();
                    cf.pubs.pop_front().map(|publication| (publication.at, publication.data))
                }
                Viewer::Raw { raw, .. } => {
                    raw.frames.pop_front().map(|frame| (frame.at, frame.text().to_owned()))
                }
            };
            match next {
                Some((at, data)) => self.check(at, &data),
                None => return open,
            }
        }
    }
}

/// One each that stalls: after the upgrade, in the middle of a frame, and before the replies to
/// its connect and subscribe commands.
struct Stalled {
    raw: Raw,
    midway: Raw,
    unconnected: Cf,
}

impl Stalled {
    const N: usize = 3;

    fn open(hub: &Hub) -> Self {
        let dial = |path: &str| Dial::new(hub, path).rcvbuf(4096).open();
        let mut unconnected = Cf::over(dial(cf::PATH));
        unconnected.send(vec![json!({ "connect": {} }), subscribe("a")]);
        let path = raw_path(&["a"]);
        Self { raw: dial(&path), midway: dial(&path), unconnected }
    }

    fn assert_ended(&mut self) {
        // What the kernel already had is read first; a close frame may or may not have fitted.
        for raw in [&mut self.raw, &mut self.midway, &mut self.unconnected.raw] {
            assert!(raw.wait_eof(SOON), "the stalled connection is gone");
            assert!(raw.next_close(secs(0)).is_none_or(|close| close.code == 3008));
        }
    }
}

#[test]
fn one_that_never_reads_is_closed_with_3008_and_nobody_else_notices() {
    let hub = Hub::builder().env("HUB_WRITE_TIMEOUT", "60s").start().wait_ready();
    let n_readers = scaled(200, 1_000);
    let mut stalled = Stalled::open(&hub);
    let mut readers = Checked::open(&hub, n_readers);
    let all = (n_readers + Stalled::N) as f64;
    assert!(eventually(SOON, || hub.metric_sum("hubbub_subscriptions") == all));

    let mut n_published = 0;
    while n_closed(&hub, 3008) < Stalled::N as f64 {
        assert!(n_published < 600, "6 MB queued for who does not read");
        for _ in 0..10 {
            publish_nth(&hub, n_published);
            n_published += 1;
        }
        if n_published == 10 {
            assert!(stalled.midway.read_crumb(1_000, SOON), "the first bytes of a frame");
        }
        let served = drive(&mut readers, SOON, |reader| reader.n_seen() >= n_published);
        assert!(served, "publication {n_published} does not reach everyone");
    }
    assert!(n_published > 80, "closed after {n_published}, far below the bound");
    // The walk that closed them goes on for the rest.
    publish_nth(&hub, n_published);
    assert!(drive(&mut readers, SOON, |reader| reader.n_seen() > n_published));
    assert!(readers.iter().all(|reader| !reader.viewer.is_closed()));
    assert_eq!(n_closed(&hub, 3008), Stalled::N as f64, "each counted once, and no reader");
    // Totals are reported ten times a second.
    let drops = || hub.metrics().get("hubbub_drops_total{reason=\"slow_consumer\"}");
    assert!(eventually(SOON, || drops() > 0.0));
    assert!(eventually(SOON, || hub.metric_sum("hubbub_connections") == n_readers as f64));
    assert!(eventually(SOON, || hub.metric_sum("hubbub_outbox_bytes") == 0.0));
    stalled.assert_ended();
}

/// How the readers fare while some stall, compared with how they fare otherwise.
struct Trial {
    hub: Hub,
    readers: Vec<Checked>,
    published_at: Vec<Instant>,
}

impl Trial {
    /// Nobody waits longer, however busy the machine.
    const PATIENCE: Duration = Duration::from_secs(5);

    /// The 99th percentile from publish to arrival, of all readers and so many publications. Those
    /// that stall go over their bound, and are closed, in the middle of it.
    fn window(&mut self, stalls: bool) -> Duration {
        // 200 a second of 10 kB to 1,000 readers are more than two cores carry.
        let (n_publications, every) = (scaled(60, 50), ms(scaled(25, 100) as u64));
        let n_closed_before = n_closed(&self.hub, 3008);
        let mut stalled = stalls.then(|| Stalled::open(&self.hub));
        let first = self.published_at.len();
        let began = Instant::now();
        for n in 0..n_publications {
            self.published_at.push(Instant::now());
            publish_nth(&self.hub, first + n);
            if let Some(stalled) = stalled.as_mut().filter(|_| n == 0) {
                assert!(stalled.midway.read_crumb(1_000, SOON), "the first bytes of a frame");
            }
            let due = began + every * (n as u32 + 1);
            drive(&mut self.readers, due.saturating_duration_since(Instant::now()), |_| false);
        }
        let all = self.published_at.len();
        assert!(drive(&mut self.readers, Self::PATIENCE, |reader| reader.n_seen() == all));
        let latencies = self.readers.iter().flat_map(|reader| {
            let published_at = self.published_at[first..].iter();
            reader.seen_at[first..].iter().zip(published_at).map(|(seen, sent)| *seen - *sent)
        });
        let mut latencies: Vec<Duration> = latencies.collect();
        latencies.sort_unstable();
        assert!(latencies[latencies.len() - 1] < Self::PATIENCE);
        let n_cut = n_closed(&self.hub, 3008) - n_closed_before;
        assert_eq!(n_cut, if stalls { Stalled::N as f64 } else { 0.0 }, "those that stall, all");
        if let Some(mut stalled) = stalled {
            stalled.assert_ended();
        }
        let n_readers = self.readers.len() as f64;
        assert!(eventually(SOON, || self.hub.metric_sum("hubbub_connections") == n_readers));
        latencies[latencies.len() * 99 / 100]
    }
}

fn median(mut values: Vec<Duration>) -> Duration {
    values.sort_unstable();
    values[values.len() / 2]
}

/// Windows with and without in turn, so that whatever else the machine does meets both. Only at full
/// size are there enough of them to compare; a part of it shows that nobody waits for those that stall.
#[test]
fn while_some_stall_the_others_wait_no_longer_than_ever() {
    let builder = Hub::builder().env("HUB_WRITE_TIMEOUT", "60s");
    let builder = builder.env("HUB_PUBLICATION_BYTES_MAX", "256KiB");
    let hub = builder.env("HUB_OUTBOX_BYTES_MAX", "256KiB").start().wait_ready();
    let readers = Checked::open(&hub, scaled(100, 1_000));
    let mut trial = Trial { hub, readers, published_at: Vec::new() };
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..scaled(1, 7) {
        without.push(trial.window(false));
        with.push(trial.window(true));
    }
    println!("p99 of each window, nobody stalls: {without:?}\n{} stall: {with:?}", Stalled::N);
    let (n_pairs, base, stalled) = (with.len(), median(without), median(with));
    if n_pairs > 1 {
        // Beside the fifth, the grain of the loops' timers on both sides.
        assert!(stalled <= base.mul_f64(1.2) + ms(2), "p99 {stalled:?} and {base:?} without");
    }
}

#[test]
fn no_progress_on_a_write_is_closed_with_3009_but_slow_progress_is_not() {
    let hub = Hub::builder().env("HUB_WRITE_TIMEOUT", "1s").start().wait_ready();
    let dial = || Dial::new(&hub, &raw_path(&["a"])).rcvbuf(4096).open();
    let (mut stalled, mut trickling) = (dial(), dial());
    let mut readers: Vec<Checked> =
        (0..5).map(|_| Checked::new(Viewer::raw(&hub, &["a"]))).collect();
    let n_publications = 60;
    (0..n_publications).for_each(|i| publish_nth(&hub, i));
    assert!(drive(&mut readers, SOON, |reader| reader.n_seen() == n_publications));
    let mut n_crumbs = 0;
    let closed = eventually(SOON, || {
        n_crumbs += usize::from(trickling.read_crumb(1_000, secs(0)));
        n_closed(&hub, 3009) > 0.0
    });
    assert!(closed, "no byte taken for a second");
    assert!(n_crumbs > 0 && !trickling.is_closed(), "it took {n_crumbs} crumbs meanwhile");
    let mut trickling = [trickling];
    assert!(drive(&mut trickling, SOON, |raw| raw.frames.len() == n_publications));
    assert!(stalled.wait_eof(SOON));
    assert!(stalled.next_close(secs(0)).is_none_or(|close| close.code == 3009));
    // Readers that have nothing to read make no progress either, and stay.
    publish_nth(&hub, n_publications);
    assert!(drive(&mut readers, SOON, |reader| reader.n_seen() > n_publications));
    assert_eq!(n_closed(&hub, 3009), 1.0);
}

/// The sizes at which a frame's head grows.
const SIZES: [usize; 4] = [125, 126, 65_535, 65_536];
/// From room in the window to the next bytes that were waiting for it.
const LEAVES_WITHIN: Duration = Duration::from_millis(100);
/// A round on a busy machine may be late for reasons of its own; not each of so many.
const ROUNDS_MAX: usize = 10;

/// Reads a few bytes at a time until there is a frame of each size. Whenever the kernel has none
/// left the whole window is open: the longest wait for more, by the frame that waited.
fn read_crumbs(raw: &mut Raw) -> [Duration; SIZES.len()] {
    let mut longest = [Duration::ZERO; SIZES.len()];
    let mut crumb = 1;
    while raw.frames.len() < SIZES.len() {
        let frame = raw.frames.len();
        if !sys::wait_fd(raw.fd(), sys::For::Reading, Duration::ZERO) {
            let room = Instant::now();
            assert!(sys::wait_fd(raw.fd(), sys::For::Reading, secs(2)), "room, yet nothing comes");
            longest[frame] = longest[frame].max(room.elapsed());
        }
        assert!(raw.read_crumb(crumb, Duration::ZERO));
        crumb = crumb * 7 % 701;
    }
    longest
}

/// Rounds of one frame of each size, until each size once had no wait over the limit.
fn each_leaves_in_time(mut round: impl FnMut() -> [Duration; SIZES.len()]) {
    let mut best = [Duration::MAX; SIZES.len()];
    for n_rounds in 1.. {
        let longest = round();
        best.iter_mut().zip(longest).for_each(|(best, longest)| *best = longest.min(*best));
        if n_rounds >= 3 && best.iter().all(|best| *best < LEAVES_WITHIN) {
            println!("longest waits of the best of {n_rounds} rounds: {best:?}");
            return;
        }
        assert!(n_rounds < ROUNDS_MAX, "with room in the window they wait {best:?}");
    }
}

#[test]
fn a_window_that_opens_a_few_bytes_at_a_time_gets_whole_frames_in_time_on_raw() {
    let hub = Hub::start();
    let mut raw = Dial::new(&hub, &raw_path(&["a"])).rcvbuf(4096).open();
    let payloads: Vec<String> = SIZES.iter().map(|n| "y".repeat(n - 2)).collect();
    each_leaves_in_time(|| {
        for payload in &payloads {
            hub.publish("a", payload.as_str());
        }
        let longest = read_crumbs(&mut raw);
        for (frame, payload) in raw.frames.drain(..).zip(&payloads) {
            assert!(frame.text() == format!("\"{payload}\""), "{} bytes", payload.len() + 2);
        }
        longest
    });
}

#[test]
fn a_window_that_opens_a_few_bytes_at_a_time_gets_whole_frames_in_time_on_json() {
    let hub = Hub::start();
    let mut cf = Cf::over(Dial::new(&hub, cf::PATH).rcvbuf(4096).open());
    cf.command(json!({ "connect": {} }));
    cf.subscribe("a");
    // From here on it only listens. An empty string tells how long the rest of a frame is.
    hub.publish("a", "");
    let probe = cf.raw.next_data(SOON).expect("the probe");
    let filler = SIZES.map(|n_bytes| "y".repeat(n_bytes - probe.payload.len()));
    each_leaves_in_time(|| {
        for filler in &filler {
            hub.publish("a", filler.as_str());
        }
        let longest = read_crumbs(&mut cf.raw);
        for (frame, filler) in cf.raw.frames.drain(..).zip(&filler) {
            let expected = probe.text().replace("\"\"", &format!("\"{filler}\""));
            assert!(frame.text() == expected, "{} bytes", expected.len());
        }
        longest
    });
}
