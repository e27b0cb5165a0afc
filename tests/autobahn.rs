//! Promise: RFC 6455 to the letter. Each case id of the Autobahn testsuite, 1 to 7, 9 and 10, has its
//! counterpart here or in `autobahn_utf8`. (12 and 13 are compression, which hubbub never negotiates:
//! `clients::subprotocols`; 8 and 11 have no cases.)
//!
//! Autobahn wants every message echoed. hubbub has no echo, so each case is adapted, in this order:
//! - **publish**: the message is a publish command to a channel the session itself is subscribed to,
//!   padded to the case's size; the payload comes back byte for byte as a publication.
//! - **ping command**: small messages before a fault are `{"id":n,"ping":{}}`, whose reply is written
//!   before the close; a publication may come after it.
//! - **raw**: what can't be a command (an empty message) goes to `/ws`, where messages are read,
//!   checked and ignored; a pong afterwards proves that the reader went on. On a JSON session the
//!   empty message is answered with 3501, see `clients::broken_input_is_closed_with_bad_request`.
//!
//! Cases that must fail run on both kinds of session, as one write, frame by frame and byte by byte,
//! whatever variant the id asks for; so do the valid ones of groups 2 and 5. A clean end is close 1000
//! from us, close 1000 back, and the end of TCP.
//!
//! | id | what | test |
//! |---|---|---|
//! | 1.1.1, 1.2.1 | empty message | `g1_messages_of_all_lengths` (raw) |
//! | 1.1.2-8, 1.2.2-8 | text and binary of 125, 126, 127, 128, 65,535, 65,536 bytes; in chops of 997 | `g1_messages_of_all_lengths` |
//! | 2.1-2.4, 2.6 | pings of 0 to 125 bytes; byte by byte | `g2_pings_are_answered` |
//! | 2.5 | ping of 126 bytes | `g2_a_ping_of_126_bytes_fails` |
//! | 2.7-2.9 | unsolicited pongs | `g2_pongs_nobody_asked_for_are_ignored` |
//! | 2.10, 2.11 | ten pings | `g2_pings_are_answered` |
//! | 3.1-3.7 | reserved bits 1 to 7 on text, binary, ping, close | `g3_reserved_bits_fail` |
//! | 4.1.1-5, 4.2.1-5 | opcodes 3 to 7 and 11 to 15 | `g4_reserved_opcodes_fail` |
//! | 5.1, 5.2 | ping and pong in two fragments | `g5_fragmented_control_frames_fail` |
//! | 5.3-5.5 | text in two fragments | `g5_fragments_make_one_message` |
//! | 5.6-5.8, 5.19, 5.20 | pings between fragments, answered before the message is whole | `g5_pings_between_fragments_are_answered_at_once` |
//! | 5.9-5.18 | continuations of nothing, a new message inside one | `g5_fragments_out_of_place_fail` |
//! | 6.1.1-3 | empty text, empty fragments | `autobahn_utf8::empty_fragments` |
//! | 6.2.1-4 | valid UTF-8, whole, in fragments, cut inside characters | `autobahn_utf8::valid_text_however_it_is_cut` |
//! | 6.3.1, 6.3.2, and every other border | invalid UTF-8 | `autobahn_utf8::invalid_text_however_it_is_cut` |
//! | 6.4.1-4 | fail fast, by frames and by chops | `autobahn_utf8::invalid_text_fails_at_its_first_bad_byte` |
//! | 6.5-6.23 | valid and invalid sequences | `autobahn_utf8::valid_sequences`, `invalid_sequences` |
//! | 7.1.1 | a message and a close in one write: reply, then close | `g7_a_message_before_a_close_is_answered` |
//! | 7.1.2-7.1.5 | what follows a close | `g7_nothing_after_a_close_is_obeyed` |
//! | 7.1.6 | 256 KiB, a message, close, ping | `g7_a_close_behind_a_large_message` |
//! | 7.3.1-7.3.6 | close bodies of 0, 1, 2, up to 126 bytes | `g7_close_bodies` |
//! | 7.5.1 | close reason that is not UTF-8: 1007 | `g7_close_bodies` |
//! | 7.7.1-13, 7.9.1-9, 7.13.1-2 | close codes, valid: echoed, invalid: 1002 | `g7_close_codes` |
//! | 9.1.1-6, 9.2.1-6 | 64 KiB to 16 MiB, text and binary | `g9_large_messages` (above 1 MiB in full runs) |
//! | 9.3.1-9, 9.4.1-9 | 4 MiB in fragments of 64 B to 4 MiB | `g9_large_messages_in_fragments`; in more than 1,024 fragments: 1009, hubbub's bound |
//! | 9.5.1-6, 9.6.1-6 | 1 MiB in chops of 64 to 2,048 bytes | `g9_large_messages_in_chops` |
//! | 9.7.1-6, 9.8.1-6 | round trips of 0 to 4,096 bytes | `g9_round_trips` |
//! | 10.1.1 | 65,536 bytes in fragments of 1,300 | `g10_fragments_of_1300_bytes` |

