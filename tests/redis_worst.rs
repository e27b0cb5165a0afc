//! Promise: whatever Redis or the way to it does, hubbub stays up, says so, hangs on nobody and
//! hammers nobody; when the fault is over everything works again by itself, and what the viewers of
//! a channel missed is a counted gap.

mod common;

use common::cf::{Cf, subscribe};
use common::hub::Builder;
use common::traffic::{healthy, losses, numbered};
use common::{
    Attempt, Direction, Hub, Proxy, QUIET, Redis, SOON, Traffic, Viewer, drive, eventually, ms,
    scaled, secs, sys,
};
use serde_json::json;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// `HUB_REDIS_TIMEOUT` and a second: how long anybody may wait for an answer.
const ANSWERED: Duration = Duration::from_secs(2);
/// How soon after the end of a fault everything must work.
const HEALTHY: Duration = Duration::from_secs(5);

fn behind(proxy: &Proxy) -> Builder {
    Hub::builder().env("HUB_REDIS_URL", proxy.url()).env("HUB_REDIS_TIMEOUT", "1s")
}

fn channels(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("c{i}")).collect()
}

/// Viewers of two channels each, half of them raw.
fn viewers(hub: &Hub, names: &[String], n: usize) -> Vec<Viewer> {
    let pair = |i: usize| [&*names[i % names.len()], &*names[(i + 1) % names.len()]];
    let open = |i| if i % 4 < 2 { Viewer::cf(hub, &pair(i)) } else { Viewer::raw(hub, &pair(i)) };
    (0..n).map(open).collect()
}

fn n_gaps(hub: &Hub) -> usize {
    hub.metric_sum("hubbub_gaps_total") as usize
}

fn n_connects(hub: &Hub) -> usize {
    hub.metric_sum("hubbub_redis_connects_total") as usize
}

/// Every row of missing publications is a counted gap, and nobody was cut off.
fn assert_told(hub: &Hub, viewers: &[Viewer], attempts: &[Attempt]) {
    assert!(viewers.iter().all(|viewer| !viewer.is_closed()), "nobody was cut off");
    let losses = losses(viewers, attempts);
    let (n_missing, n_rows, n_gaps) = (losses.n_missing, losses.n_rows(), n_gaps(hub));
    let n_accepted = attempts.iter().filter(|attempt| attempt.accepted).count();
    println!(
        "{n_accepted} of {} accepted, {n_missing} missed by {} viewers in {n_rows} rows, {n_gaps} gaps",
        attempts.len(),
        viewers.len()
    );
    assert!(n_rows <= n_gaps, "{n_missing} missing in {n_rows} rows, {n_gaps} gaps counted");
}

/// A few dials a second at the most, from `since` on: up to twelve in the first second, while the
/// back-off of both links grows, and four in any later one.
fn assert_spaced(proxy: &Proxy, since: Instant) {
    let dials: Vec<Duration> =
        proxy.dials().into_iter().filter_map(|at| at.checked_duration_since(since)).collect();
    println!("{} dials in {:?}", dials.len(), since.elapsed());
    for (at, dial) in dials.iter().enumerate() {
        let n = dials[at..].iter().take_while(|later| **later < *dial + secs(1)).count();
        let n_max = if *dial < secs(1) { 12 } else { 4 };
        assert!(n <= n_max, "{n} dials in the second after {dial:?}: {dials:?}");
    }
}

/// Reads everything for so long; meanwhile no node's health may flap.
fn watch(hubs: &[&Hub], viewers: &mut [Vec<Viewer>], how_long: Duration) {
    let end = Instant::now() + how_long;
    while Instant::now() < end {
        for viewers in &mut *viewers {
            drive(viewers, ms(20), |_| false);
        }
        for hub in hubs {
            assert_eq!(hub.get("/health").status, 200, "health does not flap");
        }
    }
}

