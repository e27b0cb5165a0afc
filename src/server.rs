//! A node from start to exit: threads, listeners, signals, drain.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::broker::{self, BrokerCommand};
use crate::config::Config;
use crate::mailbox::{Sender, Urgency};
use crate::metrics::ShardMetrics;
use crate::node::Node;
use crate::shard::{self, Role, ShardEvent};
use crate::{listener, log};

/// An internal failure, as in `sysexits.h`.
pub const EXIT_SOFTWARE: u8 = 70;
/// Connections that may wait to be accepted; the kernel cuts it to its `somaxconn`.
const BACKLOG: u32 = 65_535;
/// What a drain may take beyond `HUB_DRAIN_TIMEOUT`.
const GRACE: Duration = Duration::from_secs(3);

/// Runs a node until a signal ends it.
pub fn run(config: Config) -> ExitCode {
    if let Err(error) = log::start(&config) {
        eprintln!("hubbub can't start its log: {error}");
        return ExitCode::from(EXIT_SOFTWARE);
    }
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

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    if !config.dev && !config.allow_anonymous {
        tracing::warn!(
            "clients are refused: set HUB_DEV=true to try hubbub, or HUB_ALLOW_ANONYMOUS=true"
        );
    } else if !config.dev {
        tracing::warn!(
            "HUB_ALLOW_ANONYMOUS alone opens no channel: this version grants channels only under HUB_DEV"
        );
    }
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let node = Node::new(config);
    let (door, commands) = broker::door();
    let mut shards = Vec::new();
    for idx in 0..node.config.shards {
        let (sender, events) = shard::shard_mailbox();
        shard::spawn(node.clone(), idx, events, door.clone())?;
        shards.push(sender);
    }
    broker::spawn(node.clone(), commands, shards.clone())?;
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
    tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
    let code = drain(&node, &shards, &mut term, &mut int).await;
    drop(door.try_send(vec![BrokerCommand::Stop], Urgency::Prompt));
    Ok(code)
}

/// Listens with as long a queue as the kernel allows: in a reconnect storm a full one drops
/// handshakes, and each of those clients tries again only a second later.
fn bind(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

async fn drain(
    node: &Arc<Node>,
    shards: &[Sender<ShardEvent>],
    term: &mut Signal,
    int: &mut Signal,
) -> ExitCode {
    node.set_draining();
    tracing::info!("draining");
    let spread_ms = node.config.drain_timeout.as_millis() as u64 * 4 / 5;
    let give_up_ms = node.now_ms() + GRACE.as_millis() as u64;
    for shard in shards {
        let mut batch = vec![ShardEvent::Drain { spread_ms }];
        // A full mailbox empties within a turn; a stuck shard is what the time limit is for.
        while let Err(refused) = shard.try_send(batch, Urgency::Prompt) {
            if node.now_ms() >= give_up_ms {
                break;
            }
            batch = refused;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let all_left = async {
        let n_left = || {
            let of = |shard: &ShardMetrics| shard.connections.get() + shard.http_calls.get();
            node.metrics.shards.iter().map(|shard| of(shard)).sum::<u64>()
        };
        while n_left() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = all_left => {}
        () = tokio::time::sleep(node.config.drain_timeout + GRACE) => {
            let n = node.metrics.sum(|shard| &shard.connections);
            tracing::warn!(connections = n, "drain time is over: abandoned");
        }
        _ = term.recv() => return ExitCode::from(143),
        _ = int.recv() => return ExitCode::from(130),
    }
    ExitCode::SUCCESS
}
