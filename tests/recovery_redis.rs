//! Promise: a Redis that was flushed, or lost a part, is never taken for a continuation; and whoever
//! comes back finds all it missed on any node.

mod common;

use common::SOON;
use common::cf::{Cf, subscribe};
use common::past::{At, Place, offsets, publish_each, recover};
use serde_json::{Value, json};

#[track_caller]
fn subscribed(cf: &mut Cf, command: Value) -> Value {
    let reply = cf.command(command);
    assert!(reply["subscribe"].is_object(), "{reply}");
    reply["subscribe"].clone()
}

/// Comes back to both nodes, and is told that what it had is over.
#[track_caller]
fn is_lost(place: &Place, channel: &str, had: &At) {
    for hub in [&place.a, place.b()] {
        let reply = subscribed(&mut Cf::connect(hub), recover(channel, had));
        assert_eq!(reply["was_recovering"], true, "{reply}");
        assert_eq!((&reply["recovered"], &reply["publications"]), (&Value::Null, &Value::Null));
        assert_ne!(reply["epoch"], json!(had.epoch), "{reply}");
    }
}

#[test]
fn a_flush_is_not_a_continuation_however_much_follows() {
    let place = Place::redis();
    for n_after in [10, 50, 60] {
        let channel = format!("long:{n_after}");
        let had = publish_each(&place.a, &channel, 1..=50);
        place.server().command(&["FLUSHALL"]);
        let new = publish_each(place.b(), &channel, 1..=n_after);
        assert_eq!(new.offset, n_after);
        is_lost(&place, &channel, &had);
    }
    // One that was never published to, and another stream that is longer since.
    let had = At::of(&json!({ "offset": 0, "epoch":
        subscribed(&mut Cf::connect(&place.a), subscribe("long:new"))["epoch"] }));
    let had = At { offset: publish_each(&place.a, "long:new", [1]).offset, ..had };
    place.server().command(&["FLUSHALL"]);
    publish_each(&place.a, "long:new", 1..=3);
    is_lost(&place, "long:new", &had);
}

#[test]
fn half_a_state_is_none() {
    let place = Place::redis();
    for key in ["ws:stream:{long:a}", "ws:meta:{long:a}"] {
        let had = publish_each(&place.a, "long:a", 1..=20);
        let mut stays = Cf::connect(place.b());
        subscribed(&mut stays, subscribe("long:a"));
        assert_eq!(place.server().command(&["DEL", key]).int(), 1, "{key}");
        let new = publish_each(&place.a, "long:a", 1..=30);
        assert_ne!(new.epoch, had.epoch, "{key}");
        let push = stays.next_push(SOON).expect("who stayed is told");
        assert_eq!(push["push"]["unsubscribe"]["code"], 2500, "{key}: {push}");
        assert!(stays.pubs.is_empty(), "{key}: before anything that doesn't follow");
        is_lost(&place, "long:a", &had);
    }
}

#[test]
fn who_comes_back_finds_all_on_any_node() {
    let mut place = Place::redis();
    let mut at = publish_each(&place.a, "long:a", [0]);
    let mut open = Vec::new();
    for n in 1..=20 {
        // The old socket is still open, and the next publication is on its way.
        publish_each(&place.a, "long:a", [n]);
        let mut cf = Cf::connect(if n % 2 == 0 { &place.a } else { place.b() });
        let reply = subscribed(&mut cf, recover("long:a", &at));
        assert_eq!(reply["recovered"], true, "{reply}");
        // What the page didn't have yet comes live.
        let missed = reply["publications"].as_array().map_or(0, Vec::len);
        if missed == 0 {
            let live = cf.next_pub(SOON).expect("live goes on").body;
            assert_eq!(live["offset"], json!(at.offset + 1), "{live}");
        } else {
            assert_eq!(offsets(&reply), [at.offset + 1]);
        }
        at.offset += 1;
        open.push(cf);
    }
    place.a.signal(libc::SIGKILL);
    place.a.wait_exit(SOON).expect("killed");
    let top = publish_each(place.b(), "long:a", 21..=25);
    assert_eq!(top.epoch, at.epoch);
    let reply = subscribed(&mut Cf::connect(place.b()), recover("long:a", &at));
    assert_eq!((&reply["recovered"], reply["offset"].as_u64()), (&json!(true), Some(at.offset)));
}
