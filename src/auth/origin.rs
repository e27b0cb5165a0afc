//! Which web pages may open a connection: the check of the `Origin` header.
//!
//! Plain values, any thread; the routes that a browser can reach ask before they upgrade, and answer a
//! refusal with 403. Programs other than browsers send no `Origin` and are let in: for them the header
//! would prove nothing.
//!
//! Two origins are the same if scheme, host and port are; letters' case means nothing, and no port
//! means the scheme's own. Same origin means that host and port are those of the `Host` header, whose
//! scheme is unknown behind a proxy and is taken to be the origin's.
//!
//! **Invariant:** what cannot be read as one origin (`null`, two headers, a path) is refused, unless
//! everything is allowed.

use std::fmt;

/// Bound of the list: every upgrade walks it.
const PATTERNS_MAX: usize = 256;
/// A host name has at most 253 bytes.
const ORIGIN_BYTES_MAX: usize = 512;

/// What `HUB_ALLOWED_ORIGINS` allows. A list stands in place of the same-origin rule, not beside it:
/// that rule believes the `Host` header, which a page can choose by pointing its own name at this
/// server (DNS rebinding).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origins {
    #[default]
    Same,
    Any,
    Listed(Vec<Pattern>),
}

/// An origin of which the host may hold `*`s, and the port may be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    scheme: String,
    host: String,
    port: Port,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    /// The scheme's own.
    Own,
    Number(u16),
    Any,
}

/// Whether a request with these `Origin` and `Host` headers may go on. Both come as all the values
/// that the request has.
pub fn origin_allowed<'a>(
    origins: &Origins,
    origin: impl IntoIterator<Item = &'a [u8]>,
    host: impl IntoIterator<Item = &'a [u8]>,
) -> bool {
    let mut values = origin.into_iter();
    let Some(value) = values.next() else { return true };
    if *origins == Origins::Any {
        return true;
    }
    let Some(origin) = read_origin(value).filter(|_| values.next().is_none()) else {
        return false;
    };
    match origins {
        Origins::Any => true,
        Origins::Same => is_own(&origin, host),
        Origins::Listed(patterns) => patterns.iter().any(|pattern| pattern.fits(&origin)),
    }
}

fn is_own<'a>(origin: &Origin, host: impl IntoIterator<Item = &'a [u8]>) -> bool {
    let mut values = host.into_iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let own =
        std::str::from_utf8(value).ok().and_then(|text| Place::read(&text.to_ascii_lowercase()));
    own.is_some_and(|own| {
        own.host == origin.place.host
            && own.port_at(&origin.scheme) == origin.place.port_at(&origin.scheme)
    })
}

/// As a browser sends it, in lower case.
#[derive(Debug)]
struct Origin {
    scheme: String,
    place: Place,
}

#[derive(Debug)]
struct Place {
    host: String,
    port: Option<u16>,
}

fn read_origin(value: &[u8]) -> Option<Origin> {
    let text = std::str::from_utf8(value).ok().filter(|text| text.len() <= ORIGIN_BYTES_MAX)?;
    let text = text.to_ascii_lowercase();
    let (scheme, place) = text.split_once("://")?;
    is_scheme(scheme).then_some(())?;
    Some(Origin { scheme: scheme.to_owned(), place: Place::read(place)? })
}

impl Place {
    fn read(text: &str) -> Option<Place> {
        let (host, port) = split_port(text);
        let port = match port {
            Some(digits) => Some(number(digits)?),
            None => None,
        };
        is_host(host).then(|| Place { host: host.to_owned(), port })
    }

    fn port_at(&self, scheme: &str) -> Option<u16> {
        self.port.or_else(|| own_port(scheme))
    }
}

/// At the last colon, unless that is inside of a `[::1]`.
fn split_port(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    }
}

fn number(digits: &str) -> Option<u16> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

fn own_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

