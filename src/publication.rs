//! A publication on its way through this node, and its wire frames.
//!
//! Made by the broker thread, shared read-only by all interested shards. A format's frame is
//! encoded by the first shard that needs it, so a format that nobody uses costs nothing and the
//! broker thread, which every publication of the node passes, does no encoding.
//! **Invariant:** a frame is encoded at most once per node and format, and so is a patch.
//!
//! Subscriptions with delta (client protocol, 11.1) get the payload's JSON as a string: the whole
//! text, or a patch against the publication before it in the channel's chain (`broker/chains`), if
//! that is shorter. What is patched is the text that a plain JSON session would get, so that what
//! a client makes of a string is what it would have got without delta.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::channel::Channel;
use crate::fossil;
use crate::frame::{self, Opcode};
use crate::payload::Payload;
use crate::position::Position;
use crate::protocol::{PubExtra, json_string, put_publication};

/// A wire format: what one session's publications look like on its socket.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Format {
    /// The Centrifuge client protocol, JSON, one reply a text frame.
    Json,
    /// The payload itself: text if UTF-8, else binary.
    Raw,
}

/// How many formats there are.
pub const N_FORMATS: usize = 2;

/// A finished server frame; `None` where the format can't carry this payload.
type Encoded = Option<Bytes>;

/// Its place in a chain of publications, each of which may be a patch against the one before.
#[derive(Clone, Default, Debug)]
pub struct Link {
    /// The node's number of it; 0: in no chain.
    pub serial: u64,
    pub base: Option<Base>,
}

/// What patches are made against.
#[derive(Clone, Debug)]
pub struct Base {
    pub serial: u64,
    /// Not its publication, which would hold the one before in turn.
    pub payload: Arc<Payload>,
}

/// What patching came to, counted by whoever encodes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Patches {
    /// Patches that were shorter than their payloads.
    pub n: u64,
    pub bytes: u64,
    /// Of the payloads that they stand for.
    pub full_bytes: u64,
}

/// Only a payload in a chain is shared: the others cost no allocation more.
#[derive(Debug)]
enum Held {
    Own(Payload),
    Shared(Arc<Payload>),
}

impl Deref for Held {
    type Target = Payload;

    fn deref(&self) -> &Payload {
        match self {
            Self::Own(payload) => payload,
            Self::Shared(payload) => payload,
        }
    }
}

/// One publication of one channel.
#[derive(Debug)]
pub struct Publication {
    channel: Arc<Channel>,
    payload: Held,
    link: Link,
    /// Encoded client info of a client's publication.
    info: Option<Box<[u8]>>,
    /// Encoded tags.
    tags: Option<Box<[u8]>>,
    version: u64,
    position: Position,
    frames: [OnceLock<Encoded>; N_FORMATS],
    /// JSON with the payload as a string, and with a patch if it has one.
    whole: OnceLock<Encoded>,
    patch: OnceLock<Encoded>,
}

impl Publication {
    /// A publication of `channel`, without history.
    pub fn new(channel: Arc<Channel>, body: Body) -> Self {
        Self::at(channel, body, Position::default())
    }

    /// One that has a place in its channel's stream.
    pub fn at(channel: Arc<Channel>, body: Body, position: Position) -> Self {
        Self {
            channel,
            payload: Held::Own(Payload::new(body.payload)),
            link: Link::default(),
            info: body.info,
            tags: body.tags,
            version: body.version,
            position,
            frames: [const { OnceLock::new() }; N_FORMATS],
            whole: OnceLock::new(),
            patch: OnceLock::new(),
        }
    }

    pub fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    /// Puts it into a chain. Returns what the next one's patch is made against.
    pub fn chain(&mut self, link: Link) -> Base {
        let own = Held::Own(Payload::new(Vec::new()));
        let payload = match std::mem::replace(&mut self.payload, own) {
            Held::Own(payload) => Arc::new(payload),
            Held::Shared(payload) => payload,
        };
        let base = Base { serial: link.serial, payload: payload.clone() };
        (self.payload, self.link) = (Held::Shared(payload), link);
        base
    }

