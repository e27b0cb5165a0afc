//! The decoder and the payload check fuzzed, against the reference and serde_json.

use serde_json::Value;

use super::super::*;
use super::reference::{self, Tree, depth, parse};
use crate::fuzz::{self, Rng, Target};
use crate::protocol::json::{JsonPayload, json_payload};

#[test]
fn commands_and_payloads_are_read_as_the_reference_says() {
    fuzz::run(&Target { name: "commands", make, make_piece, pieces, check });
}

const KINDS: &[&str] = &[
    "connect",
    "subscribe",
    "unsubscribe",
    "publish",
    "presence",
    "presence_stats",
    "history",
    "rpc",
    "send",
    "refresh",
    "sub_refresh",
    "ping",
];
const FIELDS: &[&str] = &[
    "channel",
    "token",
    "data",
    "subs",
    "name",
    "version",
    "flag",
    "recover",
    "offset",
    "epoch",
    "delta",
    "positioned",
    "recoverable",
    "join_leave",
    "tf",
    "type",
    "limit",
    "since",
    "reverse",
    "method",
    "id",
    "x",
];
const NUMBERS: &[&str] = &[
    "0",
    "1",
    "7",
    "-1",
    "-0",
    "1.0",
    "1e0",
    "1E+2",
    "0.1e-7",
    "01",
    "1.",
    ".5",
    "+1",
    "1e",
    "--1",
    "2147483647",
    "2147483648",
    "-2147483648",
    "-2147483649",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "1e309",
    "-1e999",
    "1e-999",
    "123456789012345678901234567890.5",
    "NaN",
    "Infinity",
];
const STRINGS: &[&str] = &[
    r#""""#,
    r#""a""#,
    r#""fossil""#,
    r#""é–😀""#,
    r#""\u00e9\"\\\/\b\f\n\r\t""#,
    r#""\ud83d\ude00""#,
    r#""\ud83d""#,
    r#""\ude00x""#,
    r#""\uD83D\u0061""#,
    r#""\u12""#,
    r#""\x""#,
    "\"\u{1}\"",
    "\"\u{7f}\"",
    "\"\u{2028}\"",
    r#""\u0000""#,
    r#""{[[""#,
    "\"a\tb\"",
    "\"",
    "'a'",
    r#""\"#,
];

fn make(rng: &mut Rng) -> Vec<u8> {
    let mut text = String::new();
    for n in 0..rng.within(1..=3) {
        if n > 0 {
            text.push_str(rng.pick(&["\n", "\n", "\r\n", "\n\n", " "]));
        }
        match rng.below(8) {
            0 => text.push_str("{}"),
            1 => put_value(&mut text, rng, 4),
            _ => put_command(&mut text, rng),
        }
    }
    text.push_str(rng.pick(&["", "", "\n", "\r\n"]));
    text.into_bytes()
}

fn put_command(text: &mut String, rng: &mut Rng) {
    let id = rng.pick(&["\"id\":1", "\"id\":1", "\"id\":2", "\"id\":0", "\"x\":1"]);
    let mut parts = vec![id.to_owned()];
    for _ in 0..if rng.one_in(8) { rng.below(3) } else { 1 } {
        let kind = rng.pick(KINDS);
        let mut part = format!("\"{kind}\":");
        if rng.one_in(20) {
            put_value(&mut part, rng, 2);
        } else {
            put_fields(&mut part, rng, &reference::fields_of(kind).unwrap_or_default());
        }
        parts.push(part);
    }
    if rng.one_in(2) {
        parts.reverse();
    }
    if rng.one_in(20) {
        parts.push(rng.pick(&[parts[0].as_str(), &parts[parts.len() - 1]]).to_owned());
    }
    text.push('{');
    text.push_str(&parts.join(","));
    text.push('}');
}

