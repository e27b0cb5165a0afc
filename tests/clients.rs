//! Promise: an official SDK's JSON connection gets from hubbub what protocol.md says, feature by
//! feature, and a client that breaks the rules is told so with a code and a reason.

mod common;

use common::cf::{self, Cf, publish, subscribe, unsubscribe};
use common::ws::Dial;
use common::{Close, Hub, QUIET, Redis, SOON, ms, secs};
use serde_json::{Value, json};
use std::time::Instant;

fn close(code: u16, reason: &str) -> Option<Close> {
    Some(Close { code, reason: reason.to_owned() })
}

/// The whole life of a dashboard, the same with both brokers.
fn a_session_from_connect_to_unsubscribe(hub: &Hub) {
    let mut watcher = Cf::connect(hub);
    watcher.subscribe("prices");
    let mut author = Cf::subscribed(hub, &["prices"]);
    let reply = author.command(publish("prices", &json!({ "eur": 1.25 })));
    assert_eq!(reply["publish"], json!({}), "{reply}");
    for cf in [&mut watcher, &mut author] {
        let publication = cf.next_pub(SOON).expect("the publication");
        assert_eq!(publication.channel, "prices");
        assert_eq!(publication.data, r#"{"eur":1.25}"#);
        assert!(publication.body.get("offset").is_none(), "no history, no offset");
    }
    watcher.unsubscribe("prices");
    author.command(publish("prices", &json!(2)));
    assert_eq!(author.next_pub(SOON).expect("own publication").data, "2");
    assert!(watcher.stays_quiet(QUIET), "unsubscribed means nothing more");
    watcher.subscribe("prices");
    hub.publish("prices", 3);
    assert_eq!(watcher.next_pub(SOON).expect("subscribed again").data, "3");
}

#[test]
fn a_session_with_the_memory_broker() {
    a_session_from_connect_to_unsubscribe(&Hub::start());
}

#[test]
fn a_session_with_redis() {
    let redis = Redis::start();
    a_session_from_connect_to_unsubscribe(&Hub::on(&redis));
}

#[test]
fn the_connect_reply_has_what_both_sdks_read() {
    let hub = Hub::start();
    let mut cf = Cf::dial(&hub);
    let reply = cf.command(json!({ "connect": { "name": "js", "flag": 1 } }));
    let result = &reply["connect"];
    let client = result["client"].as_str().expect("client");
    assert_eq!(client.len(), 36, "a UUID: {client}");
    assert_eq!(client.as_bytes()[14], b'4', "version 4: {client}");
    assert!(!result["version"].as_str().expect("version").is_empty());
    assert_eq!(result["ping"], 25);
    assert_eq!(result["pong"], true);
    for absent in ["expires", "ttl", "session", "node", "subs"] {
        assert!(result.get(absent).is_none(), "{absent} in {reply}");
    }
}

#[test]
fn connect_and_subscribes_share_a_frame() {
    let hub = Hub::start();
    let mut cf = Cf::dial(&hub);
    let mut commands = vec![json!({ "connect": {} })];
    let channels: Vec<String> = (0..20).map(|i| format!("tile{i}")).collect();
    commands.extend(channels.iter().map(|channel| subscribe(channel)));
    let ids = cf.send(commands);
    for id in &ids {
        let reply = cf.reply(*id, SOON).expect("a reply to each");
        assert!(reply.get("error").is_none(), "{reply}");
    }
    for (i, channel) in channels.iter().enumerate() {
        hub.publish(channel, i);
        assert_eq!(cf.next_pub(SOON).expect("live").channel, *channel);
    }
}

fn commands_of_a_frame_run_in_order(hub: &Hub) {
    let mut cf = Cf::connect(hub);
    let ids = cf.send(vec![
        subscribe("a"),
        publish("a", &json!("first")),
        unsubscribe("a"),
        publish("a", &json!("unheard")),
        subscribe("a"),
        publish("a", &json!("second")),
    ]);
    for id in ids {
        let reply = cf.reply(id, SOON).expect("a reply to each");
        assert!(reply.get("error").is_none(), "{reply}");
    }
    // The broker decides when a publication is live, so `first` may come after the unsubscribe.
    let mut last = cf.next_pub(SOON).expect("at least the second");
    while last.data != "\"second\"" {
        last = cf.next_pub(SOON).expect("the second");
    }
    // Ten publishes behind a subscribe that Redis hasn't confirmed yet: each comes back.
    let numbers = (0..10).map(|n| publish("b", &json!(n)));
    cf.send(std::iter::once(subscribe("b")).chain(numbers).collect());
    for n in 0..10 {
        assert_eq!(cf.next_pub(SOON).expect("own publication").data, n.to_string());
    }
}

#[test]
fn commands_of_a_frame_run_in_order_with_the_memory_broker() {
    commands_of_a_frame_run_in_order(&Hub::start());
}

#[test]
fn commands_of_a_frame_run_in_order_with_redis() {
    let redis = Redis::start();
    commands_of_a_frame_run_in_order(&Hub::on(&redis));
}

#[test]
fn publishes_that_wait_for_a_subscribe_are_bounded() {
    let hub = Hub::start();
    let mut cf = Cf::connect(&hub);
    let numbers = (0..200).map(|n| publish("a", &json!(n)));
    let ids = cf.send(std::iter::once(subscribe("a")).chain(numbers).collect());
    let replies = ids.iter().map(|id| cf.reply(*id, SOON).expect("a reply to each"));
    let refused = replies.filter(|reply| reply["error"]["code"] == 111).count();
    assert!((1..=136).contains(&refused), "{refused} of 200 are refused with 111");
    assert_eq!(cf.next_pub(SOON).expect("those held are published").data, "0");
}

#[test]
fn a_trailing_newline_and_a_stray_pong_are_harmless() {
    let hub = Hub::start();
    let mut cf = Cf::connect(&hub);
    cf.raw.send_text("{\"id\":90,\"subscribe\":{\"channel\":\"a\"}}\n");
    assert!(cf.reply(90, SOON).expect("a reply")["subscribe"].is_object());
    cf.raw.send_text("{}");
    cf.raw.send_text("{}\n{\"id\":91,\"unsubscribe\":{\"channel\":\"a\"}}");
    assert!(cf.reply(91, SOON).expect("a reply")["unsubscribe"].is_object());
    cf.raw.send_text(r#"{"id":92,"ping":{}}"#);
    cf.subscribe("a");
}

#[test]
fn keys_in_any_order_and_unknown_fields_are_fine() {
    let hub = Hub::start();
    let mut cf = Cf::dial(&hub);
    cf.raw.send_text(r#"{"connect":{"novel":[1,{"x":null}],"name":"js"},"id":7,"more":true}"#);
    assert!(cf.reply(7, SOON).expect("a reply")["connect"].is_object());
    cf.raw.send_text(r#" { "subscribe" : { "flag" : 1, "channel" : "sp\u0061ce" }, "id" : 8 } "#);
    assert!(cf.reply(8, SOON).expect("a reply")["subscribe"].is_object());
    hub.publish("space", 1);
    assert_eq!(cf.next_pub(SOON).expect("the escaped name is the channel").channel, "space");
}

#[test]
fn payloads_travel_as_they_are() {
    let redis = Redis::start();
    let hub = Hub::on(&redis);
    let mut cf = Cf::subscribed(&hub, &["p"]);
    let cases: [(&[u8], &str); 10] = [
        (br#"{"a" : 1.10,  "b":[ ]}"#, r#"{"a" : 1.10,  "b":[ ]}"#),
        (br#"123456789012345678901234567890"#, "123456789012345678901234567890"),
        (br#""\u00e9\/""#, r#""\u00e9\/""#),
        (b"null", "null"),
        ("\"\u{1F980}\u{2028}\"".as_bytes(), "\"\u{1F980}\u{2028}\""),
        (b"{\"a\":\r\n1}", "{\"a\":  1}"),
        (b"plain text", r#""plain text""#),
        (b"", r#""""#),
        (b"say \"hi\"\r\n\\", r#""say \"hi\"\r\n\\""#),
        (b"{\"cut\":", r#""{\"cut\":""#),
    ];
    for (sent, expected) in cases {
        redis.publish("p", sent);
        let publication = cf.next_pub(SOON).expect("each arrives");
        assert_eq!(publication.data, expected, "sent {:?}", String::from_utf8_lossy(sent));
    }
    redis.publish("p", [0xC3, 0x28]);
    redis.publish("p", "after the binary one");
    assert_eq!(cf.next_pub(SOON).expect("the next").data, r#""after the binary one""#);
}

#[test]
fn nested_json_is_bounded_without_recursion() {
    let redis = Redis::start();
    let hub = Hub::on(&redis);
    let mut cf = Cf::subscribed(&hub, &["deep"]);
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    redis.publish("deep", nested(100));
    assert_eq!(cf.next_pub(SOON).expect("a legal depth").data, nested(100));
    redis.publish("deep", nested(300_000));
    let too_deep = cf.next_pub(SOON).expect("as text, like anything that is no JSON");
    assert_eq!(serde_json::from_str::<String>(&too_deep.data).unwrap(), nested(300_000));
}

#[test]
fn features_that_are_off_say_so() {
    let hub = Hub::start();
    let mut cf = Cf::subscribed(&hub, &["a"]);
    for kind in ["presence", "presence_stats", "history"] {
        let error = cf.error(json!({ kind: { "channel": "a" } }));
        assert_eq!((&error["code"], &error["message"]), (&json!(108), &json!("not available")));
    }
    assert_eq!(cf.error(json!({ "rpc": { "method": "m", "data": {} } }))["code"], 108);
    cf.raw.send_text(r#"{"send":{"data":{}}}"#);
    assert_eq!(cf.next_close(SOON), close(3508, "not available"));
}

#[test]
fn errors_that_leave_the_connection_open() {
    let hub = Hub::builder().env("HUB_CHANNELS_MAX", 3).start().wait_ready();
    let mut cf = Cf::subscribed(&hub, &["a", "b", "c"]);
    let code = |error: Value| error["code"].as_u64().expect("a code");
    let twice = cf.error(subscribe("a"));
    assert_eq!(twice["message"], "already subscribed");
    assert_eq!(code(twice), 105);
    let over = cf.error(subscribe("d"));
    assert_eq!(over["message"], "limit exceeded");
    assert_eq!(code(over), 106);
    for name in [&"x".repeat(256), "ws:control", "ws:node:1", "__keyspace@0__:a", "caf\u{e9}"] {
        let error = cf.error(subscribe(name));
        assert_eq!(error["message"], "bad request", "{name}");
        assert_eq!(code(error), 107, "{name}");
    }
    assert_eq!(code(cf.error(json!({ "publish": { "channel": "a" } }))), 107, "no data");
    assert_eq!(code(cf.error(publish("ws:control", &json!(1)))), 107);
    assert!(cf.command(unsubscribe("never had"))["unsubscribe"].is_object());
    cf.unsubscribe("a");
    cf.subscribe(&"x".repeat(255));
    let reply = cf.command(publish("b", &Value::Null));
    assert!(reply["publish"].is_object(), "null is data: {reply}");
    assert_eq!(cf.next_pub(SOON).expect("null arrives").data, "null");
}

#[test]
fn broken_input_is_closed_with_bad_request() {
    let hub = Hub::start();
    let lines = [
        "no json",
        "{\"id\":5",
        "[]",
        "",
        "{\"id\":5,\"subscribe\":{\"channel\":\"a\"}}\n\n{\"id\":6,\"subscribe\":{\"channel\":\"b\"}}",
        r#"{"id":5,"teleport":{}}"#,
        r#"{"id":5}"#,
        r#"{"id":5,"connect":{}}"#,
        r#"{"id":5,"subscribe":{}}"#,
        r#"{"id":5,"subscribe":{"channel":""}}"#,
        r#"{"id":5,"subscribe":{"channel":7}}"#,
        r#"{"id":5,"unsubscribe":{"channel":""}}"#,
        r#"{"id":5,"publish":{"channel":"","data":1}}"#,
        r#"{"id":-1,"subscribe":{"channel":"a"}}"#,
        r#"{"id":4294967296,"subscribe":{"channel":"a"}}"#,
        r#"{"id":5,"refresh":{}}"#,
    ];
    for line in lines {
        let mut cf = Cf::connect(&hub);
        cf.raw.send_text(line);
        assert_eq!(cf.next_close(SOON), close(3501, "bad request"), "after {line:?}");
        assert!(cf.raw.wait_eof(SOON), "TCP ends too, after {line:?}");
    }
    let closes = hub.metrics().get("hubbub_closes_total{code=\"3501\"}");
    assert!(closes >= lines.len() as f64, "counted {closes}");
}

#[test]
fn commands_before_a_bad_line_are_answered_first() {
    let hub = Hub::start();
    let mut cf = Cf::connect(&hub);
    cf.raw.send_text("{\"id\":5,\"subscribe\":{\"channel\":\"a\"}}\noops");
    assert_eq!(cf.next_close(SOON), close(3501, "bad request"));
    let answered = cf.replies.get(&5).is_some_and(|reply| reply["subscribe"].is_object());
    assert!(answered, "{:?}", cf.replies);
}

#[test]
fn connect_comes_first() {
    let hub = Hub::start();
    for command in [subscribe("a"), publish("a", &json!(1)), json!({ "rpc": { "data": 1 } })] {
        let mut cf = Cf::dial(&hub);
        cf.send(vec![command]);
        assert_eq!(cf.next_close(SOON), close(3501, "bad request"));
        assert!(cf.replies.is_empty());
    }
}

#[test]
fn who_never_connects_is_stale() {
    let hub = Hub::builder().env("HUB_STALE_TIMEOUT", "500ms").start().wait_ready();
    let began = Instant::now();
    let mut silent = Cf::dial(&hub);
    let mut connected = Cf::connect(&hub);
    assert_eq!(silent.next_close(SOON), close(3502, "stale"));
    assert!(began.elapsed() >= ms(450), "not before its time: {:?}", began.elapsed());
    assert!(connected.stays_quiet(QUIET), "a connected client is not stale");
}

#[test]
fn pings_are_sent_and_a_missing_pong_closes() {
    let hub = Hub::builder()
        .env("HUB_PING_INTERVAL", "1s")
        .env("HUB_PONG_TIMEOUT", "500ms")
        .start()
        .wait_ready();
    let mut good = Cf::dial(&hub);
    let reply = good.command(json!({ "connect": {} }));
    assert_eq!((&reply["connect"]["ping"], &reply["connect"]["pong"]), (&json!(1), &json!(true)));
    let mut mute = Cf::connect(&hub);
    mute.answer_pings = false;
    let began = Instant::now();
    let mut closed = None;
    while closed.is_none() && began.elapsed() < SOON {
        closed = mute.next_close(ms(20));
        good.pump(); // This client answers pings only while it reads.
    }
    assert_eq!(closed, close(3012, "no pong"));
    assert!(began.elapsed() >= ms(900), "ping and timeout: {:?}", began.elapsed());
    assert!(mute.n_pings >= 1);
    // Traffic is no substitute: the python SDK counts pings alone.
    let mut busy = Cf::subscribed(&hub, &["busy"]);
    let end = Instant::now() + ms(3500);
    let mut n = 0;
    while Instant::now() < end {
        hub.publish("busy", n);
        assert_eq!(busy.next_pub(SOON).expect("live").data, n.to_string());
        busy.wait(ms(20), |_| false);
        good.pump();
        n += 1;
    }
    assert!(busy.n_pings >= 2, "{} pings in 3.5 s", busy.n_pings);
    assert!(good.n_pings >= 2 && !good.raw.is_closed(), "who answers stays");
}

#[test]
fn other_commands_are_no_pong() {
    let hub = Hub::builder()
        .env("HUB_PING_INTERVAL", "1s")
        .env("HUB_PONG_TIMEOUT", "500ms")
        .start()
        .wait_ready();
    let mut cf = Cf::connect(&hub);
    cf.answer_pings = false;
    let began = Instant::now();
    while cf.next_close(ms(50)).is_none() {
        assert!(began.elapsed() < SOON, "never closed");
        cf.send(vec![unsubscribe("x")]);
    }
    assert_eq!(cf.next_close(SOON), close(3012, "no pong"));
}

#[test]
fn subprotocols() {
    let hub = Hub::start();
    let dial = || Dial::new(&hub, cf::PATH);
    let plain = dial().open();
    assert_eq!(plain.header("sec-websocket-protocol"), None);
    let python = dial().header("Sec-WebSocket-Protocol", "").open();
    assert_eq!(python.header("sec-websocket-protocol"), None, "an empty header is no offer");
    let json = dial().header("Sec-WebSocket-Protocol", "unknown, centrifuge-json").open();
    assert_eq!(json.header("sec-websocket-protocol"), Some("centrifuge-json"));
    let unknown = dial().header("Sec-WebSocket-Protocol", "unknown").open();
    assert_eq!(unknown.header("sec-websocket-protocol"), None);
    let mut cf = Cf::over(python);
    assert!(cf.command(json!({ "connect": {} }))["connect"].is_object());
    let compressed = dial().header("Sec-WebSocket-Extensions", "permessage-deflate").open();
    assert_eq!(compressed.header("sec-websocket-extensions"), None);
    let query = Dial::new(&hub, "/connection/websocket?cf_protocol_version=v2&x=y").open();
    assert!(Cf::over(query).command(json!({ "connect": {} }))["connect"].is_object());
}

#[test]
fn the_upgrade_insists_on_being_one() {
    let hub = Hub::start();
    assert_eq!(hub.get(cf::PATH).status, 400);
    assert_eq!(hub.get("/connection/websocket/").status, 404);
    let evil = Dial::new(&hub, cf::PATH).header("Origin", "http://evil.example").try_open();
    assert_eq!(evil.err().expect("a foreign page under dev").status, 403);
    for origin in ["http://localhost:3000", "http://127.0.0.1:8000", "null"] {
        Dial::new(&hub, cf::PATH).header("Origin", origin).open();
    }
}

#[test]
fn a_message_over_the_limit_closes_with_1009() {
    let hub = Hub::builder().env("HUB_MESSAGE_BYTES_MAX", "4KiB").start().wait_ready();
    let of_size = |n: usize| {
        let command = |pad: usize| {
            format!(r#"{{"id":9,"publish":{{"channel":"a","data":"{}"}}}}"#, "x".repeat(pad))
        };
        command(n - command(0).len())
    };
    let mut cf = Cf::connect(&hub);
    cf.raw.send_text(&of_size(4096));
    assert!(cf.reply(9, SOON).expect("exactly the limit is fine")["publish"].is_object());
    cf.raw.send_text(&of_size(4097));
    assert_eq!(cf.next_close(SOON).expect("a close frame").code, 1009);
    // On the declared length already: the payload never comes.
    // In the fewest bytes, which RFC 6455, 5.2 demands.
    let in_16_bits = [&[0x81, 0xFE][..], &4097_u16.to_be_bytes()].concat();
    let in_64_bits = |n: u64| [&[0x81, 0xFF][..], &n.to_be_bytes()].concat();
    for declared in [in_16_bits, in_64_bits(1 << 30), in_64_bits(i64::MAX as u64)] {
        let mut cf = Cf::connect(&hub);
        cf.raw.send_bytes(&[&declared[..], &[1, 2, 3, 4]].concat());
        assert_eq!(cf.next_close(SOON).expect("a close frame").code, 1009, "{declared:?}");
    }
}

#[test]
fn frames_that_break_rfc_6455_close_with_1002() {
    let hub = Hub::start();
    let cases: [(&str, &[u8]); 7] = [
        ("a length not in the fewest bytes", &[0x81, 0xFE, 0, 5, 0, 0, 0, 0]),
        ("unmasked", &[0x81, 2, b'{', b'}']),
        ("reserved bit", &[0xC1, 0x82, 0, 0, 0, 0, b'{', b'}']),
        ("opcode 3", &[0x83, 0x80, 0, 0, 0, 0]),
        ("stray continuation", &[0x80, 0x82, 0, 0, 0, 0, b'{', b'}']),
        ("fragmented ping", &[0x09, 0x80, 0, 0, 0, 0]),
        ("long ping", &[0x89, 0xFE, 0, 126, 0, 0, 0, 0]),
    ];
    for (name, bytes) in cases {
        let mut cf = Cf::connect(&hub);
        cf.raw.send_bytes(bytes);
        assert_eq!(cf.next_close(SOON).expect("a close frame").code, 1002, "{name}");
    }
    let mut cf = Cf::connect(&hub);
    cf.raw.send_frame(common::ws::TEXT, &[b'"', 0xC3, 0x28, b'"']);
    assert_eq!(cf.next_close(SOON).expect("a close frame").code, 1007, "text that is not UTF-8");
}

#[test]
fn a_command_in_crumbs_and_fragments_is_one_command() {
    let hub = Hub::start();
    let mut cf = Cf::dial(&hub);
    let connect = br#"{"id":1,"connect":{}}"#;
    for (i, byte) in connect.iter().enumerate() {
        let opcode = if i == 0 { common::ws::TEXT } else { 0 };
        let mut frame = common::ws::encode(opcode, &[*byte]);
        if i + 1 < connect.len() {
            frame[0] &= 0x7F;
        }
        // TCP_NODELAY: nearly every byte is a segment of its own.
        frame.chunks(1).for_each(|byte| cf.raw.send_bytes(byte));
        cf.raw.send_frame(common::ws::PING, b"between");
    }
    assert!(cf.reply(1, SOON).expect("a reply")["connect"].is_object());
    cf.raw.send_frame(common::ws::CLOSE, &1000_u16.to_be_bytes());
    assert!(cf.raw.wait_eof(secs(5)), "the closing handshake ends");
}

#[test]
fn without_permission_nobody_connects_and_the_log_says_what_to_set() {
    let hub = Hub::builder().without_dev().start();
    assert!(common::eventually(SOON, || hub.get("/health").status == 200));
    let mut cf = Cf::dial(&hub);
    cf.send(vec![json!({ "connect": {} }), subscribe("a")]);
    assert_eq!(cf.next_close(SOON), close(3501, "bad request"));
    assert!(cf.replies.is_empty(), "no reply: {:?}", cf.replies);
    assert!(common::eventually(SOON, || hub.log_has("HUB_ALLOW_ANONYMOUS")), "{:?}", hub.log());
    assert!(hub.log_has("HUB_DEV"), "{:?}", hub.log());
}

#[test]
fn anonymous_clients_may_connect_where_allowed() {
    let hub = Hub::builder().without_dev().env("HUB_ALLOW_ANONYMOUS", true).start().wait_ready();
    let mut cf = Cf::connect(&hub);
    // Connecting is all the knob grants: channels default to authenticated users.
    assert_eq!(cf.error(subscribe("a"))["code"], 103);
}
