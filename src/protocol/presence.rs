//! Who is in a channel: the answers to `presence` and `presence_stats`, and the pushes of those who come
//! and go.
//!
//! **Invariant:** the members of an answer are always there, zeros and the empty object too: the SDKs read
//! them as they are.
//! **Invariant:** a ClientInfo is finished JSON, from [`put_client_info`](super::put_client_info); it is
//! copied as it is.

use super::reply::put_reply;
use super::write::{Object, put_object, put_string};

/// A JSON object of ClientInfos by client, which grows one by one.
#[derive(Debug)]
pub struct Members(Vec<u8>);

impl Default for Members {
    fn default() -> Self {
        Self(b"{".to_vec())
    }
}

impl Members {
    /// Adds one; each client once.
    pub fn push(&mut self, client: &str, info: &[u8]) {
        if self.0.len() > 1 {
            self.0.push(b',');
        }
        put_string(&mut self.0, client);
        self.0.push(b':');
        self.0.extend_from_slice(info);
    }

    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.0.push(b'}');
        self.0
    }
}

/// What somebody did.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum JoinOrLeave {
    Join,
    Leave,
}

/// Appends the push that tells of it.
pub fn put_join_leave(out: &mut Vec<u8>, channel: &str, what: JoinOrLeave, info: &[u8]) {
    let key = match what {
        JoinOrLeave::Join => "join",
        JoinOrLeave::Leave => "leave",
    };
    put_object(out, |envelope| {
        envelope.object("push", |push| {
            push.text("channel", channel);
            push.object(key, |body| body.raw_if("info", Some(info)));
        });
    });
}

/// Appends the reply to `presence`; `members` from [`Members`].
pub fn put_presence(out: &mut Vec<u8>, id: u32, members: &[u8]) {
    put_reply(out, id, "presence", |body| fill_presence(body, members));
}

/// Appends the same without the reply around it, for the server API.
pub fn put_presence_result(out: &mut Vec<u8>, members: &[u8]) {
    put_object(out, |body| fill_presence(body, members));
}

/// Appends the reply to `presence_stats`.
pub fn put_presence_stats(out: &mut Vec<u8>, id: u32, n_clients: u64, n_users: u64) {
    put_reply(out, id, "presence_stats", |body| fill_stats(body, n_clients, n_users));
}

/// Appends the same without the reply around it, for the server API.
pub fn put_presence_stats_result(out: &mut Vec<u8>, n_clients: u64, n_users: u64) {
    put_object(out, |body| fill_stats(body, n_clients, n_users));
}

fn fill_presence(body: &mut Object<'_>, members: &[u8]) {
    body.raw_if("presence", Some(members));
}

fn fill_stats(body: &mut Object<'_>, n_clients: u64, n_users: u64) {
    body.number("num_clients", n_clients);
    body.number("num_users", n_users);
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[track_caller]
    fn check(put: impl FnOnce(&mut Vec<u8>), expected: &str) {
        let mut out = Vec::new();
        put(&mut out);
        assert_eq!(std::str::from_utf8(&out).unwrap(), expected);
        serde_json::from_str::<Value>(expected).expect("JSON");
    }

    #[test]
    fn answers_have_all_their_members() {
        let none = Members::default().finish();
        check(|out| put_presence(out, 7, &none), r#"{"id":7,"presence":{"presence":{}}}"#);
        check(|out| put_presence_result(out, &none), r#"{"presence":{}}"#);
        let mut two = Members::default();
        two.push("a", br#"{"user":"42","client":"a"}"#);
        two.push("b\"", br#"{"user":"","client":"b\""}"#);
        let two = two.finish();
        check(
            |out| put_presence_result(out, &two),
            r#"{"presence":{"a":{"user":"42","client":"a"},"b\"":{"user":"","client":"b\""}}}"#,
        );
        check(
            |out| put_presence_stats(out, 8, 0, 0),
            r#"{"id":8,"presence_stats":{"num_clients":0,"num_users":0}}"#,
        );
        check(|out| put_presence_stats_result(out, 3, 2), r#"{"num_clients":3,"num_users":2}"#);
    }

    #[test]
    fn joins_and_leaves() {
        let info = br#"{"user":"42","client":"a"}"#;
        check(
            |out| put_join_leave(out, "a\"b", JoinOrLeave::Join, info),
            r#"{"push":{"channel":"a\"b","join":{"info":{"user":"42","client":"a"}}}}"#,
        );
        check(
            |out| put_join_leave(out, "c", JoinOrLeave::Leave, info),
            r#"{"push":{"channel":"c","leave":{"info":{"user":"42","client":"a"}}}}"#,
        );
    }
}
