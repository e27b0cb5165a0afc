//! Server-side subscriptions: those that a connect brings along, and those that the server API makes.
//!
//! Runs on the shard thread inside one borrow of the state; who may be subscribed to what is `auth`'s.
//! The channels of a connect are joined like any others, and its reply waits until all of them are
//! there. Meanwhile the session is held: what is published to those it has already is collected, and
//! the reply goes ahead of it. What the client sends meanwhile waits for the reply too: centrifuge-js
//! has its subscribes in the connect's own frame.
//!
//! **Invariant:** a client hears nothing of a channel before it was told of the subscription.
//! **Invariant:** a connect whose channels can't all be had is an error, and leaves no subscription.

use super::access::now_s;
use super::commands::line;
use super::hub::{Queued, SessionId, Variant};
use super::session::{Kind, Session};
use super::state::State;
use super::waiting::{Ask, Asked};
use super::welcome::Welcome;
use crate::auth::Grant;
use crate::frame::{self, Opcode};
use crate::position::{Epoch, Position};
use crate::protocol::command::WantedSub;
use crate::protocol::{
    Disconnect, ReplyError, ServerSub, SubscribeResult, put_error, put_subscribe_push,
};
use crate::publication::{Format, Publication};

/// What the server subscribed a session to, or is about to: at most `HUB_CHANNELS_MAX`.
#[derive(Default)]
pub struct Served {
    grants: Vec<Grant>,
    connect: Option<Connecting>,
}

/// A connect that waits for its channels.
struct Connecting {
    command: u32,
    n_missing: usize,
    joined: Vec<JoinedSub>,
    refused: Option<ReplyError>,
    /// What the client sent since, lines that are paid for: at most twice `HUB_MESSAGE_BYTES_MAX`.
    held: Vec<u8>,
}

struct JoinedSub {
    channel: Box<str>,
    variant: Variant,
    welcome: Welcome,
}

impl Served {
    fn first_end(&self) -> Option<u64> {
        self.grants.iter().filter_map(|grant| grant.expire_at).min()
    }
}

impl Session {
    pub fn grant(&self, channel: &str) -> Option<&Grant> {
        self.served.as_ref()?.grants.iter().find(|grant| &*grant.channel == channel)
    }

    fn connecting(&mut self) -> Option<&mut Connecting> {
        self.served.as_mut()?.connect.as_mut()
    }

    /// It has a channel by the server from now on, whoever subscribed before.
    fn take_grant(&mut self, grant: Grant) {
        self.forget_token(&grant.channel);
        let grants = &mut self.served.get_or_insert_default().grants;
        grants.retain(|other| other.channel != grant.channel);
        grants.push(grant);
    }

    /// Forgets why it had a channel that is left, or wasn't had.
    pub fn leave(&mut self, channel: &str) {
        self.forget_token(channel);
        let Some(served) = &mut self.served else { return };
        served.grants.retain(|grant| &*grant.channel != channel);
        if let Some(connect) = &mut served.connect {
            connect.joined.retain(|joined| &*joined.channel != channel);
        }
    }

    /// What the answer to its connect will take, bytes.
    pub fn answer_bytes(&self) -> usize {
        let connect = self.served.as_ref().and_then(|served| served.connect.as_ref());
        let joined = connect.map_or(&[][..], |connect| &connect.joined);
        joined.iter().map(|joined| joined.welcome.missed.json().len()).sum()
    }
}

impl State {
    // --- connecting

