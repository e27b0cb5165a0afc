//! hubbub's own publications on a Redis channel, and in its Redis Streams: a binary header before
//! the payload.
//!
//! `FF` (never UTF-8), `"hub"`, then a version byte.
//! *Version 1*, of a publication without history: two parts, encoded client info and encoded tags.
//! *Version 2*, of one with: the offset (u64), the epoch (8 letters), then three parts, the third
//! the publisher's own version number in decimal. A part is a length (u32) and so many bytes; an
//! empty one is absent. Numbers are big endian. The rest is the payload. A publication without
//! history, info and tags travels as its plain payload, so that any Redis client can read it.
//! *Version 3*, and nothing more: the channel's history was removed. *Version 4*, of a join or leave: `j` or
//! `l`; the rest is the ClientInfo, JSON. Version 2 is written by the publish script alone, since only Redis
//! knows the offset, and version 4 by the scripts of presence, since only Redis knows whether somebody came
//! or went. A node that doesn't know a version drops and counts it.

use crate::position::{Epoch, Position};
use crate::protocol::JoinOrLeave;
use crate::publication::Body;

const MAGIC: &[u8; 4] = b"\xffhub";
const PLAIN: u8 = 1;
const POSITIONED: u8 = 2;
/// In the place of a publication: the channel's history was removed.
pub const REMOVED: &[u8] = b"\xffhub\x03";
const CHANGE: u8 = 4;
/// What a script, and a browser, can count to. No stream gets there.
const OFFSET_MAX: u64 = 1 << 53;

/// A payload that claims to be hubbub's own and isn't whole, or is of a later version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("bad envelope")]
pub struct BadEnvelope;

/// What came from Redis on a channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Letter {
    Publication(Opened),
    Change { what: JoinOrLeave, info: Box<[u8]> },
}

impl Letter {
    /// Size for the publication bound, bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Publication(opened) => opened.body.bytes(),
            Self::Change { info, .. } => info.len(),
        }
    }
}

/// A publication.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    pub body: Body,
    /// That of no history, if it has none.
    pub position: Position,
}

/// What goes to Redis for a body without history.
pub fn encode(body: Body) -> Vec<u8> {
    if body.info.is_none() && body.tags.is_none() && body.payload.first() != Some(&0xff) {
        return body.payload;
    }
    let mut out = Vec::with_capacity(MAGIC.len() + 9 + body.bytes());
    out.extend_from_slice(MAGIC);
    out.push(PLAIN);
    for part in [&body.info, &body.tags] {
        put_part(&mut out, part.as_deref().unwrap_or_default());
    }
    out.extend_from_slice(&body.payload);
    out
}

fn put_part(out: &mut Vec<u8>, part: &[u8]) {
    out.extend_from_slice(&(part.len() as u32).to_be_bytes());
    out.extend_from_slice(part);
}

/// Opens what came on a channel.
pub fn open(bytes: Vec<u8>) -> Result<Letter, BadEnvelope> {
    match bytes.strip_prefix(MAGIC) {
        Some([CHANGE, what, info @ ..]) => {
            let what = match what {
                b'j' => JoinOrLeave::Join,
                b'l' => JoinOrLeave::Leave,
                _ => return Err(BadEnvelope),
            };
            if !is_json(info) {
                return Err(BadEnvelope);
            }
            Ok(Letter::Change { what, info: info.into() })
        }
        _ => decode(bytes).map(Letter::Publication),
    }
}

fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_slice::<&serde_json::value::RawValue>(bytes).is_ok()
}

/// Opens a publication. Never panics, and every length is checked against what is there
/// before a byte is copied.
pub fn decode(bytes: Vec<u8>) -> Result<Opened, BadEnvelope> {
    if bytes.first() != Some(&0xff) {
        return Ok(Opened { body: Body::plain(bytes), position: Position::default() });
    }
    let mut rest = Rest(bytes.strip_prefix(MAGIC).ok_or(BadEnvelope)?);
    let [envelope_version] = rest.take()?;
    let position = match envelope_version {
        PLAIN => Position::default(),
        POSITIONED => {
            let offset = u64::from_be_bytes(rest.take()?);
            let epoch = Epoch::parse(&rest.take::<{ Epoch::BYTES }>()?).ok_or(BadEnvelope)?;
            if !(1..=OFFSET_MAX).contains(&offset) {
                return Err(BadEnvelope);
            }
            Position { offset, epoch }
        }
        _ => return Err(BadEnvelope),
    };
    let (info, tags) = (rest.part()?, rest.part()?);
    let version = match envelope_version {
        POSITIONED => decimal(rest.part()?)?,
        _ => 0,
    };
    // They are put into JSON pushes as they are: whoever can PUBLISH is trusted, but not to
    // be free of mistakes.
    if [info, tags].into_iter().filter(|json| !json.is_empty()).any(|json| !is_json(json)) {
        return Err(BadEnvelope);
    }
    let owned = |part: &[u8]| (!part.is_empty()).then(|| part.into());
    let (info, tags) = (owned(info), owned(tags));
    Ok(Opened { body: Body { payload: rest.0.to_vec(), info, tags, version }, position })
}

