//! What a session waits for: channels that the broker hasn't confirmed, publishes and histories it
//! hasn't answered, and the close that comes after them. A channel's stream is `recovery`'s.
//!
//! Runs on the shard thread inside one borrow of the state.

use std::collections::hash_map;
use std::sync::Arc;

use ahash::HashMap;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::LinkState;
use super::commands::line;
use super::hub::{Queued, SessionId, Variant};
use super::state::{Joined, LINGER_MS, Local, Request, State};
use super::stream::Entry;
use super::welcome::Welcome;
use crate::broker::{BrokerCommand, HistoryAsk, HistoryError, HistoryPage, PresenceAsk, Publish};
use crate::channel::{Channel, ChannelId};
use crate::position::Position;
use crate::protocol::{
    Disconnect, EmptyReply, HistoryResult, ReplyError, SubscribeResult, Unsubscribe, put_empty,
    put_error, put_history, put_subscribe, put_unsubscribe_push,
};
use crate::publication::Publication;

/// What happens to a session once what it asked before is answered.
#[derive(Default)]
pub struct Later {
    /// What came behind a subscribe: commands take effect in order (client protocol, 15), and the
    /// subscribe is live only once the broker says so.
    errands: Vec<(u32, Errand)>,
    errand_bytes: usize,
    /// The close that waits for the replies, and until when, milliseconds.
    end: Option<(Disconnect, u64)>,
}

/// What the broker does for a session, and answers.
pub enum Errand {
    Publish(Publish),
    History(HistoryAsk),
    Presence(PresenceAsk),
}

impl Errand {
    fn bytes(&self) -> usize {
        match self {
            Errand::Publish(publish) => publish.body.bytes(),
            Errand::History(_) | Errand::Presence(_) => 0,
        }
    }
}

/// A raw session that joins its channels before its upgrade is answered.
pub struct RawJoin {
    n_missing: usize,
    done: oneshot::Sender<Joined>,
}
impl Later {
    /// A close waits.
    pub fn is_end(&self) -> bool {
        self.end.is_some()
    }
}

/// What each session asked of a channel that isn't live yet, in order. A map, since a storm can
/// let tens of thousands wait for one channel.
pub type Waiters = HashMap<SessionId, SmallVec<[Asked; 1]>>;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Subscribe(Ask),
    Unsubscribe(u32),
    /// The server subscribes it.
    Serve(Ask),
    Join,
    /// The server API ends what was asked before.
    End,
}

/// A subscribe command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ask {
    pub command: u32,
    /// With delta or without.
    pub variant: Variant,
    /// What its client knows, and wants what follows it.
    pub recover: Option<Position>,
    /// Error 112 rather than a subscription that hasn't recovered.
    pub or_nothing: bool,
    /// It wants to be told of joins and leaves.
    pub join_leave: bool,
}

impl Asked {
    fn ask(&self) -> Ask {
        match self {
            Asked::Subscribe(ask) | Asked::Serve(ask) => *ask,
            Asked::Unsubscribe(_) | Asked::Join | Asked::End => Ask::default(),
        }
    }
}

/// Only the last wish takes effect: carrying out an unsubscribe on the way would close the
/// channel under the subscribe that follows.
pub fn is_wanted(asked: &[Asked]) -> bool {
    !matches!(asked.last(), Some(Asked::Unsubscribe(_) | Asked::End))
}

/// What the last subscribe among them asks for. What the client knows goes before what the server API
/// does.
pub fn last_ask(asked: &[Asked]) -> Ask {
    let is_subscribe = |asked: &&Asked| matches!(asked, Asked::Subscribe(_) | Asked::Join);
    let last = asked.iter().rev().find(is_subscribe).or_else(|| asked.iter().rev().find(is_serve));
    last.map(Asked::ask).unwrap_or_default()
}

fn is_serve(asked: &&Asked) -> bool {
    matches!(asked, Asked::Serve(_))
}

/// Questions that may wait for one channel.
const WAITING_MAX: usize = 64;
/// Errands of one session that may wait for a subscribe, and for the broker.
const HELD_ERRANDS_MAX: usize = 64;
const UNANSWERED_MAX: u16 = 1024;
impl State {
    pub fn check_waiting(&self, id: SessionId, name: &str) -> Result<(), ReplyError> {
        let waits = |waiters: &Waiters| waiters.get(&id).is_some_and(|asked| is_wanted(asked));
        let subscribed = match self.names.get(name) {
            Some(Local::Live(slot)) => {
                self.hub.is_subscribed(id, *slot)
                    || self.stream(*slot).is_some_and(|stream| waits(&stream.joining))
            }
            Some(Local::Pending(waiters)) => waits(waiters),
            None => false,
        };
        if subscribed { Err(ReplyError::ALREADY_SUBSCRIBED) } else { Ok(()) }
    }

