//! The connection registry as it stands in Redis.

use super::{Cf, Hub, Redis, Reply};
use serde_json::Value;
use std::collections::BTreeMap;

/// Every name a hub of this prefix has in Redis, of one kind.
pub fn keys(redis: &Redis, prefix: &str, kind: &str) -> Vec<String> {
    match redis.command(&["KEYS", &format!("{prefix}{kind}*")]) {
        Reply::Array(items) => items.iter().map(Reply::text).collect(),
        other => panic!("KEYS answered {other:?}"),
    }
}

/// Entries by their ids.
pub fn entries(redis: &Redis, kind: &str) -> BTreeMap<String, Value> {
    let mut client = redis.client();
    let read = |key: String| match client.command(&["GET", &key]) {
        Reply::Bytes(bytes) => {
            Some((key[kind.len()..].to_owned(), serde_json::from_slice(&bytes).expect("JSON")))
        }
        _ => None,
    };
    keys(redis, "", kind).into_iter().filter_map(read).collect()
}

pub fn connections(redis: &Redis) -> BTreeMap<String, Value> {
    entries(redis, "ws:conn:")
}

pub fn nodes(redis: &Redis) -> BTreeMap<String, Value> {
    entries(redis, "ws:instance:")
}

pub fn n_connections(redis: &Redis) -> usize {
    keys(redis, "", "ws:conn:").len()
}

/// How long each entry has left, milliseconds.
pub fn left_ms(redis: &Redis, kind: &str) -> BTreeMap<String, i64> {
    let mut client = redis.client();
    let left = |key: String| {
        let left = client.command(&["PTTL", &key]).int();
        (key, left)
    };
    keys(redis, "", kind).into_iter().map(left).collect()
}

/// A client and the id that it was told.
pub fn connect(hub: &Hub, token: &str) -> (Cf, String) {
    let mut cf = Cf::dial(hub);
    let reply = cf.command(serde_json::json!({ "connect": { "token": token } }));
    let id = reply["connect"]["client"].as_str().unwrap_or_else(|| panic!("connect: {reply}"));
    let id = id.to_owned();
    (cf, id)
}
