//! Promise: a channel's name is taken literally or refused, by one rule at every entry point of every
//! node; it is never a pattern, never another channel, never hubbub's or Redis' own. (Scenario 66.)

mod common;

use common::cf::{Cf, publish, subscribe};
use common::ws::{Dial, TEXT, raw_path};
use common::{Close, Hub, QUIET, Raw, Redis, SOON, eventually};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const PREFIX: &str = "p:";
/// The default of `HUB_CHANNEL_BYTES_MAX`.
const BYTES_MAX: usize = 255;

/// Names that mean something to Redis, a glob, a shell, JSON, a Redis Cluster, or the namespaces.
const LITERAL: [&str; 27] = [
    "*",
    "?",
    "news.?",
    "news.*",
    "n*",
    "[a-z]",
    "[^a]",
    "\\",
    "\\*",
    "news\\.a",
    "**",
    "{tag}",
    "{}",
    "a}b{c",
    "p:x",
    "ws",
    "WS:control",
    "ns:",
    ":x",
    ":",
    "a:b:c",
    "ns:x#42",
    "ns:x#42,43",
    "$x",
    "\"'<b>&amp;%41",
    "$3",
    "__keyspace",
];

/// What the names above would match if any of them were a pattern, or if `p:x` lost its prefix.
const BAIT: [&str; 8] = ["a", "news.a", "news.b", "news", "n", "x", "tag", "ns:x"];

/// Empty, control characters and RESP, spaces, what is hubbub's or Redis' own, other than ASCII.
const REFUSED: [&str; 24] = [
    "",
    "nul\0",
    "\0",
    "a\r\nINJECTED",
    "\r\n$3\r\nfoo",
    "x\r\nPUBLISH a 1",
    "a\tb",
    "a b",
    " a",
    "\u{1b}[31mred",
    "\u{7f}",
    "ws:",
    "ws:control",
    "ws:stream:{a}",
    "__keyspace@0__:*",
    "__keyspace@",
    "__keyevent@0__:expired",
    "__sentinel__:hello",
    "__redis__:invalidate",
    "caf\u{e9}",
    "cafe\u{301}",
    "\u{200f}a",
    "a\u{202e}b",
    "\u{1F980}",
];

fn longest() -> String {
    "x".repeat(BYTES_MAX)
}

fn literal() -> Vec<String> {
    LITERAL.into_iter().map(str::to_owned).chain([longest()]).collect()
}

fn refused() -> Vec<String> {
    let long = [format!("{}y", longest()), "\u{e9}".repeat(200)];
    REFUSED.into_iter().map(str::to_owned).chain(long).collect()
}

fn code(body: &Value) -> Option<u64> {
    body["error"]["code"].as_u64()
}

fn bad_request() -> Option<Close> {
    Some(Close { code: 3501, reason: "bad request".to_owned() })
}

/// The error of a command. One without a channel is no command: 3501, as the protocol has it.
fn refusal(hub: &Hub, name: &str, command: Value) -> Option<u64> {
    let mut cf = Cf::connect(hub);
    if name.is_empty() {
        cf.send(vec![command]);
        assert_eq!(cf.next_close(SOON), bad_request());
        return Some(107);
    }
    code(&cf.command(command))
}

