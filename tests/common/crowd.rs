//! Nodes where it is noted who is here, on either broker, and who comes there.

use super::hub::Builder;
use super::past::result;
use super::ws::{Dial, raw_path};
use super::{Cf, Hub, Raw, Redis, SOON, sign};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

const SECRET: &str = "a secret of the crowd";

/// `p:` says who is here, `on:` also tells who asks of joins and leaves, `all:` everybody; `told:` only
/// tells, `off:` does neither.
const NAMESPACES: &str = r#"
[namespaces.p]
presence = true
presence_access = "user"
subscribe = "anyone"
[namespaces.on]
presence = true
join_leave = "on"
presence_access = "subscriber"
subscribe = "anyone"
publish = "anyone"
[namespaces.all]
presence = true
join_leave = "forced"
presence_access = "anyone"
subscribe = "anyone"
publish = "anyone"
[namespaces.told]
join_leave = "forced"
subscribe = "anyone"
[namespaces.off]
presence_access = "anyone"
subscribe = "anyone"
"#;

pub fn namespaces() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(NAMESPACES.as_bytes()).expect("written");
    file
}

pub fn builder(namespaces: &tempfile::NamedTempFile) -> Builder {
    // Most guests read, and answer pings, only when they are asked something.
    Hub::builder()
        .env("HUB_PING_INTERVAL", "10m")
        .env("HUB_CONFIG", namespaces.path().display())
        .env("HUB_TOKEN_HMAC_SECRET", SECRET)
}

/// One node with the embedded broker, or two on one Redis.
pub struct Crowd {
    pub redis: Option<Redis>,
    pub a: Hub,
    b: Option<Hub>,
    pub namespaces: tempfile::NamedTempFile,
}

impl Crowd {
    pub fn memory_with(set: impl Fn(Builder) -> Builder) -> Self {
        let namespaces = namespaces();
        let a = set(builder(&namespaces)).start().wait_ready();
        Self { redis: None, a, b: None, namespaces }
    }

    pub fn redis_with(set: impl Fn(Builder) -> Builder) -> Self {
        let (redis, namespaces) = (Redis::start(), namespaces());
        let node = || set(builder(&namespaces).redis(&redis)).start().wait_ready();
        let (a, b) = (node(), node());
        Self { redis: Some(redis), a, b: Some(b), namespaces }
    }

    pub fn redis() -> Self {
        Self::redis_with(|builder| builder)
    }

    /// The other node, if there is one.
    pub fn b(&self) -> &Hub {
        self.b.as_ref().unwrap_or(&self.a)
    }

    pub fn server(&mut self) -> &mut Redis {
        self.redis.as_mut().expect("a place with Redis")
    }

    /// Another node of the same Redis.
    pub fn another(&self) -> Hub {
        let redis = self.redis.as_ref().expect("a place with Redis");
        builder(&self.namespaces).redis(redis).start().wait_ready()
    }
}

pub fn token(user: &str) -> String {
    let name = format!("user {user}");
    token_with(&json!({ "sub": user, "info": { "name": name } }))
}

pub fn token_with(claims: &Value) -> String {
    sign(claims, SECRET)
}

/// Somebody with a connection.
pub struct Guest {
    pub cf: Cf,
    pub client: String,
}

/// Connected; without a user as nobody in particular.
pub fn guest(hub: &Hub, user: &str) -> Guest {
    let mut cf = Cf::dial(hub);
    let token = if user.is_empty() { String::new() } else { token(user) };
    let reply = cf.command(json!({ "connect": { "token": token } }));
    let client = reply["connect"]["client"].as_str().unwrap_or_else(|| panic!("{reply}"));
    Guest { client: client.to_owned(), cf }
}

/// In a channel.
pub fn member(hub: &Hub, user: &str, channel: &str) -> Guest {
    let mut guest = guest(hub, user);
    guest.cf.subscribe(channel);
    guest
}

/// In a channel, and asks who comes and goes.
pub fn watcher(hub: &Hub, user: &str, channel: &str) -> Guest {
    let mut guest = guest(hub, user);
    let subscribe = json!({ "subscribe": { "channel": channel, "join_leave": true } });
    let reply = guest.cf.command(subscribe);
    assert!(reply["subscribe"].is_object(), "{reply}");
    guest
}

/// In channels as a raw subscriber.
pub fn raw(hub: &Hub, user: &str, channels: &[&str]) -> Raw {
    let path = format!("{}&token={}", raw_path(channels), token(user));
    Dial::new(hub, &path).open()
}

impl Guest {
    /// What it is told next: `join` or `leave`, and of whom.
    pub fn told(&mut self, deadline: Duration) -> Option<(String, Value)> {
        let push = self.cf.next_push(deadline)?["push"].clone();
        let what = ["join", "leave"].into_iter().find(|what| push[*what].is_object());
        let what = what.unwrap_or_else(|| panic!("neither joins nor leaves: {push}"));
        assert!(push["channel"].is_string(), "{push}");
        Some((what.to_owned(), push[what]["info"].clone()))
    }

    /// The next it is told must be this.
    #[track_caller]
    pub fn is_told(&mut self, what: &str, client: &str) {
        let (told, info) = self.told(SOON).unwrap_or_else(|| panic!("not told of a {what}"));
        assert_eq!((&*told, &info["client"]), (what, &json!(client)), "{info}");
    }
}

/// Clients and their users, as the API lists them.
#[track_caller]
pub fn here(hub: &Hub, channel: &str) -> BTreeMap<String, String> {
    users(&result(hub, "presence", json!({ "channel": channel })))
}

#[track_caller]
pub fn users(presence: &Value) -> BTreeMap<String, String> {
    let members = presence["presence"].as_object().unwrap_or_else(|| panic!("{presence}"));
    let user = |info: &Value| info["user"].as_str().expect("a user").to_owned();
    members
        .iter()
        .map(|(client, info)| {
            assert_eq!(info["client"], json!(client), "{info}");
            (client.clone(), user(info))
        })
        .collect()
}

/// The same while Redis comes and goes; `None`: nobody knows.
pub fn try_counts(hub: &Hub, channel: &str) -> Option<(u64, u64)> {
    let stats = hub.api("presence_stats", &json!({ "channel": channel })).json();
    let number = |key: &str| stats["result"][key].as_u64();
    Some((number("num_clients")?, number("num_users")?))
}

/// How many clients and users.
#[track_caller]
pub fn counts(hub: &Hub, channel: &str) -> (u64, u64) {
    let stats = result(hub, "presence_stats", json!({ "channel": channel }));
    let number = |key: &str| stats[key].as_u64().unwrap_or_else(|| panic!("{key}: {stats}"));
    (number("num_clients"), number("num_users"))
}
