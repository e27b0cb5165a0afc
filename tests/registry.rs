//! Promise: whoever is connected to any node stands in Redis, once and with what is needed to find the
//! connection; who isn't, doesn't, however the connection or its node ended. (Scenarios 14, 43, 51, 53
//! and 55, as far as they are about the registry.)

mod common;

use common::registry::{connect, connections, keys, left_ms, n_connections, nodes};
use common::ws::{Dial, raw_path};
use common::{Cf, Hub, Raw, Redis, SOON, drive, eventually, ms, scaled, secs, sign, sys};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Instant;

const LIFE_MS: i64 = 120_000;

/// Whether exactly so many connections are registered, soon.
#[track_caller]
fn assert_registered(redis: &Redis, n: usize) {
    let is_so = eventually(SOON, || n_connections(redis) == n);
    assert!(is_so, "{} are registered, and not {n}", n_connections(redis));
}

#[test]
fn an_entry_says_who_where_and_since_when_and_goes_with_the_connection() {
    let redis = Redis::start();
    let hub = Hub::builder().redis(&redis).env("HUB_NODE_ID", "pod-7");
    let hub = hub.env("HUB_TOKEN_HMAC_SECRET", "secret").start().wait_ready();
    let token = sign(&json!({ "sub": "se\"b\n", "exp": 4_000_000_000u64 }), "secret");
    let ((_cf, id), (anonymous, anonymous_id)) = (connect(&hub, &token), connect(&hub, ""));
    // No client before its connect command.
    let _fresh = Cf::dial(&hub);
    let raw = Dial::new(&hub, &raw_path(&["a"])).open();
    assert_registered(&redis, 3);

    let entries = connections(&redis);
    let entry = &entries[&id];
    let node = &nodes(&redis)["pod-7"];
    for member in ["instance_id", "run_id"] {
        assert_eq!(entry[member], node[member], "{entry} {node}");
    }
    assert_eq!(entry["user"], "se\"b\n");
    assert_eq!(
        (&entry["transport"], &entry["address"]),
        (&json!("websocket"), &json!("127.0.0.1"))
    );
    let age_s = hub_age_s(entry["connected_at"].as_u64().expect("Unix seconds"));
    assert!((0..60).contains(&age_s), "{age_s}");
    assert_eq!(entries[&anonymous_id]["user"], "");
    let is_raw = |entry: &&serde_json::Value| entry["transport"] == "raw";
    assert_eq!(entries.values().filter(is_raw).count(), 1);
    for left_ms in left_ms(&redis, "ws:conn:").values() {
        assert!((LIFE_MS - 30_000..=LIFE_MS).contains(left_ms), "{left_ms}");
    }

    // In good order, by a reset, and by a close.
    drop(anonymous);
    raw.reset();
    assert_registered(&redis, 1);
    assert_eq!(connections(&redis).keys().collect::<Vec<_>>(), [&id]);
}

fn hub_age_s(connected_at_s: u64) -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    now.as_secs() as i64 - connected_at_s as i64
}

/// A lap is 75 s; of so many connections some are due every moment.
#[test]
fn entries_are_renewed_before_they_expire() {
    let redis = Redis::start();
    let hub = Hub::on(&redis);
    let mut clients: Vec<Cf> = (0..scaled(150, 2_000)).map(|_| Cf::connect(&hub)).collect();
    assert_registered(&redis, clients.len());
    let (began, first) = (Instant::now(), left_ms(&redis, "ws:conn:"));
    let n_renewed = || {
        let (passed_ms, now) = (began.elapsed().as_millis() as i64, left_ms(&redis, "ws:conn:"));
        now.iter().filter(|(key, left)| **left > first[*key] - passed_ms + 1_000).count()
    };
    assert!(eventually(secs(20), || n_renewed() >= 10), "{} of {}", n_renewed(), clients.len());
    let n_writes = hub.metric_sum("hubbub_registry_writes_total") as usize;
    // Not all at once: a lap's share of what time has passed, and the first writes.
    assert!(n_writes <= clients.len() * 3 / 2, "{n_writes} writes for {}", clients.len());
    assert!(!drive(&mut clients, ms(1), |cf| cf.raw.is_closed()));
}

