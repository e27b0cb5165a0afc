//! Promise: where the back end subscribes a client by its token, the client is subscribed, hears so
//! first, misses nothing while it is away, and nobody gets in by it who may not.

mod common;

use common::cf::{Cf, publish, subscribe};
use common::past::offsets;
use common::served::{
    Place, SECRET, Served, close, connect, connected, next, on_both, publish_each, reconnect,
    result,
};
use common::ws::{Dial, raw_path};
use common::{QUIET, SOON, sign};
use serde_json::{Value, json};

#[test]
fn a_token_brings_its_channels_along() {
    on_both(|place| {
        let claims = json!({ "channels": ["news", "signed:a"] });
        let Served { mut cf, subs } = connected(&place.a, connect(&claims));
        assert_eq!(subs, json!({ "news": {}, "signed:a": {} }));
        for channel in ["news", "signed:a"] {
            publish_each(place.b(), channel, [1]);
            assert_eq!(next(&mut cf), format!("{channel} 1"));
            assert_eq!(cf.error(subscribe(channel))["code"], 105);
        }
        // As good as with a subscription token.
        let reply = cf.command(publish("signed:a", &json!(2)));
        assert!(reply["publish"].is_object(), "{reply}");
        assert_eq!(next(&mut cf), "signed:a 2");
        cf.unsubscribe("news");
        cf.unsubscribe("signed:a");
        publish_each(&place.a, "signed:a", [3]);
        publish_each(&place.a, "news", [3]);
        assert!(cf.stays_quiet(QUIET));
        assert_eq!(cf.error(subscribe("signed:a"))["code"], 103, "left for good");
        assert_eq!(cf.error(publish("signed:a", &json!(4)))["code"], 103);
    });
}

#[test]
fn subs_say_more_than_channels() {
    let place = Place::memory();
    let claims = json!({
        "sub": "43",
        "info": { "name": "Ada" },
        "channels": ["news"],
        "subs": {
            "signed:a": { "info": { "seat": 7 }, "data": { "motd": "hi" } },
            "r:a": { "b64data": "aGk=", "override": { "presence": { "value": true } } },
        },
    });
    let Served { mut cf, subs } = connected(&place.a, connect(&claims));
    assert_eq!(subs["signed:a"], json!({ "data": { "motd": "hi" } }));
    assert_eq!((&subs["r:a"]["data"], &subs["r:a"]["positioned"]), (&json!("hi"), &json!(true)));
    let mut names: Vec<&String> = subs.as_object().expect("an object").keys().collect();
    names.sort();
    assert_eq!(names, ["#43", "r:a", "signed:a", "user:#43"], "channels doesn't count");
    cf.command(publish("signed:a", &json!(1)));
    let publication = cf.next_pub(SOON).expect("own publication").body;
    let info = &publication["info"];
    assert_eq!(
        (&info["conn_info"], &info["chan_info"]),
        (&json!({ "name": "Ada" }), &json!({ "seat": 7 }))
    );
}

#[test]
fn bad_claims_are_told() {
    let place = Place::new(None, &[("HUB_CHANNELS_MAX", "4"), ("HUB_CHANNEL_BYTES_MAX", "20")]);
    let check = |claims: Value, expected: u64| {
        let mut cf = Cf::dial(&place.a);
        let ids = cf.send(vec![connect(&claims), subscribe("news")]);
        let reply = cf.reply(ids[0], SOON).expect("a reply");
        assert_eq!(reply["error"]["code"], expected, "{claims}: {reply}");
        cf.wait(QUIET, |_| false);
        assert!(cf.replies.is_empty(), "the rest of the frame is void");
    };
    check(json!({ "channels": ["news", "nowhere:a"] }), 102);
    check(json!({ "channels": ["a b"] }), 107);
    check(json!({ "channels": ["ws:conn:1"] }), 107);
    check(json!({ "subs": { "a name of more than 20 bytes": {} } }), 107);
    check(json!({ "sub": "42", "channels": ["r:#43"] }), 103);
    check(json!({ "channels": ["r:#42"] }), 103);
    for claims in [
        json!({ "channels": ["a", "b", "c", "d", "e"] }),
        json!({ "sub": "42", "channels": ["a", "b", "c"] }),
    ] {
        let mut cf = Cf::dial(&place.a);
        cf.send(vec![connect(&claims)]);
        assert_eq!(cf.next_close(SOON), close(3505, "channel limit"), "{claims}");
    }
    for subs in [json!({ "a": 1 }), json!({ "a": { "b64info": "%" } })] {
        let mut cf = Cf::dial(&place.a);
        cf.send(vec![connect(&json!({ "subs": subs }))]);
        assert_eq!(cf.next_close(SOON), close(3500, "invalid token"), "{subs}");
    }
    // They count like any others.
    let Served { mut cf, .. } =
        connected(&place.a, connect(&json!({ "sub": "42", "channels": ["a"] })));
    cf.subscribe("b");
    assert_eq!(cf.error(subscribe("c"))["code"], 106);
}

