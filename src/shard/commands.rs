//! Commands: what a client may ask, and the answers.
//!
//! Runs on the shard thread inside one borrow of the state. What the broker has to confirm first
//! is in `waiting`.

use super::hub::{SessionId, Variant};
use super::session::Kind;
use super::state::State;
use super::waiting::{self, Asked, Errand};
use super::welcome::Welcome;
use crate::auth::{Action, Denial};
use crate::broker::{HistoryAsk, Order, Publish, Wanted};
use crate::channel;
use crate::position::{Epoch, Position};
use crate::protocol::command::{Command, Delta, History, Kind as Ask, Subscribe};
use crate::protocol::{Disconnect, EmptyReply, ReplyError, put_empty, put_error};
use crate::publication::Body;

/// In debug builds under `HUB_DEV`: lets the tests see what a panic takes with it.
#[cfg(debug_assertions)]
const PANIC_METHOD: &str = "hubbub.panic";

impl State {
    /// Answers a command that came over `HUB_COMMAND_RATE`; a pong is one all the same.
    pub fn refuse_command(&mut self, id: SessionId, command: &Command<'_>, out: &mut Vec<u8>) {
        if command.id != 0 {
            line(out, |out| put_error(out, command.id, &ReplyError::TOO_MANY_REQUESTS));
        } else if command.kind == Ask::Pong
            && let Some(session) = self.session(id)
        {
            session.pong_by_ms = 0;
        }
    }

