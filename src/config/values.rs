//! How one value is read and shown: durations, sizes, counts, lists. Plain functions, no state.
//!
//! **Invariant:** what a `show_*` function prints, its reader accepts and reads as the same value.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;

/// Why a value was refused.
#[derive(Debug, Eq, PartialEq)]
pub enum Refusal {
    /// "expected …".
    Expected(String),
    /// A value of the design that this version cannot honour yet.
    NotYet(String),
}

impl Refusal {
    pub fn expected(what: impl Into<String>) -> Refusal {
        Refusal::Expected(what.into())
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

struct Unit {
    suffix: &'static str,
    /// In microseconds or bytes.
    factor: u64,
}

/// Largest first, since showing takes the first that divides.
const TIMES: &[Unit] = &[
    Unit { suffix: "h", factor: 3_600_000_000 },
    Unit { suffix: "m", factor: 60_000_000 },
    Unit { suffix: "s", factor: 1_000_000 },
    Unit { suffix: "ms", factor: 1_000 },
    Unit { suffix: "us", factor: 1 },
];
const SIZES: &[Unit] = &[
    Unit { suffix: "GiB", factor: 1 << 30 },
    Unit { suffix: "MiB", factor: 1 << 20 },
    Unit { suffix: "KiB", factor: 1 << 10 },
    Unit { suffix: "", factor: 1 },
];
/// Read but never shown.
const MORE_SIZES: &[Unit] = &[
    Unit { suffix: "GB", factor: 1_000_000_000 },
    Unit { suffix: "MB", factor: 1_000_000 },
    Unit { suffix: "kB", factor: 1_000 },
    Unit { suffix: "B", factor: 1 },
];

pub fn duration(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, Refusal> {
    let micros = if text == "0" { Some(0) } else { scaled(text, &[TIMES]) };
    micros.map(Duration::from_micros).filter(|value| range.contains(value)).ok_or_else(|| {
        Refusal::Expected(format!(
            "a duration such as 500ms, 25s, 1m or 2h, from {} to {}",
            show_duration(*range.start()),
            show_duration(*range.end())
        ))
    })
}

/// Events a second, by a token bucket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    pub per_second: u32,
}

impl Rate {
    /// What may come at once: ten seconds' worth.
    pub const BURST_S: u32 = 10;
}

pub fn rate(text: &str) -> Result<Option<Rate>, Refusal> {
    if text == "off" {
        return Ok(None);
    }
    let per_second = text.strip_suffix("/s").and_then(|number| number.parse().ok());
    match per_second.filter(|n| (1..=1_000_000).contains(n)) {
        Some(per_second) => Ok(Some(Rate { per_second })),
        None => Err(Refusal::expected("a rate such as 100/s, from 1/s to 1000000/s, or off")),
    }
}

pub fn show_rate(value: &Option<Rate>) -> String {
    value.map_or_else(|| "off".to_owned(), |rate| format!("{}/s", rate.per_second))
}

/// A bound that may be absent.
pub fn bound(text: &str) -> Result<Option<usize>, Refusal> {
    if text == "off" {
        return Ok(None);
    }
    let number = text.parse().ok().filter(|n| (1..=1 << 24).contains(n));
    number.map(Some).ok_or_else(|| Refusal::expected("a whole number from 1 to 16777216, or off"))
}

pub fn show_bound(value: &Option<usize>) -> String {
    value.map_or_else(|| "off".to_owned(), |n| n.to_string())
}

/// Addresses and networks, comma-separated.
pub fn networks(text: &str) -> Result<Vec<IpNet>, Refusal> {
    let one = |text: &str| -> Option<IpNet> {
        text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
    };
    let all: Option<Vec<IpNet>> = text.split(',').map(|part| one(part.trim())).collect();
    all.ok_or_else(|| {
        Refusal::expected("addresses or networks such as 10.0.0.1,10.1.0.0/16,fd00::/8")
    })
}

pub fn show_duration(value: Duration) -> String {
    let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
    if micros == 0 { "0".to_owned() } else { shown(micros, TIMES) }
}

pub fn size(text: &str, range: RangeInclusive<usize>) -> Result<usize, Refusal> {
    scaled(text, &[SIZES, MORE_SIZES])
        .and_then(|bytes| usize::try_from(bytes).ok())
        .filter(|bytes| range.contains(bytes))
        .ok_or_else(|| {
            Refusal::Expected(format!(
                "a size such as 1MiB, 64KiB, 16kB or 65536, from {} to {}",
                show_size(*range.start()),
                show_size(*range.end())
            ))
        })
}

pub fn show_size(bytes: usize) -> String {
    if bytes == 0 { "0".to_owned() } else { shown(bytes as u64, SIZES) }
}

pub fn count(text: &str, range: RangeInclusive<usize>) -> Result<usize, Refusal> {
    scaled(text, &[&[Unit { suffix: "", factor: 1 }]])
        .and_then(|number| usize::try_from(number).ok())
        .filter(|number| range.contains(number))
        .ok_or_else(|| {
            let (start, end) = (range.start(), range.end());
            Refusal::Expected(format!("a whole number from {start} to {end}"))
        })
}

/// Digits and a unit, nothing else: a sign, a space, a fraction or an overflow is `None`.
fn scaled(text: &str, tables: &[&[Unit]]) -> Option<u64> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, suffix) = text.split_at(digits_end);
    let unit = tables.iter().copied().flatten().find(|unit| unit.suffix == suffix)?;
    digits.parse::<u64>().ok()?.checked_mul(unit.factor)
}

