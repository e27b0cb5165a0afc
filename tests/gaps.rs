//! Promise: what a subscriber misses inside the node, or while Redis is away, it is told of before
//! it sees anything later, if its namespace asks for that; and it is counted in any case.

mod common;

use common::cf::subscribe;
use common::{Cf, Close, Hub, Proxy, QUIET, Raw, Redis, SOON, eventually, ms, scaled};
use serde_json::{Value, json};
use std::io::Write;

const NAMESPACES: &str = "[namespaces.told]\ngap = \"resubscribe\"\n[namespaces.\"*\"]\n";

fn namespaces() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(NAMESPACES.as_bytes()).expect("written");
    file
}

fn is_2500(line: &Value) -> bool {
    line["push"]["unsubscribe"] == json!({ "code": 2500, "reason": "insufficient state" })
}

#[test]
fn a_lost_link_is_told_once_it_is_back() {
    let (redis, file) = (Redis::start(), namespaces());
    let proxy = Proxy::start(redis.addr());
    let hub = Hub::builder()
        .env("HUB_REDIS_URL", proxy.url())
        .env("HUB_CONFIG", file.path().display())
        .start()
        .wait_ready();
    let mut told = Cf::subscribed(&hub, &["told:a", "quiet:a"]);
    let mut raw = Raw::open(&hub, &["told:a"]);
    let mut quiet = Raw::open(&hub, &["quiet:a"]);
    proxy.refuse(true);
    proxy.cut();
    assert!(eventually(SOON, || !hub.ready()));
    redis.publish("told:a", "missed");
    proxy.refuse(false);
    let push = told.next_push(SOON).expect("told");
    assert!(is_2500(&push) && push["push"]["channel"] == "told:a", "{push}");
    let expected = Close { code: 3010, reason: "insufficient state".to_owned() };
    assert_eq!(raw.next_close(SOON), Some(expected));
    told.subscribe("told:a");
    redis.publish("told:a", "1");
    redis.publish("quiet:a", "2");
    for data in ["1", "2"] {
        assert_eq!(told.next_pub(SOON).expect("on it goes").data, data);
    }
    assert_eq!(quiet.next_data(SOON).expect("not told").text(), "2");
    assert!(told.pushes.is_empty() && told.stays_quiet(QUIET), "once, and only there");
    assert!(hub.metrics().get("hubbub_gaps_total{reason=\"link_lost\"}") >= 2.0);
    assert!(eventually(SOON, || hub.log_has("publications were lost")));
}

/// A mailbox of three items under a burst.
#[test]
fn an_overflow_is_told_before_the_next_publication() {
    let (redis, file) = (Redis::start(), namespaces());
    let hub = Hub::builder()
        .redis(&redis)
        .env("HUB_CONFIG", file.path().display())
        .env("HUB_MAILBOX_MAX", 3)
        .start()
        .wait_ready();
    let mut cf = Cf::subscribed(&hub, &["told:a"]);
    let mut publisher = redis.client();
    let mut n_published = 0;
    let n_bursts = scaled(20, 200);
    let (mut n_read, mut last, mut n_told, mut n_missed) = (0, None, 0, 0);
    let mut is_announced = false;
    for _ in 0..n_bursts {
        let burst: Vec<String> = (n_published..n_published + 200).map(|n| n.to_string()).collect();
        let burst = burst.iter().map(|payload| ("told:a", payload.as_bytes()));
        publisher.publish_all(burst);
        n_published += 200;
        let mut is_done = false;
        while !is_done {
            cf.wait(ms(150), |cf| cf.log.len() > n_read);
            if cf.log.len() == n_read {
                break;
            }
            let text = cf.log[n_read].text.clone();
            n_read += 1;
            for line in text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
            {
                if is_2500(&line) {
                    is_announced = true;
                    n_told += 1;
                    cf.send(vec![subscribe("told:a")]);
                } else if let Some(n) = line["push"]["pub"]["data"].as_u64() {
                    let expected = last.map_or(0, |last: u64| last + 1);
                    assert!(n >= expected, "{n} after {last:?}");
                    assert!(n == expected || is_announced, "{expected} to {n} went by untold");
                    n_missed += n - expected;
                    is_announced = false;
                    last = Some(n);
                    is_done = n + 1 == n_published as u64;
                }
            }
        }
    }
    println!("{n_missed} of {n_published} missed, told {n_told} times");
    assert!(n_missed > 0 && n_told > 0, "the mailbox never overflowed: no test");
    assert!(hub.metrics().get("hubbub_gaps_total{reason=\"mailbox_full\"}") > 0.0);
    // The hub goes on.
    let mut fresh = Cf::subscribed(&hub, &["told:b"]);
    redis.publish("told:b", "\"fresh\"");
    assert_eq!(fresh.next_pub(SOON).expect("live").data, "\"fresh\"");
}
