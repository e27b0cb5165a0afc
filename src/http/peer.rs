//! Whose address a connection has: the peer's, or what a trusted proxy says.
//!
//! Plain functions. A header is believed only as far as the chain of trusted proxies reaches:
//! from the right, the first address that isn't one of theirs is the client's (RFC 7239, 8.1 says
//! why nothing left of it can be).

use std::net::IpAddr;

use hyper::header::HeaderValue;
use ipnet::IpNet;

/// The client's address; `forwarded` are the values of `X-Forwarded-For` in their order.
pub fn address<'a>(
    peer: IpAddr,
    proxies: &[IpNet],
    forwarded: impl DoubleEndedIterator<Item = &'a HeaderValue>,
) -> IpAddr {
    let is_proxy = |address: IpAddr| proxies.iter().any(|net| net.contains(&address));
    let mut client = peer.to_canonical();
    if !is_proxy(client) {
        return client;
    }
    for value in forwarded.rev() {
        for part in value.to_str().unwrap_or_default().rsplit(',') {
            let Some(address) = parse(part.trim()) else { return client };
            client = address;
            if !is_proxy(client) {
                return client;
            }
        }
    }
    client
}

/// An address, as some proxies write it with a port or in brackets.
fn parse(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address: Option<IpAddr> = bare.unwrap_or(text).parse().ok();
    let with_port = || text.parse().ok().map(|address: std::net::SocketAddr| address.ip());
    address.or_else(with_port).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_believed_as_far_as_the_proxies_reach() {
        let proxies = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let check = |peer: &str, headers: &[&str], expected: &str| {
            let values: Vec<_> =
                headers.iter().map(|text| HeaderValue::from_str(text).unwrap()).collect();
            let got = address(peer.parse().unwrap(), &proxies, values.iter());
            assert_eq!(got, expected.parse::<IpAddr>().unwrap(), "{peer} {headers:?}");
        };
        check("192.0.2.1", &["198.51.100.7"], "192.0.2.1");
        check("10.0.0.1", &[], "10.0.0.1");
        check("10.0.0.1", &["198.51.100.7"], "198.51.100.7");
        check("::ffff:10.0.0.1", &["198.51.100.7:4711"], "198.51.100.7");
        check("fd00::1", &["[2001:db8::7]:80"], "2001:db8::7");
        check("10.0.0.1", &["1.2.3.4, 198.51.100.7, 10.9.9.9"], "198.51.100.7");
        check("10.0.0.1", &["1.2.3.4", "198.51.100.7"], "198.51.100.7");
        check("10.0.0.1", &["1.2.3.4, unknown"], "10.0.0.1");
        check("10.0.0.1", &["10.0.0.2, 10.0.0.3"], "10.0.0.2");
        check("10.0.0.1", &["[2001:db8::7]"], "2001:db8::7");
        for junk in ["[2001:db8::7", "[2001:db8::7]x", "[198.51.100.7", "[2001:db8::7]]:80", "[]"] {
            check("10.0.0.1", &[junk], "10.0.0.1");
        }
    }
}