fn is_host(text: &str) -> bool {
    if let Some(address) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    !text.is_empty() && text.bytes().all(is_name_byte)
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

impl Origins {
    /// The value of `HUB_ALLOWED_ORIGINS`, or what was expected.
    pub fn parse(text: &str) -> Result<Origins, String> {
        if text == "*" {
            return Ok(Origins::Any);
        }
        let patterns: Option<Vec<Pattern>> =
            text.split(',').map(|item| Pattern::parse(item.trim())).collect();
        patterns.filter(|patterns| patterns.len() <= PATTERNS_MAX).map(Origins::Listed).ok_or_else(|| {
            format!(
                "* alone, or at most {PATTERNS_MAX} origins such as https://app.example, \
                 https://*.app.example or http://localhost:*, comma-separated, without a path; a * in \
                 a host is followed by a dot or a dash, or is all of it"
            )
        })
    }
}

impl Pattern {
    fn parse(text: &str) -> Option<Pattern> {
        let text = text.to_ascii_lowercase();
        let (scheme, place) = text.split_once("://")?;
        let (host, port) = split_port(place);
        let port = match port {
            None => Port::Own,
            Some("*") => Port::Any,
            Some(digits) => Port::Number(number(digits)?),
        };
        let pattern = Pattern { scheme: scheme.to_owned(), host: host.to_owned(), port };
        (is_scheme(scheme) && is_host_pattern(host)).then_some(pattern)
    }

    fn fits(&self, origin: &Origin) -> bool {
        let fits_port = match self.port {
            Port::Any => true,
            Port::Own => origin.place.port_at(&origin.scheme) == own_port(&self.scheme),
            Port::Number(port) => origin.place.port_at(&origin.scheme) == Some(port),
        };
        fits_port && self.scheme == origin.scheme && glob(&self.host, &origin.place.host)
    }
}

/// `*example.com` would also let in `evilexample.com`, and `example.*` `example.evil.org`. Nobody who
/// writes that means it.
fn is_host_pattern(host: &str) -> bool {
    let is_safe = |(idx, byte): (usize, u8)| {
        byte != b'*' || matches!(host.as_bytes().get(idx + 1), Some(b'.' | b'-'))
    };
    host == "*"
        || (host.contains('*')
            && host.bytes().all(|byte| byte == b'*' || is_name_byte(byte))
            && host.bytes().enumerate().all(is_safe))
        || is_host(host)
}

/// A `*` stands for one byte or more, dots included. No backtracking: the earliest place for each
/// part between two `*`s leaves the most to those that follow.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(start) else { return false };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        let Some(after_one) = text.get(1..) else { return false };
        if parts.peek().is_none() {
            return after_one.ends_with(part);
        }
        let Some(at) = after_one.find(part) else { return false };
        text = &after_one[at + part.len()..];
    }
    false
}

