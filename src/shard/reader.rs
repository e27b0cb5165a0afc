//! Reads client frames out of whatever the socket delivered.
//!
//! Owns, per session, the beginning of a message that has not arrived whole: nothing at all between messages. The
//! bytes themselves lie in the shard's read buffer, which every session of the shard uses in turn. Runs on the shard
//! thread; called by the session's read.
//!
//! **Invariant:** what is handed out does not depend on how the bytes were cut into chunks: every check is made in
//! wire order, as soon as the byte that decides it is there.
//! **Invariant:** memory follows the bytes that arrived (at most twice as many), never a declared length.
//! **Invariant:** after a close, a `Flow::Stop` or a violation nothing more is parsed or handed out, ever.
//!
//! fastwebsockets' own reader is not used: it keeps 8 KiB per connection, loses bytes when its future is dropped,
//! accepts unmasked frames and has no bound on the sum of fragments.
//!
//! Deliberately absent: answers (pong, close), timeouts, rates, compression (RSV1 is a violation).

mod head;
#[cfg(test)]
mod tests;
mod violation;

pub use violation::{Breach, Violation};

use crate::frame::{self, Opcode};
use head::{CLIENT_HEAD_BYTES_MAX, Frame, Opened, WholeMessage, parse_head};

/// A message in more fragments is refused even if it is small: each costs a parse that its bytes do not pay for.
/// Enough for 64 KiB in pieces of 64 bytes, or a connect command byte by byte.
pub const FRAGMENTS_MAX: u32 = 1024;

/// One per session.
#[derive(Debug, Default)]
pub struct Reader {
    partial: Option<Box<Partial>>,
}

const _: () = assert!(size_of::<Reader>() == 8, "idle sessions pay for this");

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest payload of one message, whole or the sum of its fragments; this size itself is allowed.
    pub message_bytes_max: usize,
    /// The most frames one message may come in; empty ones count.
    pub fragments_max: u32,
}

