//! Promise: a node that can't deliver says so at `/ready` within 15 s, and by a metric of its own for each
//! cause; `/health` doesn't flap meanwhile, what still works goes on working, and all is green again once
//! the cause is gone. (Scenario 55; the registry's part is in `registry`, that of the descriptors in `files`.)

mod common;

use common::sys::Halted;
use common::{Cf, Hub, Link, Proxy, Redis, SOON, drive, eventually, ms, scaled, secs};
use serde_json::json;
use std::time::{Duration, Instant};

/// How soon a node has to notice.
const NOTICED: Duration = Duration::from_secs(15);
/// The longest pause between two dials, what dialling takes, and a bit.
const GREEN_AGAIN: Duration = Duration::from_secs(15);
/// How long a node that isn't ready is watched for saying that it were.
const STEADY: Duration = Duration::from_secs(4);

/// The gauges that are 1 as long as all is well.
const GREEN: [&str; 6] = [
    "hubbub_shard_up{shard=\"0\"}",
    "hubbub_shard_up{shard=\"1\"}",
    "hubbub_broker_up",
    "hubbub_redis_up{link=\"pubsub\"}",
    "hubbub_redis_up{link=\"command\"}",
    "hubbub_registry_up",
];

fn node(proxy: &Proxy) -> Hub {
    let builder = Hub::builder().env("HUB_SHARDS", 2).env("HUB_REDIS_URL", proxy.url());
    let hub = builder.start().wait_ready();
    assert!(eventually(SOON, || red(&hub).is_empty()), "{:?}", red(&hub));
    hub
}

/// Gauges that tell of something.
fn red(hub: &Hub) -> Vec<&'static str> {
    let metrics = hub.metrics();
    GREEN.into_iter().filter(|name| metrics.get(name) != 1.0).collect()
}

/// These soon, and no others.
#[track_caller]
fn assert_red(hub: &Hub, expected: &[&str]) {
    assert!(eventually(SOON, || red(hub) == expected), "{:?}, and not {expected:?}", red(hub));
}

/// Until it says that it isn't ready: how long that took, and why it isn't.
fn until_unready(hub: &Hub) -> String {
    let began = Instant::now();
    loop {
        assert_eq!(hub.get("/health").status, 200, "alive after {:?}", began.elapsed());
        let ready = hub.get("/ready");
        if ready.status == 503 {
            println!("{} after {:?}", ready.text().trim(), began.elapsed());
            return ready.text();
        }
        assert!(began.elapsed() < NOTICED, "it says nothing");
        drive::<Cf>(&mut [], ms(20), |_| false);
    }
}

/// It is alive, and doesn't change its mind about being ready.
fn stays_unready(hub: &Hub, how_long: Duration) {
    let began = Instant::now();
    while began.elapsed() < how_long {
        assert_eq!(hub.get("/health").status, 200, "alive");
        assert_eq!(hub.get("/ready").status, 503, "after {:?}", began.elapsed());
    }
}

#[track_caller]
fn hears(cf: &mut Cf, data: &str) {
    let mut next = || cf.next_pub(SOON).expect("delivered").data;
    assert!(eventually(SOON, || next() == data), "{data}");
}

#[test]
fn the_pubsub_link_is_dead_and_the_command_link_works() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.addr());
    let hub = node(&proxy);
    let mut viewer = Cf::subscribed(&hub, &["a"]);
    proxy.blackhole_link(Some(Link::PubSub));
    assert!(until_unready(&hub).contains("pub/sub link"));
    assert_red(&hub, &["hubbub_redis_up{link=\"pubsub\"}"]);
    stays_unready(&hub, STEADY);
    // Other nodes' viewers get what is published here.
    let elsewhere = Hub::on(&redis);
    let mut other = Cf::subscribed(&elsewhere, &["a"]);
    hub.publish("a", "elsewhere");
    hears(&mut other, "\"elsewhere\"");

    proxy.blackhole_link(None);
    assert!(eventually(GREEN_AGAIN, || hub.ready()), "{}", hub.get("/ready").text());
    assert_red(&hub, &[]);
    assert!(eventually(SOON, || redis.numsub("a") == 2));
    redis.publish("a", "again");
    hears(&mut viewer, "\"again\"");
}

