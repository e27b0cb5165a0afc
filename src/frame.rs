//! Server frames: the heads hubbub puts in front of what it sends, and the words both directions share.
//!
//! Owns nothing: pure functions over byte buffers, for any thread. What they write goes to clients as it is, so a
//! frame that is encoded once can be sent to every session.
//!
//! This is the one file that knows fastwebsockets' frame vocabulary besides `shard/socket`: `reader` takes unmasking,
//! UTF-8 and close codes from here.
//!
//! **Invariant:** a server frame is never masked, never fragmented, has no reserved bit and the shortest length
//! encoding (RFC 6455 5.1, 5.2).
//! **Invariant:** frames in a buffer are contiguous, so `frame_len` can walk a log of them.
//!
//! Deliberately absent: client frames (`shard/reader`), compression (none is ever negotiated).

use fastwebsockets::{CloseCode, Frame, Payload};

/// The longest head of a server frame: two bytes and a 64-bit length.
pub const HEAD_BYTES_MAX: usize = 10;

/// RFC 6455 5.5: a control frame's payload, that of a close included, has at most so many bytes.
pub const CONTROL_BYTES_MAX: usize = 125;

pub const CLOSE_REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX - 2;
const FIN_BIT: u8 = 0x80;
/// Most replies are shorter than 126 bytes: a reserved head of two bytes is then already right.
const RESERVED_HEAD_BYTES: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xA,
}

impl Opcode {
    /// The opcode of a frame's first byte; `None` for the eleven values that RFC 6455 reserves.
    #[inline]
    pub fn from_first_byte(first: u8) -> Option<Self> {
        Some(match first & 0x0F {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return None,
        })
    }

    #[inline]
    pub fn is_control(self) -> bool {
        self as u8 & 0x08 != 0
    }
}

/// Where a frame of unknown length began; `end_text_frame` takes it back.
#[derive(Debug)]
#[must_use = "the frame has no valid head before `end_text_frame`"]
pub struct FrameStart {
    head_idx: usize,
}

/// Appends the head of a whole frame whose payload has `payload_len` bytes.
#[inline]
pub fn put_head(out: &mut Vec<u8>, opcode: Opcode, payload_len: usize) {
    let head = Head::new(opcode, payload_len);
    out.extend_from_slice(head.as_bytes());
}

#[inline]
pub fn put_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    debug_assert!(!opcode.is_control() || payload.len() <= CONTROL_BYTES_MAX);
    out.reserve(HEAD_BYTES_MAX + payload.len());
    put_head(out, opcode, payload.len());
    out.extend_from_slice(payload);
}

/// Appends a close frame; a reason longer than a control frame holds is cut at a character boundary, because a client
/// answers a reason that is not UTF-8 with 1007 and never sees the code.
pub fn put_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    debug_assert!(is_close_code_allowed(code), "close code {code} must not be sent");
    let reason = &reason[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)];
    put_head(out, Opcode::Close, 2 + reason.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

/// Opens a text frame whose payload the caller appends straight to `out`.
pub fn begin_text_frame(out: &mut Vec<u8>) -> FrameStart {
    let head_idx = out.len();
    out.extend_from_slice(&[0; RESERVED_HEAD_BYTES]);
    FrameStart { head_idx }
}

/// Writes the head of the frame that `start` opened. A payload of 126 bytes or more moves up by 2 or 8 bytes: one
/// memmove, where a buffer of its own would cost the same copy and an allocation. Nothing appended means no frame:
/// an empty text message breaks clients that parse every one.
pub fn end_text_frame(out: &mut Vec<u8>, start: FrameStart) {
    let payload_idx = start.head_idx + RESERVED_HEAD_BYTES;
    if out.len() == payload_idx {
        out.truncate(start.head_idx);
        return;
    }
    let head = Head::new(Opcode::Text, out.len() - payload_idx);
    let head_bytes = head.as_bytes().iter().copied();
    out.splice(start.head_idx..payload_idx, head_bytes);
}

/// The length, head and payload, of the server frame that starts at `bytes[0]`; `None` if its head is cut off. The
/// payload need not be there.
#[inline]
pub fn frame_len(bytes: &[u8]) -> Option<usize> {
    let length = *bytes.get(1)?;
    debug_assert!(length < 0x80, "server frames are not masked");
    let (head_len, payload_len) = match length & 0x7F {
        126 => {
            let (length, _) = bytes[2..].split_first_chunk()?;
            (4, u64::from(u16::from_be_bytes(*length)))
        }
        127 => {
            let (length, _) = bytes[2..].split_first_chunk()?;
            (10, u64::from_be_bytes(*length))
        }
        short => (2, u64::from(short)),
    };
    Some(usize::try_from(payload_len).map_or(usize::MAX, |len| len.saturating_add(head_len)))
}

/// Masks or unmasks in place.
#[inline]
pub fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    fastwebsockets::unmask(payload, mask);
}

#[inline]
pub fn is_utf8(bytes: &[u8]) -> bool {
    // The crate's check is SIMD from 64 bytes on; std's is scalar outside ASCII.
    Frame::text(Payload::Borrowed(bytes)).is_utf8()
}

/// Whether a close frame may carry `code`. fastwebsockets refuses 1014 (bad gateway), which IANA has assigned since
/// the RFC; a client behind a gateway may pass it on, so it is allowed.
pub fn is_close_code_allowed(code: u16) -> bool {
    code == 1014 || CloseCode::from(code).is_allowed()
}

