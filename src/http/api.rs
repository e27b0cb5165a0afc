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
use crate::broker::{Audience, HistoryAsk, HistoryError, Order, Publish, PublishError, Version};
use crate::channel;
use crate::config::Config;
use crate::position::{Epoch, Position};
use crate::protocol::{HistoryResult, ReplyError, put_history_result};
use crate::publication::Body;
use crate::shard::Shard;

pub fn is_method(method: &str) -> bool {
    matches!(method, "publish" | "broadcast" | "history" | "history_remove" | "info" | "channels")
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
    skip_history: bool,
    idempotency_key: Option<Box<str>>,
    version: Option<Version>,
}

/// Of an idempotency key, and of a version's epoch.
const KEY_BYTES_MAX: usize = 255;

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
        let version = match members.get::<u64>("version")?.unwrap_or_default() {
            0 => None,
            number => Some(Version { number, epoch: short_text(members, "version_epoch")? }),
        };
        let number = version.as_ref().map_or(0, |version| version.number);
        let idempotency_key = short_text(members, "idempotency_key")?;
        Ok(Self {
            body: payload.map(|payload| Body { payload, tags, version: number, info: None }),
            skip_history: members.get("skip_history")?.unwrap_or_default(),
            idempotency_key: (!idempotency_key.is_empty()).then_some(idempotency_key),
            version,
        })
    }
}

/// A member that becomes part of a key or is kept; left out it is empty.
fn short_text(members: &Members<'_>, name: &str) -> Result<Box<str>, Refusal> {
    let text: String = members.get(name)?.unwrap_or_default();
    if text.len() > KEY_BYTES_MAX {
        return Err(Refusal::Error(ReplyError::BAD_REQUEST));
    }
    Ok(text.into())
}

/// Runs one call; a malformed body is 400 and nothing was done.
pub async fn call(shard: &Rc<Shard>, method: &str, body: &[u8]) -> Reply {
    let answer = match method {
        "history" => history(shard, body).await,
        _ => answer(shard, method, body).await.map(|answer| answer.to_string()),
    };
    match answer {
        Ok(answer) => json(StatusCode::OK, &answer),
        Err(Refusal::Error(refused)) => json(StatusCode::OK, &error(refused).to_string()),
        Err(Refusal::Malformed) => text(StatusCode::BAD_REQUEST, "Bad Request\n"),
    }
}

async fn answer(shard: &Rc<Shard>, method: &str, body: &[u8]) -> Result<Value, Refusal> {
    let members = Members::read(body)?;
    Ok(match method {
        "info" => value!({ "result": info(shard) }),
        "channels" => channels(shard, members.get("pattern")?).await,
        "history_remove" => history_remove(shard, &members).await?,
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
    let namespace = shard.namespace_of(channel).ok_or(ReplyError::UNKNOWN_CHANNEL)?;
    let keep = namespace.keep().filter(|_| !request.skip_history);
    let version = request.version.clone().filter(|_| keep.is_some());
    let body =
        Body { version: version.as_ref().map_or(0, |version| version.number), ..body.clone() };
    let idempotency_key = request.idempotency_key.clone();
    Ok(shard.publish(Publish { channel: channel.into(), body, keep, idempotency_key, version }))
}

async fn finish(begun: Begun) -> Value {
    match begun {
        Ok(published) => match published.await {
            Ok(Ok(position)) if position.offset == 0 => value!({ "result": {} }),
            Ok(Ok(position)) => value!({
                "result": { "offset": position.offset, "epoch": position.epoch.as_str() }
            }),
            _ => error(ReplyError::INTERNAL),
        },
        Err(refused) => error(refused),
    }
}

/// The channel of a history call, if there is one with history.
fn channel_with_history(shard: &Rc<Shard>, members: &Members<'_>) -> Result<String, Refusal> {
    let channel: String = members.get("channel")?.unwrap_or_default();
    channel::check_name(&channel, shard.node.config.channel_bytes_max)
        .map_err(|_| Refusal::Error(ReplyError::BAD_REQUEST))?;
    let namespace = shard.namespace_of(&channel);
    let namespace = namespace.ok_or(Refusal::Error(ReplyError::UNKNOWN_CHANNEL))?;
    namespace.keep().ok_or(Refusal::Error(ReplyError::NOT_AVAILABLE))?;
    Ok(channel)
}

/// Reads at most `HUB_HISTORY_MAX` publications, and as many bytes as a request may have.
async fn history(shard: &Rc<Shard>, body: &[u8]) -> Result<String, Refusal> {
    #[derive(Deserialize)]
    struct Since {
        #[serde(default)]
        offset: Option<u64>,
        #[serde(default)]
        epoch: Option<String>,
    }
    let members = Members::read(body)?;
    let since = members.get::<Since>("since")?.map(|since| Position {
        offset: since.offset.unwrap_or_default(),
        epoch: Epoch::asked(&since.epoch.unwrap_or_default()),
    });
    let order = match members.get("reverse")?.unwrap_or_default() {
        true => Order::Reverse,
        false => Order::Forward,
    };
    let limit: i64 = members.get("limit")?.unwrap_or_default();
    let channel = channel_with_history(shard, &members)?;
    if order == Order::Reverse && since.is_some_and(|since| since.offset == 0) {
        return Err(Refusal::Error(ReplyError::BAD_REQUEST));
    }
    let config = &shard.node.config;
    let (limit, bytes_max) =
        (HistoryAsk::limit(limit, config.history_max), config.api_body_bytes_max);
    let ask = HistoryAsk { channel: channel.into(), since, order, limit, bytes_max };
    let page = match shard.read_history(ask).await {
        Ok(Ok(page)) => page,
        Ok(Err(HistoryError::OtherEpoch)) => {
            return Err(Refusal::Error(ReplyError::UNRECOVERABLE_POSITION));
        }
        Ok(Err(HistoryError::Unavailable)) | Err(_) => {
            return Err(Refusal::Error(ReplyError::INTERNAL));
        }
    };
    let publications = page.to_json(Audience::Api, bytes_max).json;
    let mut out = Vec::with_capacity(publications.len() + 64);
    let result = HistoryResult { publications: &publications, top: page.top };
    put_history_result(&mut out, &result);
    String::from_utf8(out).map_err(|_| Refusal::Error(ReplyError::INTERNAL))
}

async fn history_remove(shard: &Rc<Shard>, members: &Members<'_>) -> Result<Value, Refusal> {
    let channel = channel_with_history(shard, members)?;
    match shard.remove_history(&channel).await {
        Ok(Ok(())) => Ok(value!({ "result": {} })),
        _ => Err(Refusal::Error(ReplyError::INTERNAL)),
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
