//! A publication on its way through this node, and its wire frames.
//!
//! Made by the broker thread, shared read-only by all interested shards. A format's frame is
//! encoded by the first shard that needs it, so a format that nobody uses costs nothing and the
//! broker thread, which every publication of the node passes, does no encoding.
//! **Invariant:** a frame is encoded at most once per node and format.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::channel::Channel;
use crate::frame::{self, Opcode};
use crate::position::Position;
use crate::protocol::{JsonPayload, PubExtra, json_payload, put_publication};

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

/// One publication of one channel.
#[derive(Debug)]
pub struct Publication {
    channel: Arc<Channel>,
    /// The payload as it was published.
    payload: Vec<u8>,
    /// Encoded client info of a client's publication.
    info: Option<Box<[u8]>>,
    /// Encoded tags.
    tags: Option<Box<[u8]>>,
    version: u64,
    position: Position,
    frames: [OnceLock<Encoded>; N_FORMATS],
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
            payload: body.payload,
            info: body.info,
            tags: body.tags,
            version: body.version,
            position,
            frames: [const { OnceLock::new() }; N_FORMATS],
        }
    }

    pub fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    /// Size of the payload, bytes.
    pub fn payload_bytes(&self) -> usize {
        self.payload.len()
    }

    /// What was published, without its channel.
    pub fn body(&self) -> Body {
        let (payload, info, tags) = (self.payload.clone(), self.info.clone(), self.tags.clone());
        Body { payload, info, tags, version: self.version }
    }

    /// Where it stands in its channel's stream; offset 0: in none.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The finished frame, encoded on the first call. `None`: skip this format.
    pub fn frame(&self, format: Format) -> Option<&Bytes> {
        self.frames[format as usize].get_or_init(|| self.encode(format)).as_ref()
    }

    fn encode(&self, format: Format) -> Encoded {
        match format {
            Format::Json => self.encode_json(),
            Format::Raw => {
                let text = std::str::from_utf8(&self.payload).is_ok();
                let opcode = if text { Opcode::Text } else { Opcode::Binary };
                let mut out = Vec::with_capacity(frame::HEAD_BYTES_MAX + self.payload.len());
                frame::put_frame(&mut out, opcode, &self.payload);
                Some(out.into())
            }
        }
    }

    fn encode_json(&self) -> Encoded {
        let rewritten;
        let data = match json_payload(&self.payload) {
            JsonPayload::Verbatim(data) => data,
            JsonPayload::Rewritten(data) => {
                rewritten = data;
                &rewritten
            }
            JsonPayload::NotUtf8 => return None,
        };
        let extra = PubExtra {
            info: self.info.as_deref(),
            tags: self.tags.as_deref(),
            version: self.version,
            ..PubExtra::at(&self.position)
        };
        let mut out =
            Vec::with_capacity(frame::HEAD_BYTES_MAX + data.len() + self.channel.name.len() + 64);
        let start = frame::begin_text_frame(&mut out);
        put_publication(&mut out, &self.channel.template, data, &extra);
        frame::end_text_frame(&mut out, start);
        Some(out.into())
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