    pub fn on_command(
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
            (Kind::Refused, _) => Ok(()),
            (Kind::Fresh, Ask::Connect(connect)) => self.on_connect(id, asked, &connect, out),
            (Kind::Fresh, _) | (_, Ask::Connect(_)) => Err(Disconnect::BAD_REQUEST),
            (_, Ask::Subscribe(subscribe)) => {
                self.answer_bytes = out.len();
                let welcome = self.on_subscribe(id, asked, &subscribe);
                self.answer_bytes = 0;
                match welcome {
                    Ok(Some(welcome)) => {
                        let ask = self.ask_of(asked, &subscribe);
                        self.put_welcome(id, &subscribe.channel, ask, &welcome, out);
                    }
                    Ok(None) => {}
                    Err(Denial::Error(error)) => line(out, |out| put_error(out, asked, &error)),
                    Err(Denial::Close(disconnect)) => return Err(disconnect),
                    Err(Denial::Unsubscribe(_)) => return Err(Disconnect::INVALID_TOKEN),
                }
                Ok(())
            }
            (_, Ask::Unsubscribe { channel }) => self.on_unsubscribe(id, asked, &channel, out),
            (_, Ask::Publish(publish)) => {
                let outcome = match publish.data {
                    Some(data) => self.on_publish(id, asked, &publish.channel, data),
                    None => Err(ReplyError::BAD_REQUEST),
                };
                refuse_if(out, asked, outcome)
            }
            (_, Ask::History(history)) => {
                refuse_if(out, asked, self.on_history(id, asked, &history))
            }
            (_, Ask::Presence { channel }) => {
                let wanted = self.wanted_members();
                refuse_if(out, asked, self.on_presence(id, asked, &channel, wanted))
            }
            (_, Ask::PresenceStats { channel }) => {
                refuse_if(out, asked, self.on_presence(id, asked, &channel, Wanted::Counts))
            }
            #[cfg(debug_assertions)]
            (_, Ask::Rpc(rpc)) if rpc.method == PANIC_METHOD && self.node.config.dev => {
                panic!("asked for by a test");
            }
            (_, Ask::Send { .. }) => Err(Disconnect::NOT_AVAILABLE),
            (_, Ask::Ping) => {
                line(out, |out| put_empty(out, asked, EmptyReply::Ping));
                Ok(())
            }
            (_, Ask::Refresh { token }) => self.on_refresh(id, asked, &token, out),
            (_, Ask::SubRefresh(refresh)) => self.on_sub_refresh(id, asked, &refresh, out),
            _ => {
                line(out, |out| put_error(out, asked, &ReplyError::NOT_AVAILABLE));
                Ok(())
            }
        }
    }

    /// `None`: answered once the broker has confirmed, and read. Checks stand in the protocol's order
    /// (client protocol, 11).
    fn on_subscribe(
        &mut self,
        id: SessionId,
        asked: u32,
        subscribe: &Subscribe<'_>,
    ) -> Result<Option<Welcome>, Denial> {
        let config = &self.node.config;
        let name = &*subscribe.channel;
        channel::check_name(name, config.channel_bytes_max).map_err(|_| ReplyError::BAD_REQUEST)?;
        let channels_max = config.channels_max;
        // Which publication would be the one before, differs by what each subscriber's filter lets
        // through.
        if subscribe.delta != Delta::Off && subscribe.tags_filter.is_some() {
            return Err(ReplyError::BAD_REQUEST.into());
        }
        self.check_waiting(id, name)?;
        let n_pending = self.session(id).map_or(0, |session| usize::from(session.n_pending));
        if self.hub.n_channels_of(id) + n_pending >= channels_max {
            return Err(ReplyError::LIMIT_EXCEEDED.into());
        }
        self.authorize(id, subscribe)?;
        let ask = self.ask_of(asked, subscribe);
        let wanted = self.want(id, name, Asked::Subscribe(ask));
        if wanted.is_err()
            && let Some(session) = self.session(id)
        {
            session.forget_token(name);
        }
        Ok(wanted?)
    }

    fn ask_of(&self, command: u32, subscribe: &Subscribe<'_>) -> waiting::Ask {
        let known = Position { offset: subscribe.offset, epoch: Epoch::asked(&subscribe.epoch) };
        waiting::Ask {
            command,
            variant: self.variant(&subscribe.channel, subscribe.delta),
            recover: subscribe.recover.then_some(known),
            or_nothing: subscribe.flag & Subscribe::FLAG_REJECT_UNRECOVERED != 0,
            join_leave: subscribe.join_leave,
        }
    }

    /// A wish for delta that the namespace doesn't grant is ignored: the reply says so.
    pub fn variant(&self, channel: &str, delta: Delta) -> Variant {
        let namespace = self.auth.namespaces().of(channel);
        let is_granted = namespace.is_some_and(|namespace| namespace.delta);
        // It was opened under another rule: to who is slow it sends plain values.
        let conflates = self.live_slot(channel).is_some_and(|slot| self.hub.conflates(slot));
        match delta {
            Delta::Fossil if is_granted && !conflates => Variant::Fresh,
            _ => Variant::Plain,
        }
    }

    fn on_unsubscribe(
        &mut self,
        id: SessionId,
        asked: u32,
        name: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), Disconnect> {
        if self.unwant(id, name, Asked::Unsubscribe(asked))? {
            line(out, |out| put_empty(out, asked, EmptyReply::Unsubscribe));
        }
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
        let namespace = self.may(id, Action::Publish, name)?;
        let info = self.client_info(id, name);
        let body = Body { payload: data.to_vec(), info, ..Body::default() };
        if body.bytes() > self.node.config.publication_bytes_max {
            return Err(ReplyError::BAD_REQUEST);
        }
        let publish = Publish { keep: namespace.keep(), ..Publish::plain(name, body) };
        self.in_turn(id, asked, Errand::Publish(publish))
    }

    /// Checks stand in the protocol's order; the answer comes once the broker has read (client
    /// protocol, 12).
    fn on_history(
        &mut self,
        id: SessionId,
        asked: u32,
        history: &History<'_>,
    ) -> Result<(), ReplyError> {
        let name = &*history.channel;
        channel::check_name(name, self.node.config.channel_bytes_max)
            .map_err(|_| ReplyError::BAD_REQUEST)?;
        let namespace = self.may(id, Action::History, name)?;
        namespace.keep().ok_or(ReplyError::NOT_AVAILABLE)?;
        let since = history
            .since
            .as_ref()
            .map(|since| Position { offset: since.offset, epoch: Epoch::asked(&since.epoch) });
        let order = if history.reverse { Order::Reverse } else { Order::Forward };
        if order == Order::Reverse && since.is_some_and(|since| since.offset == 0) {
            return Err(ReplyError::BAD_REQUEST);
        }
        let config = &self.node.config;
        let ask = HistoryAsk {
            channel: name.into(),
            since,
            order,
            limit: HistoryAsk::limit(history.limit.into(), config.history_max),
            // A reply must never be what makes its client a slow one.
            bytes_max: config.outbox_bytes_max / 2,
        };
        self.in_turn(id, asked, Errand::History(ask))
    }
}

/// Answers a command that can't be carried out; the others are answered once they are.
fn refuse_if(
    out: &mut Vec<u8>,
    asked: u32,
    outcome: Result<(), ReplyError>,
) -> Result<(), Disconnect> {
    if let Err(error) = outcome {
        line(out, |out| put_error(out, asked, &error));
    }
    Ok(())
}

/// Appends one reply to a frame of replies.
pub fn line(out: &mut Vec<u8>, put: impl FnOnce(&mut Vec<u8>)) {
    if !out.is_empty() {
        out.push(b'\n');
    }
    put(out);
}
