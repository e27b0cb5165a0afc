//! Promise: who subscribes to a stream is told where it stands; who was away gets all that it missed,
//! or is told that it can't; and a channel that serves its newest value does so at once.

mod common;

use common::cf::{Cf, subscribe};
use common::past::{At, Place, history, offsets, publish, publish_each, recover, result};
use common::{Hub, Raw, SOON, eventually, ms};
use serde_json::{Value, json};
use std::time::Instant;

/// Runs a contract on both brokers.
fn on_both(contract: impl Fn(&Place)) {
    contract(&Place::memory());
    contract(&Place::redis());
}

#[track_caller]
fn subscribed(cf: &mut Cf, command: Value) -> Value {
    let reply = cf.command(command);
    assert!(reply["subscribe"].is_object(), "{reply}");
    reply["subscribe"].clone()
}

/// Waits until what was published has come to the node of a subscriber.
#[track_caller]
fn see(cf: &mut Cf, offset: u64) {
    while cf.next_pub(SOON).expect("delivered").body["offset"] != json!(offset) {}
}

#[test]
fn a_subscriber_is_told_where_the_stream_stands() {
    on_both(|place| {
        let mut first = Cf::connect(&place.a);
        let empty = subscribed(&mut first, subscribe("r:a"));
        let epoch = empty["epoch"].as_str().expect("an epoch").to_owned();
        assert_eq!(empty, json!({ "recoverable": true, "positioned": true, "epoch": epoch }));
        let top = publish_each(&place.a, "r:a", 1..=3);
        assert_eq!(top.epoch, epoch);
        see(&mut first, 3);
        let expected =
            json!({ "recoverable": true, "positioned": true, "epoch": epoch, "offset": 3 });
        // At once where the stream is followed already, after a look into Redis elsewhere.
        for hub in [&place.a, place.b()] {
            let mut cf = Cf::connect(hub);
            assert_eq!(subscribed(&mut cf, subscribe("r:a")), expected);
            assert_eq!(cf.command(subscribe("r:a"))["error"]["code"], 105);
        }
        let mut other = Cf::connect(&place.a);
        assert_eq!(subscribed(&mut other, subscribe("h:a")), json!({}), "without recovery");
    });
}

#[test]
fn who_was_away_gets_what_it_missed() {
    on_both(|place| {
        let at = publish_each(&place.a, "r:a", 1..=4);
        publish_each(&place.a, "r:a", 5..=9);
        for hub in [&place.a, place.b()] {
            let mut cf = Cf::connect(hub);
            let reply = subscribed(&mut cf, recover("r:a", &at));
            let missed: Vec<Value> = (5..=9).map(|n| json!({ "data": n, "offset": n })).collect();
            let expected = json!({
                "recoverable": true, "positioned": true, "epoch": at.epoch, "offset": 4,
                "recovered": true, "was_recovering": true, "publications": missed,
            });
            assert_eq!(reply, expected);
            // Nothing was missed; without an epoch, as the SDKs ask after an empty stream.
            for epoch in [at.epoch.as_str(), ""] {
                let mut cf = Cf::connect(hub);
                let at = At { offset: 9, epoch: epoch.to_owned() };
                let reply = subscribed(&mut cf, recover("r:a", &at));
                let expected = json!({
                    "recoverable": true, "positioned": true, "epoch": top_epoch(&reply),
                    "offset": 9, "recovered": true, "was_recovering": true,
                });
                assert_eq!(reply, expected);
            }
        }
        let mut cf = Cf::connect(place.b());
        subscribed(&mut cf, recover("r:a", &at));
        publish(&place.a, "r:a", 10);
        assert_eq!(cf.next_pub(SOON).expect("live goes on").body["offset"], 10);
    });
}

fn top_epoch(reply: &Value) -> String {
    reply["epoch"].as_str().expect("an epoch").to_owned()
}

#[test]
fn what_can_not_be_recovered_is_said_to_be_lost() {
    on_both(|place| {
        let start = publish(&place.a, "r:a", 1);
        let top = publish_each(&place.a, "r:a", 2..=12);
        // 10 are kept: 3 to 12.
        let expected = json!({
            "recoverable": true, "positioned": true, "was_recovering": true,
            "epoch": top.epoch, "offset": 12,
        });
        let lost = [
            At { offset: 1, ..top.clone() },
            At { offset: 0, ..top.clone() },
            At { offset: 13, ..top.clone() },
            At { offset: u64::MAX, ..top.clone() },
            At { offset: 12, epoch: "abcdefgh".to_owned() },
            At { offset: 12, epoch: "garbage \u{e9}".to_owned() },
            start,
        ];
        for at in lost {
            let mut cf = Cf::connect(place.b());
            assert_eq!(subscribed(&mut cf, recover("r:a", &at)), expected, "{at:?}");
            let mut command = recover("r:a", &at);
            command["subscribe"]["flag"] = json!(3);
            let mut cf = Cf::connect(place.b());
            assert_eq!(cf.command(command)["error"]["code"], 112, "{at:?}");
            // Refused, so it isn't subscribed.
            subscribed(&mut cf, subscribe("r:a"));
        }
        let mut cf = Cf::connect(place.b());
        let reply = subscribed(&mut cf, recover("r:a", &At { offset: 2, ..top.clone() }));
        assert_eq!(offsets(&reply), (3..=12).collect::<Vec<u64>>(), "all that is kept");
        result(&place.a, "history_remove", json!({ "channel": "r:a" }));
        let mut cf = Cf::connect(place.b());
        let reply = subscribed(&mut cf, recover("r:a", &At { offset: 5, ..top.clone() }));
        assert_eq!(reply, expected, "removed");
    });
}

