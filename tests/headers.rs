//! Promise: a request that is too large, too slow or no request is refused early and in time, while
//! proper clients connect as ever. (Scenario 62.)

mod common;

use common::cf::{self, Cf};
use common::http::{self, Head, wait_closed};
use common::ws::Dial;
use common::{Hub, SOON, eventually, ms, scaled, secs, sys};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

/// What a client sees of the answer to these bytes, the connection's end included.
fn exchange(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).expect("accepted");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    // A server that refuses may close before all is sent.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

/// The status of the first answer; 0 if there was none.
fn status(answer: &[u8]) -> u16 {
    http::head_len(answer).map_or(0, |len| Head::parse(&answer[..len]).status)
}

fn request(hub: &Hub, line: &str, headers: &str) -> String {
    format!("{line}\r\nHost: {}\r\n{headers}\r\n", hub.addr)
}

/// Connects every 10 ms until told to stop; how long each took until its connect was answered.
fn connect_steadily(hub: &Hub, stop: &AtomicBool) -> Vec<Duration> {
    let mut took = Vec::new();
    while !stop.load(SeqCst) {
        let began = Instant::now();
        drop(Cf::connect(hub));
        took.push(began.elapsed());
        sys::pause(ms(10).saturating_sub(began.elapsed()));
    }
    took.sort();
    took
}

#[test]
fn large_and_many_headers_are_refused_early() {
    let hub = Hub::start();
    let (line, host) =
        ("GET /connection/websocket HTTP/1.1\r\n", format!("Host: {}\r\n", hub.addr));
    let one = format!("{line}{host}X: {}\r\n\r\n", "x".repeat(20 << 20));
    let many = format!("{line}{host}{}\r\n", "X: y\r\n".repeat(10_000));
    let long_line = format!("GET /{} HTTP/1.1\r\n{host}\r\n", "x".repeat(1 << 20));
    let endless = format!("{line}{host}{}", "x".repeat(1 << 20));
    let (cpu, before) = (hub.cpu(), hub.anon_bytes());
    for (what, bytes) in [("one", one), ("many", many), ("line", long_line), ("endless", endless)] {
        let status = status(&exchange(hub.addr, bytes.as_bytes()));
        // 0: it was cut while still sending, so that its own kernel threw the answer away.
        assert!([0, 400, 414, 431].contains(&status), "{what}: {status}");
    }
    let spent = hub.cpu() - cpu;
    let grown = hub.anon_bytes().saturating_sub(before);
    println!("{spent:?} of processor time for four, {grown} bytes more");
    assert!(spent < secs(1), "{spent:?}");
    assert!(grown < 4 << 20, "{grown} bytes more");
    assert_eq!(hub.get("/health").status, 200);
}

#[test]
fn a_request_in_crumbs_is_a_request() {
    let hub = Hub::start();
    let dial = Dial::new(&hub, cf::PATH);
    let mut stream = dial.connect();
    for byte in dial.request().as_bytes().chunks(1) {
        stream.write_all(byte).expect("sent");
    }
    assert!(sys::wait_fd(stream.as_raw_fd(), sys::For::Reading, SOON));
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("answered");
    assert_eq!(&answer, b"HTTP/1.1 101");
}