#[test]
fn redis_restarts_after_a_second_and_after_minutes() {
    let (outages, n_channels, n_viewers) = (
        if scaled(0, 1) == 0 { vec![secs(1), secs(4)] } else { vec![secs(1), secs(30), secs(180)] },
        scaled(40, 200),
        scaled(60, 1_000),
    );
    let mut redis = Redis::start();
    let proxies = [Proxy::start(redis.addr()), Proxy::start(redis.addr())];
    // To open so many viewers takes longer than a pong may.
    let patient = |builder: Builder| {
        builder.env("HUB_PING_INTERVAL", "10m").env("HUB_PONG_TIMEOUT", "9m").start().wait_ready()
    };
    let mut hubs = proxies.each_ref().map(|proxy| patient(behind(proxy)));
    let names = channels(n_channels);
    let mut seen: Vec<Vec<Viewer>> =
        hubs.iter().map(|hub| viewers(hub, &names, n_viewers)).collect();
    let both = hubs.each_ref();
    let traffic = Traffic::start(&both, &names, 4, 200);
    for outage in outages {
        watch(&both, &mut seen, ms(500));
        redis.kill();
        let killed = Instant::now();
        for hub in both {
            assert!(eventually(SOON, || !hub.ready()), "it tells");
        }
        watch(&both, &mut seen, outage.saturating_sub(killed.elapsed()));
        assert!(both.iter().all(|hub| !hub.ready()), "it still tells");
        proxies.iter().for_each(|proxy| assert_spaced(proxy, killed));
        redis.restart();
        let back = Instant::now();
        for (hub, seen) in both.iter().zip(&mut seen) {
            let took = healthy(&redis, &[hub], seen, back, HEALTHY);
            println!("healthy {took:?} after an outage of {outage:?}");
        }
    }
    let attempts = traffic.finish();
    watch(&both, &mut seen, QUIET);
    assert!(attempts.iter().all(|attempt| attempt.took() <= ANSWERED));
    for (hub, seen) in both.iter().zip(&seen) {
        assert_told(hub, seen, &attempts);
    }
    assert!(hubs.iter_mut().all(Hub::is_running));
}

#[test]
fn the_first_dials_after_the_return_are_refused() {
    let mut redis = Redis::start();
    let proxy = Proxy::start(redis.addr());
    let hub = behind(&proxy).start().wait_ready();
    let mut seen = viewers(&hub, &channels(4), 4);
    redis.kill();
    assert!(eventually(SOON, || !hub.ready()), "it tells");
    proxy.refuse(true);
    redis.restart();
    let refused = proxy.n_refused();
    assert!(eventually(SOON, || proxy.n_refused() >= refused + 4), "it keeps trying");
    assert!(!hub.ready());
    proxy.refuse(false);
    let took = healthy(&redis, &[&hub], &mut seen, Instant::now(), HEALTHY);
    println!("healthy after {took:?}");
}

#[test]
fn the_links_go_silent_without_closing() {
    let redis = Redis::start();
    let proxies = [(); 3].map(|()| Proxy::start(redis.addr()));
    // On default settings. One node loses both links, one only the link that delivers, and one
    // can't reach Redis by new ones either.
    let hubs = proxies
        .each_ref()
        .map(|proxy| Hub::builder().env("HUB_REDIS_URL", proxy.url()).start().wait_ready());
    let elsewhere = Hub::on(&redis);
    let names = channels(10);
    let mut seen: Vec<Vec<Viewer>> = hubs.iter().map(|hub| viewers(hub, &names, 10)).collect();
    let before = hubs.each_ref().map(|hub| (hub.n_fds(), n_connects(hub)));
    let traffic = Traffic::start(&[&elsewhere], &names, 2, 100);
    let all = hubs.each_ref();
    watch(&all, &mut seen, ms(500));

    proxies[0].blackhole_existing();
    proxies[1].blackhole_pubsub();
    proxies[2].blackhole_existing();
    proxies[2].blackhole_new(true);
    let silent = Instant::now();
    let mut noticed = [None; 3];
    while noticed.iter().any(Option::is_none) {
        assert!(silent.elapsed() <= secs(15), "noticed after {noticed:?}");
        watch(&all, &mut seen, ms(50));
        for (hub, noticed) in hubs.iter().zip(&mut noticed) {
            let told = n_gaps(hub) >= names.len();
            *noticed = noticed.or_else(|| told.then(|| silent.elapsed()));
        }
    }
    println!("noticed after {noticed:?}");
    assert!(!hubs[2].ready(), "it tells");
    proxies[2].blackhole_new(false);
    let back = Instant::now();
    for (hub, seen) in hubs.iter().zip(&mut seen) {
        let took = healthy(&redis, &[hub], seen, back, HEALTHY);
        println!("healthy after {took:?}");
    }
    let attempts = traffic.finish();
    watch(&all, &mut seen, QUIET);
    for (at, hub) in hubs.iter().enumerate() {
        assert_told(hub, &seen[at], &attempts);
        let (n_fds, n_before) = before[at];
        assert!(eventually(SOON, || hub.n_fds() <= n_fds), "the silent sockets are closed");
        assert_eq!(n_connects(hub) - n_before, [2, 1, 2][at], "each link is replaced once");
    }
}

