//! Promise: what history can't give any more is said to be lost, at once, and live goes on; a stream that
//! Redis lost, or lost half of, is never taken for the one before.

mod common;

use common::cf::subscribe;
use common::follower::{Follower, follow, tops};
use common::past::{At, Place, code, history, offsets, publish, publish_each, recover};
use common::{Cf, Hub, SOON, eventually, scaled, secs};
use serde_json::{Value, json};
use std::time::Instant;

/// What somebody is told who comes back from `at`, within a second; and the next one comes live.
#[track_caller]
fn comes_back(hub: &Hub, elsewhere: &Hub, channel: &str, at: &At) -> Value {
    let mut cf = Cf::connect(hub);
    let began = Instant::now();
    let reply = cf.command(recover(channel, at));
    assert!(began.elapsed() < secs(1), "answered after {:?}", began.elapsed());
    assert!(reply["subscribe"].is_object(), "{reply}");
    let next = publish(elsewhere, channel, "live");
    let seen = cf.next_pub(SOON).expect("live goes on").body;
    assert_eq!((&seen["data"], &seen["offset"]), (&json!("live"), &json!(next.offset)));
    reply["subscribe"].clone()
}

#[track_caller]
fn is_lost(reply: &Value) {
    assert_eq!(reply["was_recovering"], true, "{reply}");
    assert_eq!((&reply["recovered"], &reply["publications"]), (&Value::Null, &Value::Null));
}

/// Of what was published as 1, 2, 3, … after the first: all that was missed, in order.
#[track_caller]
fn is_whole(reply: &Value, n_missed: u64) {
    let missed: Vec<Value> =
        (1..=n_missed).map(|n| json!({ "data": n, "offset": n + 1 })).collect();
    assert_eq!((&reply["recovered"], &reply["publications"]), (&json!(true), &json!(missed)));
}

/// A history of a hundred: 99 and 100 missed come back whole; 101 and 5,000 don't, nor does what was
/// never there.
#[test]
fn asking_for_more_than_history_holds() {
    for place in [Place::memory(), Place::redis()] {
        for n_missed in [99, 100, 101, 5_000] {
            let channel = format!("hundred:{n_missed}");
            let at = publish(&place.a, &channel, 0);
            let top = publish_each(place.b(), &channel, 1..=n_missed);
            let reply = comes_back(&place.a, place.b(), &channel, &at);
            if n_missed <= 100 {
                is_whole(&reply, n_missed);
                continue;
            }
            is_lost(&reply);
            for at in [
                At { offset: 0, ..top.clone() },
                At { offset: top.offset + 100, ..top.clone() },
                At { epoch: "garbage".to_owned(), ..top },
            ] {
                is_lost(&comes_back(place.b(), &place.a, &channel, &at));
                let since = json!({ "channel": channel, "since": at.json(), "limit": -1 });
                if at.epoch == "garbage" {
                    assert_eq!(code(&place.a, "history", since), 112);
                }
            }
        }
    }
}

/// The same hundred after `history_ttl`: only who had missed nothing has recovered.
#[test]
fn asking_for_what_history_held_until_it_expired() {
    for place in [Place::memory(), Place::redis()] {
        let at = publish(&place.a, "brief:a", 0);
        let top = publish_each(place.b(), "brief:a", 1..=100);
        let mut cf = Cf::connect(&place.a);
        is_whole(&cf.command(recover("brief:a", &at))["subscribe"], 100);
        drop(cf);
        let is_gone = || offsets(&history(&place.a, "brief:a")).is_empty();
        assert!(!is_gone(), "not yet");
        assert!(eventually(SOON, is_gone), "it expires");
        for hub in [&place.a, place.b()] {
            let mut cf = Cf::connect(hub);
            let reply = cf.command(recover("brief:a", &top))["subscribe"].clone();
            assert_eq!((&reply["recovered"], &reply["publications"]), (&json!(true), &Value::Null));
        }
        for n_missed in [1, 99, 100] {
            let at = At { offset: top.offset - n_missed, ..top.clone() };
            for hub in [&place.a, place.b()] {
                let mut cf = Cf::connect(hub);
                is_lost(&cf.command(recover("brief:a", &at))["subscribe"]);
            }
        }
        is_lost(&comes_back(place.b(), &place.a, "brief:a", &at));
        // The one that was published meanwhile is all that was missed.
        let next = publish(&place.a, "brief:a", "next");
        assert_eq!(
            next,
            At { offset: top.offset + 2, epoch: top.epoch.clone() },
            "the count goes on"
        );
        let live = At { offset: top.offset + 1, ..top };
        let mut cf = Cf::connect(&place.a);
        let reply = cf.command(recover("brief:a", &live))["subscribe"].clone();
        assert_eq!(reply["recovered"], true, "{reply}");
    }
}

