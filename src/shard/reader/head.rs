//! Heads of client frames: what RFC 6455 5.2 lets a client send, judged byte by byte in wire order.
//!
//! Owns nothing; called by `reader`.
//!
//! **Invariant:** a head is refused at the byte that decides it, before its mask and payload are there.

use super::violation::{Breach, Violation};
use super::{Limits, Message, MessageKind};
use crate::frame::{CONTROL_BYTES_MAX, Opcode};

/// Two bytes, a 64-bit length and the mask.
pub(super) const CLIENT_HEAD_BYTES_MAX: usize = 14;
const FIN_BIT: u8 = 0x80;
const RESERVED_BITS: u8 = 0x70;
const MASK_BIT: u8 = 0x80;
const FIN_TEXT: u8 = FIN_BIT | Opcode::Text as u8;
const FIN_BINARY: u8 = FIN_BIT | Opcode::Binary as u8;

/// A data frame with FIN and a short length that lies wholly in the chunk.
pub(super) struct WholeMessage {
    pub(super) kind: MessageKind,
    pub(super) mask: [u8; 4],
    pub(super) payload_len: usize,
}

impl WholeMessage {
    pub(super) const HEAD_BYTES: usize = 6;

    #[inline]
    pub(super) fn find(bytes: &[u8], limits: &Limits) -> Option<Self> {
        let (&[first, second, mask @ ..], rest) =
            bytes.split_first_chunk::<{ Self::HEAD_BYTES }>()?;
        let kind = match first {
            FIN_TEXT => MessageKind::Text,
            FIN_BINARY => MessageKind::Binary,
            _ => return None,
        };
        let payload_len = usize::from(second ^ MASK_BIT);
        // Without the mask bit this is 128 or more; 126 and 127 stand for longer encodings.
        let is_plain = payload_len < 126
            && payload_len <= rest.len()
            && payload_len <= limits.message_bytes_max;
        is_plain.then_some(Self { kind, mask, payload_len })
    }
}

#[derive(Debug)]
pub(super) struct Frame {
    pub(super) opcode: Opcode,
    pub(super) is_fin: bool,
    pub(super) mask: [u8; 4],
    pub(super) payload_len: usize,
    pub(super) n_received: usize,
}

impl Frame {
    pub(super) fn is_whole(&self) -> bool {
        self.n_received == self.payload_len
    }

    /// The mask turned to where the payload goes on.
    pub(super) fn mask_now(&self) -> [u8; 4] {
        let mut mask = self.mask;
        mask.rotate_left(self.n_received % 4);
        mask
    }
}

pub(super) struct Opened {
    pub(super) frame: Frame,
    /// Bytes of the chunk that belong to the head.
    pub(super) used: usize,
}

/// The head at the start of `bytes`, or `None` if they end within it. `message` is the fragmented message it stands in.
pub(super) fn parse_head(
    bytes: &[u8],
    message: Option<&Message>,
    limits: &Limits,
) -> Result<Option<Opened>, Violation> {
    let Some(&first) = bytes.first() else {
        return Ok(None);
    };
    let opcode = check_first_byte(first, message, limits)?;
    let Some(&second) = bytes.get(1) else {
        return Ok(None);
    };
    if second & MASK_BIT == 0 {
        return Err(Breach::NotMasked.into());
    }
    let short_len = second & !MASK_BIT;
    if opcode.is_control() && usize::from(short_len) > CONTROL_BYTES_MAX {
        return Err(Breach::ControlTooLong.into());
    }
    let mask_idx = match short_len {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    let Some(length) = bytes.get(2..mask_idx) else {
        return Ok(None);
    };
    let payload_len = match short_len {
        126 | 127 => parse_long_len(length)?,
        _ => u64::from(short_len),
    };
    // Before the mask and any payload: what was declared is enough to refuse it.
    let n_assembled = message.map_or(0, |message| message.bytes.len());
    let room = limits.message_bytes_max.saturating_sub(n_assembled);
    if !opcode.is_control() && payload_len > room as u64 {
        return Err(Violation::TooBig);
    }
    let Some(&mask) = bytes[mask_idx..].first_chunk() else {
        return Ok(None);
    };
    let frame = Frame {
        opcode,
        is_fin: first & FIN_BIT != 0,
        mask,
        payload_len: payload_len as usize,
        n_received: 0,
    };
    Ok(Some(Opened { frame, used: mask_idx + mask.len() }))
}

fn check_first_byte(
    first: u8,
    message: Option<&Message>,
    limits: &Limits,
) -> Result<Opcode, Violation> {
    if first & RESERVED_BITS != 0 {
        return Err(Breach::ReservedBits.into());
    }
    let opcode = Opcode::from_first_byte(first).ok_or(Breach::UnknownOpcode)?;
    match (opcode, message) {
        (Opcode::Close | Opcode::Ping | Opcode::Pong, _) if first & FIN_BIT == 0 => {
            Err(Breach::ControlFragmented.into())
        }
        (Opcode::Continuation, None) => Err(Breach::StrayContinuation.into()),
        (Opcode::Continuation, Some(message)) if message.n_fragments >= limits.fragments_max => {
            Err(Violation::TooManyFragments)
        }
        (Opcode::Text | Opcode::Binary, Some(_)) => Err(Breach::MessageInsideMessage.into()),
        _ => Ok(opcode),
    }
}

/// A 16 or 64-bit length. One that a shorter form could hold is refused (RFC 6455 5.2: "the minimal number of bytes
/// MUST be used").
fn parse_long_len(length: &[u8]) -> Result<u64, Breach> {
    let value = length.iter().fold(0, |value, &byte| value << 8 | u64::from(byte));
    let shorter_max = if length.len() == 2 { 125 } else { 65_535 };
    if value > i64::MAX as u64 {
        Err(Breach::LengthTopBit)
    } else if value <= shorter_max {
        Err(Breach::LengthNotMinimal)
    } else {
        Ok(value)
    }
}
