//! Promise: clients that come and go leave nothing behind, however they go: no memory, descriptor,
//! subscription, channel, user or address. (Scenario 53.)

mod common;

use common::cf::{self, subscribe};
use common::hub::{TIME_WAIT, n_shards};
use common::registry::n_connections;
use common::ws::{CLOSE, Dial, Refused, TEXT, encode};
use common::{Cf, Hub, Raw, Redis, SOON, eventually, scaled, secs, sign, sys};
use serde_json::json;
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

const SECRET: &str = "a secret of the tests";
const PADDING_BYTES: usize = 12_000;
const N_ROUNDS: usize = 3;
/// A ping, its pong, three seconds for the closing handshake, and a bit: who has vanished is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(6);
/// Beside the tenth: what the allocator may leave in another place.
const SLACK_BYTES: u64 = 1 << 20;

fn hub(redis: &Redis) -> Hub {
    let knobs = [
        ("HUB_TOKEN_HMAC_SECRET", SECRET),
        ("HUB_API_KEY", "k"),
        ("HUB_TRUSTED_PROXIES", "127.0.0.0/8"),
        ("HUB_CONNECTIONS_PER_IP", "1"),
        ("HUB_CONNECTIONS_PER_USER", "1"),
        ("HUB_PING_INTERVAL", "1s"),
        ("HUB_PONG_TIMEOUT", "500ms"),
        ("HUB_WRITE_TIMEOUT", "1s"),
        ("HUB_UNSUBSCRIBE_DELAY", "100ms"),
    ];
    let builder = Hub::builder().without_dev().redis(redis);
    knobs.into_iter().fold(builder, |builder, (name, value)| builder.env(name, value)).start()
}

/// One user at one address, with three channels of its own.
struct Visitor(u64);

impl Visitor {
    fn channels(&self) -> [String; 3] {
        ["a", "b", "c"].map(|kind| format!("{kind}:{:x}", self.0))
    }

    fn token(&self) -> String {
        sign(&json!({ "sub": format!("user-{}", self.0) }), SECRET)
    }

    fn dial(&self, hub: &Hub, path: &str) -> Result<Raw, Refused> {
        let [.., a, b, c] = self.0.to_be_bytes();
        Dial::new(hub, path).header("X-Forwarded-For", &format!("10.{a}.{b}.{c}")).try_open()
    }

    /// In, with a large first message; without waiting for any answer to it if `hasty`.
    fn come(&self, hub: &Hub, hasty: bool) -> Raw {
        let padding = "x".repeat(PADDING_BYTES);
        if self.0.is_multiple_of(4) {
            let [a, b, c] = self.channels();
            let path = format!("/ws?channel={a}&channel={b}&channel={c}&token={}", self.token());
            let mut raw = self.dial(hub, &path).expect("a fresh user at a fresh address");
            raw.send_text(&padding);
            return raw;
        }
        let mut cf = Cf::over(self.dial(hub, cf::PATH).expect("a fresh address"));
        let connect = json!({ "connect": { "token": self.token(), "data": padding } });
        let commands = self.channels().map(|channel| subscribe(&channel));
        let ids = cf.send([vec![connect], commands.to_vec()].concat());
        for id in ids.iter().filter(|_| !hasty) {
            let reply = cf.reply(*id, SOON).expect("a reply");
            assert!(reply["error"].is_null(), "{reply}");
        }
        cf.raw
    }

    fn is_welcome(&self, hub: &Hub) -> bool {
        let Ok(raw) = self.dial(hub, cf::PATH) else { return false };
        let mut cf = Cf::over(raw);
        let ids = cf.send(vec![json!({ "connect": { "token": self.token() } })]);
        let reply = cf.reply(ids[0], SOON);
        cf.raw.send_frame(CLOSE, &1000u16.to_be_bytes());
        reply.is_some_and(|reply| reply["connect"].is_object())
    }
}

/// Those that vanished hold their sockets until the hub has forgotten them.
#[derive(Default)]
struct Vanished(VecDeque<(Instant, Raw)>);

impl Vanished {
    fn add(&mut self, raw: Raw) {
        sys::vanish(raw.fd());
        self.0.push_back((Instant::now(), raw));
        while self.0.front().is_some_and(|(since, _)| since.elapsed() > FORGOTTEN_AFTER) {
            self.0.pop_front();
        }
    }
}

