//! Every code hubbub sends: closes, reply errors, unsubscribes. Constants only.
//!
//! **Invariant:** a protocol close (3000 and up) has a reason that is plain words: centrifuge-js
//! looks at the terminal ranges only when the reason is not empty, and takes a reason that parses
//! as JSON for an object.

/// Why hubbub closes a connection: the code and reason of its Close frame.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Disconnect {
    pub code: u16,
    pub reason: &'static str,
}

/// Why a command failed: the `error` of its reply.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ReplyError {
    pub code: u32,
    pub message: &'static str,
    /// The client may try again; without it centrifuge-js gives a subscription up for good.
    pub temporary: bool,
}

/// Why hubbub ends a subscription: the `unsubscribe` push. From 2500 on the client subscribes again
/// at once.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Unsubscribe {
    pub code: u32,
    pub reason: &'static str,
}

impl Disconnect {
    /// The client closed in good order and gets its close echoed.
    pub const NORMAL: Self = Self::new(1000, "normal closure");
    /// A frame broke RFC 6455: unmasked, reserved bits, a bad opcode, length, fragment or close.
    pub const PROTOCOL_ERROR: Self = Self::new(1002, "protocol error");
    /// A kind of frame came that this transport takes no data by.
    pub const UNSUPPORTED: Self = Self::new(1003, "unsupported data");
    /// A text frame or a close reason was not UTF-8.
    pub const INVALID_DATA: Self = Self::new(1007, "invalid data");
    /// A message was over `HUB_MESSAGE_BYTES_MAX`; the reason is empty, as the SDKs know it.
    pub const TOO_BIG: Self = Self::new(1009, "");

    /// Internal: the socket is dropped without a Close frame.
    pub const CONNECTION_CLOSED: Self = Self::new(3000, "connection closed");
    /// The node drains after SIGTERM or SIGINT.
    pub const SHUTDOWN: Self = Self::new(3001, "shutdown");
    /// hubbub failed in a way the client cannot help, for example its shard panicked.
    pub const INTERNAL: Self = Self::new(3004, "internal server error");
    /// The connection token ran out and no fresh one came within the grace.
    pub const EXPIRED: Self = Self::new(3005, "connection expired");
    /// A server-side subscription ran out.
    pub const SUBSCRIPTION_EXPIRED: Self = Self::new(3006, "subscription expired");
    /// The outbox was over its bound: the client reads slower than it is sent to.
    pub const SLOW: Self = Self::new(3008, "slow");
    /// The socket took no byte for `HUB_WRITE_TIMEOUT` while something was queued.
    pub const WRITE_ERROR: Self = Self::new(3009, "write error");
    /// A server-side or raw subscription lost its place in the stream.
    pub const INSUFFICIENT_STATE: Self = Self::new(3010, "insufficient state");
    /// The API asks the client to connect anew, for example to move it to another node.
    pub const FORCE_RECONNECT: Self = Self::new(3011, "force reconnect");
    /// A ping went unanswered for `HUB_PONG_TIMEOUT`.
    pub const NO_PONG: Self = Self::new(3012, "no pong");
    /// The connection kept on over its command rate.
    pub const TOO_MANY_REQUESTS: Self = Self::new(3013, "too many requests");
    /// What the client knows is void: the SDK drops token and positions, then connects again.
    pub const STATE_INVALIDATED: Self = Self::new(3014, "state invalidated");

    /// A token has a bad signature or form, or names another user or channel.
    pub const INVALID_TOKEN: Self = Self::new(3500, "invalid token");
    /// A command is malformed, out of order, or comes without any credentials.
    pub const BAD_REQUEST: Self = Self::new(3501, "bad request");
    /// No connect command came within `HUB_STALE_TIMEOUT`.
    pub const STALE: Self = Self::new(3502, "stale");
    /// The API disconnects the client.
    pub const FORCE_DISCONNECT: Self = Self::new(3503, "force disconnect");
    /// The user has as many connections as one may have.
    pub const CONNECTION_LIMIT: Self = Self::new(3504, "connection limit");
    /// A token names more channels than one connection may have.
    pub const CHANNEL_LIMIT: Self = Self::new(3505, "channel limit");
    /// The client's format cannot carry what it is sent; hubbub skips such publications instead.
    pub const INAPPROPRIATE_PROTOCOL: Self = Self::new(3506, "inappropriate protocol");
    /// The client may not connect at all, for example anonymously.
    pub const PERMISSION_DENIED: Self = Self::new(3507, "permission denied");
    /// The client sent what this server has no handler for, as `send`.
    pub const NOT_AVAILABLE: Self = Self::new(3508, "not available");
    /// The connection got more reply errors than it may.
    pub const TOO_MANY_ERRORS: Self = Self::new(3509, "too many errors");

