//! The keys of a namespace, and the values that each takes.
//!
//! Plain functions, any thread: each reads one value into a [`Namespace`], or says what it expected.

use std::time::Duration;

use toml::de::DeValue;

use super::{Access, Gap, JoinLeave, Namespace, Recovery, SlowConsumer};
use crate::config::values::{self, Refusal};

const HISTORY_SIZE_MAX: usize = 100_000;
/// Timers step in milliseconds.
const MAX_RATE_MAX: u32 = 1_000;
/// Up to a year.
const HISTORY_TTLS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(365 * 24 * 3600);

/// As long as `HUB_WRITE_DELAY` can be.
const WRITE_DELAYS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(10);

/// One key of a namespace.
pub struct Row {
    pub key: &'static str,
    pub set: fn(&mut Namespace, &DeValue<'_>) -> Result<(), Refusal>,
}

pub static KEYS: &[Row] = &[
    Row {
        key: "subscribe",
        set: |namespace, value| {
            // Only a subscriber may become one: nobody.
            namespace.subscribe = access(value, Some(Access::Subscriber))?;
            Ok(())
        },
    },
    Row {
        key: "publish",
        set: |namespace, value| {
            namespace.publish = access(value, None)?;
            Ok(())
        },
    },
    Row {
        key: "history",
        set: |namespace, value| {
            namespace.history = access(value, None)?;
            Ok(())
        },
    },
    Row {
        key: "presence_access",
        set: |namespace, value| {
            namespace.presence_access = access(value, None)?;
            Ok(())
        },
    },
    Row {
        key: "slow_consumer",
        set: |namespace, value| {
            namespace.slow_consumer = match word(value, &["disconnect", "conflate"])? {
                "disconnect" => SlowConsumer::Disconnect,
                _ => SlowConsumer::Conflate,
            };
            Ok(())
        },
    },
    Row {
        key: "gap",
        set: |namespace, value| {
            namespace.gap = match word(value, &["count", "resubscribe"])? {
                "count" => Gap::Count,
                _ => Gap::Resubscribe,
            };
            Ok(())
        },
    },
    Row {
        key: "history_size",
        set: |namespace, value| {
            let size = integer(value).map(|size| size as usize);
            let size = size.filter(|size| *size <= HISTORY_SIZE_MAX);
            namespace.history_size =
                size.ok_or(Refusal::expected("0 or a number of publications, at most 100000"))?;
            Ok(())
        },
    },
    Row {
        key: "history_ttl",
        set: |namespace, value| {
            let ttl = match value.as_str() {
                _ if is_zero(value) => Some(Duration::ZERO),
                Some(text) => values::duration(text, HISTORY_TTLS).ok(),
                None => None,
            };
            namespace.history_ttl =
                ttl.ok_or(Refusal::expected("off, 0 or a duration from \"1s\" to \"8760h\""))?;
            Ok(())
        },
    },
    Row {
        key: "recovery",
        set: |namespace, value| {
            namespace.recovery = match word(value, &["off", "stream", "cache"])? {
                "off" => Recovery::Off,
                "stream" => Recovery::Stream,
                _ => Recovery::Cache,
            };
            Ok(())
        },
    },
    Row {
        key: "presence",
        set: |namespace, value| {
            namespace.presence = value.as_bool().ok_or(Refusal::expected("true or false"))?;
            Ok(())
        },
    },
    Row {
        key: "join_leave",
        set: |namespace, value| {
            namespace.join_leave = match word(value, &["off", "on", "forced"])? {
                "off" => JoinLeave::Off,
                "on" => JoinLeave::On,
                _ => JoinLeave::Forced,
            };
            Ok(())
        },
    },
    Row {
        key: "max_rate",
        set: |namespace, value| {
            let expected = "off or a number of publications a second, at most 1000";
            namespace.max_rate = match integer(value).filter(|rate| *rate <= MAX_RATE_MAX) {
                _ if is_zero(value) => None,
                Some(rate) => Some(rate),
                None => return Err(Refusal::expected(expected)),
            };
            Ok(())
        },
    },
    Row {
        key: "write_delay",
        set: |namespace, value| {
            let delay = match value.as_str() {
                _ if is_zero(value) => Some(Duration::ZERO),
                Some(text) => values::duration(text, WRITE_DELAYS).ok(),
                None => None,
            };
            namespace.write_delay =
                delay.ok_or(Refusal::expected("off, 0 or a duration from \"1ms\" to \"10s\""))?;
            Ok(())
        },
    },
    Row {
        key: "delta",
        set: |namespace, value| {
            namespace.delta = value.as_bool().ok_or(Refusal::expected("true or false"))?;
            Ok(())
        },
    },
    Row { key: "tags_filter", set: |_, value| no_switch_yet(value) },
    Row {
        key: "personal",
        set: |namespace, value| {
            namespace.personal = value.as_bool().ok_or(Refusal::expected("true or false"))?;
            Ok(())
        },
    },
];

pub const ACCESSES: [(&str, Access); 5] = [
    ("nobody", Access::Nobody),
    ("token", Access::Token),
    ("subscriber", Access::Subscriber),
    ("user", Access::User),
    ("anyone", Access::Anyone),
];

fn access(value: &DeValue<'_>, senseless: Option<Access>) -> Result<Access, Refusal> {
    let known = || ACCESSES.iter().filter(|(_, access)| Some(*access) != senseless);
    let found = value.as_str().and_then(|text| known().find(|(word, _)| *word == text));
    found.map(|(_, access)| *access).ok_or_else(|| {
        let words: Vec<&str> = known().map(|(word, _)| *word).collect();
        Refusal::Expected(listed(&words))
    })
}

/// One of `words`, returned as it stands there.
fn word(value: &DeValue<'_>, words: &[&'static str]) -> Result<&'static str, Refusal> {
    let text = value.as_str().unwrap_or_default();
    let found = words.iter().find(|word| **word == text);
    found.copied().ok_or_else(|| Refusal::Expected(listed(words)))
}

fn no_switch_yet(value: &DeValue<'_>) -> Result<(), Refusal> {
    match value.as_bool() {
        Some(false) => Ok(()),
        Some(true) => Err(Refusal::NotYet("true".to_owned())),
        None => Err(Refusal::expected("true or false")),
    }
}

fn integer(value: &DeValue<'_>) -> Option<u32> {
    let number = value.as_integer()?;
    u32::from_str_radix(number.as_str(), number.radix()).ok()
}

/// A time or number that is off.
pub fn is_zero(value: &DeValue<'_>) -> bool {
    matches!(value.as_str(), Some("off" | "0")) || integer(value) == Some(0)
}

fn listed(words: &[&str]) -> String {
    match words {
        [but_last @ .., last] if !but_last.is_empty() => {
            format!("{} or {last}", but_last.join(", "))
        }
        words => words.concat(),
    }
}
