//! `subscribe`, `unsubscribe`, `disconnect`, `refresh`: what is asked of a user's connections.

use std::rc::Rc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use uuid::Uuid;

use super::members::{Members, Refusal};
use super::{Work, nothing};
use crate::broker::{
    CONTROL_BYTES_MAX, Control, DisconnectUser, Overrides, RefreshUser, Since, SubscribeUser,
    Target, UnsubscribeUser, Verb,
};
use crate::channel;
use crate::frame::{CLOSE_REASON_BYTES_MAX, is_close_code_allowed};
use crate::node::unix_ms;
use crate::protocol::{Disconnect, JsonPayload, ReplyError, json_payload};
use crate::shard::Shard;

pub fn subscribe(shard: &Rc<Shard>, members: &Members<'_>) -> Result<Work, Refusal> {
    #[derive(Deserialize)]
    struct Position {
        offset: Option<u64>,
        epoch: Option<Box<str>>,
    }
    let (target, channel) = (target(members)?, members.text("channel")?);
    let subscribe = SubscribeUser {
        info: json(members, "info", "b64info")?,
        data: json(members, "data", "b64data")?,
        expire_at: seconds(members, "expire_at")?,
        recover_since: members.get::<Position>("recover_since")?.map(|since| Since {
            offset: since.offset.unwrap_or_default(),
            epoch: since.epoch.unwrap_or_default(),
        }),
        overrides: overrides(members)?,
        channel,
    };
    check_channel(shard, &subscribe.channel)?;
    let user = target.as_ref().map_or("", |target| &target.user);
    if !shard.node.config.dev && !channel::is_for(&subscribe.channel, user) {
        return Err(ReplyError::BAD_REQUEST.into());
    }
    // As Centrifugo answers it (server API, 3).
    if subscribe.expire_at.is_some_and(|at_s| at_s <= unix_ms() / 1000) {
        return Err(ReplyError::INTERNAL.into());
    }
    send(shard, target, Verb::Subscribe(Box::new(subscribe)))
}

pub fn unsubscribe(shard: &Rc<Shard>, members: &Members<'_>) -> Result<Work, Refusal> {
    let (target, channel) = (target(members)?, members.text("channel")?);
    if !channel.is_empty() {
        check_channel(shard, &channel)?;
    }
    send(shard, target, Verb::Unsubscribe(UnsubscribeUser { channel }))
}

pub fn disconnect(shard: &Rc<Shard>, members: &Members<'_>) -> Result<Work, Refusal> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Close {
        code: Option<u32>,
        reason: Option<String>,
    }
    let target = target(members)?;
    let Close { code, reason } = members.get("disconnect")?.unwrap_or_default();
    // What is no connection id is no connection.
    let whitelist: Vec<String> = members.get("whitelist")?.unwrap_or_default();
    let mut keep: Vec<Uuid> = whitelist.iter().filter_map(|id| Uuid::parse_str(id).ok()).collect();
    keep.sort_unstable();
    let code = match code.unwrap_or_default() {
        0 => Disconnect::FORCE_DISCONNECT.code,
        code => u16::try_from(code)
            .ok()
            .filter(|code| is_close_code_allowed(*code))
            .ok_or(ReplyError::BAD_REQUEST)?,
    };
    let reason = reason.filter(|reason| !reason.is_empty()).unwrap_or_else(|| usual_reason(code));
    let reason = reason[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)].into();
    send(shard, target, Verb::Disconnect(DisconnectUser { code, reason, keep: keep.into() }))
}

/// centrifuge-js takes a close without a reason for a reason to reconnect, whatever the code.
fn usual_reason(code: u16) -> String {
    let known = Disconnect::ALL.iter().find(|known| known.code == code);
    let reason = known.map_or("", |known| known.reason);
    if reason.is_empty() { Disconnect::FORCE_DISCONNECT.reason } else { reason }.to_owned()
}

