//! `presence` and `presence_stats`.

use std::rc::Rc;

use super::Work;
use super::members::{Members, Refusal};
use crate::broker::{Presence, PresenceAsk, PresenceError, Wanted};
use crate::channel;
use crate::protocol::{ReplyError, put_presence_result, put_presence_stats_result};
use crate::shard::Shard;

/// All who are in a channel, as far as an answer may be as large as a request.
pub fn presence(shard: &Rc<Shard>, members: &Members<'_>) -> Result<Work, Refusal> {
    let bytes_max = shard.node.config.api_body_bytes_max;
    ask(shard, members, Wanted::Members { bytes_max })
}

pub fn presence_stats(shard: &Rc<Shard>, members: &Members<'_>) -> Result<Work, Refusal> {
    ask(shard, members, Wanted::Counts)
}

fn ask(shard: &Rc<Shard>, members: &Members<'_>, what: Wanted) -> Result<Work, Refusal> {
    let channel: Box<str> = members.get("channel")?.unwrap_or_default();
    channel::check_name(&channel, shard.node.config.channel_bytes_max)
        .map_err(|_| ReplyError::BAD_REQUEST)?;
    let namespace = shard.namespace_of(&channel).ok_or(ReplyError::UNKNOWN_CHANNEL)?;
    if !namespace.presence {
        return Err(ReplyError::NOT_AVAILABLE.into());
    }
    let shard = shard.clone();
    Ok(Box::pin(async move {
        let presence = shard.read_presence(PresenceAsk { channel, what }).await;
        let presence = match presence {
            Ok(Ok(presence)) => presence,
            Ok(Err(PresenceError::TooMany)) => return Err(ReplyError::LIMIT_EXCEEDED),
            Ok(Err(PresenceError::Unavailable)) | Err(_) => return Err(ReplyError::INTERNAL),
        };
        let mut out = Vec::new();
        match &*presence {
            Presence::Members(members) => put_presence_result(&mut out, members),
            Presence::Counts(counts) => {
                put_presence_stats_result(&mut out, counts.n_clients, counts.n_users);
            }
        }
        String::from_utf8(out).map_err(|_| ReplyError::INTERNAL)
    }))
}
