//! Promise: a client that comes back at once, on another node, too slowly, or because its node went, gets
//! all that it missed; to come back is never what throws it out; and whoever was closed saw everything
//! up to that.

mod common;

use common::cf::PATH;
use common::follower::{Accepted, Follower, Recovery, follow, tops};
use common::hub::Builder;
use common::past::{At, namespaces};
use common::ws::Dial;
use common::{Attempt, Cf, Hub, QUIET, Redis, Rng, SOON, Traffic, eventually, ms, scaled, secs};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

struct Bench {
    redis: Redis,
    hubs: Vec<Hub>,
    channels: Vec<String>,
    _namespaces: tempfile::NamedTempFile,
}

impl Bench {
    fn start(n_channels: usize, set: impl Fn(Builder) -> Builder) -> Self {
        let (redis, file) = (Redis::start(), namespaces());
        let node = || {
            let hub = Hub::builder().redis(&redis).env("HUB_CONFIG", file.path().display());
            set(hub).start().wait_ready()
        };
        let hubs = vec![node(), node()];
        let channels = (0..n_channels).map(|i| format!("long:{i}")).collect();
        Self { redis, hubs, channels, _namespaces: file }
    }

    fn traffic(&self, per_second: usize) -> Traffic {
        let hubs: Vec<&Hub> = self.hubs.iter().collect();
        Traffic::start(&hubs, &self.channels, 4, per_second)
    }

    /// Everyone stands where the streams do, on the node that is left.
    fn settle(&self, followers: &mut [Follower], attempts: &[Attempt]) {
        let tops = tops(self.hubs.last().expect("a node"), &self.channels);
        let settled = follow(followers, SOON, |follower| follower.has_all(&tops));
        let n_behind = followers.iter().filter(|it| !it.has_all(&tops)).count();
        assert!(settled, "{n_behind} of {} are behind", followers.len());
        let accepted = Accepted::of(attempts);
        followers.iter().for_each(|follower| follower.assert_complete(&accepted));
    }
}

/// Nothing but what is more than a catch-up may be, which takes a busy machine's time.
fn assert_nothing_lost(followers: &[Follower]) {
    const HISTORY_MAX: u64 = 300;
    let all = || followers.iter().flat_map(|follower| &follower.recoveries);
    let lost: Vec<_> = all().filter(|recovery| !recovery.recovered).collect();
    let (n, n_lost) = (all().count(), lost.len());
    println!("{n} recoveries, {n_lost} lost");
    let is_too_much = |it: &&Recovery| {
        it.from.epoch == it.to.epoch && it.to.offset > it.from.offset + HISTORY_MAX
    };
    let wrong: Vec<_> = lost.into_iter().filter(|it| !is_too_much(it)).collect();
    assert!(wrong.is_empty(), "of {n}: {wrong:?}");
}

/// Back before its old connection is gone, to either node, under traffic.
#[test]
fn a_client_comes_back_at_once_and_anywhere() {
    let bench = Bench::start(4, |builder| builder);
    let traffic = bench.traffic(400);
    let mut followers: Vec<Follower> =
        (0..scaled(4, 40)).map(|i| Follower::open(&bench.hubs[i % 2], &bench.channels)).collect();
    assert!(follow(&mut followers, SOON, Follower::is_live));
    let mut rng = Rng::seeded();
    for _ in 0..scaled(25, 100) {
        for follower in &mut followers {
            let hub = &bench.hubs[rng.between(0, 1) as usize];
            if rng.between(0, 1) == 0 {
                follower.cut();
            }
            follower.come_back(hub);
        }
        follow(&mut followers, ms(rng.between(0, 20)), |_| false);
    }
    let attempts = traffic.finish();
    bench.settle(&mut followers, &attempts);
    assert_nothing_lost(&followers);
}

/// One of the nodes is killed: its clients go on at the other one.
#[test]
fn a_node_is_killed_and_its_clients_go_on_at_the_other() {
    let mut bench = Bench::start(4, |builder| builder);
    let traffic = Traffic::start(&[&bench.hubs[1]], &bench.channels, 4, 400);
    let mut followers: Vec<Follower> = (0..scaled(20, 1_000))
        .map(|i| Follower::open(&bench.hubs[0], &[&bench.channels[i % 4]]))
        .collect();
    assert!(follow(&mut followers, SOON, Follower::is_live));
    follow(&mut followers, ms(300), |_| false);
    drop(bench.hubs.remove(0));
    assert!(follow(&mut followers, SOON, Follower::is_gone));
    followers.iter_mut().for_each(|follower| follower.come_back(&bench.hubs[0]));
    follow(&mut followers, ms(300), |_| false);
    let attempts = traffic.finish();
    bench.settle(&mut followers, &attempts);
    assert_nothing_lost(&followers);
}