/// What a client sent, unmasked and checked. Valid until the sink returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// `bytes` is UTF-8 if `kind` is `Text`; may be empty.
    Message {
        kind: MessageKind,
        bytes: &'a [u8],
    },
    Ping(&'a [u8]),
    Pong(&'a [u8]),
    /// The last input of a connection. No code: an empty close frame.
    Close {
        code: Option<u16>,
        reason: &'a str,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    Text,
    Binary,
}

/// Whether the session goes on. Stop is for good: the rest of the chunk is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Continue,
    Stop,
}

impl Reader {
    /// Hands what has arrived whole to `sink`, in order; keeps the rest. `chunk` is overwritten. The caller closes the
    /// connection on an error; after a `Stop`, its own or a close frame's, every later call returns `Stop` at once.
    #[inline]
    pub fn feed(
        &mut self,
        chunk: &mut [u8],
        limits: &Limits,
        sink: &mut impl FnMut(Input<'_>) -> Flow,
    ) -> Result<Flow, Violation> {
        if self.has_ended() {
            return Ok(Flow::Stop);
        }
        let outcome = self.read(chunk, limits, sink);
        if outcome != Ok(Flow::Continue) {
            self.partial = Some(Box::new(Partial::ended()));
        }
        outcome
    }

    fn read(
        &mut self,
        chunk: &mut [u8],
        limits: &Limits,
        sink: &mut impl FnMut(Input<'_>) -> Flow,
    ) -> Result<Flow, Violation> {
        let mut rest = chunk;
        while !rest.is_empty() {
            // A whole small message between messages is nearly all that clients send.
            let step = if self.partial.is_none()
                && let Some(frame) = WholeMessage::find(rest, limits)
            {
                let used = WholeMessage::HEAD_BYTES + frame.payload_len;
                let payload = &mut rest[WholeMessage::HEAD_BYTES..used];
                frame::unmask(payload, frame.mask);
                let flow = hand_out_message(frame.kind, payload, sink)?;
                Step { used, flow }
            } else {
                self.step(rest, limits, sink)?
            };
            if step.flow == Flow::Stop {
                return Ok(Flow::Stop);
            }
            rest = &mut rest[step.used..];
        }
        Ok(Flow::Continue)
    }

    /// Any frame, or as much of it as there is.
    fn step(
        &mut self,
        rest: &mut [u8],
        limits: &Limits,
        sink: &mut impl FnMut(Input<'_>) -> Flow,
    ) -> Result<Step, Violation> {
        let Some(opened) = self.open_frame(rest, limits)? else {
            return Ok(Step { used: rest.len(), flow: Flow::Continue });
        };
        let mut frame = opened.frame;
        let n_taken = (frame.payload_len - frame.n_received).min(rest.len() - opened.used);
        let used = opened.used + n_taken;
        let payload = &mut rest[opened.used..used];
        frame::unmask(payload, frame.mask_now());
        let is_first = frame.n_received == 0;
        frame.n_received += n_taken;

        let flow = if frame.opcode.is_control() {
            self.on_control(&frame, payload, sink)?
        } else if is_first && frame.is_whole() && frame.is_fin && self.message().is_none() {
            hand_out_message(frame.opcode.into(), payload, sink)?
        } else {
            self.on_fragment(&frame, payload, sink)?
        };
        if !frame.is_whole() {
            self.partial.get_or_insert_default().frame = Some(frame);
        }
        self.partial.take_if(|partial| partial.is_idle());
        Ok(Step { used, flow })
    }

    /// The frame that `rest` belongs to, its payload starting at `used`; `None` if `rest` ends within the head.
    fn open_frame(&mut self, rest: &[u8], limits: &Limits) -> Result<Option<Opened>, Violation> {
        let Some(partial) = self.partial.as_deref_mut() else {
            let opened = parse_head(rest, None, limits)?;
            if opened.is_none() {
                self.partial.get_or_insert_default().keep_head(rest);
            }
            return Ok(opened);
        };
        if let Some(frame) = partial.frame.take() {
            return Ok(Some(Opened { frame, used: 0 }));
        }
        let n_kept = partial.head_len;
        partial.keep_head(rest);
        let head = &partial.head[..partial.head_len];
        let opened = parse_head(head, partial.message.as_ref(), limits)?;
        Ok(opened.map(|opened| {
            partial.head_len = 0;
            Opened { used: opened.used - n_kept, ..opened }
        }))
    }

    fn on_control(
        &mut self,
        frame: &Frame,
        payload: &[u8],
        sink: &mut impl FnMut(Input<'_>) -> Flow,
    ) -> Result<Flow, Violation> {
        if frame.payload_len == payload.len() {
            return hand_out_control(frame.opcode, payload, sink);
        }
        let partial = self.partial.get_or_insert_default();
        partial.control.extend_from_slice(payload);
        if !frame.is_whole() {
            return Ok(Flow::Continue);
        }
        let control = std::mem::take(&mut partial.control);
        hand_out_control(frame.opcode, &control, sink)
    }

    /// Bytes of a message that is fragmented or cut.
    fn on_fragment(
        &mut self,
        frame: &Frame,
        payload: &[u8],
        sink: &mut impl FnMut(Input<'_>) -> Flow,
    ) -> Result<Flow, Violation> {
        let partial = self.partial.get_or_insert_default();
        let message = partial.message.get_or_insert_with(|| Message::new(frame.opcode.into()));
        message.append(payload)?;
        if !frame.is_whole() {
            return Ok(Flow::Continue);
        }
        message.n_fragments += 1;
        if !frame.is_fin {
            return Ok(Flow::Continue);
        }
        let message = partial.message.take().expect("invariant: it was appended to above");
        message.hand_out(sink)
    }

    fn message(&self) -> Option<&Message> {
        self.partial.as_deref()?.message.as_ref()
    }

    fn has_ended(&self) -> bool {
        matches!(&self.partial, Some(partial) if partial.has_ended)
    }
}

/// What one turn of the read loop did.
struct Step {
    used: usize,
    flow: Flow,
}

/// The beginning of what has not arrived whole. Boxed, so that an idle session pays eight bytes.
#[derive(Debug, Default)]
struct Partial {
    /// The first `head_len` bytes of a head.
    head: [u8; CLIENT_HEAD_BYTES_MAX],
    head_len: usize,
    /// Its head is whole, its payload is not.
    frame: Option<Frame>,
    message: Option<Message>,
    /// A control frame may come between two fragments, so it can't share their buffer.
    control: Vec<u8>,
    has_ended: bool,
}

impl Partial {
    fn ended() -> Self {
        Self { has_ended: true, ..Self::default() }
    }

    fn is_idle(&self) -> bool {
        self.head_len == 0 && self.frame.is_none() && self.message.is_none()
    }

    /// Takes as many bytes as the longest head may still need; the payload's first among them are read again.
    fn keep_head(&mut self, bytes: &[u8]) {
        let n_taken = bytes.len().min(CLIENT_HEAD_BYTES_MAX - self.head_len);
        self.head[self.head_len..][..n_taken].copy_from_slice(&bytes[..n_taken]);
        self.head_len += n_taken;
    }
}

/// A message in the making.
#[derive(Debug)]
struct Message {
    kind: MessageKind,
    /// Grows by doubling what it holds: `extend_from_slice` never takes more.
    bytes: Vec<u8>,
    /// So many bytes from the start are known to be UTF-8; only moves for text.
    n_checked: usize,
    n_fragments: u32,
}

impl Message {
    fn new(kind: MessageKind) -> Self {
        Self { kind, bytes: Vec::new(), n_checked: 0, n_fragments: 0 }
    }

    /// Text is checked as it comes, so a bad byte ends the connection before the rest of the message is paid for. A
    /// character cut at the end is looked at again with the next bytes.
    fn append(&mut self, payload: &[u8]) -> Result<(), Violation> {
        self.bytes.extend_from_slice(payload);
        if self.kind == MessageKind::Binary {
            return Ok(());
        }
        match std::str::from_utf8(&self.bytes[self.n_checked..]) {
            Ok(_) => self.n_checked = self.bytes.len(),
            Err(error) if error.error_len().is_none() => self.n_checked += error.valid_up_to(),
            Err(_) => return Err(Violation::TextNotUtf8),
        }
        Ok(())
    }

    fn hand_out(&self, sink: &mut impl FnMut(Input<'_>) -> Flow) -> Result<Flow, Violation> {
        if self.kind == MessageKind::Text && self.n_checked != self.bytes.len() {
            return Err(Violation::TextNotUtf8);
        }
        Ok(sink(Input::Message { kind: self.kind, bytes: &self.bytes }))
    }
}

impl From<Opcode> for MessageKind {
    /// Only for the first frame of a message: a continuation has no kind of its own.
    fn from(opcode: Opcode) -> Self {
        if opcode == Opcode::Text { Self::Text } else { Self::Binary }
    }
}

#[inline]
fn hand_out_message(
    kind: MessageKind,
    bytes: &[u8],
    sink: &mut impl FnMut(Input<'_>) -> Flow,
) -> Result<Flow, Violation> {
    if kind == MessageKind::Text && !frame::is_utf8(bytes) {
        return Err(Violation::TextNotUtf8);
    }
    Ok(sink(Input::Message { kind, bytes }))
}

fn hand_out_control(
    opcode: Opcode,
    payload: &[u8],
    sink: &mut impl FnMut(Input<'_>) -> Flow,
) -> Result<Flow, Violation> {
    match opcode {
        Opcode::Ping => Ok(sink(Input::Ping(payload))),
        Opcode::Pong => Ok(sink(Input::Pong(payload))),
        _ => {
            sink(parse_close(payload)?);
            Ok(Flow::Stop)
        }
    }
}

fn parse_close(payload: &[u8]) -> Result<Input<'_>, Violation> {
    let Some((&code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() {
            Ok(Input::Close { code: None, reason: "" })
        } else {
            Err(Breach::CloseBodyOneByte.into())
        };
    };
    let code = u16::from_be_bytes(code);
    if !frame::is_close_code_allowed(code) {
        return Err(Breach::CloseCodeNotAllowed.into());
    }
    let reason = std::str::from_utf8(reason).map_err(|_| Violation::CloseReasonNotUtf8)?;
    Ok(Input::Close { code: Some(code), reason })
}
