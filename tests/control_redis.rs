//! Promise: what is asked of a user's connections reaches them on whichever node they are, and a
//! question to all nodes is answered within a second with whatever is alive.

mod common;

use common::cf::subscribe;
use common::{Cf, Close, Hub, Proxy, QUIET, Redis, SOON, eventually, scaled, sign};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const SECRET: &str = "a secret of the tests";
/// Within which a survey is answered; and what a busy machine may add to one or the other.
const ANSWERED: Duration = Duration::from_secs(1);
const ANSWERED_WHEN_BUSY: Duration = Duration::from_secs(5);

fn start(url: &str) -> Hub {
    let builder = Hub::builder().env("HUB_TOKEN_HMAC_SECRET", SECRET);
    builder.env("HUB_REDIS_URL", url).start().wait_ready()
}

fn fleet<const N: usize>(redis: &Redis) -> [Hub; N] {
    std::array::from_fn(|_| start(&redis.url()))
}

fn client(hub: &Hub, user: &str, channels: &[&str]) -> Cf {
    let mut cf = Cf::dial(hub);
    let token = sign(&json!({ "sub": user }), SECRET);
    let reply = cf.command(json!({ "connect": { "token": token } }));
    assert!(reply["connect"].is_object(), "{reply}");
    channels.iter().for_each(|channel| cf.subscribe(channel));
    cf
}

