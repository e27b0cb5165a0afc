//! Promise: whatever Redis or the way to it does, who follows a stream gets every publication once and
//! in order, or is told before it sees a later one; and what Redis still has is recovered.

mod common;

use common::follower::{Accepted, Follower, follow, tops};
use common::hub::Builder;
use common::past::namespaces;
use common::{Attempt, Direction, Hub, Proxy, Redis, SOON, Traffic, eventually, ms, scaled, secs};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// How soon after the end of a fault everything must work.
const HEALTHY: Duration = Duration::from_secs(5);

struct Bench {
    redis: Redis,
    /// In front of Redis, for the first node.
    proxy: Proxy,
    hubs: [Hub; 2],
    channels: Vec<String>,
    followers: Vec<Follower>,
    _namespaces: tempfile::NamedTempFile,
}

impl Bench {
    fn start(n_channels: usize, n_each: usize, set: impl Fn(Builder) -> Builder) -> Self {
        let (redis, file) = (Redis::start(), namespaces());
        let proxy = Proxy::start(redis.addr());
        let node = |url: String| {
            let hub = Hub::builder().env("HUB_CONFIG", file.path().display());
            set(hub.env("HUB_REDIS_URL", url).env("HUB_REDIS_TIMEOUT", "1s")).start().wait_ready()
        };
        let hubs = [node(proxy.url()), node(redis.url())];
        let channels: Vec<String> = (0..n_channels).map(|i| format!("long:{i}")).collect();
        let pair = |i: usize| [&channels[i % n_channels], &channels[(i + 1) % n_channels]];
        let open = |i: usize| Follower::open(&hubs[i % 2], &pair(i / 2));
        let followers = (0..2 * n_each).map(open).collect();
        let mut bench = Self { redis, proxy, hubs, channels, followers, _namespaces: file };
        assert!(follow(&mut bench.followers, SOON, Follower::is_live), "all are subscribed");
        bench
    }

    fn watch(&mut self, how_long: Duration) {
        follow(&mut self.followers, how_long, |_| false);
        let gone = self.followers.iter_mut().filter(|follower| follower.is_gone());
        let codes: Vec<Option<u16>> = gone.map(Follower::close_code).collect();
        assert!(codes.is_empty(), "cut off: {codes:?}");
    }

    /// Everyone stands where the streams do, soon, and nothing was lost untold.
    fn settle(&mut self, attempts: &[Attempt]) {
        let tops = tops(&self.hubs[1], &self.channels);
        let settled = follow(&mut self.followers, SOON, |follower| follower.has_all(&tops));
        let n_behind = self.followers.iter().filter(|it| !it.has_all(&tops)).count();
        let n_gone = self.followers.iter().filter(|it| it.is_gone()).count();
        let n = self.followers.len();
        assert!(settled, "{n_behind} of {n} are behind, {n_gone} of them cut off");
        let accepted = Accepted::of(attempts);
        self.followers.iter().for_each(|follower| follower.assert_complete(&accepted));
        let sum = |of: fn(&Follower) -> usize| self.followers.iter().map(of).sum::<usize>();
        println!(
            "{} publishes, {} accepted; {} seen, told {} times, {} of {} recoveries lost",
            attempts.len(),
            attempts.iter().filter(|attempt| attempt.accepted).count(),
            sum(Follower::n_seen),
            sum(|follower| follower.n_told),
            sum(Follower::n_lost),
            sum(|follower| follower.recoveries.len()),
        );
    }

    /// None of the recoveries that were tried failed.
    fn assert_nothing_lost(&self) {
        for follower in &self.followers {
            let lost: Vec<_> = follower.recoveries.iter().filter(|it| !it.recovered).collect();
            assert!(lost.is_empty(), "history had all of it: {lost:?}");
        }
    }

    /// Those on the first node.
    fn behind_the_proxy(&self) -> impl Iterator<Item = &Follower> {
        self.followers.iter().step_by(2)
    }
}

/// Redis comes back with nothing: everyone is told, and follows again.
#[test]
fn redis_restarts() {
    let mut bench = Bench::start(scaled(20, 200), scaled(20, 500), |builder| builder);
    bench.redis.config_set("appendonly", "no");
    let both = bench.hubs.each_ref();
    let traffic = Traffic::start(&both, &bench.channels, 4, 200);
    bench.watch(ms(500));
    bench.redis.kill();
    bench.watch(ms(500));
    bench.redis.restart();
    let back = Instant::now();
    let live = |follower: &Follower| follower.is_live() && follower.n_gaps() == 2;
    assert!(follow(&mut bench.followers, HEALTHY, live), "told, and following again");
    println!("all follow {:?} after the return", back.elapsed());
    bench.watch(ms(500));
    let attempts = traffic.finish();
    bench.settle(&attempts);
    for follower in &bench.followers {
        assert!(follower.recoveries.iter().all(|it| it.at < back + HEALTHY), "only once");
        assert_eq!(follower.n_gaps(), 2, "each channel began anew once");
    }
}

