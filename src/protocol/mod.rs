//! The Centrifuge client protocol in JSON, as bytes in and bytes out.
//!
//! Owns the wire's words: which commands exist and what makes one malformed, how replies and pushes
//! are written, which codes end a connection or a subscription, and how a publication's payload
//! travels in JSON. Thread: any; there is no state. Sessions decode and answer,
//! `publication` encodes once per node.
//!
//! **Invariant:** what is written here never holds a raw CR or LF outside the caller's own `data`
//! bytes, and [`json_payload`] takes them out of those, because an LF separates two replies in one
//! frame.
//! **Invariant:** nothing recurses on a peer's input; depth is checked by a flat scan first.
//! **Invariant:** a decoder's answer is a value or a [`Malformed`]: no input panics.
//!
//! Deliberately absent: sockets, frame heads, clocks, logs, permissions and channel rules (length,
//! ASCII, reserved names), which are the session's; and the decision what an unsolicited pong
//! means.

pub mod codes;
pub mod command;
mod json;
mod presence;
mod push;
mod reply;
mod write;

pub use codes::{Disconnect, ReplyError, Unsubscribe};
pub use command::{Command, Kind, Malformed, decode, lines};
pub use json::{DEPTH_MAX, JsonPayload, depth_within, json_payload, json_string};
pub use presence::{
    JoinOrLeave, Members, put_join_leave, put_presence, put_presence_result, put_presence_stats,
    put_presence_stats_result,
};
pub use push::{
    PubExtra, PushTemplate, put_client_info, put_publication, put_refresh_push, put_subscribe_push,
    put_unsubscribe_push,
};
pub use reply::{
    ConnectResult, EmptyReply, HistoryResult, PING, PublicationList, RefreshOf, ServerSub,
    SubscribeResult, put_connect, put_empty, put_error, put_history, put_history_result,
    put_refresh, put_subscribe,
};