/// A new client that asks for a channel of its own.
struct Asker {
    cf: Cf,
    id: u32,
    asked: Instant,
}

/// Whether it has its answer, which must be in time and that it may ask again.
fn is_answered(asker: &mut Asker) -> bool {
    let reply = asker.cf.reply(asker.id, Duration::ZERO);
    let waited = asker.asked.elapsed();
    assert!(waited <= ANSWERED, "waited {waited:?}: {reply:?}");
    let Some(reply) = reply else { return false };
    let error = &reply["error"];
    assert_eq!((&error["code"], &error["temporary"]), (&json!(100), &json!(true)), "{reply}");
    true
}

#[test]
fn redis_is_frozen_while_clients_subscribe() {
    let (freeze, per_second) = (secs(scaled(5, 60) as u64), scaled(50, 200) as u64);
    let redis = Redis::start();
    let proxy = Proxy::start(redis.addr());
    let hub = behind(&proxy)
        .env("HUB_PING_INTERVAL", "1s")
        .env("HUB_PONG_TIMEOUT", "900ms")
        .start()
        .wait_ready();
    let names = channels(10);
    let mut seen = viewers(&hub, &names, 20);
    let (connects, rss) = (n_connects(&hub), hub.anon_bytes());
    let traffic = Traffic::start(&[&hub], &names, 8, 100);
    assert!(drive(&mut seen, SOON, |viewer| viewer.n_received() > 0), "traffic flows");

    redis.stop();
    let stopped = Instant::now();
    let (mut n_asked, mut askers, mut unready) = (0, VecDeque::<Asker>::new(), false);
    let mut refused = None;
    while stopped.elapsed() < freeze || !askers.is_empty() {
        if stopped.elapsed() < freeze && stopped.elapsed() >= ms(1_000 * n_asked / per_second) {
            let mut cf = Cf::connect(&hub);
            let id = cf.send(vec![subscribe(&format!("new{n_asked}"))])[0];
            askers.push_back(Asker { cf, id, asked: Instant::now() });
            n_asked += 1;
        }
        drive(&mut seen, ms(5), |_| false);
        while askers.front_mut().is_some_and(is_answered) {
            refused = askers.pop_front();
        }
        assert_eq!(hub.get("/health").status, 200, "alive");
        unready |= !hub.ready();
    }
    assert!(unready, "readiness tells");
    let grown = hub.anon_bytes().saturating_sub(rss) >> 20;
    println!("{n_asked} asked, {grown} MiB grown");
    assert!(grown <= 32, "{grown} MiB grown");
    for viewer in &seen {
        let n_pings = match viewer {
            Viewer::Cf { cf, .. } => cf.n_pings,
            Viewer::Raw { raw, .. } => raw.n_pings,
        };
        assert!(n_pings as u64 + 2 >= freeze.as_secs(), "{n_pings} pings in {freeze:?}");
    }

    redis.cont();
    let took = healthy(&redis, &[&hub], &mut seen, Instant::now(), HEALTHY);
    println!("healthy after {took:?}");
    let Asker { mut cf, .. } = refused.expect("somebody was refused");
    cf.subscribe("again");
    redis.publish("again", "\"retried\"");
    assert_eq!(cf.next_pub(SOON).expect("a retry works").data, "\"retried\"");
    let attempts = traffic.finish();
    drive(&mut seen, QUIET, |_| false);
    assert!(attempts.iter().all(|attempt| attempt.took() <= ANSWERED));
    assert_told(&hub, &seen, &attempts);
    let n_replaced = n_connects(&hub) - connects;
    assert!(n_replaced <= 2, "links were replaced {n_replaced} times");
    let exact = || redis.channels("*").iter().filter(|name| name.starts_with("new")).count() == 0;
    assert!(eventually(SOON, exact), "what nobody waits for any more is not subscribed");
}

