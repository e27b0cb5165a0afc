//! Commands: what a client sends, one JSON object a line.
//!
//! A session splits a message with [`lines`] and decodes each line in order, because centrifuge-js
//! puts connect and all its subscribes into one frame. What a command may do is the session's to
//! judge; refused here is only what no SDK sends: 3501 "bad request".
//!
//! **Invariant:** a decoded command borrows from its line; only text with escapes is copied.
//! **Invariant:** every command but `send` and the pong has an id, a channel where it needs one,
//! and one kind.
//!
//! Tolerated: unknown fields, keys in any order, `null` for an optional field, a stray `{}`,
//! `ping`, and `sub_refresh` without a channel (python). Keys are matched exactly. Deliberately not
//! read: what only proxies (`headers`), dictionary compression (`dict`, `profile`) and the further
//! fields of map and shared-poll subscriptions need; those subscriptions show by a `sub_type`,
//! `pub_type` or `refresh_type` other than 0.

use std::borrow::Cow;

use serde::Deserialize;

use super::codes::Disconnect;
use super::json::{DEPTH_MAX, depth_within};
use envelope::{Envelope, delta, json_bytes, object_or_none, or_default, text, wanted_subs};

mod envelope;
#[cfg(test)]
mod tests;

/// One command.
#[derive(Clone, Debug, PartialEq)]
pub struct Command<'a> {
    /// What the reply repeats; 0 where none is due (pong, `send`).
    pub id: u32,
    pub kind: Kind<'a>,
}

/// What a command asks for. `data` fields are the bytes of one JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind<'a> {
    /// `{}`: answers the server's ping.
    Pong,
    Connect(Connect<'a>),
    Subscribe(Subscribe<'a>),
    Unsubscribe {
        channel: Cow<'a, str>,
    },
    Publish(Publish<'a>),
    Presence {
        channel: Cow<'a, str>,
    },
    PresenceStats {
        channel: Cow<'a, str>,
    },
    History(History<'a>),
    Rpc(Rpc<'a>),
    /// A message without reply.
    Send {
        data: Option<&'a [u8]>,
    },
    /// A fresh connection token, never empty.
    Refresh {
        token: Cow<'a, str>,
    },
    SubRefresh(SubRefresh<'a>),
    Ping,
}

/// Why a line is no command. Each of them ends the connection.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("not UTF-8")]
    NotUtf8,
    #[error("nested too deep")]
    TooDeep,
    #[error("not JSON, or a field of the wrong type")]
    NotACommand,
    #[error("no id")]
    NoId,
    #[error("no known kind")]
    NoKind,
    #[error("more than one kind")]
    TwoKinds,
    #[error("no channel")]
    NoChannel,
    #[error("no token")]
    NoToken,
}

impl Malformed {
    /// How a connection that sent it ends.
    pub const DISCONNECT: Disconnect = Disconnect::BAD_REQUEST;
}

/// First command of a connection. An empty `token` is none.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Connect<'a> {
    #[serde(borrow, default, deserialize_with = "text")]
    pub token: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "json_bytes")]
    pub data: Option<&'a [u8]>,
    /// Server-side subscriptions the client had and wants back, in the order sent.
    #[serde(borrow, default, deserialize_with = "wanted_subs")]
    pub subs: Vec<WantedSub<'a>>,
    /// The SDK, for metrics; with `version`.
    #[serde(borrow, default, deserialize_with = "text")]
    pub name: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "text")]
    pub version: Cow<'a, str>,
    #[serde(default, deserialize_with = "or_default")]
    pub flag: i64,
}

/// A server-side subscription that connect asks for, with the position to recover from.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct WantedSub<'a> {
    #[serde(skip)]
    pub channel: Cow<'a, str>,
    #[serde(default, deserialize_with = "or_default")]
    pub recover: bool,
    #[serde(default, deserialize_with = "or_default")]
    pub offset: u64,
    #[serde(borrow, default, deserialize_with = "text")]
    pub epoch: Cow<'a, str>,
    #[serde(default, deserialize_with = "delta")]
    pub delta: Delta,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Subscribe<'a> {
    #[serde(borrow, default, deserialize_with = "text")]
    pub channel: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "text")]
    pub token: Cow<'a, str>,
    /// Asks for what was published after `offset` in `epoch`.
    #[serde(default, deserialize_with = "or_default")]
    pub recover: bool,
    #[serde(borrow, default, deserialize_with = "text")]
    pub epoch: Cow<'a, str>,
    #[serde(default, deserialize_with = "or_default")]
    pub offset: u64,
    #[serde(borrow, default, deserialize_with = "json_bytes")]
    pub data: Option<&'a [u8]>,
    #[serde(default, deserialize_with = "or_default")]
    pub positioned: bool,
    #[serde(default, deserialize_with = "or_default")]
    pub recoverable: bool,
    /// Asks to receive joins and leaves.
    #[serde(default, deserialize_with = "or_default")]
    pub join_leave: bool,
    #[serde(default, deserialize_with = "delta")]
    pub delta: Delta,
    /// The tags filter, not yet parsed.
    #[serde(borrow, default, rename = "tf", deserialize_with = "json_bytes")]
    pub tags_filter: Option<&'a [u8]>,
    #[serde(default, deserialize_with = "or_default")]
    pub flag: i64,
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    pub sub_type: i32,
}

