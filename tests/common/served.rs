//! Nodes that subscribe their clients, and what one asks them. Users have channels of their own; streams
//! recover in `r:`, `c:` shows its newest value, and nobody may subscribe to `signed:` by itself.

use super::cf::Cf;
use super::past::At;
use super::{Close, Hub, Redis, SOON, ms, sign};
use serde_json::{Value, json};
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

pub const SECRET: &str = "a secret of the tests";
const NAMESPACES: &str = r#"
[namespaces.""]
personal = true
[namespaces.user]
personal = true
subscribe = "nobody"
publish = "subscriber"
[namespaces.r]
history_size = 10
history_ttl = "60s"
recovery = "stream"
delta = true
[namespaces.long]
history_size = 10000
history_ttl = "60s"
recovery = "stream"
[namespaces.c]
recovery = "cache"
subscribe = "anyone"
[namespaces.signed]
subscribe = "nobody"
publish = "token"
history = "subscriber"
history_size = 10
history_ttl = "60s"
"#;

pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

pub fn close(code: u16, reason: &str) -> Option<Close> {
    Some(Close { code, reason: reason.to_owned() })
}

/// With the key `k`; anonymous clients are let in.
pub fn start(file: &tempfile::NamedTempFile, url: Option<&str>, knobs: &[(&str, &str)]) -> Hub {
    let mut builder = Hub::builder()
        .without_dev()
        .env("HUB_TOKEN_HMAC_SECRET", SECRET)
        .env("HUB_ALLOW_ANONYMOUS", true)
        .env("HUB_API_KEY", "k")
        .env("HUB_CONFIG", file.path().display());
    let url = url.map(|url| ("HUB_REDIS_URL", url));
    for (name, value) in knobs.iter().copied().chain(url) {
        builder = builder.env(name, value);
    }
    builder.start().wait_ready()
}

pub fn namespaces() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(NAMESPACES.as_bytes()).expect("written");
    file
}

/// One node with the embedded broker, or two on one Redis.
pub struct Place {
    pub redis: Option<Redis>,
    pub a: Hub,
    b: Option<Hub>,
    _namespaces: tempfile::NamedTempFile,
}

impl Place {
    pub fn new(redis: Option<Redis>, knobs: &[(&str, &str)]) -> Self {
        let file = namespaces();
        let url = redis.as_ref().map(Redis::url);
        let node = || start(&file, url.as_deref(), knobs);
        let (a, b) = (node(), redis.is_some().then(node));
        Self { redis, a, b, _namespaces: file }
    }

    pub fn memory() -> Self {
        Self::new(None, &[])
    }

    pub fn redis() -> Self {
        Self::new(Some(Redis::start()), &[])
    }

    /// The other node, if there is one.
    pub fn b(&self) -> &Hub {
        self.b.as_ref().unwrap_or(&self.a)
    }
}

pub fn on_both(contract: impl Fn(&Place)) {
    contract(&Place::memory());
    contract(&Place::redis());
}

#[track_caller]
pub fn api(hub: &Hub, method: &str, body: Value) -> Value {
    let path = format!("/api/{method}");
    let response = hub.http_with("POST", &path, &[("X-API-Key", "k")], body.to_string());
    assert_eq!(response.status, 200, "{method} {body}: {}", response.text());
    response.json()
}

#[track_caller]
pub fn result(hub: &Hub, method: &str, body: Value) -> Value {
    let answer = api(hub, method, body.clone());
    assert!(answer["result"].is_object(), "{method} {body}: {answer}");
    answer["result"].clone()
}

#[track_caller]
pub fn code(hub: &Hub, method: &str, body: Value) -> u64 {
    let answer = api(hub, method, body.clone());
    answer["error"]["code"].as_u64().unwrap_or_else(|| panic!("{method} {body}: {answer}"))
}

#[track_caller]
pub fn publish_each(hub: &Hub, channel: &str, data: impl IntoIterator<Item = u64>) -> At {
    let mut last = None;
    for n in data {
        let answer = result(hub, "publish", json!({ "channel": channel, "data": n }));
        last = answer.get("offset").map(|_| At::of(&answer));
    }
    last.unwrap_or(At { offset: 0, epoch: String::new() })
}

pub fn connect(claims: &Value) -> Value {
    json!({ "connect": { "token": sign(claims, SECRET) } })
}

/// With what the client knows of its server-side subscriptions.
pub fn reconnect(claims: &Value, subs: Value) -> Value {
    json!({ "connect": { "token": sign(claims, SECRET), "subs": subs } })
}

/// Connected, and the reply's `subs`.
#[track_caller]
pub fn connected(hub: &Hub, command: Value) -> Served {
    let mut cf = Cf::dial(hub);
    let reply = cf.command(command);
    assert!(reply["connect"]["client"].is_string(), "{reply}");
    let first = &cf.log[0].text;
    assert!(first.starts_with(r#"{"id":1,"connect":"#), "before the reply: {first}");
    let subs = reply["connect"].get("subs").cloned().unwrap_or(Value::Null);
    Served { cf, subs }
}

pub struct Served {
    pub cf: Cf,
    pub subs: Value,
}

#[track_caller]
pub fn next(cf: &mut Cf) -> String {
    let publication = cf.next_pub(SOON).unwrap_or_else(|| panic!("{:?}", cf.next_close(ms(0))));
    format!("{} {}", publication.channel, publication.data)
}

#[track_caller]
pub fn next_push(cf: &mut Cf) -> Value {
    cf.next_push(SOON).expect("a push")["push"].clone()
}
