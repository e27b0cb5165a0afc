//! The server API: publish, broadcast, info, channels. Errors of a command are HTTP 200.

use std::collections::BTreeMap;
use std::fmt::Formatter;
use std::rc::Rc;

use ahash::HashMap;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use globset::Glob;
use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use hyper::{Request, StatusCode};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json as value};
use subtle::ConstantTimeEq;
use tokio::sync::oneshot;

use super::{Reply, json, query, text};
use crate::broker::{Publish, PublishError};
use crate::channel;
use crate::config::Config;
use crate::position::Position;
use crate::protocol::ReplyError;
use crate::publication::Body;
use crate::shard::Shard;

pub fn is_method(method: &str) -> bool {
    matches!(method, "publish" | "broadcast" | "info" | "channels")
}

/// Whether a request carries a key. Compared in constant time.
pub fn is_allowed(config: &Config, request: &Request<Incoming>) -> bool {
    if config.dev {
        return true;
    }
    let matches = |key: &str| {
        config.api_keys.iter().any(|own| bool::from(own.expose().as_bytes().ct_eq(key.as_bytes())))
    };
    let header = |name: &str| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .filter(|key| !key.is_empty())
    };
    let in_header = match header("x-api-key") {
        Some(key) => matches(key),
        None => header(AUTHORIZATION.as_str())
            .and_then(|value| value.split_once(' '))
            .is_some_and(|(scheme, key)| scheme.eq_ignore_ascii_case("apikey") && matches(key)),
    };
    in_header || query(request, "api_key").iter().any(|key| matches(key))
}

/// A request's members: names in lower case, the last of the same name wins, `null` counts as
/// absent but for `data` (server API, 1 and 8).
struct Members<'a>(HashMap<String, &'a RawValue>);

/// Why a call as a whole failed: nothing was done.
enum Refusal {
    /// The body isn't what the method takes: 400.
    Malformed,
    Error(ReplyError),
}

impl<'a> Members<'a> {
    fn read(body: &'a [u8]) -> Result<Self, Refusal> {
        serde_json::from_slice(body).map_err(|_| Refusal::Malformed)
    }

