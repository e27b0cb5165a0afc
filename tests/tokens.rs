//! Promise: a client is who its token says, for as long as the token says, and may do what its
//! namespaces allow; nobody else gets in, and no secret gets out.

mod common;

use common::cf::{Cf, publish, subscribe, unsubscribe};
use common::hub::Builder;
use common::ws::Dial;
use common::{Close, Hub, QUIET, SOON, drive, eventually, ms, scaled, secs, sign};
use serde_json::{Value, json};
use std::io::Write;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

const SECRET: &str = "a secret of the tests";
const NAMESPACES: &str = r#"
[namespaces.""]
[namespaces.open]
subscribe = "anyone"
publish = "anyone"
[namespaces.rooms]
subscribe = "token"
publish = "subscriber"
[namespaces.closed]
subscribe = "nobody"
"#;

fn now_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64
}

fn token(claims: Value) -> String {
    sign(&claims, SECRET)
}

fn connect(token: &str) -> Value {
    json!({ "connect": { "token": token } })
}

fn subscribe_with(channel: &str, token: &str) -> Value {
    json!({ "subscribe": { "channel": channel, "token": token } })
}

fn close(code: u16, reason: &str) -> Option<Close> {
    Some(Close { code, reason: reason.to_owned() })
}

struct ConfigFile(tempfile::NamedTempFile);

impl ConfigFile {
    fn new(text: &str) -> Self {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(text.as_bytes()).expect("written");
        Self(file)
    }

    fn replace(&mut self, text: &str) {
        std::fs::write(self.0.path(), text).expect("written");
    }

    fn path(&self) -> String {
        self.0.path().display().to_string()
    }
}

fn builder() -> Builder {
    Hub::builder().without_dev().env("HUB_TOKEN_HMAC_SECRET", SECRET)
}

/// With the key `k`.
fn publish_by_api(hub: &Hub, channel: &str) {
    let body = json!({ "channel": channel, "data": 1 }).to_string();
    assert!(hub.http_with("POST", "/api/publish", &[("X-API-Key", "k")], body).is_result());
}

fn signed_in(hub: &Hub, claims: Value) -> Cf {
    let mut cf = Cf::dial(hub);
    let reply = cf.command(connect(&token(claims)));
    assert!(reply["connect"]["client"].is_string(), "{reply}");
    cf
}

#[test]
fn a_token_is_who_one_is() {
    let file = ConfigFile::new(NAMESPACES);
    let hub = builder().env("HUB_CONFIG", file.path()).start().wait_ready();
    let mut author = signed_in(&hub, json!({ "sub": "42", "info": { "name": "Ada" } }));
    let mut reader = signed_in(&hub, json!({ "sub": "43" }));
    reader.subscribe("open:a");
    let reply = author.command(publish("open:a", &json!(1)));
    assert!(reply["publish"].is_object(), "{reply}");
    let info = reader.next_pub(SOON).expect("published").body["info"].clone();
    assert_eq!((&info["user"], &info["conn_info"]), (&json!("42"), &json!({ "name": "Ada" })));
    assert!(info["client"].is_string());
    let nodes = hub.http_with("POST", "/api/info", &[], "{}");
    assert_eq!(nodes.status, 401, "no key, no API");
}

#[test]
fn bad_tokens_get_nobody_in() {
    let hub = builder().start().wait_ready();
    let good = json!({ "sub": "user-of-the-tests" });
    let unsigned = {
        let parts = token(good.clone());
        let payload = parts.split('.').nth(1).expect("three parts").to_owned();
        format!("eyJhbGciOiJub25lIn0.{payload}.")
    };
    let bad = [
        sign(&good, "another secret"),
        unsigned,
        "garbage".to_owned(),
        "a.b.c".to_owned(),
        token(json!({ "sub": "42", "channel": "a" })),
        "x".repeat(20_000),
    ];
    for token in &bad {
        let mut cf = Cf::dial(&hub);
        cf.send(vec![connect(token), subscribe("a")]);
        assert_eq!(cf.next_close(SOON), close(3500, "invalid token"), "{token:.40}");
        assert!(cf.replies.is_empty());
        let dial = Dial::new(&hub, &format!("/ws?channel=a&token={token:.2000}"));
        assert_eq!(dial.try_open().err().expect("refused").status, 401, "{token:.40}");
        assert!(!hub.log_has(&token[..token.len().min(40)]), "no token in the log");
    }
    let mut nobody = Cf::dial(&hub);
    nobody.send(vec![json!({ "connect": {} })]);
    assert_eq!(nobody.next_close(SOON), close(3501, "bad request"));
    assert!(!hub.log_has(SECRET));
    assert!(!hub.get("/metrics").text().contains("user-of-the-tests"));
}

