//! API keys: where a request may carry one.

use hyper::Request;
use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use subtle::ConstantTimeEq;

use crate::config::Config;
use crate::http::query;

/// Whether a request carries a key. Compared in constant time.
pub fn is_allowed(config: &Config, request: &Request<Incoming>) -> bool {
    if config.dev {
        return true;
    }
    let matches = |key: &str| {
        config.api_keys.iter().any(|own| bool::from(own.expose().as_bytes().ct_eq(key.as_bytes())))
    };
    let header = |name: &str| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .filter(|key| !key.is_empty())
    };
    let in_header = match header("x-api-key") {
        Some(key) => matches(key),
        None => header(AUTHORIZATION.as_str())
            .and_then(|value| value.split_once(' '))
            .is_some_and(|(scheme, key)| scheme.eq_ignore_ascii_case("apikey") && matches(key)),
    };
    in_header || query(request, "api_key").iter().any(|key| matches(key))
}
