//! The server API: publish, broadcast, info, channels. Errors of a command are HTTP 200.

use std::rc::Rc;

use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use hyper::{Request, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json as value};
use subtle::ConstantTimeEq;

use super::{Reply, json, query, text};
use crate::broker::Publish;
use crate::channel;
use crate::config::Config;
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

#[derive(Deserialize)]
struct PublishRequest<'a> {
    #[serde(default)]
    channel: String,
    #[serde(default)]
    channels: Vec<String>,
    #[serde(borrow, default, deserialize_with = "even_null")]
    data: Option<&'a RawValue>,
    tags: Option<Map<String, Value>>,
}

/// `null` is data; only a missing member is none.
fn even_null<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

pub async fn call(shard: &Rc<Shard>, method: &str, body: &[u8]) -> Reply {
    if method == "info" || method == "channels" {
        if serde_json::from_slice::<Map<String, Value>>(body).is_err() {
            return text(StatusCode::BAD_REQUEST, "Bad Request\n");
        }
        let result = if method == "info" { info(shard) } else { channels(shard).await };
        return json(StatusCode::OK, &value!({ "result": result }).to_string());
    }
    let Ok(request) = serde_json::from_slice::<PublishRequest<'_>>(body) else {
        return text(StatusCode::BAD_REQUEST, "Bad Request\n");
    };
    let reply = if method == "publish" {
        publish(shard, &request.channel, &request).await
    } else if request.channels.is_empty() {
        error(ReplyError::BAD_REQUEST)
    } else {
        let mut responses = Vec::with_capacity(request.channels.len());
        for channel in &request.channels {
            responses.push(publish(shard, channel, &request).await);
        }
        value!({ "result": { "responses": responses } })
    };
    json(StatusCode::OK, &reply.to_string())
}

async fn publish(shard: &Rc<Shard>, channel: &str, request: &PublishRequest<'_>) -> Value {
    let config = &shard.node.config;
    let Some(data) = request.data else { return error(ReplyError::BAD_REQUEST) };
    let tags = request
        .tags
        .as_ref()
        .map(|tags| Value::Object(tags.clone()).to_string().into_bytes().into());
    let body = Body { payload: data.get().as_bytes().to_vec(), info: None, tags };
    if channel::check_name(channel, config.channel_bytes_max).is_err()
        || body.bytes() > config.publication_bytes_max
    {
        return error(ReplyError::BAD_REQUEST);
    }
    match shard.publish(Publish { channel: channel.into(), body }).await {
        Ok(Ok(_)) => value!({ "result": {} }),
        _ => error(ReplyError::INTERNAL),
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
        "num_users": u64::from(n_clients > 0),
        "num_subs": node.metrics.sum(|shard| &shard.subscriptions),
        "num_channels": node.metrics.broker.redis_subscriptions.get(),
        "uptime": node.uptime_s(),
    }] })
}

async fn channels(shard: &Rc<Shard>) -> Value {
    let survey = shard.survey().await.unwrap_or_default();
    let channels: Map<String, Value> = survey
        .channels
        .into_iter()
        .map(|(name, n)| (name.into(), value!({ "num_clients": n })))
        .collect();
    value!({ "channels": channels })
}
