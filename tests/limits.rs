//! Promise: each limit has its documented answer and its counter, and whoever keeps within them
//! is served while others are at theirs.

mod common;

use common::cf::{self, unsubscribe};
use common::http::wait_closed;
use common::ws::{Dial, PING, raw_path};
use common::{Cf, Close, Hub, Raw, SOON, drive, eventually, ms, secs};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

#[test]
fn clients_over_the_limit_get_503_and_the_rest_works_on() {
    let hub = Hub::builder().env("HUB_CONNECTIONS_MAX", 20).start().wait_ready();
    let mut clients: Vec<Cf> = (0..20).map(|_| Cf::subscribed(&hub, &["a"])).collect();
    for path in [cf::PATH.to_owned(), raw_path(&["a"])] {
        let refused = Dial::new(&hub, &path).try_open().err().expect("one too many");
        assert_eq!(refused.status, 503, "{refused:?}");
        assert!(refused.header("retry-after").is_some(), "{refused:?}");
    }
    assert_eq!(hub.get("/health").status, 200);
    assert_eq!(hub.get("/ready").status, 200, "full is not broken");
    assert_eq!(hub.metrics().get("hubbub_refused_total{reason=\"connections_max\"}"), 2.0);
    hub.publish("a", 1);
    for client in &mut clients {
        assert_eq!(client.next_pub(SOON).expect("the API works at the limit").data, "1");
    }
    drop(clients.pop());
    assert!(eventually(SOON, || Dial::new(&hub, cf::PATH).try_open().is_ok()), "room again");
}

#[test]
fn sockets_that_say_nothing_make_room() {
    let hub = Hub::builder().env("HUB_HANDSHAKES_MAX", 40).start().wait_ready();
    let mut good = Cf::subscribed(&hub, &["a"]);
    let silent: Vec<TcpStream> =
        (0..400).map(|_| TcpStream::connect(hub.addr).expect("accepted")).collect();
    let mut late = Cf::subscribed(&hub, &["a"]);
    hub.publish("a", 1);
    assert_eq!(good.next_pub(SOON).expect("not touched").data, "1");
    assert_eq!(late.next_pub(SOON).expect("not kept out").data, "1");
    let few = || hub.metric_sum("hubbub_http_connections") <= 42.0;
    assert!(eventually(SOON, few), "bounded: {}", hub.metric_sum("hubbub_http_connections"));
    let evicted = hub.metrics().get("hubbub_refused_total{reason=\"handshakes_max\"}");
    assert!(evicted >= 350.0, "{evicted} evicted");
    let mut first = silent.into_iter().next().expect("one of 400");
    assert!(wait_closed(&mut first, SOON), "the oldest is gone");
}

#[test]
fn requests_that_never_end_are_ended() {
    let hub = Hub::builder().env("HUB_HANDSHAKE_TIMEOUT", "500ms").start().wait_ready();
    let host = format!("Host: {}\r\n", hub.addr);
    let half_head = format!("GET /connection/websocket HTTP/1.1\r\n{host}Upg");
    let half_body =
        format!("POST /api/publish HTTP/1.1\r\n{host}Content-Length: 100\r\n\r\n{{\"channel\":");
    for sent in [String::new(), half_head, half_body] {
        let mut stream = TcpStream::connect(hub.addr).expect("accepted");
        let began = Instant::now();
        stream.write_all(sent.as_bytes()).expect("sent");
        assert!(wait_closed(&mut stream, secs(3)), "after {sent:?}");
        assert!(began.elapsed() >= ms(400), "not before its time, after {sent:?}");
    }
    assert_eq!(hub.metric_sum("hubbub_connections"), 0.0);
}

#[test]
fn large_heads_are_refused() {
    let hub = Hub::start();
    let mut stream = TcpStream::connect(hub.addr).expect("accepted");
    let head = format!("GET /health HTTP/1.1\r\nHost: {}\r\n", hub.addr);
    let filler = format!("X-Filler: {}\r\n", "x".repeat(1_000));
    // It may be cut in the middle.
    let _ = stream.write_all((head + &filler.repeat(2_000) + "\r\n").as_bytes());
    let mut answer = Vec::new();
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(hub.get("/health").status, 200);
}

fn too_many_requests() -> Option<Close> {
    Some(Close { code: 3013, reason: "too many requests".to_owned() })
}