#[test]
fn an_expired_token_is_109_and_its_frame_is_void() {
    let hub = builder().start().wait_ready();
    let mut cf = Cf::dial(&hub);
    let old = token(json!({ "sub": "42", "exp": now_s() - 60 }));
    let ids = cf.send(vec![connect(&old), subscribe("a")]);
    let reply = cf.reply(ids[0], SOON).expect("a reply");
    assert_eq!(reply["error"]["code"], 109, "{reply}");
    cf.wait(QUIET, |_| false);
    assert!(cf.replies.is_empty(), "the subscribe counts for nothing");
    // Clocks differ by a few seconds: 10 of leeway.
    signed_in(&hub, json!({ "sub": "42", "exp": now_s() - 5 }));
    signed_in(&hub, json!({ "sub": "42", "nbf": now_s() + 5, "iat": now_s() + 5 }));
}

#[test]
fn keys_rotate() {
    let hub = builder().env("HUB_TOKEN_HMAC_PREVIOUS_SECRET", "the old one").start().wait_ready();
    for secret in [SECRET, "the old one"] {
        let mut cf = Cf::dial(&hub);
        let reply = cf.command(connect(&sign(&json!({ "sub": "42" }), secret)));
        assert!(reply["connect"].is_object(), "{secret}: {reply}");
    }
}

#[test]
fn a_connection_ends_with_its_token_unless_it_is_refreshed() {
    let builder = builder().env("HUB_EXPIRED_GRACE", "1s").env("HUB_API_KEY", "k");
    let hub = builder.start().wait_ready();
    let expiring = || json!({ "sub": "42", "exp": now_s() + 2 });
    let mut dial = Cf::dial(&hub);
    let reply = dial.command(connect(&token(expiring())));
    assert_eq!(reply["connect"]["expires"], true);
    assert!([1, 2].contains(&reply["connect"]["ttl"].as_u64().expect("a ttl")), "{reply}");
    let mut kept = signed_in(&hub, expiring());
    kept.subscribe("a");
    let mut foreign = signed_in(&hub, expiring());
    let fresh = token(json!({ "sub": "42", "exp": now_s() + 3600 }));
    let reply = kept.command(json!({ "refresh": { "token": fresh } }));
    assert_eq!(reply["refresh"]["expires"], true, "{reply}");
    assert!(reply["refresh"]["ttl"].as_u64().expect("a ttl") > 3500);
    let other = token(json!({ "sub": "43" }));
    foreign.send(vec![json!({ "refresh": { "token": other } })]);
    assert_eq!(foreign.next_close(SOON), close(3500, "invalid token"));
    assert_eq!(dial.next_close(SOON), close(3005, "connection expired"));
    publish_by_api(&hub, "a");
    assert_eq!(kept.next_pub(SOON).expect("lives on").data, "1");
    // Refreshed to no end at all.
    let reply = kept.command(json!({ "refresh": { "token": token(json!({ "sub": "42" })) } }));
    assert_eq!(reply["refresh"], json!({}), "{reply}");
}

#[test]
fn subscription_tokens_open_their_channel_and_no_other() {
    let file = ConfigFile::new(NAMESPACES);
    let hub = builder().env("HUB_CONFIG", file.path()).start().wait_ready();
    let mut cf = signed_in(&hub, json!({ "sub": "42" }));
    let code = |error: Value| error["code"].as_u64().expect("a code");
    assert_eq!(code(cf.error(subscribe("rooms:7"))), 103, "no token");
    assert_eq!(code(cf.error(subscribe("closed:a"))), 103);
    assert_eq!(code(cf.error(subscribe("nowhere:a"))), 102);
    assert_eq!(code(cf.error(publish("rooms:7", &json!(1)))), 103, "not subscribed");
    assert_eq!(code(cf.error(publish("nowhere:a", &json!(1)))), 102);
    let claims = |channel: &str, user: &str| json!({ "channel": channel, "sub": user });
    let good = token(claims("rooms:7", "42"));
    let reply = cf.command(subscribe_with("rooms:7", &good));
    assert!(reply["subscribe"].is_object(), "{reply}");
    let reply = cf.command(publish("rooms:7", &json!(1)));
    assert!(reply["publish"].is_object(), "{reply}");
    assert_eq!(cf.next_pub(SOON).expect("own publication").data, "1");
    cf.unsubscribe("rooms:7");
    assert_eq!(code(cf.error(publish("rooms:7", &json!(1)))), 103, "not subscribed any more");
    let old = json!({ "channel": "rooms:8", "sub": "42", "exp": now_s() - 60 });
    assert_eq!(code(cf.error(subscribe_with("rooms:8", &token(old)))), 109);
    for (channel, user) in
        [("rooms:7", "42"), ("rooms:*", "42"), ("rooms:8#42", "42"), ("rooms:8", "43")]
    {
        let mut thief = signed_in(&hub, json!({ "sub": "42" }));
        thief.send(vec![subscribe_with("rooms:8", &token(claims(channel, user)))]);
        assert_eq!(thief.next_close(SOON), close(3500, "invalid token"), "{channel} {user}");
    }
}

