//! Sessions: what a client may ask, and the answers.
//!
//! Runs on the shard thread inside one borrow of the state.

use std::sync::Arc;
use std::task::Waker;

use smallvec::SmallVec;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::LinkState;
use super::hub::{Queued, SessionId};
use super::reader::Input;
use super::state::{Joined, Local, Request, State};
use crate::broker::{BrokerCommand, Publish};
use crate::channel::{self, Channel, ChannelId};
use crate::config::Config;
use crate::frame::{self, Opcode};
use crate::protocol::command::{Command, Kind as Ask, decode, lines};
use crate::protocol::{
    ConnectResult, Disconnect, EmptyReply, ReplyError, SubscribeResult, put_client_info,
    put_connect, put_empty, put_error, put_subscribe,
};
use crate::publication::{Body, Format};

/// What a session is so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Centrifuge protocol, no connect command yet.
    Fresh,
    Connected,
    Raw,
}

/// The cold part of a session.
pub struct Session {
    pub connection: Uuid,
    pub kind: Kind,
    pub waker: Option<Waker>,
    pub born_ms: u64,
    pub ping_at_ms: u64,
    pub pong_by_ms: u64,
    pub stalled_ms: u64,
    pub linger_until_ms: u64,
    pub n_pending: u16,
    pub ping_queued: bool,
    pub dead: bool,
    raw: Option<Box<RawJoin>>,
}

struct RawJoin {
    n_missing: usize,
    done: oneshot::Sender<Joined>,
}

/// What a session asked of a channel that isn't live yet, in order.
pub struct Waiter {
    session: SessionId,
    asked: SmallVec<[Asked; 1]>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Subscribe(u32),
    Unsubscribe(u32),
    Join,
}

/// Questions that may wait for one channel.
const WAITING_MAX: usize = 64;

impl Session {
    pub fn new(connection: Uuid, format: Format, now_ms: u64, config: &Config) -> Self {
        // The first ping comes after half an interval to a whole one, so that a storm of
        // connects doesn't become a storm of pings.
        let half_ms = config.ping_interval.as_millis() as u64 / 2;
        let jitter_ms = connection.as_u64_pair().1 % half_ms.max(1);
        Self {
            connection,
            kind: if format == Format::Raw { Kind::Raw } else { Kind::Fresh },
            waker: None,
            born_ms: now_ms,
            ping_at_ms: now_ms + half_ms + jitter_ms,
            pong_by_ms: 0,
            stalled_ms: 0,
            linger_until_ms: 0,
            n_pending: 0,
            ping_queued: false,
            dead: false,
            raw: None,
        }
    }

    pub fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    pub fn kill(&mut self) {
        self.dead = true;
        self.wake();
    }
}

impl State {
    pub fn on_input(&mut self, id: SessionId, input: Input<'_>) {
        match input {
            Input::Message { bytes, .. } => self.on_message(id, bytes),
            Input::Ping(payload) => {
                let mut out = Vec::with_capacity(payload.len() + 2);
                frame::put_frame(&mut out, Opcode::Pong, payload);
                if !self.hub.push_own(id, &out) {
                    self.close(id, Disconnect::SLOW, Queued::Drop);
                }
            }
            Input::Pong(_) => {
                if let Some(session) = self.session(id).filter(|session| session.kind == Kind::Raw)
                {
                    session.pong_by_ms = 0;
                }
            }
            Input::Close { code, .. } => {
                self.close_with(id, code.unwrap_or(1000), "", Queued::Drop);
            }
        }
    }

    fn on_message(&mut self, id: SessionId, message: &[u8]) {
        if self.session(id).is_none_or(|session| session.kind == Kind::Raw) {
            return; // A raw client's frames mean nothing.
        }
        let mut replies = Vec::new();
        let mut end = None;
        for line in lines(message) {
            let outcome = match decode(line) {
                Ok(command) => self.on_command(id, command, &mut replies),
                Err(_) => Err(Disconnect::BAD_REQUEST),
            };
            self.node.metrics.shards[self.idx].commands.add(1);
            if let Err(disconnect) = outcome {
                end = Some(disconnect);
                break;
            }
        }
        self.reply(id, &replies);
        if let Some(disconnect) = end {
            self.close(id, disconnect, Queued::Flush);
        }
    }

