//! Promise: the server API puts a user's connections into a channel, wherever they are, and takes them
//! out of it; each of them is told, and what it missed it gets once.

mod common;

use common::cf::{Cf, publish, subscribe};
use common::served::{
    Place, Served, close, code, connect, connected, next, next_push, now_s, on_both, publish_each,
    reconnect, result,
};
use common::ws::{Dial, raw_path};
use common::{QUIET, SOON, eventually, secs};
use serde_json::{Value, json};

fn user(user: &str) -> Value {
    connect(&json!({ "sub": user }))
}

/// Without its channels of its own.
#[track_caller]
fn signed_in(hub: &common::Hub, name: &str) -> Cf {
    connected(hub, user(name)).cf
}

#[test]
fn a_user_is_put_into_a_channel_on_all_nodes() {
    on_both(|place| {
        let mut own = [signed_in(&place.a, "42"), signed_in(place.b(), "42")];
        let mut other = signed_in(&place.a, "4");
        let body = json!({ "user": "42", "channel": "signed:a", "data": { "n": 1 } });
        assert_eq!(result(&place.a, "subscribe", body), json!({}));
        let expected = json!({ "channel": "signed:a", "subscribe": { "data": { "n": 1 } } });
        for cf in &mut own {
            assert_eq!(next_push(cf), expected);
            assert_eq!(cf.error(subscribe("signed:a"))["code"], 105);
        }
        publish_each(place.b(), "signed:a", [1]);
        own.iter_mut().for_each(|cf| assert_eq!(next(cf), "signed:a 1"));
        // Again: told again, and nothing else.
        result(place.b(), "subscribe", json!({ "user": "42", "channel": "signed:a" }));
        for cf in &mut own {
            assert_eq!(next_push(cf), json!({ "channel": "signed:a", "subscribe": {} }));
        }
        publish_each(&place.a, "signed:a", [2]);
        own.iter_mut().for_each(|cf| assert_eq!(next(cf), "signed:a 2"));
        let reply = own[0].command(publish("signed:a", &json!(3)));
        assert!(reply["publish"].is_object(), "{reply}");
        own.iter_mut().for_each(|cf| assert_eq!(next(cf), "signed:a 3"));
        result(place.b(), "unsubscribe", json!({ "user": "42", "channel": "signed:a" }));
        let reason = json!({ "code": 2000, "reason": "server unsubscribe" });
        let expected = json!({ "channel": "signed:a", "unsubscribe": reason });
        own.iter_mut().for_each(|cf| assert_eq!(next_push(cf), expected));
        publish_each(&place.a, "signed:a", [4]);
        own.iter_mut().for_each(|cf| assert!(cf.stays_quiet(QUIET)));
        assert!(other.pushes.is_empty() && other.stays_quiet(QUIET));
        assert_eq!(own[0].error(publish("signed:a", &json!(5)))["code"], 103);
    });
}

#[test]
fn what_was_missed_comes_behind_the_push_and_once() {
    on_both(|place| {
        let mut cf = signed_in(&place.a, "42");
        let at = publish_each(place.b(), "r:a", 1..=5);
        let since = json!({ "offset": 2, "epoch": at.epoch });
        let body = json!({ "user": "42", "channel": "r:a", "recover_since": since });
        result(place.b(), "subscribe", body.clone());
        let position = |offset: u64| {
            json!({ "channel": "r:a", "subscribe":
                { "recoverable": true, "positioned": true, "epoch": at.epoch, "offset": offset } })
        };
        assert_eq!(next_push(&mut cf), position(2));
        for n in 3..=5 {
            let publication = cf.next_pub(SOON).expect("missed").body;
            assert_eq!(publication, json!({ "data": n, "offset": n }));
        }
        publish_each(place.b(), "r:a", [6]);
        assert_eq!(next(&mut cf), "r:a 6");
        result(&place.a, "subscribe", body);
        assert_eq!(next_push(&mut cf), position(6));
        assert!(cf.stays_quiet(QUIET), "it has them");
        // What can't be had is left out: the push says where it stands.
        let mut late = signed_in(place.b(), "43");
        let since = json!({ "offset": 2, "epoch": "another" });
        let body = json!({ "user": "43", "channel": "r:a", "recover_since": since });
        result(&place.a, "subscribe", body);
        assert_eq!(next_push(&mut late), position(6));
        assert!(late.stays_quiet(QUIET));
        // The newest value comes by itself.
        publish_each(&place.a, "c:a", [7]);
        let mut early = connected(place.b(), connect(&json!({ "channels": ["c:a"] }))).cf;
        publish_each(&place.a, "c:a", [8]);
        assert_eq!(next(&mut early), "c:a 8");
        result(&place.a, "subscribe", json!({ "user": "43", "channel": "c:a" }));
        assert_eq!(next_push(&mut late)["channel"], "c:a");
        assert_eq!(next(&mut late), "c:a 8");
    });
}