#[test]
fn commands_over_the_rate_get_111_and_then_the_door() {
    let hub = Hub::builder().env("HUB_COMMAND_RATE", "10/s").start().wait_ready();
    let mut good = Cf::subscribed(&hub, &["a"]);
    let mut cf = Cf::connect(&hub);
    // Under changing names: it is the commands that count.
    let ids = cf.send((0..120).map(|n| unsubscribe(&format!("x{n}"))).collect());
    let replies: Vec<_> = ids.iter().map(|id| cf.reply(*id, SOON).expect("a reply")).collect();
    let n_refused = replies.iter().filter(|reply| reply["error"]["code"] == 111).count();
    // A hundred at once, the connect among them; the clock may tick meanwhile.
    assert!((10..=21).contains(&n_refused), "{n_refused} of 120 refused");
    cf.send((0..120).map(|n| unsubscribe(&format!("y{n}"))).collect());
    assert_eq!(cf.next_close(SOON), too_many_requests());
    let mut raw = Raw::open(&hub, &["a"]);
    (0..250).for_each(|_| raw.send_text("ignored"));
    assert_eq!(raw.next_close(SOON), too_many_requests());
    let mut pinging = Cf::connect(&hub);
    (0..250).for_each(|_| pinging.raw.send_frame(PING, b"p"));
    assert_eq!(pinging.next_close(SOON), too_many_requests());
    hub.publish("a", 1);
    assert_eq!(good.next_pub(SOON).expect("within its rate").data, "1");
    assert!(hub.metric_sum("hubbub_commands_over_rate_total") >= 75.0);
}

#[test]
fn one_address_has_so_many_clients() {
    let hub = Hub::builder()
        .env("HUB_CONNECTIONS_PER_IP", 3)
        .env("HUB_TRUSTED_PROXIES", "127.0.0.0/8")
        .start()
        .wait_ready();
    let dial =
        |forwarded: &str| Dial::new(&hub, cf::PATH).header("X-Forwarded-For", forwarded).try_open();
    let _kept: Vec<Raw> = ["2001:db8::1", "2001:db8::2", "198.51.100.9, 2001:db8::3"]
        .map(|address| dial(address).expect("within the limit"))
        .into();
    let refused = dial("2001:db8::ffff:1").err().expect("the same /64");
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(refused.header("retry-after").is_some());
    assert!(dial("2001:db8:0:1::1").is_ok(), "another /64");
    for junk in ["unknown", "", "1.2.3.4.5", "[::1", "a,b,c", "::1%eth0"] {
        assert!(dial(junk).is_ok(), "counts for the proxy itself: {junk:?}");
    }
    assert!(hub.metrics().get("hubbub_refused_total{reason=\"connections_per_ip\"}") == 1.0);
    // Who isn't trusted says nothing about who he is.
    let hub = Hub::builder().env("HUB_CONNECTIONS_PER_IP", 1).start().wait_ready();
    let dial =
        |forwarded: &str| Dial::new(&hub, cf::PATH).header("X-Forwarded-For", forwarded).try_open();
    let _first = dial("198.51.100.1").expect("the first");
    assert_eq!(dial("198.51.100.2").err().expect("the same peer").status, 429);
}

#[test]
fn so_many_clients_a_second() {
    let hub = Hub::builder().env("HUB_CONNECT_RATE", "1/s").start().wait_ready();
    let answers: Vec<_> = (0..30).map(|_| Dial::new(&hub, cf::PATH).try_open()).collect();
    let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!((15..=20).contains(&refused.len()), "{} of 30 refused", refused.len());
    assert!(refused.iter().all(|refused| refused.status == 503));
    assert!(eventually(SOON, || Dial::new(&hub, cf::PATH).try_open().is_ok()), "later, gladly");
}

#[test]
fn all_outboxes_together_are_bounded() {
    let hub = Hub::builder()
        .env("HUB_OUTBOX_TOTAL_BYTES", "1MiB")
        .env("HUB_WRITE_TIMEOUT", "60s")
        .start()
        .wait_ready();
    // Each with a channel of its own, so that none shares its log; each far under its own bound.
    let n_stalled = 40;
    let stalled: Vec<Raw> = (0..n_stalled)
        .map(|n| Dial::new(&hub, &raw_path(&[&format!("own{n}")])).rcvbuf(4096).open())
        .collect();
    let mut reader = Cf::subscribed(&hub, &["a"]);
    let filler = "x".repeat(10_000);
    let mut most = 0.0_f64;
    for round in 0..60 {
        for n in 0..n_stalled {
            hub.publish(&format!("own{n}"), filler.as_str());
        }
        hub.publish("a", round);
        assert_eq!(reader.next_pub(SOON).expect("not touched").data, round.to_string());
        most = most.max(hub.metric_sum("hubbub_outbox_bytes"));
    }
    let n_closed = || hub.metrics().get("hubbub_closes_total{code=\"3008\"}");
    assert!(n_closed() >= 10.0, "{} cut", n_closed());
    let relieved = hub.metrics().get("hubbub_refused_total{reason=\"outbox_total_bytes\"}");
    assert_eq!(relieved, n_closed());
    // One sweep's worth of publications may stand above the bound.
    assert!(most < 4.0 * 1024.0 * 1024.0, "{most} bytes queued");
    assert!(hub.anon_bytes() < 64 << 20, "{} bytes", hub.anon_bytes());
    drop(stalled);
    assert!(drive(&mut [reader], ms(300), |cf| cf.raw.is_closed()).eq(&false), "it stays");
}