/// Mostly these fields, of the type that they want.
fn put_fields(text: &mut String, rng: &mut Rng, wanted: &[&str]) {
    let mut names: Vec<&str> = wanted.iter().copied().filter(|_| rng.one_in(2)).collect();
    if rng.one_in(6) {
        names.push(rng.pick(FIELDS));
    }
    if rng.one_in(30) {
        names.extend(names.clone().first());
    }
    text.push('{');
    for (idx, name) in names.iter().enumerate() {
        text.push_str(if idx > 0 { "," } else { "" });
        if rng.one_in(30) {
            // What serde takes for a struct, besides an object.
            text.push_str(&format!("\"{name}\":[]"));
            continue;
        }
        // And for an enum, besides a word.
        let (open, close) =
            if rng.one_in(30) { rng.pick(&[("[", "]"), ("{", ":null}")]) } else { ("", "") };
        text.push_str(&format!("\"{name}\":{open}"));
        match *name {
            _ if rng.one_in(20) => put_value(text, rng, 2),
            "channel" | "token" | "epoch" | "name" | "version" | "method" => {
                text.push_str(if rng.one_in(2) { "\"a\"" } else { rng.pick(STRINGS) });
            }
            "delta" => text.push_str(rng.pick(&["\"fossil\"", "\"\"", "null", "\"Fossil\""])),
            "offset" | "flag" | "type" | "limit" | "id" => {
                text.push_str(if rng.one_in(2) { "1" } else { rng.pick(NUMBERS) });
            }
            "recover" | "positioned" | "recoverable" | "join_leave" | "reverse" => {
                text.push_str(rng.pick(&["true", "false", "null"]));
            }
            "since" => put_fields(text, rng, &["offset", "epoch"]),
            "subs" => {
                text.push_str("{\"a\":");
                put_fields(text, rng, &["recover", "offset", "epoch", "delta"]);
                text.push('}');
            }
            _ => put_value(text, rng, 3),
        }
        text.push_str(close);
    }
    text.push('}');
}

fn put_value(text: &mut String, rng: &mut Rng, depth_max: usize) {
    let n_items = rng.below(3);
    match rng.below(if depth_max == 0 { 6 } else { 9 }) {
        0 | 1 => text.push_str(rng.pick(&["null", "true", "false", "nul", "True"])),
        2 | 3 => text.push_str(rng.pick(NUMBERS)),
        4 | 5 => text.push_str(rng.pick(STRINGS)),
        6 => {
            // About the bound: the rest of a command adds one or two.
            let depth = rng.within(124..=130);
            let (open, close) = rng.pick(&[("[", "]"), ("{\"\":", "}")]);
            text.push_str(&open.repeat(depth));
            text.push_str(rng.pick(&["1", "[]", ""]));
            text.push_str(&close.repeat(depth));
        }
        7 => {
            text.push('[');
            for idx in 0..n_items {
                text.push_str(if idx > 0 { rng.pick(&[",", " ,\r", ",,"]) } else { "" });
                put_value(text, rng, depth_max - 1);
            }
            text.push(']');
        }
        _ => {
            text.push('{');
            for idx in 0..n_items {
                text.push_str(if idx > 0 { "," } else { "" });
                text.push_str(if rng.one_in(2) { "\"a\"" } else { rng.pick(STRINGS) });
                text.push_str(rng.pick(&[":", ":", " : ", ""]));
                put_value(text, rng, depth_max - 1);
            }
            text.push('}');
        }
    }
}

fn make_piece(rng: &mut Rng) -> Vec<u8> {
    let mut text = String::new();
    match rng.below(5) {
        0 => text.push_str(rng.pick(&["{", "}", "[", "]", ",", ":", "\n", " ", "\r", "{}"])),
        1 => text.push_str(&format!("\"{}\":", rng.pick(FIELDS))),
        2 => text.push_str(&format!("\"{}\":", rng.pick(KINDS))),
        3 => put_command(&mut text, rng),
        _ => put_value(&mut text, rng, 2),
    }
    text.into_bytes()
}

/// Tokens: strings, words, every other byte.
fn pieces(input: &[u8]) -> Vec<usize> {
    let mut starts = Vec::new();
    let mut at = 0;
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    while at < input.len() {
        starts.push(at);
        let rest = &input[at + 1..];
        at += 1 + match input[at] {
            b'"' => rest.iter().position(|&byte| byte == b'"').map_or(0, |len| len + 1),
            byte if is_word(&byte) => rest.iter().position(|b| !is_word(b)).unwrap_or(rest.len()),
            _ => 0,
        };
    }
    starts
}

fn check(message: &[u8]) {
    let lines: Vec<&[u8]> = lines(message).collect();
    assert_eq!(lines, plain_lines(message));
    for line in lines {
        check_line(line);
    }
    for depth_max in [0, 1, 2, 5, DEPTH_MAX] {
        let expected = depth(message) <= depth_max;
        assert_eq!(depth_within(message, depth_max), expected, "within {depth_max}");
    }
    check_payload(message);
}

