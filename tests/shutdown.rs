//! Promise: SIGTERM loses nothing that was queued, tells everyone why, and ends in time.

mod common;

use common::ws::{Dial, raw_path};
use common::{Cf, Close, Hub, Raw, Redis, SOON, Viewer, drive, eventually, ms, secs, sys};
use serde_json::json;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::time::Instant;

const N_QUEUED: usize = 60;

fn shutdown() -> Option<Close> {
    Some(Close { code: 3001, reason: "shutdown".to_owned() })
}

/// Publications nobody has read yet: more than the kernel takes, less than an outbox.
fn queue_for_everyone(hub: &Hub) {
    let filler = "x".repeat(8_000);
    for i in 0..N_QUEUED {
        hub.publish("a", format!("{i} {filler}"));
    }
}

/// Clients that do not read and do not answer the close frame.
fn stalled(hub: &Hub, n: usize) -> Vec<Raw> {
    let open = |_| Dial::new(hub, &raw_path(&["a"])).rcvbuf(4096).open();
    let stalled = (0..n).map(open).collect();
    queue_for_everyone(hub);
    stalled
}

fn everyone_is_served(hub: &mut Hub) {
    let mut viewers: Vec<Viewer> = (0..30)
        .map(|i| if i % 2 == 0 { Viewer::cf(hub, &["a"]) } else { Viewer::raw(hub, &["a"]) })
        .collect();
    queue_for_everyone(hub);
    let began = Instant::now();
    hub.signal(libc::SIGTERM);
    assert!(eventually(secs(1), || !hub.ready()), "readiness fails at once");
    assert!(drive(&mut viewers, SOON, Viewer::is_closed), "everyone is told");
    for viewer in &mut viewers {
        assert_eq!(viewer.close(), shutdown());
        assert_eq!(viewer.n_received(), N_QUEUED, "everything that was queued comes first");
    }
    let status = hub.wait_exit(secs(2 + 5)).expect("in time");
    assert_eq!(status.code(), Some(0));
    assert!(began.elapsed() < secs(2 + 5));
}

#[test]
fn everyone_gets_what_was_queued_and_the_reason() {
    everyone_is_served(&mut Hub::builder().env("HUB_DRAIN_TIMEOUT", "2s").start().wait_ready());
}

#[test]
fn closes_are_spread_over_the_drain_time() {
    // Not the laptop's node, which drains in a second: the other nodes must not be stampeded.
    let builder = Hub::builder().without_dev().env("HUB_ALLOW_ANONYMOUS", true);
    let mut hub = builder.env("HUB_DRAIN_TIMEOUT", "4s").start().wait_ready();
    let mut clients: Vec<Cf> = (0..60).map(|_| Cf::connect(&hub)).collect();
    let began = Instant::now();
    hub.signal(libc::SIGTERM);
    let mut n_closed_by = Vec::new();
    for tenth in 1..=10 {
        let end = began + ms(400) * tenth;
        let left = end.saturating_duration_since(Instant::now());
        drive(&mut clients, left, |cf| cf.raw.is_closed());
        n_closed_by.push(clients.iter().filter(|cf| cf.raw.is_closed()).count());
    }
    println!("closed by each tenth of the drain time: {n_closed_by:?}");
    assert!((5..=55).contains(&n_closed_by[4]), "spread, not in one burst: {n_closed_by:?}");
    let steps = n_closed_by.windows(2).map(|pair| pair[1] - pair[0]);
    assert!(steps.chain([n_closed_by[0]]).all(|step| step <= 30), "{n_closed_by:?}");
    assert!(drive(&mut clients, secs(2), |cf| cf.raw.is_closed()));
    assert!(clients.iter_mut().all(|cf| cf.next_close(SOON) == shutdown()));
    assert_eq!(hub.wait_exit(secs(6)).expect("in time").code(), Some(0));
}

#[test]
fn idle_http_connections_do_not_hold_it_up() {
    let mut hub = Hub::builder().env("HUB_DRAIN_TIMEOUT", "10s").start().wait_ready();
    let mut idle = Dial::new(&hub, "/health").connect();
    let request = format!("GET /health HTTP/1.1\r\nHost: {}\r\n\r\n", hub.addr);
    idle.write_all(request.as_bytes()).expect("sent");
    assert!(sys::wait_fd(idle.as_raw_fd(), sys::For::Reading, SOON), "answered, kept alive");
    let mut half = Dial::new(&hub, "/api/publish").connect();
    let head = format!("POST /api/publish HTTP/1.1\r\nHost: {}\r\nContent-Length: 9", hub.addr);
    half.write_all(head.as_bytes()).expect("sent");
    hub.signal(libc::SIGTERM);
    assert_eq!(hub.wait_exit(secs(2)).expect("with nobody connected, at once").code(), Some(0));
}

#[test]
fn with_redis_the_subscriptions_end_too() {
    let redis = Redis::start();
    let builder = Hub::builder().redis(&redis).env("HUB_DRAIN_TIMEOUT", "2s");
    everyone_is_served(&mut builder.start().wait_ready());
    assert!(eventually(SOON, || redis.channels("*").is_empty()), "nothing of the node is left");
}

#[test]
fn without_connections_it_exits_at_once() {
    let redis = Redis::start();
    for signal in [libc::SIGTERM, libc::SIGINT] {
        for builder in [Hub::builder(), Hub::builder().redis(&redis)] {
            let mut hub = builder.env("HUB_DRAIN_TIMEOUT", "20s").start().wait_ready();
            hub.signal(signal);
            let status = hub.wait_exit(secs(2)).expect("at once");
            assert_eq!(status.code(), Some(0), "signal {signal}");
        }
    }
}

#[test]
fn while_draining_publishes_work_upgrades_do_not_and_a_second_signal_ends_it() {
    for (signal, code) in [(libc::SIGTERM, 143), (libc::SIGINT, 130)] {
        let mut hub = Hub::builder().env("HUB_DRAIN_TIMEOUT", "20s").start().wait_ready();
        let _stalled = stalled(&hub, 20);
        hub.signal(signal);
        assert!(eventually(secs(1), || !hub.ready()), "readiness fails at once");
        assert_eq!(hub.get("/ready").status, 503);
        assert_eq!(hub.get("/health").status, 200);
        let published = hub.api("publish", &json!({ "channel": "b", "data": 1 }));
        assert!(published.is_result(), "{} {}", published.status, published.text());
        let refused = Dial::new(&hub, &raw_path(&["a"])).try_open().err().expect("draining");
        assert_eq!(refused.status, 503);
        assert!(hub.is_running());
        hub.signal(signal);
        let status = hub.wait_exit(secs(2)).expect("the second signal is final");
        assert_eq!(status.code(), Some(code));
    }
}

#[test]
fn who_never_reads_cannot_hold_it() {
    let mut hub = Hub::builder().env("HUB_DRAIN_TIMEOUT", "1s").start().wait_ready();
    let stalled = stalled(&hub, 3);
    // Neither can a request that never ends.
    let half = Dial::new(&hub, "/ws").connect();
    assert!(sys::wait_fd(stalled[0].fd(), sys::For::Reading, SOON));
    hub.signal(libc::SIGTERM);
    let status = hub.wait_exit(secs(1 + 5)).expect("within drain time and five seconds");
    assert_eq!(status.code(), Some(0));
    drop(half);
}