#[test]
fn a_subscription_ends_with_its_token_unless_it_is_refreshed() {
    let file = ConfigFile::new(NAMESPACES);
    let hub = builder().env("HUB_CONFIG", file.path()).env("HUB_EXPIRED_GRACE", "1s");
    let hub = hub.env("HUB_API_KEY", "k").start().wait_ready();
    let mut cf = signed_in(&hub, json!({ "sub": "42" }));
    let until = |channel: &str, s: i64| {
        token(json!({ "channel": channel, "sub": "42", "exp": now_s() + s }))
    };
    for channel in ["rooms:kept", "rooms:python", "rooms:left"] {
        let reply = cf.command(subscribe_with(channel, &until(channel, 2)));
        assert_eq!(reply["subscribe"]["expires"], true, "{reply}");
        assert!(reply["subscribe"]["ttl"].as_u64().is_some_and(|ttl| ttl <= 2), "{reply}");
    }
    let refresh = |channel: Option<&str>, token: &str| {
        let mut body = json!({ "token": token });
        if let Some(channel) = channel {
            body["channel"] = json!(channel);
        }
        json!({ "sub_refresh": body })
    };
    let kept = Some("rooms:kept");
    let reply = cf.command(refresh(kept, &until("rooms:kept", 3600)));
    assert!(reply["sub_refresh"]["ttl"].as_u64().expect("a ttl") > 3500, "{reply}");
    // centrifuge-python names no channel.
    let reply = cf.command(refresh(None, &until("rooms:python", 3600)));
    assert!(reply["sub_refresh"]["ttl"].as_u64().expect("a ttl") > 3500, "{reply}");
    let error = cf.error(refresh(Some("rooms:never"), &until("rooms:never", 3600)));
    assert_eq!(error["code"], 103, "{error}");
    let push = cf.next_push(SOON).expect("the third ends");
    let ended = json!({ "code": 2501, "reason": "subscription expired" });
    assert_eq!(push["push"], json!({ "channel": "rooms:left", "unsubscribe": ended }));
    for channel in ["rooms:left", "rooms:kept", "rooms:python"] {
        publish_by_api(&hub, channel);
    }
    assert_eq!(cf.next_pub(SOON).expect("kept").channel, "rooms:kept");
    assert_eq!(cf.next_pub(SOON).expect("kept").channel, "rooms:python");
    assert!(cf.stays_quiet(QUIET));
    let reply = cf.command(subscribe_with("rooms:left", &until("rooms:left", 3600)));
    assert!(reply["subscribe"].is_object(), "and can be had again: {reply}");
}

#[test]
fn anonymous_clients_get_what_is_open_to_anyone() {
    let file = ConfigFile::new(NAMESPACES);
    let builder = Hub::builder().without_dev().env("HUB_ALLOW_ANONYMOUS", true);
    let hub = builder.env("HUB_CONFIG", file.path()).start().wait_ready();
    let mut cf = Cf::connect(&hub);
    cf.subscribe("open:a");
    assert_eq!(cf.error(subscribe("plain"))["code"], 103, "for users");
    let reply = cf.command(publish("open:a", &json!(1)));
    assert!(reply["publish"].is_object(), "{reply}");
    assert_eq!(cf.next_pub(SOON).expect("published").body["info"]["user"], "");
    let raw = |channel: &str| Dial::new(&hub, &format!("/ws?channel={channel}")).try_open();
    assert!(raw("open:a").is_ok());
    for (channel, status) in [("plain", 403), ("closed:a", 403), ("nowhere:a", 404)] {
        assert_eq!(raw(channel).err().expect("refused").status, status, "{channel}");
    }
}

