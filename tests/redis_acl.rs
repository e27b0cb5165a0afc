//! Promise: a Redis user that may not do everything costs what it may not do, and nothing else.

mod common;

use common::cf::{Cf, subscribe};
use common::{Hub, Redis, SOON, eventually};

/// A node whose Redis user may subscribe to what begins with `open`, beside the hub's own.
fn confined(redis: &Redis) -> Hub {
    let own = ["on", ">secret", "+@all", "~*", "&open*", "&ws:*"];
    let reply =
        redis.command(&[&["ACL", "SETUSER", "confined", "resetchannels"], &own[..]].concat());
    assert_eq!(reply.text(), "OK");
    let url = format!("redis://confined:secret@{}", redis.addr());
    Hub::builder().env("HUB_REDIS_URL", url).start().wait_ready()
}

#[test]
fn a_channel_that_redis_forbids_harms_no_other() {
    let redis = Redis::start();
    let hub = confined(&redis);
    let mut viewer = Cf::subscribed(&hub, &["open:a"]);
    let connects = hub.metric_sum("hubbub_redis_connects_total");
    // In one batch with others, and again and again.
    for round in 0..5 {
        let mut cf = Cf::connect(&hub);
        let names = [format!("open:{round}"), "closed".to_owned(), format!("open:b{round}")];
        let ids = cf.send(names.iter().map(|name| subscribe(name)).collect());
        for (name, id) in names.iter().zip(ids) {
            let reply = cf.reply(id, SOON).expect("answered");
            assert_eq!(reply["subscribe"].is_object(), name != "closed", "{name}: {reply}");
        }
        redis.publish("closed", "\"closed\"");
        redis.publish(&names[2], "\"open\"");
        assert_eq!(cf.next_pub(SOON).expect("the open one works").channel, names[2]);
        redis.publish("open:a", "\"still\"");
        assert_eq!(viewer.next_pub(SOON).expect("it was never cut").data, "\"still\"");
    }
    assert_eq!(hub.metric_sum("hubbub_redis_connects_total"), connects, "the links held");
    assert_eq!(hub.metric_sum("hubbub_gaps_total"), 0.0);
    assert!(hub.metric_sum("hubbub_redis_refused_total") >= 5.0);
}

#[test]
fn a_channel_that_is_forbidden_later_does_not_hold_up_the_others() {
    let redis = Redis::start();
    let hub = confined(&redis);
    let mut viewer = Cf::subscribed(&hub, &["open:a", "open:b"]);
    // Redis cuts who is subscribed to what it now forbids.
    redis.command(&["ACL", "SETUSER", "confined", "resetchannels", "&open:a", "&ws:*"]);
    assert!(eventually(SOON, || hub.metric_sum("hubbub_redis_refused_total") >= 1.0));
    let mut second = None;
    assert!(eventually(SOON, || {
        let mut cf = Cf::connect(&hub);
        let subscribed = cf.command(subscribe("open:a"))["subscribe"].is_object();
        second = subscribed.then_some(cf);
        subscribed
    }));
    redis.publish("open:a", "1");
    assert_eq!(viewer.next_pub(SOON).expect("subscribed again").data, "1");
    assert_eq!(second.unwrap().next_pub(SOON).expect("subscribed").data, "1");
}
