//! Who a client is and what it may do: tokens, permissions, origins.
//!
//! Owns: the keys, and by `Arc` the namespaces, of one configuration. Thread: any; an [`Auth`] is
//! built once and then only read, so the shards share one. Who may call: sessions, the raw transport
//! and the routes that browsers reach; `hubbub token` uses [`token`] alone. No clock, no socket, no
//! log: time comes in as Unix seconds, answers go out as [`Denial`]s.
//!
//! A connection is anonymous if its user is empty, which a token may say too: the back end signed
//! that. Under `HUB_DEV` everything is allowed in every namespace that there is; a token is then
//! verified if a key is set, and ignored otherwise.
//!
//! **Invariant:** a token that is given and no good is refused, even where none was needed: a client
//! whose token went wrong must not go on as somebody else.
//! **Invariant:** nothing here holds or shows a token's bytes.
//!
//! Deliberately absent: limits and rates, the API's keys (`http::api`), when a session's or a
//! subscription's time is up (the session's timers, from `expire_at`), and reloading: a new
//! configuration is a new `Auth`.
//! What the server subscribes a client to by itself is `grant`'s.

mod claims;
mod denial;
mod grant;
pub mod origin;
pub mod permission;
pub mod token;

use std::sync::Arc;

use uuid::Uuid;

pub use claims::NewClaims;
pub use denial::{Asked, Denial};
pub use grant::Grant;
pub use origin::{Origins, origin_allowed};
pub use permission::{Action, Standing, Tie};
pub use token::{
    Bearer, ConnectionToken, LEEWAY_S, SubscriptionToken, TokenError, Unverified, Verifier, ttl_s,
};

use crate::config::{Config, Namespace, Namespaces};
use crate::protocol::{Disconnect, ReplyError};

/// All that one configuration says about access.
#[derive(Clone, Debug)]
pub struct Auth {
    tokens: Arc<Verifier>,
    namespaces: Arc<Namespaces>,
    is_dev: bool,
    allow_anonymous: bool,
}

/// A subscribe or sub_refresh command, as far as access goes.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    pub channel: &'a str,
    /// Empty: none.
    pub token: &'a str,
    pub bearer: Bearer<'a>,
}

/// A subscription that may be.
#[derive(Clone, Debug)]
pub struct Granted<'a> {
    pub namespace: &'a Namespace,
    /// `None`: it came without a token, or tokens are ignored.
    pub token: Option<SubscriptionToken>,
}

impl Auth {
    pub fn new(config: &Config) -> Auth {
        Auth {
            tokens: Arc::new(Verifier::new(config)),
            namespaces: config.namespaces.clone(),
            is_dev: config.dev,
            allow_anonymous: config.allow_anonymous,
        }
    }

    /// The same with other namespaces.
    pub fn with_namespaces(&self, namespaces: Arc<Namespaces>) -> Auth {
        Auth { namespaces, ..self.clone() }
    }

    pub fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// Whether anybody can connect at all.
    pub fn lets_clients_in(&self) -> bool {
        self.is_dev || self.allow_anonymous || self.tokens.has_key()
    }

    /// The connect command's token, empty for none; also that of the raw and one-way transports.
    pub fn connect(&self, token: &str, now_s: u64) -> Result<ConnectionToken, Denial> {
        if token.is_empty() || self.ignores_tokens() {
            return if self.is_dev || self.allow_anonymous {
                Ok(ConnectionToken::default())
            } else {
                Err(Denial::Close(Disconnect::BAD_REQUEST))
            };
        }
        self.tokens.connection(token, now_s).map_err(|error| Denial::of(error, Asked::Connect))
    }

    /// The refresh command of a connection that `user` opened.
    pub fn refresh(&self, token: &str, user: &str, now_s: u64) -> Result<ConnectionToken, Denial> {
        if self.ignores_tokens() {
            return Ok(ConnectionToken { user: user.into(), ..ConnectionToken::default() });
        }
        let fresh = self.tokens.connection(token, now_s);
        let fresh = fresh.map_err(|error| Denial::of(error, Asked::Refresh))?;
        if &*fresh.user == user {
            Ok(fresh)
        } else {
            Err(Denial::of(TokenError::OtherUser, Asked::Refresh))
        }
    }

    /// Namespace (else 102), then the token if there is one, then the permission (else 103).
    pub fn subscribe(&self, wish: Wish<'_>, now_s: u64) -> Result<Granted<'_>, Denial> {
        let namespace = self.namespaces.of(wish.channel).ok_or(ReplyError::UNKNOWN_CHANNEL)?;
        let token = if wish.token.is_empty() || self.ignores_tokens() {
            None
        } else {
            let token =
                self.tokens.subscription(wish.token, wish.bearer, Some(wish.channel), now_s);
            Some(token.map_err(|error| Denial::of(error, Asked::Subscribe))?)
        };
        let tie = if token.is_some() { Tie::Token } else { Tie::None };
        let standing = Standing::new(wish.bearer.user, tie);
        if self.is_dev || permission::allows(namespace, Action::Subscribe, wish.channel, standing) {
            Ok(Granted { namespace, token })
        } else {
            Err(ReplyError::PERMISSION_DENIED.into())
        }
    }

    /// An empty `channel` is centrifuge-python's: the answer says which one the token is for. Whether
    /// there is such a subscription is for the caller to look up (else 103). `None`: tokens are
    /// ignored, so the subscription goes on as it is.
    pub fn sub_refresh(
        &self,
        wish: Wish<'_>,
        now_s: u64,
    ) -> Result<Option<SubscriptionToken>, Denial> {
        if wish.token.is_empty() {
            return Err(ReplyError::BAD_REQUEST.into());
        }
        if self.ignores_tokens() {
            return Ok(None);
        }
        let channel = (!wish.channel.is_empty()).then_some(wish.channel);
        self.tokens
            .subscription(wish.token, wish.bearer, channel, now_s)
            .map(Some)
            .map_err(|error| Denial::of(error, Asked::SubRefresh))
    }

    /// Anything else that a client does with a channel: 102, 103, or its namespace.
    pub fn may(
        &self,
        action: Action,
        channel: &str,
        standing: Standing<'_>,
    ) -> Result<&Namespace, ReplyError> {
        let namespace = self.namespaces.of(channel).ok_or(ReplyError::UNKNOWN_CHANNEL)?;
        if self.is_dev || permission::allows(namespace, action, channel, standing) {
            Ok(namespace)
        } else {
            Err(ReplyError::PERMISSION_DENIED)
        }
    }

    fn ignores_tokens(&self) -> bool {
        self.is_dev && !self.tokens.has_key()
    }
}

impl<'a> Bearer<'a> {
    pub fn new(user: &'a str, client: Uuid) -> Bearer<'a> {
        Bearer { user, client }
    }
}

#[cfg(test)]
mod tests;