#[test]
fn raw_clients_bring_their_token_in_three_ways() {
    let hub = builder().env("HUB_EXPIRED_GRACE", "0").start().wait_ready();
    let good = token(json!({ "sub": "42", "exp": now_s() + 3 }));
    let dial = |query: &str| Dial::new(&hub, &format!("/ws?channel=a{query}"));
    assert_eq!(dial("").try_open().err().expect("refused").status, 401);
    let mut by_query = dial(&format!("&token={good}")).open();
    dial("").header("Authorization", &format!("Bearer {good}")).open();
    let offer = format!("bearer.{good}");
    let alone = dial("").header("Sec-WebSocket-Protocol", &offer).open();
    assert_eq!(alone.header("sec-websocket-protocol"), Some(offer.as_str()));
    let beside = dial("").header("Sec-WebSocket-Protocol", &format!("raw, {offer}")).open();
    assert_eq!(beside.header("sec-websocket-protocol"), Some("raw"), "the token isn't echoed");
    assert_eq!(by_query.next_close(SOON), close(3005, "connection expired"));
    let old = token(json!({ "sub": "42", "exp": now_s() - 60 }));
    assert_eq!(dial(&format!("&token={old}")).try_open().err().expect("refused").status, 401);
    assert!(!hub.log_has(&good));
}

#[test]
fn one_user_has_so_many_connections() {
    let hub = builder().env("HUB_CONNECTIONS_PER_USER", 2).start().wait_ready();
    let mut two: Vec<Cf> = (0..2).map(|_| signed_in(&hub, json!({ "sub": "42" }))).collect();
    let mut third = Cf::dial(&hub);
    third.send(vec![connect(&token(json!({ "sub": "42" })))]);
    assert_eq!(third.next_close(SOON), close(3504, "connection limit"));
    signed_in(&hub, json!({ "sub": "43" }));
    drop(two.pop());
    let again = || {
        let mut cf = Cf::dial(&hub);
        cf.send(vec![connect(&token(json!({ "sub": "42" })))]);
        cf.next_close(ms(100)).is_none()
    };
    assert!(eventually(SOON, again), "room again");
}

#[test]
fn namespaces_are_read_again_on_sighup() {
    let mut file = ConfigFile::new("[namespaces.a]\nsubscribe = \"nobody\"\n");
    let hub = builder().env("HUB_CONFIG", file.path()).start().wait_ready();
    let mut cf = signed_in(&hub, json!({ "sub": "42" }));
    assert_eq!(cf.error(subscribe("a:1"))["code"], 103);
    file.replace("[namespaces.a]\nsubscribe = \"user\"\n");
    hub.signal(libc::SIGHUP);
    let opened = eventually(SOON, || cf.command(subscribe("a:1"))["subscribe"].is_object());
    assert!(opened);
    file.replace("[namespaces.a]\nsubscribe = \"everybody\"\n");
    hub.signal(libc::SIGHUP);
    let failed = || hub.metrics().get("hubbub_failed_reloads_total") == 1.0;
    assert!(eventually(SOON, failed), "counted");
    assert!(eventually(SOON, || hub.log_has("old namespaces stay")));
    assert!(eventually(SOON, || hub.log_has("everybody")), "and what is wrong: {:?}", hub.log());
    cf.command(unsubscribe("a:1"));
    cf.subscribe("a:1");
}

/// A token that ends so many seconds from now.
fn until(s: i64) -> String {
    token(json!({ "sub": "42", "exp": now_s() + s }))
}

fn refresh(token: &str) -> Value {
    json!({ "refresh": { "token": token } })
}

