//! The broker thread: between Redis (or the embedded memory broker) and the shards.
//!
//! Owns the interest table, the links to Redis, this node's rows of the registry and one door per shard. Everything reaches it
//! as a [`BrokerCommand`] through one mailbox, or as a push from Redis through one inbox.
//! A publication is looked up once and goes as one item to each interested shard.
//!
//! **Invariant:** one channel, one link, one demux: the order in which the broker hands out a
//! channel's publications is the order all subscribers of this node see.
//! **Invariant:** `Acquired` is sent only once the channel is really subscribed, and before its
//! first publication to that shard.
//! Deliberately absent: sessions, sockets, frames.

mod chains;
mod control;
mod core;
mod door;
mod envelope;
mod feed;
mod gap_log;
mod history;
mod interest;
mod memory;
mod newest;
mod presence;
mod redis;
mod registry;
mod rest;
mod survey;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use uuid::Uuid;

/// For benches/demux only.
#[doc(hidden)]
pub use interest::Interest;

use crate::channel::{Channel, ChannelId};
use crate::config::Keep;
use crate::mailbox::{self, Weigh};
use crate::node::Node;
use crate::publication::Body;
use crate::server::EXIT_SOFTWARE;
use crate::shard::ShardEvent;

pub use control::{
    CONTROL_BYTES_MAX, ChannelCount, ChannelPage, ChannelsAsk, Control, Cursor, DisconnectUser,
    NodeInfo, Overrides, RefreshUser, Since, SubscribeUser, Target, Topic, UnsubscribeUser, Verb,
};
pub use history::{Audience, HistoryAsk, HistoryError, HistoryPage, Listed, Order, Stored};
pub use presence::{Change, Member, Presence, PresenceAsk, PresenceError, Wanted};
pub use redis::{Claim, LookUp, LookUpError, PUBLISH_SCRIPT, claim, look_up};
pub use registry::{Connected, Transport};
pub use survey::{PAGE_CHANNELS_MAX, PAGE_LOOKS_MAX, PATTERN_BYTES_MAX, SurveyResult};

/// Commands that may lie in the broker's mailbox, in batches: every shard sends at most one
/// batch a turn, and keeps what doesn't fit.
const MAILBOX_BATCHES_MAX: usize = 4096;
/// Every publication passes here on its way, for some microseconds. On a core that a shard keeps
/// busy it would wait for a full slice of the shard's, a millisecond and more, each time. That it wakes
/// for each publication has its price, but a rest between two reads has a higher one where turns are short
/// (see [`rest`]): of 300 µs, × 1.14 deliveries per CPU-second with 10,000 sessions on 1,000 channels, and
/// × 1.3 of the p50 with 100 at 5,000/s. Nor would a shard gain by reading Redis itself. With the broker on
/// the one shard's thread, and the 100 paused for until they took × 0.96 or × 1.07, their p99 was × 0.84 or
/// × 1.03, and the 10,000 had × 0.99.
const SLICE: Duration = Duration::from_micros(100);

/// From a shard to the broker.
#[derive(Debug)]
pub enum BrokerCommand {
    /// The shard's first subscriber of a channel. Answered by `Acquired` or `AcquireFailed`.
    Acquire {
        shard: usize,
        name: Box<str>,
    },
    /// The shard's last subscriber left.
    Release {
        shard: usize,
        id: ChannelId,
    },
    /// The shard's first subscriber of a channel that takes patches: it gets a chain.
    Chain {
        id: ChannelId,
    },
    /// Answered by `Published`.
    Publish {
        shard: usize,
        request: u32,
        publish: Box<Publish>,
    },
    /// Answered by `History`.
    History {
        shard: usize,
        request: u32,
        ask: Box<HistoryAsk>,
    },
    /// Drops a channel's publications; its position stays. Answered by `HistoryRemoved`.
    HistoryRemove {
        shard: usize,
        request: u32,
        channel: Box<str>,
    },
    /// To all shards of all nodes. Answered by `Controlled`.
    Control {
        shard: usize,
        request: u32,
        control: Arc<Control>,
    },
    /// Somebody subscribed to a channel where it is noted who is here.
    Enter {
        shard: usize,
        channel: Arc<Channel>,
        member: Box<Member>,
    },
    /// And is no more.
    Leave {
        channel: Arc<Channel>,
        client: Uuid,
    },
    /// Answered by `Present`.
    Presence {
        shard: usize,
        request: u32,
        ask: Box<PresenceAsk>,
    },
    /// Answered by `Surveyed`.
    Survey {
        shard: usize,
        request: u32,
        topic: Topic,
    },
    /// A shard's answer to `ShardEvent::ListChannels`.
    ChannelPage {
        owed: u32,
        page: ChannelPage,
    },
    /// A client is there, for the connection registry.
    Connected {
        shard: usize,
        connected: Box<Connected>,
    },
    Disconnected {
        connection: Uuid,
    },
    /// Reads the connection registry. Answered by `LookedUp`.
    LookUp {
        shard: usize,
        request: u32,
        ask: Box<LookUp>,
    },
    /// A shard started afresh: it has no channel any more, and its answers are void.
    Forget {
        shard: usize,
    },
    Stop,
}