    /// `None`: answered later.
    pub fn want(
        &mut self,
        id: SessionId,
        name: &str,
        asked: Asked,
    ) -> Result<Option<Welcome>, ReplyError> {
        let is_new = match self.names.get_mut(name) {
            // Live here, but the link is down: what it would miss nobody could tell.
            Some(Local::Live(_)) if self.link == LinkState::Down => {
                return Err(ReplyError::INTERNAL);
            }
            Some(Local::Live(slot)) => {
                let slot = *slot;
                return self.enter(id, slot, asked);
            }
            Some(Local::Pending(waiters)) => push_asked(waiters, id, asked)?,
            None => {
                let waiters = Waiters::from_iter([(id, SmallVec::from_elem(asked, 1))]);
                self.names.insert(name.into(), Local::Pending(waiters));
                self.commands.push(BrokerCommand::Acquire { shard: self.idx, name: name.into() });
                true
            }
        };
        if is_new {
            self.add_pending(id);
        }
        Ok(None)
    }

    pub fn add_pending(&mut self, id: SessionId) {
        if let Some(session) = self.session(id) {
            session.n_pending += 1;
        }
    }

    /// `Ok(false)`: answered together with the subscribe that still waits.
    pub fn unwant(&mut self, id: SessionId, name: &str, asked: Asked) -> Result<bool, Disconnect> {
        if let Some(session) = self.session(id) {
            session.leave(name);
        }
        match self.names.get_mut(name) {
            Some(Local::Pending(waiters)) => {
                if let Some(waiting) = waiters.get_mut(&id) {
                    if waiting.len() >= WAITING_MAX {
                        return Err(Disconnect::TOO_MANY_REQUESTS);
                    }
                    waiting.push(asked);
                    return Ok(false);
                }
            }
            Some(Local::Live(slot)) => {
                let slot = *slot;
                if let Some(stream) = self.stream_mut(slot)
                    && let Some(waiting) = stream.joining.get_mut(&id)
                {
                    if waiting.len() >= WAITING_MAX {
                        return Err(Disconnect::TOO_MANY_REQUESTS);
                    }
                    waiting.push(asked);
                    return Ok(false);
                }
                self.unsubscribe(id, slot);
                self.release_emptied();
            }
            None => {}
        }
        Ok(true)
    }

    /// Asks the broker once the subscribes before it are settled.
    pub fn in_turn(&mut self, id: SessionId, asked: u32, errand: Errand) -> Result<(), ReplyError> {
        let held_bytes_max = self.node.config.message_bytes_max;
        let Some(session) = self.session(id) else { return Ok(()) };
        if session.n_unanswered >= UNANSWERED_MAX {
            return Err(ReplyError::TOO_MANY_REQUESTS);
        }
        if session.n_pending == 0 {
            self.hand_over(id, asked, errand);
            return Ok(());
        }
        let later = session.later.get_or_insert_default();
        let held_bytes = later.errand_bytes + errand.bytes();
        if later.errands.len() >= HELD_ERRANDS_MAX || held_bytes > 2 * held_bytes_max {
            return Err(ReplyError::TOO_MANY_REQUESTS);
        }
        later.errand_bytes = held_bytes;
        later.errands.push((asked, errand));
        Ok(())
    }

    fn hand_over(&mut self, id: SessionId, command: u32, errand: Errand) {
        let Some(session) = self.session(id) else { return };
        session.n_unanswered += 1;
        match errand {
            Errand::Publish(publish) => self.publish(publish, Request::Session { id, command }),
            Errand::History(ask) => {
                self.read_history(ask, Request::SessionHistory { id, command });
            }
            Errand::Presence(ask) => {
                self.read_presence(ask, Request::SessionPresence { id, command });
            }
        }
    }

    /// Closes once everything that was asked is answered, or [`LINGER_MS`] later.
    pub fn end(&mut self, id: SessionId, disconnect: Disconnect) {
        let by_ms = self.now_ms + LINGER_MS;
        let Some(session) = self.session(id) else { return };
        if session.n_pending == 0 && session.n_unanswered == 0 {
            self.close(id, disconnect, Queued::Flush);
        } else {
            session.later.get_or_insert_default().end.get_or_insert((disconnect, by_ms));
        }
    }

