//! Accepts sockets and hands each to its shard. Runs on the main thread.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::utils::CachePadded;
use socket2::SockRef;
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::mailbox::{Sender, Urgency};
use crate::metrics::ShardMetrics;
use crate::node::Node;
use crate::shard::{Accepted, Role, ShardEvent};

/// After a failed accept (out of descriptors) the listener rests: retrying at once would spin.
const REST: Duration = Duration::from_millis(100);

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
        let Drawn { connection, shard } = draw(&node.metrics.shards, &keys);
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
/// put there waits, be it a client that other shards could serve or a probe of `/health`. One always
/// does, the one that answered last.
fn draw(shards: &[CachePadded<ShardMetrics>], keys: &ahash::RandomState) -> Drawn {
    let last_ms = shards.iter().map(|shard| shard.answered_ms.get()).max().unwrap_or(0);
    loop {
        let connection = Uuid::new_v4();
        let shard = (keys.hash_one(connection) % shards.len() as u64) as usize;
        if shards[shard].is_up(last_ms) {
            return Drawn { connection, shard };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of ten thousand connections each shard gets, by when it answered.
    fn shares<const N: usize>(answered_ms: [u64; N]) -> [u32; N] {
        let shards = answered_ms.map(|ms| {
            let shard = CachePadded::new(ShardMetrics::default());
            shard.answered_ms.set(ms);
            shard
        });
        let keys = ahash::RandomState::new();
        let mut shares = [0; N];
        (0..10_000 * N).for_each(|_| shares[draw(&shards, &keys).shard] += 1);
        shares
    }

    #[test]
    fn who_does_not_answer_gets_nobody() {
        let [blocked, others @ ..] = shares([7_000, 10_000, 9_500, 10_000]);
        assert_eq!(blocked, 0);
        assert!(others.iter().all(|n| (12_000..15_000).contains(n)), "{others:?}");
        assert_eq!(shares([0, 2_001]), [0, 20_000]);
    }

    /// None has answered for long, as when nobody asks.
    #[test]
    fn all_are_as_good_as_each_other() {
        for answered_ms in [[0, 0], [5_000, 5_000], [5_000, 4_000]] {
            let shares = shares(answered_ms);
            assert!(shares.iter().all(|n| (9_000..11_000).contains(n)), "{shares:?}");
        }
    }
}
