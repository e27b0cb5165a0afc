//! The reader fuzzed, against a plain reading of RFC 6455 and against fastwebsockets.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use fastwebsockets::{FragmentCollector, OpCode, Role, WebSocket};

use super::*;
use crate::fuzz::{self, Rng, Target};

/// An input's first bytes choose the limits, the cuts and where the sink stops; the rest is the wire.
const CHOICES: usize = 3;
const LIMITS_TRIED: [Limits; 5] = [
    LIMITS,
    Limits { message_bytes_max: 20, fragments_max: 3 },
    Limits { message_bytes_max: 70_000, fragments_max: FRAGMENTS_MAX },
    Limits { message_bytes_max: 125, fragments_max: 1 },
    Limits { message_bytes_max: 0, fragments_max: 2 },
];

#[test]
fn the_reader_reads_as_the_rfc_says() {
    fuzz::run(&Target { name: "frames", make, make_piece, pieces, check: check_input });
}

fn make(rng: &mut Rng) -> Vec<u8> {
    let mut input = rng.bytes(CHOICES);
    let mut is_open = false;
    for _ in 0..rng.below(10) {
        input.extend(make_frame(rng, &mut is_open));
    }
    if rng.one_in(4) {
        input.truncate(rng.within(CHOICES..=input.len()));
    }
    input
}

fn make_piece(rng: &mut Rng) -> Vec<u8> {
    let mut is_open = rng.one_in(2);
    make_frame(rng, &mut is_open)
}

/// Mostly the right frame for the place; sometimes with anything wrong.
fn make_frame(rng: &mut Rng, is_open: &mut bool) -> Vec<u8> {
    let (opcode, fin) = match rng.below(24) {
        0 => (rng.below(16) as u8, rng.pick(&[0, FIN])),
        1 => (CLOSE, FIN),
        2..6 => (rng.pick(&[PING, PONG]), FIN),
        _ => {
            let fin = if rng.one_in(3) { 0 } else { FIN };
            let opcode = if *is_open { CONTINUATION } else { rng.pick(&[TEXT, TEXT, BINARY]) };
            *is_open = fin == 0;
            (opcode, fin)
        }
    };
    let reserved = if rng.one_in(60) { rng.pick(&[0x10, 0x20, 0x40]) } else { 0 };
    let payload = if opcode == CLOSE && !rng.one_in(4) {
        let code = rng.pick(&[0, 999, 1000, 1003, 1004, 1006, 1007, 1014, 1015, 2999, 3000, 5000]);
        [&u16::to_be_bytes(code)[..], &make_payload(rng)].concat()
    } else {
        make_payload(rng)
    };
    // The zero mask leaves the payload in sight of mutations.
    let mask = if rng.one_in(2) { [0; 4] } else { rng.pick(&[MASK, [1, 2, 3, 4], [0xFF; 4]]) };
    let mut frame = client_frame(fin | reserved | opcode, mask, &payload);
    match rng.below(60) {
        0 => frame[1] &= !MASK_BIT,
        1 => {
            let len = (payload.len() as u64).to_be_bytes();
            let long = [&[frame[0], MASK_BIT | 127], &len[..], &mask].concat();
            frame.splice(..frame.len() - payload.len(), long);
        }
        2 => {
            let len = (payload.len() as u16).to_be_bytes();
            let long = [&[frame[0], MASK_BIT | 126], &len[..], &mask].concat();
            frame.splice(..frame.len() - payload.len(), long);
        }
        _ => {}
    }
    frame
}

fn make_payload(rng: &mut Rng) -> Vec<u8> {
    let len = match rng.below(12) {
        0 => 0,
        1 => rng.within(120..=130),
        2 => rng.within(290..=310),
        3 => rng.within(19..=21),
        _ => rng.below(12),
    };
    if rng.one_in(4) {
        return rng.bytes(len);
    }
    const CHARS: [&str; 8] = ["a", "é", "–", "😀", "\u{7FF}", "\u{FFFF}", "\0", "\u{10FFFF}"];
    let mut text = String::new();
    while text.len() < len {
        text.push_str(if rng.one_in(2) { "a" } else { rng.pick(&CHARS) });
    }
    let mut bytes = text.into_bytes();
    if !rng.one_in(3) {
        bytes.truncate(text_end(&bytes, len));
    } else {
        bytes.truncate(len);
    }
    bytes
}