    /// Subscribes a session to all that it is granted, then answers its connect; `wants` is what the client
    /// knows of them.
    pub fn serve_connect(
        &mut self,
        id: SessionId,
        asked: u32,
        grants: Vec<Grant>,
        wants: &[WantedSub<'_>],
        out: &mut Vec<u8>,
    ) {
        let names: Vec<Box<str>> = grants.iter().map(|grant| grant.channel.clone()).collect();
        let Some(session) = self.session(id) else { return };
        session.kind = Kind::Connecting;
        let connect = Connecting {
            command: asked,
            n_missing: names.len(),
            joined: Vec::new(),
            refused: None,
            held: Vec::new(),
        };
        session.served = Some(Box::new(Served { grants, connect: Some(connect) }));
        let wants = &wants[..wants.len().min(self.node.config.channels_max)];
        for name in &names {
            if !self.is_connecting(id) {
                break; // It was refused: the client begins anew.
            }
            let ask = wants.iter().find(|sub| *sub.channel == **name).map(|sub| Ask {
                variant: self.variant(name, sub.delta),
                recover: sub
                    .recover
                    .then(|| Position { offset: sub.offset, epoch: Epoch::asked(&sub.epoch) }),
                ..Ask::default()
            });
            let ask = ask.unwrap_or_default();
            match self.want(id, name, Asked::Serve(ask)) {
                Ok(Some(welcome)) => self.on_served(id, name, ask, Ok(welcome)),
                Ok(None) => {}
                Err(error) => {
                    self.on_served(id, name, ask, Err(error));
                    break;
                }
            }
        }
        if let Some(reply) = self.take_connect_reply(id) {
            line(out, |out| out.extend_from_slice(&reply));
        } else if self.is_connecting(id) {
            self.hub.hold(id);
        }
    }

    pub fn is_connecting(&mut self, id: SessionId) -> bool {
        self.session(id).is_some_and(|session| session.kind == Kind::Connecting)
    }

    /// A channel is there, or can't be had. Only [`State::answer_connect`] answers a connect.
    pub fn on_served(
        &mut self,
        id: SessionId,
        name: &str,
        ask: Ask,
        outcome: Result<Welcome, ReplyError>,
    ) {
        let Some(session) = self.session(id) else { return };
        let is_granted = session.grant(name).is_some();
        match (session.kind, outcome) {
            (Kind::Connecting, outcome) => {
                let Some(connect) = session.connecting() else { return };
                connect.n_missing = connect.n_missing.saturating_sub(1);
                match outcome {
                    // Else it was taken back meanwhile.
                    Ok(welcome) if is_granted => connect.joined.push(JoinedSub {
                        channel: name.into(),
                        variant: ask.variant,
                        welcome,
                    }),
                    Ok(_) => {}
                    Err(error) => connect.refused = Some(error),
                }
            }
            (Kind::Connected, Ok(welcome)) if is_granted => {
                self.push_subscribe(id, name, &welcome);
            }
            (Kind::Connected, Err(_)) => self.refuse_to_serve(),
            // The connect that wanted it was refused.
            (Kind::Refused, Ok(_)) => self.undo_subscribe(id, name),
            _ => {}
        }
    }

    /// Answers a connect if nothing is missing any more, or never will be there.
    pub fn answer_connect(&mut self, id: SessionId) {
        let Some(reply) = self.take_connect_reply(id) else { return };
        let mut out = Vec::with_capacity(reply.len() + frame::HEAD_BYTES_MAX);
        frame::put_frame(&mut out, Opcode::Text, &reply);
        let is_refused = self.session(id).is_some_and(|session| session.kind == Kind::Refused);
        // What was collected was for a client with these subscriptions.
        let collected = if is_refused { Queued::Drop } else { Queued::Flush };
        self.hub.release(id, &out, collected);
    }

    fn take_connect_reply(&mut self, id: SessionId) -> Option<Vec<u8>> {
        let session = self.session(id)?;
        let served = session.served.as_mut()?;
        let is_due = |connect: &Connecting| connect.refused.is_some() || connect.n_missing == 0;
        let connect = served.connect.take_if(|connect| is_due(connect))?;
        let mut reply = Vec::new();
        if let Some(error) = connect.refused {
            session.kind = Kind::Refused;
            session.served = None;
            for joined in &connect.joined {
                self.undo_subscribe(id, &joined.channel);
            }
            put_error(&mut reply, connect.command, &error);
            return Some(reply);
        }
        session.kind = Kind::Connected;
        let data = |joined: &JoinedSub| session.grant(&joined.channel)?.data.clone();
        let data: Vec<Option<Box<[u8]>>> = connect.joined.iter().map(data).collect();
        let subs = connect.joined.iter().zip(&data).map(|(joined, data)| ServerSub {
            channel: &joined.channel,
            result: SubscribeResult {
                data: data.as_deref(),
                ..joined.welcome.result(joined.variant)
            },
        });
        let subs: Vec<ServerSub<'_>> = subs.collect();
        self.put_connected(id, connect.command, &subs, &mut reply);
        if !connect.held.is_empty() {
            self.held.push((id, connect.held));
        }
        Some(reply)
    }

    fn undo_subscribe(&mut self, id: SessionId, name: &str) {
        if let Some(slot) = self.live_slot(name) {
            self.unsubscribe(id, slot);
            self.release_emptied();
        }
    }

    /// Keeps what a client sends until its connect is answered. False: it sends too much.
    pub fn hold_command(&mut self, id: SessionId, line: &[u8]) -> bool {
        let held_bytes_max = 2 * self.node.config.message_bytes_max;
        let Some(connect) = self.session(id).and_then(Session::connecting) else { return true };
        if connect.held.len() + line.len() + 1 > held_bytes_max {
            return false;
        }
        if !connect.held.is_empty() {
            connect.held.push(b'\n');
        }
        connect.held.extend_from_slice(line);
        true
    }

    // --- while connected

    /// Puts a session into a channel, and tells its client: again, if it was there. After `since` the client
    /// gets what it missed.
    pub fn serve(
        &mut self,
        id: SessionId,
        grant: Grant,
        since: Option<Position>,
    ) -> Result<(), ReplyError> {
        let (auth, node) = (self.auth.clone(), self.node.clone());
        let name = grant.channel.clone();
        let Some(session) = self.session(id) else { return Ok(()) };
        auth.check_grant(session.user(), &name, &node.config)?;
        let is_connecting = session.kind == Kind::Connecting;
        let n_pending = usize::from(session.n_pending);
        let is_had = self.check_waiting(id, &name).is_err();
        if !is_had && self.hub.n_channels_of(id) + n_pending >= node.config.channels_max {
            return Err(ReplyError::LIMIT_EXCEEDED);
        }
        let standing = self.live_slot(&name).filter(|slot| self.hub.is_subscribed(id, *slot));
        let Some(session) = self.session(id) else { return Ok(()) };
        session.take_grant(grant);
        if is_connecting && is_had {
            return Ok(()); // It will be told with all the rest.
        }
        if let Some(connect) = session.connecting() {
            connect.n_missing += 1;
        }
        if let Some(slot) = standing {
            let welcome = self.standing(slot);
            self.push_subscribe(id, &name, &welcome);
            return Ok(());
        }
        let ask = Ask { recover: since, ..Ask::default() };
        match self.want(id, &name, Asked::Serve(ask)) {
            Ok(Some(welcome)) => self.on_served(id, &name, ask, Ok(welcome)),
            Ok(None) => {}
            Err(error) => {
                let Some(session) = self.session(id) else { return Ok(()) };
                session.leave(&name);
                if let Some(connect) = session.connecting() {
                    connect.n_missing -= 1;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Counts what the server API wanted and can't have: nobody waits for an answer.
    pub fn refuse_to_serve(&self) {
        self.node.metrics.shards[self.idx].serves_refused.add(1);
    }

    fn push_subscribe(&mut self, id: SessionId, name: &str, welcome: &Welcome) {
        let Some(channel) = self.live_slot(name).and_then(|slot| self.hub.channel_at(slot)) else {
            return;
        };
        let Some(session) = self.session(id) else { return };
        let data = session.grant(name).and_then(|grant| grant.data.as_deref());
        let Welcome { recoverable, positioned, at, .. } = welcome;
        let result = SubscribeResult {
            recoverable: *recoverable,
            positioned: *positioned,
            epoch: at.epoch.as_str(),
            offset: at.offset,
            data,
            ..SubscribeResult::default()
        };
        let mut push = Vec::new();
        put_subscribe_push(&mut push, name, &result);
        self.reply(id, &push);
        for (stored, epoch) in welcome.missed.publications() {
            let position = Position { offset: stored.offset, epoch };
            let missed = Publication::at(channel.clone(), stored.body.clone(), position);
            if let Some(frame) = missed.frame(Format::Json) {
                self.hub.push_own(id, frame);
            }
        }
    }

    /// Ends the connection if one of its server-side subscriptions has been over for longer than
    /// `HUB_EXPIRED_GRACE` (client protocol, 9): its client can't refresh it.
    pub fn check_served(&mut self, id: SessionId) {
        let grace_s = self.node.config.expired_grace.as_secs();
        let Some(end_s) = self.session(id).and_then(|session| session.served.as_ref()?.first_end())
        else {
            return;
        };
        if now_s() >= end_s.saturating_add(grace_s) {
            self.close(id, Disconnect::SUBSCRIPTION_EXPIRED, Queued::Flush);
        }
    }
}
