//! Promise: a web page opens a connection only where its origin is allowed; by default only where it is
//! the server's own. Programs, which send no `Origin`, are let in. (Scenario 63.)

mod common;

use common::http::{self, Head};
use common::ws::{Dial, raw_path};
use common::{Hub, SOON, cf, sys};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;

const OPEN: &str = "[namespaces.\"\"]\nsubscribe = \"anyone\"\n";

fn hub(origins: Option<&str>) -> (tempfile::NamedTempFile, Hub) {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), OPEN).expect("written");
    let builder = Hub::builder().without_dev().env("HUB_ALLOW_ANONYMOUS", true);
    let builder = builder.env("HUB_CONFIG", file.path().display()).env("HUB_API_KEY", "k");
    let builder = match origins {
        Some(origins) => builder.env("HUB_ALLOWED_ORIGINS", origins),
        None => builder,
    };
    (file, builder.start().wait_ready())
}

fn head(stream: &mut TcpStream) -> Head {
    let mut wire = Vec::new();
    loop {
        if let Some(len) = http::head_len(&wire) {
            return Head::parse(&wire[..len]);
        }
        let mut buffer = [0; 1024];
        assert!(sys::wait_fd(stream.as_raw_fd(), sys::For::Reading, SOON), "an answer");
        let n = stream.read(&mut buffer).expect("an answer");
        assert!(n > 0, "no answer");
        wire.extend_from_slice(&buffer[..n]);
    }
}

/// How an upgrade with these headers is answered on both transports; the same on either.
fn status(hub: &Hub, host: &str, origins: &[&str]) -> u16 {
    let statuses = [cf::PATH.to_owned(), raw_path(&["a"])].map(|path| {
        let dial = origins
            .iter()
            .fold(Dial::new(hub, &path), |dial, origin| dial.header("Origin", origin));
        let own = format!("Host: {}\r\n", hub.addr);
        let request = dial.request().replace(&own, &format!("Host: {host}\r\n"));
        let mut stream = dial.connect();
        stream.write_all(request.as_bytes()).expect("sent");
        head(&mut stream).status
    });
    assert_eq!(statuses[0], statuses[1], "{host} {origins:?}");
    statuses[0]
}

#[test]
fn a_list_lets_in_those_on_it() {
    let (_file, hub) = hub(Some("https://a.example,https://*.b.example"));
    let host = hub.addr.to_string();
    let own = format!("http://{host}");
    assert_eq!(status(&hub, &host, &[]), 101, "no page, no Origin");
    for origin in [
        "https://a.example",
        "https://a.example:443",
        "https://A.EXAMPLE:443",
        "HTTPS://A.example",
        "https://x.b.example",
        "https://X.y.B.example:443",
    ] {
        assert_eq!(status(&hub, &host, &[origin]), 101, "{origin:?}");
    }
    for origin in [
        "https://a.example:8443",
        "https://a.example:80",
        "https://a.example:",
        "https://a.example:443:443",
        "http://a.example",
        "http://a.example:443",
        "wss://a.example",
        "https://a.example.evil.org",
        "https://evil.org/https://a.example",
        "https://evil.org#https://a.example",
        "https://a.example@evil.org",
        "https://evil.org@a.example",
        "https://a.example/",
        "https://a.example.",
        "https://xa.example",
        "https://b.example",
        "https://.b.example",
        "https://evilb.example",
        "https://evil-b.example",
        "https://x.b.example.",
        "https://x.b.example.evil.org",
        "https://*.b.example",
        "https://a.example, https://evil.org",
        "https://a.example https://evil.org",
        "a.example",
        "//a.example",
        "https://",
        "file://",
        "null",
        "",
        "caf\u{e9}",
        own.as_str(),
    ] {
        assert_eq!(status(&hub, &host, &[origin]), 403, "{origin:?}");
    }
    for two in [["https://a.example", "https://a.example"], ["https://a.example", "null"]] {
        assert_eq!(status(&hub, &host, &two), 403, "{two:?}");
    }
    // The Host that a page can choose, by pointing its own name here, is no help.
    assert_eq!(status(&hub, "evil.org", &["https://evil.org"]), 403);
    assert_eq!(hub.metric_sum("hubbub_panics_total"), 0.0);
}

#[test]
fn by_default_a_page_is_of_the_same_origin() {
    let (_file, hub) = hub(None);
    let host = hub.addr.to_string();
    let own = format!("http://{host}");
    for (host, origin) in [
        (host.as_str(), own.as_str()),
        // Behind a proxy that keeps the name: the scheme and its port are the page's.
        ("app.example", "https://app.example"),
        ("app.example", "https://APP.example:443"),
        ("App.example:443", "https://app.example"),
        ("app.example:8443", "https://app.example:8443"),
        ("app.example", "http://app.example:80"),
        ("[::1]:8000", "http://[::1]:8000"),
    ] {
        assert_eq!(status(&hub, host, &[origin]), 101, "{origin:?} at {host:?}");
    }
    for (host, origin) in [
        (host.as_str(), "https://evil.example"),
        (host.as_str(), "http://127.0.0.1"),
        ("app.example", "https://app.example:8443"),
        ("app.example:8443", "https://app.example"),
        ("app.example", "https://app.example.evil.org"),
        ("app.example", "https://evil-app.example"),
        ("app.example", "https://app.example."),
        ("app.example", "null"),
        ("app.example", ""),
    ] {
        assert_eq!(status(&hub, host, &[origin]), 403, "{origin:?} at {host:?}");
    }
    assert_eq!(status(&hub, &host, &[]), 101, "no page, no Origin");
}

#[test]
fn a_star_lets_in_all() {
    let (_file, hub) = hub(Some("*"));
    for origin in ["https://evil.example", "null", "", "junk"] {
        assert_eq!(status(&hub, "app.example", &[origin]), 101, "{origin:?}");
    }
}

/// The API goes by its key, which no browser sends by itself; and none is allowed to ask a page for one.
#[test]
fn a_page_gets_nothing_of_the_api() {
    let (_file, hub) = hub(Some("https://a.example"));
    for origin in ["https://a.example", "https://evil.example", "null"] {
        let headers = [("Origin", origin), ("Cookie", "k=k"), ("Content-Type", "text/plain")];
        for method in ["publish", "broadcast", "info", "channels"] {
            let path = format!("/api/{method}");
            let answer = hub.http_with("POST", &path, &headers, r#"{"channel":"a","data":1}"#);
            assert_eq!(answer.status, 401, "{origin} {method}");
            let asked = [("Origin", origin), ("Access-Control-Request-Headers", "x-api-key")];
            let preflight = hub.http_with("OPTIONS", &path, &asked, "");
            assert_eq!(preflight.status, 405, "{origin} {method}");
            for answer in [answer, preflight] {
                let allows = |name: &str| name.starts_with("access-control");
                assert!(!answer.headers.iter().any(|(name, _)| allows(name)), "{answer:?}");
            }
        }
        let metrics = hub.http_with("GET", "/metrics", &[("Origin", origin)], "");
        assert!(metrics.header("access-control-allow-origin").is_none(), "not for pages to read");
    }
}
