//! What the server API asks of users' connections, carried out for those of this shard.
//!
//! Runs on the shard thread, in a task of its own: a command to a user with thousands of
//! connections is carried out a slice at a time, and the walk, the sockets and other commands get
//! their turns in between. Commands are carried out one after the other, in the order in which they
//! came.
//! **Invariant:** a connection that begins after a command has come is not meant by it: a client that
//! is disconnected and comes back at once isn't disconnected again.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use globset::Glob;
use tokio::sync::oneshot;

use super::hub::{Queued, SessionId};
use super::session::Kind;
use super::state::{Local, Request, State, WAITING_COMMANDS_MAX};
use super::waiting::{Asked, is_wanted};
use super::{Shard, access};
use crate::auth::{Grant, ttl_s};
use crate::broker::{
    BrokerCommand, ChannelCount, ChannelPage, ChannelsAsk, Control, Cursor, DisconnectUser,
    PAGE_CHANNELS_MAX, PAGE_LOOKS_MAX, PATTERN_BYTES_MAX, PublishError, RefreshUser, SubscribeUser,
    Verb,
};
use crate::mailbox::Weigh;
use crate::position::{Epoch, Position};
use crate::protocol::{Disconnect, Unsubscribe, put_refresh_push};
use crate::shard::ShardEvent;

/// Commands that wait for those before them, by weight: some 16 MiB. A newer one is dropped and
/// counted.
const WAITING_WEIGHT_MAX: usize = 16 << 10;
/// One slice takes about so long.
const SLICE: Duration = Duration::from_micros(200);
/// Sessions looked at before the clock is.
const LOOKS_PER_CLOCK: u32 = 64;

/// Commands that aren't carried out yet.
#[derive(Default)]
pub struct Controls {
    jobs: VecDeque<Job>,
    weight: usize,
}

struct Job {
    control: Arc<Control>,
    came_ms: u64,
    /// Sessions before it are done.
    next_idx: u32,
}

impl Job {
    fn weight(&self) -> usize {
        ShardEvent::Control(self.control.clone()).weight()
    }
}

/// Carries commands out as they come.
pub async fn obey(shard: Rc<Shard>) {
    loop {
        shard.has_controls.notified().await;
        while shard.obey_some() == Left::More {
            tokio::task::yield_now().await;
        }
    }
}

/// Whether a slice came to an end before the commands did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    Nothing,
    More,
}

impl State {
    /// Hands a command to the broker, for all nodes; the answer is whether it is on its way to them.
    pub fn control(&mut self, control: Control, answer: oneshot::Sender<Result<(), PublishError>>) {
        if self.commands.len() >= WAITING_COMMANDS_MAX {
            let _ = answer.send(Err(PublishError::Unavailable));
            return;
        }
        let request = self.ask(Request::Control(answer));
        let (shard, control) = (self.idx, Arc::new(control));
        self.commands.push(BrokerCommand::Control { shard, request, control });
    }

    pub fn on_control(&mut self, control: Arc<Control>) {
        let job = Job { control, came_ms: self.node.now_ms(), next_idx: 0 };
        if self.controls.weight >= WAITING_WEIGHT_MAX {
            self.node.metrics.shards[self.idx].drops_control_full.add(1);
            return;
        }
        self.controls.weight += job.weight();
        self.controls.jobs.push_back(job);
    }

    /// Carries out a slice of what was asked.
    pub fn obey_some(&mut self) -> Left {
        let began = Instant::now();
        while let Some(mut job) = self.controls.jobs.pop_front() {
            let mut n_looks = 0;
            while let Some(idx) = self.next_addressed(&job) {
                job.next_idx = idx + 1;
                n_looks += 1;
                let is_obeyed = self.obey(idx, &job);
                if (is_obeyed || n_looks % LOOKS_PER_CLOCK == 0) && began.elapsed() >= SLICE {
                    self.controls.jobs.push_front(job);
                    return Left::More;
                }
            }
            self.controls.weight -= job.weight();
        }
        Left::Nothing
    }

    /// The next session that may be meant.
    fn next_addressed(&self, job: &Job) -> Option<u32> {
        match &*job.control.target.user {
            "" => (job.next_idx < self.sessions.len() as u32).then_some(job.next_idx),
            user => self.users.next(user, job.next_idx),
        }
    }

    fn is_addressed(&self, id: SessionId, job: &Job) -> bool {
        let target = &job.control.target;
        let Some(session) = self.sessions[id.idx as usize].as_ref() else { return false };
        matches!(session.kind, Kind::Connecting | Kind::Connected | Kind::Raw)
            && session.born_ms <= job.came_ms
            && session.user() == &*target.user
            && target.client.is_none_or(|client| client == session.connection)
            && target.session.is_empty()
            && !self.hub.is_closing(id)
    }

    /// Carries a command out for one session; false: it isn't meant.
    fn obey(&mut self, idx: u32, job: &Job) -> bool {
        let Some(id) = self.hub.id_at(idx).filter(|id| self.is_addressed(*id, job)) else {
            return false;
        };
        self.node.metrics.shards[self.idx].controlled.add(1);
        match &job.control.verb {
            Verb::Disconnect(disconnect) => self.disconnect(id, disconnect),
            Verb::Unsubscribe(it) if it.channel.is_empty() => self.unsubscribe_all(id),
            Verb::Unsubscribe(it) => self.end_wish(id, &it.channel),
            Verb::Subscribe(it) => self.subscribe_user(id, it),
            Verb::Refresh(refresh) => self.refresh(id, refresh),
        }
        true
    }