/// Publishes past the hubs, on `loud` as fast as `bytes_per_second` and on `quiet` now and then.
fn burst(redis: &Redis, how_long: Duration, bytes_per_second: usize) -> Vec<Attempt> {
    const BATCH: usize = 20;
    const LOUD_BYTES: usize = 10_000;
    let mut client = redis.client();
    let mut attempts = Vec::new();
    let started = Instant::now();
    while started.elapsed() < how_long {
        let due = secs(attempts.len() as u64 / BATCH as u64) * (BATCH * LOUD_BYTES) as u32;
        sys::pause((due / bytes_per_second as u32).saturating_sub(started.elapsed()));
        let loud = (0..BATCH - 2).map(|i| (format!("loud{}", i % 4), LOUD_BYTES));
        let quiet = (0..2).map(|i| (format!("quiet{i}"), 20));
        let batch: Vec<(usize, String, Vec<u8>)> = loud
            .chain(quiet)
            .zip(attempts.len()..)
            .map(|((channel, n_bytes), seq)| (seq, channel, numbered(seq, n_bytes)))
            .collect();
        let began = Instant::now();
        client.publish_all(batch.iter().map(|(_, channel, bytes)| (&**channel, &**bytes)));
        let ended = Instant::now();
        let done = |(seq, channel, _)| Attempt { seq, channel, began, ended, accepted: true };
        attempts.extend(batch.into_iter().map(done));
    }
    attempts
}

#[test]
fn redis_cuts_the_node_for_a_full_output_buffer() {
    let how_long = secs(scaled(4, 20) as u64);
    let redis = Redis::start();
    redis.config_set("client-output-buffer-limit", "pubsub 1mb 512kb 2");
    let proxy = Proxy::start(redis.addr());
    let hubs = [behind(&proxy).start().wait_ready(), Hub::on(&redis)];
    let names: Vec<String> =
        (0..4).map(|i| format!("loud{i}")).chain((0..2).map(|i| format!("quiet{i}"))).collect();
    let mut seen: Vec<Vec<Viewer>> = hubs
        .iter()
        .map(|hub| names.iter().map(|name| Viewer::raw(hub, &[name])).collect())
        .collect();
    let connects = n_connects(&hubs[0]);
    proxy.rate(Direction::Down, 4_000_000);
    let began = Instant::now();
    let attempts = std::thread::scope(|scope| {
        let publisher = scope.spawn(|| burst(&redis, how_long, 16_000_000));
        let hubs = hubs.each_ref();
        while !publisher.is_finished() {
            watch(&hubs, &mut seen, ms(100));
        }
        publisher.join().expect("published")
    });
    // The fault is over once the buffers are: those of the kernel hold some seconds' worth.
    proxy.rate(Direction::Down, 0);
    let back = Instant::now();
    for (hub, seen) in hubs.iter().zip(&mut seen) {
        let took = healthy(&redis, &[hub], seen, back, HEALTHY);
        println!("healthy after {took:?}");
    }
    let n_cuts = n_connects(&hubs[0]) - connects;
    println!("cut {n_cuts} times in {:?}", began.elapsed());
    assert!(n_cuts >= 1, "the node was kept behind");
    assert_spaced(&proxy, began);
    watch(&hubs.each_ref(), &mut seen, QUIET);
    for (hub, seen) in hubs.iter().zip(&seen) {
        assert_told(hub, seen, &attempts);
    }
}

#[test]
fn redis_cuts_every_link_as_soon_as_it_is_up() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.addr());
    let hub = behind(&proxy).start().wait_ready();
    let mut seen = viewers(&hub, &channels(4), 4);
    let began = Instant::now();
    while began.elapsed() < secs(4) {
        redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        drive(&mut seen, ms(5), |_| false);
        assert_eq!(hub.get("/health").status, 200, "alive");
    }
    let back = Instant::now();
    assert_spaced(&proxy, began);
    let took = healthy(&redis, &[&hub], &mut seen, back, HEALTHY);
    println!("healthy after {took:?}");
}