#[track_caller]
fn ask(hub: &Hub, method: &str, body: Value) {
    let response = hub.api(method, &body);
    assert_eq!((response.status, response.text().as_str()), (200, r#"{"result":{}}"#), "{body}");
}

/// The result of a survey, which comes in time whatever happens.
#[track_caller]
fn survey(hub: &Hub, method: &str, body: Value) -> Value {
    timed_survey(hub, method, body).result
}

struct Answer {
    result: Value,
    took: Duration,
}

#[track_caller]
fn timed_survey(hub: &Hub, method: &str, body: Value) -> Answer {
    let asked = Instant::now();
    let response = hub.api(method, &body);
    let took = asked.elapsed();
    assert!(took < ANSWERED_WHEN_BUSY, "{method} took {took:?}");
    let result = response.json()["result"].clone();
    assert!(result.is_object(), "{method}: {} {}", response.status, response.text());
    Answer { result, took }
}

fn uids(info: &Value) -> Vec<String> {
    let nodes = info["nodes"].as_array().expect("nodes").iter();
    nodes.map(|node| node["uid"].as_str().expect("uid").to_owned()).collect()
}

fn forced(code: u16) -> Option<Close> {
    Some(Close { code, reason: "force disconnect".to_owned() })
}

/// Whether a connection works, after all that was asked before.
#[track_caller]
fn is_well(hub: &Hub, cf: &mut Cf, channel: &str) {
    hub.publish(channel, "still there");
    assert_eq!(cf.next_pub(SOON).expect("gone").data, "\"still there\"");
    assert!(cf.pushes.is_empty(), "{:?}", cf.pushes);
}

#[test]
fn a_command_reaches_the_connections_of_all_nodes() {
    let redis = Redis::start();
    let [a, b, c] = fleet(&redis);
    let mut own: Vec<Cf> = [&a, &b, &b].map(|hub| client(hub, "42", &["x", "y"])).into();
    let mut other = client(&b, "4", &["x", "y"]);
    ask(&c, "unsubscribe", json!({ "user": "42", "channel": "x" }));
    for cf in &mut own {
        let push = cf.next_push(SOON).expect("told");
        assert_eq!(push["push"]["unsubscribe"]["code"], 2000, "{push}");
        assert_eq!(push["push"]["channel"], "x");
    }
    let expire_at = sign_time() + 300;
    ask(&b, "refresh", json!({ "user": "42", "expire_at": expire_at }));
    for cf in &mut own {
        let push = cf.next_push(SOON).expect("told");
        assert_eq!(push["push"]["refresh"]["expires"], true, "{push}");
    }
    is_well(&a, &mut other, "x");
    ask(&a, "disconnect", json!({ "user": "42" }));
    own.iter_mut().for_each(|cf| assert_eq!(cf.next_close(SOON), forced(3503)));
    is_well(&c, &mut other, "y");
    assert_eq!(a.metric_sum("hubbub_drops_total"), 0.0);
}

fn sign_time() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

#[test]
fn two_environments_on_one_redis_do_not_meet() {
    let redis = Redis::start();
    let [p1, p2] = ["p1:", "p2:"].map(|prefix| {
        let builder = Hub::builder().env("HUB_TOKEN_HMAC_SECRET", SECRET).redis(&redis);
        builder.env("HUB_REDIS_PREFIX", prefix).start().wait_ready()
    });
    let (mut one, mut two) = (client(&p1, "42", &["x"]), client(&p2, "42", &["x"]));
    ask(&p1, "disconnect", json!({ "user": "42" }));
    assert_eq!(one.next_close(SOON), forced(3503));
    is_well(&p2, &mut two, "x");
    for hub in [&p1, &p2] {
        let info = survey(hub, "info", json!({}));
        assert_eq!((uids(&info).len(), &info["partial"]), (1, &Value::Null), "{info}");
    }
    assert_eq!(redis.channels("ws:*").len(), 0, "all under a prefix");
    assert_eq!(redis.channels("p1:ws:*").len(), 2);
}

#[test]
fn surveys_add_up_over_all_nodes() {
    let redis = Redis::start();
    let [a, b, c] = fleet(&redis);
    let _clients = [
        client(&a, "1", &["rooms:1", "rooms:2"]),
        client(&b, "1", &["rooms:1"]),
        client(&b, "2", &["rooms:1", "lobby"]),
    ];
    for hub in [&a, &b, &c] {
        let info = survey(hub, "info", json!({}));
        let mut clients: Vec<(u64, u64, u64)> = info["nodes"]
            .as_array()
            .expect("nodes")
            .iter()
            .map(|node| {
                let n = |name: &str| node[name].as_u64().unwrap_or_else(|| panic!("{node}"));
                (n("num_clients"), n("num_users"), n("num_subs"))
            })
            .collect();
        clients.sort_unstable();
        assert_eq!(clients, [(0, 0, 0), (1, 1, 2), (2, 2, 3)], "{info}");
        assert!(info["partial"].is_null(), "{info}");
        let channels = survey(hub, "channels", json!({}));
        let expected = json!({ "channels": {
            "rooms:1": { "num_clients": 3 },
            "rooms:2": { "num_clients": 1 },
            "lobby": { "num_clients": 1 },
        } });
        assert_eq!(channels, expected, "whole");
        let rooms = survey(hub, "channels", json!({ "pattern": "*:2" }));
        assert_eq!(rooms, json!({ "channels": { "rooms:2": { "num_clients": 1 } } }));
    }
    assert_eq!(a.metric_sum("hubbub_surveys_partial_total"), 0.0);
}

/// Who listens to all channels of Redis is no node, and who may not ask how many there are counts
/// what Redis counts.
#[test]
fn who_only_listens_in_is_no_node() {
    let redis = Redis::start();
    let own = ["on", ">secret", "+@all", "-pubsub", "~*", "&*"];
    redis.command(&[&["ACL", "SETUSER", "confined"], &own[..]].concat());
    let confined = start(&format!("redis://confined:secret@{}", redis.addr()));
    let [a] = fleet(&redis);
    let whole = |hub: &Hub| {
        let info = survey(hub, "info", json!({}));
        (uids(&info).len(), info["partial"].is_null())
    };
    assert_eq!((whole(&a), whole(&confined)), ((2, true), (2, true)));
    let mut all = redis.client();
    all.command(&["PSUBSCRIBE", "*"]);
    assert_eq!((whole(&a), whole(&confined)), ((2, true), (2, false)));
}

/// Thousands of channels on each node come page by page, whole, while publications arrive.
#[test]
fn many_channels_are_listed_whole() {
    let redis = Redis::start();
    let [a, b] = fleet(&redis);
    let n = scaled(6_000, 40_000);
    let names: Vec<String> = (0..n).map(|at| format!("channel:{at:06}")).collect();
    let mut clients = Vec::new();
    for hub in [&a, &b] {
        for some in names.chunks(120) {
            let mut cf = client(hub, "1", &[]);
            let ids = cf.send(some.iter().map(|name| subscribe(name)).collect());
            let last = *ids.last().expect("one");
            assert!(cf.reply(last, SOON).expect("answered")["subscribe"].is_object());
            clients.push(cf);
        }
    }
    let sum = |hub: &Hub| hub.metric_sum("hubbub_subscriptions");
    assert!(eventually(SOON, || sum(&a) == n as f64 && sum(&b) == n as f64));
    let mut whole = None;
    let found = eventually(SOON, || {
        let answer = timed_survey(&a, "channels", json!({}));
        println!("{n} channels on each of two nodes in {:?}", answer.took);
        let is_whole = answer.result["partial"].is_null();
        whole = is_whole.then_some(answer.result);
        is_whole
    });
    assert!(found, "never whole");
    let whole = whole.expect("found");
    let channels = whole["channels"].as_object().expect("channels");
    assert_eq!(channels.len(), n);
    assert!(channels.values().all(|count| count["num_clients"] == 2));
}

#[test]
fn a_frozen_node_delays_a_survey_by_its_limit_and_marks_it() {
    let redis = Redis::start();
    let [a, b, c] = fleet(&redis);
    let _clients = [client(&a, "1", &["x"]), client(&b, "1", &["x"]), client(&c, "1", &["x"])];
    let whole = survey(&a, "info", json!({}));
    assert_eq!((uids(&whole).len(), &whole["partial"]), (3, &Value::Null));
    c.signal(libc::SIGSTOP);
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        // Together: none waits for another.
        let asks: Vec<_> = (0..8)
            .map(|at| {
                let (hub, method) = ([&a, &b][at % 2], ["info", "channels"][at / 2 % 2]);
                scope.spawn(move || timed_survey(hub, method, json!({})))
            })
            .collect();
        asks.into_iter().map(|ask| ask.join().expect("in time")).collect()
    });
    // Again and again only for a machine that has no time for this test.
    let in_time = || timed_survey(&a, "info", json!({})).took < ANSWERED;
    assert!(eventually(SOON, in_time), "in time");
    for Answer { result: answer, .. } in answers {
        assert_eq!(answer["partial"], true, "{answer}");
        if answer["channels"].is_object() {
            assert_eq!(answer["channels"]["x"]["num_clients"], 2, "{answer}");
        } else {
            assert_eq!(uids(&answer).len(), 2, "{answer}");
        }
    }
    // Commands don't wait for anybody.
    let mut own = client(&b, "42", &[]);
    ask(&a, "disconnect", json!({ "user": "42" }));
    assert_eq!(own.next_close(SOON), forced(3503));
    c.signal(libc::SIGCONT);
    let is_whole = || {
        let info = survey(&a, "info", json!({}));
        info["partial"].is_null() && uids(&info).len() == 3
    };
    assert!(eventually(SOON, is_whole), "it is back");
}