    fn disconnect(&mut self, id: SessionId, disconnect: &DisconnectUser) {
        let Some(session) = self.session(id) else { return };
        if disconnect.keep.binary_search(&session.connection).is_err() {
            self.close_with(id, disconnect.code, &disconnect.reason, Queued::Flush);
        }
    }

    fn subscribe_user(&mut self, id: SessionId, subscribe: &SubscribeUser) {
        let json = |json: &Option<Box<str>>| json.as_ref().map(|json| json.as_bytes().into());
        let grant = Grant {
            info: json(&subscribe.info),
            data: json(&subscribe.data),
            expire_at: subscribe.expire_at,
            ..Grant::new(&subscribe.channel)
        };
        let since = subscribe.recover_since.as_ref();
        let since =
            since.map(|since| Position { offset: since.offset, epoch: Epoch::asked(&since.epoch) });
        // A raw session's channels are those of its address.
        let is_raw = self.session(id).is_some_and(|session| session.kind == Kind::Raw);
        if is_raw || self.serve(id, grant, since).is_err() {
            self.refuse_to_serve();
        }
    }

    /// Ends what a session has of a channel, or is about to have.
    fn end_wish(&mut self, id: SessionId, channel: &str) {
        if self.check_waiting(id, channel).is_ok() {
            return;
        }
        let Some(session) = self.session(id) else { return };
        if session.kind == Kind::Raw {
            // It can't be told, and would wait for ever.
            self.close(id, Disconnect::FORCE_DISCONNECT, Queued::Flush);
        } else if self.is_live(id, channel) {
            // What is pending is written now if it can be: leaving the channel would copy it.
            self.visit(id.idx);
            self.end_subscription(id, channel, Unsubscribe::SERVER);
        } else if let Err(disconnect) = self.unwant(id, channel, Asked::End) {
            self.close(id, disconnect, Queued::Flush);
        }
    }

    fn unsubscribe_all(&mut self, id: SessionId) {
        let mut channels: Vec<Box<str>> = self
            .hub
            .channels_of(id)
            .filter_map(|slot| Some(self.hub.channel_at(slot)?.name.clone()))
            .collect();
        if self.session(id).is_some_and(|session| session.n_pending > 0) {
            // Walks all channels: for the few that wait at this moment.
            let pending = self.names.iter().filter(|(_, local)| self.is_awaited(id, local));
            channels.extend(pending.map(|(name, _)| name.clone()));
        }
        for channel in channels {
            self.end_wish(id, &channel);
        }
    }

    fn is_awaited(&self, id: SessionId, local: &Local) -> bool {
        let waiters = match local {
            Local::Pending(waiters) => Some(waiters),
            Local::Live(slot) => self.stream(*slot).map(|stream| &stream.joining),
        };
        waiters.and_then(|waiters| waiters.get(&id)).is_some_and(|asked| is_wanted(asked))
    }

    fn refresh(&mut self, id: SessionId, refresh: &RefreshUser) {
        let now_s = access::now_s();
        if refresh.expired || refresh.expire_at.is_some_and(|at_s| at_s <= now_s) {
            self.close(id, Disconnect::EXPIRED, Queued::Flush);
            return;
        }
        let Some(session) = self.session(id) else { return };
        session.set_expiry(refresh.expire_at, refresh.info.as_deref());
        if session.kind != Kind::Raw {
            let mut push = Vec::new();
            put_refresh_push(&mut push, refresh.expire_at.map(|at_s| ttl_s(at_s, now_s)));
            self.reply(id, &push);
        }
    }

    // --- surveys

    /// Lists one page of this shard's channels.
    pub fn list_channels(&mut self, owed: u32, ask: &ChannelsAsk) {
        let is_readable = ask.pattern.len() <= PATTERN_BYTES_MAX;
        let glob = Glob::new(&ask.pattern).ok().filter(|_| is_readable);
        let matcher = glob.map(|glob| glob.compile_matcher());
        let is_asked_for = |name: &str| {
            ask.pattern.is_empty() || matcher.as_ref().is_some_and(|matcher| matcher.is_match(name))
        };
        let mut page = ChannelPage::default();
        let mut slot = ask.at.slot;
        let to = self.hub.n_slots().min(slot.saturating_add(PAGE_LOOKS_MAX));
        while slot < to && page.channels.len() < PAGE_CHANNELS_MAX {
            let channel = self.hub.channel_at(slot).filter(|channel| is_asked_for(&channel.name));
            let n = self.hub.n_subscribers(slot) as u32;
            if let Some(channel) = channel.filter(|_| n > 0) {
                page.channels.push(ChannelCount { name: channel.name.clone(), n });
            }
            slot += 1;
        }
        page.next = if slot < self.hub.n_slots() {
            Some(Cursor { shard: self.idx, slot })
        } else {
            Cursor::behind(self.idx, self.node.config.shards)
        };
        self.commands.push(BrokerCommand::ChannelPage { owed, page });
    }
}

#[cfg(test)]
mod tests;
