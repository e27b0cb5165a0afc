//! What the server API asks of a user's connections, wherever they are, and of the nodes
//! themselves: the messages of the channels `ws:control` (to all nodes) and `ws:node:<run id>` (to
//! one), and how they travel.
//!
//! A message is a JSON object: `v` is the version that one must know at least to obey it, `kind`
//! says what it is, `from` is the sender's run id. Nodes of different versions share a Redis: a kind
//! that isn't known, or a newer `v`, is counted and ignored, and so are members that aren't known.
//! Whoever may PUBLISH on that Redis is trusted (design, Two ways in).

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::frame::is_close_code_allowed;

/// What a command may take, counted by [`Control::bytes`]: it is copied to every node and waits on
/// every shard.
pub const CONTROL_BYTES_MAX: usize = 64 << 10;
/// A longer message isn't read. JSON grows a text by six at the most, and the rest is small.
const MESSAGE_BYTES_MAX: usize = 8 * CONTROL_BYTES_MAX;
const VERSION: u32 = 1;

/// One command to a user's connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Control {
    pub target: Target,
    pub verb: Verb,
}

/// Whose connections; the others are filters among these.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Target {
    /// Empty: the anonymous user.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub user: Box<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<Uuid>,
    /// A WebSocket has none: nothing matches it yet.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub session: Box<str>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verb {
    Disconnect(DisconnectUser),
    Unsubscribe(UnsubscribeUser),
    Subscribe(Box<SubscribeUser>),
    Refresh(RefreshUser),
}

/// Closes connections.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DisconnectUser {
    /// One that a close frame may carry.
    pub code: u16,
    pub reason: Box<str>,
    /// These stay. Sorted.
    #[serde(default, skip_serializing_if = "<[Uuid]>::is_empty")]
    pub keep: Box<[Uuid]>,
}

/// Ends subscriptions.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UnsubscribeUser {
    /// Empty: all of them.
    #[serde(default)]
    pub channel: Box<str>,
}

/// Makes server-side subscriptions.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SubscribeUser {
    pub channel: Box<str>,
    /// JSON without line breaks: what others see of the subscriber on this channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub info: Option<Box<str>>,
    /// JSON without line breaks, for the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<str>>,
    /// Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expire_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recover_since: Option<Since>,
    #[serde(rename = "override")]
    pub overrides: Overrides,
}

/// A position as it stands in a message.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Since {
    pub offset: u64,
    pub epoch: Box<str>,
}

/// What holds for one subscription whatever its namespace says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Overrides {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join_leave: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_push_join_leave: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_positioning: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_recovery: Option<bool>,
}

/// Sets when connections expire.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RefreshUser {
    /// Now.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub expired: bool,
    /// Unix seconds; `None`: never again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expire_at: Option<u64>,
    /// JSON without line breaks; `None`: it stays as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub info: Option<Box<str>>,
}

impl Control {
    /// What it takes on its way.
    pub fn bytes(&self) -> usize {
        let of = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
        let verb = match &self.verb {
            Verb::Disconnect(it) => it.reason.len() + it.keep.len() * size_of::<Uuid>(),
            Verb::Unsubscribe(it) => it.channel.len(),
            Verb::Subscribe(it) => {
                let since = it.recover_since.as_ref().map_or(0, |since| since.epoch.len());
                it.channel.len() + of(&it.info) + of(&it.data) + since
            }
            Verb::Refresh(it) => of(&it.info),
        };
        self.target.user.len() + self.target.session.len() + verb
    }
}

/// Whatever nodes say to each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    Control(Control),
    Ask(Question),
    Answer(Answer),
}

/// What a node is asked. On `ws:control` it begins a survey of all of them; on a node's own channel
/// it asks for the next page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    /// The asker's number of it.
    pub survey: u32,
    pub topic: Topic,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Topic {
    Info,
    Channels(ChannelsAsk),
}

/// Which of its channels a node is to list.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ChannelsAsk {
    /// Empty: all.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub pattern: Box<str>,
    pub at: Cursor,
}

/// How far a node's channels were listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Cursor {
    pub shard: usize,
    pub slot: u32,
}

/// One node's part, or a page of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Answer {
    pub survey: u32,
    pub part: Part,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Info(NodeInfo),
    Channels(ChannelPage),
}

