//! Promise: a quiet connection is never silent for so long that a proxy in between would cut it, in
//! neither direction. (Scenario 47.)

mod common;

use common::cf::{self, Cf};
use common::ws::{Dial, raw_path};
use common::{Direction, Hub, Proxy, SOON, Viewer, drive, hub, ms, scaled, secs};
use serde_json::json;
use std::time::{Duration, Instant};

/// nginx, and most balancers, cut after a minute of silence.
const CUT_AFTER: Duration = Duration::from_secs(60);
/// Quick runs live so much faster.
fn pace() -> u32 {
    scaled(20, 1) as u32
}

/// A proxy that cuts a connection on which one direction was silent for too long.
struct Balancer {
    proxy: Proxy,
    seen: [u64; 2],
    since: [Instant; 2],
    longest: [Duration; 2],
}

const DIRECTIONS: [Direction; 2] = [Direction::Up, Direction::Down];

impl Balancer {
    fn before(hub: &Hub) -> Self {
        let now = Instant::now();
        let proxy = Proxy::start(hub.addr);
        Self { proxy, seen: [0; 2], since: [now; 2], longest: [Duration::ZERO; 2] }
    }

    fn watch(&mut self) {
        for direction in DIRECTIONS {
            let at = direction as usize;
            let n_bytes = self.proxy.n_bytes(direction);
            self.longest[at] = self.longest[at].max(self.since[at].elapsed());
            if n_bytes != self.seen[at] {
                (self.seen[at], self.since[at]) = (n_bytes, Instant::now());
            } else if self.since[at].elapsed() > CUT_AFTER / pace() {
                self.proxy.cut();
            }
        }
    }
}

#[test]
fn a_quiet_connection_outlives_proxies_that_cut_idle_ones() {
    // The default, so much faster; more time for the pong, which a busy test answers late.
    let interval = format!("{}ms", 25_000 / pace());
    let builder = Hub::builder().env("HUB_PING_INTERVAL", interval);
    let hub = builder.env("HUB_PONG_TIMEOUT", "1s").start().wait_ready();
    let mut balancers: Vec<Balancer> = (0..3).map(|_| Balancer::before(&hub)).collect();
    let channels = || vec!["quiet".to_owned()];
    let mut viewers = Vec::new();
    for (i, balancer) in balancers.iter().enumerate() {
        let dial = |path: &str| Dial::new(&hub, path).via(balancer.proxy.addr()).open();
        if i == 0 {
            viewers.push(Viewer::Raw { raw: dial(&raw_path(&["quiet"])), channels: channels() });
        } else {
            let mut cf = Cf::over(dial(cf::PATH));
            cf.command(json!({ "connect": {} }));
            cf.subscribe("quiet");
            viewers.push(Viewer::Cf { cf, channels: channels() });
        }
    }
    let began = Instant::now();
    while began.elapsed() < secs(scaled(7, 180) as u64) {
        drive(&mut viewers, ms(20), |_| false);
        balancers.iter_mut().for_each(Balancer::watch);
        let closed = viewers.iter().position(Viewer::is_closed);
        assert_eq!(closed, None, "cut after {:?}", began.elapsed());
    }
    let longest = balancers.iter().map(|balancer| balancer.longest);
    println!("longest silence, up and down: {:?}", longest.collect::<Vec<_>>());
    hub.publish("quiet", "still here");
    assert!(drive(&mut viewers, SOON, |viewer| viewer.n_received() == 1));
}

#[test]
fn the_default_ping_is_well_within_a_minute() {
    let config = hub::run(&["config"], &[]);
    assert_eq!(config.code, Some(0));
    let line = config.stdout.lines().find(|line| line.contains("HUB_PING_INTERVAL"));
    assert!(line.is_some_and(|line| line.contains("25s")), "{}", config.stdout);
}
