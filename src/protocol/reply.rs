//! Replies: what answers a command, matched to it by id.
//!
//! **Invariant:** a successful reply names its kind even when it says nothing (`"publish":{}`): the
//! SDKs index it.
//! **Invariant:** keys stand in the protocol's order and zero values are left out, but for `client`
//! of connect, which python indexes.
//! **Invariant:** `data` fields are finished JSON without raw line breaks; they are copied as they
//! are.

use super::ReplyError;
use super::push::{PubExtra, put_publication_rest};
use super::write::{Object, put_object};
use crate::position::Position;

/// The server's ping: the client answers with the same bytes.
pub const PING: &[u8] = b"{}";

/// The result of `connect`.
#[derive(Copy, Clone, Debug, Default)]
pub struct ConnectResult<'a> {
    /// The connection id: a UUID in text.
    pub client: &'a str,
    /// python's own tests want one.
    pub version: &'a str,
    /// Set where the client is to refresh its token itself: `expires` and seconds.
    pub ttl: Option<u32>,
    pub data: Option<&'a [u8]>,
    /// Server-side subscriptions.
    pub subs: &'a [ServerSub<'a>],
    /// Seconds between pings; at 0 the SDKs arm no timer.
    pub ping: u32,
    /// Asks for pongs.
    pub pong: bool,
    /// Server time in milliseconds; 0 is not said.
    pub time: u64,
    /// On emulation transports only, as is `node`.
    pub session: &'a str,
    pub node: &'a str,
}

/// A server-side subscription in a connect reply.
#[derive(Copy, Clone, Debug, Default)]
pub struct ServerSub<'a> {
    pub channel: &'a str,
    pub result: SubscribeResult<'a>,
}

/// The result of `subscribe`. Its default is a plain live subscription: `{}`.
#[derive(Copy, Clone, Debug, Default)]
pub struct SubscribeResult<'a> {
    /// Set where the client is to refresh its subscription token itself: `expires` and seconds.
    pub ttl: Option<u32>,
    /// The client keeps a position and recovers after a reconnect.
    pub recoverable: bool,
    pub epoch: &'a str,
    /// What was missed, by ascending offset, from a [`PublicationList`]; empty: nothing.
    pub publications: &'a [u8],
    pub recovered: bool,
    /// The stream's top; after a recovery the request's own offset, from which the client counts
    /// on.
    pub offset: u64,
    /// The server watches for gaps.
    pub positioned: bool,
    pub data: Option<&'a [u8]>,
    /// The request asked to recover.
    pub was_recovering: bool,
    /// Publications come as fossil deltas.
    pub delta: bool,
}

/// A JSON array of publications that grows one by one.
pub struct PublicationList(Vec<u8>);

impl Default for PublicationList {
    fn default() -> Self {
        Self(b"[".to_vec())
    }
}

impl PublicationList {
    pub fn push(&mut self, data: &[u8], extra: &PubExtra<'_>) {
        if self.0.len() > 1 {
            self.0.push(b',');
        }
        self.0.extend_from_slice(b"{\"data\":");
        put_publication_rest(&mut self.0, data, extra);
    }

    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.0.push(b']');
        self.0
    }
}

/// The result of `history`.
#[derive(Copy, Clone, Debug)]
pub struct HistoryResult<'a> {
    /// From a [`PublicationList`].
    pub publications: &'a [u8],
    pub top: Position,
}

/// Successes with nothing to say.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum EmptyReply {
    Unsubscribe,
    Publish,
    Ping,
}

/// Which of the two refreshes is answered.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum RefreshOf {
    Connection,
    Subscription,
}

/// Appends an error reply.
pub fn put_error(out: &mut Vec<u8>, id: u32, error: &ReplyError) {
    put_reply(out, id, "error", |body| {
        body.number("code", error.code.into());
        body.text("message", error.message);
        body.true_if("temporary", error.temporary);
    });
}

/// Appends the reply to `connect`.
pub fn put_connect(out: &mut Vec<u8>, id: u32, result: &ConnectResult<'_>) {
    put_reply(out, id, "connect", |body| {
        body.text("client", result.client);
        body.text_unless_empty("version", result.version);
        fill_expiry(body, result.ttl);
        body.raw_if("data", result.data);
        if !result.subs.is_empty() {
            body.object("subs", |subs| {
                for sub in result.subs {
                    subs.object_at(sub.channel, |body| fill_subscribe(body, &sub.result));
                }
            });
        }
        body.number_unless_zero("ping", result.ping.into());
        body.true_if("pong", result.pong);
        body.number_unless_zero("time", result.time);
        body.text_unless_empty("session", result.session);
        body.text_unless_empty("node", result.node);
    });
}