#[test]
fn users_have_channels_of_their_own_and_no_others() {
    on_both(|place| {
        let Served { mut cf, subs } = connected(&place.a, connect(&json!({ "sub": "42" })));
        assert_eq!(subs, json!({ "#42": {}, "user:#42": {} }));
        let Served { cf: mut other, .. } = connected(place.b(), connect(&json!({ "sub": "4" })));
        for channel in ["#42", "user:#42", "r:#42", "r:dialog#42,43"] {
            assert_eq!(other.error(subscribe(channel))["code"], 103, "{channel}");
            assert_eq!(other.error(publish(channel, &json!(1)))["code"], 103, "{channel}");
            let token = sign(&json!({ "sub": "4", "channel": channel }), SECRET);
            let command = json!({ "subscribe": { "channel": channel, "token": token } });
            assert_eq!(other.error(command)["code"], 103, "no token opens {channel}");
            let raw = Dial::new(place.b(), &raw_path(&[channel]));
            let bearer = format!("Bearer {}", sign(&json!({ "sub": "4" }), SECRET));
            let refused = raw.header("Authorization", &bearer).try_open().err();
            assert_eq!(refused.expect("refused").status, 403, "{channel}");
        }
        publish_each(place.b(), "#42", [1]);
        assert_eq!(next(&mut cf), "#42 1");
        let reply = cf.command(publish("user:#42", &json!(2)));
        assert!(reply["publish"].is_object(), "{reply}");
        assert_eq!(next(&mut cf), "user:#42 2");
        cf.subscribe("r:dialog#42,43");
        // The list opens nothing by itself.
        assert_eq!(cf.error(subscribe("signed:#42"))["code"], 103);
        assert!(other.stays_quiet(QUIET));
        // Whose name can't stand for one user has none; nor has the anonymous one.
        for sub in ["4,2", "4#2", "4 2", ""] {
            assert_eq!(connected(&place.a, connect(&json!({ "sub": sub }))).subs, Value::Null);
        }
    });
}

#[test]
fn who_was_away_gets_what_it_missed() {
    on_both(|place| {
        let claims = json!({ "channels": ["r:a", "c:a", "news"] });
        let Served { mut cf, subs } = connected(&place.a, connect(&claims));
        let epoch = subs["r:a"]["epoch"].as_str().expect("an epoch").to_owned();
        let expected = json!({ "recoverable": true, "positioned": true, "epoch": epoch });
        assert_eq!(subs["r:a"], expected);
        publish_each(&place.a, "r:a", 1..=2);
        assert_eq!((next(&mut cf), next(&mut cf)), ("r:a 1".to_owned(), "r:a 2".to_owned()));
        drop(cf);
        publish_each(&place.a, "r:a", 3..=5);
        publish_each(place.b(), "c:a", [7]);
        let known = json!({ "r:a": { "recover": true, "offset": 2, "epoch": epoch } });
        for hub in [&place.a, place.b()] {
            let Served { mut cf, subs } = connected(hub, reconnect(&claims, known.clone()));
            assert_eq!(offsets(&subs["r:a"]), [3, 4, 5], "{subs}");
            assert_eq!(
                (&subs["r:a"]["recovered"], &subs["r:a"]["offset"]),
                (&json!(true), &json!(2))
            );
            let n: u64 = hub.metric_sum("hubbub_recoveries_total") as u64;
            assert!(n > 0, "counted");
            publish_each(&place.a, "news", [1]);
            assert_eq!(next(&mut cf), "news 1", "nothing of it twice");
        }
        let Served { subs, .. } = connected(&place.a, reconnect(&claims, known));
        assert_eq!(offsets(&subs["r:a"]), [3, 4, 5]);
        publish_each(&place.a, "r:a", 6..=20);
        let known = json!({ "r:a": { "recover": true, "offset": 2, "epoch": epoch } });
        let Served { subs, .. } = connected(&place.a, reconnect(&claims, known));
        let lost = json!({ "recoverable": true, "positioned": true, "epoch": epoch,
            "offset": 20, "was_recovering": true });
        assert_eq!(subs["r:a"], lost, "ten are kept");
    });
}