pub fn refresh(shard: &Rc<Shard>, members: &Members<'_>) -> Result<Work, Refusal> {
    let target = target(members)?;
    let refresh = RefreshUser {
        expired: members.get("expired")?.unwrap_or_default(),
        expire_at: seconds(members, "expire_at")?,
        info: json(members, "info", "b64info")?,
    };
    send(shard, target, Verb::Refresh(refresh))
}

/// Whose connections; `None`: nobody's, since they name what is no connection id.
fn target(members: &Members<'_>) -> Result<Option<Target>, Refusal> {
    let client: Box<str> = members.text("client")?;
    let target = Target {
        user: members.text("user")?,
        client: Uuid::parse_str(&client).ok(),
        session: members.text("session")?,
    };
    Ok((client.is_empty() || target.client.is_some()).then_some(target))
}

fn check_channel(shard: &Rc<Shard>, channel: &str) -> Result<(), ReplyError> {
    channel::check_name(channel, shard.node.config.channel_bytes_max)
        .map_err(|_| ReplyError::BAD_REQUEST)?;
    shard.namespace_of(channel).map(drop).ok_or(ReplyError::UNKNOWN_CHANNEL)
}

/// Unix seconds; 0 is none.
fn seconds(members: &Members<'_>, name: &str) -> Result<Option<u64>, Refusal> {
    let at_s: i64 = members.get(name)?.unwrap_or_default();
    // Before 1970 is past like any other.
    Ok((at_s != 0).then_some(at_s.max(1) as u64))
}

/// What clients are sent; base64 wins.
fn json(members: &Members<'_>, plain: &str, base64: &str) -> Result<Option<Box<str>>, Refusal> {
    let payload = match members.get::<String>(base64)? {
        Some(text) if !text.is_empty() => {
            Some(BASE64_STANDARD.decode(text).map_err(|_| ReplyError::BAD_REQUEST)?)
        }
        _ => members.raw(plain).filter(|raw| *raw != b"null").map(<[u8]>::to_vec),
    };
    let Some(payload) = payload else { return Ok(None) };
    let json = match json_payload(&payload) {
        JsonPayload::Verbatim(json) => json.to_vec(),
        JsonPayload::Rewritten(json) => json,
        JsonPayload::NotUtf8 => return Err(ReplyError::BAD_REQUEST.into()),
    };
    let json = String::from_utf8(json).map_err(|_| ReplyError::BAD_REQUEST)?;
    Ok(Some(json.into()))
}

fn overrides(members: &Members<'_>) -> Result<Overrides, Refusal> {
    #[derive(Deserialize)]
    struct Flag {
        value: Option<bool>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Asked {
        presence: Option<Flag>,
        join_leave: Option<Flag>,
        force_push_join_leave: Option<Flag>,
        force_positioning: Option<Flag>,
        force_recovery: Option<Flag>,
    }
    let asked: Asked = members.get("override")?.unwrap_or_default();
    // A flag that says nothing says no, as protobuf's zero does.
    let value = |flag: Option<Flag>| flag.map(|flag| flag.value.unwrap_or_default());
    Ok(Overrides {
        presence: value(asked.presence),
        join_leave: value(asked.join_leave),
        force_push_join_leave: value(asked.force_push_join_leave),
        force_positioning: value(asked.force_positioning),
        force_recovery: value(asked.force_recovery),
    })
}

fn send(shard: &Rc<Shard>, target: Option<Target>, verb: Verb) -> Result<Work, Refusal> {
    let Some(target) = target else { return Ok(Box::pin(async { Ok(nothing()) })) };
    let control = Control { target, verb };
    if control.bytes() > CONTROL_BYTES_MAX {
        return Err(ReplyError::BAD_REQUEST.into());
    }
    let shard = shard.clone();
    Ok(Box::pin(async move {
        match shard.control(control).await {
            Ok(Ok(())) => Ok(nothing()),
            _ => Err(ReplyError::INTERNAL),
        }
    }))
}
