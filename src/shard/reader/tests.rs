//! Unit tests of the reader. Every example goes through `check`, which cuts the bytes in all ways.

use super::*;

mod fuzz;
mod random;

const LIMITS: Limits = Limits { message_bytes_max: 300, fragments_max: 8 };
const FIN: u8 = 0x80;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const MASK: [u8; 4] = [0xA5, 0x00, 0xFF, 0x3C];

#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

impl From<Input<'_>> for Seen {
    fn from(input: Input<'_>) -> Self {
        match input {
            Input::Message { kind: MessageKind::Text, bytes } => Self::Text(bytes.to_vec()),
            Input::Message { kind: MessageKind::Binary, bytes } => Self::Binary(bytes.to_vec()),
            Input::Ping(bytes) => Self::Ping(bytes.to_vec()),
            Input::Pong(bytes) => Self::Pong(bytes.to_vec()),
            Input::Close { code, reason } => Self::Close(code, reason.to_owned()),
        }
    }
}

type End = Result<Flow, Violation>;

#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    seen: Vec<Seen>,
    end: End,
}

/// Feeds the chunks one after the other. After the end it goes on feeding, and nothing may come of it.
fn read_chunks<'a>(chunks: impl IntoIterator<Item = &'a [u8]>, limits: &Limits) -> Outcome {
    let mut reader = Reader::default();
    let mut outcome = Outcome { seen: Vec::new(), end: Ok(Flow::Continue) };
    for chunk in chunks {
        let mut chunk = chunk.to_vec();
        let has_ended = outcome.end != Ok(Flow::Continue);
        let end = reader.feed(&mut chunk, limits, &mut |input| {
            assert!(!has_ended, "{input:?} after the end");
            outcome.seen.push(input.into());
            Flow::Continue
        });
        if has_ended {
            assert_eq!(end, Ok(Flow::Stop));
        } else {
            outcome.end = end;
        }
    }
    outcome
}

/// As a whole, in every split into two, and byte by byte, `bytes` give `seen` and then `end`.
fn check_within(limits: &Limits, bytes: &[u8], seen: &[Seen], end: End) {
    let expected = Outcome { seen: seen.to_vec(), end };
    assert_eq!(read_chunks([bytes], limits), expected, "as a whole");
    assert_eq!(read_chunks(bytes.chunks(1), limits), expected, "by bytes");
    // Long examples: both ends, where the heads are, and some places between.
    let is_tried = |at| bytes.len() < 2_000 || at < 40 || at + 40 > bytes.len() || at % 9_973 == 0;
    for at in (0..=bytes.len()).filter(|&at| is_tried(at)) {
        let halves = [&bytes[..at], &bytes[at..]];
        assert_eq!(read_chunks(halves, limits), expected, "cut at {at}");
    }
}

fn check(bytes: &[u8], seen: &[Seen], end: End) {
    check_within(&LIMITS, bytes, seen, end);
}

fn check_ok(bytes: &[u8], seen: &[Seen]) {
    check(bytes, seen, Ok(Flow::Continue));
}

fn check_breach(bytes: &[u8], seen: &[Seen], breach: Breach) {
    check(bytes, seen, Err(Violation::Protocol(breach)));
    assert_eq!(Violation::Protocol(breach).close_code(), 1002);
}

