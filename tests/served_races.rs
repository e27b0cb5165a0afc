//! Promise: a client that is subscribed as it connects hears of its subscriptions before anything that
//! is published there, whatever the broker's pace; and if it can't have them, it is told to try again.

mod common;

use common::cf::{Cf, publish, subscribe};
use common::past::{At, offsets};
use common::served::{
    Place, Served, close, connect, connected, namespaces, next, next_push, publish_each, reconnect,
    result, start,
};
use common::{Direction, Hub, Proxy, QUIET, Redis, Rng, SOON, eventually, ms, scaled};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

#[test]
fn what_is_published_meanwhile_comes_behind_the_reply() {
    let (redis, file) = (Redis::start(), namespaces());
    let proxy = Proxy::start(redis.addr());
    let slow = start(&file, Some(&proxy.url()), &[("HUB_SHARDS", "1")]);
    let fast = start(&file, Some(&redis.url()), &[]);
    let Served { cf: mut viewer, .. } = connected(&slow, connect(&json!({ "channels": ["r:a"] })));
    publish_each(&fast, "r:a", [1]);
    assert_eq!(next(&mut viewer), "r:a 1");
    proxy.delay(Direction::Down, ms(500), ms(500));
    publish_each(&fast, "r:a", [2]);
    // On the link behind that publication: the broker's word on a new channel, and then its stream.
    let mut cf = Cf::dial(&slow);
    let claims = json!({ "sub": "42", "channels": ["r:a", "r:b", "news"] });
    let ids = cf.send(vec![
        connect(&claims),
        subscribe("news"),
        subscribe("more"),
        json!({ "ping": {} }),
    ]);
    for id in &ids {
        assert!(cf.reply(*id, SOON).is_some());
    }
    assert_eq!(next(&mut cf), "r:a 2");
    assert_eq!(cf.reply_order[0], ids[0], "{:?}", cf.log);
    let first = &cf.log[0].text;
    let reply: Value = serde_json::from_str(first.lines().next().expect("a line")).expect("JSON");
    assert_eq!(reply["connect"]["subs"]["r:a"]["offset"], 1, "{first}");
    assert_eq!(next(&mut viewer), "r:a 2");
    proxy.delay(Direction::Down, ms(0), ms(0));
    publish_each(&fast, "r:a", [3]);
    assert_eq!(next(&mut cf), "r:a 3");
}

/// A node with one shard behind a link that takes a second, and a fast one.
struct Slow {
    slow: Hub,
    fast: Hub,
    _proxy: Proxy,
    _redis: Redis,
    _file: tempfile::NamedTempFile,
}

fn slow_after(set_up: impl Fn(&Hub, &Hub)) -> Slow {
    let (redis, file) = (Redis::start(), namespaces());
    let proxy = Proxy::start(redis.addr());
    let slow = start(&file, Some(&proxy.url()), &[("HUB_SHARDS", "1")]);
    let fast = start(&file, Some(&redis.url()), &[]);
    set_up(&slow, &fast);
    proxy.delay(Direction::Down, ms(1_000), ms(1_000));
    Slow { slow, fast, _proxy: proxy, _redis: redis, _file: file }
}

