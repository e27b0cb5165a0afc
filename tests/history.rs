//! Promise: a channel with history keeps what its namespace says, numbers it without a gap, and
//! shows it alike with both brokers. What only Redis can do to it is in `history_redis`.

mod common;

use common::cf::{Cf, publish as publish_command};
use common::past::{At, Place, code, history, offsets, publish, publish_each, result};
use common::{Hub, QUIET, Rng, SOON, eventually};
use serde_json::{Value, json};

/// Runs a contract on both brokers.
fn on_both(contract: impl Fn(&Place)) {
    contract(&Place::memory());
    contract(&Place::redis());
}

#[test]
fn publications_are_numbered_where_they_are_seen() {
    on_both(|place| {
        let mut live = Cf::subscribed(place.b(), &["h:a", "off:a"]);
        let first = publish(&place.a, "h:a", json!({ "n": 1 }));
        assert_eq!((first.offset, first.epoch.len()), (1, 8));
        assert!(first.epoch.bytes().all(|byte| byte.is_ascii_alphabetic()), "{first:?}");
        let seen = live.next_pub(SOON).expect("delivered");
        assert_eq!(seen.body, json!({ "data": { "n": 1 }, "offset": 1, "epoch": first.epoch }));
        let body = json!({ "channel": "h:a", "data": 2, "tags": { "k": "v" }, "version": 7 });
        assert_eq!(At::of(&result(&place.a, "publish", body)), At { offset: 2, ..first.clone() });
        let seen = live.next_pub(SOON).expect("delivered");
        let expected = json!({ "data": 2, "offset": 2, "tags": { "k": "v" }, "version": 7 });
        assert_eq!(seen.body, expected, "the epoch is with offset 1 only");
        let reply = live.command(publish_command("h:a", &json!("mine")));
        assert_eq!(reply["publish"], json!({}));
        let seen = live.next_pub(SOON).expect("own publications come back");
        assert_eq!((seen.body["offset"].as_u64(), seen.data.as_str()), (Some(3), "\"mine\""));
        assert!(seen.body["info"]["client"].is_string(), "{}", seen.body);
        assert_eq!(
            result(&place.a, "publish", json!({ "channel": "off:a", "data": 1 })),
            json!({})
        );
        assert_eq!(live.next_pub(SOON).expect("delivered").body, json!({ "data": 1 }));
        let page = history(place.b(), "h:a");
        let info = page["publications"][2]["info"].clone();
        let expected = json!({
            "publications": [
                { "data": { "n": 1 }, "offset": 1 },
                { "data": 2, "offset": 2, "tags": { "k": "v" } },
                { "data": "mine", "offset": 3, "info": info },
            ],
            "epoch": first.epoch,
            "offset": 3,
        });
        assert_eq!(page, expected);
        assert!(info["client"].is_string(), "{info}");
    });
}

#[test]
fn a_broadcast_is_numbered_channel_by_channel() {
    on_both(|place| {
        publish(&place.a, "h:b", 0);
        let body = json!({ "channels": ["h:a", "off:a", "nowhere:a", "h:b", "h:b"], "data": 1 });
        let responses = result(&place.a, "broadcast", body)["responses"].clone();
        let offset = |at: usize| responses[at]["result"]["offset"].as_u64();
        assert_eq!((offset(0), offset(1), offset(3), offset(4)), (Some(1), None, Some(2), Some(3)));
        assert_eq!(responses[2]["error"]["code"], 102, "{responses}");
    });
}