/// A node as `info` shows it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeInfo {
    pub uid: Box<str>,
    pub name: Box<str>,
    pub version: Box<str>,
    pub num_clients: u64,
    pub num_users: u64,
    pub num_subs: u64,
    pub num_channels: u64,
    /// Seconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub uptime: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Some of a node's channels.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ChannelPage {
    pub channels: Vec<ChannelCount>,
    /// There are more, from there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Cursor>,
    /// A shard didn't answer in time.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChannelCount {
    pub name: Box<str>,
    pub n: u32,
}

/// Why a message isn't obeyed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotObeyed {
    /// Of a newer node.
    #[error("a kind or version that this node doesn't know")]
    Unknown,
    #[error("not a message")]
    Malformed,
}

/// A message as it came.
#[derive(PartialEq, Eq, Debug)]
pub struct Received {
    /// The sender's run id.
    pub from: Uuid,
    pub message: Message,
}

#[derive(Serialize, Deserialize)]
struct Numbered<T> {
    survey: u32,
    #[serde(flatten)]
    body: T,
}

#[derive(Serialize, Deserialize)]
struct Empty {}

#[derive(Serialize)]
struct Envelope<'a, T> {
    v: u32,
    kind: &'static str,
    from: Uuid,
    #[serde(flatten)]
    target: Option<&'a Target>,
    #[serde(flatten)]
    body: &'a T,
}

/// A message on its way out.
pub fn encode(from: Uuid, message: &Message) -> Vec<u8> {
    match message {
        Message::Control(Control { target, verb }) => match verb {
            Verb::Disconnect(body) => put("disconnect", from, Some(target), body),
            Verb::Unsubscribe(body) => put("unsubscribe", from, Some(target), body),
            Verb::Subscribe(body) => put("subscribe", from, Some(target), body),
            Verb::Refresh(body) => put("refresh", from, Some(target), body),
        },
        Message::Ask(Question { survey, topic: Topic::Info }) => {
            put("ask_info", from, None, &Numbered { survey: *survey, body: Empty {} })
        }
        Message::Ask(Question { survey, topic: Topic::Channels(body) }) => {
            put("ask_channels", from, None, &Numbered { survey: *survey, body })
        }
        Message::Answer(body) => put("answer", from, None, body),
    }
}

fn put<T: Serialize>(kind: &'static str, from: Uuid, target: Option<&Target>, body: &T) -> Vec<u8> {
    serde_json::to_vec(&Envelope { v: VERSION, kind, from, target, body })
        .expect("invariant: plain values always serialise")
}

/// Reads what came; never panics, whatever it is.
pub fn decode(bytes: &[u8]) -> Result<Received, NotObeyed> {
    #[derive(Deserialize)]
    struct Head {
        v: u32,
        kind: Box<str>,
        from: Uuid,
    }
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(NotObeyed::Malformed);
    }
    let head: Head = get(bytes)?;
    if head.v > VERSION {
        return Err(NotObeyed::Unknown);
    }
    let control =
        |verb| Ok::<_, NotObeyed>(Message::Control(Control { target: get(bytes)?, verb }));
    let message = match &*head.kind {
        "disconnect" => {
            let disconnect: DisconnectUser = get(bytes)?;
            if !is_close_code_allowed(disconnect.code) {
                return Err(NotObeyed::Malformed);
            }
            control(Verb::Disconnect(disconnect))?
        }
        "unsubscribe" => control(Verb::Unsubscribe(get(bytes)?))?,
        "subscribe" => control(Verb::Subscribe(get(bytes)?))?,
        "refresh" => control(Verb::Refresh(get(bytes)?))?,
        "ask_info" => {
            let Numbered { survey, body: Empty {} } = get(bytes)?;
            Message::Ask(Question { survey, topic: Topic::Info })
        }
        "ask_channels" => {
            let Numbered { survey, body } = get(bytes)?;
            Message::Ask(Question { survey, topic: Topic::Channels(body) })
        }
        "answer" => Message::Answer(get(bytes)?),
        _ => return Err(NotObeyed::Unknown),
    };
    Ok(Received { from: head.from, message })
}

fn get<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, NotObeyed> {
    serde_json::from_slice(bytes).map_err(|_| NotObeyed::Malformed)
}

#[cfg(test)]
mod tests;
