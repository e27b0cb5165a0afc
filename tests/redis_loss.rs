//! Promise: while Redis is away hubbub says so and hangs on nobody; when it is back everything
//! works again by itself, for old subscribers and new ones, on every node.

mod common;

use common::cf::{Cf, subscribe};
use common::ws::{Dial, raw_path};
use common::{Hub, QUIET, Redis, SOON, Viewer, drive, eventually, ms, secs, sys};
use serde_json::json;
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

const N_CHANNELS: usize = 20;
/// `HUB_REDIS_TIMEOUT` and a second: how long anybody may wait for an answer.
const ANSWERED: Duration = Duration::from_secs(2);
/// How soon after Redis is back everything must work.
const HEALTHY: Duration = Duration::from_secs(5);

fn node(redis: &Redis) -> Hub {
    Hub::builder().redis(redis).env("HUB_REDIS_TIMEOUT", "1s").start()
}

fn channels() -> Vec<String> {
    (0..N_CHANNELS).map(|i| format!("c{i}")).collect()
}

/// A publish of the traffic: `{"seq": n}` on channel `n % N_CHANNELS`.
struct Attempt {
    seq: usize,
    began: Instant,
    ended: Instant,
    accepted: bool,
}

/// Publishes through the nodes in turn until told to stop; every answer is one a client can use.
fn traffic(hubs: &[Hub; 2], stop: &AtomicBool) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    while !stop.load(SeqCst) {
        let seq = attempts.len();
        let channel = format!("c{}", seq % N_CHANNELS);
        let body = json!({ "channel": channel, "data": { "seq": seq } });
        let began = Instant::now();
        let response = hubs[seq / N_CHANNELS % 2].api("publish", &body);
        let accepted = response.is_result();
        let text = response.text();
        assert!(accepted || response.is_retryable(), "{} {text}", response.status);
        assert!(response.took <= ANSWERED, "answered after {:?}: {text}", response.took);
        attempts.push(Attempt { seq, began, ended: Instant::now(), accepted });
        // A steady stream, not a flood.
        sys::pause(ms(3));
    }
    attempts
}

/// A new channel can't be subscribed now: every transport says so in time, and that it may be later.
fn assert_refuses_new_channels(hub: &Hub) {
    let mut cf = Cf::connect(hub);
    let began = Instant::now();
    let error = cf.error(subscribe("new"));
    assert!(began.elapsed() <= ANSWERED, "answered after {:?}", began.elapsed());
    assert_eq!((&error["code"], &error["temporary"]), (&json!(100), &json!(true)), "{error}");
    let began = Instant::now();
    let refused = Dial::new(hub, &raw_path(&["new"])).try_open().err().expect("refused");
    assert_eq!(refused.status, 503);
    assert!(began.elapsed() <= ANSWERED, "answered after {:?}", began.elapsed());
    let published = hub.api("publish", &json!({ "channel": "new", "data": "too early" }));
    assert!(published.is_retryable(), "{} {}", published.status, published.text());
    assert!(published.took <= ANSWERED, "answered after {:?}", published.took);
}

/// Within `HEALTHY` of `back`, both nodes take new subscribers, and the next publication of each
/// channel reaches these and the old ones.
fn assert_healthy(redis: &Redis, hubs: &[&Hub], old: &mut Vec<Viewer>, back: Instant) {
    let left = || HEALTHY.saturating_sub(back.elapsed());
    for hub in hubs {
        let mut cf = Cf::connect(hub);
        for channel in ["c0", "fresh"] {
            let subscribed =
                eventually(left(), || cf.command(subscribe(channel))["subscribe"].is_object());
            assert!(subscribed, "no new subscriber {:?} after the return", back.elapsed());
        }
        old.push(Viewer::Cf { cf, channels: vec!["c0".to_owned(), "fresh".to_owned()] });
    }
    let names = channels();
    let everywhere = || names.iter().all(|name| redis.numsub(name) == hubs.len() as i64);
    assert!(eventually(left(), everywhere), "subscribed again on every node");
    names.iter().for_each(|name| _ = redis.publish(name, "\"the next\""));
    redis.publish("fresh", "\"the next\"");
    assert!(drive(old, left(), has_the_next), "the next publication reaches everyone");
    assert!(back.elapsed() <= HEALTHY, "took {:?}", back.elapsed());
    for hub in hubs {
        assert!(eventually(SOON, || hub.ready()), "ready again");
    }
}

/// Data of everything received, in order.
fn received(viewer: &Viewer) -> Vec<&str> {
    match viewer {
        Viewer::Cf { cf, .. } => cf.pubs.iter().map(|publication| &*publication.data).collect(),
        Viewer::Raw { raw, .. } => raw.frames.iter().map(|frame| frame.text()).collect(),
    }
}

fn has_the_next(viewer: &Viewer) -> bool {
    let n = received(viewer).into_iter().filter(|data| *data == "\"the next\"").count();
    n >= viewer.channels().len()
}

/// Numbers received, in order; publications of the traffic only.
fn seqs(viewer: &Viewer) -> Vec<usize> {
    let number = |data: &str| data.strip_prefix("{\"seq\":")?.strip_suffix('}')?.parse().ok();
    received(viewer).into_iter().filter_map(number).collect()
}