fn plain_lines(message: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<&[u8]> = message.split(|&byte| byte == b'\n').collect();
    if lines.len() > 1 && lines.last().is_some_and(|line| line.is_empty()) {
        lines.pop();
    }
    for line in &mut lines {
        *line = &line[..line.len() - usize::from(line.last() == Some(&b'\r'))];
    }
    lines
}

fn check_line(line: &[u8]) {
    let decoded = decode(line);
    assert_eq!(decoded, reference::command(line));
    let Ok(command) = decoded else { return };
    let is_in_line = |bytes: &[u8]| line.as_ptr_range().contains(&bytes.as_ptr());
    let Parts(texts, payloads) = parts(&command);
    for text in texts.iter().filter(|text| !text.is_empty() && !line.contains(&b'\\')) {
        let is_borrowed = matches!(text, Cow::Borrowed(text) if is_in_line(text.as_bytes()));
        assert!(is_borrowed, "{text:?} is copied");
    }
    for payload in payloads.into_iter().flatten() {
        assert!(is_in_line(payload), "data is copied");
        assert!(std::str::from_utf8(payload).ok().and_then(parse).is_some(), "data is not JSON");
    }
}

/// What of a command borrows from its line: texts and payloads.
struct Parts<'c, 'a>(Vec<&'c Cow<'a, str>>, [Option<&'a [u8]>; 2]);

fn parts<'c, 'a>(command: &'c Command<'a>) -> Parts<'c, 'a> {
    match &command.kind {
        Kind::Pong | Kind::Ping => Parts(vec![], [None; 2]),
        Kind::Connect(c) => {
            let subs = c.subs.iter().flat_map(|sub| [&sub.channel, &sub.epoch]);
            Parts([&c.token, &c.name, &c.version].into_iter().chain(subs).collect(), [c.data, None])
        }
        Kind::Subscribe(c) => Parts(vec![&c.channel, &c.token, &c.epoch], [c.data, c.tags_filter]),
        Kind::Unsubscribe { channel }
        | Kind::Presence { channel }
        | Kind::PresenceStats { channel } => Parts(vec![channel], [None; 2]),
        Kind::Publish(c) => Parts(vec![&c.channel], [c.data, None]),
        Kind::History(c) => {
            let epoch = c.since.iter().map(|since| &since.epoch);
            Parts([&c.channel].into_iter().chain(epoch).collect(), [None; 2])
        }
        Kind::Rpc(c) => Parts(vec![&c.method], [c.data, None]),
        Kind::Send { data } => Parts(vec![], [*data, None]),
        Kind::Refresh { token } => Parts(vec![token], [None; 2]),
        Kind::SubRefresh(c) => Parts(vec![&c.channel, &c.token], [None; 2]),
    }
}

fn check_payload(bytes: &[u8]) {
    let payload = json_payload(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else {
        assert_eq!(payload, JsonPayload::NotUtf8);
        return;
    };
    let node = parse(text);
    check_against_value(text, node.as_ref());
    let sent = payload.as_bytes().expect("text always travels");
    let is_break = |byte: &u8| matches!(byte, b'\r' | b'\n');
    assert!(!sent.iter().any(is_break), "a line break");
    if node.is_some() {
        let spaced: Vec<u8> =
            bytes.iter().map(|byte| if is_break(byte) { b' ' } else { *byte }).collect();
        assert_eq!(sent, spaced);
        assert_eq!(matches!(payload, JsonPayload::Verbatim(_)), !bytes.iter().any(is_break));
    } else {
        let sent = parse(std::str::from_utf8(sent).unwrap()).expect("what travels is JSON");
        assert!(matches!(&sent.tree, Tree::Text(Some(sent)) if sent == text), "{sent:?}");
    }
}

/// The reference itself is held against serde_json, where `Value` can hold what JSON can.
fn check_against_value(text: &str, node: Option<&reference::Node<'_>>) {
    match (serde_json::from_str::<Value>(text), node) {
        (Ok(value), Some(node)) => assert!(node.equals(&value), "{node:?} for {value}"),
        (Ok(value), None) => panic!("the reference refused {value}"),
        (Err(_), None) => {}
        // `Value` stops one level earlier than we do.
        (Err(error), Some(node)) => {
            assert!(!node.is_plain() || depth(text.as_bytes()) >= DEPTH_MAX, "{error}");
        }
    }
}