/// Packets vanish, and nobody closes: the node finds out, and everyone gets what it missed.
#[test]
fn the_links_go_silent_without_closing() {
    let mut bench = Bench::start(10, 10, |builder| builder);
    let traffic = Traffic::start(&[&bench.hubs[1]], &bench.channels, 2, 100);
    bench.watch(ms(500));
    bench.proxy.blackhole_existing();
    let silent = Instant::now();
    let told = |bench: &Bench| bench.behind_the_proxy().all(|it| it.n_told >= 2 && it.is_live());
    while !told(&bench) {
        assert!(silent.elapsed() < secs(15), "not noticed");
        bench.watch(ms(50));
    }
    println!("noticed and made up for after {:?}", silent.elapsed());
    bench.watch(ms(300));
    let attempts = traffic.finish();
    bench.settle(&attempts);
    bench.assert_nothing_lost();
}

/// The link is cut again and again under traffic: each time everyone is told, and follows again.
#[test]
fn the_links_are_cut_again_and_again() {
    let mut bench = Bench::start(10, scaled(20, 200), |builder| builder);
    let traffic = Traffic::start(&[&bench.hubs[1]], &bench.channels, 2, 200);
    for _ in 0..scaled(5, 50) {
        bench.watch(ms(200));
        let told: usize = bench.followers.iter().map(|it| it.n_told).sum();
        bench.proxy.cut();
        let due = told + bench.followers.len();
        let end = Instant::now() + SOON;
        while bench.followers.iter().map(|it| it.n_told).sum::<usize>() < due {
            assert!(Instant::now() < end, "everyone behind the link is told, on both channels");
            bench.watch(ms(20));
        }
        assert!(follow(&mut bench.followers, HEALTHY, Follower::is_live), "and follows again");
    }
    let attempts = traffic.finish();
    assert!(attempts.iter().all(|attempt| attempt.accepted), "that node has another link");
    bench.settle(&attempts);
    bench.assert_nothing_lost();
}

/// Redis ends a link that reads too slowly: whoever can't be caught up is told, and quiet channels
/// lose nothing.
#[test]
fn redis_cuts_the_node_for_a_full_output_buffer() {
    // The followers share a thread with others: that they are slow is not what this is about.
    let mut bench = Bench::start(4, 6, |builder| builder.env("HUB_OUTBOX_BYTES_MAX", "64MiB"));
    bench.redis.config_set("client-output-buffer-limit", "pubsub 1mb 512kb 2");
    let quiet = ["long:quiet0".to_owned(), "long:quiet1".to_owned()];
    let mut watcher = vec![Follower::open(&bench.hubs[0], &quiet)];
    assert!(follow(&mut watcher, SOON, Follower::is_live));
    let connects = bench.hubs[0].metric_sum("hubbub_redis_connects_total");
    bench.proxy.rate(Direction::Down, 500_000);
    let loud = bench.channels.clone();
    let pad = "x".repeat(10_000);
    let (hubs, stop) = (&bench.hubs, AtomicBool::new(false));
    let n_cuts = || hubs[0].metric_sum("hubbub_redis_connects_total") - connects;
    let (n_due, end) = (scaled(1, 5) as f64, Instant::now() + secs(scaled(30, 120) as u64));
    std::thread::scope(|scope| {
        for channel in &loud {
            let (stop, pad) = (&stop, &pad);
            scope.spawn(move || {
                while !stop.load(SeqCst) {
                    hubs[1].publish(channel, pad.as_str());
                }
            });
        }
        let mut n = 0;
        while n_cuts() < n_due && Instant::now() < end {
            hubs[1].publish(&quiet[n % 2], n);
            n += 1;
            follow(&mut bench.followers, ms(50), |_| false);
            follow(&mut watcher, ms(20), |_| false);
        }
        stop.store(true, SeqCst);
    });
    bench.proxy.rate(Direction::Down, 0);
    println!("cut {} times", n_cuts());
    assert!(n_cuts() >= n_due, "the node was kept behind");
    bench.settle(&[]);
    let tops = tops(&bench.hubs[1], &quiet);
    assert!(follow(&mut watcher, SOON, |it| it.has_all(&tops)), "the quiet ones");
    assert_eq!(watcher[0].n_gaps(), 0, "lose nothing");
}