/// Appends the reply to `subscribe`.
pub fn put_subscribe(out: &mut Vec<u8>, id: u32, result: &SubscribeResult<'_>) {
    put_reply(out, id, "subscribe", |body| fill_subscribe(body, result));
}

/// Appends the reply to `history`. All three members are always there: the SDKs read them as they
/// are.
pub fn put_history(out: &mut Vec<u8>, id: u32, result: &HistoryResult<'_>) {
    put_reply(out, id, "history", |body| fill_history(body, result));
}

/// Appends the same without the reply around it, for the server API.
pub fn put_history_result(out: &mut Vec<u8>, result: &HistoryResult<'_>) {
    put_object(out, |body| fill_history(body, result));
}

fn fill_history(body: &mut Object<'_>, result: &HistoryResult<'_>) {
    body.raw_if("publications", Some(result.publications));
    body.text("epoch", result.top.epoch.as_str());
    body.number("offset", result.top.offset);
}

/// Appends a reply that only says yes.
pub fn put_empty(out: &mut Vec<u8>, id: u32, kind: EmptyReply) {
    let key = match kind {
        EmptyReply::Unsubscribe => "unsubscribe",
        EmptyReply::Publish => "publish",
        EmptyReply::Ping => "ping",
    };
    put_reply(out, id, key, |_| {});
}

/// Appends the reply to `refresh` or `sub_refresh`; `ttl` is `None` for a token without an end.
pub fn put_refresh(out: &mut Vec<u8>, id: u32, of: RefreshOf, ttl: Option<u32>) {
    let key = match of {
        RefreshOf::Connection => "refresh",
        RefreshOf::Subscription => "sub_refresh",
    };
    put_reply(out, id, key, |body| fill_expiry(body, ttl));
}

