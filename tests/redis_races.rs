//! Promise: the lazy subscriptions towards Redis never lose a viewer or leave one behind, however
//! slow the link, whatever the order of events, and whatever comes down the link.

mod common;

use common::cf::{Cf, subscribe, unsubscribe};
use common::ledger::{Kind, payload};
use common::proxy::Slice;
use common::redis::Reply;
use common::ws::{Dial, raw_path};
use common::{
    Direction, Hub, Ledger, Proxy, QUIET, Raw, Redis, Rng, SOON, Viewer, drive, eventually, ms,
    scaled, secs, sys,
};
use serde_json::{Value, json};
use std::time::Duration;

/// A node that reaches Redis through the proxy and does not linger on unsubscribed channels.
fn hub_behind(proxy: &Proxy) -> Hub {
    // One client flips thousands of times, which is not what the limit is against.
    let builder = Hub::builder().env("HUB_REDIS_URL", proxy.url()).env("HUB_COMMAND_RATE", "off");
    // Nobody answers a ping while thousands of viewers are opened one by one.
    let builder = builder.env("HUB_PING_INTERVAL", "10m");
    builder.env("HUB_UNSUBSCRIBE_DELAY", "1ms").start()
}

fn delay_both(proxy: &Proxy, max: Duration) {
    proxy.delay(Direction::Up, ms(0), max);
    proxy.delay(Direction::Down, ms(0), max);
}

/// The channels that Redis holds for clients.
fn client_channels(redis: &Redis) -> Vec<String> {
    let mut channels = redis.channels("*");
    channels.retain(|channel| !channel.starts_with("ws:"));
    channels.sort();
    channels
}

/// The publication of this round, after which nothing of an earlier round may come.
fn expect_round(cf: &mut Cf, round: usize) {
    let publication = cf.next_pub(SOON).unwrap_or_else(|| panic!("round {round} is lost"));
    assert_eq!(publication.data, round.to_string());
}

#[test]
fn the_last_viewer_leaves_as_the_next_one_arrives() {
    let mut rng = Rng::seeded();
    let redis = Redis::start();
    let proxy = Proxy::start(redis.addr());
    let hub = hub_behind(&proxy).wait_ready();
    let mut redis_client = redis.client();
    let (mut leaving, mut arriving) = (Cf::connect(&hub), Cf::connect(&hub));
    leaving.subscribe("flip");
    delay_both(&proxy, ms(50));
    for round in 0..scaled(300, 5_000) {
        let apart = Duration::from_micros(rng.between(0, 2_000));
        let (left, arrived) = if rng.between(0, 1) == 0 {
            let left = leaving.send(vec![unsubscribe("flip")])[0];
            sys::pause(apart);
            (left, arriving.send(vec![subscribe("flip")])[0])
        } else {
            let arrived = arriving.send(vec![subscribe("flip")])[0];
            sys::pause(apart);
            (leaving.send(vec![unsubscribe("flip")])[0], arrived)
        };
        let reply = arriving.reply(arrived, SOON).expect("subscribed");
        assert!(reply["subscribe"].is_object(), "round {round}: {reply}");
        redis_client.publish("flip", round.to_string().as_bytes());
        expect_round(&mut arriving, round);
        let reply = leaving.reply(left, SOON).expect("unsubscribed");
        assert!(reply["unsubscribe"].is_object(), "round {round}: {reply}");
        leaving.pubs.clear();
        std::mem::swap(&mut leaving, &mut arriving);
    }
    leaving.unsubscribe("flip");
    assert!(eventually(SOON, || redis.numsub("flip") == 0), "everyone has left");
}

