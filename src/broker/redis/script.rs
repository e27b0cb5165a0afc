//! The scripts that run in Redis, history's above all: their texts, the keys they take, what they answer.
//!
//! Sans-I/O. What makes a stream trustworthy is said in `lua/stream.lua`.

use redis::Value;

use super::super::Publish;
use super::super::history::{HistoryAsk, Order, Stored};
use crate::broker::{PublishError, envelope};
use crate::position::{Epoch, Position};

/// PUBLISHes channel by channel, unless Redis's clock, in milliseconds, shows more than the first
/// argument. Returns that clock, and for each channel 1, or 0 if it was refused. Without it, what
/// a Redis that hangs finds in its sockets when it goes on would be delivered as if it were new,
/// long after the publisher was told that it failed. PUBLISH is no write, so a replica would take it,
/// and keep it to itself: a write that does nothing, to the second argument, shows it.
pub const PUBLISH_IN_TIME: &str = "local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reply = {now}
if now <= tonumber(ARGV[1]) then
  local written = redis.pcall('DEL', ARGV[2])
  if type(written) == 'table' and written.err:find('READONLY', 1, true) then
    return redis.error_reply('READONLY this is a replica')
  end
  for at = 3, #ARGV, 2 do
    local sent = redis.pcall('PUBLISH', ARGV[at], ARGV[at + 1])
    reply[#reply + 1] = type(sent) == 'number' and 1 or 0
  end
end
return reply";

/// What `hubbub script` prints.
pub const PUBLISH_SCRIPT: &str = concat!(
    include_str!("lua/publish.head.lua"),
    include_str!("lua/stream.lua"),
    include_str!("lua/publish.lua")
);
const HISTORY: &str = concat!(include_str!("lua/stream.lua"), include_str!("lua/history.lua"));
const REMOVE: &str = concat!(include_str!("lua/stream.lua"), include_str!("lua/remove.lua"));
const INSTANCE: &str = include_str!("lua/instance.lua");
/// A script of presence.
macro_rules! presence {
    ($name:literal) => {
        concat!(
            include_str!("lua/presence.lua"),
            include_str!(concat!("lua/presence.", $name, ".lua"))
        )
    };
}
/// A step of a read ends behind the publication that reaches it: Redis serves others in between.
const STEP_BYTES: usize = 256 << 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Script {
    Publish,
    History,
    Remove,
    Instance,
    PresenceBeat,
    PresenceWrite,
    PresenceKeep,
    PresenceReap,
    PresenceCount,
    PresenceWho,
    PresenceScan,
}

impl Script {
    /// In the order of their numbers.
    pub const ALL: [Script; 11] = [
        Script::Publish,
        Script::History,
        Script::Remove,
        Script::Instance,
        Script::PresenceBeat,
        Script::PresenceWrite,
        Script::PresenceKeep,
        Script::PresenceReap,
        Script::PresenceCount,
        Script::PresenceWho,
        Script::PresenceScan,
    ];

    pub fn text(self) -> &'static str {
        match self {
            Script::Publish => PUBLISH_SCRIPT,
            Script::History => HISTORY,
            Script::Remove => REMOVE,
            Script::Instance => INSTANCE,
            Script::PresenceBeat => presence!("beat"),
            Script::PresenceWrite => presence!("write"),
            Script::PresenceKeep => presence!("keep"),
            Script::PresenceReap => presence!("reap"),
            Script::PresenceCount => presence!("count"),
            Script::PresenceWho => presence!("who"),
            Script::PresenceScan => presence!("scan"),
        }
    }
}

/// One run of a script.
pub struct Call {
    pub script: Script,
    pub keys: Vec<Vec<u8>>,
    pub args: Vec<Vec<u8>>,
}

impl Call {
    /// `deadline_ms` by Redis's clock; `server`: its run_id, or `-`.
    pub fn publish(prefix: &[u8], publish: &Publish, deadline_ms: u64, server: &str) -> Self {
        let mut keys = stream_keys(prefix, &publish.channel);
        if let Some(key) = &publish.idempotency_key {
            keys.push(idempotency_key(prefix, &publish.channel, key));
        }
        let body = &publish.body;
        let number = |number: u64| number.to_string().into_bytes();
        let (size, ttl_ms) = publish.keep.map_or((0, 0), |keep| (keep.size as u64, keep.ttl_ms));
        let (version, version_epoch) = match &publish.version {
            Some(version) => (number(version.number), version.epoch.as_bytes().to_vec()),
            None => (Vec::new(), Vec::new()),
        };
        let args = vec![
            [prefix, publish.channel.as_bytes()].concat(),
            body.payload.clone(),
            number(size),
            number(ttl_ms),
            body.tags.as_deref().unwrap_or_default().to_vec(),
            version,
            version_epoch,
            body.info.as_deref().unwrap_or_default().to_vec(),
            number(deadline_ms),
            server.as_bytes().to_vec(),
        ];
        Self { script: Script::Publish, keys, args }
    }

