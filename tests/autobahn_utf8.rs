//! Promise: text is UTF-8 or the connection is failed with 1007, however it was cut, at the first byte
//! that decides it. Autobahn's group 6; the table of ids and how they are adapted is in `autobahn`.
//!
//! The sequences of 6.5 to 6.23 are those of Markus Kuhn's decoder test. They stand in the string
//! that a publish command carries, and the subscribed session gets them back. One valid sequence is
//! no JSON: a bare NUL (6.7.1) fails as a command, not as text, and is fine on `/ws`.

mod common;

use common::cf::Cf;
use common::ws::{BINARY, CONTINUATION, PING, TEXT, encode, encode_with as open_frame};
use common::{Hub, Raw, SOON};

const GREEK: &str = "\u{3ba}\u{1f79}\u{3c3}\u{3bc}\u{3b5}";

/// A text message in two fragments, cut at this byte.
fn cut_at(message: &[u8], at: usize) -> Vec<u8> {
    [open_frame(TEXT, &message[..at]), encode(CONTINUATION, &message[at..])].concat()
}

/// A text message in fragments of one byte.
fn byte_by_byte(message: &[u8]) -> Vec<u8> {
    let mut wire = open_frame(TEXT, &message[..1]);
    message[1..].iter().for_each(|byte| wire.extend(open_frame(CONTINUATION, &[*byte])));
    wire.extend(encode(CONTINUATION, b""));
    wire
}

fn publish_command(payload: &[u8]) -> Vec<u8> {
    let before = br#"{"id":2000,"publish":{"channel":"echo","data":""#;
    [&before[..], payload, b"\"}}"].concat()
}

fn session(hub: &Hub) -> Cf {
    Cf::subscribed(hub, &["echo"])
}

fn raw_session(hub: &Hub) -> Raw {
    Raw::open(hub, &["echo"])
}

fn is_alive(raw: &mut Raw) -> bool {
    raw.send_frame(PING, b"alive?");
    raw.next_pong(SOON).is_some()
}

/// What the message's string holds comes back.
fn echoes(cf: &mut Cf, wire: &[u8], payload: &[u8]) {
    cf.raw.send_bytes(wire);
    let publication = cf.next_pub(SOON).expect("the echo");
    assert_eq!(publication.data.as_bytes(), [b"\"", payload, b"\""].concat(), "{payload:02x?}");
    assert!(cf.reply(2_000, SOON).is_some());
}

/// 1007, and the end.
fn fails(mut raw: Raw, wire: &[u8]) {
    raw.send_bytes(wire);
    let close = raw.next_close(SOON).unwrap_or_else(|| panic!("accepted: {wire:02x?}"));
    assert_eq!(close.code, 1007, "{close:?} to {wire:02x?}");
    assert!(raw.wait_eof(SOON));
}

/// As one frame, as fragments of a byte, and in two at each border of the sequence.
fn every_way(message: &[u8], sequence: &[u8]) -> Vec<Vec<u8>> {
    let start = message.windows(sequence.len()).position(|part| part == sequence);
    let start = start.expect("the sequence is in the message");
    let cuts = (start..=start + sequence.len()).map(|at| cut_at(message, at));
    cuts.chain([encode(TEXT, message), byte_by_byte(message)]).collect()
}

fn check_valid(hub: &Hub, sequence: &[u8]) {
    assert!(std::str::from_utf8(sequence).is_ok(), "{sequence:02x?}");
    let mut cf = session(hub);
    for wire in every_way(&publish_command(sequence), sequence) {
        echoes(&mut cf, &wire, sequence);
    }
}

fn check_invalid(hub: &Hub, sequence: &[u8]) {
    for wire in every_way(&publish_command(sequence), sequence) {
        fails(session(hub).raw, &wire);
    }
    // At the end of the message, where a cut character is no longer "more to come".
    for wire in [encode(TEXT, sequence), byte_by_byte(sequence)] {
        fails(raw_session(hub), &wire);
    }
    // Binary messages may hold anything; as commands they are refused for what they are.
    let mut raw = raw_session(hub);
    raw.send_frame(BINARY, sequence);
    assert!(is_alive(&mut raw));
}