#[test]
fn pages_forward_and_reverse() {
    on_both(|place| {
        let unused = history(&place.a, "h:a");
        assert_eq!((&unused["publications"], &unused["offset"]), (&json!([]), &json!(0)));
        let top = publish_each(&place.a, "h:a", 1..=14);
        assert_eq!(unused["epoch"], json!(top.epoch), "a read makes the epoch");
        let check = |ask: Value, expected: &[u64]| {
            let mut body = json!({ "channel": "h:a" });
            let all = ask.as_object().expect("an object").clone();
            body.as_object_mut().expect("an object").extend(all);
            let page = result(place.b(), "history", body);
            assert_eq!(offsets(&page), expected, "{ask}");
            assert_eq!(At::of(&page), top, "{ask}");
            let mut cf = Cf::connect(place.b());
            let mut command = json!({ "history": ask });
            command["history"]["channel"] = json!("h:a");
            let reply = cf.command(command);
            assert_eq!(offsets(&reply["history"]), expected, "client: {ask}: {reply}");
            assert_eq!(At::of(&reply["history"]), top, "{ask}");
        };
        let since = |offset: u64| json!({ "offset": offset, "epoch": top.epoch });
        check(json!({}), &[]);
        check(json!({ "limit": 0, "since": since(7) }), &[]);
        check(json!({ "limit": -1 }), &[5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
        check(json!({ "limit": 3 }), &[5, 6, 7]);
        check(json!({ "limit": 3, "reverse": true }), &[14, 13, 12]);
        check(json!({ "limit": -1, "since": since(11) }), &[12, 13, 14]);
        check(json!({ "limit": 2, "since": since(11) }), &[12, 13]);
        check(json!({ "limit": -1, "since": { "offset": 12 } }), &[13, 14]);
        check(json!({ "limit": -1, "since": since(14) }), &[]);
        check(json!({ "limit": -1, "since": since(1_000) }), &[]);
        check(json!({ "limit": -1, "since": since(u64::MAX) }), &[]);
        check(json!({ "limit": 1, "since": since(u64::MAX), "reverse": true }), &[14]);
        check(json!({ "limit": 2, "since": since(1) }), &[5, 6]);
        check(json!({ "limit": 2, "since": since(0) }), &[5, 6]);
        check(json!({ "limit": -1, "since": {} }), &[5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
        check(json!({ "limit": 2, "since": since(8), "reverse": true }), &[7, 6]);
        check(json!({ "limit": -1, "since": since(6), "reverse": true }), &[5]);
        check(json!({ "limit": -1, "since": since(3), "reverse": true }), &[]);
        check(json!({ "limit": 1, "since": since(1_000), "reverse": true }), &[14]);
    });
}

#[test]
fn what_can_not_be_read_says_why() {
    on_both(|place| {
        let top = publish(&place.a, "h:a", 1);
        let mut cf = Cf::connect(&place.a);
        let mut check = |ask: Value, expected: u64| {
            assert_eq!(code(&place.a, "history", ask.clone()), expected, "{ask}");
            if ask["channel"].as_str().is_some_and(|channel| !channel.is_empty()) {
                assert_eq!(cf.error(json!({ "history": ask }))["code"], expected, "client: {ask}");
            }
        };
        check(json!({ "limit": 1 }), 107);
        check(json!({ "channel": "", "limit": 1 }), 107);
        check(json!({ "channel": "h: a", "limit": 1 }), 107);
        check(json!({ "channel": "nowhere:a", "limit": 1 }), 102);
        check(json!({ "channel": "off:a", "limit": 1 }), 108);
        let foreign = json!({ "offset": 1, "epoch": "abcdefgh" });
        check(json!({ "channel": "h:a", "since": foreign }), 112);
        let garbage = json!({ "offset": top.offset, "epoch": "no epoch" });
        check(json!({ "channel": "h:a", "limit": -1, "since": garbage }), 112);
        check(json!({ "channel": "h:a", "limit": 1, "since": {}, "reverse": true }), 107);
        for method in ["publish", "history_remove"] {
            let body = json!({ "channel": "nowhere:a", "data": 1 });
            assert_eq!(code(&place.a, method, body), 102, "{method}");
        }
        assert_eq!(code(&place.a, "history_remove", json!({ "channel": "off:a" })), 108);
        let long = json!({ "channel": "h:a", "data": 1, "idempotency_key": "k".repeat(256) });
        assert_eq!(code(&place.a, "publish", long), 107);
        assert_eq!(At::of(&history(&place.a, "h:a")), top, "refused publishes use no number");
    });
}

#[test]
fn only_who_may_reads() {
    let place = Place::memory_with(|builder| {
        builder.without_dev().env("HUB_ALLOW_ANONYMOUS", true).env("HUB_API_KEY", "k")
    });
    let mut cf = Cf::connect(&place.a);
    let ask = |channel: &str| json!({ "history": { "channel": channel, "limit": 1 } });
    assert!(cf.command(ask("h:a"))["history"].is_object());
    assert_eq!(cf.error(ask("big:a"))["code"], 103);
    assert_eq!(cf.error(ask("subscribers:a"))["code"], 103);
    cf.subscribe("subscribers:a");
    assert!(cf.command(ask("subscribers:a"))["history"].is_object());
}

#[test]
fn publications_expire_and_can_be_removed_and_the_count_goes_on() {
    on_both(|place| {
        let top = publish_each(&place.a, "short:a", 1..=3);
        let gone = || history(place.b(), "short:a")["publications"] == json!([]);
        assert!(eventually(SOON, gone));
        assert_eq!(At::of(&history(place.b(), "short:a")), top, "the position stays");
        assert_eq!(publish(&place.a, "short:a", 4), At { offset: 4, ..top });
        let top = publish_each(&place.a, "h:a", 1..=3);
        assert_eq!(result(place.b(), "history_remove", json!({ "channel": "h:a" })), json!({}));
        let page = history(&place.a, "h:a");
        assert_eq!((offsets(&page), At::of(&page)), (vec![], top.clone()));
        assert_eq!(publish(&place.a, "h:a", 4), At { offset: 4, ..top });
        assert_eq!(offsets(&history(&place.a, "h:a")), [4]);
        assert_eq!(result(&place.a, "history_remove", json!({ "channel": "h:new" })), json!({}));
        if place.redis.is_some() {
            assert_eq!(place.a.metric_sum("hubbub_history_resets_total"), 0.0, "nothing was wrong");
        }
    });
}

/// Scenario 27.
#[test]
fn a_publisher_that_retries_publishes_once() {
    on_both(|place| {
        let mut live = Cf::subscribed(&place.a, &["h:a", "off:a"]);
        let body =
            |channel: &str| json!({ "channel": channel, "data": 1, "idempotency_key": "k 1" });
        let racing: Vec<Value> = std::thread::scope(|scope| {
            let ask = |hub| scope.spawn(move || result(hub, "publish", body("h:a")));
            let asked: Vec<_> = [&place.a, place.b(), &place.a, place.b()].map(ask).into();
            asked.into_iter().map(|thread| thread.join().expect("answered")).collect()
        });
        let again = result(place.b(), "publish", body("h:a"));
        assert_eq!(again["offset"], 1);
        assert!(racing.iter().all(|answer| *answer == again), "{racing:?} {again}");
        for _ in 0..2 {
            assert_eq!(result(&place.a, "publish", body("off:a")), json!({}));
        }
        let seen: Vec<String> =
            (0..2).map(|_| live.next_pub(SOON).expect("once").channel).collect();
        assert_eq!(seen, ["h:a", "off:a"], "once on each channel");
        assert!(live.stays_quiet(QUIET), "and not twice: {:?}", live.pubs);
        assert_eq!(publish(&place.a, "h:a", 1).offset, 2, "without a key it is another one");
        assert!(live.next_pub(SOON).is_some());
    });
}

#[test]
fn an_older_version_is_not_published() {
    on_both(|place| {
        let mut live = Cf::subscribed(place.b(), &["h:a"]);
        let check = |version: u64, epoch: &str, expected: u64| {
            let body = json!({ "channel": "h:a", "data": version, "version": version,
                "version_epoch": epoch });
            let answer = result(&place.a, "publish", body);
            assert_eq!(answer["offset"], expected, "version {version} of {epoch:?}");
        };
        check(u64::MAX - 1, "", 1);
        check(u64::MAX - 1, "", 1);
        check(u64::MAX - 2, "", 1);
        check(u64::MAX, "", 2);
        check(1, "other", 3);
        check(0, "", 4);
        check(1, "other", 4);
        let versions = [u64::MAX - 1, u64::MAX, 1, 0];
        for version in versions {
            let seen = live.next_pub(SOON).expect("newer ones come").body;
            assert_eq!(seen["data"], version, "{seen}");
            assert_eq!(seen["version"].as_u64().unwrap_or(0), version, "{seen}");
        }
        assert!(live.stays_quiet(QUIET), "{:?}", live.pubs);
    });
}

#[test]
fn skip_history_only_delivers() {
    on_both(|place| {
        let mut live = Cf::subscribed(place.b(), &["h:a"]);
        publish(&place.a, "h:a", 1);
        let body = json!({ "channel": "h:a", "data": 2, "skip_history": true });
        assert_eq!(result(&place.a, "publish", body), json!({}));
        assert_eq!(publish(&place.a, "h:a", 3).offset, 2);
        let seen: Vec<Value> =
            (0..3).map(|_| live.next_pub(SOON).expect("delivered").body).collect();
        let offsets_seen: Vec<&Value> = seen.iter().map(|seen| &seen["offset"]).collect();
        assert_eq!(offsets_seen, [&json!(1), &Value::Null, &json!(2)], "{seen:?}");
        assert_eq!(offsets(&history(&place.a, "h:a")), [1, 2]);
    });
}

/// A page larger than a reply may be ends earlier, and the next one goes on from there.
#[test]
fn a_long_history_is_read_page_by_page_and_cuts_nobody() {
    on_both(|place| {
        let filler = "x".repeat(20_000);
        let top = publish_each(&place.a, "big:a", (1..=100).map(|n| json!([n, filler])));
        let whole = history(place.b(), "big:a");
        assert_eq!(offsets(&whole), (1..=100).collect::<Vec<_>>(), "the API has room for all");
        assert!(
            whole["publications"]
                .as_array()
                .expect("a list")
                .iter()
                .zip(1..)
                .all(|(publication, n)| publication["data"] == json!([n, filler]))
        );
        let mut cf = Cf::connect(place.b());
        let (mut since, mut n_pages) = (At { offset: 0, ..top.clone() }, 0);
        while since.offset < top.offset {
            let ask = json!({ "channel": "big:a", "limit": -1, "since": since.json() });
            let page = cf.command(json!({ "history": ask }))["history"].clone();
            let offsets = offsets(&page);
            let n = offsets.len() as u64;
            assert_eq!(offsets, (since.offset + 1..=since.offset + n).collect::<Vec<_>>());
            assert!((1..=40).contains(&n), "{n} publications of 20 kB");
            (since.offset, n_pages) = (since.offset + n, n_pages + 1);
        }
        assert!(n_pages >= 3 && !cf.raw.is_closed(), "{n_pages}");
    });
}

#[test]
fn one_read_is_bounded_by_number() {
    let place = Place::memory_with(|builder| builder.env("HUB_HISTORY_MAX", 4));
    publish_each(&place.a, "h:a", 1..=6);
    assert_eq!(offsets(&history(&place.a, "h:a")), [1, 2, 3, 4]);
    let mut cf = Cf::connect(&place.a);
    let ask = json!({ "channel": "h:a", "limit": 100, "reverse": true });
    let reply = cf.command(json!({ "history": ask }));
    assert_eq!(offsets(&reply["history"]), [6, 5, 4, 3]);
}

/// JSON can't carry it: it has its number all the same, live and in the history.
#[test]
fn a_payload_that_is_no_text_is_left_out() {
    on_both(|place| {
        let mut live = Cf::subscribed(place.b(), &["h:a"]);
        let bytes = json!({ "channel": "h:a", "b64data": "/wD+" });
        assert_eq!(result(&place.a, "publish", bytes)["offset"], 1);
        publish(&place.a, "h:a", 2);
        assert_eq!(live.next_pub(SOON).expect("the next one").body["offset"], 2);
        let page = history(&place.a, "h:a");
        assert_eq!((offsets(&page), page["offset"].as_u64()), (vec![2], Some(2)));
        let ask = json!({ "history": { "channel": "h:a", "limit": -1 } });
        assert_eq!(offsets(&live.command(ask)["history"]), [2]);
    });
}

/// What a client asks in one frame takes effect in order, behind its subscribe too.
#[test]
fn a_history_sees_what_the_same_client_published_before() {
    on_both(|place| {
        let mut cf = Cf::connect(&place.a);
        let history = json!({ "history": { "channel": "h:a", "limit": -1 } });
        let ids = cf.send(vec![
            common::cf::subscribe("h:a"),
            publish_command("h:a", &json!(1)),
            publish_command("h:a", &json!(2)),
            history,
        ]);
        let reply = cf.reply(ids[3], SOON).expect("answered");
        assert_eq!(offsets(&reply["history"]), [1, 2], "{reply}");
    });
}

/// One channel as it should be.
#[derive(Default)]
struct Model {
    epoch: String,
    top: u64,
    kept: Vec<u64>,
    /// The offset that came of each key.
    once: std::collections::HashMap<u64, u64>,
    version: u64,
}

fn model_step(place: &Place, hub: &Hub, rng: &mut Rng, channel: &str, model: &mut Model) {
    let since = rng.between(0, model.top + 2);
    match rng.between(0, 9) {
        0..=5 => {
            let key = rng.between(0, 30);
            let version = if rng.between(0, 3) == 0 { rng.between(1, 40) } else { 0 };
            let mut body = json!({ "channel": channel, "data": model.top, "version": version });
            if key < 10 {
                body["idempotency_key"] = json!(key.to_string());
            }
            let known = model.once.get(&key).filter(|_| key < 10).copied();
            let is_new = known.is_none() && (version == 0 || version > model.version);
            if is_new {
                model.top += 1;
                model.kept.push(model.top);
                model.kept.drain(..model.kept.len().saturating_sub(10));
                model.version = model.version.max(version);
                if key < 10 {
                    model.once.insert(key, model.top);
                }
            }
            let at = At::of(&result(hub, "publish", body.clone()));
            let expected = known.unwrap_or(model.top);
            assert_eq!(at, At { offset: expected, epoch: model.epoch.clone() }, "{body}");
        }
        6 => {
            result(hub, "history_remove", json!({ "channel": channel }));
            model.kept.clear();
        }
        _ => {
            let (limit, reverse) = (rng.between(0, 12), rng.between(0, 1) == 1 && since > 0);
            let ask = json!({ "channel": channel, "limit": limit, "reverse": reverse,
                "since": { "offset": since, "epoch": model.epoch } });
            let kept = model.kept.iter().copied();
            let mut expected: Vec<u64> = match reverse {
                true => kept.rev().filter(|offset| *offset < since).collect(),
                false => kept.filter(|offset| *offset > since).collect(),
            };
            expected.truncate(limit as usize);
            let page = result(place.b(), "history", ask.clone());
            assert_eq!(offsets(&page), expected, "{ask}");
            assert_eq!(page["offset"], model.top);
        }
    }
}

#[test]
fn random_interleavings_agree_with_a_model() {
    on_both(|place| {
        let mut rng = Rng::seeded();
        let mut models: Vec<Model> = Vec::new();
        for n in 0..3 {
            let epoch = At::of(&history(&place.a, &format!("h:{n}"))).epoch;
            models.push(Model { epoch, ..Model::default() });
        }
        for _ in 0..common::scaled(600, 5_000) {
            let at = rng.between(0, 2) as usize;
            let hub = if rng.between(0, 1) == 0 { &place.a } else { place.b() };
            model_step(place, hub, &mut rng, &format!("h:{at}"), &mut models[at]);
        }
    });
}