#[test]
fn a_channel_shows_its_newest_value() {
    on_both(|place| {
        for channel in ["c:a", "plain:a"] {
            let mut early = Cf::connect(place.b());
            let reply = subscribed(&mut early, subscribe(channel));
            assert_eq!(reply["recovered"], Value::Null, "{channel}: {reply}");
            for n in 1..=3 {
                result(&place.a, "publish", json!({ "channel": channel, "data": n }));
            }
            while early.next_pub(SOON).expect("delivered").data != "3" {}
            let mut late = Cf::connect(place.b());
            let reply = subscribed(&mut late, subscribe(channel));
            assert_eq!(reply["publications"][0]["data"], 3, "{channel}: {reply}");
            assert_eq!(reply["publications"].as_array().map(Vec::len), Some(1), "{reply}");
            assert_eq!(
                (&reply["recovered"], &reply["was_recovering"]),
                (&json!(true), &json!(true))
            );
            result(&place.a, "publish", json!({ "channel": channel, "data": 4 }));
            assert_eq!(late.next_pub(SOON).expect("live goes on").data, "4");
        }
        // One that nobody here had: only what history holds is known.
        result(&place.a, "publish", json!({ "channel": "c:b", "data": 7 }));
        let mut cf = Cf::connect(place.b());
        let reply = subscribed(&mut cf, subscribe("c:b"));
        assert_eq!(
            reply["publications"],
            json!([{ "data": 7, "offset": 1, "epoch": top_epoch(&reply) }])
        );
        let at = At { offset: 1, epoch: top_epoch(&reply) };
        let mut again = Cf::connect(&place.a);
        let reply = subscribed(&mut again, recover("c:b", &at));
        assert_eq!((&reply["recovered"], &reply["publications"]), (&json!(true), &Value::Null));
    });
}

/// What a new subscriber is shown first, with its offset.
#[track_caller]
fn newest(hub: &Hub, channel: &str) -> Option<(Value, u64)> {
    let reply = subscribed(&mut Cf::connect(hub), subscribe(channel));
    let shown = reply["publications"].as_array().map_or(&[][..], Vec::as_slice);
    assert_eq!(reply["recovered"] == true, !shown.is_empty(), "{reply}");
    assert_eq!(reply["positioned"] == true, !reply["epoch"].is_null(), "{reply}");
    shown.first().map(|it| (it["data"].clone(), it["offset"].as_u64().expect("an offset")))
}

/// What a raw one is: of a channel without any, what comes next.
fn raw_shows_first(hub: &Hub, channel: &str, next: u64) -> String {
    let mut raw = Raw::open(hub, &[channel]);
    publish(hub, channel, next);
    raw.next_data(SOON).expect("something").text().to_owned()
}

/// On every node and shard, whether the channel is open there or not.
#[test]
fn a_value_that_was_removed_is_shown_to_nobody() {
    on_both(|place| {
        let hubs = [&place.a, place.b()];
        let mut early: Vec<Cf> = (0..8).map(|n| Cf::subscribed(hubs[n % 2], &["c:a"])).collect();
        publish_each(&place.a, "c:a", 1..=3);
        early.iter_mut().for_each(|cf| see(cf, 3));
        hubs.iter().for_each(|hub| assert_eq!(newest(hub, "c:a"), Some((json!(3), 3))));
        result(place.b(), "history_remove", json!({ "channel": "c:a" }));
        for hub in hubs {
            assert!(eventually(SOON, || newest(hub, "c:a").is_none()), "it stays");
            // On whichever shard.
            assert!((0..8).all(|_| newest(hub, "c:a").is_none()), "it comes back");
        }
        assert_eq!(raw_shows_first(&place.a, "c:a", 4), "4");
        early.iter_mut().for_each(|cf| see(cf, 4));
        hubs.iter().for_each(|hub| assert_eq!(newest(hub, "c:a"), Some((json!(4), 4))));
        for cf in &mut early {
            assert!(cf.pushes.is_empty() && !cf.raw.is_closed(), "nobody else was told anything");
        }
        let drops = place.a.metrics().get("hubbub_drops_total{reason=\"bad_envelope\"}");
        assert_eq!(drops, 0.0);
    });
}