/// The last character boundary up to `len`.
fn text_end(bytes: &[u8], len: usize) -> usize {
    (0..=len).rev().find(|&at| std::str::from_utf8(&bytes[..at]).is_ok()).unwrap_or(0)
}

/// Where frames begin, as far as lengths can be believed.
fn pieces(input: &[u8]) -> Vec<usize> {
    let mut starts = Vec::new();
    let mut at = CHOICES;
    while at < input.len() {
        starts.push(at);
        let short = input.get(at + 1).map_or(0, |second| usize::from(second & 0x7F));
        let len_at = |n: usize| {
            let bytes = input.get(at + 2..at + 2 + n).unwrap_or(&[]);
            bytes.iter().fold(0usize, |len, &byte| len << 8 | usize::from(byte))
        };
        let (head, payload_len) = match short {
            126 => (8, len_at(2)),
            127 => (14, len_at(8)),
            _ => (6, short),
        };
        at = at.saturating_add(head).saturating_add(payload_len);
    }
    starts
}

fn check_input(input: &[u8]) {
    let Some((&[limits, cuts, stop], wire)) = input.split_first_chunk::<CHOICES>() else { return };
    let limits = LIMITS_TRIED[usize::from(limits) % LIMITS_TRIED.len()];
    let expected = Plain { wire, at: 0, limits, message: None, seen: Vec::new() }.read();
    check_fastwebsockets(wire, &expected);

    let n_wanted = usize::from(stop);
    let expected = if n_wanted > 0 && n_wanted <= expected.seen.len() {
        Outcome { seen: expected.seen[..n_wanted].to_vec(), end: Ok(Flow::Stop) }
    } else {
        expected
    };
    let mut rng = Rng::new(u64::from(cuts));
    let len_max = rng.pick(&[2, 8, 150]);
    let mut any_len = || rng.within(0..=len_max);
    assert_eq!(read_bounded(wire, &limits, n_wanted, || usize::MAX), expected, "as a whole");
    assert_eq!(read_bounded(wire, &limits, n_wanted, || 1), expected, "by bytes");
    assert_eq!(read_bounded(wire, &limits, n_wanted, &mut any_len), expected, "in pieces");
}

/// Feeds chunks of these lengths. The sink stops at input number `n_wanted`; 0 never.
fn read_bounded(
    wire: &[u8],
    limits: &Limits,
    n_wanted: usize,
    mut chunk_len: impl FnMut() -> usize,
) -> Outcome {
    let mut reader = Reader::default();
    let mut outcome = Outcome { seen: Vec::new(), end: Ok(Flow::Continue) };
    let mut rest = wire;
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(chunk_len().min(rest.len()));
        rest = after;
        let has_ended = outcome.end != Ok(Flow::Continue);
        let end = reader.feed(&mut chunk.to_vec(), limits, &mut |input| {
            assert!(!has_ended, "{input:?} after the end");
            outcome.seen.push(input.into());
            if outcome.seen.len() == n_wanted { Flow::Stop } else { Flow::Continue }
        });
        if has_ended {
            assert_eq!(end, Ok(Flow::Stop));
        } else {
            outcome.end = end;
        }
        check_memory(&reader, limits, wire.len() - rest.len(), outcome.end);
    }
    outcome
}

fn check_memory(reader: &Reader, limits: &Limits, n_arrived: usize, end: End) {
    let Some(partial) = &reader.partial else { return };
    let n_control = partial.control.capacity();
    let n_message = partial.message.as_ref().map_or(0, |message| message.bytes.capacity());
    if end != Ok(Flow::Continue) {
        assert_eq!((n_control, n_message), (0, 0), "memory after the end");
    }
    assert!(!partial.is_idle() || partial.has_ended, "memory between messages");
    // 8 is the least that a Vec takes.
    let bound = |n_bytes: usize| 8.max(2 * n_bytes.min(n_arrived));
    assert!(n_control <= bound(crate::frame::CONTROL_BYTES_MAX), "{n_control} for a control frame");
    assert!(n_message <= bound(limits.message_bytes_max), "{n_message} for a message");
}

/// RFC 6455 5 and 7.4 read once from front to end, with the whole wire in hand: no state between chunks to get wrong.
struct Plain<'a> {
    wire: &'a [u8],
    at: usize,
    limits: Limits,
    message: Option<PlainMessage>,
    seen: Vec<Seen>,
}