#[test]
fn a_late_refresh_or_two_keep_it_and_an_old_token_gets_nobody_back() {
    let file = ConfigFile::new(NAMESPACES);
    let hub = builder().env("HUB_CONFIG", file.path()).env("HUB_EXPIRED_GRACE", "3s");
    let hub = hub.env("HUB_API_KEY", "k").start().wait_ready();
    let ending = json!({ "sub": "42", "exp": now_s() + 1 });
    let [mut late, mut twice, mut never] = [(); 3].map(|()| signed_in(&hub, ending.clone()));
    late.subscribe("a");
    let room = |s: i64| token(json!({ "channel": "rooms:7", "sub": "42", "exp": now_s() + s }));
    let reply = late.command(subscribe_with("rooms:7", &room(1)));
    assert!(reply["subscribe"].is_object(), "{reply}");
    twice.subscribe("a");
    // Twice in a frame, and again; while another connection comes with the token that is to go.
    let ids = twice.send(vec![refresh(&until(3600)), refresh(&until(3600))]);
    let mut again = signed_in(&hub, ending.clone());
    for id in ids {
        let reply = twice.reply(id, SOON).expect("a reply");
        assert!(reply["refresh"]["ttl"].as_u64().expect("a ttl") > 3500, "{reply}");
    }
    assert!(eventually(SOON, || now_s() > ending["exp"].as_i64().expect("an end")), "it is over");
    for cf in [&mut late, &mut again] {
        let reply = cf.command(refresh(&until(3600)));
        assert_eq!(reply["refresh"]["expires"], true, "within the grace: {reply}");
    }
    let body = json!({ "channel": "rooms:7", "token": room(3600) });
    let reply = late.command(json!({ "sub_refresh": body }));
    assert_eq!(reply["sub_refresh"]["expires"], true, "{reply}");
    assert_eq!(never.next_close(SOON), close(3005, "connection expired"));
    for (channel, n_viewers) in [("a", 2), ("rooms:7", 1)] {
        publish_by_api(&hub, channel);
        for cf in [&mut late, &mut twice].into_iter().take(n_viewers) {
            assert_eq!(cf.next_pub(SOON).expect("lives on").channel, channel);
        }
    }
    assert!(!again.raw.is_closed());
    // Asleep for longer than that: the old token is of no use any more, a new one is.
    let mut back = Cf::dial(&hub);
    let error = back.error(connect(&token(json!({ "sub": "42", "exp": now_s() - 11 }))));
    assert_eq!(error["code"], 109, "{error}");
    let mut back = Cf::dial(&hub);
    assert!(back.command(connect(&until(3600)))["connect"].is_object());
    back.subscribe("a");
    publish_by_api(&hub, "a");
    assert_eq!(back.next_pub(SOON).expect("served again").data, "1");
}

/// All at once, half of them with a refresh in time: whoever has a token goes on being served.
#[test]
fn tokens_that_all_end_in_the_same_second_end_nobody_elses_service() {
    let builder = builder().env("HUB_EXPIRED_GRACE", "1s").env("HUB_STALE_TIMEOUT", "60s");
    let hub = builder.env("HUB_API_KEY", "k").start().wait_ready();
    let n_clients = scaled(200, 8_000);
    let mut good = signed_in(&hub, json!({ "sub": "1" }));
    good.subscribe("a");
    let mut clients: Vec<Cf> = (0..n_clients).map(|_| Cf::dial(&hub)).collect();
    let exp = now_s() + scaled(3, 6) as i64;
    let ending = token(json!({ "sub": "42", "exp": exp }));
    for cf in &mut clients {
        cf.send(vec![connect(&ending), subscribe("a")]);
    }
    let is_in = |cf: &Cf| cf.replies.get(&2).is_some_and(|reply| reply["subscribe"].is_object());
    assert!(drive(&mut clients, SOON, is_in), "all in, {} s before the end", exp - now_s());
    assert!(now_s() < exp, "in time");
    let (kept, ended) = clients.split_at_mut(n_clients / 2);
    let fresh = until(3600);
    for cf in kept.iter_mut() {
        cf.send(vec![refresh(&fresh)]);
    }
    let mut n_published = 0;
    while now_s() < exp + 3 {
        let began = Instant::now();
        publish_by_api(&hub, "a");
        n_published += 1;
        good.next_pub(SOON).expect("served all the while");
        assert!(began.elapsed() < secs(2), "after {:?}", began.elapsed());
        drive(kept, ms(20), |_| false);
    }
    assert!(drive(ended, SOON, |cf| cf.raw.is_closed()), "closed");
    for cf in ended {
        assert_eq!(cf.next_close(SOON), close(3005, "connection expired"));
        assert!(cf.pubs.len() < n_published, "and nothing after");
    }
    assert!(drive(kept, SOON, |cf| cf.pubs.len() == n_published), "the others miss nothing");
    assert!(kept.iter().all(|cf| !cf.raw.is_closed() && cf.replies[&3]["refresh"].is_object()));
    let connections = || hub.metric_sum("hubbub_connections");
    assert!(eventually(SOON, || connections() == (1 + n_clients / 2) as f64), "{}", connections());
}