/// Clients with a great many channels between them.
fn subscribed_to_all(hub: &Hub, names: &[String]) -> Vec<Viewer> {
    let open = |names: &[String]| {
        let mut cf = Cf::connect(hub);
        let ids = cf.send(names.iter().map(|name| subscribe(name)).collect());
        for id in ids {
            let reply = cf.reply(id, SOON).expect("answered");
            assert!(reply["subscribe"].is_object(), "{reply}");
        }
        Viewer::Cf { cf, channels: names.to_vec() }
    };
    names.chunks(250).map(open).collect()
}

fn node_with_many_channels(proxy: &Proxy, names: &[String]) -> (Hub, Vec<Viewer>) {
    let builder = behind(proxy).env("HUB_CHANNELS_MAX", 250).env("HUB_MESSAGE_BYTES_MAX", "1MiB");
    let hub = builder.start().wait_ready();
    let seen = subscribed_to_all(&hub, names);
    (hub, seen)
}

#[test]
fn redis_cuts_again_in_the_middle_of_resubscribing() {
    let names = channels(scaled(4_000, 20_000));
    let redis = Redis::start();
    let proxy = Proxy::start(redis.addr());
    let (hub, mut seen) = node_with_many_channels(&proxy, &names);
    let mut monitor = redis.monitor();
    let began = Instant::now();
    let confirmations = names.len() as u64 * 40;
    let mut back = began;
    for part in 1..4 {
        proxy.cut_after(Direction::Down, confirmations * part / 4);
        proxy.cut();
        assert!(eventually(SOON, || !proxy.will_cut(Direction::Down)), "it subscribes again");
        back = Instant::now();
    }
    let took = healthy(&redis, &[&hub], &mut seen, back, HEALTHY);
    println!("healthy {took:?} after the last cut");
    assert_spaced(&proxy, began);
    let exact = || hub.metric_sum("hubbub_redis_subscriptions") as usize == names.len();
    assert!(eventually(SOON, exact), "each is subscribed once");
    assert!(n_gaps(&hub) >= names.len(), "{} gaps", n_gaps(&hub));
    let largest = monitor
        .monitored(&redis)
        .iter()
        .filter_map(|line| Some(line.split_once("\"SUBSCRIBE\"")?.1.matches(" \"").count()))
        .max();
    assert!(largest.is_some_and(|n| n <= 512), "{largest:?} channels in one SUBSCRIBE");
}

#[test]
fn resubscribing_takes_longer_than_one_command_may() {
    let names = channels(scaled(4_000, 20_000));
    let redis = Redis::start();
    let proxy = Proxy::start(redis.addr());
    let (hub, mut seen) = node_with_many_channels(&proxy, &names);
    let connects = n_connects(&hub);
    // Some four seconds, four times HUB_REDIS_TIMEOUT.
    proxy.rate(Direction::Down, names.len() as u64 * 10);
    proxy.cut();
    assert!(eventually(SOON, || n_gaps(&hub) >= names.len()), "noticed");
    // Who joins meanwhile is told so, or is subscribed and misses nothing from then on.
    let mut publisher = redis.client();
    let mut n_joined = 0;
    let back = Instant::now();
    while back.elapsed() < secs(20) && n_joined < 40 {
        let mut cf = Cf::connect(&hub);
        let name = &names[names.len() - 1 - n_joined * 97 % names.len()];
        let reply = cf.command(subscribe(name));
        if reply["subscribe"].is_object() {
            publisher.publish(name, b"\"joined\"");
            let next = cf.next_pub(SOON).unwrap_or_else(|| panic!("{name} is not live"));
            assert_eq!(next.data, "\"joined\"");
            n_joined += 1;
        } else {
            assert_eq!(reply["error"]["code"], 100, "{reply}");
        }
    }
    println!("{n_joined} joined in {:?}", back.elapsed());
    let exact = || hub.metric_sum("hubbub_redis_subscriptions") as usize == names.len();
    assert!(eventually(SOON, exact), "all are subscribed again");
    println!("restored after {:?}", back.elapsed());
    proxy.rate(Direction::Down, 0);
    healthy(&redis, &[&hub], &mut seen, Instant::now(), HEALTHY);
    assert_eq!(n_connects(&hub) - connects, 2, "it never had to start again");
}