#[test]
fn a_client_gets_back_what_it_may_have() {
    let place = Place::memory();
    let wants = json!({ "r:a": { "recover": true }, "signed:a": {}, "nowhere:a": {}, "a b": {},
        "r:#43": {}, "r:#42": { "delta": "fossil" } });
    let Served { mut cf, subs } =
        connected(&place.a, reconnect(&json!({ "sub": "42" }), wants.clone()));
    let mut names: Vec<&String> = subs.as_object().expect("an object").keys().collect();
    names.sort();
    assert_eq!(names, ["#42", "r:#42", "r:a", "user:#42"]);
    assert_eq!((&subs["r:a"]["recovered"], &subs["r:#42"]["delta"]), (&json!(true), &json!(true)));
    publish_each(&place.a, "r:a", [1]);
    assert_eq!(next(&mut cf), "r:a 1");
    let Served { subs, .. } = connected(&place.a, json!({ "connect": { "subs": wants } }));
    assert_eq!(subs, Value::Null, "what an anonymous one may have");
}

#[test]
fn a_fresh_token_changes_no_subscription() {
    let place = Place::memory();
    let Served { mut cf, .. } =
        connected(&place.a, connect(&json!({ "sub": "42", "channels": ["news"] })));
    let token = sign(&json!({ "sub": "42", "channels": ["signed:a"] }), SECRET);
    let reply = cf.command(json!({ "refresh": { "token": token } }));
    assert_eq!(reply["refresh"], json!({}), "{reply}");
    publish_each(&place.a, "signed:a", [1]);
    publish_each(&place.a, "news", [2]);
    publish_each(&place.a, "#42", [3]);
    assert_eq!((next(&mut cf), next(&mut cf)), ("news 2".to_owned(), "#42 3".to_owned()));
    // Nor does a subscription's token turn one of the server's into the client's own.
    let token = sign(&json!({ "sub": "42", "channel": "news" }), SECRET);
    let refresh = json!({ "sub_refresh": { "channel": "news", "token": token } });
    assert_eq!(cf.error(refresh)["code"], 103);
}

#[test]
fn a_raw_client_has_the_channels_of_its_address() {
    let place = Place::memory();
    let token = sign(&json!({ "sub": "42", "channels": ["news"] }), SECRET);
    let dial = Dial::new(&place.a, &raw_path(&["other"]));
    let mut raw = dial.header("Authorization", &format!("Bearer {token}")).open();
    for channel in ["news", "#42", "other"] {
        publish_each(&place.a, channel, [1]);
    }
    assert_eq!(raw.next_data(SOON).expect("its own").text(), "1");
    assert!(raw.next_data(QUIET).is_none());
}

/// Each of them alone fits into half an outbox of 1 MiB.
#[test]
fn what_is_too_much_at_once_is_lost_once_and_cuts_nobody() {
    on_both(|place| {
        let large = "x".repeat(20_000);
        let channels: Vec<String> = (0..5).map(|n| format!("long:{n}")).collect();
        let mut known = json!({});
        for channel in &channels {
            let mut at = Value::Null;
            for _ in 0..40 {
                let body = json!({ "channel": channel, "data": large });
                at = result(&place.a, "publish", body);
            }
            known[channel] = json!({ "recover": true, "offset": 20, "epoch": at["epoch"] });
        }
        // At once, where all are followed already, and after a look at each.
        let claims = json!({ "channels": channels });
        let _early = connected(&place.a, connect(&claims));
        for hub in [&place.a, place.b()] {
            let Served { mut cf, subs } = connected(hub, reconnect(&claims, known.clone()));
            let n_recovered =
                channels.iter().filter(|channel| subs[channel.as_str()]["recovered"] == true);
            assert_eq!(n_recovered.count(), 1);
            assert_eq!(subs.as_object().map(serde_json::Map::len), Some(5));
            for channel in &channels {
                publish_each(&place.a, channel, [7]);
                assert_eq!(next(&mut cf), format!("{channel} 7"));
            }
        }
    });
}