#[test]
fn a_node_that_is_killed_leaves_nothing_that_does_not_expire() {
    let redis = Redis::start();
    let (mut a, b) = (Hub::on(&redis), Hub::on(&redis));
    let _on_a: Vec<Cf> = (0..20).map(|_| Cf::connect(&a)).collect();
    let (_on_b, id) = connect(&b, "");
    assert_registered(&redis, 21);
    a.signal(libc::SIGKILL);
    assert!(a.wait_exit(SOON).is_some());
    for kind in ["ws:conn:", "ws:instance:"] {
        for (key, left_ms) in left_ms(&redis, kind) {
            assert!((1..=LIFE_MS).contains(&left_ms), "{key}: {left_ms} ms");
        }
    }
    let life = secs(scaled(1, 125) as u64);
    if eventually(life, || n_connections(&redis) == 1) {
        assert_eq!(connections(&redis).keys().collect::<Vec<_>>(), [&id]);
        assert_eq!(nodes(&redis).len(), 1);
    } else {
        assert_eq!(scaled(1, 2), 1, "they outlive their time");
    }
}

#[test]
fn a_drained_node_takes_all_of_its_own_along() {
    let redis = Redis::start();
    let node = || Hub::builder().redis(&redis).env("HUB_DRAIN_TIMEOUT", "1s").start().wait_ready();
    let (mut a, b) = (node(), node());
    let n_clients = scaled(150, 5_000);
    let mut clients: Vec<Cf> = (0..n_clients).map(|_| Cf::connect(&a)).collect();
    // They never read: the drain gives them up.
    let filler = "x".repeat(50_000);
    let _stalled: Vec<Raw> =
        (0..3).map(|_| Dial::new(&a, &raw_path(&["big"])).rcvbuf(4096).open()).collect();
    let (_on_b, id) = connect(&b, "");
    assert!(eventually(secs(30), || n_connections(&redis) == n_clients + 4));
    (0..10).for_each(|_| a.publish("big", filler.as_str()));
    a.signal(libc::SIGTERM);
    drive(&mut clients, SOON, |cf| cf.raw.is_closed());
    assert_eq!(a.wait_exit(secs(6)).expect("in time").code(), Some(0));
    assert_eq!(connections(&redis).keys().collect::<Vec<_>>(), [&id], "at its exit");
    assert_eq!(nodes(&redis).len(), 1);
}

#[test]
fn a_redis_that_hangs_does_not_hold_up_the_exit() {
    let redis = Redis::start();
    let builder = Hub::builder().redis(&redis).env("HUB_DRAIN_TIMEOUT", "1s");
    let mut hub = builder.start().wait_ready();
    let _cf = Cf::connect(&hub);
    assert_registered(&redis, 1);
    redis.stop();
    hub.signal(libc::SIGTERM);
    assert_eq!(hub.wait_exit(secs(6)).expect("in time").code(), Some(0));
    redis.cont();
}

#[test]
fn coming_and_going_leaves_no_entry() {
    let redis = Redis::start();
    let hub = Hub::on(&redis);
    let _stay = Cf::connect(&hub);
    let began = Instant::now();
    let mut n_visitors = 0;
    let mut vanished = Vec::new();
    while began.elapsed() < secs(scaled(2, 60) as u64) {
        let cf = Cf::connect(&hub);
        match n_visitors % 3 {
            0 => drop(cf),
            1 => cf.raw.reset(),
            _ if n_visitors < 60 => {
                sys::vanish(cf.raw.fd());
                vanished.push(cf);
            }
            _ => {}
        }
        n_visitors += 1;
    }
    vanished.into_iter().for_each(|cf| cf.raw.reset());
    assert!(eventually(SOON, || hub.metric_sum("hubbub_registry_connections") <= 21.0));
    println!("{n_visitors} came and went");
    assert!(n_visitors >= 50, "{n_visitors} are no churn");
    let is_level = || {
        let n = hub.metric_sum("hubbub_connections");
        n == hub.metric_sum("hubbub_registry_connections") && n == n_connections(&redis) as f64
    };
    assert!(eventually(SOON, is_level), "{} are registered", n_connections(&redis));
    assert!(eventually(SOON, || hub.metric_sum("hubbub_registry_waiting") == 0.0));
}

#[test]
fn a_redis_that_lost_all_has_all_again_and_nobody_waits_for_it() {
    let mut redis = Redis::start();
    let hub = Hub::on(&redis);
    let clients: Vec<Cf> = (0..scaled(500, 5_000)).map(|_| Cf::connect(&hub)).collect();
    let mut viewer = Cf::subscribed(&hub, &["a"]);
    let n = clients.len() + 1;
    assert!(eventually(SOON, || n_connections(&redis) == n));
    // The node hears of this with its next heartbeat, of the restart with the link.
    redis.command(&["FLUSHALL"]);
    assert!(eventually(secs(20), || n_connections(&redis) == n), "{}", n_connections(&redis));
    redis.restart();
    let mut try_publish = |n: u32, patience| {
        let response = hub.api("publish", &json!({ "channel": "a", "data": n }));
        let is_it = |publication: common::Pub| publication.data == n.to_string();
        response.is_result() && eventually(patience, || viewer.next_pub(ms(5)).is_some_and(is_it))
    };
    assert!(eventually(SOON, || try_publish(0, ms(100))), "both links are back");
    let (mut longest, mut n_published) = (ms(0), 0);
    while n_connections(&redis) < n {
        let began = Instant::now();
        n_published += 1;
        assert!(try_publish(n_published, SOON));
        longest = longest.max(began.elapsed());
    }
    assert_eq!(nodes(&redis).len(), 1);
    println!("a delivery took at most {longest:?} meanwhile");
    assert!(longest < secs(1), "{longest:?}");
    assert!(hub.log_has("the node was gone from the registry"));
}