mod common;

use common::cf::Cf;
use common::ws::{
    BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT, encode_with as frame, fragments,
};
use common::{Hub, Raw, SOON, ms, scaled};

const CHANNEL: &str = "echo";
const FRAGMENTS_MAX: usize = 1_024;

#[derive(Clone, Copy, Debug)]
enum Chops {
    Whole,
    Frames,
    Of(usize),
}

const ALL_CHOPS: [Chops; 3] = [Chops::Whole, Chops::Frames, Chops::Of(1)];

fn send(raw: &mut Raw, frames: &[Vec<u8>], chops: Chops) {
    match chops {
        Chops::Whole => raw.send_bytes(&frames.concat()),
        Chops::Frames => frames.iter().for_each(|frame| raw.send_bytes(frame)),
        Chops::Of(n) => frames.concat().chunks(n).for_each(|chop| raw.send_bytes(chop)),
    }
}

fn ping_command(id: u32) -> String {
    format!(r#"{{"id":{id},"ping":{{}}}}"#)
}

fn publish_command(id: u32, payload: &str) -> String {
    format!(r#"{{"id":{id},"publish":{{"channel":"{CHANNEL}","data":"{payload}"}}}}"#)
}

/// A publish command of exactly so many bytes, and the payload in it.
fn padded(id: u32, n_bytes: usize) -> (String, String) {
    let payload = "*".repeat(n_bytes - publish_command(id, "").len());
    (publish_command(id, &payload), payload)
}

fn json_session(hub: &Hub) -> Cf {
    Cf::subscribed(hub, &[CHANNEL])
}

fn raw_session(hub: &Hub) -> Raw {
    Raw::open(hub, &[CHANNEL])
}

fn expect_echo(cf: &mut Cf, payload: &str) {
    let publication = cf.next_pub(SOON).expect("the echo");
    let is_same = publication.data.strip_prefix('"').and_then(|d| d.strip_suffix('"'));
    assert!(is_same == Some(payload), "{} bytes, not {}", publication.data.len(), payload.len());
}

/// The reader goes on: a ping is answered.
fn expect_alive(raw: &mut Raw) {
    raw.send_frame(PING, b"still there?");
    assert_eq!(raw.next_pong(SOON).as_deref(), Some(&b"still there?"[..]));
}

/// The closing handshake, begun by us.
fn expect_clean_end(raw: &mut Raw) {
    raw.send_bytes(&frame(FIN | CLOSE, &1000_u16.to_be_bytes()));
    expect_closed(raw, 1000);
}

fn expect_closed(raw: &mut Raw, code: u16) {
    let close = raw.next_close(SOON).expect("a close frame");
    assert_eq!(close.code, code, "{close:?}");
    assert!(raw.wait_eof(SOON), "TCP ends after {code}");
}

/// After these frames the connection is failed with this code, on both kinds of session and
/// however they are cut. Replies to ping commands 1 to `n_replies` come first.
fn fails(hub: &Hub, frames: &[Vec<u8>], n_replies: u32, code: u16) {
    for chops in ALL_CHOPS {
        let mut cf = json_session(hub);
        send(&mut cf.raw, frames, chops);
        let close = cf.next_close(SOON);
        let close = close.unwrap_or_else(|| panic!("never closed: {frames:02x?} {chops:?}"));
        assert_eq!(close.code, code, "{close:?} after {frames:02x?} {chops:?}");
        assert!(!close.reason.is_empty() || code == 1009, "{close:?}");
        assert!(cf.raw.wait_eof(SOON));
        let answered = (1_001..=1_000 + n_replies).all(|id| cf.replies.contains_key(&id));
        assert!(answered, "what came before is answered: {:?}", cf.replies);
        assert!(cf.raw.pongs.is_empty(), "what comes after is not");
        let mut raw = raw_session(hub);
        send(&mut raw, frames, chops);
        expect_closed(&mut raw, code);
        assert!(raw.pongs.is_empty());
    }
}

/// A small message: its reply is the echo. `n` from 1 on.
fn small(n: u32) -> Vec<u8> {
    frame(FIN | TEXT, ping_command(1_000 + n).as_bytes())
}

#[test]
fn g1_messages_of_all_lengths() {
    let hub = Hub::start();
    for opcode in [TEXT, BINARY] {
        let mut raw = raw_session(&hub);
        raw.send_bytes(&frame(FIN | opcode, b""));
        expect_alive(&mut raw);
        expect_clean_end(&mut raw);
        let mut cf = json_session(&hub);
        let sizes = [125, 126, 127, 128, 65_535, 65_536];
        for (id, n_bytes) in (2_000..).zip(sizes) {
            let (command, payload) = padded(id, n_bytes);
            assert_eq!(command.len(), n_bytes);
            send(&mut cf.raw, &[frame(FIN | opcode, command.as_bytes())], Chops::Whole);
            expect_echo(&mut cf, &payload);
        }
        let (command, payload) = padded(2_010, 65_536);
        send(&mut cf.raw, &[frame(FIN | opcode, command.as_bytes())], Chops::Of(997));
        expect_echo(&mut cf, &payload);
        expect_clean_end(&mut cf.raw);
    }
}

fn both(hub: &Hub) -> [Raw; 2] {
    [json_session(hub).raw, raw_session(hub)]
}

#[test]
fn g2_pings_are_answered() {
    let hub = Hub::start();
    let all_bytes: Vec<u8> = (0..125).map(|n| n * 2).collect();
    let single: [&[u8]; 4] = [b"", b"Hello, world!", &[0, 255, 254, 253, 0, 255], &all_bytes];
    let ten: Vec<String> = (0..10).map(|n| format!("payload-{n}")).collect();
    for chops in ALL_CHOPS {
        for mut raw in both(&hub) {
            for payload in single {
                send(&mut raw, &[frame(FIN | PING, payload)], chops);
                assert_eq!(raw.next_pong(SOON).as_deref(), Some(payload));
            }
            let pings: Vec<_> = ten.iter().map(|text| frame(FIN | PING, text.as_bytes())).collect();
            send(&mut raw, &pings, chops);
            for text in &ten {
                assert_eq!(raw.next_pong(SOON).as_deref(), Some(text.as_bytes()));
            }
            expect_clean_end(&mut raw);
        }
    }
}

#[test]
fn g2_a_ping_of_126_bytes_fails() {
    fails(&Hub::start(), &[small(1), frame(FIN | PING, &[0xFE; 126])], 1, 1002);
}

#[test]
fn g2_pongs_nobody_asked_for_are_ignored() {
    let hub = Hub::start();
    for chops in ALL_CHOPS {
        for mut raw in both(&hub) {
            let pongs = [frame(FIN | PONG, b""), frame(FIN | PONG, b"unsolicited")];
            send(&mut raw, &pongs, chops);
            send(&mut raw, &[frame(FIN | PING, b"ping")], chops);
            assert_eq!(raw.next_pong(SOON).as_deref(), Some(&b"ping"[..]));
            expect_clean_end(&mut raw);
            assert!(raw.pongs.is_empty(), "{:?}", raw.pongs);
        }
    }
}

#[test]
fn g3_reserved_bits_fail() {
    let hub = Hub::start();
    for rsv in 1..=7u8 {
        for opcode in [TEXT, BINARY, PING, PONG, CLOSE] {
            let bad = frame(FIN | rsv << 4 | opcode, b"");
            fails(&hub, &[small(1), bad, frame(FIN | PING, b"")], 1, 1002);
        }
    }
}

#[test]
fn g4_reserved_opcodes_fail() {
    let hub = Hub::start();
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        for payload in [&b""[..], b"reserved opcode payload"] {
            let bad = frame(FIN | opcode, payload);
            fails(&hub, &[small(1), bad, frame(FIN | PING, b"")], 1, 1002);
        }
    }
}

#[test]
fn g5_fragmented_control_frames_fail() {
    let hub = Hub::start();
    for opcode in [PING, PONG, CLOSE] {
        let frames = [frame(opcode, b"fragment1"), frame(FIN | CONTINUATION, b"fragment2")];
        fails(&hub, &frames, 0, 1002);
    }
}

#[test]
fn g5_fragments_make_one_message() {
    let hub = Hub::start();
    let mut cf = json_session(&hub);
    let command = publish_command(2_000, "fragment1fragment2");
    for opcode in [TEXT, BINARY] {
        for chops in ALL_CHOPS {
            for n_bytes in [command.len() / 2 + 1, command.len() - 1, 7, 1] {
                send(&mut cf.raw, &fragments(opcode, command.as_bytes(), n_bytes), chops);
                expect_echo(&mut cf, "fragment1fragment2");
                assert!(cf.reply(2_000, SOON).is_some());
            }
        }
    }
    expect_clean_end(&mut cf.raw);
}

#[test]
fn g5_pings_between_fragments_are_answered_at_once() {
    let hub = Hub::start();
    let mut cf = json_session(&hub);
    let command = publish_command(2_000, "fragment1fragment2");
    for chops in ALL_CHOPS {
        let parts = fragments(TEXT, command.as_bytes(), command.len().div_ceil(5));
        let (last, first) = parts.split_last().expect("five parts");
        for pair in first.chunks(2) {
            let ping = frame(FIN | PING, b"pongme");
            send(&mut cf.raw, &[pair, &[ping]].concat(), chops);
            // The message isn't whole yet.
            assert_eq!(cf.raw.next_pong(SOON).as_deref(), Some(&b"pongme"[..]));
        }
        assert!(cf.replies.is_empty() && cf.raw.frames.is_empty());
        send(&mut cf.raw, std::slice::from_ref(last), chops);
        expect_echo(&mut cf, "fragment1fragment2");
        assert!(cf.reply(2_000, SOON).is_some());
    }
    expect_clean_end(&mut cf.raw);
}

#[test]
fn g5_fragments_out_of_place_fail() {
    let hub = Hub::start();
    for opcode in [CONTINUATION, FIN | CONTINUATION] {
        let stray = frame(opcode, b"non-continuation payload");
        fails(&hub, &[stray.clone(), small(1)], 0, 1002);
        let command = ping_command(1_001);
        let mut frames = fragments(TEXT, command.as_bytes(), command.len() / 2 + 1);
        frames.extend([stray.clone(), small(2)]);
        fails(&hub, &frames, 1, 1002);
        let text = fragments(TEXT, b"fragment2fragment3", 9);
        let round = [&[stray][..], &text].concat();
        fails(&hub, &[round.clone(), round].concat(), 0, 1002);
    }
    for second in [TEXT, FIN | TEXT, BINARY, FIN | BINARY] {
        fails(&hub, &[frame(TEXT, b"{"), frame(second, b"}")], 0, 1002);
    }
}

#[test]
fn g7_nothing_after_a_close_is_obeyed() {
    let hub = Hub::start();
    let mut witness = raw_session(&hub);
    let close = frame(FIN | CLOSE, &1000_u16.to_be_bytes());
    let text = frame(FIN | TEXT, publish_command(2_000, "after the close").as_bytes());
    let cases: [&[Vec<u8>]; 5] = [
        &[small(1), close.clone()],
        &[small(1), close.clone(), frame(FIN | CLOSE, b"")],
        &[small(1), close.clone(), frame(FIN | PING, b"after")],
        &[small(1), close.clone(), text],
        &[small(1), frame(TEXT, b"{"), close, frame(FIN | CONTINUATION, b"}")],
    ];
    for frames in cases {
        for chops in ALL_CHOPS {
            let mut cf = json_session(&hub);
            send(&mut cf.raw, frames, chops);
            assert_eq!(cf.next_close(SOON).map(|close| close.code), Some(1000));
            // A frame after the close frame would fail in `Raw::parse`.
            assert!(cf.raw.wait_eof(SOON));
            assert!(cf.raw.pongs.is_empty() && !cf.replies.contains_key(&2_000));
        }
    }
    assert!(witness.stays_quiet(ms(100)), "nothing was published");
}

#[test]
fn g7_a_message_before_a_close_is_answered() {
    let hub = Hub::start();
    for chops in ALL_CHOPS {
        let mut cf = json_session(&hub);
        let frames = [small(1), frame(FIN | CLOSE, &1000_u16.to_be_bytes())];
        send(&mut cf.raw, &frames, chops);
        assert_eq!(cf.next_close(SOON).map(|close| close.code), Some(1000));
        assert!(cf.replies.contains_key(&1_001), "{chops:?}: {:?}", cf.replies);
    }
}

#[test]
fn g7_a_close_behind_a_large_message() {
    let hub = large_hub();
    let mut cf = json_session(&hub);
    let frames = [
        frame(FIN | TEXT, padded(2_000, 256 * 1024).0.as_bytes()),
        small(1),
        frame(FIN | CLOSE, &1000_u16.to_be_bytes()),
        frame(FIN | PING, b""),
    ];
    send(&mut cf.raw, &frames, Chops::Whole);
    assert_eq!(cf.next_close(SOON).map(|close| close.code), Some(1000));
    assert!(cf.raw.wait_eof(SOON) && cf.raw.pongs.is_empty());
}

/// A close frame with this body is answered with this code, on both kinds of session.
fn assert_answer(hub: &Hub, body: &[u8], code: u16) {
    for mut raw in both(hub) {
        raw.send_bytes(&frame(FIN | CLOSE, body));
        let close = raw.next_close(SOON).unwrap_or_else(|| panic!("no answer to {body:02x?}"));
        assert_eq!(close.code, code, "{close:?} to {body:02x?}");
        assert!(raw.wait_eof(SOON), "TCP ends after {body:02x?}");
    }
}

#[test]
fn g7_close_bodies() {
    let hub = Hub::start();
    let body = |reason: &[u8]| [&1000_u16.to_be_bytes()[..], reason].concat();
    assert_answer(&hub, b"", 1000);
    assert_answer(&hub, b"a", 1002);
    assert_answer(&hub, &body(b""), 1000);
    assert_answer(&hub, &body(b"Hello World!"), 1000);
    assert_answer(&hub, &body(&[b'*'; 123]), 1000);
    assert_answer(&hub, &body(&[b'*'; 124]), 1002);
    let bad: [&[u8]; 5] = [
        b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
        b"\xff",
        b"cut \xe2\x82",
        b"\xc0\xaf",
        b"\xf4\x90\x80\x80",
    ];
    for reason in bad {
        assert_answer(&hub, &body(reason), 1007);
    }
}

#[test]
fn g7_close_codes() {
    let hub = Hub::start();
    let valid = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999];
    // Assigned by IANA after Autobahn's list was made.
    for code in valid.into_iter().chain([1012, 1013, 1014]) {
        assert_answer(&hub, &u16::to_be_bytes(code), code);
    }
    let invalid = [0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65_535];
    for code in invalid.into_iter().chain([1015]) {
        assert_answer(&hub, &u16::to_be_bytes(code), 1002);
    }
}

