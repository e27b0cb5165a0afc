//! Promise: two live nodes never share a `HUB_NODE_ID`, and one that crashed has its own again at once or
//! a few seconds later, with nothing of what it was before. (Scenarios 43 and 45, as far as they are about
//! the registry.)

mod common;

use common::registry::{connect, connections, left_ms, nodes};
use common::{Cf, Hub, Redis, SOON, eventually, ms, secs};
use std::time::Instant;

const EXIT_UNAVAILABLE: i32 = 69;

fn named(redis: &Redis) -> common::hub::Builder {
    Hub::builder().redis(redis).env("HUB_NODE_ID", "pod-0")
}

fn run_id(redis: &Redis) -> String {
    nodes(redis)["pod-0"]["run_id"].as_str().expect("a run_id").to_owned()
}

#[test]
fn a_second_one_that_lives_is_refused() {
    let redis = Redis::start();
    let hub = named(&redis).start().wait_ready();
    let _cf = Cf::connect(&hub);
    let before = run_id(&redis);
    let knobs = [
        ("HUB_DEV", "true"),
        ("HUB_LISTEN", "127.0.0.1:0"),
        ("HUB_REDIS_URL", &redis.url()),
        ("HUB_NODE_ID", "pod-0"),
    ];
    let mut second = common::hub::command();
    second.envs(knobs).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let began = Instant::now();
    let second = second.spawn().expect("it starts").wait_with_output().expect("it ends");
    println!("refused after {:?}", began.elapsed());
    let log = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(EXIT_UNAVAILABLE), "{log}");
    assert!(
        log.contains("another live node has this HUB_NODE_ID") && log.contains(&before),
        "{log}"
    );
    assert!(second.stdout.is_empty(), "it never listened: {:?}", second.stdout);
    assert!(began.elapsed() < secs(15));
    assert_eq!(run_id(&redis), before, "untouched");
    assert!(hub.ready());
    assert_eq!(hub.metric_sum("hubbub_registry_conflict"), 0.0);
}

#[test]
fn one_that_crashed_is_back_soon_and_inherits_nothing() {
    let redis = Redis::start();
    let mut hub = named(&redis).start().wait_ready();
    let (_cf, old) = connect(&hub, "");
    assert!(eventually(SOON, || connections(&redis).len() == 1));
    let before = run_id(&redis);
    hub.signal(libc::SIGKILL);
    assert!(hub.wait_exit(SOON).is_some());

    let began = Instant::now();
    // It listens only once its id is sure, which takes longer than a start usually does.
    let started = named(&redis).start_within(secs(25)).wait_ready();
    println!("back after {:?}", began.elapsed());
    assert!(began.elapsed() < secs(20), "not locked out");
    let after = run_id(&redis);
    assert_ne!(after, before);
    let (_cf, new) = connect(&started, "");
    assert!(eventually(SOON, || connections(&redis).contains_key(&new)));
    let entries = connections(&redis);
    assert_eq!(entries[&new]["run_id"], *after);
    // What the old one left is the old one's, until it expires.
    assert_eq!(entries[&old]["run_id"], *before);
    let found = started.api("where", &serde_json::json!({ "client": old })).json();
    assert!(
        found["result"]["connection"].is_object() && found["result"]["node"].is_null(),
        "{found}"
    );
}

#[test]
fn one_that_ended_in_good_order_is_back_at_once() {
    let redis = Redis::start();
    let mut hub = named(&redis).start().wait_ready();
    hub.signal(libc::SIGTERM);
    assert_eq!(hub.wait_exit(SOON).expect("in time").code(), Some(0));
    assert!(nodes(&redis).is_empty());
    let began = Instant::now();
    let _hub = named(&redis).start().wait_ready();
    assert!(began.elapsed() < secs(5), "{:?}", began.elapsed());
}

#[test]
fn who_could_not_ask_at_its_start_serves_and_says_so_and_never_overwrites() {
    let mut redis = Redis::absent();
    let hubs = [named(&redis).start(), named(&redis).start()];
    assert!(hubs.iter().all(|hub| !hub.ready()));
    redis.restart();
    assert!(eventually(SOON, || hubs.iter().all(Hub::ready)));
    let in_conflict = |hub: &Hub| hub.metric_sum("hubbub_registry_conflict") == 1.0;
    assert!(eventually(SOON, || hubs.iter().any(in_conflict)));
    let (loser, holder) =
        if in_conflict(&hubs[0]) { (&hubs[0], &hubs[1]) } else { (&hubs[1], &hubs[0]) };
    assert!(!in_conflict(holder) && loser.log_has("another live node has this HUB_NODE_ID"));
    let mut cf = Cf::subscribed(loser, &["a"]);
    redis.publish("a", "1");
    assert!(cf.next_pub(SOON).is_some(), "it serves all the same");

    let held = run_id(&redis);
    let deadline = Instant::now() + secs(12);
    while Instant::now() < deadline {
        assert_eq!(run_id(&redis), held, "over a renewal of both");
        common::sys::pause(ms(100));
    }
    // Once the other is gone, the id is free.
    holder.signal(libc::SIGTERM);
    let is_taken = || nodes(&redis).get("pod-0").is_some_and(|node| node["run_id"] != *held);
    assert!(eventually(secs(20), is_taken));
    assert!(eventually(SOON, || !in_conflict(loser)));
}

#[test]
fn a_node_lives_as_long_as_it_shows_it() {
    let redis = Redis::start();
    let hub = named(&redis).start().wait_ready();
    let mut lowest = i64::MAX;
    let deadline = Instant::now() + secs(12);
    while Instant::now() < deadline {
        let left = left_ms(&redis, "ws:instance:")["ws:instance:pod-0"];
        lowest = lowest.min(left);
        common::sys::pause(ms(50));
    }
    assert!((15_001..=21_000).contains(&lowest), "renewed every 10 s of 30: {lowest} ms left");
    let _cf = Cf::subscribed(&hub, &["a", "b"]);
    let says_so = || {
        let node = &nodes(&redis)["pod-0"];
        node["connections"] == 1 && node["channels"] == 2
    };
    assert!(eventually(secs(15), says_so), "{:?}", nodes(&redis));
    let node = &nodes(&redis)["pod-0"];
    assert_eq!(node["shards"], common::hub::n_shards() as u64);
    assert_eq!(node["version"], env!("CARGO_PKG_VERSION"));
    assert!(node["uptime"].as_u64().is_some_and(|s| s >= 10), "{node}");
}