    /// What waited for answers goes on, if they are all there.
    pub fn go_on(&mut self, id: SessionId) {
        let Some(session) = self.session(id).filter(|session| session.n_pending == 0) else {
            return;
        };
        let Some(later) = &mut session.later else { return };
        later.errand_bytes = 0;
        for (command, errand) in std::mem::take(&mut later.errands) {
            self.hand_over(id, command, errand);
        }
        let Some(session) = self.session(id).filter(|session| session.n_unanswered == 0) else {
            return;
        };
        if let Some((disconnect, _)) = session.later.take().and_then(|later| later.end) {
            self.close(id, disconnect, Queued::Flush);
        }
    }

    /// The close that is due although not everything is answered.
    pub fn overdue_end(&mut self, id: SessionId) -> Option<Disconnect> {
        let now_ms = self.now_ms;
        let (disconnect, by_ms) = self.session(id)?.later.as_ref()?.end?;
        (now_ms >= by_ms).then_some(disconnect)
    }

    pub fn reply_published(&mut self, id: SessionId, command: u32, ok: bool) {
        let Some(session) = self.session(id) else { return };
        session.n_unanswered -= 1;
        let mut out = Vec::new();
        if ok {
            put_empty(&mut out, command, EmptyReply::Publish);
        } else {
            put_error(&mut out, command, &ReplyError::INTERNAL);
        }
        self.reply(id, &out);
        self.go_on(id);
    }

    pub fn reply_history(
        &mut self,
        id: SessionId,
        command: u32,
        result: Result<Arc<HistoryPage>, HistoryError>,
    ) {
        let Some(session) = self.session(id) else { return };
        session.n_unanswered -= 1;
        let mut out = Vec::new();
        match result {
            Ok(page) => {
                let bytes_max = self.node.config.outbox_bytes_max;
                let listed = page.client_json(bytes_max / 2);
                self.hub.totals.skipped += listed.n_skipped;
                let result = HistoryResult { publications: &listed.json, top: page.top };
                put_history(&mut out, command, &result);
                // One publication alone, grown by what JSON escapes: it came live, it may not fit.
                if out.len() > bytes_max {
                    out.clear();
                    put_error(&mut out, command, &ReplyError::LIMIT_EXCEEDED);
                }
            }
            Err(HistoryError::OtherEpoch) => {
                put_error(&mut out, command, &ReplyError::UNRECOVERABLE_POSITION);
            }
            Err(HistoryError::Unavailable) => {
                put_error(&mut out, command, &ReplyError::INTERNAL);
            }
        }
        self.reply(id, &out);
        self.go_on(id);
    }

    // --- what the broker says

    pub fn on_acquired(
        &mut self,
        id: ChannelId,
        channel: Arc<Channel>,
        newest: Option<Arc<Publication>>,
    ) {
        let local = self.names.insert(channel.name.clone(), Local::Live(id.slot));
        self.hub.open_channel(id, channel.clone());
        self.open_stream(id, &channel.name, newest.as_ref());
        // An answer may close its session, and if that one were the only subscriber yet, the channel
        // would go away under those who wait.
        self.hub.pin(id.slot);
        if let Some(Local::Pending(waiters)) = local {
            // All join before any is answered, or asks: those who ask the same share an answer.
            let mut settled = Vec::new();
            for (session, asked) in waiters {
                let entry = is_wanted(&asked).then(|| self.entry(id.slot, last_ask(&asked)));
                match entry {
                    Some(Entry::Read(key)) => self.join(session, id.slot, asked, key),
                    Some(Entry::Now(welcome)) => {
                        let outcome = self.admit(session, id.slot, &asked, welcome);
                        settled.push((session, asked, outcome));
                    }
                    _ => settled.push((session, asked, Ok(Welcome::default()))),
                }
            }
            for (session, asked, outcome) in settled {
                self.settle(session, id.slot, &channel.name, asked, outcome);
            }
        }
        self.hub.unpin(id.slot);
        self.release_emptied();
    }

    pub fn on_acquire_failed(&mut self, name: &str) {
        if let Some(Local::Pending(waiters)) = self.names.remove(name) {
            for (session, asked) in waiters {
                self.settle(session, u32::MAX, name, asked, Err(ReplyError::INTERNAL));
            }
        }
    }

