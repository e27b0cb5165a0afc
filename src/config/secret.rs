//! Values that must not be seen: API keys, token secrets, and the Redis URL because of its password.
//!
//! **Invariant:** `Debug` and `Display` mask; only `expose` shows. There is no `PartialEq`: keys are
//! compared in constant time, by whoever checks them.

use std::fmt;
use std::net::Ipv6Addr;

use redis::IntoConnectionInfo;

use super::values::Refusal;

pub const MASK: &str = "***";

/// One key or shared secret.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The key itself, for the comparison or the signature.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

/// Several at once, so that a key can be replaced without a gap. Only what an HTTP header can carry.
pub fn api_keys(text: &str) -> Result<Vec<Secret>, Refusal> {
    let keys: Vec<&str> = text.split(',').map(str::trim).collect();
    let is_key = |key: &&str| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
    if keys.iter().all(is_key) {
        Ok(keys.into_iter().map(|key| Secret(key.to_owned())).collect())
    } else {
        Err(Refusal::expected("keys of visible ASCII characters, comma-separated, none empty"))
    }
}

/// A secret shared with whoever makes tokens. Its length is theirs to choose, since they chose it: a
/// minimum would lock out a back end that runs today.
pub fn token_secret(text: &str) -> Result<Secret, Refusal> {
    if text.is_empty() || text.contains(char::is_control) {
        return Err(Refusal::expected("a text without control characters"));
    }
    Ok(Secret(text.to_owned()))
}

/// `redis://[user:password@]host[:port][/db]` or `redis+unix:///path[?db=&user=&pass=]`.
#[derive(Clone)]
pub struct RedisUrl(String);

impl RedisUrl {
    pub fn parse(text: &str) -> Result<RedisUrl, Refusal> {
        let expected = || {
            Refusal::expected(
                "redis://[user:password@]host[:port][/db] or redis+unix:///path, with special \
                 characters of the password percent-encoded",
            )
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(expected)?;
        let is_wellformed = match scheme {
            "rediss" | "redis+sentinel" | "redis+cluster" => {
                return Err(Refusal::NotYet(format!("{scheme}://")));
            }
            "redis" => is_tcp(rest),
            "redis+unix" => is_unix(rest),
            _ => false,
        };
        let is_plain = rest.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        let is_understood = text.into_connection_info().is_ok();
        if is_wellformed && is_plain && is_understood {
            Ok(RedisUrl(text.to_owned()))
        } else {
            Err(expected())
        }
    }

    /// With the password, for the client that connects.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn has_password(&self) -> bool {
        self.masked() != self.0
    }

    fn masked(&self) -> String {
        let (scheme, rest) = self.0.split_once("://").expect("invariant: parse found the scheme");
        let Rest { location, query } = Rest::split(rest);
        let authority_end = location.find('/').unwrap_or(location.len());
        let (authority, path) = location.split_at(authority_end);
        let authority = match authority.rsplit_once('@') {
            Some((login, host)) => match login.split_once(':') {
                Some((user, _)) => format!("{user}:{MASK}@{host}"),
                None => authority.to_owned(),
            },
            None => authority.to_owned(),
        };
        let mask_pass = |pair: &str| match pair.split_once('=') {
            Some(("pass", _)) => format!("pass={MASK}"),
            _ => pair.to_owned(),
        };
        let query = query.map_or_else(String::new, |query| {
            let pairs: Vec<String> = query.split('&').map(mask_pass).collect();
            format!("?{}", pairs.join("&"))
        });
        format!("{scheme}://{authority}{path}{query}")
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

/// What follows the scheme. The list of query keys is closed, so `pass` cannot hide behind an escape.
struct Rest<'a> {
    location: &'a str,
    query: Option<&'a str>,
}

impl<'a> Rest<'a> {
    fn split(text: &'a str) -> Rest<'a> {
        match text.split_once('?') {
            Some((location, query)) => Rest { location, query: Some(query) },
            None => Rest { location: text, query: None },
        }
    }
}

fn is_tcp(rest: &str) -> bool {
    let Rest { location, query } = Rest::split(rest);
    let (authority, path) = location.split_once('/').unwrap_or((location, ""));
    let server = authority.rsplit_once('@').map_or(authority, |(_, server)| server);
    // The last colon of a bare `[::1]` is no separator.
    let (host, port) = match server.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (server, None),
    };
    query.is_none()
        && is_host(host)
        && port.is_none_or(|port| is_digits(port) && port.parse::<u16>().is_ok_and(|p| p > 0))
        && (path.is_empty() || is_database(path))
}

fn is_unix(rest: &str) -> bool {
    let Rest { location, query } = Rest::split(rest);
    let is_pair = |pair: &str| match pair.split_once('=') {
        Some(("db", db)) => is_database(db),
        Some(("user" | "pass", value)) => !value.is_empty(),
        _ => false,
    };
    location.starts_with('/')
        && location.len() > 1
        && query.is_none_or(|query| query.split('&').all(is_pair))
}

fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok_and(|address| !address.is_unspecified());
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !host.is_empty() && host != "0.0.0.0" && host.chars().all(is_name)
}

