//! The only file that names the Redis client's connections.
//!
//! Two links per process, on the broker thread: *pub/sub* (RESP3, whose pushes a closure puts
//! into the inbox) and *command* (pipelined). Nagle is off and keepalive on. A command has a time
//! limit, a SUBSCRIBE has none: on a slow link its confirmations may take long, and a link that
//! lives would be given up, with a gap for all channels, over and over. The supervisor's pings
//! tell a slow link from a silent one. A link never reconnects by itself: its supervisor drops it
//! and dials again, because the client's own manager gives up, ignores failed resubscribes and
//! doesn't see a frozen Redis.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind,
    RedisError, Value,
};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::inbox::{Inbox, Push};
use crate::broker::PublishError;
use crate::config::RedisUrl;

/// Dialling takes at most this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Where and how to dial.
pub struct Dialer {
    client: Client,
    response_timeout: Duration,
}

impl Dialer {
    pub fn new(url: &RedisUrl, response_timeout: Duration) -> Result<Self, RedisError> {
        let info = url.expose().into_connection_info()?;
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
        let client = Client::open(info.set_redis_settings(settings).set_tcp_settings(tcp))?;
        Ok(Self { client, response_timeout })
    }

    /// Dials the pub/sub link, subscribed to `first`. Its pushes go to `inbox` under
    /// `generation`; `broken` hears of its end, be it before this returns.
    pub async fn pubsub(
        &self,
        inbox: Arc<Inbox>,
        generation: u64,
        broken: Arc<Notify>,
        first: &[u8],
    ) -> Result<PubSubLink, RedisError> {
        let sender = move |info: PushInfo| {
            if let Some(push) = translate(info) {
                if push == Push::Down {
                    broken.notify_one();
                }
                inbox.push(generation, push);
            }
            Ok::<(), redis::aio::SendError>(())
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(None)
            .set_push_sender(sender);
        let connected = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut link = PubSubLink(connected);
        match timeout(self.response_timeout, link.subscribe(&[first.to_vec()])).await {
            Ok(subscribed) => subscribed.map(|()| link),
            Err(elapsed) => Err(std::io::Error::from(elapsed).into()),
        }
    }

    /// Dials the command link.
    pub async fn command(&self) -> Result<CommandLink, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.response_timeout));
        Ok(CommandLink(self.client.get_multiplexed_async_connection_with_config(&config).await?))
    }
}

fn translate(info: PushInfo) -> Option<Push> {
    let mut data = info.data.into_iter();
    let mut bytes = || match data.next() {
        Some(Value::BulkString(bytes)) => Some(bytes),
        _ => None,
    };
    match info.kind {
        PushKind::Message => Some(Push::Message { channel: bytes()?, payload: bytes()? }),
        PushKind::Subscribe => Some(Push::Subscribed { channel: bytes()? }),
        PushKind::Unsubscribe => Some(Push::Unsubscribed { channel: bytes()? }),
        PushKind::Disconnection => Some(Push::Down),
        _ => None,
    }
}

/// The pub/sub connection.
#[derive(Clone)]
pub struct PubSubLink(MultiplexedConnection);

impl PubSubLink {
    /// Waits for the answer as long as it takes.
    pub async fn ping(&mut self) -> Result<(), RedisError> {
        redis::cmd("PING").exec_async(&mut self.0).await
    }

    /// Sends SUBSCRIBE; each channel is confirmed by a push.
    pub async fn subscribe(&mut self, channels: &[Vec<u8>]) -> Result<(), RedisError> {
        if channels.is_empty() { Ok(()) } else { self.0.subscribe(channels).await }
    }

    /// Sends UNSUBSCRIBE; each channel is confirmed by a push.
    pub async fn unsubscribe(&mut self, channels: &[Vec<u8>]) -> Result<(), RedisError> {
        if channels.is_empty() { Ok(()) } else { self.0.unsubscribe(channels).await }
    }
}

/// The command connection.
#[derive(Clone)]
pub struct CommandLink(MultiplexedConnection);

/// What a batch of publishes came to.
pub struct Published {
    pub results: Vec<Result<(), PublishError>>,
    /// The link is broken: dial again.
    pub broken: bool,
}

impl CommandLink {
    pub async fn ping(&mut self) -> Result<(), RedisError> {
        redis::cmd("PING").exec_async(&mut self.0).await
    }

    /// PUBLISHes all in one pipeline, in order.
    pub async fn publish(
        &mut self,
        batch: impl ExactSizeIterator<Item = (Vec<u8>, Vec<u8>)>,
    ) -> Published {
        let n = batch.len();
        let mut pipe = redis::Pipeline::with_capacity(n);
        for (channel, payload) in batch {
            pipe.cmd("PUBLISH").arg(channel).arg(payload);
        }
        pipe.ignore_errors();
        match pipe.query_async::<Vec<Result<i64, RedisError>>>(&mut self.0).await {
            Ok(results) => Published {
                results: results
                    .into_iter()
                    .map(|result| result.map(|_| ()).map_err(|_| PublishError::Unavailable))
                    .collect(),
                broken: false,
            },
            Err(error) => {
                // A time-out says nothing about whether Redis will still read the command.
                let failed = if error.is_timeout() {
                    PublishError::Unknown
                } else {
                    PublishError::Unavailable
                };
                Published { results: vec![Err(failed); n], broken: true }
            }
        }
    }
}