/// SIGTERM under traffic: those who are told to go recover on the other node.
#[test]
fn a_node_is_stopped_and_its_clients_recover_on_the_other() {
    let drain = format!("{}s", scaled(2, 10));
    let mut bench = Bench::start(4, |builder| builder.env("HUB_DRAIN_TIMEOUT", &drain));
    let traffic = Traffic::start(&[&bench.hubs[1]], &bench.channels, 4, 400);
    let mut followers: Vec<Follower> = (0..scaled(60, 2_000))
        .map(|i| Follower::open(&bench.hubs[0], &[&bench.channels[i % 4]]))
        .collect();
    assert!(follow(&mut followers, SOON, Follower::is_live));
    let mut leaving = bench.hubs.remove(0);
    leaving.signal(libc::SIGTERM);
    let began = Instant::now();
    let mut n_moved = 0;
    while leaving.is_running() {
        assert!(began.elapsed() < secs(scaled(2, 10) as u64 + 5), "it is still there");
        follow(&mut followers, ms(10), |_| false);
        for follower in followers.iter_mut().filter(|follower| follower.is_gone()) {
            assert_eq!(follower.close_code(), Some(3001));
            follower.come_back(&bench.hubs[0]);
            n_moved += 1;
        }
    }
    assert_eq!(n_moved, followers.len());
    assert_eq!(leaving.wait_exit(SOON).expect("exited").code(), Some(0));
    let attempts = traffic.finish();
    bench.settle(&mut followers, &attempts);
    assert_nothing_lost(&followers);
}

/// A fiftieth of a second of a link that carries so much.
fn read_slowly(follower: &mut Follower, bytes_per_second: usize) {
    let step = bytes_per_second / 50;
    let began = Instant::now();
    follower.read_crumb(step, ms(20));
    common::sys::pause(ms(20).saturating_sub(began.elapsed()));
}

/// The catch-up is larger than a client's outbox may be: it is served bit by bit, or told that it can't
/// be; but it isn't thrown out for it, over and over.
#[test]
fn the_catch_up_is_larger_than_the_outbox() {
    let bench = Bench::start(5, |builder| {
        let builder = builder.env("HUB_OUTBOX_BYTES_MAX", "1MiB");
        builder.env("HUB_PUBLICATION_BYTES_MAX", "64KiB").env("HUB_WRITE_TIMEOUT", "20s")
    });
    let n_clients = scaled(4, 200);
    let mut followers: Vec<Follower> =
        (0..n_clients).map(|_| Follower::open(&bench.hubs[0], &bench.channels)).collect();
    assert!(follow(&mut followers, SOON, Follower::is_live));
    followers.iter_mut().for_each(Follower::cut);
    let pad = "x".repeat(20_000);
    std::thread::scope(|scope| {
        for channel in &bench.channels {
            let (hub, pad) = (&bench.hubs[1], &pad);
            scope.spawn(move || {
                (0..scaled(100, 290)).for_each(|_| hub.publish(channel, pad.as_str()))
            });
        }
    });
    let tops = tops(&bench.hubs[1], &bench.channels);
    let slow = |hub: &Hub| Cf::over(Dial::new(hub, PATH).rcvbuf(16_384).open());
    let speed = scaled(2_000_000, 500_000);
    let ends: Vec<(usize, usize)> = std::thread::scope(|scope| {
        let run = |mut follower: Follower| {
            let (hub, tops) = (&bench.hubs[0], &tops);
            scope.spawn(move || {
                let end = Instant::now() + secs(scaled(40, 300) as u64);
                let mut n_cut = 0;
                let connect = |follower: &mut Follower| {
                    let mut cf = slow(hub);
                    let reply = cf.command(serde_json::json!({ "connect": {} }));
                    assert!(reply["connect"].is_object(), "{reply}");
                    follower.come_back_over(cf);
                };
                connect(&mut follower);
                while !follower.has_all(tops) {
                    assert!(Instant::now() < end, "cut {n_cut} times, and still behind");
                    read_slowly(&mut follower, speed);
                    if follower.is_gone() {
                        n_cut += 1;
                        connect(&mut follower);
                    }
                }
                (n_cut, follower.n_lost())
            })
        };
        let running: Vec<_> = followers.into_iter().map(run).collect();
        running.into_iter().map(|thread| thread.join().expect("it got there")).collect()
    });
    let n_cut: usize = ends.iter().map(|(n_cut, _)| n_cut).sum();
    let n_lost: usize = ends.iter().map(|(_, n_lost)| n_lost).sum();
    println!("{n_clients} clients: cut {n_cut} times, told of {n_lost} gaps");
    assert!(ends.iter().all(|(n_cut, _)| *n_cut <= 1), "{ends:?}");
    let cpu = bench.hubs[0].cpu();
    assert!(eventually(SOON, || {
        let before = bench.hubs[0].cpu();
        common::sys::pause(QUIET);
        bench.hubs[0].cpu() - before < ms(100)
    }));
    println!("{:?} of processor time", cpu);
}

