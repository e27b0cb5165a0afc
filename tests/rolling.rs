//! Promise: two nodes behind a balancer are restarted one after the other, at work, and no client misses
//! a publication or is asked twice; nobody is stampeded; and the registry knows who is where in the end.
//! (Scenario 51.)

mod common;

use common::balancer::Balancer;
use common::follower::{Accepted, Follower, follow, tops};
use common::past::namespaces;
use common::registry::{connections, nodes};
use common::traffic::Attempt;
use common::ws::Dial;
use common::{Cf, Hub, Redis, SOON, cf, eventually, hub, ms, scaled, secs, sys};
use serde_json::json;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Before a client that was told to go dials again, as the SDKs do it: at random, up to half a second.
const BACKOFF_MS_MAX: u64 = 500;
const PUBLISH_EVERY: Duration = Duration::from_millis(20);

/// The script that `hubbub script` prints, as a back end runs it.
struct Publisher<'a> {
    redis: &'a Redis,
    hash: String,
    channels: Vec<String>,
    next_at: Instant,
    attempts: Vec<Attempt>,
}

impl<'a> Publisher<'a> {
    fn new(redis: &'a Redis, channels: &[String]) -> Self {
        let script = hub::run(&["script"], &[]).stdout;
        let hash = redis.command(&["SCRIPT", "LOAD", &script]).text();
        let channels = channels.to_vec();
        Self { redis, hash, channels, next_at: Instant::now(), attempts: Vec::new() }
    }

    fn step(&mut self) {
        if Instant::now() < self.next_at {
            return;
        }
        self.next_at = Instant::now() + PUBLISH_EVERY;
        let seq = self.attempts.len();
        let channel = &self.channels[seq % self.channels.len()];
        let keys = ["stream", "meta"].map(|kind| format!("ws:{kind}:{{{channel}}}"));
        let payload = json!({ "seq": seq }).to_string();
        let began = Instant::now();
        let call =
            ["EVALSHA", &self.hash, "2", &keys[0], &keys[1], channel, &payload, "1000", "60000"];
        let reply = self.redis.command(&call);
        assert!(matches!(reply, common::Reply::Array(_)), "{reply:?}");
        let (channel, ended) = (channel.clone(), Instant::now());
        self.attempts.push(Attempt { seq, channel, began, ended, accepted: true });
    }
}

/// Clients that come back through the balancer.
struct Fleet<'a> {
    balancer: &'a Balancer,
    followers: Vec<Follower>,
    /// When those who are away dial again.
    due: Vec<Option<Instant>>,
    closes: Vec<Instant>,
    n_refused: usize,
    rng: common::Rng,
}

impl<'a> Fleet<'a> {
    fn open(balancer: &'a Balancer, hubs: &[Hub], n: usize, channels: &[String]) -> Self {
        let open = |at: usize| {
            // One channel each; the first connection is made at a node, and moved to the balancer.
            let own = &channels[at % channels.len()..][..1];
            let mut follower = Follower::open(&hubs[at % hubs.len()], own);
            follower.cut();
            follower
        };
        let followers: Vec<Follower> = (0..n).map(open).collect();
        let due = vec![Some(Instant::now()); n];
        let rng = common::Rng::seeded();
        Self { balancer, followers, due, closes: Vec::new(), n_refused: 0, rng }
    }

    fn step(&mut self) {
        follow(&mut self.followers, ms(10), |_| false);
        for at in 0..self.followers.len() {
            match self.due[at] {
                None if self.followers[at].is_gone() => {
                    let code = self.followers[at].close_code();
                    assert_eq!(code, Some(3001), "nobody is cut");
                    self.closes.push(Instant::now());
                    self.wait(at);
                }
                Some(due) if Instant::now() >= due => match dial(self.balancer.addr) {
                    Some(cf) => {
                        self.followers[at].come_back_over(cf);
                        self.due[at] = None;
                    }
                    None => {
                        self.n_refused += 1;
                        self.wait(at);
                    }
                },
                _ => {}
            }
        }
    }

    fn wait(&mut self, at: usize) {
        self.due[at] = Some(Instant::now() + ms(self.rng.between(1, BACKOFF_MS_MAX)));
    }

    fn is_back(&self) -> bool {
        self.due.iter().all(Option::is_none) && self.followers.iter().all(Follower::is_live)
    }

    /// The most that were told to go within one second.
    fn peak_per_second(&self) -> usize {
        let within = |from: &Instant| {
            let end = *from + secs(1);
            self.closes.iter().filter(|close| (*from..end).contains(close)).count()
        };
        self.closes.iter().map(within).max().unwrap_or(0)
    }
}

