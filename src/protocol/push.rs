//! Pushes: what a session gets without having asked, first of all publications.
//!
//! There is one [`PushTemplate`] per channel, and each publication is encoded once per node.
//!
//! **Invariant:** keys stand in the protocol's order (data, info, offset, tags, delta, epoch, version) and
//! zero values are left out.
//! **Invariant:** `data`, `info` and `tags` are finished JSON without raw line breaks
//! ([`super::json_payload`], [`put_client_info`]); they are copied as they are.

use super::Unsubscribe;
use super::reply::{SubscribeResult, fill_expiry, fill_subscribe};
use super::write::{put_number, put_object, put_string};
use crate::position::Position;

/// The constant head of a channel's publications: `{"push":{"channel":"…","pub":{"data":`.
#[derive(Clone, Debug)]
pub struct PushTemplate {
    head: Box<[u8]>,
}

/// What a publication carries besides its data.
#[derive(Copy, Clone, Debug, Default)]
pub struct PubExtra<'a> {
    /// The publishing client, from [`put_client_info`].
    pub info: Option<&'a [u8]>,
    /// Position in the channel's stream; 0 is none.
    pub offset: u64,
    /// A JSON object of strings.
    pub tags: Option<&'a [u8]>,
    /// `data` is a patch against the publication before.
    pub delta: bool,
    /// On the publication with offset 1 only, so that who subscribed to an empty stream learns it.
    pub epoch: &'a str,
    /// The publisher's own; 0 is none.
    pub version: u64,
}

impl<'a> PubExtra<'a> {
    /// What a publication's position adds to it.
    pub fn at(position: &'a Position) -> Self {
        let epoch = if position.offset == 1 { position.epoch.as_str() } else { "" };
        Self { offset: position.offset, epoch, ..Self::default() }
    }
}

impl PushTemplate {
    pub fn new(channel: &str) -> Self {
        let mut head = b"{\"push\":{\"channel\":".to_vec();
        put_string(&mut head, channel);
        head.extend_from_slice(b",\"pub\":{\"data\":");
        Self { head: head.into() }
    }
}

/// Appends the push of one publication, without frame head or line break.
pub fn put_publication(
    out: &mut Vec<u8>,
    template: &PushTemplate,
    data: &[u8],
    extra: &PubExtra<'_>,
) {
    /// Room for offset, delta and a usual epoch with their keys, and the closing braces.
    const REST_BYTES: usize = 80;
    let extra_bytes = extra.info.map_or(0, <[u8]>::len) + extra.tags.map_or(0, <[u8]>::len);
    out.reserve(template.head.len() + data.len() + extra_bytes + REST_BYTES);
    out.extend_from_slice(&template.head);
    put_publication_rest(out, data, extra);
    out.extend_from_slice(b"}}");
}

/// What follows `{"data":` in every publication, with the closing brace.
pub(super) fn put_publication_rest(out: &mut Vec<u8>, data: &[u8], extra: &PubExtra<'_>) {
    out.extend_from_slice(data);
    if let Some(info) = extra.info {
        out.extend_from_slice(b",\"info\":");
        out.extend_from_slice(info);
    }
    if extra.offset != 0 {
        out.extend_from_slice(b",\"offset\":");
        put_number(out, extra.offset);
    }
    if let Some(tags) = extra.tags {
        out.extend_from_slice(b",\"tags\":");
        out.extend_from_slice(tags);
    }
    if extra.delta {
        out.extend_from_slice(b",\"delta\":true");
    }
    if !extra.epoch.is_empty() {
        out.extend_from_slice(b",\"epoch\":");
        put_string(out, extra.epoch);
    }
    if extra.version != 0 {
        out.extend_from_slice(b",\"version\":");
        put_number(out, extra.version);
    }
    out.push(b'}');
}

/// Appends the push that ends a subscription. Code and reason are always there: python needs both.
pub fn put_unsubscribe_push(out: &mut Vec<u8>, channel: &str, unsubscribe: Unsubscribe) {
    put_object(out, |envelope| {
        envelope.object("push", |push| {
            push.text("channel", channel);
            push.object("unsubscribe", |body| {
                body.number("code", unsubscribe.code.into());
                body.text("reason", unsubscribe.reason);
            });
        });
    });
}

