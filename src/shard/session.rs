//! Sessions: one client each, from upgrade to close, and the frames it sends.
//!
//! Runs on the shard thread inside one borrow of the state.

use std::net::IpAddr;
use std::task::Waker;

use uuid::Uuid;

use super::access::Account;
use super::hub::{Queued, SessionId};
use super::reader::Input;
use super::served::Served;
use super::state::State;
use super::waiting::{Later, RawJoin};
use crate::admission::{Bucket, ClientPermit, Verdict};
use crate::config::Config;
use crate::frame::{self, Opcode};
use crate::protocol::Disconnect;
use crate::protocol::command::{decode, lines};
use crate::publication::Format;

/// What a session is so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Centrifuge protocol, no connect command yet.
    Fresh,
    /// Its connect command got an error: whatever else it sends means nothing.
    Refused,
    /// Its connect waits for the channels that come with it.
    Connecting,
    Connected,
    Raw,
}

/// Whether a session was charged for commands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fare {
    Due,
    Paid,
}

/// The cold part of a session.
pub struct Session {
    pub connection: Uuid,
    pub address: IpAddr,
    pub kind: Kind,
    pub waker: Option<Waker>,
    pub born_ms: u64,
    pub ping_at_ms: u64,
    pub pong_by_ms: u64,
    /// When its socket became full, the last time.
    pub stalled_ms: u64,
    pub linger_until_ms: u64,
    /// Channels asked for that aren't live yet.
    pub n_pending: u16,
    /// Publishes and history reads that the broker hasn't answered.
    pub n_unanswered: u16,
    pub ping_queued: bool,
    /// The registry knows of it.
    pub is_registered: bool,
    pub dead: bool,
    pub raw: Option<Box<RawJoin>>,
    pub account: Option<Box<Account>>,
    /// Its server-side subscriptions.
    pub served: Option<Box<Served>>,
    pub later: Option<Box<Later>>,
    /// `HUB_COMMAND_RATE`.
    commands: Bucket,
    _permit: ClientPermit,
}

impl Session {
    pub fn new(
        connection: Uuid,
        address: IpAddr,
        permit: ClientPermit,
        format: Format,
        now_ms: u64,
        config: &Config,
    ) -> Self {
        // The first ping comes after half an interval to a whole one, so that a storm of
        // connects doesn't become a storm of pings.
        let half_ms = config.ping_interval.as_millis() as u64 / 2;
        let jitter_ms = connection.as_u64_pair().1 % half_ms.max(1);
        Self {
            connection,
            address,
            commands: Bucket::default(),
            _permit: permit,
            kind: if format == Format::Raw { Kind::Raw } else { Kind::Fresh },
            waker: None,
            born_ms: now_ms,
            ping_at_ms: now_ms + half_ms + jitter_ms,
            pong_by_ms: 0,
            stalled_ms: 0,
            linger_until_ms: 0,
            n_pending: 0,
            n_unanswered: 0,
            ping_queued: false,
            is_registered: false,
            dead: false,
            raw: None,
            account: None,
            served: None,
            later: None,
        }
    }

    /// A close waits for replies: nothing more is read.
    pub fn is_ending(&self) -> bool {
        self.later.as_ref().is_some_and(|later| later.is_end())
    }

    /// So much time isn't counted against it.
    pub fn excuse(&mut self, ms: u64) {
        for at_ms in [&mut self.born_ms, &mut self.pong_by_ms, &mut self.stalled_ms] {
            // 0: not running.
            if *at_ms > 0 {
                *at_ms += ms;
            }
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
                if self.charge(id) != Verdict::Fine {
                    return;
                }
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
                // What was asked before is answered as far as the socket takes it at once.
                self.visit(id.idx);
                self.close_with(id, code.unwrap_or(1000), "", Queued::Drop);
            }
        }
    }

    fn on_message(&mut self, id: SessionId, message: &[u8]) {
        if self.session(id).is_none_or(|session| session.kind == Kind::Raw) {
            self.charge(id); // A raw client's frames mean nothing, but they cost.
            return;
        }
        self.run_commands(id, message, Fare::Due);
    }

    /// Runs what came while connects waited for their channels, as if it came now.
    pub fn run_held(&mut self) {
        for (id, commands) in std::mem::take(&mut self.held) {
            if self.is_open(id) {
                self.run_commands(id, &commands, Fare::Paid);
            }
        }
    }

    fn run_commands(&mut self, id: SessionId, commands: &[u8], fare: Fare) {
        let mut replies = Vec::new();
        let mut end = None;
        for line in lines(commands) {
            let verdict = if fare == Fare::Paid { Verdict::Fine } else { self.charge(id) };
            let is_connecting = self.is_connecting(id);
            let outcome = match decode(line) {
                _ if verdict == Verdict::FarOver => break,
                _ if is_connecting && self.hold_command(id, line) => continue,
                _ if is_connecting => Err(Disconnect::TOO_MANY_REQUESTS),
                Ok(command) if verdict == Verdict::Over => {
                    self.refuse_command(id, &command, &mut replies);
                    Ok(())
                }
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
            self.end(id, disconnect);
        }
    }

    /// Charges a session for a command, or a ping; one that is far over its rate is closed.
    fn charge(&mut self, id: SessionId) -> Verdict {
        let (rate, now_ms) = (self.node.config.command_rate, self.now_ms);
        let (Some(rate), Some(session)) = (rate, self.session(id)) else { return Verdict::Fine };
        let verdict = session.commands.charge(rate, now_ms);
        if verdict != Verdict::Fine {
            self.node.metrics.shards[self.idx].commands_over_rate.add(1);
        }
        if verdict == Verdict::FarOver {
            self.close(id, Disconnect::TOO_MANY_REQUESTS, Queued::Drop);
        }
        verdict
    }

    /// Queues replies or pushes (joined by newlines) as one text frame.
    pub fn reply(&mut self, id: SessionId, replies: &[u8]) {
        if replies.is_empty() {
            return;
        }
        let mut out = Vec::with_capacity(replies.len() + frame::HEAD_BYTES_MAX);
        frame::put_frame(&mut out, Opcode::Text, replies);
        if !self.hub.push_own(id, &out) {
            self.close(id, Disconnect::SLOW, Queued::Drop);
        }
    }
}