impl Subscribe<'_> {
    /// Bit of `flag`: the client takes a number in place of the channel's name in pushes.
    pub const FLAG_COMPACTION: i64 = 1;
    /// Bit of `flag`: answer error 112 rather than `recovered:false`.
    pub const FLAG_REJECT_UNRECOVERED: i64 = 2;
}

/// How publications are to be compressed against the one before. Any other word is malformed.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Delta {
    #[default]
    Off,
    Fossil,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Publish<'a> {
    #[serde(borrow, default, deserialize_with = "text")]
    pub channel: Cow<'a, str>,
    /// `None` is a missing field, error 107; `null` is data.
    #[serde(borrow, default, deserialize_with = "json_bytes")]
    pub data: Option<&'a [u8]>,
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    pub pub_type: i32,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct History<'a> {
    #[serde(borrow, default, deserialize_with = "text")]
    pub channel: Cow<'a, str>,
    /// 0 asks for the position only, less for everything.
    #[serde(default, deserialize_with = "or_default")]
    pub limit: i32,
    /// Exclusive.
    #[serde(borrow, default, deserialize_with = "object_or_none")]
    pub since: Option<Since<'a>>,
    #[serde(default, deserialize_with = "or_default")]
    pub reverse: bool,
}

/// A stream position that history is read from.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Since<'a> {
    #[serde(default, deserialize_with = "or_default")]
    pub offset: u64,
    #[serde(borrow, default, deserialize_with = "text")]
    pub epoch: Cow<'a, str>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Rpc<'a> {
    #[serde(borrow, default, deserialize_with = "text")]
    pub method: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "json_bytes")]
    pub data: Option<&'a [u8]>,
}

/// A fresh subscription token. python sends no channel: then it is the token's.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct SubRefresh<'a> {
    #[serde(borrow, default, deserialize_with = "text")]
    pub channel: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "text")]
    pub token: Cow<'a, str>,
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    pub refresh_type: i32,
}

/// Splits a message into its lines. One trailing LF and a CR at the end of a line are tolerated; an
/// empty message or line stays an empty slice, which [`decode`] refuses.
pub fn lines(message: &[u8]) -> impl Iterator<Item = &[u8]> {
    let message = message.strip_suffix(b"\n").unwrap_or(message);
    message.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// Decodes one line.
pub fn decode(line: &[u8]) -> Result<Command<'_>, Malformed> {
    if line == b"{}" {
        return Ok(Command { id: 0, kind: Kind::Pong });
    }
    // Text frames are UTF-8 already, but JSON may come in binary frames too.
    let text = std::str::from_utf8(line).map_err(|_| Malformed::NotUtf8)?;
    if !depth_within(line, DEPTH_MAX) {
        return Err(Malformed::TooDeep);
    }
    let Envelope { id, kind, n_kinds } =
        serde_json::from_str(text).map_err(|_| Malformed::NotACommand)?;
    if n_kinds > 1 {
        return Err(Malformed::TwoKinds);
    }
    let kind = match kind {
        Some(Kind::Send { data }) => Kind::Send { data },
        Some(_) if id == 0 => return Err(Malformed::NoId),
        Some(kind) => kind,
        None if id == 0 => Kind::Pong,
        None => return Err(Malformed::NoKind),
    };
    check_fields(&kind)?;
    Ok(Command { id, kind })
}

fn check_fields(kind: &Kind<'_>) -> Result<(), Malformed> {
    match kind {
        Kind::Subscribe(Subscribe { channel, .. })
        | Kind::Unsubscribe { channel }
        | Kind::Publish(Publish { channel, .. })
        | Kind::Presence { channel }
        | Kind::PresenceStats { channel }
        | Kind::History(History { channel, .. })
            if channel.is_empty() =>
        {
            Err(Malformed::NoChannel)
        }
        Kind::Refresh { token } if token.is_empty() => Err(Malformed::NoToken),
        _ => Ok(()),
    }
}
