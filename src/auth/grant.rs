//! Where the server subscribes a client by itself.
//!
//! A plain value and one decision, any thread, no clock. What counts as given: the claims of the
//! connection token (its `subs`, or `channels`), the user's own channels, and, of what the client
//! says it had before, what it may subscribe to anyway.
//!
//! **Invariant:** a name's list of users holds here too: a token that names a channel for others is
//! refused as a whole, and says so.

use super::permission::{Action, Standing, Tie};
use super::{Auth, Denial};
use crate::channel;
use crate::config::Config;
use crate::protocol::{Disconnect, ReplyError};

/// A channel that the server subscribes a client to, and what goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub channel: Box<str>,
    /// What others see of the client there: valid JSON without raw line breaks.
    pub info: Option<Box<[u8]>>,
    /// For the client: the same.
    pub data: Option<Box<[u8]>>,
    /// Unix seconds; `None`: for ever.
    pub expire_at: Option<u64>,
    /// As good as with a subscription token, if the back end named this very channel.
    pub tie: Tie,
}

impl Grant {
    /// The back end named the channel.
    pub fn new(channel: &str) -> Grant {
        let channel = channel.into();
        Grant { channel, info: None, data: None, expire_at: None, tie: Tie::Token }
    }

    fn mere(channel: &str) -> Grant {
        Grant { tie: Tie::Subscribed, ..Grant::new(channel) }
    }
}

impl Auth {
    /// Where a client is subscribed as it connects: `granted` by its token, its own channels, and what it
    /// `wants` back. A mistake in the token is an answer to whoever made it; what a client merely wants
    /// and may not have is left out, upon which the SDKs take the subscription for ended.
    pub fn served<'a>(
        &self,
        user: &str,
        granted: Vec<Grant>,
        wants: impl Iterator<Item = &'a str>,
        config: &Config,
    ) -> Result<Vec<Grant>, Denial> {
        if granted.len() > config.channels_max {
            return Err(Denial::Close(Disconnect::CHANNEL_LIMIT));
        }
        for grant in &granted {
            self.check_grant(user, &grant.channel, config)?;
        }
        let mut served = granted;
        let has = |served: &[Grant], name: &str| served.iter().any(|it| &*it.channel == name);
        let bytes_max = config.channel_bytes_max;
        for namespace in self.namespaces.personal() {
            if let Some(name) = channel::personal_name(namespace, user, bytes_max)
                && !has(&served, &name)
            {
                served.push(Grant::mere(&name));
            }
        }
        if served.len() > config.channels_max {
            return Err(Denial::Close(Disconnect::CHANNEL_LIMIT));
        }
        // It can't have had more: who names thousands only makes work.
        for name in wants.take(config.channels_max) {
            let is_new = served.len() < config.channels_max && !has(&served, name);
            if is_new && self.may_subscribe(user, name, config) {
                served.push(Grant::mere(name));
            }
        }
        Ok(served)
    }

    fn may_subscribe(&self, user: &str, name: &str, config: &Config) -> bool {
        let standing = Standing::new(user, Tie::None);
        self.check_grant(user, name, config).is_ok()
            && self.may(Action::Subscribe, name, standing).is_ok()
    }

    /// Whether a back end may put a user's clients into a channel.
    pub fn check_grant(&self, user: &str, name: &str, config: &Config) -> Result<(), ReplyError> {
        channel::check_name(name, config.channel_bytes_max).map_err(|_| ReplyError::BAD_REQUEST)?;
        self.namespaces.of(name).ok_or(ReplyError::UNKNOWN_CHANNEL)?;
        if self.is_dev || channel::is_for(name, user) {
            Ok(())
        } else {
            Err(ReplyError::PERMISSION_DENIED)
        }
    }
}

#[cfg(test)]
mod tests;
