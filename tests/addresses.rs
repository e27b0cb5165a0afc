//! Promise: both families of addresses work, and a client's address is its own whatever it says, or what
//! a trusted proxy says: one bucket for an IPv4 address in any form and for an IPv6 /64. (Scenario 54.)

mod common;

use common::cf;
use common::ws::{Dial, Refused, raw_path};
use common::{Cf, Hub, Raw, Redis, SOON, http};
use serde_json::json;
use std::net::{IpAddr, SocketAddr};

const PER_IP: usize = 10;

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse::<IpAddr>().expect("an address"), port)
}

fn subscribed(raw: Raw, channel: &str) -> Cf {
    let mut cf = Cf::over(raw);
    assert!(cf.command(json!({ "connect": {} }))["connect"].is_object());
    cf.subscribe(channel);
    cf
}

/// Listens on both families; Redis is at an IPv6 literal; every way in reaches every client.
#[test]
fn both_families_on_listeners_and_towards_redis() {
    let redis = Redis::start();
    let hub = Hub::builder()
        .env("HUB_LISTEN", "127.0.0.1:0,[::1]:0")
        .env("HUB_REDIS_URL", format!("redis://[::1]:{}", redis.port))
        .start();
    let (v4, v6) = (hub.addr, hub.next_addr());
    assert!(v4.is_ipv4() && v6.is_ipv6());
    let hub = hub.wait_ready();
    let mut clients: Vec<Cf> =
        [v4, v6].map(|addr| subscribed(Dial::new_at(addr, cf::PATH).open(), "a")).into();
    let mut raw = Dial::new_at(v6, &raw_path(&["a"])).open();
    let body = br#"{"channel":"a","data":1}"#;
    for addr in [v4, v6] {
        let published = http::request(addr, "POST", "/api/publish", &[], body).expect("answered");
        assert!(published.is_result(), "{addr}: {} {}", published.status, published.text());
        for path in ["/health", "/ready", "/metrics"] {
            assert_eq!(http::request(addr, "GET", path, &[], b"").expect(path).status, 200);
        }
    }
    assert_eq!(redis.publish("a", "1"), 1);
    for _ in 0..3 {
        for client in &mut clients {
            assert_eq!(client.next_pub(SOON).expect("from everywhere").data, "1");
        }
        assert_eq!(raw.next_data(SOON).expect("from everywhere").text(), "1");
    }
    assert!(hub.ready());
}

/// A node for which every address has its limit, on one socket for both families.
fn limited(proxies: &str) -> (Hub, u16) {
    let mut hub = Hub::builder()
        .without_dev()
        .env("HUB_ALLOW_ANONYMOUS", true)
        .env("HUB_LISTEN", "[::]:0,127.0.0.1:0")
        .env("HUB_CONNECTIONS_PER_IP", PER_IP)
        .env("HUB_TRUSTED_PROXIES", proxies)
        .start();
    let both = hub.addr.port();
    hub.addr = hub.next_addr();
    (hub.wait_ready(), both)
}

type Answer = Result<Raw, Refused>;

/// Keeps those that are let in.
fn n_admitted(kept: &mut Vec<Raw>, answers: impl IntoIterator<Item = Answer>) -> usize {
    let before = kept.len();
    for answer in answers {
        match answer {
            Ok(raw) => kept.push(raw),
            Err(refused) => {
                assert_eq!(refused.status, 429, "{refused:?}");
                assert!(refused.header("retry-after").is_some());
            }
        }
    }
    kept.len() - before
}

#[test]
fn an_ipv4_address_is_one_in_any_form() {
    let (hub, both) = limited("");
    let mut kept = Vec::new();
    let forms = [hub.addr, at("127.0.0.1", both), at("::ffff:127.0.0.1", both)];
    let dial = |addr: SocketAddr| Dial::new_at(addr, cf::PATH).try_open();
    let mut n_each = Vec::new();
    for addr in forms {
        n_each.push(n_admitted(&mut kept, (0..PER_IP / 2).map(|_| dial(addr))));
    }
    assert_eq!(n_each, [PER_IP / 2, PER_IP / 2, 0], "one bucket for all three");
    let others = (0..2 * PER_IP).map(|_| dial(at("::1", both)));
    assert_eq!(n_admitted(&mut kept, others), PER_IP, "that of IPv6 is another");
    // What it says of itself counts for nothing, on either family and transport.
    for addr in [at("127.0.0.1", both), at("::1", both)] {
        for (n, path) in [cf::PATH.to_owned(), raw_path(&["a"])].iter().cycle().take(40).enumerate()
        {
            let forged =
                Dial::new_at(addr, path).header("X-Forwarded-For", &format!("198.51.100.{n}"));
            let answer = forged.header("Forwarded", "for=198.51.100.1").try_open();
            assert_eq!(answer.err().expect("full").status, 429, "{addr} {path}");
        }
    }
    let n_refused = hub.metrics().get("hubbub_refused_total{reason=\"connections_per_ip\"}");
    assert_eq!(n_refused, (PER_IP / 2 + PER_IP + 80) as f64);
}