    /// Its number in its chain; 0: it is in none.
    pub fn serial(&self) -> u64 {
        self.link.serial
    }

    /// Whether its patch, if it has one, is for whoever got that one last.
    pub fn follows(&self, serial: u64) -> bool {
        self.link.base.as_ref().is_some_and(|base| base.serial == serial)
    }

    /// Size of the payload, bytes.
    pub fn payload_bytes(&self) -> usize {
        self.payload.bytes().len()
    }

    /// What was published, without its channel.
    pub fn body(&self) -> Body {
        let (info, tags) = (self.info.clone(), self.tags.clone());
        Body { payload: self.payload.bytes().to_vec(), info, tags, version: self.version }
    }

    /// Where it stands in its channel's stream; offset 0: in none.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The finished frame, encoded on the first call. `None`: skip this format.
    pub fn frame(&self, format: Format) -> Option<&Bytes> {
        self.frames[format as usize].get_or_init(|| self.encode(format)).as_ref()
    }

    /// JSON with the whole payload as a string. `None`: skip JSON.
    pub fn whole_frame(&self) -> Option<&Bytes> {
        let encode = || Some(self.encode_text(self.payload.json_text()?, false));
        self.whole.get_or_init(encode).as_ref()
    }

    /// JSON with the patch, for whoever got the base last; the whole payload where that is
    /// shorter. `None`: skip JSON.
    pub fn patch_frame(&self, patches: &mut Patches) -> Option<&Bytes> {
        let patch = self.patch.get_or_init(|| {
            let base = self.link.base.as_ref()?.payload.json_text()?;
            let text = self.payload.json_text()?;
            let patch = fossil::create_shorter(base, text)?;
            patches.n += 1;
            patches.bytes += patch.len() as u64;
            patches.full_bytes += text.len() as u64;
            Some(self.encode_text(&patch, true))
        });
        patch.as_ref().or_else(|| self.whole_frame())
    }

    fn encode_text(&self, text: &str, delta: bool) -> Bytes {
        self.encode_data(&json_string(text), delta)
    }

    fn encode(&self, format: Format) -> Encoded {
        match format {
            Format::Json => Some(self.encode_data(self.payload.json()?, false)),
            Format::Raw => {
                let payload = self.payload.bytes();
                let text = std::str::from_utf8(payload).is_ok();
                let opcode = if text { Opcode::Text } else { Opcode::Binary };
                let mut out = Vec::with_capacity(frame::HEAD_BYTES_MAX + payload.len());
                frame::put_frame(&mut out, opcode, payload);
                Some(out.into())
            }
        }
    }

    fn encode_data(&self, data: &[u8], delta: bool) -> Bytes {
        let extra = PubExtra {
            info: self.info.as_deref(),
            tags: self.tags.as_deref(),
            delta,
            version: self.version,
            ..PubExtra::at(&self.position)
        };
        let mut out =
            Vec::with_capacity(frame::HEAD_BYTES_MAX + data.len() + self.channel.name.len() + 64);
        let start = frame::begin_text_frame(&mut out);
        put_publication(&mut out, &self.channel.template, data, &extra);
        frame::end_text_frame(&mut out, start);
        out.into()
    }
}

/// What is published: the payload and what travels beside it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Body {
    pub payload: Vec<u8>,
    pub info: Option<Box<[u8]>>,
    pub tags: Option<Box<[u8]>>,
    /// The publisher's own number of this state; 0 is none. Kept only with history.
    pub version: u64,
}

impl Body {
    /// A bare payload, as a plain Redis `PUBLISH` carries it.
    pub fn plain(payload: Vec<u8>) -> Self {
        Self { payload, ..Self::default() }
    }

    /// Size for the publication bound, bytes.
    pub fn bytes(&self) -> usize {
        self.payload.len()
            + self.info.as_ref().map_or(0, |info| info.len())
            + self.tags.as_ref().map_or(0, |tags| tags.len())
    }
}