/// What a client that reads slowly went through to get what it missed.
struct Way {
    n_steps: usize,
    n_lost: usize,
    /// When each channel was answered.
    answered: Vec<Instant>,
}

/// Reads until all is there; never cut.
fn catch_up_slowly(hub: &Hub, mut follower: Follower, tops: &BTreeMap<String, At>) -> Way {
    let mut cf = Cf::over(Dial::new(hub, PATH).rcvbuf(16_384).open());
    let reply = cf.command(serde_json::json!({ "connect": {} }));
    assert!(reply["connect"].is_object(), "{reply}");
    follower.come_back_over(cf);
    let (end, mut n_steps) = (Instant::now() + secs(scaled(40, 120) as u64), 0);
    while !follower.has_all(tops) {
        assert!(Instant::now() < end, "still behind");
        read_slowly(&mut follower, 500_000);
        n_steps += 1;
        assert!(!follower.is_gone(), "cut: {:?}", follower.close_code());
    }
    let answered = follower.recoveries.iter().map(|recovery| recovery.at).collect();
    Way { n_steps, n_lost: follower.n_lost(), answered }
}

/// What fits into half an outbox, channels together, is caught up in steps: as each reads, and one after
/// the other, since together they are more than all outboxes may hold. Of more than that a part may be
/// told to be lost, once.
#[test]
fn slow_readers_are_caught_up_in_steps() {
    let bench = Bench::start(5, |builder| {
        let builder = builder.env("HUB_OUTBOX_BYTES_MAX", "1MiB").env("HUB_WRITE_TIMEOUT", "60s");
        builder.env("HUB_PUBLICATION_BYTES_MAX", "64KiB").env("HUB_OUTBOX_TOTAL_BYTES", "8MiB")
    });
    let (hub, n_each) = (&bench.hubs[0], scaled(12, 60));
    let publish_each = |n: usize| {
        let pad = "x".repeat(20_000);
        for channel in &bench.channels {
            (0..n).for_each(|_| bench.hubs[1].publish(channel, pad.as_str()));
        }
    };
    let away = || {
        let open = |_| Follower::open(hub, &bench.channels);
        let mut followers: Vec<Follower> = (0..n_each).map(open).collect();
        assert!(follow(&mut followers, SOON, Follower::is_live));
        followers.iter_mut().for_each(Follower::cut);
        followers
    };
    // In all 1.3 MB for each of the first, and 400 kB for the others.
    let more = away();
    publish_each(9);
    let less = away();
    publish_each(4);
    let tops = tops(&bench.hubs[1], &bench.channels);
    let ways = |followers: Vec<Follower>| -> Vec<Way> {
        std::thread::scope(|scope| {
            let catch_up = |follower| {
                let tops = &tops;
                scope.spawn(move || catch_up_slowly(hub, follower, tops))
            };
            let running: Vec<_> = followers.into_iter().map(catch_up).collect();
            running.into_iter().map(|thread| thread.join().expect("it got there")).collect()
        })
    };
    for (ways, fits) in [(ways(less), true), (ways(more), false)] {
        let n_lost: usize = ways.iter().map(|way| way.n_lost).sum();
        let answered = || ways.iter().flat_map(|way| &way.answered);
        let took = *answered().max().expect("some") - *answered().min().expect("some");
        let n_steps = ways.iter().map(|way| way.n_steps).min().expect("some");
        println!("{n_lost} of {} lost, {n_steps} steps at least, {took:?}", 5 * ways.len());
        assert!(ways.iter().all(|way| way.answered.len() == 5), "each channel was answered once");
        assert!(n_lost == 0 || !fits, "all of it fits");
        assert!(n_steps >= 20, "read in {n_steps} steps");
        assert!(!fits || took > ms(100), "answered all at once, in {took:?}");
        // Whoever lost some has recovered the others.
        assert!(ways.iter().all(|way| way.n_lost < 5), "nothing recovered");
    }
}

