//! Who a session is, what it may do, and until when.
//!
//! Runs on the shard thread inside one borrow of the state; decisions are `auth`'s. Anonymous
//! sessions without subscription tokens have no account and cost nothing here.

use super::Gapped;
use super::commands::line;
use super::hub::{Queued, SessionId};
use super::session::{Kind, Session};
use super::state::State;
use crate::admission::UserPermit;
use crate::auth::{Action, Bearer, Denial, Grant, Standing, SubscriptionToken, Tie, Wish, ttl_s};
use crate::broker::Transport;
use crate::config::{Gap, Namespace};
use crate::node::unix_ms;
use crate::protocol::command::{Connect, SubRefresh, Subscribe};
use crate::protocol::{
    ConnectResult, Disconnect, RefreshOf, ReplyError, ServerSub, Unsubscribe, put_client_info,
    put_connect, put_error, put_refresh, put_unsubscribe_push,
};

/// What tokens said about a session.
#[derive(Default)]
pub struct Account {
    /// `None`: anonymous.
    user: Option<UserPermit>,
    info: Option<Box<[u8]>>,
    expire_at_s: Option<u64>,
    subscriptions: Vec<SubscriptionToken>,
}

impl Account {
    fn of(&self, channel: &str) -> Option<&SubscriptionToken> {
        self.subscriptions.iter().find(|token| &*token.channel == channel)
    }
}

impl Session {
    /// Empty: anonymous.
    pub fn user(&self) -> &str {
        let user = self.account.as_ref().and_then(|account| account.user.as_ref());
        user.map_or("", UserPermit::name)
    }

    /// Sets when it ends, and if it does what others see of it.
    pub fn set_expiry(&mut self, expire_at_s: Option<u64>, info: Option<&str>) {
        if self.account.is_none() && expire_at_s.is_none() {
            return;
        }
        let account = self.account.get_or_insert_default();
        account.expire_at_s = expire_at_s;
        if let Some(info) = info.filter(|_| expire_at_s.is_some()) {
            account.info = Some(info.as_bytes().into());
        }
    }

    fn subscription_token(&self, channel: &str) -> Option<&SubscriptionToken> {
        self.account.as_ref()?.of(channel)
    }

    fn bearer(&self) -> Bearer<'_> {
        Bearer::new(self.user(), self.connection)
    }

    /// Seconds until the subscription's token ends, for the subscribe reply.
    pub fn subscription_ttl(&self, channel: &str) -> Option<u32> {
        let expire_at_s = self.subscription_token(channel)?.expire_at?;
        Some(ttl_s(expire_at_s, now_s()))
    }

    /// Forgets the token of a channel that is left, or wasn't had.
    pub fn forget_token(&mut self, channel: &str) {
        if let Some(account) = &mut self.account {
            account.subscriptions.retain(|token| &*token.channel != channel);
        }
    }
}

pub fn now_s() -> u64 {
    unix_ms() / 1000
}

impl State {
    /// Makes a session that of a token's user. Used by all transports.
    /// Returns where the token wants it to be subscribed.
    pub fn sign_in(&mut self, id: SessionId, token: &str) -> Result<Vec<Grant>, Denial> {
        let token = self.auth.connect(token, now_s())?;
        let user = if token.user.is_empty() {
            None
        } else {
            Some(
                self.node
                    .admission
                    .admit_user(&token.user)
                    .ok_or(Denial::Close(Disconnect::CONNECTION_LIMIT))?,
            )
        };
        let Some(session) = self.session(id) else { return Ok(Vec::new()) };
        if user.is_some() || token.info.is_some() || token.expire_at.is_some() {
            let account = session.account.get_or_insert_default();
            account.user = user;
            account.info = token.info;
            account.expire_at_s = token.expire_at;
        }
        if !token.user.is_empty() {
            self.users.insert(&token.user, id.idx);
        }
        Ok(token.grants)
    }

    /// Who a client is, and all that it is subscribed to as it connects.
    fn grants(&mut self, id: SessionId, connect: &Connect<'_>) -> Result<Vec<Grant>, Denial> {
        let granted = self.sign_in(id, &connect.token)?;
        let (auth, node) = (self.auth.clone(), self.node.clone());
        let wants = connect.subs.iter().map(|sub| &*sub.channel);
        let Some(session) = self.session(id) else { return Ok(Vec::new()) };
        auth.served(session.user(), granted, wants, &node.config)
    }

