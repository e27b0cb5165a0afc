//! hubbub's own publications on a Redis channel: a binary header before the payload.
//!
//! `FF` (never UTF-8) `"hub"`, version 1, then two lengths (u32, big endian) and their bytes:
//! encoded client info and encoded tags; 0 is absent. The rest is the payload. A publication
//! without info and tags travels as its plain payload, so that any Redis client can read it.

use crate::publication::Body;

const MAGIC: &[u8; 5] = b"\xffhub\x01";

/// A payload that claims to be hubbub's own and isn't whole, or is of a later version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("bad envelope")]
pub struct BadEnvelope;

/// What goes to Redis for a body.
pub fn encode(body: Body) -> Vec<u8> {
    if body.info.is_none() && body.tags.is_none() && body.payload.first() != Some(&0xff) {
        return body.payload;
    }
    let mut out = Vec::with_capacity(MAGIC.len() + 8 + body.bytes());
    out.extend_from_slice(MAGIC);
    for part in [&body.info, &body.tags] {
        let part = part.as_deref().unwrap_or_default();
        out.extend_from_slice(&(part.len() as u32).to_be_bytes());
        out.extend_from_slice(part);
    }
    out.extend_from_slice(&body.payload);
    out
}

/// What came from Redis.
pub fn decode(bytes: Vec<u8>) -> Result<Body, BadEnvelope> {
    if bytes.first() != Some(&0xff) {
        return Ok(Body::plain(bytes));
    }
    let mut rest = bytes.strip_prefix(MAGIC).ok_or(BadEnvelope)?;
    let mut part = || -> Result<Option<Box<[u8]>>, BadEnvelope> {
        let (length, after) = rest.split_first_chunk::<4>().ok_or(BadEnvelope)?;
        let (part, after) =
            after.split_at_checked(u32::from_be_bytes(*length) as usize).ok_or(BadEnvelope)?;
        rest = after;
        Ok((!part.is_empty()).then(|| part.into()))
    };
    let (info, tags) = (part()?, part()?);
    // They are put into JSON pushes as they are: whoever can PUBLISH is trusted, but not to
    // be free of mistakes.
    if [&info, &tags]
        .into_iter()
        .flatten()
        .any(|json| serde_json::from_slice::<&serde_json::value::RawValue>(json).is_err())
    {
        return Err(BadEnvelope);
    }
    Ok(Body { payload: rest.to_vec(), info, tags })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        for payload in [&b""[..], b"{}", b"\xff", b"\xffhub\x01"] {
            for info in [None, Some(b"{\"user\":\"\"}".as_slice())] {
                let body =
                    Body { payload: payload.to_vec(), info: info.map(Into::into), tags: None };
                assert_eq!(decode(encode(body.clone())), Ok(body));
            }
        }
        assert_eq!(encode(Body::plain(b"x".to_vec())), b"x");
    }

    #[test]
    fn what_only_looks_like_ours_is_refused() {
        for bytes in [
            &b"\xff"[..],
            b"\xffhub\x02",
            b"\xffhub\x01\0\0\0\x09x",
            b"\xffhub\x01\0\0\0\x01}\0\0\0\0",
            b"\xfe\xff",
        ] {
            assert_eq!(decode(bytes.to_vec()).is_err(), bytes[0] == 0xff, "{bytes:?}");
        }
    }
}
