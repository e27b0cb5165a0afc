//! `history` and `history_remove`.

use std::rc::Rc;

use serde::Deserialize;

use super::members::{Members, Refusal};
use super::{Work, nothing};
use crate::broker::{Audience, HistoryAsk, HistoryError, Order};
use crate::channel;
use crate::position::{Epoch, Position};
use crate::protocol::{HistoryResult, ReplyError, put_history_result};
use crate::shard::Shard;

/// The channel of a history call, if there is one with history.
fn channel_with_history(shard: &Rc<Shard>, members: &Members<'_>) -> Result<String, Refusal> {
    let channel: String = members.get("channel")?.unwrap_or_default();
    channel::check_name(&channel, shard.node.config.channel_bytes_max)
        .map_err(|_| ReplyError::BAD_REQUEST)?;
    let namespace = shard.namespace_of(&channel).ok_or(ReplyError::UNKNOWN_CHANNEL)?;
    namespace.keep().ok_or(ReplyError::NOT_AVAILABLE)?;
    Ok(channel)
}

/// Reads at most `HUB_HISTORY_MAX` publications, and as many bytes as a request may have.
pub fn history(shard: &Rc<Shard>, members: &Members<'_>) -> Result<Work, Refusal> {
    #[derive(Deserialize)]
    struct Since {
        #[serde(default)]
        offset: Option<u64>,
        #[serde(default)]
        epoch: Option<String>,
    }
    let since = members.get::<Since>("since")?.map(|since| Position {
        offset: since.offset.unwrap_or_default(),
        epoch: Epoch::asked(&since.epoch.unwrap_or_default()),
    });
    let order = match members.get("reverse")?.unwrap_or_default() {
        true => Order::Reverse,
        false => Order::Forward,
    };
    let limit: i64 = members.get("limit")?.unwrap_or_default();
    let channel = channel_with_history(shard, members)?;
    if order == Order::Reverse && since.is_some_and(|since| since.offset == 0) {
        return Err(ReplyError::BAD_REQUEST.into());
    }
    let config = &shard.node.config;
    let (limit, bytes_max) =
        (HistoryAsk::limit(limit, config.history_max), config.api_body_bytes_max);
    let ask = HistoryAsk { channel: channel.into(), since, order, limit, bytes_max };
    let shard = shard.clone();
    Ok(Box::pin(async move {
        let page = match shard.read_history(ask).await {
            Ok(Ok(page)) => page,
            Ok(Err(HistoryError::OtherEpoch)) => return Err(ReplyError::UNRECOVERABLE_POSITION),
            Ok(Err(HistoryError::Unavailable)) | Err(_) => return Err(ReplyError::INTERNAL),
        };
        let publications = page.to_json(Audience::Api, bytes_max).json;
        let mut out = Vec::with_capacity(publications.len() + 64);
        let result = HistoryResult { publications: &publications, top: page.top };
        put_history_result(&mut out, &result);
        String::from_utf8(out).map_err(|_| ReplyError::INTERNAL)
    }))
}

pub fn history_remove(shard: &Rc<Shard>, members: &Members<'_>) -> Result<Work, Refusal> {
    let channel = channel_with_history(shard, members)?;
    let shard = shard.clone();
    Ok(Box::pin(async move {
        match shard.remove_history(&channel).await {
            Ok(Ok(())) => Ok(nothing()),
            _ => Err(ReplyError::INTERNAL),
        }
    }))
}