/// The node's own queues overflow under a burst, in the middle of which it is stopped for a while.
#[test]
fn hand_offs_inside_the_node_overflow() {
    let mut bench = Bench::start(10, scaled(20, 500), |builder| {
        // One thread reads for all, and not while it publishes: it answers pings too late.
        let builder = builder.env("HUB_PING_INTERVAL", "10m").env("HUB_PONG_TIMEOUT", "9m");
        builder.env("HUB_MAILBOX_MAX", 4)
    });
    let bursts = scaled(6, 40);
    for burst in 0..bursts {
        if burst % 3 == 1 {
            bench.hubs[0].signal(libc::SIGSTOP);
        }
        let (hub, channels) = (&bench.hubs[1], &bench.channels);
        std::thread::scope(|scope| {
            for channel in channels {
                scope.spawn(move || (0..40).for_each(|n| hub.publish(channel, n)));
            }
        });
        bench.hubs[0].signal(libc::SIGCONT);
        bench.watch(ms(20));
    }
    bench.settle(&[]);
    let overflows = |hub: &Hub| hub.metrics().get("hubbub_gaps_total{reason=\"mailbox_full\"}");
    let n: f64 = bench.hubs.iter().map(overflows).sum();
    println!("{n} channels overflowed");
    assert!(n > 0.0, "the mailboxes never overflowed: no test");
    bench.assert_nothing_lost();
}

/// Published through another node the moment the reply is there, on a channel nobody else has.
#[test]
fn the_reply_comes_when_the_stream_is_live() {
    let mut bench = Bench::start(2, 1, |builder| builder);
    bench.proxy.delay(Direction::Up, ms(100), ms(100));
    for round in 0..scaled(15, 500) {
        let channel = format!("r:fresh{round}");
        let mut one = vec![Follower::open(&bench.hubs[0], &[&channel])];
        assert!(follow(&mut one, SOON, Follower::is_live));
        bench.hubs[1].publish(&channel, round);
        let has_it = |follower: &Follower| follower.at(&channel).offset == 1;
        assert!(follow(&mut one, SOON, has_it), "round {round} is lost");
        // They answer their pings.
        bench.watch(ms(1));
    }
    bench.proxy.delay(Direction::Up, ms(0), ms(0));
    bench.watch(ms(1));
}

/// The primary is replaced by its replica, and the old one lives on, or dies and is refused a while.
#[test]
fn the_primary_changes() {
    let mut bench = Bench::start(4, 6, |builder| builder);
    let replica = Redis::start();
    let port = bench.redis.port.to_string();
    replica.command(&["REPLICAOF", "127.0.0.1", &port]);
    // Both nodes behind the way that is switched.
    let other = Hub::builder().env("HUB_CONFIG", bench._namespaces.path().display());
    bench.hubs[1] = other.env("HUB_REDIS_URL", bench.proxy.url()).start().wait_ready();
    for (at, follower) in bench.followers.iter_mut().enumerate() {
        follower.come_back(&bench.hubs[at % 2]);
    }
    assert!(follow(&mut bench.followers, SOON, Follower::is_live));
    let both = bench.hubs.each_ref();
    let traffic = Traffic::start(&both, &bench.channels, 4, 100);
    bench.watch(ms(500));
    let synced = || replica.command(&["ROLE"]).is_connected_replica();
    assert!(eventually(SOON, synced), "the replica follows");
    bench.proxy.refuse(true);
    replica.command(&["REPLICAOF", "NO", "ONE"]);
    bench.redis.command(&["REPLICAOF", "127.0.0.1", &replica.port.to_string()]);
    bench.proxy.retarget(replica.addr());
    bench.proxy.cut();
    assert!(eventually(SOON, || bench.hubs.iter().all(|hub| !hub.ready())), "they tell");
    bench.watch(ms(500));
    bench.proxy.refuse(false);
    let back = Instant::now();
    let follows = |follower: &Follower| follower.is_live() && follower.n_told >= 2;
    assert!(follow(&mut bench.followers, HEALTHY, follows), "healthy");
    println!("all follow {:?} after the change", back.elapsed());
    bench.watch(ms(500));
    assert!(bench.hubs.iter().all(Hub::ready));
    let attempts = traffic.finish();
    let last = attempts.iter().rev().find(|attempt| attempt.accepted).expect("accepted");
    assert!(last.began > back, "it publishes again");
    bench.settle(&attempts);
}