struct PlainMessage {
    is_text: bool,
    bytes: Vec<u8>,
    n_frames: u32,
}

/// Why reading is over.
enum Over {
    WireEnded,
    Closed,
    Failed(Violation),
}

impl From<Violation> for Over {
    fn from(violation: Violation) -> Self {
        Self::Failed(violation)
    }
}

impl From<Breach> for Over {
    fn from(breach: Breach) -> Self {
        Self::Failed(breach.into())
    }
}

impl Plain<'_> {
    fn read(mut self) -> Outcome {
        loop {
            let Err(over) = self.frame() else { continue };
            let end = match over {
                Over::WireEnded => Ok(Flow::Continue),
                Over::Closed => Ok(Flow::Stop),
                Over::Failed(violation) => Err(violation),
            };
            return Outcome { seen: self.seen, end };
        }
    }

    fn byte(&mut self) -> Result<u8, Over> {
        let byte = self.wire.get(self.at).copied().ok_or(Over::WireEnded)?;
        self.at += 1;
        Ok(byte)
    }

    fn number(&mut self, n_bytes: usize) -> Result<u64, Over> {
        (0..n_bytes).try_fold(0, |number, _| Ok(number * 256 + u64::from(self.byte()?)))
    }

    fn frame(&mut self) -> Result<(), Over> {
        let first = self.byte()?;
        let (is_fin, opcode) = (first >= 128, first % 16);
        if first % 128 >= 16 {
            return Err(Breach::ReservedBits.into());
        }
        self.check_opcode(opcode, is_fin)?;
        let second = self.byte()?;
        if second < 128 {
            return Err(Breach::NotMasked.into());
        }
        if opcode >= 8 && second > 128 + 125 {
            return Err(Breach::ControlTooLong.into());
        }
        let len = match second - 128 {
            126 => {
                Some(self.number(2)?).filter(|&len| len > 125).ok_or(Breach::LengthNotMinimal)?
            }
            127 => match self.number(8)? {
                len if len >> 63 == 1 => return Err(Breach::LengthTopBit.into()),
                len if len <= 0xFFFF => return Err(Breach::LengthNotMinimal.into()),
                len => len,
            },
            len => u64::from(len),
        };
        let so_far = self.message.as_ref().map_or(0, |message| message.bytes.len() as u64);
        if opcode < 8 && len.saturating_add(so_far) > self.limits.message_bytes_max as u64 {
            return Err(Violation::TooBig.into());
        }
        let mask = [self.byte()?, self.byte()?, self.byte()?, self.byte()?];
        let mut payload = Vec::new();
        let mut is_whole = true;
        for idx in 0..len {
            let Ok(byte) = self.byte() else {
                is_whole = false;
                break;
            };
            payload.push(byte ^ mask[(idx % 4) as usize]);
        }
        if opcode < 8 {
            self.data(opcode, is_fin, payload, is_whole)
        } else {
            self.control(opcode, payload, is_whole)
        }
    }

    fn check_opcode(&self, opcode: u8, is_fin: bool) -> Result<(), Over> {
        Err(match (opcode, &self.message) {
            (3..8 | 11.., _) => Breach::UnknownOpcode.into(),
            (8.., _) if !is_fin => Breach::ControlFragmented.into(),
            (0, None) => Breach::StrayContinuation.into(),
            (0, Some(message)) if message.n_frames >= self.limits.fragments_max => {
                Violation::TooManyFragments.into()
            }
            (1 | 2, Some(_)) => Breach::MessageInsideMessage.into(),
            _ => return Ok(()),
        })
    }

    fn data(
        &mut self,
        opcode: u8,
        is_fin: bool,
        payload: Vec<u8>,
        is_whole: bool,
    ) -> Result<(), Over> {
        let begun = self.message.take();
        let mut message =
            begun.unwrap_or(PlainMessage { is_text: opcode == 1, bytes: Vec::new(), n_frames: 0 });
        message.bytes.extend(payload);
        message.n_frames += 1;
        let is_last = is_fin && is_whole;
        // What no later byte can mend is refused now; a character cut off at the end, when the message ends.
        if message.is_text
            && let Err(error) = std::str::from_utf8(&message.bytes)
            && (is_last || error.error_len().is_some())
        {
            return Err(Violation::TextNotUtf8.into());
        }
        if !is_whole {
            return Err(Over::WireEnded);
        }
        if is_last {
            let kind = if message.is_text { Seen::Text } else { Seen::Binary };
            self.seen.push(kind(message.bytes));
        } else {
            self.message = Some(message);
        }
        Ok(())
    }

    fn control(&mut self, opcode: u8, payload: Vec<u8>, is_whole: bool) -> Result<(), Over> {
        if !is_whole {
            return Err(Over::WireEnded);
        }
        match (opcode, &payload[..]) {
            (9, _) => self.seen.push(Seen::Ping(payload)),
            (10, _) => self.seen.push(Seen::Pong(payload)),
            (_, []) => self.seen.push(Seen::Close(None, String::new())),
            (_, [_]) => return Err(Breach::CloseBodyOneByte.into()),
            (_, [high, low, reason @ ..]) => {
                let code = u16::from(*high) * 256 + u16::from(*low);
                if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                    return Err(Breach::CloseCodeNotAllowed.into());
                }
                let reason = String::from_utf8(reason.to_vec());
                let reason = reason.map_err(|_| Violation::CloseReasonNotUtf8)?;
                self.seen.push(Seen::Close(Some(code), reason));
            }
        }
        if opcode == 8 { Err(Over::Closed) } else { Ok(()) }
    }
}

