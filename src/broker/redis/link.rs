//! The only file that names the Redis client's connections.
//!
//! Two links per process, on the broker thread: *pub/sub* (RESP3, whose pushes a closure puts
//! into the inbox) and *command* (pipelined; publishes have a deadline by Redis's own clock).
//! Nagle is off and keepalive on. A command has a time limit, a SUBSCRIBE has none: on a slow
//! link its confirmations may take long, and a link that lives would be given up, with a gap for
//! all channels, over and over. The supervisor's pings tell a slow link from a silent one. A link
//! never reconnects by itself: its supervisor drops it and dials again, because the client's own
//! manager gives up, ignores failed resubscribes and doesn't see a frozen Redis.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind,
    RedisError, Value,
};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::inbox::{Inbox, Push};
use super::script::{Call, Script};
use crate::broker::PublishError;
use crate::config::RedisUrl;

/// Dialling takes at most this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What a node publishes on its own channel to see whether it comes back.
pub const PROBE: &[u8] = b"probe";

/// The hub's own channels that a node is subscribed to.
pub struct OwnChannels {
    pub node: Vec<u8>,
    pub all: Vec<u8>,
}

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

    /// Dials the pub/sub link, subscribed to the hub's own channels. Its pushes go to `inbox` under
    /// `generation`; `broken` hears of its end, be it before this returns.
    pub async fn pubsub(
        &self,
        inbox: Arc<Inbox>,
        generation: u64,
        broken: Arc<Notify>,
        own: OwnChannels,
    ) -> Result<PubSubLink, RedisError> {
        let to_subscribe = [own.node.clone(), own.all.clone()];
        let sender = move |info: PushInfo| {
            match translate(info) {
                Some(Push::Message { channel, payload })
                    if payload == PROBE && channel == own.node =>
                {
                    inbox.push(generation, Push::Probe);
                }
                Some(Push::Message { channel, payload })
                    if channel == own.all || channel == own.node =>
                {
                    inbox.push(generation, Push::Control { payload });
                }
                Some(push) => {
                    if push == Push::Down {
                        broken.notify_one();
                    }
                    inbox.push(generation, push);
                }
                None => {}
            }
            Ok::<(), redis::aio::SendError>(())
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(None)
            .set_push_sender(sender);
        let connected = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut link = PubSubLink(connected);
        let forbidden = timeout(self.response_timeout, link.subscribe(&to_subscribe))
            .await
            .map_err(|elapsed| RedisError::from(std::io::Error::from(elapsed)))??;
        if forbidden.is_empty() {
            Ok(link)
        } else {
            Err((redis::ErrorKind::Client, "its ACL forbids the hub's own channels, ws:*").into())
        }
    }

    /// Dials the command link.
    pub async fn command(&self) -> Result<CommandLink, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.response_timeout));
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut link = CommandLink {
            connection,
            time_limit: self.response_timeout,
            clock: Rc::new(Cell::new(None)),
            hashes: Rc::default(),
            server: UNKNOWN_SERVER.into(),
        };
        link.read_clock().await?;
        if link.clock.get().is_some() {
            link.read_server().await?;
            link.load_scripts().await?;
        }
        Ok(link)
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

    /// Sends SUBSCRIBE; each channel is confirmed by a push. Returns those that Redis's ACL
    /// forbids: it refuses a command for any one of them, so then each is asked for alone.
    pub async fn subscribe(&mut self, channels: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, RedisError> {
        let mut forbidden = Vec::new();
        if channels.is_empty() || !is_forbidden(self.0.subscribe(channels).await)? {
            return Ok(forbidden);
        }
        for channel in channels {
            if is_forbidden(self.0.subscribe(channel).await)? {
                forbidden.push(channel.clone());
            }
        }
        Ok(forbidden)
    }

    /// Sends UNSUBSCRIBE; each channel is confirmed by a push.
    pub async fn unsubscribe(&mut self, channels: &[Vec<u8>]) -> Result<(), RedisError> {
        if channels.is_empty() { Ok(()) } else { self.0.unsubscribe(channels).await }
    }
}

fn is_forbidden(result: Result<(), RedisError>) -> Result<bool, RedisError> {
    match result {
        Ok(()) => Ok(false),
        Err(error) if error.code() == Some("NOPERM") => Ok(true),
        Err(error) => Err(error),
    }
}

