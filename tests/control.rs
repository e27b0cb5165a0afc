//! Promise: what the server API asks of a user's connections happens to all of them, to no other,
//! and holds up nobody.

mod common;

use common::cf::{subscribe, unsubscribe};
use common::ws::{Dial, raw_path};
use common::{Cf, Close, Hub, QUIET, Raw, SOON, drive, eventually, scaled, secs, sign};
use serde_json::{Value, json};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

const SECRET: &str = "a secret of the tests";

fn start() -> Hub {
    Hub::builder().env("HUB_TOKEN_HMAC_SECRET", SECRET).start().wait_ready()
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A connection and its id; an empty user is the anonymous one, without a token.
struct Client {
    cf: Cf,
    id: String,
}

fn sign_in(hub: &Hub, user: &str, claims: Value, channels: &[&str]) -> Client {
    let mut cf = Cf::dial(hub);
    let mut all = json!({ "sub": user });
    all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
    let token = if user.is_empty() { String::new() } else { sign(&all, SECRET) };
    let reply = cf.command(json!({ "connect": { "token": token } }));
    let id = reply["connect"]["client"].as_str().unwrap_or_else(|| panic!("{reply}")).to_owned();
    channels.iter().for_each(|channel| cf.subscribe(channel));
    Client { cf, id }
}

fn client(hub: &Hub, user: &str, channels: &[&str]) -> Client {
    sign_in(hub, user, json!({}), channels)
}

fn raw(hub: &Hub, user: &str, channels: &[&str]) -> Raw {
    let token = sign(&json!({ "sub": user }), SECRET);
    let mut dial = Dial::new(hub, &raw_path(channels));
    if !user.is_empty() {
        dial = dial.header("Authorization", &format!("Bearer {token}"));
    }
    dial.open()
}

#[track_caller]
fn ask(hub: &Hub, method: &str, body: Value) {
    let response = hub.api(method, &body);
    assert_eq!((response.status, response.text().as_str()), (200, r#"{"result":{}}"#), "{body}");
}

#[track_caller]
fn error_code(hub: &Hub, method: &str, body: Value) -> Value {
    let response = hub.api(method, &body);
    assert_eq!(response.status, 200, "{body}: {}", response.text());
    response.json()["error"]["code"].clone()
}

fn close(code: u16, reason: &str) -> Option<Close> {
    Some(Close { code, reason: reason.to_owned() })
}

/// Whether a connection works, after all that was asked before.
#[track_caller]
fn is_well(hub: &Hub, cf: &mut Cf, channel: &str) {
    hub.publish(channel, "still there");
    let publication =
        cf.next_pub(SOON).unwrap_or_else(|| panic!("gone: {:?}", cf.next_close(QUIET)));
    assert_eq!(publication.data, "\"still there\"");
    assert!(cf.pushes.is_empty(), "{:?}", cf.pushes);
}

#[test]
fn a_user_is_disconnected_and_nobody_else() {
    let hub = start();
    let mut own = [client(&hub, "42", &["a"]), client(&hub, "42", &["b"])];
    let mut raw = raw(&hub, "42", &["a"]);
    let mut others = [client(&hub, "4", &["a"]), client(&hub, "", &["a"])];
    ask(&hub, "disconnect", json!({ "user": "42" }));
    for Client { cf, .. } in &mut own {
        assert_eq!(cf.next_close(SOON), close(3503, "force disconnect"));
        assert!(cf.pushes.is_empty(), "no push before the close: {:?}", cf.pushes);
    }
    assert_eq!(raw.next_close(SOON), close(3503, "force disconnect"));
    others.iter_mut().for_each(|other| is_well(&hub, &mut other.cf, "a"));
    assert_eq!(hub.metric_sum("hubbub_controlled_total"), 3.0);
    assert_eq!(hub.metrics().get("hubbub_closes_total{code=\"3503\"}"), 3.0);
    let mut again = client(&hub, "42", &["a"]);
    is_well(&hub, &mut again.cf, "a");
}

#[test]
fn without_a_user_it_is_the_anonymous_one() {
    let hub = start();
    let mut anonymous = client(&hub, "", &["a"]);
    let mut raw = raw(&hub, "", &["a"]);
    let mut named = client(&hub, "42", &["a"]);
    for body in [json!({ "client": named.id }), json!({ "user": "", "client": named.id })] {
        ask(&hub, "disconnect", body);
    }
    ask(&hub, "disconnect", json!({ "user": "nobody" }));
    is_well(&hub, &mut anonymous.cf, "a");
    is_well(&hub, &mut named.cf, "a");
    ask(&hub, "disconnect", json!({}));
    assert_eq!(anonymous.cf.next_close(SOON), close(3503, "force disconnect"));
    assert_eq!(raw.next_close(SOON), close(3503, "force disconnect"));
    is_well(&hub, &mut named.cf, "a");
}

#[test]
fn filters_and_the_whitelist_choose_among_a_users_connections() {
    let hub = start();
    let mut a = client(&hub, "42", &["a"]);
    let mut b = client(&hub, "42", &["a"]);
    let mut c = client(&hub, "42", &["a"]);
    ask(&hub, "disconnect", json!({ "user": "42", "session": "of no WebSocket" }));
    ask(&hub, "disconnect", json!({ "user": "42", "client": "no id" }));
    ask(&hub, "disconnect", json!({ "user": "42", "client": a.id }));
    assert_eq!(a.cf.next_close(SOON), close(3503, "force disconnect"));
    let keep = ["no id", b.id.as_str()];
    ask(&hub, "disconnect", json!({ "user": "42", "whitelist": keep }));
    assert_eq!(c.cf.next_close(SOON), close(3503, "force disconnect"));
    is_well(&hub, &mut b.cf, "a");
}

#[test]
fn codes_and_reasons_of_a_disconnect() {
    let hub = start();
    let long = "é".repeat(100);
    for (disconnect, code, reason) in [
        (json!({ "code": 4001, "reason": "moved" }), 4001, "moved".to_owned()),
        (json!({ "code": 0, "reason": "why" }), 3503, "why".to_owned()),
        (json!({ "code": 3005 }), 3005, "connection expired".to_owned()),
        (json!({ "code": 4999, "reason": "" }), 4999, "force disconnect".to_owned()),
        (json!({ "code": 1000, "reason": long }), 1000, "é".repeat(61)),
        (Value::Null, 3503, "force disconnect".to_owned()),
    ] {
        let mut one = client(&hub, "42", &[]);
        ask(&hub, "disconnect", json!({ "user": "42", "disconnect": disconnect }));
        assert_eq!(one.cf.next_close(SOON), close(code, &reason), "{disconnect}");
    }
    let mut one = client(&hub, "42", &["a"]);
    for code in [1, 999, 1004, 1005, 1006, 1015, 2999, 5000, 70_000] {
        let body = json!({ "user": "42", "disconnect": { "code": code, "reason": "x" } });
        assert_eq!(error_code(&hub, "disconnect", body), 107, "{code}");
    }
    let huge = "x".repeat(70_000);
    assert_eq!(error_code(&hub, "disconnect", json!({ "user": huge })), 107);
    is_well(&hub, &mut one.cf, "a");
}

fn unsubscribed(channel: &str) -> Value {
    let push = json!({ "code": 2000, "reason": "server unsubscribe" });
    json!({ "push": { "channel": channel, "unsubscribe": push } })
}

#[test]
fn a_subscription_is_ended_and_stays_ended() {
    let hub = start();
    let mut own = client(&hub, "42", &["a", "b"]);
    let mut other = client(&hub, "4", &["a"]);
    let mut raw = raw(&hub, "42", &["a", "b"]);
    ask(&hub, "unsubscribe", json!({ "user": "42", "channel": "never" }));
    ask(&hub, "unsubscribe", json!({ "user": "42", "channel": "a" }));
    assert_eq!(own.cf.next_push(SOON), Some(unsubscribed("a")));
    assert_eq!(raw.next_close(SOON), close(3503, "force disconnect"), "it can't be told");
    hub.publish("a", 1);
    is_well(&hub, &mut own.cf, "b");
    assert_eq!(other.cf.next_pub(SOON).expect("not meant").data, "1");
    own.cf.subscribe("a");
    is_well(&hub, &mut own.cf, "a");
}

#[test]
fn without_a_channel_all_subscriptions_end_with_one_push_each() {
    let hub = start();
    let mut own = client(&hub, "42", &["a", "b", "c"]);
    let mut other = client(&hub, "4", &["b"]);
    ask(&hub, "unsubscribe", json!({ "user": "42" }));
    let mut pushes: Vec<Value> =
        (0..3).map(|_| own.cf.next_push(SOON).expect("one of three")).collect();
    pushes.sort_by_key(|push| push["push"]["channel"].to_string());
    assert_eq!(pushes, ["a", "b", "c"].map(unsubscribed));
    for channel in ["a", "b", "c"] {
        hub.publish(channel, 1);
    }
    assert_eq!(other.cf.next_pub(SOON).expect("not meant").data, "1");
    assert!(own.cf.stays_quiet(QUIET), "{:?} {:?}", own.cf.pubs, own.cf.pushes);
    own.cf.subscribe("a");
    is_well(&hub, &mut own.cf, "a");
}

#[test]
fn unsubscribes_of_what_can_not_be() {
    let hub = start();
    assert_eq!(error_code(&hub, "unsubscribe", json!({ "channel": "ws:x" })), 107);
    assert_eq!(error_code(&hub, "subscribe", json!({ "user": "42" })), 107);
    assert_eq!(error_code(&hub, "subscribe", json!({ "channel": "a", "b64data": "*" })), 107);
    assert_eq!(error_code(&hub, "subscribe", json!({ "channel": "a", "b64info": "/w==" })), 107);
    assert_eq!(error_code(&hub, "subscribe", json!({ "channel": "a", "expire_at": 1 })), 100);
    let over = "x".repeat(70_000);
    assert_eq!(error_code(&hub, "subscribe", json!({ "channel": "a", "data": over })), 107);
    for body in [r#"{"override":{"presence":true}}"#, r#"{"channel":"a","recover_since":1}"#] {
        assert_eq!(hub.http("POST", "/api/subscribe", body).status, 400, "{body}");
    }
}

#[test]
fn a_refresh_moves_the_end_of_a_connection() {
    let hub = Hub::builder()
        .env("HUB_TOKEN_HMAC_SECRET", SECRET)
        .env("HUB_EXPIRED_GRACE", "1s")
        .start()
        .wait_ready();
    let soon = json!({ "exp": now_s() + 2 });
    let mut kept = sign_in(&hub, "kept", soon.clone(), &["a"]);
    let mut freed = sign_in(&hub, "freed", soon.clone(), &["a"]);
    let mut left = sign_in(&hub, "left", soon, &["a"]);
    ask(&hub, "refresh", json!({ "user": "kept", "expire_at": now_s() + 300 }));
    let push = kept.cf.next_push(SOON).expect("a refresh push");
    assert_eq!(push["push"]["refresh"]["expires"], true, "{push}");
    let ttl = push["push"]["refresh"]["ttl"].as_u64().expect("a ttl");
    assert!((295..=300).contains(&ttl), "{push}");
    ask(&hub, "refresh", json!({ "user": "freed" }));
    assert_eq!(freed.cf.next_push(SOON), Some(json!({ "push": { "refresh": {} } })));
    assert_eq!(left.cf.next_close(SOON), close(3005, "connection expired"));
    is_well(&hub, &mut kept.cf, "a");
    assert_eq!(freed.cf.next_pub(SOON).expect("lives on").data, "\"still there\"");
    // Now.
    ask(&hub, "refresh", json!({ "user": "kept", "expired": true, "expire_at": now_s() + 300 }));
    assert_eq!(kept.cf.next_close(SOON), close(3005, "connection expired"));
    ask(&hub, "refresh", json!({ "user": "freed", "expire_at": now_s() - 1 }));
    assert_eq!(freed.cf.next_close(SOON), close(3005, "connection expired"));
}

#[test]
fn a_refresh_changes_what_others_see() {
    let hub = start();
    let mut own = sign_in(&hub, "42", json!({ "info": { "name": "A" } }), &["a"]);
    let info = |own: &mut Client| {
        own.cf.command(json!({ "publish": { "channel": "a", "data": 1 } }));
        own.cf.next_pub(SOON).expect("its own").body["info"]["conn_info"].clone()
    };
    assert_eq!(info(&mut own), json!({ "name": "A" }));
    ask(&hub, "refresh", json!({ "user": "42", "info": { "name": "B" } }));
    own.cf.next_push(SOON).expect("a refresh push");
    assert_eq!(info(&mut own), json!({ "name": "A" }), "without an end it is ignored");
    let body = json!({ "user": "42", "expire_at": now_s() + 300, "info": { "name": "B" } });
    ask(&hub, "refresh", body);
    own.cf.next_push(SOON).expect("a refresh push");
    assert_eq!(info(&mut own), json!({ "name": "B" }));
}

/// Thousands of connections go, and somebody who isn't meant gets everything meanwhile.
#[test]
fn a_mass_disconnect_holds_up_nobody() {
    let hub = start();
    let n = scaled(1_500, 8_000);
    let channels: Vec<String> = (0..20).map(|at| format!("c:{at}")).collect();
    let mut crowd: Vec<Cf> = (0..n)
        .map(|at| {
            let names = [channels[at % 20].as_str(), channels[at % 19].as_str(), "a"];
            let mut cf = client(&hub, "crowd", &[]).cf;
            cf.send(names.iter().map(|name| subscribe(name)).collect());
            cf
        })
        .collect();
    let subscribed = || hub.metric_sum("hubbub_connections") >= n as f64;
    assert!(eventually(SOON, subscribed));
    let mut watcher = client(&hub, "watcher", &["b"]);
    let began = Instant::now();
    ask(&hub, "disconnect", json!({ "user": "crowd" }));
    let mut slowest = secs(0);
    for at in 0..20 {
        let sent = Instant::now();
        hub.publish("b", at);
        assert_eq!(watcher.cf.next_pub(SOON).expect("served").data, at.to_string());
        slowest = slowest.max(sent.elapsed());
    }
    assert!(drive(&mut crowd, secs(30), |cf| cf.raw.is_closed()), "all are told");
    for cf in &mut crowd {
        assert_eq!(cf.next_close(SOON), close(3503, "force disconnect"));
    }
    drop(crowd);
    assert!(eventually(SOON, || hub.metric_sum("hubbub_connections") == 1.0));
    println!("{n} closed in {:?}, slowest publication meanwhile {slowest:?}", began.elapsed());
    assert!(slowest < secs(2), "{slowest:?}");
    is_well(&hub, &mut watcher.cf, "b");
}

#[test]
fn who_comes_back_at_once_is_not_disconnected_again() {
    let hub = start();
    for _ in 0..20 {
        let mut own = client(&hub, "42", &["a"]);
        ask(&hub, "disconnect", json!({ "user": "42", "disconnect": { "code": 3011 } }));
        assert_eq!(own.cf.next_close(SOON), close(3011, "force reconnect"));
        let mut back = client(&hub, "42", &["a"]);
        is_well(&hub, &mut back.cf, "a");
        back.cf.command(unsubscribe("a"));
    }
}