#[test]
fn empty_fragments() {
    let hub = Hub::start();
    let empty = [open_frame(TEXT, b""), open_frame(CONTINUATION, b""), encode(CONTINUATION, b"")];
    for wire in [encode(TEXT, b""), empty.concat()] {
        let mut raw = raw_session(&hub);
        raw.send_bytes(&wire);
        assert!(is_alive(&mut raw), "{wire:02x?}");
    }
    let command = publish_command(b"middle frame payload");
    let wire = [
        open_frame(TEXT, b""),
        open_frame(CONTINUATION, &command),
        open_frame(CONTINUATION, b""),
        encode(CONTINUATION, b""),
    ];
    echoes(&mut session(&hub), &wire.concat(), b"middle frame payload");
}

#[test]
fn valid_text_however_it_is_cut() {
    let hub = Hub::start();
    let text = "Hello-\u{b5}@\u{df}\u{f6}\u{e4}\u{fc}\u{e0}\u{e1}-UTF-8!!";
    for payload in [text, GREEK, "\u{24b62}\u{10ffff}\u{1f980}"] {
        check_valid(&hub, payload.as_bytes());
    }
}

#[test]
fn invalid_text_however_it_is_cut() {
    let hub = Hub::start();
    let payload = [GREEK.as_bytes(), b"\xed\xa0\x80edited"].concat();
    check_invalid(&hub, &payload);
}

/// `first` is fine; the byte after it is not, and nothing more is sent.
fn check_fails_fast(hub: &Hub, first: &[u8], bad: &[u8]) {
    for mut raw in [session(hub).raw, raw_session(hub)] {
        raw.send_bytes(&open_frame(TEXT, first));
        assert!(is_alive(&mut raw), "the first fragment is fine");
        raw.send_bytes(&open_frame(CONTINUATION, bad));
        assert_eq!(raw.next_close(SOON).map(|close| close.code), Some(1007), "by frames");
    }
    // The same in chops of one frame; its rest never comes. No ping can tell that the first is fine.
    let mut whole = encode(TEXT, &[first, bad, b"edited"].concat());
    whole.truncate(whole.len() - b"edited".len());
    for mut raw in [session(hub).raw, raw_session(hub)] {
        raw.send_bytes(&whole[..whole.len() - bad.len()]);
        assert!(raw.stays_quiet(common::ms(50)), "the first chop is fine");
        raw.send_bytes(&whole[whole.len() - bad.len()..]);
        assert_eq!(raw.next_close(SOON).map(|close| close.code), Some(1007), "by chops");
    }
}

#[test]
fn invalid_text_fails_at_its_first_bad_byte() {
    let hub = Hub::start();
    let beyond = b"\xf4\x90\x80\x80";
    check_fails_fast(&hub, GREEK.as_bytes(), beyond);
    // Up to and including the byte that decides it: 0xf4 alone may still become U+10FFFF.
    check_fails_fast(&hub, &[GREEK.as_bytes(), &beyond[..1]].concat(), &beyond[1..2]);
    check_fails_fast(&hub, b"a surrogate \xed", b"\xa0");
    check_fails_fast(&hub, b"overlong ", b"\xc0");
}

#[test]
fn valid_sequences() {
    let hub = Hub::start();
    let hello = |middle: &str| format!("hello{middle}world");
    let mut valid = vec![GREEK.to_owned()];
    valid.extend(["$", "\u{a2}", "\u{20ac}", "\u{24b62}"].map(hello)); // 6.5
    // 6.6: the prefixes that end with a character.
    valid.extend(GREEK.char_indices().skip(1).map(|(at, _)| GREEK[..at].to_owned()));
    let characters = [
        '\u{80}',
        '\u{800}',
        '\u{10000}', // 6.7
        '\u{7f}',
        '\u{7ff}',
        '\u{ffff}',
        '\u{10ffff}', // 6.9
        '\u{d7ff}',
        '\u{e000}',
        '\u{fffd}', // 6.11
        '\u{fff9}',
        '\u{fffa}',
        '\u{fffb}',
        '\u{fffc}',
        '\u{fffe}', // 6.23
    ];
    valid.extend(characters.map(String::from));
    // 6.22: the last two code points of the other planes.
    let last_two = (1..=16).flat_map(|plane| [plane << 16 | 0xFFFE, plane << 16 | 0xFFFF]);
    valid.extend(last_two.map(|code| String::from(char::from_u32(code).expect("a character"))));
    for sequence in &valid {
        check_valid(&hub, sequence.as_bytes());
    }
    // 6.7.1
    let mut cf = session(&hub);
    cf.raw.send_bytes(&encode(TEXT, &publish_command(b"\0")));
    assert_eq!(cf.next_close(SOON).map(|close| close.code), Some(3501));
    let mut raw = raw_session(&hub);
    raw.send_frame(TEXT, b"\0");
    assert!(is_alive(&mut raw));
}