fn names(subs: &Value) -> Vec<&str> {
    let mut names: Vec<&str> =
        subs.as_object().expect("an object").keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

/// What the API asks comes while the streams of a connect are read.
#[test]
fn a_connect_that_waits_is_meant_by_the_api_too() {
    let Slow { slow, fast, .. } = &slow_after(|_, _| {});
    let mut cf = Cf::dial(slow);
    let claims = json!({ "sub": "42", "channels": ["r:a", "r:b"] });
    let ids = cf.send(vec![connect(&claims)]);
    let mut gone = Cf::dial(slow);
    gone.send(vec![connect(&json!({ "sub": "43", "channels": ["r:a", "r:b"] }))]);
    // Once it is seen to be there.
    assert!(eventually(SOON, || slow.metric_sum("hubbub_commands_total") >= 2.0));
    result(fast, "unsubscribe", json!({ "user": "42", "channel": "r:a" }));
    let body = json!({ "user": "42", "channel": "r:c", "data": 7 });
    result(fast, "subscribe", body);
    result(fast, "subscribe", json!({ "user": "42", "channel": "r:b", "data": 8 }));
    result(fast, "disconnect", json!({ "user": "43" }));
    let subs = cf.reply(ids[0], SOON).expect("a reply")["connect"]["subs"].clone();
    assert_eq!(names(&subs), ["#42", "r:b", "r:c", "user:#42"]);
    assert_eq!((&subs["r:c"]["data"], &subs["r:b"]["data"]), (&json!(7), &json!(8)));
    assert_eq!(gone.next_close(SOON), close(3503, "force disconnect"));
    assert!(gone.replies.is_empty(), "{:?}", gone.replies);
    for channel in ["r:a", "r:b", "r:c"] {
        publish_each(fast, channel, [1]);
    }
    assert_eq!((next(&mut cf), next(&mut cf)), ("r:b 1".to_owned(), "r:c 1".to_owned()));
    assert!(cf.stays_quiet(QUIET));
}

/// The API puts a client into the channel that it is just about to recover.
#[test]
fn what_was_missed_comes_once_however_many_asked() {
    let Slow { slow, fast, .. } = &slow_after(|_, fast| {
        publish_each(fast, "r:a", 1..=5);
    });
    let mut cf = Cf::dial(slow);
    let reply = cf.command(connect(&json!({ "sub": "42" })));
    assert!(reply["connect"].is_object(), "{reply}");
    let epoch = result(fast, "history", json!({ "channel": "r:a" }))["epoch"].clone();
    let n_before = slow.metric_sum("hubbub_commands_total");
    let since = json!({ "channel": "r:a", "recover": true, "offset": 2, "epoch": epoch });
    let ids = cf.send(vec![json!({ "subscribe": since })]);
    assert!(eventually(SOON, || slow.metric_sum("hubbub_commands_total") > n_before));
    let since = json!({ "offset": 1, "epoch": epoch });
    for _ in 0..2 {
        let body = json!({ "user": "42", "channel": "r:a", "recover_since": since });
        result(fast, "subscribe", body);
    }
    let reply = cf.reply(ids[0], SOON).expect("a reply")["subscribe"].clone();
    assert_eq!(offsets(&reply), [3, 4, 5], "{reply}");
    for _ in 0..2 {
        assert_eq!(next_push(&mut cf)["subscribe"]["offset"], 5);
    }
    publish_each(fast, "r:a", [6]);
    assert_eq!(next(&mut cf), "r:a 6", "and nothing twice");
}

#[test]
fn what_the_broker_does_not_confirm_is_a_temporary_error() {
    let (redis, file) = (Redis::start(), namespaces());
    let proxy = Proxy::start(redis.addr());
    let hub = start(&file, Some(&proxy.url()), &[("HUB_REDIS_TIMEOUT", "1s"), ("HUB_SHARDS", "1")]);
    let Served { cf: _viewer, .. } = connected(&hub, connect(&json!({ "channels": ["r:a"] })));
    let n_subscriptions = || hub.metric_sum("hubbub_subscriptions");
    assert_eq!(n_subscriptions(), 1.0);
    proxy.blackhole_pubsub();
    let mut cf = Cf::dial(&hub);
    let ids = cf.send(vec![connect(&json!({ "channels": ["r:a", "news"] })), subscribe("more")]);
    let reply = cf.reply(ids[0], SOON).expect("a reply");
    assert_eq!(
        (&reply["error"]["code"], &reply["error"]["temporary"]),
        (&json!(100), &json!(true))
    );
    cf.wait(QUIET, |_| false);
    assert!(cf.replies.is_empty(), "the rest of the frame is void");
    assert_eq!(n_subscriptions(), 1.0, "it has left what it had");
    let again = || {
        let mut cf = Cf::dial(&hub);
        let ids = cf.send(vec![connect(&json!({ "channels": ["r:a", "news"] }))]);
        // No reply: closed, since its first channel lost something when the link was seen to be dead.
        let reply = cf.reply(ids[0], SOON).unwrap_or_default();
        reply["connect"]["subs"].as_object().map(serde_json::Map::len) == Some(2)
    };
    assert!(eventually(3 * SOON, again));
}

#[test]
fn too_much_before_the_reply_is_closed() {
    let (redis, file) = (Redis::start(), namespaces());
    let proxy = Proxy::start(redis.addr());
    let hub = start(&file, Some(&proxy.url()), &[("HUB_MESSAGE_BYTES_MAX", "4KiB")]);
    proxy.delay(Direction::Down, ms(2_000), ms(2_000));
    let mut cf = Cf::dial(&hub);
    cf.send(vec![connect(&json!({ "channels": ["news"] }))]);
    for _ in 0..10 {
        cf.send(vec![publish("news", &json!("x".repeat(1_000)))]);
    }
    assert_eq!(cf.next_close(SOON), close(3013, "too many requests"));
    // What was asked before is answered still, if that comes in time.
    assert!(cf.replies.len() <= 1 && cf.pubs.is_empty(), "{:?}", cf.log);
}

#[test]
fn a_gap_ends_the_connection_and_the_client_recovers() {
    let place = Place::redis();
    let claims = json!({ "channels": ["r:a", "news"] });
    let Served { mut cf, subs } = connected(&place.a, connect(&claims));
    let epoch = subs["r:a"]["epoch"].clone();
    publish_each(&place.a, "r:a", 1..=3);
    for n in 1..=3 {
        assert_eq!(next(&mut cf), format!("r:a {n}"));
    }
    place.redis.as_ref().expect("Redis").command(&["FLUSHALL"]);
    publish_each(place.b(), "r:a", 1..=5);
    assert_eq!(cf.next_close(SOON), close(3010, "insufficient state"));
    let known = json!({ "r:a": { "recover": true, "offset": 3, "epoch": epoch } });
    let Served { mut cf, subs } = connected(&place.a, reconnect(&claims, known));
    assert_eq!((&subs["r:a"]["recovered"], &subs["r:a"]["offset"]), (&Value::Null, &json!(5)));
    publish_each(&place.a, "r:a", [6]);
    assert_eq!(next(&mut cf), "r:a 6");
}

#[test]
fn a_drain_answers_the_connect_first() {
    let (redis, file) = (Redis::start(), namespaces());
    let proxy = Proxy::start(redis.addr());
    let mut hub = start(&file, Some(&proxy.url()), &[("HUB_DRAIN_TIMEOUT", "1s")]);
    let Served { cf: _viewer, .. } = connected(&hub, connect(&json!({ "channels": ["r:a"] })));
    proxy.delay(Direction::Down, ms(700), ms(700));
    let mut cf = Cf::dial(&hub);
    let ids = cf.send(vec![connect(&json!({ "channels": ["r:a", "news"] }))]);
    hub.signal(15);
    let close = cf.next_close(SOON).expect("a close frame");
    assert_eq!((close.code, close.reason.as_str()), (3001, "shutdown"));
    if let Some(reply) = cf.replies.get(&ids[0]) {
        assert_eq!(reply["connect"]["subs"].as_object().map(serde_json::Map::len), Some(2));
    }
    assert!(hub.wait_exit(SOON).is_some_and(|status| status.success()));
}

/// Comes and goes while others publish: every offset is one more than the one before.
#[test]
fn nothing_falls_between_the_reply_and_live() {
    let (redis, file) = (Redis::start(), namespaces());
    let proxy = Proxy::start(redis.addr());
    proxy.delay(Direction::Up, ms(0), ms(15));
    proxy.delay(Direction::Down, ms(0), ms(15));
    let knobs = [("HUB_HISTORY_MAX", "1000")];
    let nodes =
        [start(&file, Some(&redis.url()), &knobs), start(&file, Some(&proxy.url()), &knobs)];
    let (channel, done) = ("long:race", AtomicBool::new(false));
    let (n_clients, n_visits) = (scaled(4, 12), scaled(25, 50));
    std::thread::scope(|scope| {
        for hub in &nodes {
            let done = &done;
            scope.spawn(move || {
                while !done.load(SeqCst) {
                    publish_each(hub, channel, [7]);
                }
            });
        }
        let visitors: Vec<_> = (0..n_clients)
            .map(|client| {
                let nodes = &nodes;
                scope.spawn(move || {
                    let mut rng = Rng::quiet();
                    let mut at: Option<At> = None;
                    for visit in 0..n_visits {
                        let hub = &nodes[rng.between(0, 1) as usize];
                        // Beside channels that the node knows and others that it doesn't.
                        let fresh = format!("news{client}.{visit}");
                        let claims = json!({ "channels": [channel, "news", fresh, "r:a"] });
                        let known = at.as_ref().map_or(Value::Null, |at| {
                            json!({ channel: { "recover": true, "offset": at.offset,
                                "epoch": at.epoch } })
                        });
                        at = Some(stay(hub, reconnect(&claims, known), channel, at, &mut rng));
                    }
                })
            })
            .collect();
        let ends: Vec<_> = visitors.into_iter().map(|visitor| visitor.join()).collect();
        done.store(true, SeqCst);
        ends.into_iter().for_each(|end| end.expect("followed"));
    });
    for hub in &nodes {
        assert_eq!(hub.metrics().get("hubbub_gaps_total{reason=\"offset\"}"), 0.0);
    }
}

/// One visit; where it left.
fn stay(hub: &Hub, command: Value, channel: &str, before: Option<At>, rng: &mut Rng) -> At {
    let Served { mut cf, subs } = connected(hub, command);
    assert_eq!(subs.as_object().map(serde_json::Map::len), Some(4), "{subs}");
    let sub = &subs[channel];
    let mut at = At {
        offset: sub["offset"].as_u64().unwrap_or(0),
        epoch: sub["epoch"].as_str().expect("an epoch").to_owned(),
    };
    if let Some(before) = before {
        assert_eq!((&sub["recovered"], at.offset), (&json!(true), before.offset), "{sub}");
        let missed = if sub["publications"].is_null() { Vec::new() } else { offsets(sub) };
        for offset in missed {
            assert_eq!(offset, at.offset + 1, "{sub}");
            at.offset = offset;
        }
    }
    let n = rng.between(0, 30);
    for _ in 0..n {
        let live = cf.next_pub(SOON).expect("live goes on").body;
        assert_eq!(live["offset"], at.offset + 1);
        at.offset += 1;
    }
    at
}