struct Head {
    bytes: [u8; HEAD_BYTES_MAX],
    len: usize,
}

impl Head {
    #[inline]
    fn new(opcode: Opcode, payload_len: usize) -> Self {
        let mut bytes = [0; HEAD_BYTES_MAX];
        bytes[0] = FIN_BIT | opcode as u8;
        let len = if payload_len < 126 {
            bytes[1] = payload_len as u8;
            2
        } else if let Ok(length) = u16::try_from(payload_len) {
            bytes[1] = 126;
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            4
        } else {
            bytes[1] = 127;
            bytes[2..].copy_from_slice(&(payload_len as u64).to_be_bytes());
            10
        };
        Self { bytes, len }
    }

    #[inline]
    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTHS: [usize; 10] = [0, 1, 2, 125, 126, 127, 65_534, 65_535, 65_536, 70_001];

    /// `put_frame`, the text builder and `frame_len` agree with fastwebsockets for this payload.
    fn check(opcode: Opcode, payload: &[u8]) {
        let theirs = fastwebsockets::OpCode::try_from(opcode as u8).unwrap();
        let mut frame = Frame::new(true, theirs, None, Payload::Borrowed(payload));
        let mut expected = Vec::new();
        let expected = frame.write(&mut expected).to_vec();

        let mut out = b"before".to_vec();
        put_frame(&mut out, opcode, payload);
        assert_eq!(out[6..], expected);

        assert_eq!(frame_len(&expected), Some(expected.len()));
        let head_len = expected.len() - payload.len();
        assert_eq!(frame_len(&expected[..head_len]), Some(expected.len()));
        for cut in 0..head_len {
            assert_eq!(frame_len(&expected[..cut]), None, "head cut at {cut}");
        }

        if opcode == Opcode::Text && !payload.is_empty() {
            let mut built = b"before".to_vec();
            let start = begin_text_frame(&mut built);
            built.extend_from_slice(payload);
            end_text_frame(&mut built, start);
            assert_eq!(built, out);
        }
    }

    #[test]
    fn frames_match_fastwebsockets_at_every_length_boundary() {
        for len in LENGTHS {
            let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
            check(Opcode::Text, &payload);
            check(Opcode::Binary, &payload);
            check(Opcode::Continuation, &payload);
            if len <= CONTROL_BYTES_MAX {
                check(Opcode::Ping, &payload);
                check(Opcode::Pong, &payload);
                check(Opcode::Close, &payload);
            }
        }
    }

    #[test]
    fn a_log_of_frames_can_be_walked() {
        let mut log = Vec::new();
        let mut expected = Vec::new();
        for len in LENGTHS {
            let start = log.len();
            put_frame(&mut log, Opcode::Binary, &vec![7; len]);
            expected.push(log.len() - start);
        }
        let mut walked = Vec::new();
        let mut rest = &log[..];
        while let Some(len) = frame_len(rest) {
            walked.push(len);
            rest = &rest[len..];
        }
        assert_eq!(walked, expected);
        assert!(rest.is_empty());
    }

    #[test]
    fn text_frames_follow_each_other_and_an_empty_one_leaves_no_trace() {
        let mut out = Vec::new();
        for payload in ["{}", "", &"x".repeat(300), "", "last"] {
            let start = begin_text_frame(&mut out);
            out.extend_from_slice(payload.as_bytes());
            end_text_frame(&mut out, start);
        }
        let mut expected = Vec::new();
        put_frame(&mut expected, Opcode::Text, b"{}");
        put_frame(&mut expected, Opcode::Text, &[b'x'; 300]);
        put_frame(&mut expected, Opcode::Text, b"last");
        assert_eq!(out, expected);
    }

    #[test]
    fn a_long_close_reason_is_cut_between_characters() {
        for (reason, kept) in [
            ("shutdown".to_owned(), 8),
            (String::new(), 0),
            ("a".repeat(123), 123),
            ("a".repeat(124), 123),
            ("ä".repeat(100), 122),
            (format!("{}€", "a".repeat(121)), 121),
            ("😀".repeat(40), 120),
        ] {
            let mut out = Vec::new();
            put_close(&mut out, 3001, &reason);
            assert_eq!(out[..4], [0x88, 2 + kept as u8, 0x0B, 0xB9]);
            assert_eq!(out[4..], reason.as_bytes()[..kept]);
        }
    }

    #[test]
    fn opcodes_survive_the_first_byte() {
        for first in 0..=u8::MAX {
            match (Opcode::from_first_byte(first), fastwebsockets::OpCode::try_from(first & 0x0F)) {
                (Some(ours), Ok(theirs)) => {
                    assert_eq!(ours as u8, theirs as u8);
                    assert_eq!(ours.is_control(), theirs as u8 >= 8);
                }
                (None, Err(_)) => {}
                (ours, theirs) => panic!("{first:#x}: {ours:?} but {theirs:?}"),
            }
        }
    }

    #[test]
    fn close_codes_are_those_of_the_rfc_and_iana() {
        let allowed =
            |code| matches!(code, 1000..=1003 | 1007..=1014) || matches!(code, 3000..=4999);
        for code in 0..=u16::MAX {
            assert_eq!(is_close_code_allowed(code), allowed(code), "{code}");
        }
    }
}