/// `lead`, then continuation bytes.
fn lead(lead: u8, continuations: &[u8]) -> Vec<u8> {
    [&[lead], continuations].concat()
}

fn invalid_by_group() -> Vec<Vec<u8>> {
    let mut invalid: Vec<Vec<u8>> = Vec::new();
    // 6.6: the prefixes that end inside a character.
    let cut = (1..GREEK.len()).filter(|at| !GREEK.is_char_boundary(*at));
    invalid.extend(cut.map(|at| GREEK.as_bytes()[..at].to_vec()));
    // 6.8, 6.10, 6.11.5: five and six bytes, and beyond U+10FFFF.
    invalid.extend([lead(0xF8, b"\x88\x80\x80\x80"), lead(0xFC, b"\x84\x80\x80\x80\x80")]);
    invalid.extend([lead(0xF7, &[0xBF; 3]), lead(0xFB, &[0xBF; 4]), lead(0xFD, &[0xBF; 5])]);
    invalid.push(lead(0xF4, b"\x90\x80\x80"));
    // 6.12: continuation bytes of nothing.
    invalid.push(vec![0xBF]);
    invalid.extend((1..=6).map(|n| [0x80, 0xBF].into_iter().cycle().take(n).collect()));
    invalid.push((0x80..0xBF).collect());
    // 6.13: leads of nothing.
    for leads in [0xC0..0xDF, 0xE0..0xEF, 0xF0..0xF7, 0xF8..0xFB, 0xFC..0xFDu8].map(Vec::from_iter)
    {
        invalid.push(leads.into_iter().flat_map(|lead| [lead, b' ']).collect());
    }
    // 6.14, 6.15: the last byte missing.
    let mut incomplete = Vec::new();
    for (n, first, last) in
        [(0, 0xC0, 0xDF), (1, 0xE0, 0xEF), (2, 0xF0, 0xF7), (3, 0xF8, 0xFB), (4, 0xFC, 0xFD)]
    {
        incomplete.push(lead(first, &vec![0x80; n]));
        incomplete.push(lead(last, &vec![0xBF; n]));
    }
    invalid.push(incomplete.concat());
    invalid.extend(incomplete);
    // 6.16: bytes that no UTF-8 has.
    invalid.extend([vec![0xFE], vec![0xFF], vec![0xFE, 0xFE, 0xFF, 0xFF]]);
    // 6.17 to 6.19: overlong.
    for (first, rest) in [
        (0xC0, &b"\xAF"[..]),
        (0xE0, b"\x80\xAF"),
        (0xF0, b"\x80\x80\xAF"),
        (0xF8, b"\x80\x80\x80\xAF"),
        (0xFC, b"\x80\x80\x80\x80\xAF"),
        (0xC1, b"\xBF"),
        (0xE0, b"\x9F\xBF"),
        (0xF0, b"\x8F\xBF\xBF"),
        (0xF8, b"\x87\xBF\xBF\xBF"),
        (0xFC, b"\x83\xBF\xBF\xBF\xBF"),
        (0xC0, b"\x80"),
        (0xE0, b"\x80\x80"),
        (0xF0, b"\x80\x80\x80"),
        (0xF8, b"\x80\x80\x80\x80"),
        (0xFC, b"\x80\x80\x80\x80\x80"),
    ] {
        invalid.push(lead(first, rest));
    }
    // 6.20, 6.21: surrogates, single and paired.
    let singles =
        [b"\xA0\x80", b"\xAD\xBF", b"\xAE\x80", b"\xAF\xBF", b"\xB0\x80", b"\xBE\x80", b"\xBF\xBF"];
    invalid.extend(singles.map(|rest| lead(0xED, rest)));
    for high in [b"\xA0\x80", b"\xAD\xBF", b"\xAE\x80", b"\xAF\xBF"] {
        for low in [b"\xB0\x80", b"\xBF\xBF"] {
            invalid.push([lead(0xED, high), lead(0xED, low)].concat());
        }
    }
    invalid
}

#[test]
fn invalid_sequences() {
    let hub = Hub::start();
    let invalid = invalid_by_group();
    // Autobahn's ids: 6 + 2 + 3 + 1 + 8 + 5 + 10 + 1 + 3 + 15 + 7 + 8.
    assert_eq!(invalid.len(), 69);
    for sequence in &invalid {
        check_invalid(&hub, sequence);
    }
}