#[test]
fn one_client_flips_a_subscription_quickly() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.addr());
    let hub = hub_behind(&proxy).wait_ready();
    proxy.delay(Direction::Up, ms(20), ms(20));
    proxy.delay(Direction::Down, ms(20), ms(20));
    let mut redis_client = redis.client();
    let mut cf = Cf::connect(&hub);
    for round in 0..scaled(50, 1_000) {
        cf.reply_order.clear();
        let flips = vec![subscribe("flip"), unsubscribe("flip"), subscribe("flip")];
        let ids: Vec<u32> = if round % 2 == 0 {
            cf.send(flips)
        } else {
            flips.into_iter().flat_map(|flip| cf.send(vec![flip])).collect()
        };
        for id in &ids {
            let reply = cf.reply(*id, SOON).expect("each is answered");
            assert!(reply.get("error").is_none(), "round {round}: {reply}");
        }
        assert_eq!(cf.reply_order, ids, "the order a sequential server gives");
        redis_client.publish("flip", round.to_string().as_bytes());
        expect_round(&mut cf, round);
        cf.unsubscribe("flip");
    }
    assert!(cf.stays_quiet(QUIET), "each came once");
    assert!(eventually(SOON, || redis.numsub("flip") == 0));
}

#[test]
fn an_unsubscribe_that_fails_is_made_up_for() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.addr());
    let hub = hub_behind(&proxy).wait_ready();
    let n_channels = scaled(500, 10_000);
    let names: Vec<String> = (0..n_channels).map(|i| format!("c{i}")).collect();
    let mut viewers: Vec<Raw> = names.iter().map(|name| Raw::open(&hub, &[name])).collect();
    assert_eq!(client_channels(&redis).len(), n_channels);

    // Half leave before the cut, some stay; Redis is out of reach until the last is gone.
    viewers.truncate(n_channels / 2);
    proxy.refuse(true);
    proxy.cut();
    viewers.truncate(20);
    assert!(eventually(SOON, || hub.metric_sum("hubbub_subscriptions") == 20.0));
    assert!(eventually(SOON, || proxy.n_refused() >= 3), "it tries again");
    proxy.refuse(false);

    let mut live: Vec<String> = names[..20].to_vec();
    live.sort();
    let exact = || client_channels(&redis) == live;
    assert!(eventually(secs(30), exact), "{} channels", client_channels(&redis).len());
    let payload: &[u8] = b"\"after\"";
    let all = names.iter().map(|name| (name.as_str(), payload));
    let receivers = redis.client().publish_all(all);
    assert!(receivers[..20].iter().all(|n| *n == 1), "who stayed is subscribed: {receivers:?}");
    assert!(receivers[20..].iter().all(|n| *n == 0), "nothing goes to old channels");
    assert!(drive(&mut viewers, SOON, |raw| raw.frames.len() == 1), "who stayed is served");
}

/// Not JSON, of about so many bytes; the two shortest can't say where they belong.
fn crumb_payload(channel: &str, seq: usize, big_every: usize) -> Vec<u8> {
    match seq % 3 {
        _ if seq % big_every == big_every - 1 => payload(channel, seq, Kind::Text, 70_000),
        0 => Vec::new(),
        1 => b"\r".to_vec(),
        _ => payload(channel, seq, Kind::Text, 100),
    }
}

