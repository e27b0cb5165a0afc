//! Connection and subscription tokens: which key made one, and what it says.
//!
//! Owns: the keys, and the rules that a token must keep. Thread: any; a [`Verifier`] is built once
//! from a `Config` and then only read. Who may call: sessions and the raw transport by way of
//! [`super::Auth`], and `hubbub token`. Time comes in as Unix seconds.
//!
//! Source of the rules: Centrifugo's tokens (protocol.md 13), with a leeway of [`LEEWAY_S`] for
//! clocks that disagree. The signature is `jsonwebtoken`'s business; time, audience and issuer are
//! checked here, because that crate asks the system's clock, rounds otherwise, and tells expired
//! from invalid only after its own order.
//!
//! **Invariant:** a claim counts only after a key's signature fitted.
//! **Invariant:** a key is tried for its own algorithms only, whatever the token's header says: `none`,
//! or RS256 with an HMAC key, finds no key.
//! **Invariant:** no error holds any byte of the token.
//!
//! Absent: RSA, ECDSA and JWKS keys. Each will be one more [`Key`] with its own list of algorithms
//! and, for JWKS, a `kid`; [`Verifier::verified`] already chooses by what the header asks for.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::Deserialize;
use serde::de::IgnoredAny;
use uuid::Uuid;

use super::claims::{Claims, NewClaims};
use super::grant::Grant;
use crate::config::{Config, Secret};

/// A longer token isn't looked at. Room for a long list of channels; what a browser can put in a URL
/// or a header is less.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// How far the clock of whoever makes the tokens may be from ours, in seconds.
pub const LEEWAY_S: u64 = 10;

/// What a good connection token says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionToken {
    /// Empty: anonymous.
    pub user: Box<str>,
    /// Valid JSON without raw line breaks.
    pub info: Option<Box<[u8]>>,
    /// Unix seconds; may lie up to [`LEEWAY_S`] in the past. `None`: for ever.
    pub expire_at: Option<u64>,
    /// Where the server subscribes the client by itself: the claim `subs`, or `channels`.
    pub grants: Vec<Grant>,
}

/// What a good subscription token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionToken {
    /// The one it is for; the caller's, if it named one.
    pub channel: Box<str>,
    /// As in [`ConnectionToken`].
    pub info: Option<Box<[u8]>>,
    /// As in [`ConnectionToken`].
    pub expire_at: Option<u64>,
}

/// Whose token it must be.
#[derive(Clone, Copy, Debug)]
pub struct Bearer<'a> {
    /// The connection's user; empty if anonymous.
    pub user: &'a str,
    /// The connection's id.
    pub client: Uuid,
}

/// Why a token is refused. What the client is told is [`super::Denial`]'s matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TokenError {
    #[error("expired: `exp` is in the past")]
    Expired,
    #[error("not valid yet: `nbf` is in the future")]
    NotYetValid,
    #[error("expired: `expire_at` is in the past")]
    ExpireAtPast,
    #[error("longer than 16 KiB")]
    TooLong,
    #[error("not a JWT: expected three parts of base64url with JSON in the first two")]
    Malformed,
    #[error("its header asks for an extension (`crit`)")]
    Critical,
    #[error("no key is configured")]
    NoKey,
    #[error("its algorithm is not one that a key here is for")]
    Algorithm,
    #[error("its signature fits no key: made with another secret, or changed on the way")]
    Signature,
    #[error("a claim is there twice or not of its type, such as a `sub` that is no string")]
    Claims,
    #[error("its `info`, or the info or data of its `subs`, cannot be sent as JSON")]
    Info,
    #[error("its `aud` does not name this server")]
    Audience,
    #[error("its `iss` is not the issuer")]
    Issuer,
    #[error("a subscription token, given as a connection token")]
    NotForConnections,
    #[error("not a subscription token: no `channel`")]
    NoChannel,
    #[error("its `channel` is another")]
    OtherChannel,
    #[error("its `sub` is another user")]
    OtherUser,
    #[error("its `client` is another connection")]
    OtherClient,
}

