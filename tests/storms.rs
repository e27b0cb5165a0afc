//! Promise: when everybody is cut in one instant and comes back at once, the node lets them in, reads each
//! history for many together, goes on publishing, and all have all that they missed. (Scenario 46; `recovery_storms`
//! is about those who have missed a lot.)

mod common;

use common::cf::PATH;
use common::follower::{Accepted, Follower, follow, tops};
use common::hub::Builder;
use common::ws::{Answer, Dial, Upgrade};
use common::{
    Attempt, Cf, Direction, Hub, Proxy, Pump, Redis, Rng, SOON, Traffic, drive, ms, past, scaled,
    secs,
};
use serde_json::json;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

const SUBSCRIPTIONS: usize = 5;
/// How soon after the drop the first is let in.
const FIRST_ACCEPTED: Duration = Duration::from_secs(1);
const ALL_BACK: Duration = Duration::from_secs(60);
/// `HUB_HANDSHAKE_TIMEOUT` and a bit: nobody waits for longer to be let in or sent away.
const ANSWERED: Duration = Duration::from_secs(11);

/// Histories that a node reads at a time.
const READS_MAX: u64 = 16;

/// When a client that was sent away, or cut, tries again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum BackOff {
    None,
    /// As the SDKs do: half a second, and by chance up to as much, doubled each time.
    Usual,
}

enum Way {
    There,
    Coming { upgrade: Upgrade, since: Instant },
    SentAway,
    Waiting { until: Instant },
}

/// A client on its way back.
struct Comer {
    follower: Follower,
    way: Way,
    n_tries: u32,
    /// How often it was refused, and how often cut.
    n_refused: usize,
    n_cut: usize,
    let_in: Option<Instant>,
}

impl Comer {
    fn new(follower: Follower) -> Self {
        Self { follower, way: Way::There, n_tries: 0, n_refused: 0, n_cut: 0, let_in: None }
    }

    fn wait(&mut self, back_off: BackOff, rng: &mut Rng) {
        let pause_ms = match back_off {
            BackOff::None => 0,
            BackOff::Usual => 500 + rng.between(0, 500 << self.n_tries.min(5)),
        };
        self.n_tries += 1;
        self.way = Way::Waiting { until: Instant::now() + ms(pause_ms) };
    }

    /// Dials when it is time, and notices what has ended.
    fn step(&mut self, hub: &Hub, back_off: BackOff, rng: &mut Rng) {
        match &self.way {
            Way::Waiting { until } if *until <= Instant::now() => {
                let upgrade = Dial::new(hub, PATH).begin();
                self.way = Way::Coming { upgrade, since: Instant::now() };
            }
            Way::Waiting { .. } => {}
            Way::SentAway => {
                self.n_refused += 1;
                self.wait(back_off, rng);
            }
            Way::Coming { since, .. } => assert!(since.elapsed() < ANSWERED, "left hanging"),
            Way::There if self.follower.is_gone() => {
                let code = self.follower.close_code();
                assert!(code.is_none_or(|code| (3_000..3_500).contains(&code)), "{code:?}");
                self.n_cut += 1;
                self.follower.cut();
                self.wait(back_off, rng);
            }
            Way::There => self.follower.try_again(),
        }
    }

    fn is_back(&self) -> bool {
        matches!(self.way, Way::There) && self.follower.is_live()
    }
}

impl Pump for Comer {
    fn fd(&self) -> RawFd {
        match &self.way {
            Way::There => self.follower.fd(),
            Way::Coming { upgrade, .. } => upgrade.fd(),
            Way::SentAway | Way::Waiting { .. } => -1,
        }
    }

    fn pump(&mut self) -> bool {
        match std::mem::replace(&mut self.way, Way::There) {
            Way::There => return self.follower.pump(),
            way @ (Way::SentAway | Way::Waiting { .. }) => self.way = way,
            Way::Coming { upgrade, since } => match upgrade.poll() {
                Answer::Pending(upgrade) => self.way = Way::Coming { upgrade, since },
                Answer::HungUp => self.way = Way::SentAway,
                Answer::Refused(refused) => {
                    assert_eq!(refused.status, 503, "{refused:?}");
                    assert!(refused.header("retry-after").is_some(), "{refused:?}");
                    self.way = Way::SentAway;
                }
                Answer::Open(raw) => {
                    let mut cf = Cf::over(raw);
                    cf.send(vec![json!({ "connect": {} })]);
                    self.follower.come_back_over(cf);
                    self.let_in = Some(Instant::now());
                }
            },
        }
        true
    }
}