/// Empty is 0.
fn decimal(digits: &[u8]) -> Result<u64, BadEnvelope> {
    if digits.is_empty() {
        return Ok(0);
    }
    let digits = std::str::from_utf8(digits).map_err(|_| BadEnvelope)?;
    digits.parse().map_err(|_| BadEnvelope)
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], BadEnvelope> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(BadEnvelope)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn part(&mut self) -> Result<&'a [u8], BadEnvelope> {
        let length = u32::from_be_bytes(self.take()?) as usize;
        let (part, rest) = self.0.split_at_checked(length).ok_or(BadEnvelope)?;
        self.0 = rest;
        Ok(part)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the publish script writes it.
    fn encode_positioned(opened: &Opened) -> Vec<u8> {
        let mut out = b"\xffhub\x02".to_vec();
        out.extend_from_slice(&opened.position.offset.to_be_bytes());
        out.extend_from_slice(opened.position.epoch.as_str().as_bytes());
        put_part(&mut out, opened.body.info.as_deref().unwrap_or_default());
        put_part(&mut out, opened.body.tags.as_deref().unwrap_or_default());
        let version = opened.body.version;
        put_part(
            &mut out,
            if version == 0 { String::new() } else { version.to_string() }.as_bytes(),
        );
        out.extend_from_slice(&opened.body.payload);
        out
    }

    fn any_body() -> impl Strategy<Value = Body> {
        let json = || prop::option::of(Just(b"{\"a\":\"b\"}".as_slice().into()));
        (any::<Vec<u8>>(), json(), json(), any::<u64>())
            .prop_map(|(payload, info, tags, version)| Body { payload, info, tags, version })
    }

    #[test]
    fn what_is_plain_stays_plain() {
        assert_eq!(encode(Body::plain(b"x".to_vec())), b"x");
        let empty = Opened { body: Body::plain(Vec::new()), position: Position::default() };
        assert_eq!(decode(Vec::new()), Ok(empty));
    }

    #[test]
    fn joins_and_leaves() {
        let change = |what| Ok(Letter::Change { what, info: b"{\"user\":\"\"}"[..].into() });
        assert_eq!(open(b"\xffhub\x04j{\"user\":\"\"}".to_vec()), change(JoinOrLeave::Join));
        assert_eq!(open(b"\xffhub\x04l{\"user\":\"\"}".to_vec()), change(JoinOrLeave::Leave));
        for bad in [&b"\xffhub\x04"[..], b"\xffhub\x04j", b"\xffhub\x04x{}", b"\xffhub\x04j{} "] {
            let is_bad = bad != b"\xffhub\x04j{} ";
            assert_eq!(open(bad.to_vec()).is_err(), is_bad, "{bad:?}");
        }
        let plain = Opened { body: Body::plain(b"x".to_vec()), position: Position::default() };
        assert_eq!(open(b"x".to_vec()), Ok(Letter::Publication(plain)));
        // As a node of before sees it.
        assert_eq!(decode(b"\xffhub\x04j{}".to_vec()), Err(BadEnvelope));
    }

    #[test]
    fn what_only_looks_like_ours_is_refused() {
        let whole = b"\xffhub\x02\0\0\0\0\0\0\0\x01abcdefgh\0\0\0\0\0\0\0\0\0\0\0\0";
        assert!(decode(whole.to_vec()).is_ok());
        let cases: [&[u8]; 13] = [
            b"\xff",
            b"\xffhub",
            b"\xffhub\x00",
            b"\xffhub\x03\0\0\0\0\0\0\0\0",
            b"\xffhub\x01\0\0\0\x09x",
            b"\xffhub\x01\0\0\0\x01}\0\0\0\0",
            b"\xffhub\x01\xff\xff\xff\xff\0\0\0\0",
            b"\xffhub\x02\0\0\0\0\0\0\0\0abcdefgh\0\0\0\0\0\0\0\0\0\0\0\0",
            b"\xffhub\x02\xff\xff\xff\xff\xff\xff\xff\xffabcdefgh\0\0\0\0\0\0\0\0\0\0\0\0",
            b"\xffhub\x02\0\0\0\0\0\0\0\x01abcdefg1\0\0\0\0\0\0\0\0\0\0\0\0",
            b"\xffhub\x02\0\0\0\0\0\0\0\x01abcdefgh\0\0\0\0\0\0\0\0\0\0\0\x02-1",
            b"\xffhub\x02\0\0\0\0\0\0\0\x01abcdefgh\0\0\0\0\0\0\0\0\0\0\0\x1599999999999999999999",
            b"\xfe\xff",
        ];
        for bytes in cases {
            assert_eq!(decode(bytes.to_vec()).is_err(), bytes[0] == 0xff, "{bytes:?}");
        }
        for length in 1..whole.len() {
            assert_eq!(decode(whole[..length].to_vec()), Err(BadEnvelope), "cut at {length}");
        }
    }

    proptest! {
        #[test]
        fn bodies_round_trip(body in any_body(), offset in 1u64..=OFFSET_MAX, epoch in "[a-zA-Z]{8}") {
            let position = Position { offset, epoch: Epoch::asked(&epoch) };
            let opened = Opened { body: body.clone(), position };
            prop_assert_eq!(decode(encode_positioned(&opened)), Ok(opened));
            let body = Body { version: 0, ..body };
            let opened = Opened { body: body.clone(), position: Position::default() };
            prop_assert_eq!(decode(encode(body)), Ok(opened));
        }

        #[test]
        fn any_bytes_are_decided(start in 0usize..6, rest in any::<Vec<u8>>()) {
            let bytes = [&b"\xffhub\x02"[..start.min(5)], &rest[..]].concat();
            // Whatever is opened holds no more than came in.
            if let Ok(opened) = decode(bytes.clone()) {
                prop_assert!(opened.body.bytes() <= bytes.len());
            }
        }

        #[test]
        fn a_flipped_byte_never_panics(body in any_body(), at in any::<prop::sample::Index>(), with in 1u8..) {
            let position = Position { offset: 7, epoch: Epoch::asked("abcdefgh") };
            let mut bytes = encode_positioned(&Opened { body, position });
            let at = at.index(bytes.len());
            bytes[at] ^= with;
            let _ = decode(bytes);
        }
    }
}