/// Takes messages of 16 MiB.
fn large_hub() -> Hub {
    let builder = Hub::builder().env("HUB_MESSAGE_BYTES_MAX", "17MiB");
    let builder = builder.env("HUB_PUBLICATION_BYTES_MAX", "17MiB");
    builder.env("HUB_OUTBOX_BYTES_MAX", "64MiB").start().wait_ready()
}

#[test]
fn g9_large_messages() {
    let hub = large_hub();
    let sizes: [usize; 6] = [64, 256, 1_024, 4 * 1_024, 8 * 1_024, 16 * 1_024];
    let mut cf = json_session(&hub);
    for opcode in [TEXT, BINARY] {
        for (id, kib) in (2_000..).zip(&sizes[..scaled(3, 6)]) {
            let (command, payload) = padded(id, kib * 1024);
            send(&mut cf.raw, &[frame(FIN | opcode, command.as_bytes())], Chops::Whole);
            expect_echo(&mut cf, &payload);
            assert!(cf.reply(id, SOON).is_some());
        }
    }
    expect_clean_end(&mut cf.raw);
}

#[test]
fn g9_large_messages_in_fragments() {
    let hub = large_hub();
    let n_bytes = scaled(1 << 20, 4 << 20);
    let (command, payload) = padded(2_000, n_bytes);
    for opcode in [TEXT, BINARY] {
        for exponent in 0..9 {
            let size = 64 << (2 * exponent);
            let frames = fragments(opcode, command.as_bytes(), size);
            let mut cf = json_session(&hub);
            if frames.len() > FRAGMENTS_MAX {
                // The rest may still be on its way when the hub has had enough.
                send(&mut cf.raw, &frames[..=FRAGMENTS_MAX], Chops::Whole);
                assert_eq!(cf.next_close(SOON).map(|close| close.code), Some(1009), "of {size}");
                continue;
            }
            send(&mut cf.raw, &frames, Chops::Whole);
            expect_echo(&mut cf, &payload);
            expect_clean_end(&mut cf.raw);
        }
    }
}

