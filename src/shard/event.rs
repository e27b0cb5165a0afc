//! The one closed set of things that reach a shard from another thread.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use uuid::Uuid;

use crate::admission::SocketPermit;
use crate::auth::Auth;
use crate::broker::{
    Change, ChannelsAsk, Control, HistoryError, HistoryPage, LookUpError, Presence, PresenceError,
    PublishError, SurveyResult,
};
use crate::channel::{Channel, ChannelId};
use crate::mailbox::Weigh;
use crate::position::Position;
use crate::publication::Publication;

/// Which routes a listener serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The only listener: everything.
    All,
    /// The public one beside an internal one: clients, health.
    Public,
    /// The internal one: API, metrics, pages, health.
    Internal,
}

/// A socket on its way from the listener to its shard.
#[derive(Debug)]
pub struct Accepted {
    pub stream: TcpStream,
    pub peer: SocketAddr,
    /// The connection id: drawn by the listener, it chose the shard, and it becomes the
    /// `client` of the connect reply.
    pub connection: Uuid,
    pub role: Role,
    /// The listener can only be reached from this machine.
    pub is_loopback: bool,
    pub permit: SocketPermit,
}

/// Whether the pub/sub link works, so that a subscribe may be answered at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkState {
    Up,
    Down,
}

/// Which channels lost something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gapped {
    Channel(ChannelId),
    /// Which ones isn't known.
    All,
}

/// From the broker, the listener and main to a shard.
#[derive(Debug)]
pub enum ShardEvent {
    /// A publication of a channel this shard has subscribers of.
    Publication {
        channel: ChannelId,
        publication: Arc<Publication>,
    },
    /// Somebody came to such a channel, or went.
    Change {
        channel: ChannelId,
        change: Arc<Change>,
    },
    /// The broker is subscribed to a channel this shard asked for. Comes before the channel's
    /// first publication.
    Acquired {
        id: ChannelId,
        channel: Arc<Channel>,
        /// Where the namespace has `recovery = "cache"`: the newest publication that the node saw.
        newest: Option<Arc<Publication>>,
    },
    /// The broker couldn't subscribe in time; the shard isn't interested any more.
    AcquireFailed {
        name: Box<str>,
    },
    /// The answer to a publish command.
    Published {
        request: u32,
        result: Result<Position, PublishError>,
    },
    /// The answer to a history command. Shared with whoever else asked the same.
    History {
        request: u32,
        result: Result<Arc<HistoryPage>, HistoryError>,
    },
    /// The answer to a presence command, shared likewise.
    Present {
        request: u32,
        result: Result<Arc<Presence>, PresenceError>,
    },
    HistoryRemoved {
        request: u32,
        result: Result<(), HistoryError>,
    },
    /// The history of a channel was removed, whoever asked for it.
    Emptied {
        channel: ChannelId,
    },
    /// What the registry says, a finished JSON object.
    LookedUp {
        request: u32,
        result: Result<String, LookUpError>,
    },
    /// Publications were lost on the way: subscribers are treated as their namespace's `gap` says.
    Gap(Gapped),
    Link(LinkState),
    /// What clients may do has changed; it counts for what they ask from now on.
    Access(Arc<Auth>),
    /// Answer by noting the time: proves that the mailbox and the loop work.
    Ping,
    /// What the server API asks of a user's connections, for those that are here.
    Control(Arc<Control>),
    /// The answer to a control command: whether it was sent to all nodes.
    Controlled {
        request: u32,
        result: Result<(), PublishError>,
    },
    /// List some of your channels with the number of their subscribers.
    ListChannels {
        owed: u32,
        ask: Box<ChannelsAsk>,
    },
    Surveyed {
        request: u32,
        result: Box<SurveyResult>,
    },
    Accepted(Box<Accepted>),
    /// Close all connections, spread evenly until then.
    Drain {
        until_ms: u64,
    },
    /// End the thread.
    Stop,
}

impl Weigh for ShardEvent {
    fn weight(&self) -> usize {
        match self {
            Self::Publication { publication, .. } => 1 + publication.payload_bytes() / 1024,
            Self::Change { change, .. } => 1 + change.info_bytes() / 1024,
            Self::History { result: Ok(page), .. } => 1 + page.bytes() / 1024,
            // A page is some 16 KiB at the most.
            Self::Surveyed { result, .. } => 1 + 16 * result.pages.len(),
            Self::Control(control) => 1 + control.bytes() / 1024,
            Self::Present { result: Ok(presence), .. } => 1 + presence.bytes() / 1024,
            _ => 1,
        }
    }
}