/// A client that reads in bursts, around what its outbox may hold: it sees everything up to the close
/// with 3008, and with history it recovers that too.
#[test]
fn who_reads_in_bursts_sees_everything_up_to_the_close() {
    let bench = Bench::start(1, |builder| {
        let builder = builder.env("HUB_OUTBOX_BYTES_MAX", "256KiB");
        builder.env("HUB_PUBLICATION_BYTES_MAX", "16KiB").env("HUB_WRITE_TIMEOUT", "30s")
    });
    let hub = &bench.hubs[0];
    let channel = [bench.channels[0].clone()];
    let open = |hub: &Hub| {
        let mut cf = Cf::over(Dial::new(hub, PATH).rcvbuf(4_096).open());
        let reply = cf.command(serde_json::json!({ "connect": {} }));
        assert!(reply["connect"].is_object(), "{reply}");
        cf
    };
    let mut streams = vec![Follower::open(hub, &channel)];
    streams[0].come_back_over(open(hub));
    assert!(follow(&mut streams, SOON, Follower::is_live));
    let mut plain = open(hub);
    plain.subscribe("off:a");
    let pad = "x".repeat(8_000);
    let (mut n_plain, mut next_plain, mut n_closes, mut n_read) = (0_u64, 0_u64, 0, 0);
    let mut rng = Rng::seeded();
    let took_all = |cf: &mut Cf, next: &mut u64| {
        let mut n = 0;
        for publication in cf.pubs.drain(..) {
            let seq = publication.body["data"]["seq"].as_u64().expect("a number");
            assert_eq!(seq, *next, "without history nothing goes missing untold either");
            *next += 1;
            n += 1;
        }
        cf.log.clear();
        n
    };
    for round in 0..scaled(12, 300) {
        // Sometimes less than the outbox and the kernel's buffers hold, sometimes more.
        for _ in 0..rng.between(5, if round % 3 == 2 { 700 } else { 60 }) {
            hub.publish(&channel[0], pad.as_str());
            hub.publish("off:a", serde_json::json!({ "seq": n_plain, "pad": pad }));
            n_plain += 1;
        }
        let tops = tops(hub, &channel);
        let end = Instant::now() + SOON;
        while !streams[0].has_all(&tops) {
            assert!(Instant::now() < end, "the stream is behind");
            follow(&mut streams, ms(20), |it| it.is_gone() || it.has_all(&tops));
            if streams[0].is_gone() {
                let code = streams[0].close_code();
                // None: there was no room for it in the middle of a frame.
                assert!(code.is_none_or(|code| code == 3008), "{code:?}");
                n_closes += 1;
                streams[0].come_back(hub);
                // The catch-up at full speed; then slow again.
                assert!(follow(&mut streams, SOON, |it| it.has_all(&tops)));
                streams[0].come_back_over(open(hub));
            }
        }
        while next_plain < n_plain {
            assert!(Instant::now() < end, "{next_plain} of {n_plain}");
            plain.wait(ms(20), |cf| !cf.pubs.is_empty());
            n_read += took_all(&mut plain, &mut next_plain);
            if plain.raw.is_closed() || plain.raw.eof {
                let code = plain.next_close(Duration::ZERO).map(|close| close.code);
                assert!(code.is_none_or(|code| code == 3008), "{code:?}");
                plain = open(hub);
                plain.subscribe("off:a");
                next_plain = n_plain;
                n_closes += 1;
            }
        }
    }
    println!("{n_closes} closes, {n_read} of {n_plain} read without history");
    assert!(n_closes >= 2, "it was never too slow: no test");
    let at_most = hub.metrics().get("hubbub_closes_total{code=\"3008\"}");
    assert_eq!(at_most, f64::from(n_closes));
    let _ = &bench.redis;
}