/// fastwebsockets hands out the same, as far as it minds the RFC: see [`is_lenient_about`].
fn check_fastwebsockets(wire: &[u8], ours: &Outcome) {
    let theirs = read_with_fastwebsockets(wire);
    let n_ours = ours.seen.len();
    let has_close_1014 = matches!(ours.seen.last(), Some(Seen::Close(Some(1014), _)));
    if has_close_1014 {
        // IANA has assigned it since the RFC; fastwebsockets refuses it.
        assert_eq!(theirs, ours.seen[..n_ours - 1]);
        return;
    }
    assert!(theirs.len() >= n_ours, "fastwebsockets refused what we took: {theirs:?} for {ours:?}");
    assert_eq!(theirs[..n_ours], ours.seen, "fastwebsockets");
    let more_expected = matches!(ours.end, Err(violation) if is_lenient_about(violation));
    assert!(more_expected || theirs.len() == n_ours, "fastwebsockets took {theirs:?} for {ours:?}");
}

/// Where fastwebsockets 0.10 goes on though RFC 6455, or a limit of ours, says stop.
fn is_lenient_about(violation: Violation) -> bool {
    match violation {
        // Ours alone: its limit is per frame, and it counts no fragments.
        Violation::TooBig | Violation::TooManyFragments => true,
        // A fragmented message that ends within a character: it drops the character.
        Violation::TextNotUtf8 => true,
        Violation::CloseReasonNotUtf8 => false,
        Violation::Protocol(breach) => matches!(
            breach,
            // 5.1: the server MUST close.
            Breach::NotMasked
                // 5.5: of control frames only a ping's length is looked at.
                | Breach::ControlTooLong
                // 5.2: "the minimal number of bytes MUST be used".
                | Breach::LengthNotMinimal
                // 5.4: an unfinished message in an unfinished one replaces it.
                | Breach::MessageInsideMessage
        ),
    }
}

fn read_with_fastwebsockets(wire: &[u8]) -> Vec<Seen> {
    let mut socket =
        WebSocket::after_handshake(tokio::io::join(wire, tokio::io::sink()), Role::Server);
    // It allocates what a head declares.
    socket.set_max_message_size(1 << 20);
    socket.set_auto_pong(false);
    let mut socket = FragmentCollector::new(socket);
    let mut seen = Vec::new();
    loop {
        let frame = pin!(socket.read_frame()).poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(frame) = frame else { panic!("a slice never waits") };
        let Ok(frame) = frame else { return seen };
        let payload = frame.payload.to_vec();
        seen.push(match frame.opcode {
            OpCode::Text => Seen::Text(payload),
            OpCode::Binary => Seen::Binary(payload),
            OpCode::Ping => Seen::Ping(payload),
            OpCode::Pong => Seen::Pong(payload),
            OpCode::Continuation => panic!("it collects fragments"),
            OpCode::Close => {
                let code = payload.first_chunk().map(|&code| u16::from_be_bytes(code));
                let reason = String::from_utf8(payload.get(2..).unwrap_or(&[]).to_vec());
                seen.push(Seen::Close(code, reason.expect("it checks that")));
                return seen;
            }
        });
    }
}