/// Flushed at fifty; then fewer, as many and more are published. Nobody gets the one for the other, least
/// of all who stayed connected.
#[test]
fn redis_is_flushed() {
    let place = Place::redis();
    for n_after in [10, 50, 60] {
        let channel = format!("long:{n_after}");
        let mut stayed = vec![Follower::open(&place.a, &[&channel])];
        assert!(follow(&mut stayed, SOON, Follower::is_live));
        let at = publish_each(&place.a, &channel, 1..=50);
        assert!(follow(&mut stayed, SOON, |it| *it.at(&channel) == at));
        place.server().command(&["FLUSHALL"]);
        let after = publish_each(place.b(), &channel, 1..=n_after);
        assert_eq!(after.offset, n_after);
        assert_ne!(after.epoch, at.epoch);
        assert!(follow(&mut stayed, SOON, |it| *it.at(&channel) == after), "told, and goes on");
        assert_eq!((stayed[0].n_told, stayed[0].n_gaps()), (1, 1));
        is_lost(&comes_back(place.b(), &place.a, &channel, &at));
    }
    // Seen empty before, and one publication later.
    let mut early = Cf::connect(&place.a);
    let reply = early.command(subscribe("r:new"))["subscribe"].clone();
    let at = At { offset: 0, epoch: reply["epoch"].as_str().expect("an epoch").to_owned() };
    drop(early);
    publish(&place.a, "r:new", 1);
    place.server().command(&["FLUSHALL"]);
    publish_each(&place.a, "r:new", 1..=3);
    is_lost(&comes_back(place.b(), &place.a, "r:new", &at));
}

/// Half of what Redis keeps of a stream goes: who is connected is told before it sees the next one, who
/// comes back gets nothing of another stream.
#[test]
fn redis_evicts_half_of_a_stream() {
    let place = Place::redis();
    for (n, key) in ["ws:stream:{long:0}", "ws:meta:{long:1}"].into_iter().enumerate() {
        let channel = format!("long:{n}");
        let mut stayed = vec![Follower::open(&place.a, &[&channel])];
        assert!(follow(&mut stayed, SOON, Follower::is_live));
        let at = publish_each(&place.a, &channel, 1..=5);
        assert!(follow(&mut stayed, SOON, |it| *it.at(&channel) == at));
        assert_eq!(place.server().command(&["DEL", key]).int(), 1, "{key}");
        let after = publish(place.b(), &channel, 6);
        assert_ne!(after.epoch, at.epoch);
        assert!(follow(&mut stayed, SOON, |it| *it.at(&channel) == after), "told, and goes on");
        assert_eq!((stayed[0].n_told, stayed[0].n_gaps()), (1, 1));
        is_lost(&comes_back(place.b(), &place.a, &channel, &at));
    }
}

/// Under a memory limit Redis evicts what it likes: publishing goes on, and whoever comes back has all or is
/// told.
#[test]
fn redis_evicts_what_it_likes() {
    let place = Place::redis();
    let (n_channels, pad) = (scaled(30, 200), "x".repeat(10_000));
    let had: Vec<At> = (0..n_channels)
        .map(|n| {
            let publish_pad = |_| publish(&place.a, &format!("long:{n}"), pad.as_str());
            (0..10).map(publish_pad).last().expect("some")
        })
        .collect();
    let info = place.server().command(&["INFO", "memory"]).text();
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).expect("used");
    let used: u64 = used.trim().parse().expect("bytes");
    place.server().config_set("maxmemory-policy", "allkeys-lru");
    place.server().config_set("maxmemory", &(used - 1_500_000).to_string());
    let (mut n_lost, mut n_whole) = (0, 0);
    for (n, had) in had.iter().enumerate() {
        let channel = format!("long:{n}");
        let top = publish(place.b(), &channel, "one more");
        let reply = comes_back(place.b(), &place.a, &channel, had);
        if reply["recovered"] == true {
            assert_eq!((&top.epoch, top.offset), (&had.epoch, had.offset + 1));
            let missed = json!([{ "data": "one more", "offset": top.offset }]);
            assert_eq!(reply["publications"], missed);
            n_whole += 1;
        } else {
            is_lost(&reply);
            n_lost += 1;
        }
    }
    println!("{n_lost} lost, {n_whole} whole");
    assert!(n_lost > 0, "nothing was evicted");
}

/// A Redis without memory refuses to publish, and nobody is cut off or told anything untrue.
#[test]
fn without_memory_subscribers_stay_and_go_on() {
    let place = Place::redis();
    let channels = ["long:a".to_owned()];
    let mut stayed = vec![Follower::open(&place.a, &channels)];
    assert!(follow(&mut stayed, SOON, Follower::is_live));
    let at = publish_each(&place.a, "long:a", 1..=5);
    place.server().config_set("maxmemory", "1");
    let ask = json!({ "channel": "long:a", "data": 6 });
    assert_eq!(place.b().api("publish", &ask).json()["error"]["code"], 100);
    place.server().config_set("maxmemory", "0");
    assert!(eventually(SOON, || place.b().api("publish", &ask).is_result()));
    assert_eq!(publish(place.b(), "long:a", 7), At { offset: 7, ..at });
    let tops = tops(&place.a, &channels);
    assert!(follow(&mut stayed, SOON, |it| it.has_all(&tops)));
    assert_eq!((stayed[0].n_told, stayed[0].n_gaps()), (0, 0), "nothing happened to it");
}