#[test]
fn a_trusted_proxy_says_whose_a_connection_is() {
    let (_hub, both) = limited("::1,127.0.0.0/8");
    let mut kept = Vec::new();
    let dial = |forwarded: &str| {
        Dial::new_at(at("::1", both), cf::PATH).header("X-Forwarded-For", forwarded).try_open()
    };
    let block = (0..50).map(|n| dial(&format!("2001:db8:0:7:{n}::{n:x}")));
    assert_eq!(n_admitted(&mut kept, block), PER_IP, "a /64 is one");
    assert_eq!(n_admitted(&mut kept, [dial("2001:db8:0:8::1")]), 1, "the next is another");
    let forms = ["192.0.2.7", "192.0.2.7:4711", "::ffff:192.0.2.7", "[::ffff:192.0.2.7]:80"];
    // The last 100 of a list that the client began itself, and of several lists.
    let hops = vec!["127.0.0.1"; 99].join(", ");
    let long = format!("192.0.2.7, {hops}");
    let forged = format!("198.51.100.1, junk, ::1%eth0,, 192.0.2.7, {hops}");
    let forms = forms.into_iter().chain([long.as_str(), forged.as_str()]).cycle().take(60);
    assert_eq!(n_admitted(&mut kept, forms.map(dial)), PER_IP, "one in any form");
    let split = |last: &str| {
        let dial =
            Dial::new_at(at("127.0.0.1", both), cf::PATH).header("X-Forwarded-For", "192.0.2.8");
        dial.header("X-Forwarded-For", last).try_open()
    };
    assert_eq!(n_admitted(&mut kept, [split("192.0.2.7")]), 0, "the last of all lists");
    assert_eq!(n_admitted(&mut kept, [split("127.0.0.2")]), 1, "the proxy's proxy says 192.0.2.8");
}

/// What says nothing counts for the proxy itself: nobody gets another bucket by it.
#[test]
fn junk_from_a_trusted_proxy_is_the_proxys_own() {
    let (hub, both) = limited("127.0.0.1");
    let long = "1,".repeat(4_000);
    let junk = [
        "",
        " ",
        ",",
        ",,,",
        "unknown",
        "_hidden",
        "-",
        "localhost",
        "a,b,c",
        "1.2.3",
        "1.2.3.4.5",
        "256.1.1.1",
        "1.2.3.4:",
        "1.2.3.4:x",
        "1.2.3.4:99999",
        "1.2.3.4/8",
        "[1.2.3.4",
        "[1.2.3.4]x",
        "[::2]:80:80",
        "[::1",
        "::1]",
        "[]",
        "[]:80",
        ":",
        "::1%eth0",
        "fe80::1%1",
        "[fe80::1%25eth0]:80",
        "::ffff:1.2.3",
        ":::1",
        "1::2::3",
        "0x7f000001",
        "2130706433",
        "\"1.2.3.4\"",
        "for=1.2.3.4",
        "caf\u{e9}",
        "\u{1F980}",
        "198.51.100.1 198.51.100.2",
        "198.51.100.1;",
        long.as_str(),
    ];
    let dial = |value: &str| {
        Dial::new_at(at("127.0.0.1", both), cf::PATH).header("X-Forwarded-For", value).try_open()
    };
    let mut kept = Vec::new();
    assert_eq!(n_admitted(&mut kept, junk.iter().map(|value| dial(value))), PER_IP);
    // Behind an address it ends the list: that one is the client's.
    assert_eq!(
        n_admitted(&mut kept, junk.iter().map(|junk| dial(&format!("{junk},192.0.2.1")))),
        PER_IP
    );
    assert!(hub.ready());
    assert_eq!(hub.metric_sum("hubbub_panics_total"), 0.0);
    assert!(!hub.log_has("panic"));
}