impl Weigh for BrokerCommand {
    fn weight(&self) -> usize {
        match self {
            Self::Publish { publish, .. } => 1 + publish.body.bytes() / 1024,
            Self::Control { control, .. } => 1 + control.bytes() / 1024,
            Self::ChannelPage { page, .. } => 1 + page.channels.len() / 32,
            _ => 1,
        }
    }
}

/// One publish of the server API or of a client.
#[derive(Debug)]
pub struct Publish {
    pub channel: Box<str>,
    pub body: Body,
    /// What of its channel's stream is kept; `None`: it is delivered only.
    pub keep: Option<Keep>,
    /// Used before on this channel, within five minutes: nothing is delivered, and the answer is
    /// the one of then.
    pub idempotency_key: Option<Box<str>>,
    /// Not newer than the channel's newest of the same version epoch: nothing is delivered, and the
    /// answer is the top position. Only with `keep`.
    pub version: Option<Version>,
}

/// The publisher's own number of the state that it publishes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version {
    pub number: u64,
    /// Numbers of different epochs aren't compared.
    pub epoch: Box<str>,
}

impl Publish {
    /// One to be delivered only.
    pub fn plain(channel: impl Into<Box<str>>, body: Body) -> Self {
        Self { channel: channel.into(), body, keep: None, idempotency_key: None, version: None }
    }

    /// What it takes on its way, bytes.
    pub fn bytes(&self) -> usize {
        let key_bytes = self.idempotency_key.as_ref().map_or(0, |key| key.len());
        let version_bytes = self.version.as_ref().map_or(0, |version| version.epoch.len());
        self.channel.len() + self.body.bytes() + key_bytes + version_bytes
    }
}

/// Why a publish failed. It was not, and will not be, delivered, unless it says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PublishError {
    /// Redis can't be reached, or refused: try again.
    #[error("the broker is unavailable")]
    Unavailable,
    /// No answer in time: it may or may not have been delivered.
    #[error("the broker did not answer in time")]
    Unknown,
}

/// The door to the broker: any thread may hold it.
pub type Door = mailbox::Sender<BrokerCommand>;

/// Makes the broker's door before the thread, so that shards can be started in between.
pub fn door() -> (Door, mailbox::Unbound<BrokerCommand>) {
    mailbox::mailbox(MAILBOX_BATCHES_MAX)
}

/// Starts the broker thread.
pub fn spawn(
    node: Arc<Node>,
    commands: mailbox::Unbound<BrokerCommand>,
    shards: Vec<mailbox::Sender<ShardEvent>>,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("broker".into()).spawn(move || {
        crate::thread::set_slice(SLICE);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default());
        // A task, as the links are: one that another task wakes runs next, but for the runtime's own
        // future the reactor is asked in between, which for each publication is a system call more.
        let run = |runtime: tokio::runtime::LocalRuntime| {
            let task = runtime.spawn_local(core::run(node, commands, shards));
            runtime.block_on(task).expect("the broker's loop panicked");
        };
        // Without it nothing is delivered: better to be started again by whoever watches the
        // process than to be up and useless.
        let ran = catch_unwind(AssertUnwindSafe(|| runtime.map(run)));
        if !matches!(ran, Ok(Ok(()))) {
            eprintln!("hubbub ends: the broker thread failed");
            std::process::exit(i32::from(EXIT_SOFTWARE));
        }
    })
}
