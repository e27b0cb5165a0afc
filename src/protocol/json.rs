//! How a publication's payload travels in JSON, and how deep JSON may nest.
//!
//! [`json_payload`] runs once per publication for all JSON sessions of the node; the
//! decoder of commands shares [`depth_within`].
//!
//! **Invariant:** a payload's bytes on a JSON session are one valid JSON value without a raw CR or
//! LF.
//! **Invariant:** nothing here recurses: the depth scan is a loop, and `IgnoredAny` makes
//! `serde_json` keep its open brackets in a buffer. It also takes lone surrogates and huge numbers,
//! which are valid RFC 8259.

use serde::de::IgnoredAny;

use super::write::put_string;

/// Nested arrays and objects that one payload, and one line of commands, may have.
pub const DEPTH_MAX: usize = 128;

/// A payload as a JSON session gets it.
#[derive(Debug, PartialEq, Eq)]
pub enum JsonPayload<'a> {
    /// JSON already: the publisher's own bytes.
    Verbatim(&'a [u8]),
    /// JSON with its line breaks made spaces, or any other text as a JSON string.
    Rewritten(Vec<u8>),
    /// No JSON session can get this; the caller skips it there and counts it.
    NotUtf8,
}

impl JsonPayload<'_> {
    /// The bytes to send, if there are any.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Verbatim(bytes) => Some(bytes),
            Self::Rewritten(bytes) => Some(bytes),
            Self::NotUtf8 => None,
        }
    }
}

/// Decides how `bytes` travel on JSON sessions. Never reformats JSON and never rounds a number.
pub fn json_payload(bytes: &[u8]) -> JsonPayload<'_> {
    let Ok(text) = std::str::from_utf8(bytes) else { return JsonPayload::NotUtf8 };
    if !is_json(text) {
        return JsonPayload::Rewritten(json_string(text));
    }
    if !has_line_break(bytes) {
        return JsonPayload::Verbatim(bytes);
    }
    // Inside a JSON string a raw line break is invalid, so all of them stand between tokens.
    let is_break = |byte: u8| matches!(byte, b'\n' | b'\r');
    JsonPayload::Rewritten(
        bytes.iter().map(|&byte| if is_break(byte) { b' ' } else { byte }).collect(),
    )
}

/// Whether brackets outside of strings nest at most `depth_max` deep. Says nothing about validity.
pub fn depth_within(json: &[u8], depth_max: usize) -> bool {
    // Counting brackets is vectorised and settles nearly every payload; only many brackets need the
    // real scan.
    count_openers(json) <= depth_max || scan_depth_within(json, depth_max)
}

fn is_json(text: &str) -> bool {
    depth_within(text.as_bytes(), DEPTH_MAX) && serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// `text` as a JSON string.
pub fn json_string(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 8 + 2);
    put_string(&mut out, text);
    out
}

/// `[` and `{`, also those inside strings: never less than the depth.
fn count_openers(bytes: &[u8]) -> usize {
    // Chunks small enough for a byte to count them, which keeps 16 or more lanes per vector instead
    // of 2.
    let in_chunk =
        |chunk: &[u8]| -> u8 { chunk.iter().map(|&byte| u8::from(byte | 0x20 == b'{')).sum() };
    bytes.chunks(128).map(|chunk| usize::from(in_chunk(chunk))).sum()
}

fn has_line_break(bytes: &[u8]) -> bool {
    // No early exit within a chunk: `any` would go byte by byte.
    let in_chunk = |chunk: &[u8]| {
        chunk.iter().fold(false, |found, &byte| found | (byte == b'\n') | (byte == b'\r'))
    };
    bytes.chunks(128).any(in_chunk)
}

fn scan_depth_within(json: &[u8], depth_max: usize) -> bool {
    let mut depth = 0usize;
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'[' | b'{' if depth == depth_max => return false,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => skip_string(&mut bytes),
            _ => {}
        }
    }
    true
}