    pub fn on_connect(
        &mut self,
        id: SessionId,
        asked: u32,
        connect: &Connect<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Disconnect> {
        let grants = self.grants(id, connect);
        let Some(session) = self.session(id) else { return Ok(()) };
        match grants {
            Ok(grants) if grants.is_empty() => {
                session.kind = Kind::Connected;
                line(out, |out| self.put_connected(id, asked, &[], out));
            }
            Ok(grants) => self.serve_connect(id, asked, grants, &connect.subs, out),
            Err(Denial::Error(error)) => {
                // centrifuge-js sends its subscribes in the same frame: nothing of that counts
                // any more, it will come back with a fresh token.
                session.kind = Kind::Refused;
                line(out, |out| put_error(out, asked, &error));
            }
            Err(Denial::Close(disconnect)) => return Err(disconnect),
            Err(Denial::Unsubscribe(_)) => return Err(Disconnect::INVALID_TOKEN),
        }
        Ok(())
    }

    /// Appends the reply to a connect: a client is there.
    pub fn put_connected(
        &mut self,
        id: SessionId,
        asked: u32,
        subs: &[ServerSub<'_>],
        out: &mut Vec<u8>,
    ) {
        let ping = self.node.config.ping_interval.as_secs() as u32;
        let Some(session) = self.session(id) else { return };
        let client = session.connection.to_string();
        let expire_at_s = session.account.as_ref().and_then(|account| account.expire_at_s);
        let result = ConnectResult {
            client: &client,
            version: concat!("hubbub ", env!("CARGO_PKG_VERSION")),
            ttl: expire_at_s.map(|at_s| ttl_s(at_s, now_s())),
            subs,
            ping,
            pong: true,
            ..ConnectResult::default()
        };
        put_connect(out, asked, &result);
        self.register(id, Transport::WebSocket);
    }

    /// Whether a session may subscribe. Its token, if it has one, counts from now on.
    pub fn authorize(&mut self, id: SessionId, subscribe: &Subscribe<'_>) -> Result<(), Denial> {
        let auth = self.auth.clone();
        let Some(session) = self.session(id) else { return Ok(()) };
        let wish =
            Wish { channel: &subscribe.channel, token: &subscribe.token, bearer: session.bearer() };
        let granted = auth.subscribe(wish, now_s())?;
        if let Some(token) = granted.token {
            session.forget_token(&token.channel);
            session.account.get_or_insert_default().subscriptions.push(token);
        }
        Ok(())
    }

    /// Whether a session may do anything else with a channel.
    pub fn may(
        &mut self,
        id: SessionId,
        action: Action,
        channel: &str,
    ) -> Result<Namespace, ReplyError> {
        let auth = self.auth.clone();
        let is_subscribed = self.is_live(id, channel);
        let Some(session) = self.session(id) else { return Err(ReplyError::INTERNAL) };
        let tie = match session.subscription_token(channel) {
            Some(_) if is_subscribed => Tie::Token,
            None if is_subscribed => {
                session.grant(channel).map_or(Tie::Subscribed, |grant| grant.tie)
            }
            _ => Tie::None,
        };
        auth.may(action, channel, Standing::new(session.user(), tie)).copied()
    }

    /// The ClientInfo of what a session publishes to a channel.
    pub fn client_info(&mut self, id: SessionId, channel: &str) -> Option<Box<[u8]>> {
        let session = self.session(id)?;
        let client = session.connection.to_string();
        let conn_info = session.account.as_ref().and_then(|account| account.info.as_deref());
        let of_token = session.subscription_token(channel).and_then(|token| token.info.as_deref());
        let of_grant = || session.grant(channel).and_then(|grant| grant.info.as_deref());
        let chan_info = of_token.or_else(of_grant);
        let mut info = Vec::new();
        put_client_info(&mut info, session.user(), &client, conn_info, chan_info);
        Some(info.into())
    }

    pub fn on_refresh(
        &mut self,
        id: SessionId,
        asked: u32,
        token: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), Disconnect> {
        let auth = self.auth.clone();
        let Some(session) = self.session(id) else { return Ok(()) };
        let token = match auth.refresh(token, session.user(), now_s()) {
            Ok(token) => token,
            Err(Denial::Error(error)) => {
                line(out, |out| put_error(out, asked, &error));
                return Ok(());
            }
            Err(Denial::Close(disconnect)) => return Err(disconnect),
            Err(Denial::Unsubscribe(_)) => return Err(Disconnect::EXPIRED),
        };
        if token.expire_at.is_some() || session.account.is_some() {
            let account = session.account.get_or_insert_default();
            account.expire_at_s = token.expire_at;
            account.info = token.info;
        }
        let ttl = token.expire_at.map(|at_s| ttl_s(at_s, now_s()));
        line(out, |out| put_refresh(out, asked, RefreshOf::Connection, ttl));
        Ok(())
    }

    pub fn on_sub_refresh(
        &mut self,
        id: SessionId,
        asked: u32,
        refresh: &SubRefresh<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Disconnect> {
        let auth = self.auth.clone();
        let named = &*refresh.channel;
        let is_own = |state: &mut Self, channel: &str| {
            state.is_live(id, channel)
                && state.session(id).is_some_and(|session| session.grant(channel).is_none())
        };
        if !named.is_empty() && !is_own(self, named) {
            line(out, |out| put_error(out, asked, &ReplyError::PERMISSION_DENIED));
            return Ok(());
        }
        let Some(session) = self.session(id) else { return Ok(()) };
        let wish = Wish { channel: named, token: &refresh.token, bearer: session.bearer() };
        match auth.sub_refresh(wish, now_s()) {
            Ok(None) => line(out, |out| put_refresh(out, asked, RefreshOf::Subscription, None)),
            Ok(Some(token)) if named.is_empty() && !is_own(self, &token.channel) => {
                line(out, |out| put_error(out, asked, &ReplyError::PERMISSION_DENIED));
            }
            Ok(Some(token)) => {
                let ttl = token.expire_at.map(|at_s| ttl_s(at_s, now_s()));
                let Some(session) = self.session(id) else { return Ok(()) };
                session.forget_token(&token.channel);
                session.account.get_or_insert_default().subscriptions.push(token);
                line(out, |out| put_refresh(out, asked, RefreshOf::Subscription, ttl));
            }
            Err(Denial::Error(error)) => line(out, |out| put_error(out, asked, &error)),
            Err(Denial::Close(disconnect)) => return Err(disconnect),
            Err(Denial::Unsubscribe(_)) => {
                line(out, |out| put_refresh(out, asked, RefreshOf::Subscription, None));
                if !named.is_empty() {
                    // Behind the reply that is still being written: the sweep pushes it.
                    self.expire_now(id, named);
                }
            }
        }
        Ok(())
    }

    fn expire_now(&mut self, id: SessionId, channel: &str) {
        let Some(session) = self.session(id) else { return };
        let account = session.account.get_or_insert_default();
        match account.subscriptions.iter_mut().find(|token| &*token.channel == channel) {
            Some(token) => token.expire_at = Some(0),
            None => account.subscriptions.push(SubscriptionToken {
                channel: channel.into(),
                info: None,
                expire_at: Some(0),
            }),
        }
    }

    /// Ends what has been over for longer than `HUB_EXPIRED_GRACE`.
    pub fn check_expiry(&mut self, id: SessionId) {
        self.check_served(id);
        let grace_s = self.node.config.expired_grace.as_secs();
        let Some(account) = self.session(id).and_then(|session| session.account.as_mut()) else {
            return;
        };
        if account.expire_at_s.is_none() && account.subscriptions.is_empty() {
            return;
        }
        let now_s = now_s();
        let is_over = |at_s: Option<u64>| {
            at_s.is_some_and(|at_s| at_s == 0 || now_s >= at_s.saturating_add(grace_s))
        };
        if is_over(account.expire_at_s) {
            self.close(id, Disconnect::EXPIRED, Queued::Flush);
            return;
        }
        let over = account.subscriptions.iter().filter(|token| is_over(token.expire_at));
        let channels: Vec<Box<str>> = over.map(|token| token.channel.clone()).collect();
        for channel in channels {
            self.end_subscription(id, &channel, Unsubscribe::EXPIRED);
        }
    }

    /// Tells the subscribers of channels that lost something, where they rely on getting all, or their
    /// namespace wants it.
    pub fn on_gap(&mut self, gapped: Gapped) {
        let auth = self.auth.clone();
        let tells = |name: &str| {
            auth.namespaces().of(name).is_some_and(|namespace| namespace.gap == Gap::Resubscribe)
        };
        let ids = match gapped {
            Gapped::Channel(id) => vec![id],
            Gapped::All => self.hub.open_channels(),
        };
        for id in ids {
            self.show_held(id);
            let is_positioned = self.lose_position(id);
            let Some(channel) =
                self.hub.channel(id).filter(|channel| is_positioned || tells(&channel.name))
            else {
                continue;
            };
            for session in self.hub.subscribers(id) {
                // What is pending is written now if it can be: leaving the channel would copy it.
                self.visit(session.idx);
                // Who didn't subscribe by itself doesn't do it again by itself.
                let reconnects = |session: &mut Session| {
                    session.kind == Kind::Raw || session.grant(&channel.name).is_some()
                };
                if self.session(session).is_some_and(reconnects) {
                    self.close(session, Disconnect::INSUFFICIENT_STATE, Queued::Flush);
                } else {
                    self.end_subscription(session, &channel.name, Unsubscribe::INSUFFICIENT_STATE);
                }
            }
        }
    }

    /// Ends one subscription of a session from the server's side.
    pub fn end_subscription(&mut self, id: SessionId, channel: &str, end: Unsubscribe) {
        let Some(slot) = self.live_slot(channel) else { return };
        if !self.unsubscribe(id, slot) {
            return; // It waits to be subscribed: the next sweep sees it.
        }
        self.release_emptied();
        let Some(session) = self.session(id) else { return };
        session.leave(channel);
        let mut push = Vec::new();
        put_unsubscribe_push(&mut push, channel, end);
        self.reply(id, &push);
    }
}