    /// All of them by code, for the counters of closes.
    pub const ALL: &[Self] = &[
        Self::NORMAL,
        Self::PROTOCOL_ERROR,
        Self::UNSUPPORTED,
        Self::INVALID_DATA,
        Self::TOO_BIG,
        Self::CONNECTION_CLOSED,
        Self::SHUTDOWN,
        Self::INTERNAL,
        Self::EXPIRED,
        Self::SUBSCRIPTION_EXPIRED,
        Self::SLOW,
        Self::WRITE_ERROR,
        Self::INSUFFICIENT_STATE,
        Self::FORCE_RECONNECT,
        Self::NO_PONG,
        Self::TOO_MANY_REQUESTS,
        Self::STATE_INVALIDATED,
        Self::INVALID_TOKEN,
        Self::BAD_REQUEST,
        Self::STALE,
        Self::FORCE_DISCONNECT,
        Self::CONNECTION_LIMIT,
        Self::CHANNEL_LIMIT,
        Self::INAPPROPRIATE_PROTOCOL,
        Self::PERMISSION_DENIED,
        Self::NOT_AVAILABLE,
        Self::TOO_MANY_ERRORS,
    ];

    const fn new(code: u16, reason: &'static str) -> Self {
        Self { code, reason }
    }

    /// Whether every SDK connects again after this close (1009: python does, centrifuge-js
    /// doesn't).
    pub const fn reconnects(self) -> bool {
        !matches!(self.code, 1009 | 3500..=3999 | 4500..=4999)
    }
}

impl ReplyError {
    /// The broker failed or did not answer in time.
    pub const INTERNAL: Self = Self::temporary(100, "internal server error");
    /// The credentials are not good enough for this command.
    pub const UNAUTHORIZED: Self = Self::lasting(101, "unauthorized");
    /// No namespace covers the channel.
    pub const UNKNOWN_CHANNEL: Self = Self::lasting(102, "unknown channel");
    /// The namespace does not allow it to this client, or a subscription token is bad.
    pub const PERMISSION_DENIED: Self = Self::lasting(103, "permission denied");
    /// No such rpc method.
    pub const METHOD_NOT_FOUND: Self = Self::lasting(104, "method not found");
    /// The same in the server API: no such method.
    pub const NOT_FOUND: Self = Self::lasting(104, "not found");
    /// The connection has, or is getting, a subscription to this channel.
    pub const ALREADY_SUBSCRIBED: Self = Self::lasting(105, "already subscribed");
    /// The connection has `HUB_CHANNELS_MAX` subscriptions.
    pub const LIMIT_EXCEEDED: Self = Self::lasting(106, "limit exceeded");
    /// A well-formed command asks for something impossible, for example a channel name too long.
    pub const BAD_REQUEST: Self = Self::lasting(107, "bad request");
    /// The feature is off for this channel or in this server.
    pub const NOT_AVAILABLE: Self = Self::lasting(108, "not available");
    /// A connect or subscription token is past its time; the SDKs fetch another.
    pub const TOKEN_EXPIRED: Self = Self::lasting(109, "token expired");
    /// An expiry set by the server lies in the past.
    pub const EXPIRED: Self = Self::lasting(110, "expired");
    /// The connection is over its command rate.
    pub const TOO_MANY_REQUESTS: Self = Self::temporary(111, "too many requests");
    /// The stream position asked for is of another epoch, or gone.
    pub const UNRECOVERABLE_POSITION: Self = Self::lasting(112, "unrecoverable position");
    /// Two pages of one map subscription were asked for at a time.
    pub const CONCURRENT_PAGINATION: Self = Self::temporary(113, "concurrent pagination");

    const fn lasting(code: u32, message: &'static str) -> Self {
        Self { code, message, temporary: false }
    }

    const fn temporary(code: u32, message: &'static str) -> Self {
        Self { code, message, temporary: true }
    }
}

impl Unsubscribe {
    /// The client asked for it; never sent, it is what hooks and logs see.
    pub const CLIENT: Self = Self::new(0, "client unsubscribed");
    /// The connection ended; never sent.
    pub const DISCONNECTED: Self = Self::new(1, "client disconnected");
    /// The API ended the subscription; the client stays unsubscribed.
    pub const SERVER: Self = Self::new(2000, "server unsubscribe");
    /// Publications may be missing: the client subscribes again and recovers.
    pub const INSUFFICIENT_STATE: Self = Self::new(2500, "insufficient state");
    /// The subscription token ran out: the client subscribes again with a fresh one.
    pub const EXPIRED: Self = Self::new(2501, "subscription expired");
    /// What the client knows of the channel is void: it drops token and position, then subscribes
    /// again.
    pub const STATE_INVALIDATED: Self = Self::new(2502, "state invalidated");

    const fn new(code: u32, reason: &'static str) -> Self {
        Self { code, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closes_reconnect_by_range() {
        for close in Disconnect::ALL {
            let terminal = close.code == 1009 || close.code >= 3500;
            assert_eq!(close.reconnects(), !terminal, "{close:?}");
        }
        let custom = |code| Disconnect::new(code, "custom").reconnects();
        assert_eq!([4000, 4499, 4500, 4999, 5000].map(custom), [true, true, false, false, true]);
    }

    #[test]
    fn reasons_fit_a_control_frame_and_are_no_json() {
        for close in Disconnect::ALL {
            assert!(close.reason.len() < 124, "{close:?}");
            assert_eq!(close.reason.is_empty(), close.code == 1009, "{close:?}");
            assert!(serde_json::from_str::<serde_json::Value>(close.reason).is_err(), "{close:?}");
        }
    }

    #[test]
    fn all_is_sorted_so_no_code_is_there_twice() {
        assert!(Disconnect::ALL.is_sorted_by(|a, b| a.code < b.code));
    }
}