/// As with its history: a value that is over isn't shown as the newest, wherever it is remembered.
#[test]
fn a_value_that_expired_is_shown_to_nobody() {
    on_both(|place| {
        let hubs = [&place.a, place.b()];
        let mut early: Vec<Cf> =
            (0..4).map(|n| Cf::subscribed(hubs[n % 2], &["flash:live"])).collect();
        for channel in ["flash:live", "flash:read"] {
            publish(&place.a, channel, 1);
            let published = Instant::now();
            for hub in hubs {
                let shown = newest(hub, channel);
                assert!(shown.is_some() || published.elapsed() > ms(900), "{channel}: not shown");
            }
            let is_over = || offsets(&history(&place.a, channel)).is_empty();
            assert!(eventually(SOON, is_over), "{channel} is over");
            let over = Instant::now();
            for hub in hubs {
                let is_gone = || (0..8).all(|_| newest(hub, channel).is_none());
                assert!(eventually(SOON, is_gone), "{channel}: still shown");
            }
            println!("{channel}: shown to nobody {:?} later", over.elapsed());
        }
        early.iter_mut().for_each(|cf| see(cf, 1));
        publish(&place.a, "flash:live", 2);
        early.iter_mut().for_each(|cf| see(cf, 2));
        assert_eq!(newest(&place.a, "flash:live"), Some((json!(2), 2)));
    });
}

#[test]
fn a_stream_that_begins_anew_is_told_to_all() {
    let place = Place::redis();
    let mut cf = Cf::connect(&place.a);
    subscribed(&mut cf, subscribe("r:a"));
    let top = publish_each(&place.a, "r:a", 1..=5);
    see(&mut cf, 5);
    place.server().command(&["FLUSHALL"]);
    let new = publish_each(place.b(), "r:a", 1..=6);
    assert_ne!(new.epoch, top.epoch);
    let push = cf.next_push(SOON).expect("the subscriber is told");
    assert_eq!(push["push"]["unsubscribe"]["code"], 2500, "{push}");
    let reply = subscribed(&mut cf, recover("r:a", &top));
    assert_eq!((&reply["recovered"], &reply["epoch"]), (&Value::Null, &json!(new.epoch)));
}

#[test]
fn all_that_is_kept_is_recovered_and_not_one_more() {
    on_both(|place| {
        let top = publish_each(&place.a, "long:a", 1..=320);
        // A page is at most 300.
        for (n_missed, is_recovered) in [(299, true), (300, true), (301, false), (320, false)] {
            let mut cf = Cf::connect(place.b());
            let at = At { offset: 320 - n_missed, ..top.clone() };
            let reply = subscribed(&mut cf, recover("long:a", &at));
            assert_eq!(reply["recovered"] == true, is_recovered, "{n_missed}");
            if is_recovered {
                assert_eq!(offsets(&reply), (at.offset + 1..=320).collect::<Vec<u64>>());
            }
        }
    });
}

#[test]
fn what_is_too_much_at_once_is_lost_once_and_cuts_nobody() {
    on_both(|place| {
        let large = "x".repeat(20_000);
        let channels: Vec<String> = (0..5).map(|n| format!("long:{n}")).collect();
        let tops: Vec<At> = channels
            .iter()
            .map(|channel| publish_each(&place.a, channel, vec![large.clone(); 40]))
            .collect();
        let values: Vec<String> = (0..30).map(|n| format!("c:{n}")).collect();
        for channel in &values {
            publish(&place.a, channel, "x".repeat(60_000));
        }
        // Known to the shard that it comes to, so that all is answered in one frame.
        let mut early = Cf::connect(&place.a);
        values.iter().for_each(|channel| early.subscribe(channel));
        let mut cf = Cf::connect(&place.a);
        // Each of them alone fits into half an outbox of 1 MiB.
        let commands = channels
            .iter()
            .zip(&tops)
            .map(|(channel, top)| recover(channel, &At { offset: 20, ..top.clone() }));
        let commands = commands.chain(values.iter().map(|channel| subscribe(channel))).collect();
        let ids = cf.send(commands);
        let recovered = |id: &u32| {
            let reply = cf.reply(*id, SOON).expect("answered");
            assert!(reply["subscribe"].is_object(), "{:.200}", reply.to_string());
            reply["subscribe"]["recovered"] == true
        };
        let recovered: Vec<bool> = ids.iter().map(recovered).collect();
        // 8 values are half an outbox; more fit as far as it was read meanwhile.
        assert!(recovered[channels.len()..].contains(&true));
        for channel in &channels {
            publish(&place.a, channel, 7);
            assert_eq!(cf.next_pub(SOON).expect("still there").data, "7");
        }
        assert!(!cf.raw.is_closed());
    });
}
