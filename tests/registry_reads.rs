//! Promise: `hubbub nodes`, `connections` and `where`, and the API calls of the same names, tell the
//! same, change nothing in Redis, never list all keys at once, and say what is wrong where they can't.

mod common;

use common::registry::{connect, n_connections};
use common::ws::{Dial, raw_path};
use common::{Cf, Hub, Redis, SOON, eventually, hub, scaled, sign};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

const NOBODY: &str = "5f9b4a3e-64a1-4a0c-9c0e-1f6a6a2f0b11";

fn node(redis: &Redis, name: &str) -> Hub {
    let builder = Hub::builder().redis(redis).env("HUB_NODE_ID", name);
    builder.env("HUB_TOKEN_HMAC_SECRET", "secret").start().wait_ready()
}

fn token(user: &str) -> String {
    sign(&json!({ "sub": user, "exp": 4_000_000_000u64 }), "secret")
}

/// What a command printed, line by line; it ends with this code.
#[track_caller]
fn ask(redis: &Redis, args: &[&str], code: i32) -> Vec<String> {
    let ran = hub::run(args, &[("HUB_REDIS_URL", &redis.url())]);
    assert_eq!(ran.code, Some(code), "{args:?}: {}{}", ran.stdout, ran.stderr);
    assert_eq!(ran.stderr, "", "{args:?}");
    ran.stdout.lines().map(str::to_owned).collect()
}

fn ask_json(redis: &Redis, args: &[&str], code: i32) -> Vec<Value> {
    let lines = ask(redis, &[args, &["--json"]].concat(), code);
    lines.iter().map(|line| serde_json::from_str(line).expect("an object a line")).collect()
}

#[track_caller]
fn result(hub: &Hub, method: &str, body: Value) -> Value {
    let answer = hub.api(method, &body);
    assert!(answer.is_result(), "{method} {body}: {}", answer.text());
    answer.json()["result"].clone()
}

fn by_id(mut rows: Vec<Value>, id: &str) -> Vec<Value> {
    rows.sort_by_key(|row| row[id].as_str().expect("an id").to_owned());
    rows
}

fn rows(result: &Value, name: &str) -> Vec<Value> {
    result[name].as_array().unwrap_or_else(|| panic!("no {name} in {result}")).clone()
}

#[test]
fn command_line_and_api_tell_the_same() {
    let redis = Redis::start();
    let (a, b) = (node(&redis, "a"), node(&redis, "b"));
    let users = ["42", "42", "7"].map(token);
    let clients = [(&a, &users[0]), (&b, &users[1]), (&b, &users[2])];
    let clients = clients.map(|(hub, token)| connect(hub, token));
    let _raw = Dial::new(&a, &raw_path(&["x"])).open();
    assert!(eventually(SOON, || n_connections(&redis) == 4));

    let told = by_id(ask_json(&redis, &["nodes"], 0), "instance_id");
    assert_eq!(told, by_id(rows(&result(&a, "nodes", json!({})), "nodes"), "instance_id"));
    assert_eq!(told.iter().map(|node| &node["instance_id"]).collect::<Vec<_>>(), ["a", "b"]);
    let told = by_id(ask_json(&redis, &["connections"], 0), "client");
    let api = rows(&result(&b, "connections", json!({})), "connections");
    assert_eq!((told.len(), &told), (4, &by_id(api, "client")));

    for (user, n) in [("42", 2), ("7", 1), ("", 1), ("4", 0)] {
        let told = by_id(ask_json(&redis, &["connections", "--user", user], 0), "client");
        let api = rows(&result(&a, "connections", json!({ "user": user })), "connections");
        assert_eq!((told.len(), &told), (n, &by_id(api, "client")), "{user}");
    }

    let (_, id) = &clients[1];
    let told = ask_json(&redis, &["where", id], 0).remove(0);
    assert_eq!(told, result(&a, "where", json!({ "client": id })));
    assert_eq!(
        (&told["node"]["instance_id"], &told["connection"]["user"]),
        (&json!("b"), &json!("42"))
    );
    let nowhere = ask_json(&redis, &["where", NOBODY], 1).remove(0);
    assert_eq!(nowhere, json!({ "connection": null, "node": null }));
    assert_eq!(nowhere, result(&a, "where", json!({ "client": NOBODY })));

    // For people.
    let table = ask(&redis, &["connections", "--user=7"], 0);
    assert!(table[0].starts_with("CLIENT ") && table.len() == 2, "{table:?}");
    assert!(table[1].starts_with(&clients[2].1) && table[1].ends_with(" b"), "{table:?}");
    let table = ask(&redis, &["nodes"], 0);
    assert!(table[0].starts_with("NODE ") && table.len() == 3, "{table:?}");
    let told = ask(&redis, &["where", id], 0).join("\n");
    assert!(told.contains(id.as_str()) && told.contains("\nnode          b\n"), "{told}");
    let told = ask(&redis, &["where", NOBODY], 1).join("\n");
    assert_eq!(told, format!("{NOBODY}: not connected to any node"));
}

