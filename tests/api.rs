//! Promise: the server API has the paths, keys, shapes and errors of http-api.md, and the eyes of
//! an operator (`/health`, `/ready`, `/metrics`) show no word that a client chose.

mod common;

use common::http::Response;
use common::{Cf, Hub, Raw, Redis, SOON, eventually};
use serde_json::{Value, json};

fn error_code(response: &Response) -> Value {
    assert_eq!(response.status, 200, "errors of a command are 200: {}", response.text());
    let error = &response.json()["error"];
    assert!(error["message"].is_string(), "{}", response.text());
    error["code"].clone()
}

fn publish_broadcast(hub: &Hub) {
    let mut a = Cf::subscribed(hub, &["a"]);
    let mut b = Raw::open(hub, &["b"]);
    let response = hub.api("publish", &json!({ "channel": "a", "data": { "n": 1 }, "novel": 1 }));
    assert_eq!((response.status, response.text().as_str()), (200, r#"{"result":{}}"#));
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert_eq!(a.next_pub(SOON).expect("published").data, r#"{"n":1}"#);
    let response = hub.api("broadcast", &json!({ "channels": ["a", "ws:x", "b"], "data": 2 }));
    let responses = response.json()["result"]["responses"].clone();
    assert_eq!(responses[0], json!({ "result": {} }), "{}", response.text());
    assert_eq!(responses[1]["error"]["code"], 107, "one channel's error is its own");
    assert_eq!(responses[2], json!({ "result": {} }));
    assert_eq!(responses.as_array().map(Vec::len), Some(3));
    assert_eq!(a.next_pub(SOON).expect("broadcast").data, "2");
    assert_eq!(b.next_data(SOON).expect("broadcast").text(), "2");
}

#[test]
fn publish_and_broadcast_with_the_memory_broker() {
    publish_broadcast(&Hub::start());
}

#[test]
fn publish_and_broadcast_with_redis_reach_another_node() {
    let redis = Redis::start();
    let (a, b) = (Hub::on(&redis), Hub::on(&redis));
    publish_broadcast(&a);
    let mut elsewhere = Cf::subscribed(&b, &["x"]);
    a.publish("x", 7);
    assert_eq!(elsewhere.next_pub(SOON).expect("across nodes").data, "7");
}

#[test]
fn data_is_anything_but_absent() {
    let hub = Hub::start();
    let mut cf = Cf::subscribed(&hub, &["a"]);
    for data in ["null", "\"\"", "0", "false", "[ ]", "1.50", "{\"a\" : 1e400}"] {
        let body = format!(r#"{{"data":{data},"channel":"a"}}"#);
        assert!(hub.http("POST", "/api/publish", body).is_result(), "{data}");
        assert_eq!(cf.next_pub(SOON).expect("arrives").data, data);
    }
    let body = json!({ "channel": "a", "b64data": "eyJ4IjoxfQ==", "data": "loses" });
    assert!(hub.api("publish", &body).is_result());
    assert_eq!(cf.next_pub(SOON).expect("b64data wins").data, r#"{"x":1}"#);
    let body = r#"{"Channel":"b","CHANNEL":"a","data":1,"Data":2,"b64data":null}"#;
    assert!(hub.http("POST", "/api/publish", body).is_result());
    assert_eq!(cf.next_pub(SOON).expect("the last, in any letter case").data, "2");
}

#[test]
fn errors_of_a_command() {
    let hub = Hub::start();
    let long = "x".repeat(256);
    let bad = [
        json!({ "channel": "", "data": 1 }),
        json!({ "data": 1 }),
        json!({ "channel": "a" }),
        json!({ "channel": "ws:control", "data": 1 }),
        json!({ "channel": "__keyspace@0__:a", "data": 1 }),
        json!({ "channel": long, "data": 1 }),
        json!({ "channel": null, "data": 1 }),
    ];
    for body in bad {
        assert_eq!(error_code(&hub.api("publish", &body)), 107, "{body}");
    }
    assert_eq!(error_code(&hub.api("broadcast", &json!({ "channels": [], "data": 1 }))), 107);
    assert_eq!(error_code(&hub.api("publish", &json!({ "channel": "a", "b64data": "*" }))), 107);
    let body = json!({ "channels": ["a"], "b64data": "*" });
    assert_eq!(error_code(&hub.api("broadcast", &body)), 107, "one for the whole call");
    assert_eq!(error_code(&hub.api("broadcast", &json!({ "data": 1 }))), 107);
}

const BAD_TAGS: &str = r#"{"channel":"a","data":1,"tags":{"x":1}}"#;

#[test]
fn errors_of_http() {
    let hub = Hub::builder().env("HUB_API_BODY_BYTES_MAX", "4KiB").start().wait_ready();
    for body in
        ["", "{", "[1]", "text", r#"{"channel":7,"data":1}"#, r#"{"channel":"a"} x"#, BAD_TAGS]
    {
        let response = hub.http("POST", "/api/publish", body);
        assert_eq!(response.status, 400, "{body:?}: {}", response.text());
        assert!(response.text().starts_with("Bad Request"), "{}", response.text());
    }
    assert_eq!(hub.http("POST", "/api/nope", "{}").status, 404);
    assert_eq!(hub.http("POST", "/api/publish/", "{}").status, 404);
    assert_eq!(hub.get("/nowhere").status, 404);
    let get = hub.get("/api/publish");
    assert_eq!((get.status, get.body.len()), (405, 0));
    let body = json!({ "channel": "a", "data": "x".repeat(8192) });
    assert_eq!(hub.api("publish", &body).status, 413);
    assert!(hub.api("publish", &json!({ "channel": "a", "data": "x".repeat(2048) })).is_result());
}

#[test]
fn keys() {
    let hub = Hub::builder().without_dev().env("HUB_API_KEY", "old-key,new-key").start();
    let hub = hub.wait_ready();
    let try_with = |headers: &[(&str, &str)], query: &str| {
        let path = format!("/api/publish{query}");
        let response = hub.http_with("POST", &path, headers, r#"{"channel":"a","data":1}"#);
        if response.status == 401 {
            assert!(response.body.is_empty(), "401 has no body");
        } else {
            assert!(response.is_result(), "{} {}", response.status, response.text());
        }
        response.status
    };
    assert_eq!(try_with(&[], ""), 401);
    assert_eq!(try_with(&[("X-API-Key", "wrong")], ""), 401);
    assert_eq!(try_with(&[("X-API-Key", "old-key,new-key")], ""), 401);
    assert_eq!(try_with(&[("X-API-Key", "new-ke")], ""), 401);
    assert_eq!(try_with(&[("X-API-Key", "")], ""), 401);
    assert_eq!(try_with(&[("X-API-Key", "new-key")], ""), 200);
    assert_eq!(try_with(&[("x-api-key", "old-key")], ""), 200);
    assert_eq!(try_with(&[("Authorization", "apikey new-key")], ""), 200);
    assert_eq!(try_with(&[("Authorization", "APIKey new-key")], ""), 200);
    assert_eq!(try_with(&[("Authorization", "Bearer new-key")], ""), 401);
    assert_eq!(try_with(&[], "?api_key=new-key"), 200);
    assert_eq!(try_with(&[], "?api_key=wrong"), 401);
    assert_eq!(try_with(&[("X-API-Key", "wrong"), ("Authorization", "apikey new-key")], ""), 401);
    assert_eq!(try_with(&[("X-API-Key", "wrong")], "?api_key=new-key"), 200);
    let broken = hub.http("POST", "/api/publish", "{");
    assert_eq!(broken.status, 401, "the key comes before the body");
    assert_eq!(hub.http("POST", "/api/nope", "").status, 404);
    assert!(!hub.log_has("new-key"), "no key in the log");
}

#[test]
fn without_a_key_the_api_is_closed() {
    let hub = Hub::builder().without_dev().start().wait_ready();
    for key in ["", "x"] {
        let body = r#"{"channel":"a","data":1}"#;
        assert_eq!(hub.http_with("POST", "/api/publish", &[("X-API-Key", key)], body).status, 401);
    }
}

#[test]
fn a_web_page_cannot_publish_under_dev() {
    let hub = Hub::start();
    let body = r#"{"channel":"a","data":1}"#;
    let evil = [("Origin", "http://evil.example")];
    assert_eq!(hub.http_with("POST", "/api/publish", &evil, body).status, 403);
    let local = [("Origin", "http://localhost:5173")];
    assert!(hub.http_with("POST", "/api/publish", &local, body).is_result());
}

#[test]
fn info_and_channels() {
    let hub = Hub::start();
    let info = || hub.api("info", &json!({})).json()["result"]["nodes"][0].clone();
    let empty = info();
    for zero in ["num_clients", "num_users", "num_subs", "num_channels"] {
        assert_eq!(empty[zero], 0, "zeros are written: {empty}");
    }
    assert!(!empty["uid"].as_str().expect("uid").is_empty());
    assert!(empty["name"].is_string() && !empty["version"].as_str().expect("version").is_empty());
    assert_eq!(hub.api("channels", &json!({})).text(), r#"{"result":{"channels":{}}}"#);
    let _clients = [
        Cf::subscribed(&hub, &["rooms:1", "rooms:2", "lobby"]),
        Cf::subscribed(&hub, &["rooms:1"]),
    ];
    let _raw = Raw::open(&hub, &["rooms:1", "lobby"]);
    let full = info();
    assert_eq!(full["num_clients"], 3, "{full}");
    assert_eq!(full["num_subs"], 6, "{full}");
    assert_eq!(full["num_channels"], 3, "{full}");
    let all = hub.api("channels", &json!({})).json()["result"]["channels"].clone();
    let expected = json!({
        "rooms:1": { "num_clients": 3 },
        "rooms:2": { "num_clients": 1 },
        "lobby": { "num_clients": 2 },
    });
    assert_eq!(all, expected);
    let rooms = hub.api("channels", &json!({ "pattern": "rooms:*" })).json();
    let rooms = rooms["result"]["channels"].as_object().expect("channels").clone();
    assert_eq!(rooms.keys().collect::<Vec<_>>(), ["rooms:1", "rooms:2"]);
}

#[test]
fn health_ready_demo_and_root() {
    let hub = Hub::start();
    assert_eq!(hub.get("/health").status, 200);
    assert_eq!(hub.get("/ready").status, 200);
    let demo = hub.get("/demo");
    assert_eq!(demo.status, 200);
    assert!(demo.header("content-type").is_some_and(|kind| kind.starts_with("text/html")));
    assert!(demo.text().contains("/connection/websocket") || demo.text().contains("/ws"));
    let root = hub.get("/");
    assert!((301..=308).contains(&root.status), "{}", root.status);
    assert_eq!(root.header("location"), Some("/demo"));
    let serious = Hub::builder().without_dev().env("HUB_API_KEY", "k").start().wait_ready();
    assert_eq!(serious.get("/demo").status, 404);
    assert_eq!(serious.get("/").status, 404);
    assert_eq!(serious.get("/health").status, 200);
    assert_eq!(serious.get("/metrics").status, 200, "loopback needs no key");
}

#[test]
fn metrics_count_and_carry_no_word_of_a_client() {
    let redis = Redis::start();
    let hub = Hub::on(&redis);
    let mut cf = Cf::dial(&hub);
    cf.command(json!({ "connect": { "name": "clientchosen", "version": "clientchosen" } }));
    cf.subscribe("clientchosen:a");
    let mut raw = Raw::open(&hub, &["clientchosen:a", "clientchosen:b"]);
    cf.error(json!({ "rpc": { "method": "clientchosen", "data": 1 } }));
    redis.publish("clientchosen:a", "clientchosen");
    cf.next_pub(SOON).expect("delivered");
    raw.next_data(SOON).expect("delivered");
    let _ = hub.try_get("/clientchosen");
    let settled = || hub.metric_sum("hubbub_deliveries_total") == 2.0;
    assert!(eventually(SOON, settled), "{}", hub.get("/metrics").text());
    let metrics = hub.metrics();
    assert_eq!(metrics.sum("hubbub_connections"), 2.0);
    assert_eq!(metrics.sum("hubbub_subscriptions"), 3.0);
    assert_eq!(metrics.sum("hubbub_publications_total"), 1.0);
    assert_eq!(metrics.get("hubbub_redis_up{link=\"pubsub\"}"), 1.0);
    assert_eq!(metrics.get("hubbub_redis_up{link=\"command\"}"), 1.0);
    assert!(metrics.sum("hubbub_redis_connects_total") >= 1.0);
    assert!(metrics.sum("hubbub_redis_subscriptions") >= 2.0);
    for counted in ["sent_bytes", "writes", "received_bytes", "commands", "mailbox_batches"] {
        let name = format!("hubbub_{counted}_total");
        assert!(metrics.sum(&name) > 0.0, "{name}");
    }
    for per_shard in ["connections", "subscriptions", "channels", "outbox_bytes", "mailbox_depth"] {
        let name = format!("hubbub_{per_shard}");
        assert_eq!(metrics.all(&name).len(), common::hub::n_shards(), "{name}");
    }
    assert!(!hub.get("/metrics").text().contains("clientchosen"));
    drop(cf);
    drop(raw);
    assert!(eventually(SOON, || hub.metric_sum("hubbub_connections") == 0.0));
    assert!(eventually(SOON, || hub.metric_sum("hubbub_channels") == 0.0));
    assert!(eventually(SOON, || redis.channels("clientchosen:*").is_empty()));
}