/// Scenario 44: nodes come and die all the time.
#[test]
fn nodes_that_come_and_die_make_no_survey_fail() {
    let redis = Redis::start();
    let [a, b] = fleet(&redis);
    let _clients = [client(&a, "1", &["x"]), client(&b, "1", &["x"])];
    let own = uids(&survey(&b, "info", json!({})));
    let n_partial = std::thread::scope(|scope| {
        let churn = scope.spawn(|| {
            for at in 0..scaled(8, 20) {
                let mut hub = start(&redis.url());
                let _client = client(&hub, "1", &["x"]);
                if at % 3 == 0 {
                    hub.signal(libc::SIGTERM);
                    hub.wait_exit(SOON).expect("ends");
                }
            }
        });
        let mut answers = Vec::new();
        while !churn.is_finished() {
            let info = timed_survey(&b, "info", json!({}));
            let found = uids(&info.result);
            assert!(own.iter().all(|uid| found.contains(uid)), "{own:?}: {found:?}");
            let channels = timed_survey(&b, "channels", json!({}));
            let count = channels.result["channels"]["x"]["num_clients"].as_u64();
            assert!(count.is_some_and(|count| count >= 2), "{}", channels.result);
            answers.extend([info, channels]);
        }
        churn.join().expect("nodes start");
        let n_partial = answers.iter().filter(|it| it.result["partial"] == true).count();
        let n_slow = answers.iter().filter(|it| it.took >= ANSWERED).count();
        println!("{} surveys, {n_partial} of them partial, {n_slow} late", answers.len());
        assert!(n_slow * 20 <= answers.len(), "{n_slow} of {}", answers.len());
        n_partial
    });
    assert_eq!(b.metric_sum("hubbub_surveys_partial_total"), n_partial as f64);
    let after = survey(&b, "info", json!({}));
    assert!(after["partial"].is_null() && uids(&after).len() == 2, "the dead are forgotten");
}

#[test]
fn without_redis_commands_fail_and_surveys_are_of_this_node() {
    let mut redis = Redis::start();
    let [a, b] = fleet(&redis);
    let mut own = client(&a, "42", &["x"]);
    let _other = client(&b, "42", &["x"]);
    redis.kill();
    assert!(eventually(SOON, || a.metrics().get("hubbub_redis_up{link=\"command\"}") == 0.0));
    for method in ["disconnect", "unsubscribe", "refresh"] {
        let response = a.api(method, &json!({ "user": "42" }));
        assert_eq!(response.json()["error"]["code"], 100, "{method}: {}", response.text());
    }
    let info = survey(&a, "info", json!({}));
    assert_eq!((uids(&info).len(), &info["partial"]), (1, &json!(true)), "{info}");
    let channels = survey(&a, "channels", json!({}));
    let expected = json!({ "channels": { "x": { "num_clients": 1 } }, "partial": true });
    assert_eq!(channels, expected);
    redis.restart();
    assert!(eventually(SOON, || a.ready() && b.ready()));
    assert!(
        own.pushes.is_empty() && own.next_close(QUIET).is_none(),
        "what failed isn't done later"
    );
    let whole = || uids(&survey(&a, "info", json!({}))).len() == 2;
    assert!(eventually(SOON, whole));
    ask(&b, "disconnect", json!({ "user": "42" }));
    assert_eq!(own.next_close(SOON), forced(3503));
}