#[test]
fn the_command_link_is_dead_and_the_pubsub_link_works() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.addr());
    let hub = node(&proxy);
    let mut viewer = Cf::subscribed(&hub, &["a"]);
    proxy.blackhole_link(Some(Link::Command));
    assert!(until_unready(&hub).contains("command link"));
    let command = "hubbub_redis_up{link=\"command\"}";
    // By this link the registry is written too, if it was its time.
    let is_told =
        || matches!(&red(&hub)[..], [first] | [first, "hubbub_registry_up"] if *first == command);
    assert!(eventually(SOON, is_told), "{:?}", red(&hub));
    stays_unready(&hub, STEADY);
    let refused = hub.api("publish", &json!({ "channel": "a", "data": 1 }));
    assert!(refused.is_retryable(), "{}", refused.text());
    // What others publish is still delivered, by a link that is none the worse.
    redis.publish("a", "live");
    hears(&mut viewer, "\"live\"");
    assert!(is_told(), "{:?}", red(&hub));

    proxy.blackhole_link(None);
    assert!(eventually(GREEN_AGAIN, || hub.ready()), "{}", hub.get("/ready").text());
    assert_red(&hub, &[]);
    hub.publish("a", "again");
    hears(&mut viewer, "\"again\"");
}

/// The shard that the next client of `hub` comes to.
fn open(hub: &Hub) -> (usize, Cf) {
    let per_shard = || {
        let metrics = hub.metrics();
        [0, 1].map(|shard| metrics.get(&format!("hubbub_connections{{shard=\"{shard}\"}}")))
    };
    let before = per_shard();
    let cf = Cf::subscribed(hub, &["a"]);
    assert!(eventually(SOON, || per_shard() != before));
    (usize::from(per_shard()[1] > before[1]), cf)
}

#[test]
fn a_shard_is_blocked_and_the_others_work() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.addr());
    let hub = node(&proxy);
    // All stay: who left meanwhile would hide who came.
    let mut clients = [Vec::new(), Vec::new()];
    while clients.iter().any(Vec::is_empty) {
        let (shard, cf) = open(&hub);
        clients[shard].push(cf);
    }
    let [mut on_0, mut on_1] = clients;
    let blocked = Halted::thread(hub.pid(), "shard-1");
    // Who asks that shard, as half do until it is known to be blocked, gets no answer: as good as a no.
    let began = Instant::now();
    while hub.try_get_within("/ready", ms(500)).is_ok_and(|ready| ready.status == 200) {
        assert!(began.elapsed() < NOTICED, "it says nothing");
    }
    println!("not ready after {:?}", began.elapsed());
    let is_answered = || hub.try_get_within("/ready", ms(500)).is_ok();
    assert!(eventually(secs(4), || (0..20).all(|_| is_answered())));
    // From then on everybody is answered.
    stays_unready(&hub, STEADY);
    assert_red(&hub, &["hubbub_shard_up{shard=\"1\"}"]);
    assert!(hub.get("/ready").text().contains("shard"));
    let mut fresh: Vec<Cf> = (0..20).map(|_| Cf::subscribed(&hub, &["a"])).collect();
    redis.publish("a", "1");
    on_0.iter_mut().for_each(|cf| hears(cf, "1"));
    fresh.iter_mut().for_each(|cf| hears(cf, "1"));
    if scaled(0, 1) == 1 {
        assert!(eventually(secs(40), || hub.get("/health").status == 503), "stuck");
    }

    drop(blocked);
    assert!(eventually(SOON, || hub.ready()));
    assert_eq!(hub.get("/health").status, 200);
    assert_red(&hub, &[]);
    on_1.iter_mut().for_each(|cf| hears(cf, "1"));
    redis.publish("a", "2");
    for cf in on_0.iter_mut().chain(&mut on_1).chain(&mut fresh) {
        hears(cf, "2");
    }
}
