//! A node from start to exit: threads, listeners, signals, drain.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};

use crate::broker::{self, BrokerCommand, Claim, Door};
use crate::config::{Config, LoadError, LogFormat, Namespaces};
use crate::listener;
use crate::mailbox::{Sender, Urgency};
use crate::metrics::LOG_LINES;
use crate::node::Node;
use crate::shard::{self, Role, ShardEvent};

/// An internal failure, as in `sysexits.h`.
pub const EXIT_SOFTWARE: u8 = 70;
/// What is needed isn't to be had: a Redis to ask, or a `HUB_NODE_ID` that no other live node has.
pub const EXIT_UNAVAILABLE: u8 = 69;
const MISTAKES_LOGGED_MAX: usize = 10;
/// Log lines that may wait to be written.
const LOG_LINES_MAX: usize = 4096;
/// Connections that may wait to be accepted; the kernel cuts it to its `somaxconn`.
const BACKLOG: u32 = 65_535;
/// What a drain may take beyond `HUB_DRAIN_TIMEOUT`.
const GRACE: Duration = Duration::from_secs(3);
/// Then the broker takes back what Redis has of this node.
const GOODBYE: Duration = Duration::from_millis(1_500);
/// What removing this node's entries from Redis may take, once all have left.
const FAREWELL: Duration = Duration::from_secs(2);

/// Runs a node until a signal ends it.
pub fn run(config: Config) -> ExitCode {
    let _log = start_log(&config);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default());
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(serve(config))) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!(%error, "hubbub can't run");
            ExitCode::from(EXIT_SOFTWARE)
        }
    }
}

/// Logs to stderr by a thread of its own, which drops lines rather than let a full pipe or disk
/// hold up delivery. What it still holds is written when the guard is dropped.
fn start_log(config: &Config) -> WorkerGuard {
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LOG_LINES_MAX)
        .finish(std::io::stderr());
    LOG_LINES.get_or_init(|| writer.error_counter());
    let filter = tracing_subscriber::EnvFilter::new(&config.log);
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match config.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    std::panic::set_hook(Box::new(|info| {
        let message = info.payload_as_str().unwrap_or_default();
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(message, place, "panic");
    }));
    guard
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let node = Node::new(config);
    let claimed = tokio::select! {
        claimed = broker::claim(&node) => claimed,
        _ = term.recv() => return Ok(ExitCode::SUCCESS),
        _ = int.recv() => return Ok(ExitCode::SUCCESS),
    };
    if let Claim::Taken { run_id } = claimed {
        refuse_to_start(&node, &run_id);
        return Ok(ExitCode::from(EXIT_UNAVAILABLE));
    }
    warn_if_closed(&node);
    let (door, commands) = broker::door();
    let mut shards = Vec::new();
    for idx in 0..node.config.shards {
        let (sender, events) = shard::shard_mailbox();
        shard::spawn(node.clone(), idx, events, door.clone())?;
        shards.push(sender);
    }
    let broker = broker::spawn(node.clone(), commands, shards.clone())?;
    let internal = if node.config.internal_listen.is_empty() { Role::All } else { Role::Public };
    let public = node.config.listen.iter().map(|addr| (addr, internal, "hubbub listening"));
    let private = node
        .config
        .internal_listen
        .iter()
        .map(|addr| (addr, Role::Internal, "hubbub internal listening"));
    for (addr, role, words) in public.chain(private) {
        let listener = bind(*addr)?;
        println!("{words} on http://{}", listener.local_addr()?);
        tokio::task::spawn_local(listener::run(node.clone(), listener, role, shards.clone()));
    }
    tokio::task::spawn_local(reload(node.clone(), shards.clone()));
    tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
    let ended = async {
        drain(&node, &shards).await;
        say_goodbye(&door, &broker).await;
    };
    Ok(tokio::select! {
        () = ended => ExitCode::SUCCESS,
        _ = term.recv() => ExitCode::from(143),
        _ = int.recv() => ExitCode::from(130),
    })
}

fn refuse_to_start(node: &Node, run_id: &str) {
    tracing::error!(
        instance_id = %node.instance_id(),
        run_id = %run_id.escape_debug(),
        redis_prefix = %node.config.redis_prefix,
        "another live node has this HUB_NODE_ID in this Redis: each needs one of its own"
    );
}

