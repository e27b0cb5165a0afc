//! Promise: on `/ws` each frame is exactly one published payload, and nothing else is sent.

mod common;

use common::ws::{BINARY, Close, Dial, PING, TEXT, raw_path};
use common::{Cf, Hub, QUIET, Raw, Redis, SOON, eventually, ms, secs};

#[test]
fn payloads_arrive_exactly() {
    let redis = Redis::start();
    let hub = Hub::on(&redis);
    let mut raw = Raw::open(&hub, &["a"]);
    let all_bytes: Vec<u8> = (0..=255).collect();
    let cases: [(&[u8], u8); 8] = [
        (b"{\"a\": 1,\r\n \"b\" : [ ] }\n", TEXT),
        (b"plain \"text\"\r\n$3\r\nfoo\r\n", TEXT),
        (b"", TEXT),
        ("\u{1F980}\u{0}".as_bytes(), TEXT),
        (&[0xC3, 0x28], BINARY),
        (&all_bytes, BINARY),
        (&[0xED, 0xA0, 0x80], BINARY),
        (&[0xF0, 0x9F, 0xA6], BINARY),
    ];
    for (payload, opcode) in cases {
        redis.publish("a", payload);
        let frame = raw.next_data(SOON).expect("each arrives");
        assert_eq!(frame.payload, payload);
        assert_eq!(frame.opcode, opcode, "{payload:?}");
    }
    for n_bytes in [125, 126, 127, 65_535, 65_536, 1 << 20] {
        let payload = vec![b'x'; n_bytes];
        redis.publish("a", &payload);
        assert!(raw.next_data(SOON).expect("every size").payload == payload, "{n_bytes} bytes");
    }
}

#[test]
fn publications_of_the_api_and_of_clients_arrive_too() {
    let hub = Hub::start();
    let mut raw = Raw::open(&hub, &["a"]);
    let body = r#"{"channel":"a","data":{"x" : 1.10}}"#;
    assert!(hub.http("POST", "/api/publish", body).is_result());
    assert_eq!(raw.next_data(SOON).expect("from the API").text(), r#"{"x" : 1.10}"#);
    let mut cf = Cf::connect(&hub);
    cf.raw.send_text(r#"{"id":50,"publish":{"channel":"a","data":[1, 2]}}"#);
    assert_eq!(raw.next_data(SOON).expect("from a client").text(), "[1, 2]");
    let binary = r#"{"channel":"a","b64data":"wyg="}"#;
    assert!(hub.http("POST", "/api/publish", binary).is_result());
    let frame = raw.next_data(SOON).expect("bytes");
    assert_eq!((frame.opcode, frame.payload), (BINARY, vec![0xC3, 0x28]));
}

#[test]
fn several_channels_on_one_socket_and_each_counts_once() {
    let hub = Hub::start();
    let mut raw = Raw::open(&hub, &["a", "b", "a", "a", "na+me&=%:x"]);
    for (i, channel) in ["a", "b", "na+me&=%:x", "a"].into_iter().enumerate() {
        hub.publish(channel, i);
        assert_eq!(raw.next_data(SOON).expect("each channel").text(), i.to_string());
    }
    hub.publish("c", "not ours");
    assert!(raw.stays_quiet(QUIET), "once each, and no other channel");
    assert_eq!(hub.metric_sum("hubbub_subscriptions"), 3.0);
    assert_eq!(hub.metric_sum("hubbub_channels"), 3.0);
    drop(raw);
    assert!(eventually(SOON, || hub.metric_sum("hubbub_subscriptions") == 0.0));
    assert!(eventually(SOON, || hub.metric_sum("hubbub_connections") == 0.0));
}

#[test]
fn bad_requests_are_refused_before_the_upgrade() {
    let hub = Hub::builder().env("HUB_CHANNELS_MAX", 4).start().wait_ready();
    let long = "x".repeat(256);
    let bad: [(&str, &[&str]); 7] = [
        ("no channel", &[]),
        ("an empty one", &["a", ""]),
        ("too many", &["a", "b", "c", "d", "e"]),
        ("too long", &[&long]),
        ("hubbub's own", &["ws:control"]),
        ("Redis' own", &["__keyspace@0__:a"]),
        ("not ASCII", &["caf\u{e9}"]),
    ];
    for (what, channels) in bad {
        let refused = Dial::new(&hub, &raw_path(channels)).try_open().err();
        assert_eq!(refused.unwrap_or_else(|| panic!("{what} is accepted")).status, 400, "{what}");
    }
    assert_eq!(hub.get("/ws?channel=a").status, 400, "no upgrade");
    let foreign = Dial::new(&hub, "/ws?channel=a").header("Origin", "http://evil.example");
    assert_eq!(foreign.try_open().err().expect("a foreign page").status, 403);
    Raw::open(&hub, &["a", "b", "c", "d"]);
    Raw::open(&hub, &["a", "b", "c", "d", "a", "b"]);
}

#[test]
fn nobody_without_permission() {
    let hub = Hub::builder().without_dev().start();
    assert!(eventually(SOON, || hub.get("/health").status == 200));
    let refused = Dial::new(&hub, "/ws?channel=a").try_open().err().expect("refused");
    assert!([401, 403].contains(&refused.status), "{refused:?}");
}

#[test]
fn websocket_pings_keep_it_alive_and_are_all_it_gets() {
    let hub = Hub::builder()
        .env("HUB_PING_INTERVAL", "1s")
        .env("HUB_PONG_TIMEOUT", "500ms")
        .start()
        .wait_ready();
    let mut raw = Raw::open(&hub, &["a"]);
    let mut mute = Raw::open(&hub, &["a"]);
    mute.answer_pings = false;
    assert!(raw.stays_quiet(secs(4)), "pings only");
    assert!(raw.n_pings >= 2, "{} pings in 4 s", raw.n_pings);
    let expected = Close { code: 3012, reason: "no pong".to_owned() };
    assert_eq!(mute.next_close(SOON), Some(expected));
    assert!(mute.frames.is_empty());
}

#[test]
fn frames_from_the_client_are_ignored() {
    let hub = Hub::builder().env("HUB_MESSAGE_BYTES_MAX", "4KiB").start().wait_ready();
    let mut raw = Raw::open(&hub, &["a"]);
    raw.send_text(r#"{"id":1,"publish":{"channel":"a","data":1}}"#);
    raw.send_text("");
    raw.send_frame(BINARY, &[0xC3, 0x28]);
    raw.send_frame(PING, b"p");
    assert!(raw.stays_quiet(ms(200)));
    hub.publish("a", "still here");
    assert_eq!(raw.next_data(SOON).expect("live").text(), "\"still here\"");
    raw.send_frame(BINARY, &[0; 4097]);
    assert_eq!(raw.next_close(SOON).expect("limited").code, 1009);
}

#[test]
fn what_is_published_before_the_upgrade_is_answered_or_after_never_falls_between() {
    // The upgrade's 101 is the subscribe reply of the raw transport.
    let redis = Redis::start();
    let hub = Hub::on(&redis);
    for round in 0..50 {
        let channel = format!("fresh{round}");
        let mut raw = Raw::open(&hub, &[&channel]);
        redis.publish(&channel, "first");
        assert_eq!(raw.next_data(SOON).expect("the first").text(), "first", "round {round}");
    }
}