fn old_viewers(hubs: &[&Hub]) -> Vec<Viewer> {
    let names = channels();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let open = |hub: &&Hub| [Viewer::cf(hub, &names), Viewer::raw(hub, &names)];
    hubs.iter().flat_map(open).collect()
}

#[test]
fn redis_is_killed_and_restarted_under_traffic() {
    let mut redis = Redis::start();
    let hubs = [node(&redis).wait_ready(), node(&redis).wait_ready()];
    let both = [&hubs[0], &hubs[1]];
    let mut viewers = old_viewers(&both);
    let stop = AtomicBool::new(false);
    let (attempts, killed, restarting) = std::thread::scope(|scope| {
        let publisher = scope.spawn(|| traffic(&hubs, &stop));
        // However the test ends, the publisher must, or the scope would wait for ever.
        let _stop = StopOnDrop(&stop);
        assert!(drive(&mut viewers, SOON, |viewer| viewer.n_received() >= 100), "traffic flows");
        redis.kill();
        let killed = Instant::now();
        for hub in &hubs {
            assert!(eventually(secs(15), || hub.get("/ready").status == 503), "not ready");
            assert_eq!(hub.get("/health").status, 200, "alive");
            assert_refuses_new_channels(hub);
        }
        assert!(hubs.iter().all(|hub| hub.get("/health").status == 200), "alive");
        assert!(hubs.iter().all(|hub| hub.get("/ready").status == 503), "still not ready");
        let restarting = Instant::now();
        redis.restart();
        assert_healthy(&redis, &both, &mut viewers, Instant::now());
        let numbers: Vec<usize> = viewers.iter().map(Viewer::n_received).collect();
        let flows = |viewers: &[Viewer]| {
            viewers.iter().zip(&numbers).all(|(viewer, before)| viewer.n_received() > *before)
        };
        let flowing = eventually(SOON, || {
            viewers.iter_mut().for_each(|viewer| _ = viewer.pump());
            flows(&viewers)
        });
        assert!(flowing, "traffic goes on");
        stop.store(true, SeqCst);
        (publisher.join().expect("every answer was right"), killed, restarting)
    });
    drive(&mut viewers, QUIET, |_| false);
    assert!(viewers.iter().all(|viewer| !viewer.is_closed()), "nobody was cut off");
    assert_truthful(&attempts, &viewers, killed, restarting);
}

/// What was refused while Redis was surely away never came, what was accepted outside of the
/// outage came to everyone, and each channel kept its order.
fn assert_truthful(attempts: &[Attempt], viewers: &[Viewer], killed: Instant, restarting: Instant) {
    let outage: Vec<&Attempt> = attempts
        .iter()
        .filter(|attempt| attempt.began > killed && attempt.ended < restarting)
        .collect();
    assert!(!outage.is_empty(), "there were publishes in the outage");
    assert!(outage.iter().all(|attempt| !attempt.accepted), "accepted without Redis");
    let refused: HashSet<usize> = outage.iter().map(|attempt| attempt.seq).collect();
    let due: Vec<usize> = attempts
        .iter()
        .filter(|attempt| attempt.accepted && attempt.ended + ms(500) < killed)
        .map(|attempt| attempt.seq)
        .collect();
    for viewer in viewers.iter().filter(|viewer| viewer.channels().len() == N_CHANNELS) {
        let got = seqs(viewer);
        let mut last: BTreeMap<usize, usize> = BTreeMap::new();
        for seq in &got {
            assert!(!refused.contains(seq), "{seq} was refused, and delivered later");
            let before = last.insert(seq % N_CHANNELS, *seq);
            assert!(before.is_none_or(|before| before < *seq), "{seq} after {before:?}");
        }
        let got: HashSet<usize> = got.into_iter().collect();
        let n_lost = due.iter().filter(|seq| !got.contains(seq)).count();
        assert_eq!(n_lost, 0, "of {} accepted well before the outage", due.len());
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn redis_hangs_and_goes_on() {
    let redis = Redis::start();
    let hub = node(&redis).wait_ready();
    let mut viewers = old_viewers(&[&hub]);
    redis.stop();
    assert_refuses_new_channels(&hub);
    assert_eq!(hub.get("/health").status, 200);
    redis.cont();
    assert_healthy(&redis, &[&hub], &mut viewers, Instant::now());
    assert!(viewers.iter().all(|viewer| !viewer.is_closed()), "nobody was cut off");
}

#[test]
fn redis_is_not_there_at_the_start() {
    let mut redis = Redis::absent();
    let hub = node(&redis);
    assert_eq!(hub.get("/health").status, 200);
    assert_eq!(hub.get("/ready").status, 503);
    assert_refuses_new_channels(&hub);
    redis.restart();
    let back = Instant::now();
    let subscribed = eventually(HEALTHY, || {
        let names = channels();
        let mut cf = Cf::connect(&hub);
        names.iter().all(|name| cf.command(subscribe(name))["subscribe"].is_object())
    });
    assert!(subscribed, "no subscribers {:?} after Redis came", back.elapsed());
    let mut viewers = old_viewers(&[&hub]);
    assert_healthy(&redis, &[&hub], &mut viewers, back);
}