/// Says which knob to set where nobody could connect, or subscribe.
fn warn_if_closed(node: &Node) {
    let (auth, config) = (node.auth(), &node.config);
    if !auth.lets_clients_in() {
        tracing::warn!(
            "clients are refused: set HUB_TOKEN_HMAC_SECRET, or HUB_ALLOW_ANONYMOUS=true, or \
             HUB_DEV=true to try hubbub"
        );
    } else if config.allow_anonymous && !config.dev && !auth.namespaces().let_anyone_in() {
        tracing::warn!(
            "HUB_ALLOW_ANONYMOUS alone opens no channel to anonymous clients: a namespace in \
             HUB_CONFIG does, with subscribe = \"anyone\""
        );
    }
}

/// Reads the namespaces again at each SIGHUP; a file with a mistake changes nothing.
async fn reload(node: Arc<Node>, shards: Vec<Sender<ShardEvent>>) {
    let Ok(mut hang_up) = signal(SignalKind::hangup()) else { return };
    while hang_up.recv().await.is_some() {
        let Some(path) = &node.config.config else {
            tracing::info!("SIGHUP: there is no HUB_CONFIG to read again");
            continue;
        };
        match Namespaces::load(path) {
            Ok(namespaces) => {
                let auth = Arc::new(node.auth().with_namespaces(Arc::new(namespaces)));
                node.set_auth(auth.clone());
                for shard in &shards {
                    let event = ShardEvent::Access(auth.clone());
                    deliver(&node, shard, event).await;
                }
                node.metrics.listener.reloads.add(1);
                tracing::info!("namespaces reloaded");
            }
            Err(error) => {
                node.metrics.listener.failed_reloads.add(1);
                tracing::error!(%error, "HUB_CONFIG isn't good: the old namespaces stay");
                log_mistakes(&error);
            }
        }
    }
}

/// The first few; the rest is more of the same.
fn log_mistakes(error: &LoadError) {
    let LoadError::Mistakes(mistakes) = error else { return };
    for mistake in mistakes.iter().take(MISTAKES_LOGGED_MAX) {
        tracing::error!(line = mistake.line, "{}", mistake.complaint);
    }
}

/// Sends what must arrive. A full mailbox empties within a turn; a stuck shard is given up.
async fn deliver(node: &Node, shard: &Sender<ShardEvent>, event: ShardEvent) {
    let give_up_ms = node.now_ms() + GRACE.as_millis() as u64;
    let mut batch = vec![event];
    while let Err(refused) = shard.try_send(batch, Urgency::Prompt) {
        if node.now_ms() >= give_up_ms {
            break;
        }
        batch = refused;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Listens with as long a queue as the kernel allows: in a reconnect storm a full one drops
/// handshakes, and each of those clients tries again only a second later.
fn bind(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

async fn drain(node: &Arc<Node>, shards: &[Sender<ShardEvent>]) {
    node.set_draining();
    tracing::info!("draining");
    // All of it: a shorter spread would be more at a time for the others. The last have the grace.
    let until_ms = node.now_ms() + node.config.drain_timeout.as_millis() as u64;
    for shard in shards {
        deliver(node, shard, ShardEvent::Drain { until_ms }).await;
    }
    let all_left = async {
        let metrics = &node.metrics;
        while metrics.sum(|shard| &shard.connections) + metrics.sum(|shard| &shard.http_calls) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let all_removed = async {
            while metrics.presence.entries.get() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(FAREWELL, all_removed).await.is_err() {
            let n = metrics.presence.entries.get();
            tracing::warn!(entries = n, "not removed from presence: they expire");
        }
    };
    tokio::select! {
        () = all_left => {}
        () = tokio::time::sleep(node.config.drain_timeout + GRACE) => {
            let n = node.metrics.sum(|shard| &shard.connections);
            tracing::warn!(connections = n, "drain time is over: abandoned");
        }
    }
}

/// Lets the broker end. A Redis that hangs doesn't hold up the exit.
async fn say_goodbye(door: &Door, broker: &JoinHandle<()>) {
    let ended = async {
        let mut stop = vec![BrokerCommand::Stop];
        while let Err(refused) = door.try_send(stop, Urgency::Prompt) {
            stop = refused;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        while !broker.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(GOODBYE, ended).await.is_err() {
        tracing::warn!("the broker did not end in time: abandoned");
    }
}
