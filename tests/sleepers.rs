//! Promise: who answers pings stays, however seldom it does anything else; who slept through one finds its
//! connection closed, comes back and has what it missed, or knows that it hasn't; and who reads in gulps
//! stays as long as what it leaves lying is within the bound. (Scenario 48.)

mod common;

use common::cf::PATH;
use common::follower::{Accepted, Follower, follow, tops};
use common::past::Place;
use common::ws::Dial;
use common::{Cf, Hub, SOON, Traffic, drive, eventually, ms, scaled, secs};
use serde_json::json;
use std::time::{Duration, Instant};

/// The default is 25 s.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// Hidden tabs run their timers once a minute.
const TIMERS: Duration = Duration::from_millis(2_400);

fn n_connections(hub: &Hub) -> usize {
    hub.metric_sum("hubbub_connections") as usize
}

fn n_closed(hub: &Hub, code: u16) -> f64 {
    hub.metrics().get(&format!("hubbub_closes_total{{code=\"{code}\"}}"))
}

/// Until it has all there is.
#[track_caller]
fn catches_up(follower: &mut Follower, hub: &Hub, channels: &[String]) {
    let tops = tops(hub, channels);
    let followers = std::slice::from_mut(follower);
    assert!(follow(followers, SOON, |follower| follower.has_all(&tops)), "it doesn't catch up");
}

#[test]
fn a_hidden_tab_is_never_cut() {
    let builder =
        Hub::builder().env("HUB_PING_INTERVAL", format!("{}ms", PING_INTERVAL.as_millis()));
    let hub = builder.env("HUB_PONG_TIMEOUT", "900ms").start().wait_ready();
    let mut tabs: Vec<Cf> = (0..3).map(|_| Cf::subscribed(&hub, &["a"])).collect();
    let how_long = TIMERS * scaled(3, 30) as u32;
    let (began, mut n_fired) = (Instant::now(), 0);
    while began.elapsed() < how_long {
        // It answers on arrival; what else it has to say waits for its timer.
        drive(&mut tabs, ms(20), |cf| cf.raw.is_closed());
        let cut = tabs.iter().position(|cf| cf.raw.is_closed());
        assert_eq!(cut, None, "cut after {:?}", began.elapsed());
        if began.elapsed() >= TIMERS * (n_fired + 1) {
            n_fired += 1;
            tabs[0].send(vec![json!({ "history": { "channel": "a" } })]);
        }
    }
    let n_pings = how_long.as_millis() / PING_INTERVAL.as_millis();
    assert!(tabs.iter().all(|cf| cf.n_pings as u128 + 2 >= n_pings));
    hub.publish("a", 1);
    assert!(drive(&mut tabs, SOON, |cf| cf.pubs.len() == 1), "served to the end");
}

/// A stopped process reads nothing and answers nothing, while its kernel goes on taking what comes; all
/// of which is what a client does that nobody calls.
fn sleeps(place: &Place, channel: &str, per_second: usize, at_least: usize) -> Follower {
    let channels = [channel.to_owned()];
    let mut sleeper = Follower::open(&place.a, &channels);
    let traffic = Traffic::start(&[place.b()], &channels, 1, per_second);
    assert!(follow(std::slice::from_mut(&mut sleeper), SOON, |sleeper| sleeper.n_seen() > 0));
    assert!(eventually(SOON, || n_connections(&place.a) == 0), "nobody waits for it for ever");
    let top = || tops(&place.a, &channels)[channel].offset as usize;
    let so_far = top();
    let how_long = secs(scaled(0, 120) as u64);
    let began = Instant::now();
    let enough = || began.elapsed() >= how_long && top() >= so_far + at_least;
    assert!(eventually(how_long + secs(20), enough), "{} were published", top() - so_far);

    // Awake: what the kernel kept for it, and then that it is over.
    let gone = follow(std::slice::from_mut(&mut sleeper), SOON, Follower::is_gone);
    assert!(gone, "it finds its socket closed");
    assert_eq!(sleeper.close_code(), Some(3012));
    sleeper.come_back(&place.a);
    assert!(follow(std::slice::from_mut(&mut sleeper), SOON, Follower::is_live));
    let attempts = traffic.finish();
    catches_up(&mut sleeper, &place.a, &channels);
    sleeper.assert_complete(&Accepted::of(&attempts));
    println!("{channel}: {} published, {} seen", attempts.len(), sleeper.n_seen());
    sleeper
}