#[test]
fn bytes_from_redis_in_crumbs() {
    const CHANNELS: [&str; 4] = ["w", "x", "y", "z"];
    let redis = Redis::start();
    let proxy = Proxy::start(redis.addr());
    let hub = hub_behind(&proxy).wait_ready();
    let mut viewers: Vec<Viewer> = CHANNELS.iter().map(|name| Viewer::raw(&hub, &[name])).collect();
    viewers.push(Viewer::cf(&hub, &CHANNELS));
    let mut restless = Cf::connect(&hub);
    let (connects, accepted) = (hub.metric_sum("hubbub_redis_connects_total"), proxy.n_accepted());
    let mut ledger = Ledger::new();
    let mut redis_client = redis.client();
    let n_messages = scaled(2_000, 20_000);
    let n_batch = 50;
    for first in (0..n_messages).step_by(n_batch) {
        let single = first < n_messages / 2;
        proxy.slice(Direction::Down, if single { Slice::Of(1, 1) } else { Slice::Of(2, 17) });
        let big_every = if single { 250 } else { 50 };
        let flips = (first..first + 4).flat_map(|i| {
            let name = format!("restless{i}");
            [subscribe(&name), unsubscribe(&name)]
        });
        let ids = restless.send(flips.collect());
        let mut batch = Vec::new();
        for seq in first..first + n_batch {
            // Four in a row per channel, so that every channel has every size.
            let channel = CHANNELS[seq / 4 % CHANNELS.len()];
            let bytes = crumb_payload(channel, seq, big_every);
            ledger.book(channel, bytes.clone());
            batch.push((channel, bytes));
        }
        redis_client.publish_all(batch.iter().map(|(channel, bytes)| (*channel, bytes.as_slice())));
        // Batch by batch: a longer queue in the proxy would only test the health check.
        assert!(ledger.read_all(&mut viewers, secs(30)), "stuck in the batch of {first}");
        for id in ids {
            let reply = restless.reply(id, SOON).expect("answered in between");
            assert!(reply.get("error").is_none(), "{reply}");
        }
    }
    ledger.assert_complete(&viewers);
    assert_eq!(hub.metric_sum("hubbub_redis_connects_total"), connects, "no reconnects");
    assert_eq!(proxy.n_accepted(), accepted);
}

const ENVELOPED: &str = "a payload of some length";

/// What the node itself publishes for this payload, header and all; tags need one.
fn own_envelope(redis: &Redis, hub: &Hub) -> Vec<u8> {
    let mut spy = redis.client();
    spy.command(&["SUBSCRIBE", "spied"]);
    let body = json!({ "channel": "spied", "data": ENVELOPED, "tags": { "key": "value" } });
    assert!(hub.api("publish", &body).is_result());
    match spy.read_reply().expect("the publication") {
        Reply::Array(push) => match push.into_iter().nth(2) {
            Some(Reply::Bytes(bytes)) => bytes,
            other => panic!("a push carries {other:?}"),
        },
        other => panic!("a push is {other:?}"),
    }
}

#[test]
fn foreign_messages_on_a_hub_channel() {
    let redis = Redis::start();
    let hub = Hub::on(&redis);
    let mut raw = Raw::open(&hub, &["a"]);
    let mut cf = Cf::subscribed(&hub, &["a"]);
    let envelope = own_envelope(&redis, &hub);
    assert_eq!(envelope.first(), Some(&0xFF), "what travels beside a payload needs the header");
    let mut huge = envelope.clone();
    let header_bytes = envelope.len() - (ENVELOPED.len() + 2);
    huge[header_bytes / 2..header_bytes].fill(0xFF);
    let lines_before = hub.log().len();
    let dropped = || {
        let metrics = hub.metrics();
        let of = |reason| metrics.get(&format!("hubbub_drops_total{{reason=\"{reason}\"}}"));
        of("bad_envelope") + of("too_large")
    };
    let mut redis_client = redis.client();
    let bad = [&envelope[..header_bytes - 1], &envelope[..header_bytes / 2], &huge];
    let n_repeats = 100;
    for _ in 0..n_repeats {
        bad.iter().for_each(|bytes| _ = redis_client.publish("a", bytes));
    }
    redis_client.publish("a", &vec![b'x'; 5 << 20]);
    let n_bad = (n_repeats * bad.len() + 1) as f64;
    assert!(eventually(SOON, || dropped() == n_bad), "{} of {n_bad} counted", dropped());
    // Plain payloads, odd as they are: raw gets them, JSON what it can carry.
    let plain: [&[u8]; 4] = [b"", &[0xC3, 0x28, 0x00], b"{\"half\":", b"\"good\""];
    for bytes in plain {
        redis_client.publish("a", bytes);
        assert_eq!(raw.next_data(SOON).expect("not cut off").payload, bytes);
    }
    for data in [r#""""#, r#""{\"half\":""#, r#""good""#] {
        let publication = cf.next_pub(SOON).expect("not cut off");
        let parsed = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
        assert_eq!(parsed(&publication.data), parsed(data));
    }
    hub.publish("a", "own");
    assert_eq!(raw.next_data(SOON).expect("own publications work").text(), "\"own\"");
    let n_lines = hub.log().len() - lines_before;
    assert!(n_lines <= 20, "{n_lines} log lines about {n_bad} bad publications");
}