#[test]
fn a_redis_that_hangs_holds_up_no_survey() {
    let redis = Redis::start();
    let [a] = fleet(&redis);
    let _own = client(&a, "42", &["x"]);
    redis.stop();
    for _ in 0..2 {
        let channels = survey(&a, "channels", json!({}));
        assert_eq!(channels["channels"]["x"]["num_clients"], 1, "{channels}");
        assert_eq!(channels["partial"], true, "{channels}");
    }
    redis.cont();
    assert!(eventually(SOON, || survey(&a, "info", json!({}))["partial"].is_null()));
}

#[test]
fn a_node_that_can_not_hear_says_so() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.addr());
    let [a, b] = [start(&proxy.url()), start(&redis.url())];
    let mut elsewhere = client(&b, "42", &["x"]);
    // Its link leads nowhere any more, and it doesn't know it yet.
    proxy.blackhole_pubsub();
    let info = survey(&a, "info", json!({}));
    assert_eq!((uids(&info).len(), &info["partial"]), (1, &json!(true)), "{info}");
    proxy.refuse(true);
    proxy.cut();
    assert!(eventually(SOON, || a.metrics().get("hubbub_redis_up{link=\"pubsub\"}") == 0.0));
    let info = survey(&a, "info", json!({}));
    assert_eq!((uids(&info).len(), &info["partial"]), (1, &json!(true)));
    let info = survey(&b, "info", json!({}));
    assert_eq!((uids(&info).len(), &info["partial"]), (1, &Value::Null), "a isn't there for b");
    assert_eq!(a.api("disconnect", &json!({ "user": "42" })).json()["error"]["code"], 100);
    is_well(&b, &mut elsewhere, "x");
}

#[test]
fn what_is_no_message_is_counted_and_ignored() {
    let redis = Redis::start();
    let [a] = fleet(&redis);
    let mut own = client(&a, "42", &["x"]);
    let from = uids(&survey(&a, "info", json!({})))[0].clone();
    let before = a.metric_sum("hubbub_control_messages_total");
    let head = format!(r#"{{"v":1,"from":"{from}","kind":"#);
    let bad = [
        String::new(),
        "{".to_owned(),
        "\u{1}".to_owned(),
        format!(r#"{head}"disconnect"}}"#),
        format!(r#"{head}"disconnect","user":"42","code":1005,"reason":""}}"#),
        "x".repeat(5_000_000),
    ];
    let novel = [
        format!(r#"{head}"novel","user":"42"}}"#),
        format!(r#"{{"v":2,"from":"{from}","kind":"unsubscribe","user":"42"}}"#),
    ];
    for message in bad.iter().chain(&novel) {
        assert_eq!(redis.publish("ws:control", message), 1);
    }
    let node = format!("ws:node:{from}");
    assert_eq!(redis.publish(&node, "not a probe"), 1);
    let dropped = || a.metrics().get("hubbub_drops_total{reason=\"bad_control\"}");
    assert!(eventually(SOON, || dropped() == bad.len() as f64 + 1.0), "{}", dropped());
    assert!(eventually(SOON, || a.metric_sum("hubbub_control_unknown_total") == 2.0));
    assert_eq!(a.metric_sum("hubbub_control_messages_total") - before, 9.0);
    is_well(&a, &mut own, "x");
    // A newer node's members are ignored, the rest is obeyed.
    let newer =
        format!(r#"{head}"disconnect","user":"42","code":4000,"reason":"bye","novel":[1]}}"#);
    redis.publish("ws:control", newer);
    let close = Some(Close { code: 4000, reason: "bye".to_owned() });
    assert_eq!(own.next_close(SOON), close);
    assert_eq!(a.metric_sum("hubbub_redis_connects_total"), 2.0, "the links held");
    assert!(survey(&a, "info", json!({}))["partial"].is_null());
}

/// A crowd's commands come to a node that is at its bound: what is dropped is counted, and what
/// was published arrives.
#[test]
fn a_flood_of_commands_harms_no_delivery() {
    let redis = Redis::start();
    let [a] = fleet(&redis);
    let mut watcher = client(&a, "watcher", &["x"]);
    let from = uids(&survey(&a, "info", json!({})))[0].clone();
    let one = format!(r#"{{"v":1,"from":"{from}","kind":"unsubscribe","user":"","channel":"y"}}"#);
    let mut redis_client = redis.client();
    for _ in 0..scaled(20_000, 100_000) {
        redis_client.publish("ws:control", one.as_bytes());
    }
    is_well(&a, &mut watcher, "x");
    ask(&a, "disconnect", json!({ "user": "watcher" }));
    assert_eq!(watcher.next_close(SOON), forced(3503));
}
