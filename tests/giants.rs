//! Promise: a message costs the hub the bytes that have arrived of it, whatever its frames declare or
//! into how many crumbs it is cut; the limit itself works. (Scenarios 57 and 58; Autobahn's cases, the
//! fragments by hand among them, are in `autobahn`.)

mod common;

use common::cf::{self, Cf};
use common::ws::{
    BINARY, CONTINUATION, Dial, FIN, PING, TEXT, encode, encode_with, fragments, raw_path,
};
use common::{Hub, Raw, SOON, drive, eventually, ms, scaled, secs};
use std::time::Duration;

const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// More fragments of one message are refused.
const FRAGMENTS_MAX: usize = 1_024;

/// The head of a text frame that declares so many bytes, in the form such a length has.
fn head(n_bytes: u64) -> Vec<u8> {
    let mut head = vec![FIN | TEXT];
    match u16::try_from(n_bytes) {
        Ok(length) => {
            head.push(0x80 | 126);
            head.extend(length.to_be_bytes());
        }
        Err(_) => {
            head.push(0x80 | 127);
            head.extend(n_bytes.to_be_bytes());
        }
    }
    head.extend([1, 2, 3, 4]);
    head
}

/// A command that is as long as a message may be, with its id.
fn largest_command(id: u32) -> String {
    let command =
        |data: &str| format!(r#"{{"id":{id},"publish":{{"channel":"a","data":"{data}"}}}}"#);
    command(&"x".repeat(MESSAGE_BYTES_MAX - command("").len()))
}

fn open(hub: &Hub, kind: usize) -> Raw {
    match kind % 3 {
        0 => Cf::dial(hub).raw,
        1 => Cf::connect(hub).raw,
        _ => Raw::open(hub, &["a"]),
    }
}

#[test]
fn declared_lengths_are_refused_at_the_head_and_cost_nothing() {
    // Who was refused stays around: the closing handshake is never finished.
    let hub = Hub::start();
    let n_each = scaled(40, 250);
    let declared = [
        (MESSAGE_BYTES_MAX as u64 + 1, 1009),
        (1 << 30, 1009),
        (i64::MAX as u64, 1009),
        (1 << 63, 1002),
        (u64::MAX, 1002),
    ];
    let mut clients: Vec<Raw> = (0..n_each * declared.len()).map(|i| open(&hub, i)).collect();
    let before = hub.anon_bytes();
    for (client, (n_bytes, _)) in clients.iter_mut().zip(declared.iter().cycle()) {
        client.answer_close = false;
        client.send_bytes(&head(*n_bytes));
    }
    assert!(drive(&mut clients, SOON, Raw::is_closed), "at once, without a byte of payload");
    let grown = hub.anon_bytes().saturating_sub(before);
    for (client, (n_bytes, code)) in clients.iter_mut().zip(declared.iter().cycle()) {
        let close = client.next_close(Duration::ZERO).expect("a close frame");
        assert_eq!(close.code, *code, "{n_bytes} declared: {close:?}");
    }
    let per_connection = grown / clients.len() as u64;
    println!("{} connections: {per_connection} bytes each", clients.len());
    assert!(per_connection < 8 * 1024, "{per_connection} bytes for a refused length");
    assert!(eventually(SOON, || hub.metric_sum("hubbub_connections") == 0.0), "closed for good");
}

/// What has arrived is kept, and little more: the buffer at most doubles.
#[test]
fn messages_that_never_end_cost_what_has_arrived() {
    let hub = Hub::start();
    let n_clients = scaled(60, 1_000);
    let mut clients: Vec<Raw> = (0..n_clients).map(|i| open(&hub, 1 + i % 2)).collect();
    let before = hub.anon_bytes();
    let grown = || (hub.anon_bytes().saturating_sub(before) / n_clients as u64) as usize;
    let received = || hub.metric_sum("hubbub_received_bytes_total") as usize;
    let all_arrived = |n_bytes: usize| assert!(eventually(SOON, || received() >= n_bytes));
    // The largest legal message is declared, a few bytes follow.
    let mut n_sent = received();
    let mut send = |bytes: &[u8]| {
        clients.iter_mut().for_each(|client| client.send_bytes(bytes));
        n_sent += clients.len() * bytes.len();
        n_sent
    };
    all_arrived(send(&head(MESSAGE_BYTES_MAX as u64 - 1)));
    let declared = grown();
    (0..20).for_each(|_| all_arrived(send(b"\x01")));
    let crumbs = grown();
    all_arrived(send(&[b'b'; MESSAGE_BYTES_MAX / 2]));
    let half = grown();
    println!("bytes each: {declared} declared, {crumbs} after crumbs, {half} after a half");
    assert!(declared < 4 * 1024, "{declared} bytes for what was only declared");
    assert!(crumbs < 4 * 1024, "{crumbs} bytes for 20 that arrived");
    assert!(half < MESSAGE_BYTES_MAX + 8 * 1024, "{half} bytes for 32 KiB");
    assert!(clients.iter_mut().all(|client| client.pump() && !client.is_closed()), "legal so far");
    drop(clients);
    assert!(eventually(SOON, || hub.metric_sum("hubbub_connections") == 0.0));
}

/// A session that sends a byte a second never gets to its pong: on JSON that is a message, too.
#[test]
fn a_message_in_crumbs_is_no_pong() {
    let builder = Hub::builder().env("HUB_PING_INTERVAL", "1s").env("HUB_PONG_TIMEOUT", "500ms");
    let hub = builder.start().wait_ready();
    let mut cf = Cf::connect(&hub);
    cf.answer_pings = false;
    cf.raw.send_bytes(&head(60_000));
    let closed = eventually(SOON, || {
        cf.raw.send_bytes(b"\x01");
        cf.next_close(ms(50)).is_some()
    });
    assert!(closed, "held for ever");
    assert_eq!(cf.next_close(ms(0)).map(|close| close.code), Some(3012));
}

#[test]
fn the_largest_message_works_whole_and_in_fragments() {
    let hub = Hub::start();
    let mut cf = Cf::subscribed(&hub, &["a"]);
    let message = largest_command(500);
    let fragment_sizes = [MESSAGE_BYTES_MAX, 32 * 1024, 1_000, MESSAGE_BYTES_MAX / FRAGMENTS_MAX];
    for size in fragment_sizes {
        cf.raw.send_bytes(&fragments(TEXT, message.as_bytes(), size).concat());
        let publication = cf.next_pub(SOON).unwrap_or_else(|| panic!("in fragments of {size}"));
        assert_eq!(publication.data.len(), message.len() - message.find("\"x").unwrap() - 2);
        assert!(cf.reply(500, SOON).is_some());
    }
    // One byte over, as a frame and as the fragment that goes beyond.
    let over = format!("{message} ");
    for size in [over.len(), over.len() - 1, 1_000] {
        let mut cf = Cf::connect(&hub);
        cf.raw.send_bytes(&fragments(TEXT, over.as_bytes(), size).concat());
        assert_eq!(cf.next_close(SOON).map(|close| close.code), Some(1009), "in {size}s");
    }
}

#[test]
fn endless_fragments_are_refused_at_their_bound() {
    let hub = Hub::start();
    for (kind, payload) in [(0, &b""[..]), (1, b""), (2, b""), (0, b" "), (2, b"x")] {
        let mut raw = open(&hub, kind);
        raw.send_bytes(&encode_with(TEXT, payload));
        let crumb = encode_with(CONTINUATION, payload);
        raw.send_bytes(&crumb.repeat(FRAGMENTS_MAX - 1));
        raw.send_frame(PING, b"so far");
        assert!(raw.next_pong(SOON).is_some(), "exactly the bound is fine");
        raw.send_bytes(&crumb);
        assert_eq!(raw.next_close(SOON).map(|close| close.code), Some(1009));
        assert!(raw.wait_eof(SOON));
    }
    // The bound is per message.
    let mut cf = Cf::connect(&hub);
    for id in 1..4 {
        let ping = format!(r#"{{"id":{id},"ping":{{}}}}{}"#, " ".repeat(1_000));
        let parts = fragments(TEXT, ping.as_bytes(), 1);
        assert!(parts.len() > FRAGMENTS_MAX - 20 && parts.len() <= FRAGMENTS_MAX);
        cf.raw.send_bytes(&parts.concat());
    }
    assert!((1..4).all(|id| cf.reply(id, SOON).is_some()));
}

/// Every fragment with a mask of its own, a ping between every two, in segments of a byte.
#[test]
fn crumbs_with_pings_between_are_one_command() {
    let hub = Hub::start();
    let mut cf = Cf::over(Dial::new(&hub, cf::PATH).open());
    let command = br#"{"id":1,"connect":{"name":"in crumbs"}}"#;
    let n_bytes = command.len();
    for (i, byte) in command.iter().enumerate() {
        let fin = if i + 1 == n_bytes { FIN } else { 0 };
        let opcode = if i == 0 { TEXT } else { CONTINUATION };
        let mask = [i as u8, 0x80, !(i as u8), 7];
        let crumb = [fin | opcode, 0x81, mask[0], mask[1], mask[2], mask[3], byte ^ mask[0]];
        crumb.chunks(1).for_each(|byte| cf.raw.send_bytes(byte));
        cf.raw.send_bytes(&encode(PING, &[i as u8]));
    }
    assert!(cf.reply(1, SOON).expect("one command")["connect"].is_object());
    let pongs: Vec<u8> = (0..n_bytes).map_while(|_| cf.raw.next_pong(SOON)).map(|p| p[0]).collect();
    assert_eq!(pongs, (0..n_bytes as u8).collect::<Vec<_>>());
}

/// Nothing that isn't checked is published or logged.
#[test]
fn bad_messages_leave_no_trace_but_their_close() {
    let hub = Hub::start();
    let mut witness = Raw::open(&hub, &["a"]);
    let publish = |data: &[u8]| {
        let before = br#"{"id":9,"publish":{"channel":"a","data":""#;
        [&before[..], data, b"\"}}"].concat()
    };
    let secret = b"SECRET-\xff-\x1b[31m\r\nPAYLOAD";
    let cases = [
        (encode(TEXT, &publish(secret)), 1007),
        ([encode_with(TEXT, &publish(b"SECRET")), encode(TEXT, b"{}")].concat(), 1002),
        ([encode_with(TEXT, &publish(b"SECRET")), encode(BINARY, secret)].concat(), 1002),
        (encode(BINARY, &publish(secret)), 3501),
        (encode(TEXT, &publish(b"SECRET\x1b[31m\r\n")), 3501),
    ];
    for (wire, code) in cases {
        let mut cf = Cf::connect(&hub);
        cf.raw.send_bytes(&wire);
        assert_eq!(cf.next_close(SOON).map(|close| close.code), Some(code));
    }
    assert!(witness.stays_quiet(ms(100)), "nothing was published");
    assert!(!hub.log_has("SECRET"), "{:?}", hub.log());
}

/// One that sends the largest legal thing, a byte at a time, holds up nobody on its shard.
#[test]
fn a_largest_message_byte_by_byte_arrives() {
    let hub = Hub::builder().env("HUB_SHARDS", 1).start().wait_ready();
    let mut slow = Cf::connect(&hub);
    let mut good = Cf::subscribed(&hub, &["a"]);
    let wire = encode(TEXT, largest_command(500).as_bytes());
    let (bulk, crumbs) = wire.split_at(wire.len() - scaled(3_000, 60_000));
    slow.raw.send_bytes(bulk);
    for (i, crumb) in crumbs.chunks(1).enumerate() {
        slow.raw.send_bytes(crumb);
        if i % 1_000 == 0 {
            hub.publish("b", i);
        }
    }
    assert!(good.next_pub(secs(5)).is_some_and(|publication| publication.data.len() > 65_000));
    assert!(slow.reply(500, SOON).is_some());
    let path = raw_path(&["a"]);
    assert!(Dial::new(&hub, &path).try_open().is_ok());
}