/// Subscribes to a fresh channel and publishes the moment it is answered.
fn fresh_round(hub: &Hub, elsewhere: &Hub, redis: &Redis, cf: &mut Cf, round: usize) {
    let channel = format!("fresh{round}");
    let publish = || {
        if round.is_multiple_of(2) {
            elsewhere.publish(&channel, round);
        } else {
            redis.publish(&channel, round.to_string());
        }
    };
    if round % 5 == 4 {
        // On the raw transport the upgrade's answer is the reply.
        let mut raw = Raw::open(hub, &[&channel]);
        publish();
        let frame = raw.next_data(SOON).unwrap_or_else(|| panic!("round {round} is lost"));
        assert_eq!(frame.text(), round.to_string());
    } else {
        cf.subscribe(&channel);
        publish();
        expect_round(cf, round);
        cf.unsubscribe(&channel);
    }
}

#[test]
fn the_reply_comes_when_the_subscription_is_live() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.addr());
    proxy.delay(Direction::Up, ms(300), ms(300));
    let elsewhere = Hub::on(&redis);
    // The very first command after the start, again while Redis is not reached yet.
    let hub = hub_behind(&proxy);
    let mut cf = Cf::connect(&hub);
    let subscribed = eventually(SOON, || {
        let reply = cf.command(subscribe("first"));
        assert!(reply["error"].is_null() || reply["error"]["code"] == 100, "{reply}");
        reply["subscribe"].is_object()
    });
    assert!(subscribed, "a subscribe is possible soon after the start");
    elsewhere.publish("first", 0);
    expect_round(&mut cf, 0);
    for round in 0..scaled(30, 500) {
        fresh_round(&hub, &elsewhere, &redis, &mut cf, round);
    }
}

#[test]
fn what_waits_for_a_raw_client_s_last_channel_is_bounded() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.addr());
    let builder = Hub::builder().env("HUB_REDIS_URL", proxy.url());
    let builder = builder.env("HUB_PUBLICATION_BYTES_MAX", "64KiB");
    let hub = builder.env("HUB_OUTBOX_BYTES_MAX", "256KiB").start().wait_ready();
    let mut viewer = Raw::open(&hub, &["busy"]);
    // Its SUBSCRIBE to `late` takes two seconds to Redis, and all that time `busy` is busy.
    proxy.delay(Direction::Up, secs(2), secs(2));
    let addr = hub.addr;
    let joining =
        std::thread::spawn(move || Dial::new_at(addr, &raw_path(&["busy", "late"])).open());
    assert!(eventually(SOON, || hub.metric_sum("hubbub_subscriptions") == 2.0), "it waits");
    let payload = vec![b'x'; 60_000];
    let mut publisher = redis.client();
    for _ in 0..50 {
        publisher.publish("busy", &payload);
        let frame = viewer.next_data(SOON).expect("the others get all");
        assert_eq!(frame.payload.len(), payload.len());
    }
    let closes = || hub.metrics().get("hubbub_closes_total{code=\"3008\"}");
    assert!(eventually(SOON, || closes() == 1.0), "over its bound before it has a socket");
    let mut joined = joining.join().expect("upgraded");
    let close = joined.next_close(SOON).expect("and told so");
    assert_eq!(close.code, 3008);
}
