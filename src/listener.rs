//! Accepts sockets and hands each to its shard. Runs on the main thread.

use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::mailbox::{Sender, Urgency};
use crate::node::Node;
use crate::shard::{Accepted, Role, ShardEvent};

/// After a failed accept (out of descriptors) the listener rests: retrying at once would spin.
const REST: Duration = Duration::from_millis(100);
/// With two shards, one of which doesn't answer, one connection in 65,536 gets that one.
const DRAWS_MAX: usize = 16;

/// Accepts for ever.
pub async fn run(
    node: Arc<Node>,
    listener: TcpListener,
    role: Role,
    shards: Vec<Sender<ShardEvent>>,
) {
    let keys = ahash::RandomState::new();
    let is_loopback = listener.local_addr().is_ok_and(|addr| addr.ip().is_loopback());
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(_) => {
                node.metrics.listener.accept_errors.add(1);
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        node.metrics.listener.accepted.add(1);
        let socket = SockRef::from(&stream);
        let notsent = u32::try_from(node.config.notsent_bytes).unwrap_or(u32::MAX);
        if socket.set_tcp_nodelay(true).is_err() || socket.set_tcp_notsent_lowat(notsent).is_err() {
            continue; // Closed again already.
        }
        let Some(permit) = node.admission.open_socket() else {
            node.metrics.listener.refused.add(1);
            continue;
        };
        let Ok(stream) = stream.into_std() else { continue };
        let Drawn { connection, shard } = draw(&node, &keys);
        let accepted = Accepted { stream, peer, connection, role, is_loopback, permit };
        let event = ShardEvent::Accepted(Box::new(accepted));
        if shards[shard].try_send(vec![event], Urgency::Prompt).is_err() {
            node.metrics.listener.refused.add(1);
        }
    }
}

struct Drawn {
    connection: Uuid,
    shard: usize,
}

/// Draws a connection id, and with it a shard: anew where that shard doesn't answer, since whoever is
/// put there waits, be it a client that other shards could serve or a probe of `/health`. Where none of
/// so many draws answers, none is better than the first.
fn draw(node: &Node, keys: &ahash::RandomState) -> Drawn {
    let shards = &node.metrics.shards;
    let drawn = || {
        let connection = Uuid::new_v4();
        let shard = (keys.hash_one(connection) % shards.len() as u64) as usize;
        Drawn { connection, shard }
    };
    let now_ms = node.now_ms();
    let mut draws = std::iter::repeat_with(drawn).take(DRAWS_MAX);
    draws.find(|drawn| shards[drawn.shard].is_up(now_ms)).unwrap_or_else(drawn)
}
