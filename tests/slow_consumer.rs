//! Promise: who does not read, or reads a few bytes at a time, costs only itself.

mod common;

use common::cf::{self, Cf, subscribe};
use common::ws::{Dial, raw_path};
use common::{Hub, Pump, Raw, SOON, Viewer, drive, eventually, scaled, secs};
use serde_json::json;
use std::os::fd::RawFd;

const FILLER_BYTES: usize = 10_000;

fn n_closed(hub: &Hub, code: u16) -> f64 {
    hub.metrics().get(&format!("hubbub_closes_total{{code=\"{code}\"}}"))
}

/// The publication `i`: a JSON string that starts with its number.
fn publish_nth(hub: &Hub, i: usize) {
    hub.publish("a", format!("{i} {}", "x".repeat(FILLER_BYTES)));
}

/// A viewer that checks each publication when it comes and keeps none.
struct Checked {
    viewer: Viewer,
    n_seen: usize,
}

impl Checked {
    fn new(viewer: Viewer) -> Self {
        Self { viewer, n_seen: 0 }
    }

    fn check(&mut self, data: &str) {
        let expected = format!("\"{} x", self.n_seen);
        assert!(data.starts_with(&expected), "due: {expected}, got {:.20}", data);
        assert_eq!(data.len(), expected.len() + FILLER_BYTES);
        self.n_seen += 1;
    }
}

impl Pump for Checked {
    fn fd(&self) -> RawFd {
        self.viewer.fd()
    }

    fn pump(&mut self) -> bool {
        let open = self.viewer.pump();
        loop {
            let data = match &mut self.viewer {
                Viewer::Cf { cf, .. } => {
                    cf.log.clear();
                    cf.pubs.pop_front().map(|publication| publication.data)
                }
                Viewer::Raw { raw, .. } => {
                    raw.frames.pop_front().map(|frame| frame.text().to_owned())
                }
            };
            match data {
                Some(data) => self.check(&data),
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
    let viewer = |i| if i % 4 == 0 { Viewer::cf(&hub, &["a"]) } else { Viewer::raw(&hub, &["a"]) };
    let mut readers: Vec<Checked> = (0..n_readers).map(|i| Checked::new(viewer(i))).collect();
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
        let served = drive(&mut readers, SOON, |reader| reader.n_seen >= n_published);
        assert!(served, "publication {n_published} does not reach everyone");
    }
    assert!(n_published > 80, "closed after {n_published}, far below the bound");
    // The walk that closed them goes on for the rest.
    publish_nth(&hub, n_published);
    assert!(drive(&mut readers, SOON, |reader| reader.n_seen > n_published));
    assert!(readers.iter().all(|reader| !reader.viewer.is_closed()));
    assert_eq!(n_closed(&hub, 3008), Stalled::N as f64, "each counted once, and no reader");
    assert!(hub.metrics().get("hubbub_drops_total{reason=\"slow_consumer\"}") > 0.0);
    assert!(eventually(SOON, || hub.metric_sum("hubbub_connections") == n_readers as f64));
    assert!(eventually(SOON, || hub.metric_sum("hubbub_outbox_bytes") == 0.0));
    stalled.assert_ended();
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
    assert!(drive(&mut readers, SOON, |reader| reader.n_seen == n_publications));
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
    assert!(drive(&mut readers, SOON, |reader| reader.n_seen > n_publications));
    assert_eq!(n_closed(&hub, 3009), 1.0);
}

/// The sizes at which a frame's head grows.
const SIZES: [usize; 4] = [125, 126, 65_535, 65_536];

/// Reads a few bytes at a time until there are so many frames.
fn read_crumbs(raw: &mut Raw, n_frames: usize) {
    let mut crumb = 1;
    while raw.frames.len() < n_frames {
        assert!(raw.read_crumb(crumb, secs(2)), "there is room, yet nothing comes");
        crumb = crumb * 7 % 701;
    }
}

#[test]
fn a_window_that_opens_a_few_bytes_at_a_time_gets_whole_frames_on_raw() {
    let hub = Hub::start();
    let mut raw = Dial::new(&hub, &raw_path(&["a"])).rcvbuf(4096).open();
    let payloads: Vec<String> = SIZES.iter().map(|n| "y".repeat(n - 2)).collect();
    for payload in &payloads {
        hub.publish("a", payload.as_str());
    }
    read_crumbs(&mut raw, SIZES.len());
    for (frame, payload) in raw.frames.iter().zip(&payloads) {
        assert!(frame.text() == format!("\"{payload}\""), "{} bytes", payload.len() + 2);
    }
}

#[test]
fn a_window_that_opens_a_few_bytes_at_a_time_gets_whole_frames_on_json() {
    let hub = Hub::start();
    let mut cf = Cf::over(Dial::new(&hub, cf::PATH).rcvbuf(4096).open());
    cf.command(json!({ "connect": {} }));
    cf.subscribe("a");
    // From here on it only listens. An empty string tells how long the rest of a frame is.
    hub.publish("a", "");
    let probe = cf.raw.next_data(SOON).expect("the probe");
    for n_bytes in SIZES {
        hub.publish("a", "y".repeat(n_bytes - probe.payload.len()));
    }
    read_crumbs(&mut cf.raw, SIZES.len());
    for (frame, n_bytes) in cf.raw.frames.iter().zip(SIZES) {
        let filler = format!("\"{}\"", "y".repeat(n_bytes - probe.payload.len()));
        assert!(frame.text() == probe.text().replace("\"\"", &filler), "{n_bytes} bytes");
    }
}