fn shown(value: u64, units: &[Unit]) -> String {
    let unit = units
        .iter()
        .find(|unit| value.is_multiple_of(unit.factor))
        .expect("invariant: every table of units ends with the factor 1");
    format!("{}{}", value / unit.factor, unit.suffix)
}

pub fn boolean(text: &str) -> Result<bool, Refusal> {
    match text {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err(Refusal::expected("true, false, 1, 0, yes or no")),
    }
}

pub fn on_off(text: &str) -> Result<bool, Refusal> {
    match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err(Refusal::expected("on or off")),
    }
}

pub fn show_on_off(value: bool) -> String {
    if value { "on" } else { "off" }.to_owned()
}

/// A host's or a pod's name: it becomes part of a key, and of JSON.
pub fn node_id(text: &str) -> Result<String, Refusal> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    if (1..=128).contains(&text.len()) && text.bytes().all(is_good) {
        Ok(text.to_owned())
    } else {
        Err(Refusal::expected("1 to 128 letters, digits and ._:-"))
    }
}

pub fn addresses(text: &str) -> Result<Vec<SocketAddr>, Refusal> {
    text.split(',').map(|item| item.trim().parse()).collect::<Result<_, _>>().map_err(|_| {
        Refusal::expected(
            "IP:PORT, comma-separated, such as 127.0.0.1:8000, 0.0.0.0:8000 or [::1]:8000",
        )
    })
}

pub fn show_list<T: Display>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(T::to_string).collect();
    items.join(",")
}

/// A prefix is part of every Redis name, so it may hold anything that a terminal shows.
pub fn prefix(text: &str) -> Result<String, Refusal> {
    if text.len() <= 255 && !text.contains(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err(Refusal::expected("at most 255 bytes without control characters"))
    }
}

/// A name or a path.
pub fn line(text: &str) -> Result<String, Refusal> {
    if text.contains(char::is_control) {
        Err(Refusal::expected("a text without control characters"))
    } else {
        Ok(text.to_owned())
    }
}

pub fn show_option<T: Display>(value: &Option<T>) -> String {
    value.as_ref().map_or_else(String::new, T::to_string)
}

/// Stricter than the filter it ends in, which takes a mistyped level for the name of a module and
/// then logs nothing.
pub fn log_filter(text: &str) -> Result<String, Refusal> {
    let is_level = |level: &str| {
        ["off", "error", "warn", "info", "debug", "trace"]
            .iter()
            .any(|known| known.eq_ignore_ascii_case(level))
    };
    let is_target = |target: &str| {
        !target.is_empty()
            && target.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-'))
    };
    let is_directive = |item: &str| match item.split_once('=') {
        Some((target, level)) => is_target(target) && is_level(level),
        None => is_level(item),
    };
    if text.split(',').all(is_directive) {
        Ok(text.to_owned())
    } else {
        Err(Refusal::expected(
            "off, error, warn, info, debug or trace, also per module: info,hubbub=debug",
        ))
    }
}

pub fn log_format(text: &str) -> Result<LogFormat, Refusal> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(Refusal::expected("text or json")),
    }
}

pub fn show_log_format(format: LogFormat) -> String {
    match format {
        LogFormat::Text => "text".to_owned(),
        LogFormat::Json => "json".to_owned(),
    }
}

/// For an error line: a value of any length must not fill the screen.
pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