fn client_frame(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        len @ 0..126 => out.push(MASK_BIT | len as u8),
        len @ 126..65_536 => {
            out.push(MASK_BIT | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(MASK_BIT | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    let masked = payload.iter().zip(mask.iter().cycle());
    out.extend(masked.map(|(byte, mask)| byte ^ mask));
    out
}

const MASK_BIT: u8 = 0x80;

fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    client_frame(first, MASK, payload)
}

fn text(payload: &str) -> Seen {
    Seen::Text(payload.as_bytes().to_vec())
}

fn binary(payload: &[u8]) -> Seen {
    Seen::Binary(payload.to_vec())
}

#[test]
fn whole_messages_of_every_length_encoding() {
    let roomy = Limits { message_bytes_max: 70_000, ..LIMITS };
    for len in [0, 1, 3, 4, 5, 124, 125, 126, 127, 300, 65_535, 65_536] {
        let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let mut bytes = masked(FIN | BINARY, &payload);
        bytes.extend(masked(FIN | TEXT, b"next"));
        let seen = [binary(&payload), text("next")];
        check_within(&roomy, &bytes, &seen, Ok(Flow::Continue));
    }
}

#[test]
fn a_connect_command_byte_by_byte_with_pings_between() {
    let command = r#"{"id":1,"connect":{"name":"jö"}}"#;
    let mut bytes = Vec::new();
    let mut seen = Vec::new();
    for (i, byte) in command.bytes().enumerate() {
        let opcode = if i == 0 { TEXT } else { CONTINUATION };
        let fin = if i + 1 == command.len() { FIN } else { 0 };
        let mask = [i as u8, 0x80, !(i as u8), 7];
        bytes.extend(client_frame(fin | opcode, mask, &[byte]));
        if fin == 0 {
            bytes.extend(masked(FIN | PING, &[i as u8]));
            bytes.extend(masked(FIN | PONG, b""));
            seen.push(Seen::Ping(vec![i as u8]));
            seen.push(Seen::Pong(Vec::new()));
        }
    }
    seen.push(text(command));
    let limits = Limits { fragments_max: FRAGMENTS_MAX, ..LIMITS };
    check_within(&limits, &bytes, &seen, Ok(Flow::Continue));
}

#[test]
fn empty_messages_and_empty_fragments_are_messages() {
    check_ok(&masked(FIN | TEXT, b""), &[text("")]);
    let bytes = [
        masked(BINARY, b""),
        masked(CONTINUATION, b"a"),
        masked(CONTINUATION, b""),
        masked(FIN | CONTINUATION, b""),
    ];
    check_ok(&bytes.concat(), &[binary(b"a")]);
}

#[test]
fn the_limit_itself_is_allowed_as_one_frame_and_as_fragments() {
    let payload = [b'x'; 300];
    check_ok(&masked(FIN | BINARY, &payload), &[binary(&payload)]);
    let bytes = [
        masked(BINARY, &payload[..126]),
        masked(FIN | PING, b"!"),
        masked(CONTINUATION, &payload[126..299]),
        masked(CONTINUATION, &payload[299..]),
        masked(FIN | CONTINUATION, b""),
        masked(FIN | TEXT, b"next"),
    ];
    let seen = [Seen::Ping(b"!".to_vec()), binary(&payload), text("next")];
    check_ok(&bytes.concat(), &seen);
}

#[test]
fn too_big_is_known_from_the_head_alone() {
    let too_big = Err(Violation::TooBig);
    let heads: [&[u8]; 4] = [
        &[FIN | TEXT, MASK_BIT | 126, 0x01, 0x2D],
        &[BINARY, MASK_BIT | 127, 0, 0, 0, 0, 0x40, 0, 0, 0],
        &[BINARY, MASK_BIT | 127, 0, 0, 0, 0, 0, 1, 0, 0],
        &[FIN | TEXT, MASK_BIT | 127, 0x7F, 255, 255, 255, 255, 255, 255, 255],
    ];
    for head in heads {
        check(head, &[], too_big);
    }
    let tiny = Limits { message_bytes_max: 3, ..LIMITS };
    check_within(&tiny, &[FIN | TEXT, MASK_BIT | 4], &[], too_big);
    check_within(&tiny, &masked(FIN | TEXT, b"four"), &[], too_big);
    check_within(
        &tiny,
        &masked(FIN | PING, b"longer"),
        &[Seen::Ping(b"longer".to_vec())],
        Ok(Flow::Continue),
    );
    assert_eq!(Violation::TooBig.close_code(), 1009);
}

#[test]
fn the_sum_of_fragments_is_limited_too() {
    let mut bytes = masked(BINARY, &[0; 200]);
    bytes.extend(masked(CONTINUATION, &[0; 100]));
    bytes.extend([FIN | CONTINUATION, MASK_BIT | 1]);
    check(&bytes, &[], Err(Violation::TooBig));
}

#[test]
fn fragments_are_counted_even_if_empty() {
    let mut bytes = masked(TEXT, b"");
    for _ in 2..LIMITS.fragments_max {
        bytes.extend(masked(CONTINUATION, b""));
    }
    let last = masked(FIN | CONTINUATION, b"");
    check_ok(&[&bytes[..], &last].concat(), &[text("")]);

    bytes.extend(masked(CONTINUATION, b""));
    bytes.extend(last);
    check(&bytes, &[], Err(Violation::TooManyFragments));
    assert_eq!(Violation::TooManyFragments.close_code(), 1009);
}

#[test]
fn breaches_of_the_framing_end_with_1002_after_what_came_before() {
    let before = [text("before")];
    let cases: [(&[u8], Breach); 20] = [
        (&[FIN | TEXT, 0x02], Breach::NotMasked),
        (&[FIN | PING, 0x00], Breach::NotMasked),
        (&[FIN | TEXT | 0x40], Breach::ReservedBits),
        (&[FIN | TEXT | 0x20], Breach::ReservedBits),
        (&[FIN | PING | 0x10], Breach::ReservedBits),
        (&[FIN | 3], Breach::UnknownOpcode),
        (&[7], Breach::UnknownOpcode),
        (&[FIN | 11], Breach::UnknownOpcode),
        (&[FIN | 15], Breach::UnknownOpcode),
        (&[PING], Breach::ControlFragmented),
        (&[CLOSE], Breach::ControlFragmented),
        (&[FIN | PING, MASK_BIT | 126], Breach::ControlTooLong),
        (&[FIN | PONG, MASK_BIT | 127], Breach::ControlTooLong),
        (&[FIN | CLOSE, MASK_BIT | 126], Breach::ControlTooLong),
        (&[CONTINUATION], Breach::StrayContinuation),
        (&[FIN | CONTINUATION], Breach::StrayContinuation),
        (&[FIN | TEXT, MASK_BIT | 126, 0, 125], Breach::LengthNotMinimal),
        (&[BINARY, MASK_BIT | 127, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF], Breach::LengthNotMinimal),
        (&[BINARY, MASK_BIT | 127, 0x80, 0, 0, 0, 0, 0, 0, 0], Breach::LengthTopBit),
        (
            &[FIN | TEXT, MASK_BIT | 127, 255, 255, 255, 255, 255, 255, 255, 255],
            Breach::LengthTopBit,
        ),
    ];
    for (frame, breach) in cases {
        let mut bytes = masked(FIN | TEXT, b"before");
        bytes.extend(frame);
        check_breach(&bytes, &before, breach);
        bytes.extend(masked(FIN | TEXT, b"never seen"));
        check_breach(&bytes, &before, breach);
    }
}

#[test]
fn a_new_message_inside_a_fragmented_one_is_refused() {
    for opcode in [TEXT, BINARY, FIN | TEXT, FIN | BINARY] {
        let mut bytes = masked(TEXT, b"begun");
        bytes.extend(masked(FIN | PING, b""));
        bytes.push(opcode);
        let seen = [Seen::Ping(Vec::new())];
        check_breach(&bytes, &seen, Breach::MessageInsideMessage);
    }
}

#[test]
fn invalid_text_ends_with_1007_wherever_it_is_cut() {
    let invalid: [&[u8]; 9] = [
        b"\xFF",
        b"ok\x80",
        b"\xC0\xAF",
        b"\xED\xA0\x80",
        b"\xF4\x90\x80\x80",
        b"\xE2\x82",
        b"\xE2\x82x",
        b"long enough for the vector path, and then some more text to fill it: \xE2\x28\xA1 \xF0",
        b"\xF0\x9F\x98",
    ];
    let not_utf8 = Err(Violation::TextNotUtf8);
    assert_eq!(Violation::TextNotUtf8.close_code(), 1007);
    for payload in invalid {
        check(&masked(FIN | TEXT, payload), &[], not_utf8);
        check_ok(&masked(FIN | BINARY, payload), &[binary(payload)]);
        for at in 0..=payload.len() {
            let mut bytes = masked(TEXT, &payload[..at]);
            bytes.extend(masked(FIN | CONTINUATION, &payload[at..]));
            check(&bytes, &[], not_utf8);
        }
    }
}

#[test]
fn a_bad_byte_of_text_is_refused_before_its_frame_is_whole() {
    let mut bytes = masked(TEXT, b"bad \xFF and much more to come");
    bytes.truncate(6 + 5);
    check(&bytes, &[], Err(Violation::TextNotUtf8));
}

/// Else a client that cuts every fragment inside a character makes each byte be checked again and again.
#[test]
fn text_before_a_cut_character_is_not_checked_twice() {
    let mut reader = Reader::default();
    let mut bytes = masked(TEXT, "checked ä".as_bytes());
    bytes.pop();
    let flow = reader.feed(&mut bytes, &LIMITS, &mut |_| Flow::Continue);
    assert_eq!(flow, Ok(Flow::Continue));
    assert_eq!(reader.message().unwrap().n_checked, "checked ".len());
}

#[test]
fn characters_may_be_cut_by_fragments() {
    let payload = "κόσμε – 😀 ÿ\u{10FFFF}\0\u{FFFF}";
    for at in 0..=payload.len() {
        let bytes = [
            masked(TEXT, &payload.as_bytes()[..at]),
            masked(FIN | CONTINUATION, &payload.as_bytes()[at..]),
        ];
        check_ok(&bytes.concat(), &[text(payload)]);
    }
}

#[test]
fn control_frames_are_handed_out_with_their_payload() {
    let payload: Vec<u8> = (0..125).collect();
    let bytes =
        [masked(FIN | PING, &payload), masked(FIN | PONG, &payload), masked(FIN | PING, b"")];
    let seen = [Seen::Ping(payload.clone()), Seen::Pong(payload), Seen::Ping(Vec::new())];
    check_ok(&bytes.concat(), &seen);
}

/// A close frame with this body, inside a fragmented message and with a message after it.
fn check_close(body: &[u8], expected: Result<Seen, Violation>) {
    let mut bytes = masked(TEXT, b"begun");
    bytes.extend(masked(FIN | CLOSE, body));
    bytes.extend(masked(FIN | CONTINUATION, b"never seen"));
    match expected {
        Ok(seen) => check(&bytes, &[seen], Ok(Flow::Stop)),
        Err(violation) => check(&bytes, &[], Err(violation)),
    }
}

#[test]
fn a_close_is_the_last_thing_handed_out() {
    check_close(b"", Ok(Seen::Close(None, String::new())));
    check_close(b"\x03\xE8", Ok(Seen::Close(Some(1000), String::new())));
    let long = "é".repeat(61);
    let body = [b"\x0F\xA0", long.as_bytes()].concat();
    check_close(&body, Ok(Seen::Close(Some(4000), long)));
}

#[test]
fn close_bodies_are_judged() {
    check_close(b"\x03", Err(Breach::CloseBodyOneByte.into()));
    check_close(b"\x03\xE8bad \xFF", Err(Violation::CloseReasonNotUtf8));
    check_close(b"\x03\xE8\xE2\x82", Err(Violation::CloseReasonNotUtf8));
    assert_eq!(Violation::CloseReasonNotUtf8.close_code(), 1007);
    for code in [1000, 1003, 1007, 1011, 1012, 1013, 1014, 3000, 3999, 4999u16] {
        check_close(&code.to_be_bytes(), Ok(Seen::Close(Some(code), String::new())));
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65_535u16] {
        check_close(&code.to_be_bytes(), Err(Breach::CloseCodeNotAllowed.into()));
    }
}

#[test]
fn a_stop_from_the_sink_is_for_good() {
    let bytes = [
        masked(FIN | TEXT, b"one"),
        masked(TEXT, b"t"),
        masked(FIN | CONTINUATION, b"wo"),
        masked(FIN | TEXT, b"three"),
    ]
    .concat();
    for (chunk_len, n_wanted) in [1, 2, 7, 100].into_iter().flat_map(|n| [(n, 1), (n, 2)]) {
        let mut reader = Reader::default();
        let mut n_seen = 0;
        for chunk in bytes.clone().chunks_mut(chunk_len) {
            let flow = reader.feed(chunk, &LIMITS, &mut |_| {
                n_seen += 1;
                if n_seen < n_wanted { Flow::Continue } else { Flow::Stop }
            });
            let expected = if n_seen < n_wanted { Flow::Continue } else { Flow::Stop };
            assert_eq!(flow, Ok(expected));
        }
        assert_eq!(n_seen, n_wanted);
    }
}

#[test]
fn whole_messages_are_not_copied_and_leave_no_buffer() {
    let mut chunk = [
        masked(FIN | TEXT, b"short"),
        masked(FIN | PING, b"ping"),
        masked(FIN | BINARY, &[7; 200]),
    ]
    .concat();
    let memory = chunk.as_ptr_range();
    let mut reader = Reader::default();
    let flow = reader.feed(&mut chunk, &LIMITS, &mut |input| {
        let (Input::Message { bytes, .. } | Input::Ping(bytes)) = input else {
            panic!("{input:?}");
        };
        assert!(memory.contains(&bytes.as_ptr()));
        Flow::Continue
    });
    assert_eq!(flow, Ok(Flow::Continue));
    assert!(reader.partial.is_none());
}

#[test]
fn a_reader_holds_memory_only_for_bytes_that_arrived() {
    let limits = Limits { message_bytes_max: 1 << 30, ..LIMITS };
    let mut reader = Reader::default();
    let mut feed = |bytes: &[u8]| {
        let flow = reader.feed(&mut bytes.to_vec(), &limits, &mut |_| Flow::Continue);
        assert_eq!(flow, Ok(Flow::Continue));
        let message = reader.message().map(|message| message.bytes.capacity());
        (reader.partial.is_some(), message.unwrap_or(0))
    };
    let head = [FIN | BINARY, MASK_BIT | 127, 0, 0, 0, 0, 0x30, 0, 0, 0];
    assert_eq!(feed(&head), (true, 0));
    assert_eq!(feed(&MASK), (true, 0));
    let mut n_arrived = 0;
    for len in [1, 10, 100, 5_000, 1, 16_384, 16_384] {
        n_arrived += len;
        let (_, capacity) = feed(&vec![0; len]);
        assert!(capacity <= 8.max(2 * n_arrived), "{capacity} for {n_arrived}");
    }

    reader = Reader::default();
    for byte in masked(FIN | TEXT, b"cut, then whole") {
        let flow = reader.feed(&mut [byte], &limits, &mut |_| Flow::Continue);
        assert_eq!(flow, Ok(Flow::Continue));
    }
    assert!(reader.partial.is_none(), "idle again");
}
