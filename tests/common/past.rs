//! Nodes whose channels have history, on either broker, and what one asks them.

use super::{Hub, Redis, hub::Builder};
use serde_json::{Value, json};
use std::io::Write;

/// `h:` keeps 10, `big:` 1,000, `short:` for a second, `off:` nothing. Streams recover in `r:`, which
/// keeps 10, `hundred:`, `brief:`, a hundred for three seconds, and `long:`, which keeps 1,000; `c:`, `flash:` and `plain:` show their newest, the first from its
/// history, the second for a second and the third without. No other namespace is there.
const NAMESPACES: &str = r#"
[namespaces.h]
history_size = 10
history_ttl = "60s"
publish = "anyone"
history = "anyone"
subscribe = "anyone"
[namespaces.big]
history_size = 1000
history_ttl = "60s"
[namespaces.short]
history_size = 10
history_ttl = "1s"
[namespaces.subscribers]
history_size = 10
history_ttl = "60s"
history = "subscriber"
subscribe = "anyone"
[namespaces.off]
[namespaces.r]
history_size = 10
history_ttl = "60s"
recovery = "stream"
publish = "anyone"
subscribe = "anyone"
[namespaces.hundred]
history_size = 100
history_ttl = "60s"
recovery = "stream"
[namespaces.brief]
history_size = 100
history_ttl = "3s"
recovery = "stream"
[namespaces.long]
history_size = 1000
history_ttl = "10m"
recovery = "stream"
subscribe = "anyone"
[namespaces.c]
history_size = 1
history_ttl = "60s"
recovery = "cache"
subscribe = "anyone"
[namespaces.flash]
history_size = 1
history_ttl = "1s"
recovery = "cache"
subscribe = "anyone"
[namespaces.plain]
recovery = "cache"
subscribe = "anyone"
"#;

/// One node with the embedded broker, or two on one Redis.
pub struct Place {
    pub redis: Option<Redis>,
    pub a: Hub,
    b: Option<Hub>,
    _namespaces: tempfile::NamedTempFile,
}

impl Place {
    pub fn memory() -> Self {
        Self::memory_with(|builder| builder)
    }

    pub fn memory_with(set: impl Fn(Builder) -> Builder) -> Self {
        let namespaces = namespaces();
        let a = set(builder(&namespaces)).start().wait_ready();
        Self { redis: None, a, b: None, _namespaces: namespaces }
    }

    pub fn redis() -> Self {
        Self::redis_with(|builder| builder)
    }

    pub fn redis_with(set: impl Fn(Builder) -> Builder) -> Self {
        let (redis, namespaces) = (Redis::start(), namespaces());
        let node = || set(builder(&namespaces).redis(&redis)).start().wait_ready();
        let (a, b) = (node(), node());
        Self { redis: Some(redis), a, b: Some(b), _namespaces: namespaces }
    }

    /// The other node, if there is one.
    pub fn b(&self) -> &Hub {
        self.b.as_ref().unwrap_or(&self.a)
    }

    pub fn server(&self) -> &Redis {
        self.redis.as_ref().expect("a place with Redis")
    }
}

fn builder(namespaces: &tempfile::NamedTempFile) -> Builder {
    Hub::builder().env("HUB_CONFIG", namespaces.path().display())
}

pub fn namespaces() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(NAMESPACES.as_bytes()).expect("written");
    file
}

/// A call's result; it must not be an error.
#[track_caller]
pub fn result(hub: &Hub, method: &str, body: Value) -> Value {
    let response = hub.api(method, &body);
    assert_eq!(response.status, 200, "{method} {body}: {}", response.text());
    let answer = response.json();
    assert!(answer["result"].is_object(), "{method} {body}: {answer}");
    answer["result"].clone()
}

/// A call's error code; it must be one.
#[track_caller]
pub fn code(hub: &Hub, method: &str, body: Value) -> u64 {
    let response = hub.api(method, &body);
    assert_eq!(response.status, 200, "{method} {body}: {}", response.text());
    let answer = response.json();
    answer["error"]["code"].as_u64().unwrap_or_else(|| panic!("{method} {body}: {answer}"))
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    pub offset: u64,
    pub epoch: String,
}

impl At {
    #[track_caller]
    pub fn of(value: &Value) -> Self {
        let offset = value["offset"].as_u64().unwrap_or_else(|| panic!("no offset: {value}"));
        let epoch = value["epoch"].as_str().unwrap_or_else(|| panic!("no epoch: {value}"));
        Self { offset, epoch: epoch.to_owned() }
    }

    pub fn json(&self) -> Value {
        json!({ "offset": self.offset, "epoch": self.epoch })
    }
}

#[track_caller]
pub fn publish(hub: &Hub, channel: &str, data: impl Into<Value>) -> At {
    At::of(&result(hub, "publish", json!({ "channel": channel, "data": data.into() })))
}

/// One after the other; where the last one landed.
#[track_caller]
pub fn publish_each(
    hub: &Hub,
    channel: &str,
    data: impl IntoIterator<Item = impl Into<Value>>,
) -> At {
    let mut last = None;
    for data in data {
        last = Some(publish(hub, channel, data));
    }
    last.expect("something was published")
}

/// All there is, oldest first.
#[track_caller]
pub fn history(hub: &Hub, channel: &str) -> Value {
    result(hub, "history", json!({ "channel": channel, "limit": -1 }))
}

pub fn offsets(history: &Value) -> Vec<u64> {
    let publications = history["publications"].as_array().expect("publications are there");
    publications.iter().map(|it| it["offset"].as_u64().expect("an offset")).collect()
}

/// A subscribe that asks for what followed `at`.
pub fn recover(channel: &str, at: &At) -> Value {
    let At { offset, epoch } = at;
    json!({ "subscribe":
        { "channel": channel, "recover": true, "offset": offset, "epoch": epoch, "flag": 1 } })
}