#[test]
fn slow_requests_end_in_time_and_keep_nobody_out() {
    let hub = Hub::builder().env("HUB_HANDSHAKE_TIMEOUT", "1s").start().wait_ready();
    let n_each = scaled(150, 1_250);
    let upgrade = Dial::new(&hub, cf::PATH).request();
    let post = |headers: &str| request(&hub, "POST /api/publish HTTP/1.1", headers);
    let begun = [
        String::new(),
        upgrade[..20].to_owned(),
        upgrade[..upgrade.len() - 2].to_owned(),
        post("Content-Length: 1000\r\n") + "{\"channel\":",
        post("Transfer-Encoding: chunked\r\n") + "5\r\n{\"cha",
    ];
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let steady = scope.spawn(|| connect_steadily(&hub, &stop));
        let (began, cpu) = (Instant::now(), hub.cpu());
        let mut slow: Vec<TcpStream> = Vec::new();
        for _ in 0..n_each {
            for bytes in &begun {
                let mut stream = TcpStream::connect(hub.addr).expect("accepted");
                stream.write_all(bytes.as_bytes()).expect("sent");
                slow.push(stream);
            }
        }
        let opened = Instant::now();
        // A byte now and then earns nobody more time: the limit is on the whole request.
        let (mut n_open, mut last) = (slow.len(), opened);
        let all_gone = eventually(SOON, || {
            if last.elapsed() > ms(200) {
                slow.iter_mut().for_each(|stream| _ = stream.write(b"x"));
                last = Instant::now();
            }
            n_open = slow.iter_mut().map(|stream| usize::from(!wait_closed(stream, ms(0)))).sum();
            n_open == 0
        });
        let took = opened.elapsed();
        stop.store(true, SeqCst);
        let steady = steady.join().expect("every proper client connects");
        assert!(all_gone, "{n_open} of {} are still open", slow.len());
        let p99 = steady[steady.len() * 99 / 100];
        let spent = (hub.cpu() - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
        println!(
            "{} slow requests gone after {took:?}; {} connects meanwhile, p99 {p99:?}, slowest \
             {:?}; {:.0} % of a core",
            slow.len(),
            steady.len(),
            steady[steady.len() - 1],
            spent * 100.0
        );
        assert!(took < secs(4), "one second is the limit: {took:?}");
        assert!(p99 < ms(500), "{p99:?}");
    });
    assert!(eventually(SOON, || hub.metric_sum("hubbub_http_connections") <= 1.0));
}

#[test]
fn bodies_that_are_none_or_have_no_end_are_refused() {
    let hub = Hub::builder().env("HUB_API_BODY_BYTES_MAX", "64KiB").start().wait_ready();
    let before = hub.anon_bytes();
    let declared = |length: &str| {
        let headers = format!("Content-Length: {length}\r\nConnection: close\r\n");
        let head = request(&hub, "POST /api/publish HTTP/1.1", &headers);
        exchange(hub.addr, (head + "{").as_bytes())
    };
    for length in ["18446744073709551616", "-1", "1 2", "0x10", "5, 6"] {
        assert_eq!(status(&declared(length)), 400, "{length}");
    }
    // Chunks without end.
    let head = request(&hub, "POST /api/publish HTTP/1.1", "Transfer-Encoding: chunked\r\n");
    let chunks = "1000\r\n".to_owned() + &"x".repeat(0x1000) + "\r\n";
    let answer = exchange(hub.addr, (head + &chunks.repeat(64)).as_bytes());
    assert!([0, 413].contains(&status(&answer)), "{}", String::from_utf8_lossy(&answer));
    let grown = hub.anon_bytes().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes more");
    assert!(eventually(SOON, || hub.metric_sum("hubbub_http_connections") <= 1.0));
}

#[test]
fn bodies_over_the_limit_are_refused_by_their_length() {
    let hub = Hub::builder().env("HUB_API_BODY_BYTES_MAX", "64KiB").start().wait_ready();
    // The last is more than hyper counts to: it refuses that itself.
    let lengths = [
        ("65537", 413),
        ("1073741824", 413),
        ("9223372036854775807", 413),
        ("18446744073709551613", 413),
        ("18446744073709551614", 431),
    ];
    for (length, expected) in lengths {
        let headers = format!("Content-Length: {length}\r\nConnection: close\r\n");
        let head = request(&hub, "POST /api/publish HTTP/1.1", &headers);
        let began = Instant::now();
        assert_eq!(status(&exchange(hub.addr, (head + "{").as_bytes())), expected, "{length}");
        assert!(began.elapsed() < secs(5), "at once, not at the end of a body: {length}");
    }
}