    /// Queues replies (joined by newlines) as one text frame.
    fn reply(&mut self, id: SessionId, replies: &[u8]) {
        if replies.is_empty() {
            return;
        }
        let mut out = Vec::with_capacity(replies.len() + frame::HEAD_BYTES_MAX);
        frame::put_frame(&mut out, Opcode::Text, replies);
        if !self.hub.push_own(id, &out) {
            self.close(id, Disconnect::SLOW, Queued::Drop);
        }
    }

    fn on_command(
        &mut self,
        id: SessionId,
        command: Command<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Disconnect> {
        let kind = self.session(id).map_or(Kind::Fresh, |session| session.kind);
        let asked = command.id;
        match (kind, command.kind) {
            (_, Ask::Pong) => {
                if let Some(session) = self.session(id) {
                    session.pong_by_ms = 0;
                }
                Ok(())
            }
            (Kind::Fresh, Ask::Connect(_)) => self.on_connect(id, asked, out),
            (Kind::Fresh, _) | (_, Ask::Connect(_)) => Err(Disconnect::BAD_REQUEST),
            (_, Ask::Subscribe(subscribe)) => {
                let outcome = self.on_subscribe(id, asked, &subscribe.channel);
                self.answer(out, asked, outcome)
            }
            (_, Ask::Unsubscribe { channel }) => self.on_unsubscribe(id, asked, &channel, out),
            (_, Ask::Publish(publish)) => {
                let outcome = match publish.data {
                    Some(data) => self.on_publish(id, asked, &publish.channel, data),
                    None => Err(ReplyError::BAD_REQUEST),
                };
                if let Err(error) = outcome {
                    line(out, |out| put_error(out, asked, &error));
                }
                Ok(())
            }
            (_, Ask::Send { .. }) => Err(Disconnect::NOT_AVAILABLE),
            (_, Ask::Ping) => {
                line(out, |out| put_empty(out, asked, EmptyReply::Ping));
                Ok(())
            }
            _ => {
                line(out, |out| put_error(out, asked, &ReplyError::NOT_AVAILABLE));
                Ok(())
            }
        }
    }

    fn answer(
        &mut self,
        out: &mut Vec<u8>,
        asked: u32,
        outcome: Result<bool, ReplyError>,
    ) -> Result<(), Disconnect> {
        match outcome {
            Ok(true) => line(out, |out| put_subscribe(out, asked, &SubscribeResult::default())),
            Ok(false) => {}
            Err(error) => line(out, |out| put_error(out, asked, &error)),
        }
        Ok(())
    }

    fn on_connect(
        &mut self,
        id: SessionId,
        asked: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), Disconnect> {
        let config = &self.node.config;
        if !config.dev && !config.allow_anonymous {
            return Err(Disconnect::BAD_REQUEST);
        }
        let ping = config.ping_interval.as_secs() as u32;
        let Some(session) = self.session(id) else { return Ok(()) };
        session.kind = Kind::Connected;
        let client = session.connection.to_string();
        let result = ConnectResult {
            client: &client,
            version: concat!("hubbub ", env!("CARGO_PKG_VERSION")),
            ping,
            pong: true,
            ..ConnectResult::default()
        };
        line(out, |out| put_connect(out, asked, &result));
        Ok(())
    }

    /// `Ok(false)`: answered once the broker has confirmed.
    fn on_subscribe(&mut self, id: SessionId, asked: u32, name: &str) -> Result<bool, ReplyError> {
        let config = &self.node.config;
        channel::check_name(name, config.channel_bytes_max).map_err(|_| ReplyError::BAD_REQUEST)?;
        let (dev, channels_max) = (config.dev, config.channels_max);
        self.check_waiting(id, name)?;
        let n_pending = self.session(id).map_or(0, |session| usize::from(session.n_pending));
        if self.hub.n_channels_of(id) + n_pending >= channels_max {
            return Err(ReplyError::LIMIT_EXCEEDED);
        }
        if !dev {
            return Err(ReplyError::PERMISSION_DENIED);
        }
        self.want(id, name, Asked::Subscribe(asked))
    }

    fn check_waiting(&self, id: SessionId, name: &str) -> Result<(), ReplyError> {
        let subscribed = match self.names.get(name) {
            Some(Local::Live(slot)) => self.hub.is_subscribed(id, *slot),
            Some(Local::Pending(waiters)) => waiters
                .iter()
                .find(|waiter| waiter.session == id)
                .is_some_and(|waiter| !matches!(waiter.asked.last(), Some(Asked::Unsubscribe(_)))),
            None => false,
        };
        if subscribed { Err(ReplyError::ALREADY_SUBSCRIBED) } else { Ok(()) }
    }

    fn want(&mut self, id: SessionId, name: &str, asked: Asked) -> Result<bool, ReplyError> {
        match self.names.get_mut(name) {
            // Live here, but the link is down: what it would miss nobody could tell.
            Some(Local::Live(_)) if self.link == LinkState::Down => Err(ReplyError::INTERNAL),
            Some(Local::Live(slot)) => {
                self.hub.subscribe(id, *slot);
                Ok(true)
            }
            Some(Local::Pending(waiters)) => {
                if let Some(waiter) = waiters.iter_mut().find(|waiter| waiter.session == id) {
                    if waiter.asked.len() >= WAITING_MAX {
                        return Err(ReplyError::TOO_MANY_REQUESTS);
                    }
                    waiter.asked.push(asked);
                } else {
                    waiters.push(Waiter { session: id, asked: SmallVec::from_elem(asked, 1) });
                    self.add_pending(id);
                }
                Ok(false)
            }
            None => {
                let waiter = Waiter { session: id, asked: SmallVec::from_elem(asked, 1) };
                self.names.insert(name.into(), Local::Pending(vec![waiter]));
                self.commands.push(BrokerCommand::Acquire { shard: self.idx, name: name.into() });
                self.add_pending(id);
                Ok(false)
            }
        }
    }

    fn add_pending(&mut self, id: SessionId) {
        if let Some(session) = self.session(id) {
            session.n_pending += 1;
        }
    }

    fn on_unsubscribe(
        &mut self,
        id: SessionId,
        asked: u32,
        name: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), Disconnect> {
        match self.names.get_mut(name) {
            Some(Local::Pending(waiters)) => {
                if let Some(waiter) = waiters.iter_mut().find(|waiter| waiter.session == id) {
                    if waiter.asked.len() >= WAITING_MAX {
                        return Err(Disconnect::TOO_MANY_REQUESTS);
                    }
                    waiter.asked.push(Asked::Unsubscribe(asked));
                    return Ok(());
                }
            }
            Some(Local::Live(slot)) => {
                let slot = *slot;
                self.hub.unsubscribe(id, slot);
                self.release_emptied();
            }
            None => {}
        }
        line(out, |out| put_empty(out, asked, EmptyReply::Unsubscribe));
        Ok(())
    }

    fn on_publish(
        &mut self,
        id: SessionId,
        asked: u32,
        name: &str,
        data: &[u8],
    ) -> Result<(), ReplyError> {
        channel::check_name(name, self.node.config.channel_bytes_max)
            .map_err(|_| ReplyError::BAD_REQUEST)?;
        if !self.node.config.dev {
            return Err(ReplyError::PERMISSION_DENIED);
        }
        let client =
            self.session(id).map(|session| session.connection.to_string()).unwrap_or_default();
        let mut info = Vec::new();
        put_client_info(&mut info, "", &client, None, None);
        let body = Body { payload: data.to_vec(), info: Some(info.into()), tags: None };
        self.publish(
            Publish { channel: name.into(), body },
            Request::Session { id, command: asked },
        );
        Ok(())
    }

    pub fn reply_published(&mut self, id: SessionId, command: u32, ok: bool) {
        let mut out = Vec::new();
        if ok {
            put_empty(&mut out, command, EmptyReply::Publish);
        } else {
            put_error(&mut out, command, &ReplyError::INTERNAL);
        }
        self.reply(id, &out);
    }

    // --- what the broker says

    pub fn on_acquired(&mut self, id: ChannelId, channel: Arc<Channel>) {
        let local = self.names.insert(channel.name.clone(), Local::Live(id.slot));
        self.hub.open_channel(id, channel);
        if let Some(Local::Pending(waiters)) = local {
            waiters.into_iter().for_each(|waiter| self.settle(waiter, Some(id.slot)));
        }
        self.hub.close_if_unused(id.slot);
        self.release_emptied();
    }

    pub fn on_acquire_failed(&mut self, name: &str) {
        if let Some(Local::Pending(waiters)) = self.names.remove(name) {
            waiters.into_iter().for_each(|waiter| self.settle(waiter, None));
        }
    }

    /// Answers all that a session asked of a channel, in order. `None`: it can't be had now.
    fn settle(&mut self, waiter: Waiter, slot: Option<u32>) {
        let id = waiter.session;
        let Some(session) = self.session(id) else { return };
        session.n_pending -= 1;
        // Only the last wish takes effect: carrying out an unsubscribe on the way would close the
        // channel under the subscribe that follows.
        let wanted = !matches!(waiter.asked.last(), Some(Asked::Unsubscribe(_)));
        if let (Some(slot), true) = (slot, wanted) {
            self.hub.subscribe(id, slot);
        }
        let mut out = Vec::new();
        for asked in waiter.asked {
            match asked {
                Asked::Subscribe(command) if slot.is_some() => {
                    line(&mut out, |out| put_subscribe(out, command, &SubscribeResult::default()));
                }
                Asked::Subscribe(command) => {
                    line(&mut out, |out| put_error(out, command, &ReplyError::INTERNAL));
                }
                Asked::Unsubscribe(command) => {
                    line(&mut out, |out| put_empty(out, command, EmptyReply::Unsubscribe));
                }
                Asked::Join => self.on_joined(id, slot.is_some()),
            }
        }
        self.reply(id, &out);
    }

    /// Channels without a subscriber here go back to the broker.
    pub fn release_emptied(&mut self) {
        for (id, channel) in self.hub.take_emptied() {
            self.names.remove(&channel.name);
            self.commands.push(BrokerCommand::Release { shard: self.idx, id });
        }
    }

    // --- raw sessions

    pub fn join_raw(&mut self, id: SessionId, channels: &[String], done: oneshot::Sender<Joined>) {
        let Some(session) = self.session(id) else { return };
        session.raw = Some(Box::new(RawJoin { n_missing: channels.len(), done }));
        for channel in channels {
            match self.want(id, channel, Asked::Join) {
                Ok(true) => self.on_joined(id, true),
                Ok(false) => {}
                Err(_) => self.on_joined(id, false),
            }
        }
    }

    fn on_joined(&mut self, id: SessionId, ok: bool) {
        let Some(session) = self.session(id) else { return };
        let Some(join) = session.raw.as_mut() else { return };
        join.n_missing -= 1;
        if (join.n_missing == 0 || !ok)
            && let Some(join) = session.raw.take()
        {
            let _ = join.done.send(if ok { Ok(()) } else { Err(ReplyError::INTERNAL) });
        }
    }
}

fn line(out: &mut Vec<u8>, put: impl FnOnce(&mut Vec<u8>)) {
    if !out.is_empty() {
        out.push(b'\n');
    }
    put(out);
}
