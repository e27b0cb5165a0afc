//! Who of this shard is in which channel, where that is noted: said to the broker when it changes, asked
//! of it, and told to subscribers.
//!
//! Runs on the shard thread inside one borrow of the state. A session is in a channel from the moment it
//! is subscribed, which the broker hears before the client does, until it leaves the channel or closes.
//! **Invariant:** whoever is in `stays` was said to have come, and is said once to have gone.

use std::sync::Arc;

use ahash::HashMap;
use smallvec::SmallVec;

use super::hub::{Fanout, SessionId, Share, Variant};
use super::session::Kind;
use super::state::{Request, State};
use super::waiting::{Ask, Errand};
use crate::auth::Action;
use crate::broker::{BrokerCommand, Change, Member, Presence, PresenceAsk, PresenceError, Wanted};
use crate::channel::{self, Channel, ChannelId};
use crate::config::JoinLeave;
use crate::protocol::{ReplyError, put_error, put_presence, put_presence_stats};

/// A channel that a session is in.
struct Stay {
    slot: u32,
    channel: Arc<Channel>,
}

/// The channels of those sessions that are in any.
#[derive(Default)]
pub struct Stays(HashMap<SessionId, SmallVec<[Stay; 1]>>);

impl State {
    /// Subscribes to a channel that is live here.
    pub fn subscribe(&mut self, id: SessionId, slot: u32, ask: Ask) {
        let auth = self.auth.clone();
        let Some(channel) = self.hub.channel_at(slot) else { return };
        let namespace = auth.namespaces().of(&channel.name);
        let join_leave = namespace.map_or(JoinLeave::Off, |namespace| namespace.join_leave);
        // A raw session gets payloads, and nothing else.
        let is_raw = self.session(id).is_none_or(|session| session.kind == Kind::Raw);
        let is_told = match join_leave {
            JoinLeave::Off => false,
            JoinLeave::On => ask.join_leave && !is_raw,
            JoinLeave::Forced => !is_raw,
        };
        if !self.hub.subscribe_as(id, slot, Share { variant: ask.variant, is_told }) {
            return;
        }
        if ask.variant != Variant::Plain
            && let Some(id) = self.hub.to_be_chained(slot)
        {
            self.commands.push(BrokerCommand::Chain { id });
        }
        if namespace.is_some_and(|namespace| namespace.has_members()) {
            self.come(id, Stay { slot, channel }, join_leave != JoinLeave::Off);
        }
    }

    /// Ends a subscription. False: there was none.
    pub fn unsubscribe(&mut self, id: SessionId, slot: u32) -> bool {
        let was_subscribed = self.hub.unsubscribe(id, slot);
        let stays = self.stays.0.get_mut(&id).filter(|_| was_subscribed);
        if let Some(stays) = stays
            && let Some(at) = stays.iter().position(|stay| stay.slot == slot)
        {
            let stay = stays.swap_remove(at);
            if stays.is_empty() {
                self.stays.0.remove(&id);
            }
            self.say_gone(id, stay);
        }
        was_subscribed
    }

    /// A session closes: it leaves all channels.
    pub fn go(&mut self, id: SessionId) {
        for stay in self.stays.0.remove(&id).into_iter().flatten() {
            self.say_gone(id, stay);
        }
    }

    fn come(&mut self, id: SessionId, stay: Stay, is_told: bool) {
        let Some(info) = self.client_info(id, &stay.channel.name) else { return };
        let Some(session) = self.session(id) else { return };
        let (client, user) = (session.connection, session.user().into());
        let member = Box::new(Member { client, user, info, is_told });
        let (shard, channel) = (self.idx, stay.channel.clone());
        self.commands.push(BrokerCommand::Enter { shard, channel, member });
        self.stays.0.entry(id).or_default().push(stay);
    }

    fn say_gone(&mut self, id: SessionId, stay: Stay) {
        let Some(session) = self.session(id) else { return };
        let (client, channel) = (session.connection, stay.channel);
        self.commands.push(BrokerCommand::Leave { channel, client });
    }

    // --- joins and leaves

    /// Tells subscribers of somebody else's coming or going.
    pub fn on_change(&mut self, id: ChannelId, change: &Change) -> Fanout {
        if self.hub.tells(id) { self.hub.tell(id, change.frame()) } else { Fanout::default() }
    }

    // --- who is here?

    /// Checks stand in the protocol's order; the answer comes once the broker has looked (client
    /// protocol, 12).
    pub fn on_presence(
        &mut self,
        id: SessionId,
        asked: u32,
        name: &str,
        what: Wanted,
    ) -> Result<(), ReplyError> {
        channel::check_name(name, self.node.config.channel_bytes_max)
            .map_err(|_| ReplyError::BAD_REQUEST)?;
        let namespace = self.may(id, Action::Presence, name)?;
        if !namespace.presence {
            return Err(ReplyError::NOT_AVAILABLE);
        }
        let ask = PresenceAsk { channel: name.into(), what };
        self.in_turn(id, asked, Errand::Presence(ask))
    }

    /// All who are in a channel, as far as a reply may hold them: it must never be what makes its client
    /// a slow one.
    pub fn wanted_members(&self) -> Wanted {
        Wanted::Members { bytes_max: self.node.config.outbox_bytes_max / 2 }
    }

    /// Asks the broker who is in a channel, or answers at once that it can't.
    pub fn read_presence(&mut self, ask: PresenceAsk, request: Request) {
        let shard = self.idx;
        if self.is_overrun() {
            self.on_present(request, Err(PresenceError::Unavailable));
            return;
        }
        let request = self.ask(request);
        self.commands.push(BrokerCommand::Presence { shard, request, ask: Box::new(ask) });
    }

    pub fn on_present(&mut self, request: Request, result: Result<Arc<Presence>, PresenceError>) {
        match request {
            Request::SessionPresence { id, command } => self.reply_presence(id, command, &result),
            Request::Presence(sender) => drop(sender.send(result)),
            _ => {}
        }
    }

    fn reply_presence(
        &mut self,
        id: SessionId,
        command: u32,
        result: &Result<Arc<Presence>, PresenceError>,
    ) {
        let Some(session) = self.session(id) else { return };
        session.n_unanswered -= 1;
        let mut out = Vec::new();
        match result.as_deref() {
            Ok(Presence::Members(members)) => put_presence(&mut out, command, members),
            Ok(Presence::Counts(counts)) => {
                put_presence_stats(&mut out, command, counts.n_clients, counts.n_users);
            }
            Err(PresenceError::TooMany) => {
                put_error(&mut out, command, &ReplyError::LIMIT_EXCEEDED);
            }
            Err(PresenceError::Unavailable) => {
                put_error(&mut out, command, &ReplyError::INTERNAL);
            }
        }
        self.reply(id, &out);
        self.go_on(id);
    }
}