pub(super) fn put_reply(
    out: &mut Vec<u8>,
    id: u32,
    key: &'static str,
    fill: impl FnOnce(&mut Object<'_>),
) {
    put_object(out, |reply| {
        reply.number("id", id.into());
        reply.object(key, fill);
    });
}

pub(super) fn fill_subscribe(body: &mut Object<'_>, result: &SubscribeResult<'_>) {
    fill_expiry(body, result.ttl);
    body.true_if("recoverable", result.recoverable);
    body.text_unless_empty("epoch", result.epoch);
    body.raw_if("publications", Some(result.publications).filter(|list| !list.is_empty()));
    body.true_if("recovered", result.recovered);
    body.number_unless_zero("offset", result.offset);
    body.true_if("positioned", result.positioned);
    body.raw_if("data", result.data);
    body.true_if("was_recovering", result.was_recovering);
    body.true_if("delta", result.delta);
}

pub(super) fn fill_expiry(body: &mut Object<'_>, ttl: Option<u32>) {
    if let Some(seconds) = ttl {
        body.true_if("expires", true);
        body.number_unless_zero("ttl", seconds.into());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[track_caller]
    fn check(put: impl FnOnce(&mut Vec<u8>), expected: &str) {
        let mut out = b"before".to_vec();
        put(&mut out);
        let text = std::str::from_utf8(&out).unwrap().strip_prefix("before").expect("appends");
        assert_eq!(text, expected);
        serde_json::from_str::<Value>(text).expect("JSON");
    }

    #[test]
    fn errors() {
        check(
            |out| put_error(out, 1, &ReplyError::TOKEN_EXPIRED),
            r#"{"id":1,"error":{"code":109,"message":"token expired"}}"#,
        );
        check(
            |out| put_error(out, u32::MAX, &ReplyError::INTERNAL),
            r#"{"id":4294967295,"error":{"code":100,"message":"internal server error","temporary":true}}"#,
        );
    }

    #[test]
    fn histories() {
        let top = Position { offset: 3, epoch: crate::position::Epoch::asked("kQzVbTne") };
        let mut list = PublicationList::default();
        let nothing = Position::default();
        let check_list = |list: PublicationList, top: Position, expected: &str| {
            let result = HistoryResult { publications: &list.finish(), top };
            check(|out| put_history(out, 7, &result), expected);
        };
        check_list(
            PublicationList::default(),
            nothing,
            r#"{"id":7,"history":{"publications":[],"epoch":"","offset":0}}"#,
        );
        list.push(b"1", &PubExtra { offset: 1, epoch: "kQzVbTne", ..PubExtra::default() });
        list.push(b"{}", &PubExtra { offset: 2, ..PubExtra::default() });
        check_list(
            list,
            top,
            concat!(
                r#"{"id":7,"history":{"publications":[{"data":1,"offset":1,"epoch":"kQzVbTne"},"#,
                r#"{"data":{},"offset":2}],"epoch":"kQzVbTne","offset":3}}"#
            ),
        );
    }

    #[test]
    fn connects() {
        check(
            |out| put_connect(out, 1, &ConnectResult::default()),
            r#"{"id":1,"connect":{"client":""}}"#,
        );
        let result = ConnectResult {
            client: "0d1c7f5e-8c44-4b0e-9a53-0c5d0b6a5a11",
            version: "1.0 hub",
            ttl: Some(600),
            ping: 25,
            pong: true,
            ..ConnectResult::default()
        };
        check(
            |out| put_connect(out, 1, &result),
            concat!(
                r#"{"id":1,"connect":{"client":"0d1c7f5e-8c44-4b0e-9a53-0c5d0b6a5a11","version":"1.0 hub","#,
                r#""expires":true,"ttl":600,"ping":25,"pong":true}}"#
            ),
        );
        let positioned =
            SubscribeResult { offset: 4, positioned: true, ..SubscribeResult::default() };
        let subs = [
            ServerSub { channel: "a\"b", result: SubscribeResult::default() },
            ServerSub { channel: "c", result: positioned },
        ];
        let result = ConnectResult {
            client: "c",
            data: Some(b"[1]"),
            subs: &subs,
            time: 1_700_000_000_000,
            session: "s",
            node: "n",
            ..ConnectResult::default()
        };
        check(
            |out| put_connect(out, 2, &result),
            concat!(
                r#"{"id":2,"connect":{"client":"c","data":[1],"subs":{"a\"b":{},"c":{"offset":4,"positioned":true}},"#,
                r#""time":1700000000000,"session":"s","node":"n"}}"#
            ),
        );
    }

    #[test]
    fn subscribes() {
        check(
            |out| put_subscribe(out, 2, &SubscribeResult::default()),
            r#"{"id":2,"subscribe":{}}"#,
        );
        let mut missed = PublicationList::default();
        missed.push(b"{\"n\":11}", &PubExtra { offset: 11, ..PubExtra::default() });
        missed.push(b"{\"n\":12}", &PubExtra { offset: 12, ..PubExtra::default() });
        let missed = missed.finish();
        let recovered = SubscribeResult {
            recoverable: true,
            epoch: "kQzVbTne",
            publications: &missed,
            recovered: true,
            offset: 10,
            positioned: true,
            was_recovering: true,
            ..SubscribeResult::default()
        };
        check(
            |out| put_subscribe(out, 5, &recovered),
            concat!(
                r#"{"id":5,"subscribe":{"recoverable":true,"epoch":"kQzVbTne","publications":"#,
                r#"[{"data":{"n":11},"offset":11},{"data":{"n":12},"offset":12}],"#,
                r#""recovered":true,"offset":10,"positioned":true,"was_recovering":true}}"#
            ),
        );
        let rest = SubscribeResult {
            ttl: Some(0),
            data: Some(b"null"),
            delta: true,
            ..SubscribeResult::default()
        };
        check(
            |out| put_subscribe(out, 6, &rest),
            r#"{"id":6,"subscribe":{"expires":true,"data":null,"delta":true}}"#,
        );
    }

    #[test]
    fn empty_replies_name_their_kind() {
        check(|out| put_empty(out, 3, EmptyReply::Unsubscribe), r#"{"id":3,"unsubscribe":{}}"#);
        check(|out| put_empty(out, 4, EmptyReply::Publish), r#"{"id":4,"publish":{}}"#);
        check(|out| put_empty(out, 5, EmptyReply::Ping), r#"{"id":5,"ping":{}}"#);
    }

    #[test]
    fn refreshes() {
        let refresh = |of, ttl| move |out: &mut Vec<u8>| put_refresh(out, 8, of, ttl);
        check(
            refresh(RefreshOf::Connection, Some(600)),
            r#"{"id":8,"refresh":{"expires":true,"ttl":600}}"#,
        );
        check(refresh(RefreshOf::Connection, None), r#"{"id":8,"refresh":{}}"#);
        check(
            refresh(RefreshOf::Subscription, Some(1)),
            r#"{"id":8,"sub_refresh":{"expires":true,"ttl":1}}"#,
        );
    }
}