/// One key, and what it may be used for.
#[derive(Debug)]
struct Key {
    /// The knob that it came from.
    name: &'static str,
    key: DecodingKey,
    /// Its list of algorithms is all that is left to jsonwebtoken.
    validation: Validation,
}

impl Key {
    fn hmac(name: &'static str, secret: &Secret) -> Key {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.algorithms = vec![Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        Key { name, key: DecodingKey::from_secret(secret.expose().as_bytes()), validation }
    }
}

/// The keys and the rules.
#[derive(Debug)]
pub struct Verifier {
    /// In the order of trial: current before previous. At most two as yet.
    keys: Vec<Key>,
    audience: Option<Box<str>>,
    issuer: Option<Box<str>>,
}

struct Verified {
    claims: Claims,
    key_name: &'static str,
}

impl Verifier {
    pub fn new(config: &Config) -> Verifier {
        let current =
            config.token_hmac_secret.as_ref().map(|key| Key::hmac("HUB_TOKEN_HMAC_SECRET", key));
        let previous = config
            .token_hmac_previous_secret
            .as_ref()
            .map(|key| Key::hmac("HUB_TOKEN_HMAC_PREVIOUS_SECRET", key));
        Verifier {
            keys: current.into_iter().chain(previous).collect(),
            audience: config.token_audience.as_deref().map(Box::from),
            issuer: config.token_issuer.as_deref().map(Box::from),
        }
    }

    /// Without a key every token is refused.
    pub fn has_key(&self) -> bool {
        !self.keys.is_empty()
    }

    /// The first command's token, or that of a refresh.
    pub fn connection(&self, token: &str, now_s: u64) -> Result<ConnectionToken, TokenError> {
        let mut claims = self.verified(token)?.claims;
        if claims.channel.as_deref().is_some_and(|channel| !channel.is_empty()) {
            return Err(TokenError::NotForConnections);
        }
        let info = claims.take_info().map_err(|_| TokenError::Info)?;
        let grants = claims.take_grants().map_err(|_| TokenError::Info)?;
        let expire_at = lifetime(&claims, now_s)?;
        let user = claims.sub.unwrap_or_default().into_boxed_str();
        Ok(ConnectionToken { user, info, expire_at, grants })
    }

    /// The token of a subscribe or of a sub_refresh. With `channel` `None` (centrifuge-python's
    /// sub_refresh names none) any channel will do, and the caller must have a subscription to it.
    pub fn subscription(
        &self,
        token: &str,
        bearer: Bearer<'_>,
        channel: Option<&str>,
        now_s: u64,
    ) -> Result<SubscriptionToken, TokenError> {
        let mut claims = self.verified(token)?.claims;
        let Some(of_token) = claims.channel.take().filter(|channel| !channel.is_empty()) else {
            return Err(TokenError::NoChannel);
        };
        if channel.is_some_and(|channel| channel != of_token) {
            return Err(TokenError::OtherChannel);
        }
        if claims.sub.as_deref().unwrap_or_default() != bearer.user {
            return Err(TokenError::OtherUser);
        }
        let client = claims.client.as_deref().filter(|client| !client.is_empty());
        if client.is_some_and(|client| Uuid::parse_str(client) != Ok(bearer.client)) {
            return Err(TokenError::OtherClient);
        }
        let info = claims.take_info().map_err(|_| TokenError::Info)?;
        let expire_at = lifetime(&claims, now_s)?;
        Ok(SubscriptionToken { channel: of_token.into_boxed_str(), info, expire_at })
    }