/// Comes and goes for so long; returns how many did.
fn churn(hub: &Hub, redis: &Redis, first: u64, how_long: Duration) -> u64 {
    let (began, mut client) = (Instant::now(), redis.client());
    let mut vanished = Vanished::default();
    let mut n = 0;
    while began.elapsed() < how_long {
        let visitor = Visitor(first + n);
        let mut raw = visitor.come(hub, n.is_multiple_of(5));
        // Some have something to read when they go.
        if n.is_multiple_of(7) {
            client.publish(&visitor.channels()[0], &[b'x'; 5_000]);
        }
        match n % 3 {
            0 => {
                raw.send_frame(CLOSE, &1000u16.to_be_bytes());
                assert!(raw.wait_eof(SOON), "the hub ends it");
            }
            // In the middle of a frame.
            1 => {
                raw.send_bytes(&encode(TEXT, &[b'x'; 1_000])[..500]);
                raw.reset();
            }
            _ => vanished.add(raw),
        }
        n += 1;
    }
    // As many as there still are vanish for as long as it takes.
    assert!(eventually(SOON, || hub.metric_sum("hubbub_connections") == 0.0), "all forgotten");
    n
}

fn n_threads(hub: &Hub) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", hub.pid())).expect("it runs").count()
}

#[derive(PartialEq, Debug)]
struct Idle {
    n_fds: usize,
    n_threads: usize,
    n_users: u64,
    redis: BTreeSet<String>,
    n_registered: usize,
    gauges: [f64; 4],
}

impl Idle {
    const GAUGES: [&str; 4] =
        ["hubbub_connections", "hubbub_subscriptions", "hubbub_channels", "hubbub_outbox_bytes"];

    fn of(hub: &Hub, redis: &Redis) -> Self {
        let info = hub.http_with("POST", "/api/info", &[("X-API-Key", "k")], "{}").json();
        let metrics = hub.metrics();
        Self {
            n_fds: hub.n_fds(),
            n_threads: n_threads(hub),
            n_users: info["result"]["nodes"][0]["num_users"].as_u64().expect("a number"),
            redis: redis.channels("*").into_iter().collect(),
            n_registered: n_connections(redis),
            gauges: Self::GAUGES.map(|name| metrics.sum(name)),
        }
    }
}

#[test]
fn rounds_of_coming_and_going_leave_nothing_behind() {
    let redis = Redis::start();
    let hub = hub(&redis).wait_ready();
    assert!(Visitor(0).is_welcome(&hub));
    assert!(eventually(SOON, || hub.metric_sum("hubbub_connections") == 0.0));
    assert!(eventually(SOON, || Idle::of(&hub, &redis).gauges == [0.0; 4]));
    let base = Idle::of(&hub, &redis);
    let (mut first, mut grown) = (1, Vec::new());
    for round in 1..=N_ROUNDS {
        let n = churn(&hub, &redis, first, secs(scaled(2, 600) as u64));
        let is_idle = || Idle::of(&hub, &redis) == base;
        assert!(eventually(secs(20), is_idle), "{:?} and not {base:?}", Idle::of(&hub, &redis));
        // Those that have no channel, of each transport and shard.
        let n_cohorts = hub.metric_sum("hubbub_cohorts");
        assert!(n_cohorts <= 2.0 * n_shards() as f64, "{n_cohorts} cohorts");
        // One connection is all that each may have.
        for visitor in (first..first + n).step_by(1 + n as usize / 30).map(Visitor) {
            assert!(visitor.is_welcome(&hub), "{} is counted as being here", visitor.0);
        }
        assert!(eventually(SOON, || hub.metric_sum("hubbub_connections") == 0.0));
        grown.push(hub.anon_bytes());
        println!("round {round}: {n} came and went; RssAnon {} KiB", grown[round - 1] / 1024);
        assert!(n >= 100, "{n} are no churn");
        first += n;
    }
    let in_kernel = || hub.sockets().iter().filter(|socket| socket.state != TIME_WAIT).count();
    assert!(eventually(secs(20), || in_kernel() <= 1), "{} in the kernel", in_kernel());
    let (early, late) = (grown[0], grown[N_ROUNDS - 1]);
    assert!(late <= early + early / 10 + SLACK_BYTES, "{late} after the last, {early} at first");
    assert!(hub.ready());
}
