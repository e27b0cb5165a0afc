//! Promise: many commands in one call are answered in order, each for itself; what can't be read
//! changes nothing; and errors come by status where that is asked for.

mod common;

use common::{Cf, Hub, QUIET, Redis, SOON, ms};
use serde_json::{Value, json};
use std::time::Instant;

#[track_caller]
fn check(hub: &Hub, path: &str, body: &str, expected: &str) {
    let response = hub.http("POST", path, body);
    assert_eq!((response.status, response.text().as_str()), (200, expected), "{body}");
    assert_eq!(response.header("content-type"), Some("application/json"));
}

#[track_caller]
fn refused(hub: &Hub, path: &str, body: &str, status: u16) {
    let response = hub.http("POST", path, body);
    assert_eq!(response.status, status, "{body}: {}", response.text());
    if status == 400 {
        assert_eq!(response.text(), "Bad Request\n");
    }
}

const NOT_FOUND: &str = r#"{"error":{"code":104,"message":"not found"}}"#;
const BAD: &str = r#"{"error":{"code":107,"message":"bad request"}}"#;

#[test]
fn a_batch_has_no_result_around_it() {
    let hub = Hub::start();
    let mut a = Cf::subscribed(&hub, &["a", "b"]);
    let body = r#"{"commands":[
        {"publish":{"channel":"a","data":1}},
        {"publish":{"channel":"","data":1}},
        null,
        {},
        {"publish":null},
        {"novel":{"channel":"a"}},
        {"batch":{"commands":[]}},
        {"rpc":{"method":"x","params":{}}},
        {"BROADCAST":{"channels":["b","ws:x"],"data":2}},
        {"disconnect":{"user":"nobody"}},
        {"history":{"channel":"a","limit":1}},
        {"channels":{"pattern":"b*"}}
    ],"novel":1}"#;
    let expected = [
        r#"{"publish":{}}"#,
        BAD,
        BAD,
        NOT_FOUND,
        NOT_FOUND,
        NOT_FOUND,
        NOT_FOUND,
        NOT_FOUND,
        &format!(r#"{{"broadcast":{{"responses":[{{"result":{{}}}},{BAD}]}}}}"#),
        r#"{"disconnect":{}}"#,
        r#"{"error":{"code":108,"message":"not available"}}"#,
        r#"{"channels":{"channels":{"b":{"num_clients":1}}}}"#,
    ];
    let expected = format!(r#"{{"replies":[{}]}}"#, expected.join(","));
    check(&hub, "/api/batch", body, &expected);
    assert_eq!(a.next_pub(SOON).expect("published").data, "1");
    assert_eq!(a.next_pub(SOON).expect("broadcast").data, "2");
    let parallel = body.replace("\"novel\":1}", "\"parallel\":true}");
    check(&hub, "/api/batch", &parallel, &expected);
    for nothing in [r#"{"commands":[]}"#, "{}", r#"{"commands":null,"parallel":null}"#] {
        check(&hub, "/api/batch", nothing, r#"{"replies":[]}"#);
    }
}

#[test]
fn what_can_not_be_read_changes_nothing() {
    let hub = Hub::start();
    let mut a = Cf::subscribed(&hub, &["a"]);
    let good = r#"{"publish":{"channel":"a","data":1}}"#;
    for bad in [r#"{"publish":{"channel":7}}"#, r#"{"publish":5}"#, "5", "[]", r#"{"history":[]}"#]
    {
        refused(&hub, "/api/batch", &format!(r#"{{"commands":[{good},{bad}]}}"#), 400);
    }
    for bad in ["", "[]", r#"{"commands":{}}"#, r#"{"parallel":1}"#, r#"{"commands":[]} x"#] {
        refused(&hub, "/api/batch", bad, 400);
    }
    let line = r#"{"method":"publish","params":{"channel":"a","data":1}}"#;
    for bad in
        ["{", "x", "[]", r#"{"method":"novel","params":{}}"#, r#"{"id":-1}"#, r#"{"id":"1"}"#]
    {
        refused(&hub, "/api", &format!("{line}\n{bad}"), 400);
    }
    refused(&hub, "/api", "", 400);
    let many = vec![good; 10_001].join(",");
    refused(&hub, "/api/batch", &format!(r#"{{"commands":[{many}]}}"#), 413);
    refused(&hub, "/api", &line.repeat(10_001), 413);
    assert!(a.stays_quiet(QUIET), "nothing was published");
}

#[test]
fn the_older_form_answers_line_by_line() {
    let hub = Hub::start();
    let mut a = Cf::subscribed(&hub, &["a"]);
    let body = [
        r#"{"id":1,"method":"publish","params":{"channel":"a","data":{"n":1}}}"#,
        r#"{"id":2,"method":"HISTORY","params":{"channel":"a","limit":1}}"#,
        r#"{"method":"unsubscribe","params":{"user":"nobody"}} {"params":{"channel":"a","data":2}}"#,
        r#"{"id":0,"method":3,"params":{}}"#,
        r#"{"id":5,"method":99,"params":{}}{"id":6,"method":"info"}"#,
        r#"{"id":7,"method":10,"params":{}}"#,
    ];
    let expected = [
        r#"{"id":1,"result":{}}"#,
        r#"{"id":2,"error":{"code":108,"message":"not available"}}"#,
        r#"{"result":{}}"#,
        r#"{"result":{}}"#,
        r#"{"result":{}}"#,
        r#"{"id":5,"error":{"code":104,"message":"not found"}}"#,
        r#"{"id":6,"error":{"code":107,"message":"bad request"}}"#,
        r#"{"id":7,"error":{"code":104,"message":"not found"}}"#,
    ];
    check(&hub, "/api", &body.join("\n"), &expected.join("\n"));
    assert_eq!(a.next_pub(SOON).expect("published").data, r#"{"n":1}"#);
    assert_eq!(a.next_pub(SOON).expect("no method is publish").data, "2");
    check(&hub, "/api", " \n ", "");
    let get = hub.get("/api");
    assert_eq!((get.status, get.body.len()), (405, 0));
    assert_eq!(hub.http("POST", "/api/", "{}").status, 404);
    assert_eq!(hub.http("POST", "/apix", "{}").status, 404);
    let serious = Hub::builder().without_dev().env("HUB_API_KEY", "k").start().wait_ready();
    for path in ["/api", "/api/batch", "/api/disconnect", "/api/info"] {
        assert_eq!(serious.http("POST", path, "{}").status, 401, "{path}");
        let auth = [("Authorization", "apikey k")];
        let status = serious.http_with("POST", path, &auth, "{}").status;
        assert_eq!(status, 200, "{path}");
    }
}

#[test]
fn errors_by_status() {
    let hub = Hub::start();
    let call = |mode: &str, method: &str, body: Value| {
        let headers = [("X-Centrifugo-Error-Mode", mode)];
        hub.http_with("POST", &format!("/api/{method}"), &headers, body.to_string())
    };
    for (method, body, status, expected) in [
        ("publish", json!({}), 400, r#"{"code":107,"message":"bad request"}"#),
        ("rpc", json!({ "method": "x" }), 404, r#"{"code":104,"message":"not found"}"#),
        ("history", json!({ "channel": "a" }), 400, r#"{"code":108,"message":"not available"}"#),
        ("publish", json!({ "channel": "a", "data": 1 }), 200, r#"{"result":{}}"#),
    ] {
        let response = call("transport", method, body);
        assert_eq!((response.status, response.text().as_str()), (status, expected), "{method}");
        assert_eq!(response.header("content-type"), Some("application/json"));
    }
    for mode in ["Transport", "", "custom"] {
        assert_eq!(call(mode, "publish", json!({})).status, 200, "{mode:?}");
    }
    let batch = call("transport", "batch", json!({ "commands": [{}] }));
    assert_eq!(batch.text(), format!(r#"{{"replies":[{NOT_FOUND}]}}"#));
}

#[test]
fn errors_by_status_of_what_is_not_there() {
    let mut config = tempfile::NamedTempFile::new().unwrap();
    let text = "[namespaces.kept]\nhistory_size = 5\nhistory_ttl = \"60s\"\n";
    std::io::Write::write_all(&mut config, text.as_bytes()).unwrap();
    let mut redis = Redis::start();
    let config = config.path().display().to_string();
    let hub = Hub::builder().redis(&redis).env("HUB_CONFIG", config).start().wait_ready();
    let status = |method: &str, body: Value| {
        let headers = [("X-Centrifugo-Error-Mode", "transport")];
        hub.http_with("POST", &format!("/api/{method}"), &headers, body.to_string()).status
    };
    assert_eq!(status("publish", json!({ "channel": "novel:a", "data": 1 })), 404);
    assert_eq!(status("unsubscribe", json!({ "channel": "novel:a" })), 404);
    let since = json!({ "offset": 1, "epoch": "of another" });
    let body = json!({ "channel": "kept:a", "since": since });
    assert_eq!(status("history", body), 416);
    redis.kill();
    assert_eq!(status("publish", json!({ "channel": "kept:a", "data": 1 })), 500);
    assert_eq!(status("disconnect", json!({ "user": "42" })), 500);
}

/// A long batch takes its time, and takes nobody else's.
#[test]
fn a_long_batch_holds_up_nobody() {
    let hub = Hub::builder().env("HUB_SHARDS", 1).start().wait_ready();
    let mut watcher = Cf::subscribed(&hub, &["b"]);
    let command = r#"{"publish":{"channel":"a","data":1}}"#;
    let body = format!(r#"{{"commands":[{}],"parallel":true}}"#, vec![command; 10_000].join(","));
    let mut slowest = ms(0);
    std::thread::scope(|scope| {
        let batch = scope.spawn(|| hub.http("POST", "/api/batch", &body));
        while !batch.is_finished() {
            let sent = Instant::now();
            hub.publish("b", 1);
            watcher.next_pub(SOON).expect("served");
            slowest = slowest.max(sent.elapsed());
        }
        let response = batch.join().unwrap();
        let replies = response.json()["replies"].as_array().expect("replies").clone();
        assert!(replies.len() == 10_000 && replies.iter().all(|it| it["publish"].is_object()));
    });
    println!("slowest publication meanwhile: {slowest:?}");
    assert!(slowest < ms(1_000), "{slowest:?}");
}

/// Each call of the README that `curl` makes is one that a node understands.
#[test]
fn the_readmes_calls() {
    let hub = Hub::start();
    let readme =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let calls = readme.lines().filter_map(|line| {
        let line = line.trim_start_matches("$ ").strip_prefix("curl -d '")?;
        line.split_once("' http://127.0.0.1:8000")
    });
    let mut n_calls = 0;
    for (body, path) in calls {
        let response = hub.http("POST", path, body);
        let answer = response.json();
        let is_done = answer["result"].is_object() || answer["replies"].is_array();
        // There is no namespace with history here.
        assert!(is_done || answer["error"]["code"] == 108, "{path}: {body}: {answer}");
        n_calls += 1;
    }
    assert!(n_calls >= 6, "{n_calls}");
}