    /// The knob whose key made this token, whatever its time says.
    pub fn key_name(&self, token: &str) -> Result<&'static str, TokenError> {
        self.verified(token).map(|verified| verified.key_name)
    }

    /// Everything but time and purpose.
    fn verified(&self, token: &str) -> Result<Verified, TokenError> {
        if !self.has_key() {
            return Err(TokenError::NoKey);
        }
        let head: Head = part(token, 0)?;
        if head.crit.is_some() {
            return Err(TokenError::Critical);
        }
        let algorithm: Algorithm = head.alg.parse().map_err(|_| TokenError::Algorithm)?;
        let mut failure = TokenError::Algorithm;
        for key in self.keys.iter().filter(|key| key.validation.algorithms.contains(&algorithm)) {
            match jsonwebtoken::decode::<Claims>(token, &key.key, &key.validation) {
                Ok(data) => {
                    self.check_names(&data.claims)?;
                    return Ok(Verified { claims: data.claims, key_name: key.name });
                }
                Err(error) => failure = translated(error.kind()),
            }
            if failure != TokenError::Signature {
                break; // This key fitted, or no other can do better.
            }
        }
        Err(failure)
    }

    fn check_names(&self, claims: &Claims) -> Result<(), TokenError> {
        let has_audience = |own: &str| claims.aud.as_ref().is_some_and(|aud| aud.has(own));
        if !self.audience.as_deref().is_none_or(has_audience) {
            return Err(TokenError::Audience);
        }
        if self.issuer.is_some() && self.issuer.as_deref() != claims.iss.as_deref() {
            return Err(TokenError::Issuer);
        }
        Ok(())
    }
}

fn translated(kind: &ErrorKind) -> TokenError {
    match kind {
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::InvalidAlgorithm => TokenError::Algorithm,
        ErrorKind::Json(_) => TokenError::Claims,
        _ => TokenError::Malformed,
    }
}

/// Whether the token is within its time, and how long what it opens lasts: until `expire_at` if that
/// is there (0: for ever), else until `exp`.
fn lifetime(claims: &Claims, now_s: u64) -> Result<Option<u64>, TokenError> {
    let is_past = |at_s: u64| at_s + LEEWAY_S <= now_s;
    if claims.nbf.is_some_and(|nbf| nbf.0 > now_s + LEEWAY_S) {
        return Err(TokenError::NotYetValid);
    }
    if claims.exp.is_some_and(|exp| is_past(exp.0)) {
        return Err(TokenError::Expired);
    }
    match claims.expire_at.map(|at| at.0) {
        None => Ok(claims.exp.map(|exp| exp.0)),
        Some(0) => Ok(None),
        Some(at_s) if is_past(at_s) => Err(TokenError::ExpireAtPast),
        Some(at_s) => Ok(Some(at_s)),
    }
}

/// The `ttl` of a reply, in seconds. At least 1: the SDKs take an absent or zero one for none.
pub fn ttl_s(expire_at: u64, now_s: u64) -> u32 {
    u32::try_from(expire_at.saturating_sub(now_s)).unwrap_or(u32::MAX).max(1)
}

#[derive(Deserialize)]
struct Head {
    alg: String,
    crit: Option<IgnoredAny>,
}

/// One of the first two parts of a token, before any key was tried.
fn part<T: serde::de::DeserializeOwned>(token: &str, idx: usize) -> Result<T, TokenError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(TokenError::TooLong);
    }
    let parts: Vec<&str> = token.splitn(4, '.').collect();
    if parts.len() != 3 {
        return Err(TokenError::Malformed);
    }
    let json = URL_SAFE_NO_PAD.decode(parts[idx]).map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| TokenError::Malformed)
}

/// A token's header and claims as anybody can read them. Proves nothing: for `hubbub token check`.
#[derive(Debug)]
pub struct Unverified {
    pub header: serde_json::Value,
    pub claims: serde_json::Value,
}

impl Unverified {
    pub fn read(token: &str) -> Result<Unverified, TokenError> {
        Ok(Unverified { header: part(token, 0)?, claims: part(token, 1)? })
    }
}

/// Signs with HS256.
pub fn make(secret: &Secret, claims: &NewClaims<'_>) -> String {
    let key = EncodingKey::from_secret(secret.expose().as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &key)
        .expect("invariant: an HMAC key of any length signs any claims")
}

#[cfg(test)]
mod tests;
