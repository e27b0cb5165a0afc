//! Promise: connections spread evenly over the shards, and a publication reaches all of them.

mod common;

use common::{Hub, Pump, Raw, SOON, drive, eventually, ms, scaled, secs};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

const N_SHARDS: usize = 4;

/// Nobody answers a ping while thousands are opened one by one.
fn hub(n_shards: usize) -> Hub {
    let builder = Hub::builder().env("HUB_SHARDS", n_shards);
    builder.env("HUB_PING_INTERVAL", "10m").start().wait_ready()
}

#[test]
fn connections_spread_evenly() {
    let n_connections = scaled(1_000, 10_000);
    // 25 % of 250 are 4.5 standard deviations of a fair draw, 10 % of 2,500 are 5.8.
    let tolerance = scaled(25, 10) as f64 / 100.0;
    let hub = hub(4);
    let mut raws: Vec<Raw> = (0..n_connections).map(|_| Raw::open(&hub, &["all"])).collect();
    let all = n_connections as f64;
    assert!(eventually(SOON, || hub.metric_sum("hubbub_subscriptions") == all));
    let metrics = hub.metrics();
    let mean = all / 4.0;
    for shard in 0..4 {
        let n = metrics.get(&format!("hubbub_connections{{shard=\"{shard}\"}}"));
        assert!((n - mean).abs() <= mean * tolerance, "shard {shard}: {n}, mean {mean}");
    }
    assert_eq!(metrics.all("hubbub_connections").len(), 4, "four shards and no more");
    hub.publish("all", "hello");
    assert!(drive(&mut raws, secs(30), |raw| !raw.frames.is_empty()), "on every shard");
    assert!(raws.iter().all(|raw| raw.frames.len() == 1 && raw.frames[0].text() == "\"hello\""));
    drop(raws);
    assert!(eventually(secs(30), || hub.metric_sum("hubbub_connections") == 0.0));
}

fn per_shard(hub: &Hub) -> [usize; N_SHARDS] {
    let metrics = hub.metrics();
    std::array::from_fn(|shard| {
        metrics.get(&format!("hubbub_connections{{shard=\"{shard}\"}}")) as usize
    })
}

struct Placed {
    shard: usize,
    raw: Raw,
    took: Vec<Duration>,
}

impl Pump for Placed {
    fn fd(&self) -> RawFd {
        self.raw.fd()
    }

    fn pump(&mut self) -> bool {
        self.raw.pump()
    }
}

/// Opens one by one, and sees in the gauges where each went.
fn open_slowly(hub: &Hub, n: usize) -> Vec<Placed> {
    let mut before = per_shard(hub);
    let mut opened = Vec::new();
    for _ in 0..n {
        let raw = Raw::open(hub, &["all"]);
        let mut after = before;
        // The 101 is written before the gauge is.
        assert!(eventually(SOON, || {
            after = per_shard(hub);
            after != before
        }));
        let shard = (0..N_SHARDS).find(|shard| after[*shard] > before[*shard]);
        opened.push(Placed { shard: shard.expect("one more"), raw, took: Vec::new() });
        before = after;
    }
    opened
}

/// The slowest but one in a hundred of these.
fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() * 99 / 100]
}

/// The draw is a connection's own: neither when nor from where it comes, nor who is already there,
/// counts. So what half of the shards have lost is not made up for, but shared by all.
#[test]
fn slowly_opened_and_after_half_of_the_shards_were_left() {
    let n = scaled(300, 4_000);
    let hub = hub(N_SHARDS);
    let mut clients = open_slowly(&hub, n);
    let spread = per_shard(&hub);
    let mean = n as f64 / N_SHARDS as f64;
    // Five standard deviations of a fair draw.
    let luck = 5.0 * (mean * 0.75).sqrt();
    let far = |n: usize, expected: f64| (n as f64 - expected).abs();
    assert!(spread.iter().all(|n| far(*n, mean) < luck), "{spread:?}");

    for _ in 0..10 {
        let began = Instant::now();
        hub.publish("all", 1);
        assert!(drive(&mut clients, SOON, |client| client.raw.frames.len() == 1));
        for client in &mut clients {
            let frame = client.raw.frames.pop_front().expect("one frame");
            client.took.push(frame.at - began);
        }
    }
    let took = |shard| {
        let of_shard = clients.iter().filter(move |client| client.shard == shard);
        p99(of_shard.flat_map(|client| client.took.iter().copied()).collect())
    };
    let mut p99s: Vec<Duration> = (0..N_SHARDS).map(took).collect();
    println!("{spread:?}; p99 by shard: {p99s:?}");
    p99s.sort();
    // This test reads them all on one thread, which adds its own share to each.
    let median = p99s[N_SHARDS / 2];
    assert!(p99s[N_SHARDS - 1] < 2 * median + ms(20), "{p99s:?}");

    let n_before = clients.len();
    clients.retain(|client| client.shard >= N_SHARDS / 2);
    let left = [0, 0, spread[2], spread[3]];
    assert!(eventually(SOON, || per_shard(&hub) == left), "{:?}", per_shard(&hub));
    let n_back = n_before - clients.len();
    let raws: Vec<Raw> = (0..n_back).map(|_| Raw::open(&hub, &["all"])).collect();
    let expected = |shard: usize| left[shard] as f64 + n_back as f64 / N_SHARDS as f64;
    assert!(eventually(SOON, || per_shard(&hub).iter().sum::<usize>() == n_before));
    let after = per_shard(&hub);
    println!("after {n_back} came back: {after:?}");
    assert!((0..N_SHARDS).all(|shard| far(after[shard], expected(shard)) < luck), "{after:?}");
    drop(raws);
}