#[test]
fn who_comes_back_recovers_what_it_may_have() {
    let place = Place::redis();
    let Served { mut cf, .. } = connected(&place.a, user("42"));
    result(&place.a, "subscribe", json!({ "user": "42", "channel": "r:a" }));
    let push = next_push(&mut cf);
    let epoch = push["subscribe"]["epoch"].as_str().expect("an epoch").to_owned();
    publish_each(&place.a, "r:a", 1..=2);
    assert_eq!((next(&mut cf), next(&mut cf)), ("r:a 1".to_owned(), "r:a 2".to_owned()));
    drop(cf);
    publish_each(&place.a, "r:a", [3]);
    let known = json!({ "r:a": { "recover": true, "offset": 2, "epoch": epoch } });
    let Served { subs, .. } = connected(place.b(), reconnect(&json!({ "sub": "42" }), known));
    assert_eq!(common::past::offsets(&subs["r:a"]), [3]);
}

/// The client's own subscription is the server's from then on.
#[test]
fn a_subscription_of_the_clients_own_is_taken_over() {
    let place = Place::memory();
    let mut cf = signed_in(&place.a, "42");
    cf.subscribe("r:a");
    let body = json!({ "user": "42", "channel": "r:a", "info": { "seat": 7 } });
    result(&place.a, "subscribe", body);
    assert_eq!(next_push(&mut cf)["channel"], "r:a");
    publish_each(&place.a, "r:a", [1]);
    assert_eq!(next(&mut cf), "r:a 1");
    assert!(cf.stays_quiet(QUIET), "once");
    cf.unsubscribe("r:a");
    cf.subscribe("r:a");
    publish_each(&place.a, "r:a", [2]);
    assert_eq!(next(&mut cf), "r:a 2");
}

#[test]
fn it_ends_with_the_connection_when_its_time_is_up() {
    let place = Place::new(None, &[("HUB_EXPIRED_GRACE", "1s")]);
    let mut cf = signed_in(&place.a, "42");
    let mut kept = signed_in(&place.a, "43");
    let mut left = signed_in(&place.a, "44");
    for user in ["42", "43", "44"] {
        let body = json!({ "user": user, "channel": "news", "expire_at": now_s() + 1 });
        result(&place.a, "subscribe", body);
    }
    for cf in [&mut cf, &mut kept, &mut left] {
        assert_eq!(next_push(cf), json!({ "channel": "news", "subscribe": {} }));
    }
    let body = json!({ "user": "43", "channel": "news", "expire_at": now_s() + 3600 });
    result(&place.a, "subscribe", body);
    left.unsubscribe("news");
    assert_eq!(cf.next_close(SOON), close(3006, "subscription expired"));
    publish_each(&place.a, "news", [1]);
    assert_eq!(next(&mut kept), "news 1");
    left.subscribe("news");
    let past = json!({ "user": "43", "channel": "news", "expire_at": now_s() - 1 });
    assert_eq!(code(&place.a, "subscribe", past), 100);
}

#[test]
fn what_can_not_be_is_refused_and_counted() {
    let place = Place::new(None, &[("HUB_CHANNELS_MAX", "3")]);
    let mut cf = signed_in(&place.a, "42");
    let check = |channel: &str, expected: u64| {
        let body = json!({ "user": "42", "channel": channel });
        assert_eq!(code(&place.a, "subscribe", body), expected, "{channel}");
    };
    check("#43", 107);
    check("r:dialog#4,2", 107);
    check("a b", 107);
    check("ws:conn:1", 107);
    check("nowhere:a", 102);
    result(&place.a, "subscribe", json!({ "user": "42", "channel": "a" }));
    assert_eq!(next_push(&mut cf)["channel"], "a");
    result(&place.a, "subscribe", json!({ "user": "42", "channel": "b" }));
    let is_counted = |n: f64| {
        let found = || place.a.metric_sum("hubbub_serves_refused_total");
        assert!(eventually(SOON, || found() == n), "{} refused", found());
    };
    is_counted(1.0);
    // A raw connection has the channels of its address.
    let token = common::sign(&json!({ "sub": "44" }), common::served::SECRET);
    let dial = Dial::new(&place.a, &raw_path(&["a"]));
    let mut raw = dial.header("Authorization", &format!("Bearer {token}")).open();
    result(&place.a, "subscribe", json!({ "user": "44", "channel": "b" }));
    is_counted(2.0);
    publish_each(&place.a, "b", [1]);
    publish_each(&place.a, "a", [2]);
    assert_eq!(raw.next_data(SOON).expect("its own").text(), "2");
    assert_eq!(next(&mut cf), "a 2");
    // Nobody there is no mistake.
    assert_eq!(result(&place.a, "subscribe", json!({ "user": "45", "channel": "a" })), json!({}));
    assert!(cf.next_push(secs(0)).is_none());
}