    /// The next step of a read that goes on from `since`.
    pub fn read(
        prefix: &[u8],
        ask: &HistoryAsk,
        since: Option<Position>,
        left: usize,
        server: &str,
    ) -> Self {
        let epoch = since.map_or(Epoch::NONE, |since| since.epoch);
        let order = match ask.order {
            Order::Forward => "f",
            Order::Reverse => "r",
        };
        let offset = since.map_or_else(String::new, |since| since.offset.to_string());
        let args = [
            server,
            epoch.as_str(),
            order,
            &offset,
            &left.to_string(),
            &STEP_BYTES.min(ask.bytes_max).to_string(),
        ];
        Self {
            script: Script::History,
            keys: stream_keys(prefix, &ask.channel),
            args: args.map(|arg| arg.as_bytes().to_vec()).into(),
        }
    }

    pub fn remove(prefix: &[u8], channel: &str, server: &str) -> Self {
        let args = vec![server.as_bytes().to_vec(), [prefix, channel.as_bytes()].concat()];
        Self { script: Script::Remove, keys: stream_keys(prefix, channel), args }
    }
}

/// Stream and meta. In Redis Cluster a key is placed by what stands between its first `{` and the
/// next `}`, so keys with their channel in braces are placed where the channel is. A channel that
/// has a `}` itself keeps the tag that it may have; the second colon keeps its keys apart from those
/// of a channel that is named like the tag.
fn stream_keys(prefix: &[u8], channel: &str) -> Vec<Vec<u8>> {
    ["ws:stream:", "ws:meta:"].map(|kind| key(prefix, kind, channel, channel)).into()
}

fn idempotency_key(prefix: &[u8], channel: &str, idempotency_key: &str) -> Vec<u8> {
    // Only braces or a length say where a channel ends and the key begins.
    let counted = format!("{}:{channel}", channel.len());
    let mut key = key(prefix, "ws:idem:", channel, &counted);
    key.push(b':');
    key.extend_from_slice(idempotency_key.as_bytes());
    key
}

fn key(prefix: &[u8], kind: &str, channel: &str, with_brace: &str) -> Vec<u8> {
    let rest = match channel.contains('}') {
        false => format!("{kind}{{{channel}}}"),
        true => format!("{kind}:{with_brace}"),
    };
    [prefix, rest.as_bytes()].concat()
}

/// What a script of ours answered, item by item; anything else is a broken script.
pub struct Items(std::vec::IntoIter<Value>);

impl Items {
    pub fn of(value: Value) -> Option<Self> {
        match value {
            Value::Array(items) => Some(Self(items.into_iter())),
            _ => None,
        }
    }

