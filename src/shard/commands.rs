//! Commands: what a client may ask, and the answers.
//!
//! Runs on the shard thread inside one borrow of the state. What the broker has to confirm first
//! is in `waiting`.

use super::hub::SessionId;
use super::session::Kind;
use super::state::State;
use super::waiting::Asked;
use crate::broker::Publish;
use crate::channel;
use crate::protocol::command::{Command, Kind as Ask};
use crate::protocol::{
    ConnectResult, Disconnect, EmptyReply, ReplyError, SubscribeResult, put_client_info,
    put_connect, put_empty, put_error, put_subscribe,
};
use crate::publication::Body;

/// In debug builds under `HUB_DEV`: lets the tests see what a panic takes with it.
#[cfg(debug_assertions)]
const PANIC_METHOD: &str = "hubbub.panic";

impl State {
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
            #[cfg(debug_assertions)]
            (_, Ask::Rpc(rpc)) if rpc.method == PANIC_METHOD && self.node.config.dev => {
                panic!("asked for by a test");
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

    fn on_unsubscribe(
        &mut self,
        id: SessionId,
        asked: u32,
        name: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), Disconnect> {
        if self.unwant(id, name, asked)? {
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
        if !self.node.config.dev {
            return Err(ReplyError::PERMISSION_DENIED);
        }
        let client =
            self.session(id).map(|session| session.connection.to_string()).unwrap_or_default();
        let mut info = Vec::new();
        put_client_info(&mut info, "", &client, None, None);
        let body = Body { payload: data.to_vec(), info: Some(info.into()), tags: None };
        let publish = Publish { channel: name.into(), body };
        self.publish_in_turn(id, asked, publish)
    }
}

/// Appends one reply to a frame of replies.
pub fn line(out: &mut Vec<u8>, put: impl FnOnce(&mut Vec<u8>)) {
    if !out.is_empty() {
        out.push(b'\n');
    }
    put(out);
}