/// What each entry point says to a name: no error, or its code; HTTP's 400 is the raw 107.
fn verdicts(hub: &Hub, name: &str) -> [(&'static str, Option<u64>); 5] {
    let raw = Dial::new(hub, &raw_path(&[name])).try_open().err();
    let api = |method, body| code(&hub.api(method, &body).json());
    let broadcast = json!({ "channels": [name, name], "data": 0 });
    let broadcast = hub.api("broadcast", &broadcast).json()["result"]["responses"].clone();
    assert_eq!(broadcast[0], broadcast[1]);
    [
        ("subscribe", refusal(hub, name, subscribe(name))),
        ("publish", refusal(hub, name, publish(name, &json!(0)))),
        ("raw", raw.map(|refused| if refused.status == 400 { 107 } else { refused.status.into() })),
        ("API publish", api("publish", json!({ "channel": name, "data": 0 }))),
        ("API broadcast", code(&broadcast[0])),
    ]
}

/// Two nodes of one Redis, with a prefix that clients know of.
fn nodes() -> (Redis, [Hub; 2]) {
    let redis = Redis::start();
    let node =
        || Hub::builder().redis(&redis).env("HUB_REDIS_PREFIX", PREFIX).env("HUB_LOG", "debug");
    let hubs = [node().start().wait_ready(), node().start().wait_ready()];
    (redis, hubs)
}

/// The channels that the nodes subscribe to for their clients, and no pattern.
fn subscribed(redis: &Redis) -> BTreeSet<String> {
    assert_eq!(redis.command(&["PUBSUB", "NUMPAT"]).int(), 0, "no patterns");
    let own = format!("{PREFIX}ws:");
    redis.channels("*").into_iter().filter(|name| !name.starts_with(&own)).collect()
}

/// No name has broken out of its line.
fn assert_log_is_escaped(hub: &Hub) {
    assert!(hub.log_has("link is up"));
    for line in hub.log() {
        assert!(!line.contains(char::is_control), "{line:?}");
        assert!(line.starts_with("20"), "every line begins with its time: {line:?}");
    }
}

#[test]
fn one_rule_at_every_entry_point_of_every_node() {
    let (redis, hubs) = nodes();
    let mut monitor = redis.monitor();
    for hub in &hubs {
        for (names, expected) in [(literal(), None), (refused(), Some(107))] {
            for name in names {
                for (entry, verdict) in verdicts(hub, &name) {
                    assert_eq!(verdict, expected, "{entry} {name:?}");
                }
                // They are off for a good name.
                for kind in ["history", "presence", "presence_stats"] {
                    let command = json!({ kind: { "channel": name } });
                    let code = expected.or(Some(108));
                    assert_eq!(refusal(hub, &name, command), code, "{kind} {name:?}");
                }
            }
        }
        assert!(hub.ready());
        assert_log_is_escaped(hub);
        assert_eq!(hub.metrics().get("hubbub_panics_total"), 0.0);
        let page = hub.get("/metrics").text();
        assert!(!["news", "INJECTED", "keyspace"].iter().any(|word| page.contains(word)), "{page}");
    }
    // What Redis was asked names each literal name behind the prefix, and none of the others.
    let commands = monitor.monitored(&redis);
    let asked = |name: &str| {
        let quoted = format!("\"{PREFIX}{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
        commands.iter().any(|line| line.contains(&quoted))
    };
    for name in literal() {
        assert!(asked(&name), "{name:?} in {} commands", commands.len());
    }
    for word in ["INJECTED", "foo", "keyspace@", "keyevent", "invalidate", "caf\\xc3", "PSUBSCRIBE"]
    {
        let found = commands.iter().find(|line| line.contains(word));
        assert!(found.is_none(), "{word}: {found:?}");
    }
}

/// One viewer of each name, on either node and transport in turn.
enum Only {
    Cf(Cf),
    Raw(Raw),
}

impl Only {
    fn open(hub: &Hub, n: usize, name: &str) -> Self {
        if n % 4 < 2 {
            Self::Cf(Cf::subscribed(hub, &[name]))
        } else {
            Self::Raw(Raw::open(hub, &[name]))
        }
    }

    fn next(&mut self, name: &str) -> String {
        match self {
            Self::Cf(cf) => {
                let publication = cf.next_pub(SOON).unwrap_or_else(|| panic!("{name:?}"));
                assert_eq!(publication.channel, name);
                publication.data
            }
            Self::Raw(raw) => {
                raw.next_data(SOON).unwrap_or_else(|| panic!("{name:?}")).text().to_owned()
            }
        }
    }

    fn has_more(&mut self) -> bool {
        match self {
            Self::Cf(cf) => !cf.pump() || !cf.pubs.is_empty(),
            Self::Raw(raw) => !raw.pump() || !raw.frames.is_empty(),
        }
    }
}

#[test]
fn whoever_watches_a_name_gets_that_channel_and_no_other() {
    let (redis, hubs) = nodes();
    let names = literal();
    let mut viewers: Vec<Only> =
        names.iter().enumerate().map(|(n, name)| Only::open(&hubs[n % 2], n, name)).collect();
    let expected: BTreeSet<String> = names.iter().map(|name| format!("{PREFIX}{name}")).collect();
    assert_eq!(subscribed(&redis), expected, "literally so");
    let mut author = Cf::connect(&hubs[0]);
    for name in names.iter().map(String::as_str).chain(BAIT) {
        let data = |by: &str| json!(format!("{by} {name}"));
        let reply = author.command(publish(name, &data("client")));
        assert!(reply["publish"].is_object(), "{name:?} {reply}");
        hubs[1].publish(name, data("API"));
        let body = json!({ "channels": [name], "data": data("broadcast") });
        assert_eq!(hubs[0].api("broadcast", &body).status, 200);
        redis.publish(&format!("{PREFIX}{name}"), data("Redis").to_string());
        // Without the prefix it is another environment's.
        redis.publish(name, data("stranger").to_string());
    }
    // As late as anything of the above could come.
    hubs.iter().for_each(|hub| {
        let mut last = Cf::subscribed(hub, &["last"]);
        redis.publish("p:last", "1");
        assert_eq!(last.next_pub(SOON).expect("the last").data, "1");
    });
    for (viewer, name) in viewers.iter_mut().zip(&names) {
        for by in ["client", "API", "broadcast", "Redis"] {
            assert_eq!(viewer.next(name), json!(format!("{by} {name}")).to_string());
        }
    }
    author.wait(QUIET, |_| false);
    for (viewer, name) in viewers.iter_mut().zip(&names) {
        assert!(!viewer.has_more(), "{name:?} gets what is not its own");
    }
    let listed = |hub: &Hub| hub.api("channels", &json!({})).json()["result"]["channels"].clone();
    let all: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    for hub in &hubs {
        let seen = listed(hub);
        let seen = seen.as_object().expect("names").keys().map(String::as_str);
        assert_eq!(seen.filter(|name| *name != "last").collect::<BTreeSet<_>>(), all);
        assert_eq!(hub.api("info", &json!({})).status, 200);
        assert_log_is_escaped(hub);
    }
    drop(viewers);
    assert!(eventually(SOON, || subscribed(&redis).is_empty()), "{:?}", subscribed(&redis));
}

#[test]
fn names_that_are_no_text_or_have_a_megabyte() {
    let (_redis, [hub, _]) = nodes();
    for escape in ["\\ud800", "a\\udc00b"] {
        for command in ["subscribe", "publish", "unsubscribe"] {
            let mut cf = Cf::connect(&hub);
            let body = format!(r#"{{"channel":"{escape}","data":1}}"#);
            cf.raw.send_text(&format!(r#"{{"id":2,"{command}":{body}}}"#));
            assert_eq!(cf.next_close(SOON), bad_request(), "{command} {escape}");
        }
        let single = format!(r#"{{"channel":"{escape}","data":1}}"#);
        let several = format!(r#"{{"channels":["a","{escape}"],"data":1}}"#);
        assert_eq!(hub.http("POST", "/api/publish", single).status, 400, "{escape}");
        assert_eq!(hub.http("POST", "/api/broadcast", several).status, 400, "{escape}");
    }
    // The same as bytes: a surrogate, an overlong star, an overlong NUL, a lone lead byte.
    for bytes in ["%ED%A0%80", "%C0%AA", "%C0%80", "%E2%28", "a%", "a%0", "%00", "a+b", "%zz%0a"] {
        let answer = Dial::new(&hub, &format!("/ws?channel={bytes}")).try_open();
        let literal = matches!(bytes, "a%" | "a%0");
        assert_eq!(
            answer.err().map(|refused| refused.status),
            (!literal).then_some(400),
            "{bytes}"
        );
    }
    let mut cf = Cf::connect(&hub);
    cf.raw.send_frame(TEXT, b"{\"id\":2,\"subscribe\":{\"channel\":\"\xED\xA0\x80\"}}");
    let close = cf.next_close(SOON).expect("closed").code;
    assert!([1007, 3501].contains(&close), "{close}");

    let long = "x".repeat(1 << 20);
    let mut cf = Cf::connect(&hub);
    cf.send(vec![subscribe(&long)]);
    assert_eq!(cf.next_close(SOON).expect("closed").code, 1009, "the message is too large");
    assert_eq!(code(&hub.api("publish", &json!({ "channel": long, "data": 0 })).json()), Some(107));
    let body = json!({ "channels": [long], "data": 0 });
    let answer = hub.api("broadcast", &body).json();
    assert_eq!(code(&answer["result"]["responses"][0]), Some(107));
    assert!(hub.log().iter().all(|line| line.len() < 4096), "and no line of the log has it");
    assert_log_is_escaped(&hub);
}

const NAMESPACES: &str = r#"
[namespaces.ns]
subscribe = "anyone"
publish = "anyone"
[namespaces.""]
subscribe = "nobody"
"#;

/// The part before the first colon, as it stands; `:x` has none and isn't a plain name either.
#[test]
fn the_namespace_is_read_in_one_way() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), NAMESPACES).expect("written");
    let builder = Hub::builder().without_dev().env("HUB_ALLOW_ANONYMOUS", true);
    let hub = builder.env("HUB_CONFIG", file.path().display()).start().wait_ready();
    let (open, nobody, unknown) = (None, Some(103), Some(102));
    let cases = [
        ("ns:", open),
        ("ns:x", open),
        ("ns:x:y", open),
        ("ns::x", open),
        // For users, and these are anonymous.
        ("ns:x#42", nobody),
        ("ns:x#42,43", nobody),
        ("ns:*", open),
        ("ns", nobody),
        ("*", nobody),
        ("$x", nobody),
        ("ns#x", nobody),
        (":x", unknown),
        (":ns:x", unknown),
        (":", unknown),
        ("NS:x", unknown),
        ("n*:x", unknown),
        ("*:x", unknown),
        ("ns.:x", unknown),
        ("$ns:x", unknown),
        ("nsx:y", unknown),
    ];
    let mut cf = Cf::connect(&hub);
    for (name, expected) in cases {
        assert_eq!(code(&cf.command(subscribe(name))), expected, "subscribe {name}");
        assert_eq!(code(&cf.command(publish(name, &json!(1)))), expected, "publish {name}");
        let raw = Dial::new(&hub, &raw_path(&[name])).try_open().err();
        let status = expected.map(|code| if code == 102 { 404 } else { 403 });
        assert_eq!(raw.map(|refused| refused.status), status, "raw {name}");
    }
}
