//! `nodes`, `connections`, `where`: the connection registry, as the command line shows it.

use std::rc::Rc;

use uuid::Uuid;

use super::Work;
use super::members::{Members, Refusal};
use crate::broker::LookUp;
use crate::protocol::ReplyError;
use crate::shard::Shard;

/// Of connections in one answer.
const LIMIT_DEFAULT: usize = 1_000;
const LIMIT_MAX: usize = 10_000;

pub fn nodes(shard: &Rc<Shard>, _: &Members<'_>) -> Result<Work, Refusal> {
    Ok(look_up(shard, LookUp::Nodes))
}

pub fn connections(shard: &Rc<Shard>, members: &Members<'_>) -> Result<Work, Refusal> {
    let user: Option<String> = members.get("user")?;
    let limit: Option<usize> = members.get("limit")?;
    let limit = limit.filter(|limit| *limit > 0).unwrap_or(LIMIT_DEFAULT).min(LIMIT_MAX);
    let cursor: String = members.get("cursor")?.unwrap_or_default();
    let cursor = if cursor.is_empty() { Ok(0) } else { cursor.parse() };
    let cursor = cursor.map_err(|_| ReplyError::BAD_REQUEST)?;
    let user = user.map(String::into_boxed_str);
    Ok(look_up(shard, LookUp::Connections { user, limit, cursor }))
}

pub fn where_is(shard: &Rc<Shard>, members: &Members<'_>) -> Result<Work, Refusal> {
    let client: String = members.get("client")?.unwrap_or_default();
    let client = Uuid::try_parse(&client).map_err(|_| ReplyError::BAD_REQUEST)?;
    Ok(look_up(shard, LookUp::Where(client)))
}

fn look_up(shard: &Rc<Shard>, ask: LookUp) -> Work {
    let shard = shard.clone();
    Box::pin(async move {
        if !shard.node.config.is_registered() {
            return Err(ReplyError::NOT_AVAILABLE);
        }
        match shard.look_up(ask).await {
            Ok(Ok(answer)) => Ok(answer),
            _ => Err(ReplyError::INTERNAL),
        }
    })
}