/// Appends the push that tells of a subscription which the server made.
pub fn put_subscribe_push(out: &mut Vec<u8>, channel: &str, result: &SubscribeResult<'_>) {
    put_object(out, |envelope| {
        envelope.object("push", |push| {
            push.text("channel", channel);
            push.object("subscribe", |body| fill_subscribe(body, result));
        });
    });
}

/// Appends the push that says when the connection ends: in so many seconds, or by itself never.
pub fn put_refresh_push(out: &mut Vec<u8>, ttl: Option<u32>) {
    put_object(out, |envelope| {
        envelope.object("push", |push| push.object("refresh", |body| fill_expiry(body, ttl)));
    });
}

/// Appends a ClientInfo. `user` and `client` are always there, even when empty; the two infos are
/// JSON.
pub fn put_client_info(
    out: &mut Vec<u8>,
    user: &str,
    client: &str,
    conn_info: Option<&[u8]>,
    chan_info: Option<&[u8]>,
) {
    put_object(out, |info| {
        info.text("user", user);
        info.text("client", client);
        info.raw_if("conn_info", conn_info);
        info.raw_if("chan_info", chan_info);
    });
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
    fn publications() {
        let room = PushTemplate::new("room:7");
        check(
            |out| put_publication(out, &room, b"{\"n\": 1}", &PubExtra::default()),
            r#"{"push":{"channel":"room:7","pub":{"data":{"n": 1}}}}"#,
        );
        let extra = PubExtra { offset: 1, epoch: "kQzVbTne", ..PubExtra::default() };
        check(
            |out| put_publication(out, &room, b"null", &extra),
            r#"{"push":{"channel":"room:7","pub":{"data":null,"offset":1,"epoch":"kQzVbTne"}}}"#,
        );
        let extra = PubExtra {
            info: Some(br#"{"user":"42","client":"c"}"#),
            offset: u64::MAX,
            tags: Some(br#"{"k":"v"}"#),
            delta: true,
            epoch: "",
            version: 3,
        };
        check(
            |out| put_publication(out, &room, b"\"x\"", &extra),
            concat!(
                r#"{"push":{"channel":"room:7","pub":{"data":"x","info":{"user":"42","client":"c"},"#,
                r#""offset":18446744073709551615,"tags":{"k":"v"},"delta":true,"version":3}}}"#
            ),
        );
    }

    #[test]
    fn channel_names_are_escaped() {
        let odd = PushTemplate::new("a\"b\\\n\u{0}é");
        check(
            |out| put_publication(out, &odd, b"1", &PubExtra::default()),
            r#"{"push":{"channel":"a\"b\\\n\u0000é","pub":{"data":1}}}"#,
        );
    }

    #[test]
    fn unsubscribes() {
        check(
            |out| put_unsubscribe_push(out, "room:7", Unsubscribe::INSUFFICIENT_STATE),
            r#"{"push":{"channel":"room:7","unsubscribe":{"code":2500,"reason":"insufficient state"}}}"#,
        );
    }

    #[test]
    fn subscribes() {
        check(
            |out| put_subscribe_push(out, "a\"b", &SubscribeResult::default()),
            r#"{"push":{"channel":"a\"b","subscribe":{}}}"#,
        );
        let result = SubscribeResult {
            recoverable: true,
            epoch: "kQzVbTne",
            offset: 41,
            positioned: true,
            data: Some(b"{\"n\":1}"),
            ..SubscribeResult::default()
        };
        check(
            |out| put_subscribe_push(out, "room:7", &result),
            concat!(
                r#"{"push":{"channel":"room:7","subscribe":{"recoverable":true,"epoch":"kQzVbTne","#,
                r#""offset":41,"positioned":true,"data":{"n":1}}}}"#
            ),
        );
    }

    #[test]
    fn refreshes() {
        check(
            |out| put_refresh_push(out, Some(299)),
            r#"{"push":{"refresh":{"expires":true,"ttl":299}}}"#,
        );
        check(|out| put_refresh_push(out, None), r#"{"push":{"refresh":{}}}"#);
    }

    #[test]
    fn client_infos() {
        check(|out| put_client_info(out, "", "", None, None), r#"{"user":"","client":""}"#);
        check(
            |out| put_client_info(out, "4\"2", "c-1", Some(b"{\"name\":\"A\"}"), Some(b"[]")),
            r#"{"user":"4\"2","client":"c-1","conn_info":{"name":"A"},"chan_info":[]}"#,
        );
    }
}