#[test]
fn what_stands_behind_a_request_is_never_taken_for_something_else() {
    let hub = Hub::start();
    let mut watcher = Cf::subscribed(&hub, &["a"]);
    let publish = |n: u32, headers: &str| {
        let body = format!(r#"{{"channel":"a","data":{n}}}"#);
        let headers = format!("{headers}Content-Length: {}\r\n", body.len());
        request(&hub, "POST /api/publish HTTP/1.1", &headers) + &body
    };
    // Two requests in one segment: two answers, in order.
    let two = publish(1, "") + &request(&hub, "GET /nowhere HTTP/1.1", "Connection: close\r\n");
    let answer = String::from_utf8_lossy(&exchange(hub.addr, two.as_bytes())).into_owned();
    let statuses: Vec<&str> =
        answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "404"], "{answer}");
    assert_eq!(watcher.next_pub(SOON).expect("the first").data, "1");
    // Two lengths: whoever stands in between could be made to see another border.
    let both = publish(2, "Transfer-Encoding: chunked\r\n");
    let answer = exchange(hub.addr, both.as_bytes());
    assert!([0, 400].contains(&status(&answer)), "{}", String::from_utf8_lossy(&answer));
    // Behind an upgrade there are frames only, whether it succeeds or not.
    let upgrade = Dial::new(&hub, cf::PATH).request();
    let answer = exchange(hub.addr, (upgrade.clone() + &publish(3, "")).as_bytes());
    assert_eq!(status(&answer), 101);
    let behind = &answer[http::head_len(&answer).expect("a head")..];
    assert_eq!(behind[..4], [0x88, behind[1], 0x03, 0xEA], "1002: {behind:02x?}");
    let foreign = upgrade.replace("\r\n\r\n", "\r\nOrigin: http://evil.example\r\n\r\n");
    let answer = exchange(hub.addr, (foreign + &publish(4, "Connection: close\r\n")).as_bytes());
    assert_eq!(status(&answer), 403);
    // The refused upgrade's connection may serve the next request, as itself.
    let four = watcher.next_pub(ms(300)).map(|publication| publication.data);
    assert!([None, Some("4".to_owned())].contains(&four), "{four:?}");
}

/// Each of these upgrades is answered with one of these statuses.
fn refused(hub: &Hub, cases: impl IntoIterator<Item = (&'static str, String, &'static [u16])>) {
    let mut wrong = Vec::new();
    for (what, bytes, expected) in cases {
        let mut stream = TcpStream::connect(hub.addr).expect("accepted");
        stream.write_all(bytes.as_bytes()).expect("sent");
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        let mut answer = vec![0; 4096];
        let n_bytes = stream.read(&mut answer).unwrap_or(0);
        let got = status(&answer[..n_bytes]);
        if !expected.contains(&got) {
            wrong.push((what, got));
        }
    }
    assert_eq!(wrong, []);
}

#[test]
fn upgrades_that_are_nearly_one_are_refused() {
    let hub = Hub::start();
    let good = Dial::new(&hub, cf::PATH).request();
    let key = |key: &str| good.replace("dGhlIHNhbXBsZSBub25jZQ==", key);
    let cases = [
        ("an empty key", key(""), &[400][..]),
        ("a key of 15 bytes", key("dGhlIHNhbXBsZSBub25j"), &[400]),
        ("a key that is no base64", key("dGhlIHNhbXBsZSBub25j????"), &[400]),
        ("POST", good.replace("GET ", "POST "), &[400, 405]),
        ("HTTP/1.0", good.replace("HTTP/1.1", "HTTP/1.0"), &[400, 426, 505]),
    ];
    refused(&hub, cases);
}

#[test]
fn upgrades_that_are_none_are_refused() {
    let hub = Hub::start();
    let good = Dial::new(&hub, cf::PATH).request();
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let without = |header: &str| {
        let changed = good.replace(header, "");
        assert_ne!(changed, good);
        changed
    };
    let cases = [
        ("no key", without(key), &[400][..]),
        ("no version", without("Sec-WebSocket-Version: 13\r\n"), &[400, 426]),
        ("version 8", good.replace("Version: 13", "Version: 8"), &[400, 426]),
        ("no upgrade", without("Upgrade: websocket\r\n"), &[400, 426]),
        ("no connection", without("Connection: Upgrade\r\n"), &[400, 426]),
        ("another upgrade", good.replace("Upgrade: websocket", "Upgrade: h2c"), &[400, 426]),
        ("HTTP/9.9", good.replace("HTTP/1.1", "HTTP/9.9"), &[0, 400, 505]),
        ("a space in a name", good.replace("Upgrade: websocket", "Upgrade : websocket"), &[400]),
        ("a NUL", good.replace("websocket\r\n", "web\0socket\r\n"), &[400]),
    ];
    refused(&hub, cases);
    assert_eq!(hub.metric_sum("hubbub_connections"), 0.0);
    assert!(Cf::connect(&hub).raw.stays_quiet(ms(20)));
}
