//! Promise: whoever comes back at whatever moment, to whichever node, sees every publication once and in
//! order, recovered and live together, while others publish as fast as they can.

mod common;

use common::cf::{Cf, subscribe};
use common::past::{At, namespaces, publish, recover};
use common::{Direction, Hub, Proxy, Redis, Rng, ms, scaled};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// A client that counts: every offset must be one more than the one before.
struct Follower {
    at: At,
    n_recovered: usize,
    n_lost: usize,
}

impl Follower {
    fn new(hub: &Hub, channel: &str) -> Self {
        let mut cf = Cf::connect(hub);
        let reply = cf.command(subscribe(channel))["subscribe"].clone();
        let at = At {
            offset: reply["offset"].as_u64().unwrap_or(0),
            epoch: reply["epoch"].as_str().expect("an epoch").to_owned(),
        };
        Self { at, n_recovered: 0, n_lost: 0 }
    }

    #[track_caller]
    fn take(&mut self, publication: &Value) {
        let offset = publication["offset"].as_u64().expect("an offset");
        assert_eq!(offset, self.at.offset + 1, "{publication}");
        assert_eq!(publication["data"]["n"].as_str().map(str::len), Some(20), "{publication}");
        self.at.offset = offset;
    }

    /// Comes back, and stays for a while.
    fn visit(&mut self, hub: &Hub, channel: &str, stay: Duration) {
        let mut cf = Cf::connect(hub);
        let reply = cf.command(recover(channel, &self.at))["subscribe"].clone();
        assert_eq!(reply["epoch"], json!(self.at.epoch), "{reply}");
        if reply["recovered"] == true {
            self.n_recovered += 1;
            assert_eq!(reply["offset"], json!(self.at.offset), "{reply}");
            let missed = reply["publications"].as_array().cloned().unwrap_or_default();
            missed.iter().for_each(|publication| self.take(publication));
        } else {
            self.n_lost += 1;
            assert_eq!(reply["publications"], Value::Null, "{reply}");
            self.at.offset = reply["offset"].as_u64().unwrap_or(0);
        }
        let end = Instant::now() + stay;
        while let Some(live) = cf.next_pub(end.saturating_duration_since(Instant::now())) {
            self.take(&live.body);
        }
        assert!(cf.pushes.is_empty() && !cf.raw.is_closed(), "{:?}", cf.pushes);
    }
}

#[test]
fn nothing_falls_between_history_and_live() {
    let (redis, file) = (Redis::start(), namespaces());
    let proxy = Proxy::start(redis.addr());
    proxy.delay(Direction::Up, ms(0), ms(15));
    proxy.delay(Direction::Down, ms(0), ms(15));
    let node = |url: String| {
        let hub = Hub::builder().env("HUB_CONFIG", file.path().display());
        hub.env("HUB_REDIS_URL", url).start().wait_ready()
    };
    let nodes = [node(redis.url()), node(proxy.url())];
    let channel = "long:race";
    let (n_clients, n_visits) = (scaled(6, 20), scaled(40, 50));
    let (done, n_published) = (AtomicBool::new(false), AtomicUsize::new(0));
    // The moments are the machine's own.
    std::thread::scope(|scope| {
        for hub in &nodes {
            let (done, n_published) = (&done, &n_published);
            scope.spawn(move || {
                while !done.load(SeqCst) {
                    let n = n_published.fetch_add(1, SeqCst);
                    publish(hub, channel, json!({ "n": format!("{n:020}") }));
                }
            });
        }
        let followers: Vec<_> = (0..n_clients)
            .map(|client| {
                let nodes = &nodes;
                scope.spawn(move || {
                    let mut rng = Rng::quiet();
                    let mut follower = Follower::new(&nodes[client % 2], channel);
                    for _ in 0..n_visits {
                        let hub = &nodes[rng.between(0, 1) as usize];
                        follower.visit(hub, channel, ms(rng.between(0, 30)));
                    }
                    (follower.n_recovered, follower.n_lost)
                })
            })
            .collect();
        let ends: Vec<_> = followers.into_iter().map(|follower| follower.join()).collect();
        done.store(true, SeqCst);
        for end in ends {
            let (n_recovered, n_lost) = end.expect("followed");
            assert_eq!((n_recovered, n_lost), (n_visits, 0));
        }
    });
    assert!(n_published.load(SeqCst) > n_visits, "{} published", n_published.load(SeqCst));
    for hub in &nodes {
        assert_eq!(hub.metrics().get("hubbub_gaps_total{reason=\"offset\"}"), 0.0);
    }
}