/// PUBLISHes channel by channel, unless Redis's clock, in milliseconds, shows more than the first
/// argument. Returns that clock, and for each channel 1, or 0 if it was refused. Without it, what
/// a Redis that hangs finds in its sockets when it goes on would be delivered as if it were new,
/// long after the publisher was told that it failed.
const PUBLISH_IN_TIME: &str = "local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reply = {now}
if now <= tonumber(ARGV[1]) then
  for at = 2, #ARGV, 2 do
    local sent = redis.pcall('PUBLISH', ARGV[at], ARGV[at + 1])
    reply[#reply + 1] = type(sent) == 'number' and 1 or 0
  end
end
return reply";
/// Publications and bytes of one script: Redis serves others in between.
const SCRIPT_PUBLISHES_MAX: usize = 64;
const SCRIPT_BYTES_MAX: usize = 256 << 10;

/// What Redis's clock showed when its answer came: behind by what the answer took, so that a
/// deadline is rather too early.
#[derive(Clone, Copy)]
struct Clock {
    shown_ms: u64,
    at: Instant,
}

/// The command connection.
#[derive(Clone)]
pub struct CommandLink {
    connection: MultiplexedConnection,
    time_limit: Duration,
    /// `None`: this Redis runs no scripts.
    clock: Rc<Cell<Option<Clock>>>,
    /// What EVALSHA knows the scripts by, in their order; empty: they go as text.
    hashes: Rc<RefCell<Vec<String>>>,
    server: Rc<str>,
}

/// One publish without history: the Redis channel, and what to PUBLISH there.
pub struct Plain {
    pub channel: Vec<u8>,
    pub payload: Vec<u8>,
}

/// What a batch of publishes came to.
pub struct Published {
    pub results: Vec<Result<(), PublishError>>,
    /// Of the scripts that went with them.
    pub called: Vec<Result<Value, RedisError>>,
    /// The link is broken: dial again.
    pub broken: bool,
}

type Reply = Result<Value, RedisError>;

/// Of a Redis that doesn't tell its run_id: streams don't notice that they came to another server.
const UNKNOWN_SERVER: &str = "-";

impl CommandLink {
    /// Whether the link works; also reads the clock.
    pub async fn ping(&mut self) -> Result<(), RedisError> {
        match self.clock.get() {
            Some(_) => self.read_clock().await,
            None => redis::cmd("PING").exec_async(&mut self.connection).await,
        }
    }

    async fn read_clock(&mut self) -> Result<(), RedisError> {
        let script = redis::cmd("EVAL").arg(PUBLISH_IN_TIME).arg(0).arg(0).take();
        match script.query_async::<Vec<u64>>(&mut self.connection).await {
            Ok(reply) => self.set_clock(reply.first().copied().unwrap_or_default()),
            Err(error) if matches!(error.code(), Some("NOPERM" | "ERR")) => {
                tracing::warn!(%error, "Redis runs no scripts: what it publishes may be late");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The run_id: another one after a restart, and of a replica that was promoted.
    async fn read_server(&mut self) -> Result<(), RedisError> {
        match redis::cmd("INFO").arg("server").query_async::<String>(&mut self.connection).await {
            Ok(info) => {
                let id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
                self.server = id.unwrap_or(UNKNOWN_SERVER).trim().into();
            }
            Err(error) if matches!(error.code(), Some("NOPERM" | "ERR")) => {
                tracing::warn!(%error, "history won't notice that Redis lost its newest part");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn load_scripts(&mut self) -> Result<(), RedisError> {
        let mut hashes = Vec::new();
        for script in Script::ALL {
            let load = redis::cmd("SCRIPT").arg("LOAD").arg(script.text()).take();
            match load.query_async(&mut self.connection).await {
                Ok(hash) => hashes.push(hash),
                Err(error) if matches!(error.code(), Some("NOPERM" | "ERR")) => {
                    tracing::debug!(%error, "scripts go to Redis as text");
                    hashes.clear();
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        self.hashes.replace(hashes);
        Ok(())
    }

    pub fn server(&self) -> &str {
        &self.server
    }

    /// By Redis's clock, the end of the time limit of what is sent now. `None`: Redis runs no
    /// scripts, so there are no deadlines, and no history.
    pub fn deadline_ms(&self) -> Option<u64> {
        let clock = self.clock.get()?;
        Some(clock.shown_ms + (clock.at.elapsed() + self.time_limit).as_millis() as u64)
    }

    /// Redis's clock, as an answer that came just now shows it.
    pub fn set_clock(&self, shown_ms: u64) {
        self.clock.set(Some(Clock { shown_ms, at: Instant::now() }));
    }

    /// Runs one script.
    pub async fn call(&mut self, call: &Call) -> Result<Value, RedisError> {
        let command = self.command_of(call);
        let result = command.query_async(&mut self.connection).await;
        self.reload_if_missing(std::slice::from_ref(&result)).await;
        result
    }

    fn command_of(&self, call: &Call) -> redis::Cmd {
        let hashes = self.hashes.borrow();
        let mut command = match hashes.get(call.script as usize) {
            Some(hash) => redis::cmd("EVALSHA").arg(hash).take(),
            None => redis::cmd("EVAL").arg(call.script.text()).take(),
        };
        command.arg(call.keys.len()).arg(&call.keys).arg(&call.args);
        command
    }

    /// Somebody flushed the scripts. What was asked for failed and is not sent again: it would come
    /// after what was asked for later.
    async fn reload_if_missing(&mut self, results: &[Reply]) {
        let is_missing =
            |result: &Reply| result.as_ref().is_err_and(|error| error.code() == Some("NOSCRIPT"));
        if results.iter().any(is_missing) {
            tracing::warn!("the scripts were flushed from Redis, and are loaded again");
            self.hashes.borrow_mut().clear();
            let _ = self.load_scripts().await;
        }
    }

    /// PUBLISHes all in one pipeline, in order, the scripts last; none after the link's time limit.
    pub async fn publish(
        &mut self,
        batch: impl ExactSizeIterator<Item = Plain>,
        calls: Vec<Call>,
    ) -> Published {
        match self.deadline_ms() {
            Some(deadline_ms) => self.publish_by(deadline_ms, batch, calls).await,
            None => self.publish_some_time(batch).await,
        }
    }

    async fn publish_by(
        &mut self,
        deadline_ms: u64,
        batch: impl ExactSizeIterator<Item = Plain>,
        calls: Vec<Call>,
    ) -> Published {
        let n = batch.len();
        let new_script = || redis::cmd("EVAL").arg(PUBLISH_IN_TIME).arg(0).arg(deadline_ms).take();
        let (mut pipe, mut lens) = (redis::Pipeline::new(), Vec::new());
        let (mut script, mut len, mut bytes) = (new_script(), 0, 0);
        for Plain { channel, payload } in batch {
            if len == SCRIPT_PUBLISHES_MAX || bytes > SCRIPT_BYTES_MAX {
                pipe.add_command(std::mem::replace(&mut script, new_script()));
                lens.push(len);
                (len, bytes) = (0, 0);
            }
            len += 1;
            bytes += channel.len() + payload.len();
            script.arg(channel).arg(payload);
        }
        if len > 0 {
            pipe.add_command(script);
            lens.push(len);
        }
        for call in &calls {
            pipe.add_command(self.command_of(call));
        }
        pipe.ignore_errors();
        match pipe.query_async::<Vec<Reply>>(&mut self.connection).await {
            Ok(mut replies) => {
                let called = replies.split_off(lens.len().min(replies.len()));
                let mut results = Vec::with_capacity(n);
                for (reply, len) in replies.into_iter().zip(lens) {
                    let reply: Vec<u64> =
                        reply.and_then(|it| Ok(redis::from_redis_value(it)?)).unwrap_or_default();
                    if let Some(shown_ms) = reply.first() {
                        self.set_clock(*shown_ms);
                    }
                    // Shorter than asked: it was too late, or the script failed.
                    let sent = (1..=len).map(|at| reply.get(at) == Some(&1));
                    results
                        .extend(sent.map(|ok| ok.then_some(()).ok_or(PublishError::Unavailable)));
                }
                self.reload_if_missing(&called).await;
                Published { results, called, broken: false }
            }
            Err(error) => Published::failed(n, &error, calls.len()),
        }
    }

    /// PUBLISHes, some time, and returns how many links got it; `None`: Redis refused it. Subscribers
    /// of patterns, which are no nodes, aren't counted where Redis lets that be asked.
    pub async fn publish_counting(&mut self, message: &Plain) -> Result<Option<usize>, RedisError> {
        let mut pipe = redis::Pipeline::with_capacity(2);
        pipe.cmd("PUBSUB").arg("NUMSUB").arg(&message.channel);
        pipe.cmd("PUBLISH").arg(&message.channel).arg(&message.payload);
        pipe.ignore_errors();
        let mut replies = pipe.query_async::<Vec<Reply>>(&mut self.connection).await?.into_iter();
        let exact = replies.next().and_then(Result::ok);
        let links = replies.next().and_then(Result::ok);
        let n_exact = exact.and_then(|reply| {
            let (_, n) = redis::from_redis_value::<(Value, usize)>(reply).ok()?;
            Some(n)
        });
        let n_links: Option<usize> = links.and_then(|reply| redis::from_redis_value(reply).ok());
        Ok(n_links.map(|n_links| n_exact.unwrap_or(n_links)))
    }

    async fn publish_some_time(
        &mut self,
        batch: impl ExactSizeIterator<Item = Plain>,
    ) -> Published {
        let n = batch.len();
        let mut pipe = redis::Pipeline::with_capacity(n);
        for Plain { channel, payload } in batch {
            pipe.cmd("PUBLISH").arg(channel).arg(payload);
        }
        pipe.ignore_errors();
        match pipe.query_async::<Vec<Result<i64, RedisError>>>(&mut self.connection).await {
            Ok(results) => Published {
                results: results
                    .into_iter()
                    .map(|result| result.map(|_| ()).map_err(|_| PublishError::Unavailable))
                    .collect(),
                called: Vec::new(),
                broken: false,
            },
            Err(error) => Published::failed(n, &error, 0),
        }
    }
}

impl Published {
    fn failed(n: usize, error: &RedisError, n_calls: usize) -> Self {
        let failed = publish_error(error);
        let called = (0..n_calls).map(|_| Err(error.clone())).collect();
        Self { results: vec![Err(failed); n], called, broken: true }
    }
}

/// A time-out says nothing about whether Redis read the commands before their deadline.
pub fn publish_error(error: &RedisError) -> PublishError {
    if error.is_timeout() { PublishError::Unknown } else { PublishError::Unavailable }
}
