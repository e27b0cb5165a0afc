//! What a JWT says, in the types that hubbub reads it into; nothing here is checked against anything.
//!
//! Stateless; called by `token` only, and only for claims whose signature is good. The claims are
//! Centrifugo's (`sub`, `exp`, `info`, `b64info`, `channel`, …), so that a back end that makes tokens
//! for it makes them for hubbub. A claim that is `null` is absent; unknown ones are ignored, and so is
//! `iat`: a clock ahead of ours is no reason to lock anybody out.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::grant::Grant;
use super::permission::Tie;
use crate::protocol::{DEPTH_MAX, depth_within, json_payload};

/// 9999-12-31: a later time (or one in milliseconds by mistake) counts as this one, so that no sum of
/// a claim and a grace overflows.
const TIME_MAX_S: u64 = 253_402_300_799;

#[derive(Debug, Deserialize)]
pub struct Claims {
    pub sub: Option<String>,
    pub channel: Option<String>,
    pub client: Option<String>,
    pub exp: Option<Time>,
    pub nbf: Option<Time>,
    pub expire_at: Option<Time>,
    pub aud: Option<OneOrMany>,
    pub iss: Option<String>,
    info: Option<Box<RawValue>>,
    b64info: Option<String>,
    channels: Option<Vec<Box<str>>>,
    subs: Option<BTreeMap<Box<str>, Option<Sub>>>,
}

/// What `subs` says of one channel. Its `override` isn't read: what a channel has is its namespace's
/// matter.
#[derive(Debug, Default, Deserialize)]
struct Sub {
    info: Option<Box<RawValue>>,
    b64info: Option<String>,
    data: Option<Box<RawValue>>,
    b64data: Option<String>,
}

/// The info or data of a token is too deep, or is no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadInfo;

impl Claims {
    pub fn take_info(&mut self) -> Result<Option<Box<[u8]>>, BadInfo> {
        json_of(self.b64info.take(), self.info.take())
    }

    /// What `subs` has, else the names of `channels`; each once.
    pub fn take_grants(&mut self) -> Result<Vec<Grant>, BadInfo> {
        let (subs, channels) = (self.subs.take(), self.channels.take());
        let names = channels.unwrap_or_default().into_iter().map(|channel| (channel, None));
        let subs = subs.unwrap_or_else(|| names.collect()).into_iter();
        let grants = subs.map(|(channel, sub)| {
            let sub = sub.unwrap_or_default();
            let info = json_of(sub.b64info, sub.info)?;
            let data = json_of(sub.b64data, sub.data)?;
            Ok(Grant { channel, info, data, expire_at: None, tie: Tie::Token })
        });
        grants.collect()
    }
}

/// One JSON value without raw line breaks. What is in base64 wins, as in Centrifugo; it is treated like a
/// payload, so text that is no JSON becomes a JSON string.
fn json_of(
    in_base64: Option<String>,
    raw: Option<Box<RawValue>>,
) -> Result<Option<Box<[u8]>>, BadInfo> {
    let bytes = match (in_base64.filter(|text| !text.is_empty()), raw) {
        (Some(text), _) => STANDARD.decode(text).map_err(|_| BadInfo)?,
        (None, Some(raw)) if depth_within(raw.get().as_bytes(), DEPTH_MAX) => {
            Box::<str>::from(raw).into_boxed_bytes().into_vec()
        }
        (None, Some(_)) => return Err(BadInfo),
        (None, None) => return Ok(None),
    };
    json_payload(&bytes).as_bytes().map(|json| Some(json.into())).ok_or(BadInfo)
}

/// Unix seconds, rounded down; a time before 1970 is 0. A number or, as Centrifugo takes it, a string
/// that holds one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub u64);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
        deserializer.deserialize_any(TimeVisitor)
    }
}

struct TimeVisitor;

impl Visitor<'_> for TimeVisitor {
    type Value = Time;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unix seconds")
    }

    fn visit_u64<E>(self, seconds: u64) -> Result<Time, E> {
        Ok(Time(seconds.min(TIME_MAX_S)))
    }

    fn visit_i64<E>(self, seconds: i64) -> Result<Time, E> {
        Ok(Time(u64::try_from(seconds).unwrap_or(0).min(TIME_MAX_S)))
    }

    fn visit_f64<E: Error>(self, seconds: f64) -> Result<Time, E> {
        if seconds.is_finite() {
            // The cast saturates at both ends.
            Ok(Time((seconds as u64).min(TIME_MAX_S)))
        } else {
            Err(E::custom("not finite"))
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Time, E> {
        match text.parse::<u64>() {
            Ok(seconds) => self.visit_u64(seconds),
            Err(_) => self.visit_f64(text.parse().map_err(E::custom)?),
        }
    }
}

/// `aud` may be one name or a list.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub fn has(&self, name: &str) -> bool {
        match self {
            OneOrMany::One(only) => only == name,
            OneOrMany::Many(names) => names.iter().any(|item| item == name),
        }
    }
}