fn is_database(text: &str) -> bool {
    is_digits(text) && text.parse::<u32>().is_ok()
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redis_urls_are_checked_and_masked() {
        let check = |text: &str, masked: &str| {
            let url = RedisUrl::parse(text).unwrap_or_else(|_| panic!("{text}"));
            assert_eq!(url.to_string(), masked);
            assert_eq!(format!("{url:?}"), masked);
            assert_eq!(url.expose(), text);
            assert_eq!(url.has_password(), text != masked);
        };
        for open in [
            "redis://127.0.0.1",
            "redis://127.0.0.1:6379",
            "redis://[::1]",
            "redis://[::1]:6379/2",
            "redis://cache_1.internal/",
            "redis://reader@cache:6379/15",
            "redis+unix:///run/redis.sock",
            "redis+unix:///run/redis.sock?db=1&user=reader",
        ] {
            check(open, open);
        }
        check("redis://:pw@h", "redis://:***@h");
        check("redis://u:p:w@h:1/2", "redis://u:***@h:1/2");
        check("redis://u:p@w@h", "redis://u:***@h");
        check("redis+unix:///s?pass=pw&db=2", "redis+unix:///s?pass=***&db=2");
    }

    #[test]
    fn bad_redis_urls_are_refused_without_their_value() {
        for bad in [
            "127.0.0.1",
            "localhost:6379",
            "http://h",
            "redis://",
            "redis:///0",
            "redis://:pw@",
            "redis://h:0",
            "redis://h:65536",
            "redis://h:+1",
            "redis://h:",
            "redis://h/x",
            "redis://h/1/2",
            "redis://h?pass=pw",
            "redis://h%zz:1/0%",
            "redis://u:%ff%fe@h",
            "redis://0.0.0.0",
            "redis://[::]",
            "redis://[::1",
            "redis://::1",
            "redis://u:p/w@h",
            "redis://u:p#w@h",
            "redis://u:p w@h",
            "redis://h\n",
            "redis+unix://",
            "redis+unix:///",
            "redis+unix://h/s",
            "redis+unix:///s?db=x",
            "redis+unix:///s?p%61ss=pw",
            "redis+unix:///s?pass",
            "REDIS://h",
        ] {
            match RedisUrl::parse(bad) {
                Err(Refusal::Expected(text)) => assert!(!text.contains("pw"), "{bad:?}"),
                other => panic!("{bad:?}: {other:?}"),
            }
        }
        for scheme in ["rediss", "redis+sentinel", "redis+cluster"] {
            let refusal = RedisUrl::parse(&format!("{scheme}://u:pw@h")).err();
            assert_eq!(refusal, Some(Refusal::NotYet(format!("{scheme}://"))));
        }
    }

    #[test]
    fn token_secrets_are_taken_as_they_are() {
        let secret = token_secret(" a,b ä ").expect("a good secret");
        assert_eq!((secret.expose(), secret.to_string().as_str()), (" a,b ä ", MASK));
        assert!(token_secret("").is_err() && token_secret("a\nb").is_err());
    }

    #[test]
    fn api_keys_are_read_and_masked() {
        let keys = api_keys("one, two").ok().unwrap_or_default();
        let exposed: Vec<&str> = keys.iter().map(Secret::expose).collect();
        assert_eq!(exposed, ["one", "two"]);
        assert_eq!(format!("{keys:?} {}", keys[0]), "[***, ***] ***");
        for bad in ["", ",", "a,", "a,,b", "a b", "ä", "a\nb"] {
            assert!(api_keys(bad).is_err(), "{bad:?}");
        }
    }
}