/// How one drop went.
struct Return {
    dropped: Instant,
    all_back: Instant,
    /// Of histories in Redis.
    n_reads: u64,
}

struct Storm {
    redis: Redis,
    proxy: Proxy,
    hub: Hub,
    channels: Vec<String>,
    comers: Vec<Comer>,
    rng: Rng,
    _namespaces: tempfile::NamedTempFile,
}

impl Storm {
    fn brewing(n: usize, set: impl Fn(Builder) -> Builder) -> Self {
        let (redis, namespaces) = (Redis::start(), past::namespaces());
        let proxy = Proxy::start(redis.addr());
        let builder = Hub::builder().env("HUB_CONFIG", namespaces.path().display());
        // One thread reads for all: each round of it takes longer than a pong may.
        let builder = builder.env("HUB_PING_INTERVAL", "10m").env("HUB_PONG_TIMEOUT", "9m");
        let hub = set(builder).env("HUB_REDIS_URL", proxy.url()).start().wait_ready();
        let n_channels = scaled(10, 100);
        let channels: Vec<String> = (0..n_channels).map(|i| format!("long:{i}")).collect();
        let open = |i: usize| {
            let own = (0..SUBSCRIPTIONS).map(|k| channels[(i + k) % n_channels].clone());
            Follower::open(&hub, &own.collect::<Vec<_>>())
        };
        let mut followers: Vec<Follower> = (0..n).map(open).collect();
        assert!(follow(&mut followers, secs(60), Follower::is_live));
        let comers = followers.into_iter().map(Comer::new).collect();
        let rng = Rng::seeded();
        Self { redis, proxy, hub, channels, comers, rng, _namespaces: namespaces }
    }

    /// Drops all, and waits until all are back.
    fn drop_all(&mut self, back_off: BackOff) -> Return {
        let normal_bytes = self.hub.anon_bytes();
        let mut peak_bytes = normal_bytes;
        let n_reads = self.n_reads();
        let dropped = Instant::now();
        for comer in &mut self.comers {
            comer.follower.reset();
            (comer.n_refused, comer.n_cut, comer.n_tries, comer.let_in) = (0, 0, 0, None);
            comer.wait(back_off, &mut self.rng);
        }
        let is_all_back = |comers: &[Comer]| comers.iter().all(Comer::is_back);
        while !is_all_back(&self.comers) {
            let n_back = self.comers.iter().filter(|comer| comer.is_back()).count();
            assert!(dropped.elapsed() < ALL_BACK, "{n_back} of {} are back", self.comers.len());
            self.drive(ms(20), back_off);
            peak_bytes = peak_bytes.max(self.hub.anon_bytes());
        }
        let all_back = Instant::now();
        let n_reads = self.n_reads() - n_reads;
        let first = self.comers.iter().filter_map(|comer| comer.let_in).min();
        let first = first.expect("somebody was let in") - dropped;
        println!(
            "{back_off:?}: first after {first:?}, all {:?}; {n_reads} reads for {}; refused {}, cut {}; \
             {} KiB, {} at the peak",
            all_back - dropped,
            self.n_subscriptions(),
            self.comers.iter().map(|comer| comer.n_refused).sum::<usize>(),
            self.comers.iter().map(|comer| comer.n_cut).sum::<usize>(),
            normal_bytes >> 10,
            peak_bytes >> 10,
        );
        // The pause before the first dial is the clients' own.
        let own = if back_off == BackOff::Usual { ms(500) } else { ms(0) };
        assert!(first < FIRST_ACCEPTED + own, "{first:?}");
        // What waits for an answer takes several times as much in a debug build.
        let times = if cfg!(debug_assertions) { 4 } else { 2 };
        assert!(peak_bytes < times * normal_bytes, "{peak_bytes} after {normal_bytes}");
        Return { dropped, all_back, n_reads }
    }