    /// Answers all that a session asked of a channel, in order.
    pub fn settle(
        &mut self,
        id: SessionId,
        slot: u32,
        name: &str,
        asked: SmallVec<[Asked; 1]>,
        outcome: Result<Welcome, ReplyError>,
    ) {
        let Some(session) = self.session(id) else { return };
        session.n_pending -= 1;
        if outcome.is_err() || !is_wanted(&asked) {
            session.leave(name);
        }
        let is_subscribe = |asked: &Asked| matches!(asked, Asked::Subscribe(_));
        let mut is_told = asked.iter().any(is_subscribe);
        let mut out = Vec::new();
        for asked in asked {
            match (asked, &outcome) {
                (Asked::Subscribe(ask), Ok(welcome)) => {
                    self.put_welcome(id, name, ask, welcome, &mut out);
                }
                (Asked::Subscribe(ask), Err(error)) => {
                    line(&mut out, |out| put_error(out, ask.command, error));
                }
                (Asked::Unsubscribe(command), _) => {
                    line(&mut out, |out| put_empty(out, command, EmptyReply::Unsubscribe));
                }
                (Asked::End, Ok(_)) => {
                    line(&mut out, |out| put_unsubscribe_push(out, name, Unsubscribe::SERVER));
                }
                (Asked::End, Err(_)) => {} // It was told that it has nothing.
                (Asked::Serve(ask), outcome) => {
                    let outcome = match outcome {
                        // What it missed it gets once.
                        Ok(_) if std::mem::replace(&mut is_told, true) => Ok(self.standing(slot)),
                        outcome => outcome.clone(),
                    };
                    self.reply(id, &std::mem::take(&mut out));
                    self.on_served(id, name, ask, outcome);
                }
                (Asked::Join, outcome) => self.on_joined(id, outcome.is_ok().then_some(slot)),
            }
        }
        self.reply(id, &out);
        self.answer_connect(id);
        self.go_on(id);
    }

    pub fn put_welcome(
        &mut self,
        id: SessionId,
        name: &str,
        ask: Ask,
        welcome: &Welcome,
        out: &mut Vec<u8>,
    ) {
        let ttl = self.session(id).and_then(|session| session.subscription_ttl(name));
        let result = SubscribeResult { ttl, ..welcome.result(ask.variant) };
        line(out, |out| put_subscribe(out, ask.command, &result));
    }

    /// Channels without a subscriber here go back to the broker.
    pub fn release_emptied(&mut self) {
        for (id, channel) in self.hub.take_emptied() {
            self.names.remove(&channel.name);
            self.close_stream(id.slot);
            self.commands.push(BrokerCommand::Release { shard: self.idx, id });
        }
    }

    // --- raw sessions

    pub fn join_raw(&mut self, id: SessionId, channels: &[String], done: oneshot::Sender<Joined>) {
        let Some(session) = self.session(id) else { return };
        session.raw = Some(Box::new(RawJoin { n_missing: channels.len(), done }));
        for channel in channels {
            match self.want(id, channel, Asked::Join) {
                Ok(Some(_)) => self.on_joined(id, self.live_slot(channel)),
                Ok(None) => {}
                Err(_) => self.on_joined(id, None),
            }
        }
    }

    /// `None`: the channel can't be had now.
    fn on_joined(&mut self, id: SessionId, slot: Option<u32>) {
        if let Some(slot) = slot {
            self.show_newest(id, slot);
        }
        let Some(session) = self.session(id) else { return };
        let Some(join) = session.raw.as_mut() else { return };
        join.n_missing -= 1;
        if (join.n_missing == 0 || slot.is_none())
            && let Some(join) = session.raw.take()
        {
            let joined = slot.map(drop).ok_or(ReplyError::INTERNAL);
            let _ = join.done.send(joined);
        }
    }
}

/// Notes what a session asks of a channel that it waits for. True: it didn't wait for it before.
pub fn push_asked(waiters: &mut Waiters, id: SessionId, asked: Asked) -> Result<bool, ReplyError> {
    match waiters.entry(id) {
        hash_map::Entry::Occupied(entry) if entry.get().len() >= WAITING_MAX => {
            Err(ReplyError::TOO_MANY_REQUESTS)
        }
        hash_map::Entry::Occupied(mut entry) => {
            entry.get_mut().push(asked);
            Ok(false)
        }
        hash_map::Entry::Vacant(entry) => {
            entry.insert(SmallVec::from_elem(asked, 1));
            Ok(true)
        }
    }
}

#[cfg(test)]
mod tests;
