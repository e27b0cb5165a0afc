//! `publish` and `broadcast`.

use std::collections::BTreeMap;
use std::rc::Rc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json as value;
use tokio::sync::oneshot;

use super::members::{Members, Refusal};
use super::{Work, nothing, wrap};
use crate::broker::{Publish, PublishError, Version};
use crate::channel;
use crate::position::Position;
use crate::protocol::ReplyError;
use crate::publication::Body;
use crate::shard::Shard;

/// What publish and broadcast share. No body: neither `data` nor `b64data`.
struct PublishRequest {
    body: Option<Body>,
    skip_history: bool,
    idempotency_key: Option<Box<str>>,
    version: Option<Version>,
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
                Some(BASE64_STANDARD.decode(text).map_err(|_| ReplyError::BAD_REQUEST)?)
            }
            _ => members.raw("data").map(<[u8]>::to_vec),
        };
        let version = match members.get::<u64>("version")?.unwrap_or_default() {
            0 => None,
            number => Some(Version { number, epoch: members.short_text("version_epoch")? }),
        };
        let number = version.as_ref().map_or(0, |version| version.number);
        let idempotency_key = members.short_text("idempotency_key")?;
        Ok(Self {
            body: payload.map(|payload| Body { payload, tags, version: number, info: None }),
            skip_history: members.get("skip_history")?.unwrap_or_default(),
            idempotency_key: (!idempotency_key.is_empty()).then_some(idempotency_key),
            version,
        })
    }
}

pub fn publish(shard: &Rc<Shard>, members: &Members<'_>) -> Result<Work, Refusal> {
    let channel = members.get::<String>("channel")?.unwrap_or_default();
    let request = PublishRequest::read(members)?;
    let shard = shard.clone();
    Ok(Box::pin(async move { finish(begin(&shard, &channel, &request)).await }))
}

pub fn broadcast(shard: &Rc<Shard>, members: &Members<'_>) -> Result<Work, Refusal> {
    let channels: Vec<String> = members.get("channels")?.unwrap_or_default();
    let request = PublishRequest::read(members)?;
    if channels.is_empty() {
        return Err(ReplyError::BAD_REQUEST.into());
    }
    let shard = shard.clone();
    Ok(Box::pin(async move {
        // All are handed over before the first answer is awaited: one round trip, in this order.
        let begun: Vec<_> =
            channels.iter().map(|channel| begin(&shard, channel, &request)).collect();
        let mut responses = Vec::with_capacity(begun.len());
        for published in begun {
            responses.push(wrap(finish(published).await));
        }
        Ok(format!("{{\"responses\":[{}]}}", responses.join(",")))
    }))
}

type Begun = Result<oneshot::Receiver<Result<Position, PublishError>>, ReplyError>;

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

async fn finish(begun: Begun) -> Result<String, ReplyError> {
    match begun?.await {
        Ok(Ok(position)) if position.offset == 0 => Ok(nothing()),
        Ok(Ok(position)) => {
            let result = value!({ "offset": position.offset, "epoch": position.epoch.as_str() });
            Ok(result.to_string())
        }
        _ => Err(ReplyError::INTERNAL),
    }
}