/// Moves past the closing quote of a string whose opening quote was just taken.
fn skip_string(bytes: &mut std::slice::Iter<'_, u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => drop(bytes.next()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn nested(depth: usize) -> String {
        "[".repeat(depth) + &"]".repeat(depth)
    }

    #[track_caller]
    fn check(input: &str, expected: &str) {
        let payload = json_payload(input.as_bytes());
        let bytes = payload.as_bytes().expect("UTF-8 always travels");
        assert_eq!(std::str::from_utf8(bytes).unwrap(), expected, "for {input:?}");
        assert_eq!(matches!(payload, JsonPayload::Verbatim(_)), input == expected, "for {input:?}");
    }

    #[test]
    fn json_travels_as_it_is() {
        let same = [
            "{}",
            "null",
            "0",
            "-0.50e+03",
            r#" {"a" : [1, 2.0,	true ]} "#,
            "123456789012345678901234567890.12345678901234567890",
            "1e999",
            r#""\u00e9\/\n""#,
            r#""\ud800""#,
            r#"{"a":1,"a":2}"#,
            "\"\u{2028}\u{7f}é😀\"",
        ];
        for json in same {
            check(json, json);
        }
        check(&nested(128), &nested(128));
    }

    #[test]
    fn line_breaks_between_tokens_become_spaces() {
        check("{\r\n \"a\": 1\n}\n", "{   \"a\": 1 } ");
        check("\r[1,\r2]", " [1, 2]");
    }

    #[test]
    fn other_text_travels_as_a_string() {
        check("", r#""""#);
        check(" ", r#"" ""#);
        check("\n", r#""\n""#);
        check("hello \"x\"\\\r\n\t\u{1}", r#""hello \"x\"\\\r\n\t\u0001""#);
        check("'a'", r#""'a'""#);
        check("NaN", r#""NaN""#);
        check("01", r#""01""#);
        check("1 2", r#""1 2""#);
        check("{\"a\":1,}", r#""{\"a\":1,}""#);
        check("\"a\nb\"", r#""\"a\nb\"""#);
        check("\u{feff}1", "\"\u{feff}1\"");
        check(&nested(129), &format!("\"{}\"", nested(129)));
    }

    #[test]
    fn very_deep_and_very_long_input_is_only_text() {
        let deep = "[".repeat(1 << 20);
        check(&deep, &format!("\"{deep}\""));
        let objects = r#"{"":"#.repeat(1 << 18);
        assert!(matches!(json_payload(objects.as_bytes()), JsonPayload::Rewritten(_)));
    }

    #[test]
    fn other_bytes_do_not_travel() {
        let every: Vec<u8> = (0..=255).collect();
        for bytes in [&b"\xff"[..], b"\"\xc3\"", b"{\"a\":\"\xed\xa0\x80\"}", &every] {
            assert_eq!(json_payload(bytes), JsonPayload::NotUtf8);
            assert_eq!(json_payload(bytes).as_bytes(), None);
        }
    }

    #[test]
    fn depth_counts_brackets_outside_of_strings() {
        let check = |json: &str, depth_max: usize, expected: bool| {
            assert_eq!(
                depth_within(json.as_bytes(), depth_max),
                expected,
                "{json} within {depth_max}"
            );
        };
        check("1", 0, true);
        check("[]", 0, false);
        check("[[],[],{}]", 2, true);
        check("[[],[[]],{}]", 2, false);
        check(r#"["[[[","\"[[[","\\",[]]"#, 2, true);
        check(r#"["\\",[[]]]"#, 2, false);
        check("]]]][", 1, true);
        check(r#"["[[[\"#, 1, true);
        check(&("[]".repeat(1000)), 1, true);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::hash_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    fn parsed(payload: &JsonPayload<'_>) -> Value {
        let bytes = payload.as_bytes().expect("UTF-8 always travels");
        assert!(!bytes.iter().any(|byte| matches!(byte, b'\n' | b'\r')), "a raw line break");
        serde_json::from_slice(bytes).expect("what travels is JSON")
    }

    proptest! {
        #[test]
        fn json_keeps_its_value(value in any_json()) {
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            let expected: Value = serde_json::from_str(&pretty).unwrap();
            prop_assert_eq!(parsed(&json_payload(pretty.as_bytes())), expected);
        }

        #[test]
        fn text_keeps_its_value(text in any::<String>()) {
            let expected = serde_json::from_str(&text).unwrap_or(Value::String(text.clone()));
            prop_assert_eq!(parsed(&json_payload(text.as_bytes())), expected);
        }

        #[test]
        fn the_short_cut_agrees_with_the_scan(text in r#"[\[\]{}"\\a]{0,60}"#, depth_max in 0usize..20) {
            let full = scan_depth_within(text.as_bytes(), depth_max);
            prop_assert_eq!(depth_within(text.as_bytes(), depth_max), full);
        }

        #[test]
        fn any_bytes_are_decided(bytes in any::<Vec<u8>>()) {
            let payload = json_payload(&bytes);
            prop_assert_eq!(payload.as_bytes().is_some(), std::str::from_utf8(&bytes).is_ok());
        }
    }
}