/// Steps of a bounded size, on a keyspace where next to nothing is an entry.
#[test]
fn large_keyspaces_are_read_in_steps_and_nothing_is_written() {
    let redis = Redis::start();
    let hub = node(&redis, "a");
    let (_cf, id) = connect(&hub, "");
    let filler: i64 = scaled(20_000, 200_000) as i64;
    let fill = "for at = 1, ARGV[1] do redis.call('SET', 'filler:' .. at, '') end";
    redis.command(&["EVAL", fill, "0", &filler.to_string()]);
    // What isn't an entry, under an entry's name.
    redis.command(&["SET", "ws:conn:junk", "{}"]);
    redis.command(&["LPUSH", &format!("ws:conn:{NOBODY}"), "x"]);
    assert!(eventually(SOON, || n_connections(&redis) == 3));
    let mut monitor = redis.monitor();
    let told = ask_json(&redis, &["connections"], 0);
    assert_eq!(told.iter().map(|row| &row["client"]).collect::<Vec<_>>(), [&id]);
    ask(&redis, &["nodes"], 0);
    ask(&redis, &["where", &id], 0);
    // The node's own commands go on meanwhile, over other connections.
    let lines = monitor.monitored(&redis);
    let peer = |line: &str| line.split([']', '[']).nth(1).map(str::to_owned);
    let is_ours = |line: &&String| ["\"SCAN\"", "\"GET\""].iter().any(|name| line.contains(name));
    let ours: BTreeSet<_> = lines.iter().filter(is_ours).map(|line| peer(line)).collect();
    let of_ours = lines.iter().filter(|line| ours.contains(&peer(line)));
    let name = |line: &String| line.split('"').nth(1).expect("a command").to_owned();
    let names: Vec<String> = of_ours.map(name).collect();
    let n_scans = names.iter().filter(|name| *name == "SCAN").count() as i64;
    assert!(n_scans >= filler / 1_000, "{n_scans} steps for {filler} keys");
    let reads = ["SCAN", "MGET", "GET", "HELLO", "INFO", "CLIENT", "SELECT"];
    assert!(names.iter().all(|name| reads.contains(&name.as_str())), "{names:?}");

    let api = rows(&result(&hub, "connections", json!({})), "connections");
    assert_eq!(api.len(), 1);
}

#[test]
fn connections_come_in_pages() {
    let redis = Redis::start();
    let hub = node(&redis, "a");
    let clients: Vec<(Cf, String)> = (0..scaled(300, 3_000)).map(|_| connect(&hub, "")).collect();
    let filler = "for at = 1, 10000 do redis.call('SET', 'filler:' .. at, '') end";
    redis.command(&["EVAL", filler, "0"]);
    assert!(eventually(SOON, || n_connections(&redis) == clients.len()));
    let (mut found, mut n_pages, mut cursor) = (BTreeSet::new(), 0, json!(""));
    loop {
        let page = result(&hub, "connections", json!({ "limit": 10, "cursor": cursor }));
        n_pages += 1;
        let ids = rows(&page, "connections").into_iter().map(|row| row["client"].clone());
        found.extend(ids.map(|id| id.as_str().expect("an id").to_owned()));
        cursor = page["cursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    assert_eq!(found, clients.iter().map(|(_, id)| id.clone()).collect());
    assert!(n_pages > 3, "{n_pages} pages");
}

#[test]
fn mistakes_are_told() {
    let redis = Redis::start();
    let hub = node(&redis, "a");
    for (method, body) in [
        ("where", json!({})),
        ("where", json!({ "client": "x" })),
        ("connections", json!({ "cursor": "x" })),
    ] {
        assert_eq!(hub.api(method, &body).json()["error"]["code"], 107, "{method} {body}");
    }
    for (method, body) in
        [("where", json!({ "client": 1 })), ("connections", json!({ "limit": "x" }))]
    {
        assert_eq!(hub.api(method, &body).status, 400, "{method} {body}");
    }
    let check = |args: &[&str], knobs: &[(&str, &str)], code: i32, part: &str| {
        let ran = hub::run(args, knobs);
        assert_eq!(ran.code, Some(code), "{args:?}: {}{}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains(part) && ran.stdout.is_empty(), "{args:?}: {}", ran.stderr);
        assert!(!ran.stderr.contains("hush"), "{}", ran.stderr);
    };
    for args in [&["nodes"][..], &["connections"], &["where", NOBODY]] {
        check(args, &[], 64, "HUB_REDIS_URL is unset");
        let nowhere = format!("redis://me:hush@127.0.0.1:{}", Redis::absent().port);
        check(args, &[("HUB_REDIS_URL", &nowhere)], 69, "doesn't answer");
    }
    check(&["where", "x"], &[("HUB_REDIS_URL", &redis.url())], 64, "expected a UUID");
    check(&["where"], &[], 64, "CONNECTION_ID");
    check(&["nodes", "--jsn"], &[], 64, "--jsn");

    // Redis away, while the node is there.
    redis.stop();
    let answer = hub.api("nodes", &json!({})).json();
    assert_eq!(answer["error"]["code"], 100, "{answer}");
    redis.cont();
}

/// `hubbub connections | head`.
#[test]
fn who_has_read_enough_may_go() {
    let redis = Redis::start();
    let hub = node(&redis, "a");
    let _clients: Vec<Cf> = (0..50).map(|_| Cf::connect(&hub)).collect();
    assert!(eventually(SOON, || n_connections(&redis) == 50));
    let mut command = hub::command();
    command.args(["connections", "--json"]).env("HUB_REDIS_URL", redis.url());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut line = String::new();
    BufReader::with_capacity(64, child.stdout.take().unwrap()).read_line(&mut line).expect("one");
    let _: Value = serde_json::from_str(&line).expect("an object");
    let ended = child.wait_with_output().expect("it ends");
    assert!(ended.status.success(), "{:?}", ended.status);
    assert!(ended.stderr.is_empty(), "{}", String::from_utf8_lossy(&ended.stderr));
}
