//! Before a node starts: is its `HUB_NODE_ID` free?
//!
//! On the main thread, over a connection of its own that ends with the answer; asked only where the
//! id was chosen, since a drawn one is free. Whose entry is there shows whether it lives by renewing it
//! (see `heartbeat`). Nothing listens meanwhile: who may be refused serves nobody.

use std::time::Duration;

use tokio::time::sleep;

use super::heartbeat::{Beat, LIFE_MS, call};
use super::link::{CommandLink, Dialer};
use crate::node::Node;

/// Between two looks at another's entry.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// May this node start?
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Claim {
    Free,
    /// Redis didn't say: the heartbeat goes on trying.
    Unknown,
    /// A node that lives has the id.
    Taken {
        run_id: String,
    },
}

/// Takes a chosen id, or finds out who lives under it; that takes 15 s at the most.
pub async fn claim(node: &Node) -> Claim {
    let config = &node.config;
    let (Some(url), Some(instance_id)) = (&config.redis_url, &config.node_id) else {
        return Claim::Free;
    };
    if !config.registry {
        return Claim::Free;
    }
    let dialed = match Dialer::new(url, config.redis_timeout, config.redis_prefix.as_bytes()) {
        Ok(dialer) => dialer.bare().await,
        Err(error) => Err(error),
    };
    match dialed {
        Ok(mut link) => watch(&mut link, node, instance_id).await,
        Err(_) => Claim::Unknown,
    }
}

async fn watch(link: &mut CommandLink, node: &Node, instance_id: &str) -> Claim {
    let mut before: Option<Beat> = None;
    loop {
        let beat = link.call(&call(node, LIFE_MS)).await.ok().and_then(Beat::read);
        match beat {
            Some(Beat::Claimed | Beat::Renewed) => return Claim::Free,
            None => return Claim::Unknown,
            Some(now) => {
                match before.replace(now.clone()) {
                    Some(before) if before.lives_on(&now) => {
                        let Beat::Taken { run_id, .. } = now else { return Claim::Unknown };
                        return Claim::Taken { run_id };
                    }
                    Some(_) => {}
                    None => tracing::info!(
                        instance_id,
                        "there is an entry with this HUB_NODE_ID: waiting whether its node lives"
                    ),
                }
                sleep(LOOK_INTERVAL).await;
            }
        }
    }
}

impl Beat {
    /// Whether somebody renewed the entry between two looks at it, or took it over.
    fn lives_on(&self, later: &Beat) -> bool {
        match (self, later) {
            (
                Beat::Taken { left_ms: a, run_id: run_a },
                Beat::Taken { left_ms: b, run_id: run_b },
            ) => b > a || run_a != run_b,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(left_ms: u64, run_id: &str) -> Beat {
        Beat::Taken { left_ms, run_id: run_id.to_owned() }
    }

    #[test]
    fn who_renews_lives() {
        assert!(!taken(21_000, "a").lives_on(&taken(20_500, "a")));
        assert!(!taken(21_000, "a").lives_on(&taken(21_000, "a")));
        assert!(taken(21_000, "a").lives_on(&taken(29_800, "a")));
        assert!(taken(21_000, "a").lives_on(&taken(20_500, "b")));
    }
}