    fn get<T: Deserialize<'a>>(&self, name: &str) -> Result<Option<T>, Refusal> {
        match self.0.get(name) {
            Some(value) => serde_json::from_str(value.get()).map_err(|_| Refusal::Malformed),
            None => Ok(None),
        }
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = HashMap::default();
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    members.insert(name.to_ascii_lowercase(), value);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// What publish and broadcast share. No body: neither `data` nor `b64data`.
struct PublishRequest {
    body: Option<Body>,
}

impl PublishRequest {
    fn read(members: &Members<'_>) -> Result<Self, Refusal> {
        let tags: Option<BTreeMap<String, String>> = members.get("tags")?;
        let tags = tags
            .filter(|tags| !tags.is_empty())
            .map(|tags| value!(tags).to_string().into_bytes().into());
        // Standard base64, and it wins over `data`.
        let payload = match members.get::<String>("b64data")? {
            Some(text) if !text.is_empty() => {
                let bytes = BASE64_STANDARD.decode(text);
                Some(bytes.map_err(|_| Refusal::Error(ReplyError::BAD_REQUEST))?)
            }
            _ => members.0.get("data").map(|data| data.get().as_bytes().to_vec()),
        };
        Ok(Self { body: payload.map(|payload| Body { payload, tags, ..Body::default() }) })
    }
}

/// Runs one call; a malformed body is 400 and nothing was done.
pub async fn call(shard: &Rc<Shard>, method: &str, body: &[u8]) -> Reply {
    match answer(shard, method, body).await {
        Ok(answer) => json(StatusCode::OK, &answer.to_string()),
        Err(Refusal::Error(refused)) => json(StatusCode::OK, &error(refused).to_string()),
        Err(Refusal::Malformed) => text(StatusCode::BAD_REQUEST, "Bad Request\n"),
    }
}

async fn answer(shard: &Rc<Shard>, method: &str, body: &[u8]) -> Result<Value, Refusal> {
    let members = Members::read(body)?;
    Ok(match method {
        "info" => value!({ "result": info(shard) }),
        "channels" => channels(shard, members.get("pattern")?).await,
        "publish" => {
            let channel: Option<String> = members.get("channel")?;
            let request = PublishRequest::read(&members)?;
            publish(shard, &channel.unwrap_or_default(), &request).await
        }
        _ => broadcast(shard, &members).await?,
    })
}

async fn broadcast(shard: &Rc<Shard>, members: &Members<'_>) -> Result<Value, Refusal> {
    let channels: Vec<String> = members.get("channels")?.unwrap_or_default();
    let request = PublishRequest::read(members)?;
    if channels.is_empty() {
        return Ok(error(ReplyError::BAD_REQUEST));
    }
    // All are handed over before the first answer is awaited: one round trip, in this order.
    let begun: Vec<_> = channels.iter().map(|channel| begin(shard, channel, &request)).collect();
    let mut responses = Vec::with_capacity(begun.len());
    for published in begun {
        responses.push(finish(published).await);
    }
    Ok(value!({ "result": { "responses": responses } }))
}

type Begun = Result<oneshot::Receiver<Result<Position, PublishError>>, ReplyError>;

async fn publish(shard: &Rc<Shard>, channel: &str, request: &PublishRequest) -> Value {
    finish(begin(shard, channel, request)).await
}

fn begin(shard: &Rc<Shard>, channel: &str, request: &PublishRequest) -> Begun {
    let config = &shard.node.config;
    let body = request.body.as_ref().ok_or(ReplyError::BAD_REQUEST)?;
    if channel::check_name(channel, config.channel_bytes_max).is_err()
        || body.bytes() > config.publication_bytes_max
    {
        return Err(ReplyError::BAD_REQUEST);
    }
    Ok(shard.publish(Publish { channel: channel.into(), body: body.clone() }))
}

async fn finish(begun: Begun) -> Value {
    match begun {
        Ok(published) => match published.await {
            Ok(Ok(_)) => value!({ "result": {} }),
            _ => error(ReplyError::INTERNAL),
        },
        Err(refused) => error(refused),
    }
}

fn error(error: ReplyError) -> Value {
    value!({ "error": { "code": error.code, "message": error.message } })
}

fn info(shard: &Rc<Shard>) -> Value {
    let node = &shard.node;
    let n_clients = node.metrics.sum(|shard| &shard.connections);
    value!({ "nodes": [{
        "uid": node.run_id.to_string(),
        "name": "hubbub",
        "version": env!("CARGO_PKG_VERSION"),
        "num_clients": n_clients,
        "num_users": node.admission.n_users(),
        "num_subs": node.metrics.sum(|shard| &shard.subscriptions),
        "num_channels": node.metrics.broker.redis_subscriptions.get(),
        "uptime": node.uptime_s(),
    }] })
}

/// All nodes' channels would be asked once there are several; this node's shards are.
async fn channels(shard: &Rc<Shard>, pattern: Option<String>) -> Value {
    let pattern = pattern.filter(|pattern| !pattern.is_empty());
    let matcher = match pattern.map(|pattern| Glob::new(&pattern)).transpose() {
        Ok(glob) => glob.map(|glob| glob.compile_matcher()),
        Err(_) => return error(ReplyError::INTERNAL),
    };
    let survey = shard.survey().await.unwrap_or_default();
    let channels: Map<String, Value> = survey
        .channels
        .into_iter()
        .filter(|(name, _)| matcher.as_ref().is_none_or(|matcher| matcher.is_match(&**name)))
        .map(|(name, n)| (name.into(), value!({ "num_clients": n })))
        .collect();
    value!({ "result": { "channels": channels } })
}