/// As a shell reads it back: plain if it can be, else in single quotes.
pub fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_.:,/@%+=[]*".contains(c);
    if text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let check = |text: &str, micros: Option<u64>| {
            let range = Duration::ZERO..=Duration::from_secs(86_400);
            let read = duration(text, range.clone());
            assert_eq!(read.as_ref().ok().copied(), micros.map(Duration::from_micros), "{text:?}");
            if let Ok(value) = read {
                assert_eq!(duration(&show_duration(value), range), Ok(value), "{text:?}");
            }
        };
        check("25s", Some(25_000_000));
        check("500ms", Some(500_000));
        check("250us", Some(250));
        check("1m", Some(60_000_000));
        check("2h", Some(7_200_000_000));
        check("0", Some(0));
        check("0s", Some(0));
        check("90s", Some(90_000_000));
        for bad in [
            "",
            "s",
            "25",
            "-1s",
            "+1s",
            "1.5s",
            "25 s",
            " 25s",
            "25S",
            "25sec",
            "1m30s",
            "1e3s",
            "25h",
            "99999999999999999999s",
            "18446744073709551615h",
            "٣s",
        ] {
            check(bad, None);
        }
        assert_eq!(show_duration(Duration::from_millis(1500)), "1500ms");
        assert_eq!(show_duration(Duration::from_secs(3600)), "1h");
    }

    #[test]
    fn sizes() {
        let check = |text: &str, bytes: Option<usize>| {
            let read = size(text, 0..=1 << 32);
            assert_eq!(read.as_ref().ok().copied(), bytes, "{text:?}");
            if let Ok(value) = read {
                assert_eq!(size(&show_size(value), 0..=1 << 32), Ok(value), "{text:?}");
            }
        };
        check("1MiB", Some(1 << 20));
        check("64KiB", Some(65_536));
        check("1GiB", Some(1 << 30));
        check("16kB", Some(16_000));
        check("2MB", Some(2_000_000));
        check("1GB", Some(1_000_000_000));
        check("10B", Some(10));
        check("65536", Some(65_536));
        check("0", Some(0));
        for bad in
            ["", "KiB", "1K", "1M", "1KB", "1kib", "1mb", "-1", "1.5MiB", "1 MiB", "5GiB", "1TiB"]
        {
            check(bad, None);
        }
        assert_eq!(show_size(1500), "1500");
        assert_eq!(show_size(16 << 20), "16MiB");
    }

    #[test]
    fn counts() {
        let check = |text: &str, number: Option<usize>| {
            assert_eq!(count(text, 1..=128).ok(), number, "{text:?}");
        };
        check("1", Some(1));
        check("128", Some(128));
        check("007", Some(7));
        for bad in ["0", "129", "", "-1", "+1", "two", "1.0", "0x10"] {
            check(bad, None);
        }
        let refusal = count("0", 1..=128);
        assert_eq!(refusal, Err(Refusal::expected("a whole number from 1 to 128")));
    }

    #[test]
    fn booleans() {
        for text in ["true", "1", "yes"] {
            assert_eq!(boolean(text), Ok(true));
        }
        for text in ["false", "0", "no"] {
            assert_eq!(boolean(text), Ok(false));
        }
        for text in ["", "on", "TRUE", "2", "y"] {
            assert!(boolean(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn switches_of_the_registry_and_names_of_nodes() {
        for (text, value) in [("on", true), ("true", true), ("off", false), ("false", false)] {
            assert_eq!(on_off(text), Ok(value));
            assert_eq!(on_off(&show_on_off(value)), Ok(value));
        }
        assert!(on_off("yes").is_err() && on_off("").is_err());
        for text in ["pod-0", "hub_1.example:8000", "A"] {
            assert_eq!(node_id(text).as_deref(), Ok(text));
        }
        for text in ["", "a b", "a\"", "é", "a*", &"a".repeat(129)] {
            assert!(node_id(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn address_lists() {
        let check = |text: &str, shown: Option<&str>| {
            let read = addresses(text).ok().map(|list| show_list(&list));
            assert_eq!(read.as_deref(), shown, "{text:?}");
        };
        check("127.0.0.1:8000", Some("127.0.0.1:8000"));
        check("127.0.0.1:0, [::1]:9", Some("127.0.0.1:0,[::1]:9"));
        for bad in ["", ":8000", "8000", "localhost:8000", "127.0.0.1", "127.0.0.1:8000,", "[::1]"]
        {
            check(bad, None);
        }
    }

    #[test]
    fn log_filters() {
        for good in ["info", "WARN", "hubbub=debug,info", "hubbub::shard=trace", "off"] {
            assert_eq!(log_filter(good).as_deref(), Ok(good));
        }
        for bad in ["", "verbose", "hubbub", "hubbub=loud", "info,", "=info", "[span]=info"] {
            assert!(log_filter(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn quoting_and_shortening() {
        assert_eq!(quoted("a:b,c/*"), "a:b,c/*");
        assert_eq!(quoted("it's #1"), r"'it'\''s #1'");
        assert_eq!(shortened(&"ä".repeat(80)), "ä".repeat(80));
        assert_eq!(shortened(&"ä".repeat(81)), format!("{}…", "ä".repeat(80)));
    }

    #[test]
    fn prefixes() {
        assert_eq!(prefix("app:").as_deref(), Ok("app:"));
        assert!(prefix("a\nb").is_err());
        assert!(prefix(&"x".repeat(256)).is_err());
    }
}