fn wakes_up(place: &Place) {
    // It misses some dozens of a thousand, and then more than all of a hundred.
    let sleeper = sleeps(place, "long:a", 20, 20);
    assert_eq!((sleeper.recoveries.len(), sleeper.n_lost(), sleeper.n_gaps()), (1, 0, 0));
    let sleeper = sleeps(place, "hundred:a", 100, 200);
    assert_eq!((sleeper.recoveries.len(), sleeper.n_lost(), sleeper.n_gaps()), (1, 1, 1));
}

fn impatient(builder: common::hub::Builder) -> common::hub::Builder {
    builder.env("HUB_PING_INTERVAL", "1s").env("HUB_PONG_TIMEOUT", "500ms")
}

#[test]
fn a_laptop_that_slept_recovers_with_the_memory_broker() {
    wakes_up(&Place::memory_with(impatient));
}

#[test]
fn a_laptop_that_slept_recovers_with_redis() {
    wakes_up(&Place::redis_with(impatient));
}

/// Its pongs come when it reads: in time as long as it reads more often than a pong may take.
#[test]
fn one_that_reads_in_gulps_stays() {
    let place = Place::memory_with(|builder| {
        builder.env("HUB_PING_INTERVAL", "2s").env("HUB_PONG_TIMEOUT", "1900ms")
    });
    let channels = ["long:a".to_owned()];
    let mut gulper = Follower::open(&place.a, &channels);
    let mut attentive = [Follower::open(&place.a, &channels)];
    let traffic = Traffic::start(&[&place.a], &channels, 1, 50);
    for gulp in 0..scaled(8, 60) {
        follow(&mut attentive, secs(1), |_| false);
        follow(std::slice::from_mut(&mut gulper), ms(20), |_| false);
        assert!(!gulper.is_gone(), "cut at gulp {gulp}: {:?}", gulper.close_code());
    }
    let attempts = traffic.finish();
    catches_up(&mut gulper, &place.a, &channels);
    gulper.assert_complete(&Accepted::of(&attempts));
    assert_eq!((gulper.recoveries.len(), gulper.n_gaps()), (0, 0), "in one go");
    assert!(gulper.n_seen() > 100);
}

/// Between two gulps up to the bound may wait for it; over that it is cut, and has it all later or is told.
#[test]
fn one_that_leaves_too_much_lying_is_cut_and_told() {
    let place = Place::memory_with(|builder| {
        let builder = builder.env("HUB_PING_INTERVAL", "10m").env("HUB_PONG_TIMEOUT", "9m");
        builder.env("HUB_PUBLICATION_BYTES_MAX", "64KiB").env("HUB_OUTBOX_BYTES_MAX", "256KiB")
    });
    let channels = ["long:a".to_owned()];
    let mut gulper = Follower::open(&place.a, &channels);
    let mut publish = {
        let mut seq = 0;
        let pad = "x".repeat(10_000);
        let a = &place.a;
        move |n: usize| {
            (0..n).for_each(|_| {
                a.publish("long:a", json!({ "seq": seq, "pad": pad }));
                seq += 1;
            });
        }
    };
    let narrow = || {
        let mut cf = Cf::over(Dial::new(&place.a, PATH).rcvbuf(16_384).open());
        cf.command(json!({ "connect": {} }));
        cf
    };
    gulper.come_back_over(narrow());
    assert!(follow(std::slice::from_mut(&mut gulper), SOON, Follower::is_live));
    for _ in 0..3 {
        publish(20);
        catches_up(&mut gulper, &place.a, &channels);
    }
    assert_eq!((gulper.n_gaps(), gulper.n_seen()), (0, 60), "within the bound");
    assert_eq!(n_closed(&place.a, 3008), 0.0);

    publish(80);
    assert!(eventually(SOON, || n_closed(&place.a, 3008) == 1.0), "over the bound");
    assert!(follow(std::slice::from_mut(&mut gulper), SOON, Follower::is_gone));
    let code = gulper.close_code();
    assert!(matches!(code, None | Some(3008)), "{code:?}");
    gulper.come_back_over(narrow());
    catches_up(&mut gulper, &place.a, &channels);
    println!("{code:?}; {:?}; {} seen of 140", gulper.recoveries.last(), gulper.n_seen());
    let is_told = gulper.n_lost() == 0 && gulper.n_seen() == 140 || gulper.n_gaps() == 1;
    assert!(is_told, "{:?}, {} seen", gulper.recoveries, gulper.n_seen());
    publish(1);
    catches_up(&mut gulper, &place.a, &channels);
}