/// As [`Origins::parse`] reads it; empty for the same origin.
impl fmt::Display for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origins::Same => Ok(()),
            Origins::Any => f.write_str("*"),
            Origins::Listed(patterns) => {
                for (idx, pattern) in patterns.iter().enumerate() {
                    let comma = if idx == 0 { "" } else { "," };
                    write!(f, "{comma}{pattern}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        match self.port {
            Port::Own => Ok(()),
            Port::Any => f.write_str(":*"),
            Port::Number(port) => write!(f, ":{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(allowed: &str, origin: &[&str], host: &[&str], expected: bool) {
        let origins = match allowed {
            "" => Origins::Same,
            list => Origins::parse(list).expect(list),
        };
        let bytes = |values: &[&str]| values.iter().map(|text| text.as_bytes().to_vec()).collect();
        let (origin, host): (Vec<Vec<u8>>, Vec<Vec<u8>>) = (bytes(origin), bytes(host));
        let is_allowed = origin_allowed(
            &origins,
            origin.iter().map(Vec::as_slice),
            host.iter().map(Vec::as_slice),
        );
        assert_eq!(is_allowed, expected, "{allowed:?} {origin:?} {host:?}");
    }

    /// Scenario 63.
    #[test]
    fn only_the_listed_pass() {
        let pass = |origin: &str, expected: bool| {
            check("https://a.example, https://*.b.example", &[origin], &["a.example"], expected);
        };
        for good in [
            "https://a.example",
            "https://a.example:443",
            "HTTPS://A.EXAMPLE",
            "https://x.b.example",
            "https://x.y.b.example",
            "https://X.B.example:443",
        ] {
            pass(good, true);
        }
        for bad in [
            "",
            "null",
            "https://a.example:8443",
            "http://a.example",
            "http://a.example:443",
            "https://a.example.",
            "https://a.example.evil.org",
            "https://evila.example",
            "https://evilb.example",
            "https://b.example",
            "https://.b.example",
            "https://x.b.example.",
            "https://x.b.example.evil.org",
            "https://x.b.example:444",
            "https://evil.org/x.b.example",
            "https://evil.org?.b.example",
            "https://evil.org#.b.example",
            "https://evil.org@x.b.example",
            "https://evil.org\\.b.example",
            "https://evil.org .b.example",
            "https://evil.org\0.b.example",
            "https://a.example/",
            "https://a.example:",
            "https://a.example:+443",
            "https://a.example:99999",
            "https://ä.b.example",
            "https://*.b.example",
            "https://",
            "://a.example",
            "a.example",
            "https:a.example",
        ] {
            pass(bad, false);
        }
        pass(&format!("https://{}.b.example", "x".repeat(600)), false);
        let listed = "https://a.example";
        check(listed, &[], &["a.example"], true);
        check(listed, &["https://a.example", "https://a.example"], &["a.example"], false);
        // The list stands in place of the same origin.
        check(listed, &["https://own.example"], &["own.example"], false);
    }

    #[test]
    fn same_origin_is_the_default() {
        let same =
            |origin: &str, host: &str, expected: bool| check("", &[origin], &[host], expected);
        same("https://a.example", "a.example", true);
        same("https://A.example", "a.EXAMPLE", true);
        same("https://a.example", "a.example:443", true);
        same("https://a.example:443", "a.example", true);
        same("http://a.example:80", "a.example", true);
        same("http://127.0.0.1:8000", "127.0.0.1:8000", true);
        same("http://[::1]:8000", "[::1]:8000", true);
        same("http://[::1]", "[::1]", true);
        same("capacitor://localhost", "localhost", true);
        same("https://a.example", "a.example:8000", false);
        same("https://a.example:8443", "a.example", false);
        same("http://a.example", "a.example:443", false);
        same("https://evil.org", "a.example", false);
        same("https://a.example.evil.org", "a.example", false);
        same("null", "null", false);
        same("", "", false);
        same("https://a.example", "", false);
        same("https://a.example", "a.example/x", false);
        check("", &[], &[], true);
        check("", &["https://a.example"], &[], false);
        check("", &["https://a.example"], &["a.example", "a.example"], false);
        check("", &["https://a.example", "https://a.example"], &["a.example"], false);
    }

    #[test]
    fn stars() {
        check("*", &["null"], &["a.example"], true);
        check("*", &["https://evil.org", "x"], &[], true);
        check("https://*", &["https://any.example"], &[], true);
        check("https://*", &["http://any.example"], &[], false);
        check("https://*", &["null"], &[], false);
        check("http://localhost:*", &["http://localhost:5173"], &[], true);
        check("http://localhost:*", &["http://localhost"], &[], true);
        check("http://localhost:*", &["http://localhost.evil.org:5173"], &[], false);
        check("http://[::1]:3000", &["http://[::1]:3000"], &[], true);
        check("http://a.example:8080", &["http://a.example"], &[], false);
        check("capacitor://localhost", &["capacitor://localhost"], &[], true);
        check("https://pr-*-web.app.example", &["https://pr-7-web.app.example"], &[], true);
        check("https://pr-*-web.app.example", &["https://pr--web.app.example"], &[], false);
    }

    #[test]
    fn globs() {
        let check = |pattern: &str, text: &str, expected: bool| {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        };
        check("a", "a", true);
        check("a", "ab", false);
        check("*", "a", true);
        check("*", "", false);
        check("*.b", "a.b", true);
        check("*.b", ".b", false);
        check("a.*.b", "a.x.b", true);
        check("a.*.b", "a.b", false);
        check("a.*.b", "a..b", false);
        check("*.*.c", "a.b.c", true);
        check("*.*.c", "a.c", false);
        check("*.a.*.b", "x.a.a.a.b", true);
        check("*.a.*.b", "x.a.b", false);
    }

    #[test]
    fn lists_read_back_as_they_show() {
        for list in
            ["*", "https://a.example", "https://*.a.example,http://localhost:*,http://[::1]:1"]
        {
            let origins = Origins::parse(list).expect(list);
            assert_eq!(origins.to_string(), list);
        }
        let shown = Origins::parse("HTTPS://A.example:443 , http://b").map(|list| list.to_string());
        assert_eq!(shown.as_deref(), Ok("https://a.example:443,http://b"));
        for bad in [
            "",
            ",",
            "*,https://a.example",
            "a.example",
            "*.a.example",
            "null",
            "https://",
            "https://a.example/",
            "https://a.example/app",
            "https://u@a.example",
            "https://a.example:",
            "https://a.example:x",
            "https://*a.example",
            "https://a.*",
            "https://a**.b",
            "*://a.example",
            "https://[*]",
        ] {
            let error = Origins::parse(bad).expect_err(bad);
            assert!(error.contains("https://app.example"), "{bad}: {error}");
        }
        let many = vec!["https://a.example"; PATTERNS_MAX + 1].join(",");
        assert!(Origins::parse(&many).is_err());
    }
}