/// `None`: the balancer had no node for it.
fn dial(addr: SocketAddr) -> Option<Cf> {
    let mut cf = Cf::over(Dial::new_at(addr, cf::PATH).try_open().ok()?);
    let reply = cf.command(json!({ "connect": {} }));
    assert!(reply["connect"].is_object(), "{reply}");
    Some(cf)
}

struct Restart {
    /// From SIGTERM until everybody was back.
    took: Duration,
    peak_per_second: usize,
    n_moved: usize,
}

#[test]
fn one_node_after_the_other_behind_a_balancer() {
    let (redis, file) = (Redis::start(), namespaces());
    let drain = secs(scaled(6, 20) as u64);
    let addrs = [0; 2].map(|_| SocketAddr::from(([127, 0, 0, 1], sys::lasting_port())));
    let node = |at: usize| {
        let builder = Hub::builder().redis(&redis).env("HUB_CONFIG", file.path().display());
        let builder = builder.env("HUB_LISTEN", addrs[at]).env("HUB_NODE_ID", format!("node-{at}"));
        builder.env("HUB_DRAIN_TIMEOUT", format!("{drain:?}")).start().wait_ready()
    };
    let mut hubs = vec![node(0), node(1)];
    let balancer = Balancer::start(addrs);
    let channels: Vec<String> = (0..4).map(|n| format!("long:{n}")).collect();
    let n_clients = scaled(120, 2_000);
    let mut publisher = Publisher::new(&redis, &channels);
    let mut fleet = Fleet::open(&balancer, &hubs, n_clients, &channels);
    let end = Instant::now() + secs(60);
    while !fleet.is_back() {
        assert!(Instant::now() < end, "they don't get in");
        publisher.step();
        fleet.step();
    }

    for at in 0..2 {
        let restart = restart(&mut hubs, at, &node, &mut publisher, &mut fleet);
        let Restart { took, peak_per_second, n_moved } = restart;
        // So few clients on a busy machine say less: then it is enough that they are spread.
        let rate = n_moved as f64 / drain.as_secs_f64();
        let bound = if scaled(0, 1) == 1 { rate * 1.5 } else { rate * 4.0 };
        println!(
            "node-{at}: {n_moved} moved, at most {peak_per_second} a second (bound {bound:.1}), \
             back after {took:?}"
        );
        assert!(
            peak_per_second as f64 <= bound,
            "a stampede: {peak_per_second} of {bound} a second"
        );
        assert!(n_moved >= n_clients / 4, "{n_moved} were on it");
    }

    let tops = tops(&hubs[0], &channels);
    let has_all = |follower: &Follower| follower.has_all(&tops);
    assert!(follow(&mut fleet.followers, SOON, has_all), "everybody has everything");
    for follower in &fleet.followers {
        follower.assert_complete(&Accepted::of(&publisher.attempts));
        assert_eq!(
            (follower.n_gaps(), follower.n_lost()),
            (0, 0),
            "nothing was even announced as lost"
        );
    }
    let n_published = publisher.attempts.len();
    println!(
        "{n_published} publications, none missing at {n_clients} clients; {} refused",
        fleet.n_refused
    );
    assert_registry(&redis, n_clients);
}

/// SIGTERM, exit, start under the same address and name; at work all the time.
fn restart(
    hubs: &mut [Hub],
    at: usize,
    node: &impl Fn(usize) -> Hub,
    publisher: &mut Publisher<'_>,
    fleet: &mut Fleet<'_>,
) -> Restart {
    let began = Instant::now();
    fleet.closes.clear();
    hubs[at].signal(libc::SIGTERM);
    while hubs[at].is_running() {
        assert!(began.elapsed() < secs(30), "it is still there");
        publisher.step();
        fleet.step();
    }
    assert_eq!(hubs[at].wait_exit(SOON).expect("exited").code(), Some(0));
    while !fleet.is_back() {
        assert!(began.elapsed() < secs(60), "they don't get back in");
        publisher.step();
        fleet.step();
    }
    let took = began.elapsed();
    hubs[at] = node(at);
    Restart { took, peak_per_second: fleet.peak_per_second(), n_moved: fleet.closes.len() }
}

/// Every client once, each on a node that lives.
fn assert_registry(redis: &Redis, n_clients: usize) {
    assert!(
        eventually(SOON, || connections(redis).len() == n_clients),
        "{}",
        connections(redis).len()
    );
    let nodes = nodes(redis);
    assert_eq!(nodes.keys().collect::<Vec<_>>(), ["node-0", "node-1"]);
    for (id, connection) in connections(redis) {
        let node = &nodes[connection["instance_id"].as_str().expect("a node")];
        assert_eq!(connection["run_id"], node["run_id"], "{id} is of a life that has ended");
    }
}
