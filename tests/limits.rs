//! Promise: each limit has its documented answer and its counter, and whoever keeps within them
//! is served while others are at theirs.

mod common;

use common::cf;
use common::http::wait_closed;
use common::ws::{Dial, raw_path};
use common::{Cf, Hub, SOON, eventually, ms, secs};
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