#[test]
fn g9_large_messages_in_chops() {
    let hub = large_hub();
    let (command, payload) = padded(2_000, scaled(1 << 18, 1 << 20));
    for opcode in [TEXT, BINARY] {
        let mut cf = json_session(&hub);
        for n_bytes in [64, 128, 256, 512, 1_024, 2_048] {
            let message = frame(FIN | opcode, command.as_bytes());
            send(&mut cf.raw, &[message], Chops::Of(n_bytes));
            expect_echo(&mut cf, &payload);
            assert!(cf.reply(2_000, SOON).is_some());
        }
        expect_clean_end(&mut cf.raw);
    }
}

#[test]
fn g9_round_trips() {
    let hub = Hub::start();
    for opcode in [TEXT, BINARY] {
        for n_bytes in [0, 16, 64, 256, 1_024, 4_096] {
            let mut cf = json_session(&hub);
            let payload = "*".repeat(n_bytes);
            for id in 0..scaled(50, 900) as u32 {
                let command = publish_command(2_000 + id, &payload);
                cf.raw.send_bytes(&frame(FIN | opcode, command.as_bytes()));
                expect_echo(&mut cf, &payload);
            }
            expect_clean_end(&mut cf.raw);
        }
    }
}

#[test]
fn g10_fragments_of_1300_bytes() {
    let hub = Hub::start();
    let (command, payload) = padded(2_000, 65_536);
    for opcode in [TEXT, BINARY] {
        let frames = fragments(opcode, command.as_bytes(), 1_300);
        assert_eq!(frames.len(), 51);
        for chops in [Chops::Whole, Chops::Frames, Chops::Of(997)] {
            let mut cf = json_session(&hub);
            send(&mut cf.raw, &frames, chops);
            expect_echo(&mut cf, &payload);
            expect_clean_end(&mut cf.raw);
        }
    }
}