    /// All have all, and whoever published meanwhile didn't wait for those who came.
    fn settle(&mut self, traffic: Traffic, returns: &[Return]) {
        let attempts = traffic.finish();
        let tops = tops(&self.hub, &self.channels);
        let end = Instant::now() + SOON;
        while !self.comers.iter().all(|comer| comer.follower.has_all(&tops)) {
            assert!(Instant::now() < end, "some don't get there");
            self.drive(ms(20), BackOff::None);
        }
        assert!(attempts.iter().all(|attempt| attempt.accepted), "some weren't published");
        let accepted = Accepted::of(&attempts);
        for comer in &self.comers {
            comer.follower.assert_complete(&accepted);
            assert_eq!(comer.follower.n_lost(), 0, "it missed too much");
        }
        let is_meanwhile = |one: &&Attempt| {
            returns.iter().any(|it| one.ended > it.dropped && one.began < it.all_back)
        };
        let meanwhile = attempts.iter().filter(is_meanwhile);
        let mut took: Vec<Duration> = meanwhile.map(Attempt::took).collect();
        took.sort();
        let p99 = took[took.len() * 99 / 100];
        println!("{} publishes meanwhile: p99 {p99:?}", took.len());
        assert!(p99 < secs(1), "{p99:?}");
        assert!(self.hub.is_running() && self.hub.ready());
        assert_eq!(self.hub.metric_sum("hubbub_shard_panics_total"), 0.0);
    }

    /// Published steadily; each has seen something, so that it knows what to miss.
    fn publish(&mut self) -> Traffic {
        let traffic = Traffic::start(&[&self.hub], &self.channels, 4, 50);
        let end = Instant::now() + SOON;
        while !self.comers.iter().all(|comer| comer.follower.n_seen() > 0) {
            assert!(Instant::now() < end, "nothing comes");
            self.drive(ms(20), BackOff::None);
        }
        traffic
    }

    fn drive(&mut self, how_long: Duration, back_off: BackOff) {
        for comer in &mut self.comers {
            comer.step(&self.hub, back_off, &mut self.rng);
        }
        drive(&mut self.comers, how_long, |_| false);
    }

    /// Every script looks at a stream's newest entry first; those that publish also add one.
    fn n_reads(&self) -> u64 {
        self.redis.n_calls("xrevrange") - self.redis.n_calls("xadd")
    }

    fn n_subscriptions(&self) -> u64 {
        (self.comers.len() * SUBSCRIPTIONS) as u64
    }
}

fn n_clients() -> usize {
    scaled(300, 5_000)
}

/// More than may be shaking hands at a time, and yet whoever publishes meanwhile keeps its connection.
#[test]
fn all_come_back_at_once_and_again_after_a_pause() {
    let mut storm =
        Storm::brewing(n_clients(), |builder| builder.env("HUB_HANDSHAKES_MAX", n_clients() / 10));
    let traffic = storm.publish();
    let returns = [BackOff::None, BackOff::Usual].map(|back_off| storm.drop_all(back_off));
    assert!(returns[0].n_reads < storm.n_subscriptions() / 2, "{} reads", returns[0].n_reads);
    storm.settle(traffic, &returns);
}

/// Each command takes 20 ms longer to be answered; what is pipelined takes them together.
#[test]
fn all_come_back_to_a_slow_redis() {
    let mut storm = Storm::brewing(n_clients(), |builder| builder);
    let slow = ms(20);
    storm.proxy.delay(Direction::Down, slow, slow);
    let traffic = storm.publish();
    let returns = [BackOff::None, BackOff::Usual].map(|back_off| storm.drop_all(back_off));
    assert!(returns[0].n_reads < storm.n_subscriptions() / 2, "{} reads", returns[0].n_reads);
    for Return { dropped, all_back, n_reads } in &returns {
        let n_max = READS_MAX * (1 + (*all_back - *dropped).as_millis() / slow.as_millis()) as u64;
        assert!(
            *n_reads <= n_max,
            "{n_reads} reads, and not {n_max}: more than {READS_MAX} at a time"
        );
    }
    storm.settle(traffic, &returns);
}

/// Over `HUB_CONNECT_RATE`: who isn't let in is told so.
#[test]
fn who_is_not_let_in_at_once_is_told_so_and_comes_later() {
    let n = scaled(200, 5_000);
    let mut storm = Storm::brewing(n, |builder| {
        let builder = builder.env("HUB_CONNECTIONS_MAX", n + 10);
        builder.env("HUB_CONNECT_RATE", format!("{}/s", n / 8))
    });
    let traffic = storm.publish();
    let back = storm.drop_all(BackOff::Usual);
    let n_refused: usize = storm.comers.iter().map(|comer| comer.n_refused).sum();
    assert!(n_refused > 0, "nobody was refused");
    let counted = storm.hub.metric_sum("hubbub_refused_total");
    assert!(counted >= n_refused as f64, "{counted} counted of {n_refused}");
    storm.settle(traffic, &[back]);
}