/// A token to be made, for `hubbub token make` and for tests.
#[derive(Debug, Default, Serialize)]
pub struct NewClaims<'a> {
    pub sub: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<&'a str>,
    #[serde(skip_serializing_if = "<[&str]>::is_empty")]
    pub channels: &'a [&'a str],
    pub iat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exp: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aud: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iss: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub info: Option<&'a RawValue>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Claims {
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
    }

    #[test]
    fn times() {
        let check = |json: &str, expected: Option<u64>| {
            let read = serde_json::from_str::<Time>(json).ok();
            assert_eq!(read.map(|time| time.0), expected, "{json}");
        };
        check("1700000000", Some(1_700_000_000));
        check("1700000000.9", Some(1_700_000_000));
        check("1.7e9", Some(1_700_000_000));
        check(r#""1700000000""#, Some(1_700_000_000));
        check(r#""1700000000.5""#, Some(1_700_000_000));
        check("0", Some(0));
        check("-5", Some(0));
        check("-0.5", Some(0));
        check("18446744073709551615", Some(TIME_MAX_S));
        check("1700000000000", Some(TIME_MAX_S));
        check("1e300", Some(TIME_MAX_S));
        for bad in ["true", "[]", "{}", r#""""#, r#""soon""#, r#""inf""#, r#""NaN""#, "1e999"] {
            check(bad, None);
        }
    }

    #[test]
    fn null_is_absent_and_unknown_is_ignored() {
        let claims = read(r#"{"sub":null,"exp":null,"info":null,"iat":"?","meta":{"a":1}}"#);
        assert!(claims.sub.is_none() && claims.exp.is_none() && claims.info.is_none());
        for bad in [r#"{"sub":42}"#, r#"{"sub":"a","sub":"b"}"#, r#"{"channels":"a"}"#, "[]", "1"] {
            assert!(serde_json::from_str::<Claims>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn infos() {
        let check = |json: &str, expected: Result<Option<&str>, BadInfo>| {
            let info = read(json).take_info();
            let info = info.map(|info| info.map(|bytes| String::from_utf8(bytes.into()).unwrap()));
            assert_eq!(
                info.as_ref().map(|info| info.as_deref()),
                expected.as_ref().copied(),
                "{json}"
            );
        };
        check("{}", Ok(None));
        check(r#"{"info":{"a" : 1.50}}"#, Ok(Some(r#"{"a" : 1.50}"#)));
        check("{\"info\":[1,\r\n2]}", Ok(Some("[1,  2]")));
        check(r#"{"info":{"a":1},"b64info":""}"#, Ok(Some(r#"{"a":1}"#)));
        // {"b":2}, then `hi`, which is no JSON, then a byte that is no text.
        check(r#"{"info":{"a":1},"b64info":"eyJiIjoyfQ=="}"#, Ok(Some(r#"{"b":2}"#)));
        check(r#"{"b64info":"aGk="}"#, Ok(Some(r#""hi""#)));
        check(r#"{"b64info":"/w=="}"#, Err(BadInfo));
        check(r#"{"b64info":"%"}"#, Err(BadInfo));
        let nested = |depth| format!(r#"{{"info":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert!(read(&nested(DEPTH_MAX)).take_info().is_ok());
        check(&nested(DEPTH_MAX + 1), Err(BadInfo));
    }

    #[test]
    fn channels_and_subs() {
        /// Channel, info and data of each.
        fn told(grant: &Grant) -> String {
            let text = |json: &Option<Box<[u8]>>| {
                String::from_utf8(json.as_deref().unwrap_or(b"-").into()).unwrap()
            };
            format!("{} {} {}", grant.channel, text(&grant.info), text(&grant.data))
        }
        let check = |json: &str, expected: &[&str]| {
            let grants = read(json).take_grants().expect("good infos");
            assert_eq!(grants.iter().map(told).collect::<Vec<_>>(), expected, "{json}");
        };
        check("{}", &[]);
        check(r#"{"channels":["b","a","b"]}"#, &["a - -", "b - -"]);
        check(
            r#"{"channels":["a"],"subs":{"c":{"info":{"n":1},"b64data":"aGk=","x":1},"b":null}}"#,
            &["b - -", r#"c {"n":1} "hi""#],
        );
        check(r#"{"channels":["a"],"subs":{}}"#, &[]);
        let overridden = r#"{"subs":{"a":{"data":null,"override":{"presence":{"value":true}}}}}"#;
        check(overridden, &["a - -"]);
        for bad in [r#"{"subs":{"a":{"b64info":"%"}}}"#, r#"{"subs":{"a":{"b64data":"/w=="}}}"#] {
            assert!(read(bad).take_grants().is_err(), "{bad}");
        }
        for bad in [r#"{"subs":{"a":1}}"#, r#"{"subs":["a"]}"#, r#"{"subs":{"a":{"info":}}}"#] {
            assert!(serde_json::from_str::<Claims>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn audiences() {
        let has = |json: &str| read(json).aud.is_some_and(|aud| aud.has("hub"));
        assert!(has(r#"{"aud":"hub"}"#) && has(r#"{"aud":["x","hub"]}"#));
        assert!(!has(r#"{"aud":"hubs"}"#) && !has(r#"{"aud":[]}"#) && !has("{}"));
    }
}