#[test]
fn two_environments_see_nothing_of_each_other() {
    let redis = Redis::start();
    let node = |prefix: &str| {
        let builder = Hub::builder().redis(&redis).env("HUB_REDIS_PREFIX", prefix);
        builder.env("HUB_NODE_ID", "same").start().wait_ready()
    };
    // A prefix is no pattern, and may be the beginning of another.
    let prefixes = ["p1:", "p1:*", "p[1]:"];
    let hubs = prefixes.map(node);
    let clients = [0, 1, 2].map(|at| connect(&hubs[at], ""));
    let all =
        || prefixes.iter().all(|prefix| !keys(&redis, &escape(prefix), "ws:conn:").is_empty());
    assert!(eventually(SOON, all));
    for (hub, (_, id)) in hubs.iter().zip(&clients) {
        let connections =
            hub.api("connections", &json!({})).json()["result"]["connections"].clone();
        assert_eq!(connections.as_array().expect("a list").len(), 1, "{connections}");
        assert_eq!(connections[0]["client"], *id.as_str());
        let nodes = hub.api("nodes", &json!({})).json()["result"]["nodes"].clone();
        assert_eq!(nodes.as_array().expect("a list").len(), 1, "{nodes}");
        for (_, other) in clients.iter().filter(|(_, other)| other != id) {
            let found = hub.api("where", &json!({ "client": other })).json();
            assert!(found["result"]["connection"].is_null(), "{found}");
        }
    }
    let foreign = keys(&redis, "", "").into_iter().filter(|key| !key.starts_with('p'));
    assert_eq!(foreign.collect::<BTreeSet<_>>(), BTreeSet::new());
}

fn escape(prefix: &str) -> String {
    prefix.replace('[', "\\[").replace('*', "\\*")
}

#[test]
fn without_a_registry_there_is_no_entry_and_no_answer() {
    let redis = Redis::start();
    let off = Hub::builder().redis(&redis).env("HUB_REGISTRY", "off").env("HUB_NODE_ID", "n");
    let hubs = [off.start().wait_ready(), Hub::start()];
    let _clients: Vec<Cf> = hubs.iter().map(Cf::connect).collect();
    // What a registering node does meanwhile, these don't.
    let on = Hub::on(&redis);
    let _cf = Cf::connect(&on);
    assert_registered(&redis, 1);
    assert_eq!(nodes(&redis).len(), 1);
    for hub in &hubs {
        for (method, body) in [("nodes", json!({})), ("where", json!({ "client": uuid() }))] {
            let answer = hub.api(method, &body).json();
            assert_eq!(answer["error"]["code"], 108, "{method}: {answer}");
        }
        assert_eq!(hub.metric_sum("hubbub_registry_connections"), 0.0);
    }
}

fn uuid() -> &'static str {
    "5f9b4a3e-64a1-4a0c-9c0e-1f6a6a2f0b11"
}

/// A registry that can't be written is a metric and a line of the log, and no reason to send clients
/// elsewhere.
#[test]
fn a_redis_that_takes_no_entries_costs_the_registry_alone() {
    let redis = Redis::start();
    let hub = Hub::on(&redis);
    let _early = Cf::connect(&hub);
    assert_registered(&redis, 1);
    redis.config_set("maxmemory-policy", "noeviction");
    redis.config_set("maxmemory", "1");
    let mut viewer = Cf::subscribed(&hub, &["a"]);
    assert!(eventually(secs(15), || hub.metric_sum("hubbub_registry_up") == 0.0));
    let metrics = hub.metrics();
    assert!(metrics.sum("hubbub_registry_failures_total") >= 1.0);
    assert_eq!(metrics.sum("hubbub_redis_up"), 2.0, "a state of its own");
    assert!(hub.ready() && hub.get("/health").status == 200);
    redis.publish("a", "1");
    assert_eq!(viewer.next_pub(SOON).expect("delivered").data, "1");
    assert!(hub.log_has("the registry can't be written"));
    redis.config_set("maxmemory", "0");
    assert!(eventually(secs(15), || hub.metric_sum("hubbub_registry_up") == 1.0));
    assert!(hub.log_has("in the registry again"));
}
