//! Who is in a channel: what shards and both brokers say to each other about it.
//!
//! Plain values. A shard says who came and who went; the broker thread keeps who is here, answers who
//! is, and hands out joins and leaves, which take the way of publications.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use uuid::Uuid;

use crate::channel::Channel;
use crate::frame;
use crate::protocol::{JoinOrLeave, put_join_leave};

/// On a node where more clients are in a channel, none of them is told of joins and leaves: each of `n`
/// who come would be told to up to `n`.
pub const TOLD_MAX: usize = 1_000;

/// Entries of one node, over all channels, and their bytes.
pub const BOUNDS: Bounds = Bounds { entries_max: 1_000_000, bytes_max: 256 << 20 };

/// What one node notes at the most. Who comes beyond is subscribed, and not listed.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub entries_max: usize,
    pub bytes_max: usize,
}

/// One client in one channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its connection.
    pub client: Uuid,
    /// Empty: anonymous.
    pub user: Box<str>,
    /// Its ClientInfo.
    pub info: Box<[u8]>,
    /// Its coming and going is told.
    pub is_told: bool,
}

impl Member {
    /// What it is counted for, bytes: its own and what it takes to keep it.
    pub fn bytes(&self) -> usize {
        const KEPT_BYTES: usize = 192;
        KEPT_BYTES + self.user.len() + self.info.len()
    }
}

/// What is asked of a channel.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PresenceAsk {
    pub channel: Box<str>,
    pub what: Wanted,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Wanted {
    /// All of them, if they fit.
    Members {
        bytes_max: usize,
    },
    Counts,
}

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Presence {
    /// From [`Members`](crate::protocol::Members).
    Members(Vec<u8>),
    Counts(Counts),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub n_clients: u64,
    /// A user with several connections counts once; all anonymous ones are one.
    pub n_users: u64,
}

impl Presence {
    pub fn bytes(&self) -> usize {
        match self {
            Self::Members(json) => json.len(),
            Self::Counts(_) => 0,
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PresenceError {
    /// Redis can't be reached, refused, or is asked too much: try again.
    #[error("the broker is unavailable")]
    Unavailable,
    /// More are here than whoever asked can take.
    #[error("too many are here")]
    TooMany,
}

/// Somebody came or went, on its way through this node.
#[derive(Debug)]
pub struct Change {
    channel: Arc<Channel>,
    what: JoinOrLeave,
    info: Box<[u8]>,
    frame: OnceLock<Bytes>,
}

impl Change {
    pub fn new(channel: Arc<Channel>, what: JoinOrLeave, info: Box<[u8]>) -> Self {
        Self { channel, what, info, frame: OnceLock::new() }
    }

    pub fn info_bytes(&self) -> usize {
        self.info.len()
    }

    /// The finished push, encoded by the first shard where somebody is to be told.
    pub fn frame(&self) -> &Bytes {
        self.frame.get_or_init(|| {
            let (name, info) = (&self.channel.name, &self.info);
            let mut out = Vec::with_capacity(frame::HEAD_BYTES_MAX + info.len() + name.len() + 64);
            let start = frame::begin_text_frame(&mut out);
            put_join_leave(&mut out, name, self.what, info);
            frame::end_text_frame(&mut out, start);
            out.into()
        })
    }
}