    pub fn number(&mut self) -> Option<u64> {
        match self.0.next()? {
            Value::Int(number) => u64::try_from(number).ok(),
            _ => None,
        }
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn bytes(&mut self) -> Option<Vec<u8>> {
        match self.0.next()? {
            Value::BulkString(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// No epoch, or one.
    fn position(&mut self) -> Option<Position> {
        let (offset, epoch) = (self.number()?, self.bytes()?);
        let epoch = if epoch.is_empty() { Epoch::NONE } else { Epoch::parse(&epoch)? };
        Some(Position { offset, epoch })
    }
}

/// The answer of a publish.
pub struct PublishReply {
    pub now_ms: u64,
    pub result: Result<Position, PublishError>,
    pub was_reset: bool,
}

impl PublishReply {
    pub fn read(value: Value) -> Option<Self> {
        const TOO_LATE: u64 = 0;
        let mut items = Items::of(value)?;
        let (now_ms, what) = (items.number()?, items.number()?);
        let position = items.position()?;
        let was_reset = items.number()? != 0;
        let result = if what == TOO_LATE { Err(PublishError::Unavailable) } else { Ok(position) };
        Some(Self { now_ms, result, was_reset })
    }
}

/// One step of a read.
pub struct StepReply {
    pub top: Position,
    pub was_reset: bool,
    pub has_more: bool,
    pub publications: Vec<Stored>,
    /// Entries that hubbub's script didn't write.
    pub n_foreign: u64,
}

impl StepReply {
    pub fn read(value: Value) -> Option<Self> {
        let mut items = Items::of(value)?;
        let top = items.position()?;
        let (was_reset, has_more) = (items.number()? != 0, items.number()? != 0);
        let (mut publications, mut n_foreign) = (Vec::new(), 0);
        while items.len() > 0 {
            match envelope::decode(items.bytes()?) {
                Ok(opened) if opened.position.epoch == top.epoch && opened.position.offset > 0 => {
                    let offset = opened.position.offset;
                    publications.push(Stored { offset, body: opened.body });
                }
                _ => n_foreign += 1,
            }
        }
        Some(Self { top, was_reset, has_more, publications, n_foreign })
    }
}

/// The answer of a removal: whether the stream was found damaged.
pub fn read_removed(value: Value) -> Option<bool> {
    match value {
        Value::Int(reset) => Some(reset != 0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Redis Cluster places a key by.
    fn tag(key: &[u8]) -> &[u8] {
        let Some(open) = key.iter().position(|byte| *byte == b'{') else { return key };
        let rest = &key[open + 1..];
        match rest.iter().position(|byte| *byte == b'}') {
            None | Some(0) => key,
            Some(close) => &rest[..close],
        }
    }

    #[test]
    fn keys_are_placed_with_their_channel() {
        for (channel, expected) in [
            ("prices", "ws:stream:{prices}"),
            ("a{b", "ws:stream:{a{b}"),
            ("{x}", "ws:stream::{x}"),
            ("a{b}c}", "ws:stream::a{b}c}"),
        ] {
            let keys = stream_keys(b"", channel);
            assert_eq!(keys[0], expected.as_bytes());
            for key in keys.into_iter().chain([idempotency_key(b"", channel, "k{1}")]) {
                assert_eq!(tag(&key), tag(channel.as_bytes()), "{channel}");
            }
        }
        assert_eq!(idempotency_key(b"p:", "a", "k"), b"p:ws:idem:{a}:k");
    }

    /// Characters that separate, in all short combinations.
    #[test]
    fn no_two_channels_share_a_key() {
        let mut words = vec![String::new()];
        for _ in 0..4 {
            let longer = words
                .iter()
                .flat_map(|word| ["", "{", "}", ":", "a"].map(|c| format!("{word}{c}")));
            words = longer.collect();
            words.sort();
            words.dedup();
        }
        words.retain(|word| !word.is_empty());
        let mut streams: Vec<_> =
            words.iter().map(|word| stream_keys(b"", word).remove(0)).collect();
        streams.sort();
        streams.dedup();
        assert_eq!(streams.len(), words.len());
        words.retain(|word| word.len() <= 3);
        let pairs = words.iter().flat_map(|channel| words.iter().map(move |key| (channel, key)));
        let mut keys: Vec<_> =
            pairs.map(|(channel, key)| idempotency_key(b"", channel, key)).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), words.len() * words.len());
    }

    #[test]
    fn what_a_script_never_answers_is_no_reply() {
        let int = Value::Int;
        let text = |text: &str| Value::BulkString(text.into());
        let whole = vec![int(5), int(1), int(7), text("abcdefgh"), int(0)];
        let reply = PublishReply::read(Value::Array(whole.clone())).expect("whole");
        let position = Position { offset: 7, epoch: Epoch::asked("abcdefgh") };
        assert_eq!((reply.now_ms, reply.result, reply.was_reset), (5, Ok(position), false));
        for length in 0..whole.len() {
            assert!(PublishReply::read(Value::Array(whole[..length].to_vec())).is_none());
        }
        assert!(PublishReply::read(Value::Nil).is_none());
        let bad = vec![int(5), int(1), int(-7), text("abcdefgh"), int(0)];
        assert!(PublishReply::read(Value::Array(bad)).is_none());
        assert!(StepReply::read(Value::Array(vec![int(1), text("1"), int(0), int(0)])).is_none());
        let step = vec![int(1), text("abcdefgh"), int(0), int(1), text("no envelope")];
        let step = StepReply::read(Value::Array(step)).expect("whole");
        assert_eq!((step.n_foreign, step.publications.len(), step.has_more), (1, 0, true));
    }
}
