//! Promise: a publish never hangs on Redis: it is answered in time, and one that was refused does
//! not turn up later as if it were new. What overflows inside the node is counted, and the rest
//! arrives in order.

mod common;

use common::http::Response;
use common::hub::Builder;
use common::traffic::{healthy, losses, numbered, seen_at};
use common::{
    Attempt, Cf, Direction, Hub, Proxy, QUIET, Redis, SOON, Traffic, Viewer, drive, eventually, ms,
    scaled, secs, sys,
};
use serde_json::json;
use std::ops::Range;
use std::time::{Duration, Instant};

/// `HUB_REDIS_TIMEOUT` of the nodes here.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How long anybody may wait for an answer, and how late a publication may come.
const IN_TIME: Duration = Duration::from_secs(2);
/// How soon after the end of a fault everything must work.
const HEALTHY: Duration = Duration::from_secs(5);

fn node(url: &str) -> Builder {
    Hub::builder().env("HUB_REDIS_URL", url).env("HUB_REDIS_TIMEOUT", "1s")
}

fn channels(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("c{i}")).collect()
}

fn viewers(hub: &Hub, names: &[String]) -> Vec<Viewer> {
    names.iter().map(|name| Viewer::raw(hub, &[name])).collect()
}

/// Each was answered in time, and came in time or not at all.
fn assert_in_time(attempts: &[Attempt], seen: &[Viewer]) {
    let slowest = attempts.iter().map(Attempt::took).max().expect("something was published");
    let refused: Vec<&Attempt> = attempts.iter().filter(|attempt| !attempt.accepted).collect();
    let seen_at = seen_at(seen);
    let late = attempts.iter().filter_map(|attempt| {
        let late = seen_at.get(&attempt.seq)?.saturating_duration_since(attempt.began);
        (late > IN_TIME).then_some(late)
    });
    let late: Vec<Duration> = late.collect();
    let n_unknown = refused.iter().filter(|attempt| seen_at.contains_key(&attempt.seq)).count();
    println!(
        "{} tried, {} refused, slowest answer {slowest:?}, {n_unknown} refused and seen, {} late",
        attempts.len(),
        refused.len(),
        late.len()
    );
    assert!(!refused.is_empty(), "there was an outage");
    assert!(slowest <= IN_TIME, "answered after {slowest:?}");
    assert!(late.is_empty(), "{} came late, up to {:?}", late.len(), late.iter().max());
}

/// From `back` on a publish is accepted again within the limit.
fn assert_accepts_again(hub: &Hub, back: Instant) {
    let accepted = eventually(HEALTHY.saturating_sub(back.elapsed()), || {
        hub.api("publish", &json!({ "channel": "again", "data": 1 })).is_result()
    });
    assert!(accepted, "no publish accepted {:?} after the return", back.elapsed());
    println!("accepted again after {:?}", back.elapsed());
}

#[test]
fn publishing_while_redis_is_away() {
    let outage = secs(scaled(4, 120) as u64);
    let mut redis = Redis::start();
    let hub = node(&redis.url()).start().wait_ready();
    let names = channels(8);
    let mut seen = viewers(&hub, &names);
    let traffic = Traffic::start(&[&hub], &names, 8, scaled(400, 1_000));
    assert!(drive(&mut seen, SOON, |viewer| viewer.n_received() >= 3), "traffic flows");
    redis.kill();
    let killed = Instant::now();
    drive(&mut seen, outage / 4, |_| false);
    let rss = hub.anon_bytes();
    drive(&mut seen, outage.saturating_sub(killed.elapsed()), |_| false);
    let grown = hub.anon_bytes().saturating_sub(rss) >> 10;
    redis.restart();
    let back = Instant::now();
    assert_accepts_again(&hub, back);
    healthy(&redis, &[&hub], &mut seen, back, HEALTHY);
    let attempts = traffic.finish();
    drive(&mut seen, TIMEOUT, |_| false);
    assert_in_time(&attempts, &seen);
    println!("{grown} KiB grown");
    assert!(grown <= 4 << 10, "{grown} KiB grown while nothing could be published");
}

/// Publishes of one client, none waiting for another's answer; each must fail, and may be retried.
fn publish_in_vain(hub: &Hub, names: &[String], seqs: Range<usize>) -> Vec<Attempt> {
    let mut cf = Cf::connect(hub);
    let channel = |seq: usize| names[seq % names.len()].clone();
    let publish = |seq| json!({ "publish": { "channel": channel(seq), "data": { "seq": seq } } });
    let began = Instant::now();
    let ids = cf.send(seqs.clone().map(publish).collect());
    let answered = |(seq, id)| {
        let reply = cf.reply(id, SOON).unwrap_or_else(|| panic!("no answer to publish {seq}"));
        let error = &reply["error"];
        assert_eq!((&error["code"], &error["temporary"]), (&json!(100), &json!(true)), "{reply}");
        let ended = Instant::now();
        Attempt { seq, channel: channel(seq), began, ended, accepted: false }
    };
    seqs.zip(ids).map(answered).collect()
}

#[test]
fn publishing_while_redis_is_frozen() {
    let freeze = secs(scaled(4, 60) as u64);
    let redis = Redis::start();
    let hub = node(&redis.url()).start().wait_ready();
    let names = channels(32);
    let mut seen = viewers(&hub, &names);
    let traffic = Traffic::start(&[&hub], &names, 32, scaled(400, 1_000));
    assert!(drive(&mut seen, SOON, |viewer| viewer.n_received() >= 3), "traffic flows");
    redis.stop();
    let stopped = Instant::now();
    let in_vain = publish_in_vain(&hub, &names, 1_000_000..1_000_500);
    let rss = hub.anon_bytes();
    drive(&mut seen, freeze.saturating_sub(stopped.elapsed()), |_| false);
    let grown = hub.anon_bytes().saturating_sub(rss) >> 10;
    redis.cont();
    let back = Instant::now();
    drive(&mut seen, QUIET, |_| false);
    assert_accepts_again(&hub, back);
    healthy(&redis, &[&hub], &mut seen, back, HEALTHY);
    let mut attempts = traffic.finish();
    attempts.extend(in_vain);
    drive(&mut seen, TIMEOUT, |_| false);
    assert_in_time(&attempts, &seen);
    println!("{grown} KiB grown");
    assert!(grown <= 4 << 10, "{grown} KiB grown while nothing could be published");
}

#[test]
fn publishing_over_a_link_that_is_slower_than_the_time_limit() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.addr());
    let hubs = [node(&proxy.url()).start().wait_ready(), Hub::on(&redis)];
    let names = channels(16);
    let mut seen = viewers(&hubs[1], &names);
    let traffic = Traffic::start(&[&hubs[0]], &names, 16, 200);
    assert!(drive(&mut seen, SOON, |viewer| viewer.n_received() >= 3), "traffic flows");
    for delay in [ms(600), ms(3_000)] {
        proxy.delay(Direction::Up, delay, delay + ms(100));
        drive(&mut seen, secs(2), |_| false);
    }
    proxy.delay(Direction::Up, ms(0), ms(0));
    let back = Instant::now();
    // What is still under way in the proxy arrives after all.
    drive(&mut seen, secs(3), |_| false);
    assert_accepts_again(&hubs[0], back);
    let attempts = traffic.finish();
    drive(&mut seen, QUIET, |_| false);
    assert_in_time(&attempts, &seen);
}

#[test]
fn large_publishes_that_wait_for_redis_are_bounded_together() {
    const N_CALLS: usize = 8;
    // Nearly as long as may be: what is refused at once stands out on a busy machine too.
    const PATIENCE: Duration = Duration::from_millis(4_500);
    let redis = Redis::start();
    let hub = node(&redis.url()).env("HUB_REDIS_TIMEOUT", "4500ms").start().wait_ready();
    let names = channels(50);
    let body = json!({ "channels": names, "data": "x".repeat(1_000_000) });
    let rss = hub.anon_bytes();
    redis.stop();
    let (answers, peak) = std::thread::scope(|scope| {
        let calls = (0..N_CALLS).map(|_| scope.spawn(|| hub.api("broadcast", &body)));
        let calls: Vec<_> = calls.collect();
        let mut peak = 0;
        let _ = eventually(SOON, || {
            peak = hub.anon_bytes().saturating_sub(rss).max(peak);
            calls.iter().all(|call| call.is_finished())
        });
        let answers = calls.into_iter().map(|call| call.join().expect("answered"));
        (answers.collect::<Vec<Response>>(), peak >> 20)
    });
    let n_at_once = answers.iter().filter(|answer| answer.took < PATIENCE).count();
    println!("{n_at_once} of {N_CALLS} broadcasts of 50 MB refused at once, {peak} MiB at most");
    for answer in &answers {
        let parsed = answer.json();
        let responses = parsed["result"]["responses"].as_array().expect("one each");
        assert_eq!(responses.len(), names.len());
        assert!(responses.iter().all(|response| response["error"]["code"] == 100));
    }
    // 64 MiB are taken, and a few copies of each call on its way; without a bound it were 780.
    assert!(n_at_once > 0, "everything was taken");
    assert!(peak <= 450, "{peak} MiB");
    redis.cont();
    assert_accepts_again(&hub, Instant::now());
}

#[test]
fn publishing_through_a_redis_that_runs_no_scripts() {
    let redis = Redis::start();
    redis.command(&["ACL", "SETUSER", "default", "-eval"]);
    let hub = Hub::on(&redis);
    assert!(eventually(SOON, || hub.log_has("Redis runs no scripts")), "it says what that means");
    let mut seen = viewers(&hub, &channels(1));
    hub.publish("c0", json!({ "seq": 0 }));
    assert!(drive(&mut seen, SOON, |viewer| viewer.n_received() == 1), "it works as well");
}

/// Publishes past the hubs, on all channels in turn.
fn burst(redis: &Redis, names: &[String], n: usize, first: usize) -> Vec<Attempt> {
    let payloads: Vec<Vec<u8>> = (first..first + n).map(|seq| numbered(seq, 100)).collect();
    let began = Instant::now();
    let channel = |at: usize| names[at % names.len()].as_str();
    redis.client().publish_all(
        payloads.iter().enumerate().map(|(at, payload)| (channel(at), payload.as_slice())),
    );
    let ended = Instant::now();
    let done = |at| {
        let channel = channel(at).to_owned();
        Attempt { seq: first + at, channel, began, ended, accepted: true }
    };
    (0..n).map(done).collect()
}

/// What overflowed, on a node with one viewer per channel: by its own count, and by the viewers.
fn assert_counted(hub: &Hub, seen: &[Viewer], attempts: &[Attempt], reason: &str) {
    assert!(seen.iter().all(|viewer| !viewer.is_closed()), "nobody was cut off");
    let losses = losses(seen, attempts);
    let metrics = hub.metrics();
    let of = |name: &str| metrics.get(&format!("{name}{{reason=\"{reason}\"}}")) as usize;
    let (n_drops, n_gaps) = (of("hubbub_drops_total"), of("hubbub_gaps_total"));
    println!(
        "{reason}: {} of {} missing in {} rows, {n_drops} drops, {n_gaps} gaps",
        losses.n_missing,
        attempts.len(),
        losses.n_rows()
    );
    assert!(losses.n_missing > 0, "the test overflowed nothing");
    assert_eq!((n_drops, n_gaps), (losses.n_missing, losses.n_missing), "each is counted once");
    assert_eq!(metrics.sum("hubbub_gaps_total") as usize, n_gaps, "no other gap");
}

/// A burst of which the second half finds the nodes stopped.
fn burst_with_a_pause(redis: &Redis, hubs: &[&Hub], names: &[String], n: usize) -> Vec<Attempt> {
    let mut attempts = burst(redis, names, n / 2, 0);
    hubs.iter().for_each(|hub| hub.signal(libc::SIGSTOP));
    attempts.extend(burst(redis, names, n / 2, n / 2));
    sys::pause(ms(scaled(300, 2_000) as u64));
    hubs.iter().for_each(|hub| hub.signal(libc::SIGCONT));
    attempts
}

#[test]
fn hand_offs_inside_the_node_overflow_and_are_counted() {
    let n = scaled(10_000, 50_000);
    let redis = Redis::start();
    // To open and to read so many viewers takes longer than a pong may.
    let patient =
        || node(&redis.url()).env("HUB_PING_INTERVAL", "10m").env("HUB_PONG_TIMEOUT", "9m");
    let roomy = patient().start().wait_ready();
    let mailbox = patient().env("HUB_MAILBOX_MAX", 100).start().wait_ready();
    let inbox = patient().env("HUB_REDIS_INBOX_BYTES_MAX", "16KiB").start().wait_ready();
    let names = channels(100);
    let mut seen: Vec<Vec<Viewer>> =
        [&roomy, &mailbox, &inbox].iter().map(|hub| viewers(hub, &names)).collect();
    // On the node with room for it, everybody watches one channel beside.
    let hot: Vec<Viewer> = (0..scaled(200, 3_000)).map(|_| Viewer::raw(&roomy, &["c0"])).collect();
    seen[0].extend(hot);

    let attempts = burst_with_a_pause(&redis, &[&roomy, &mailbox, &inbox], &names, n);
    let due = |viewer: &Viewer| viewer.n_received() >= viewer.channels().len() * n / 100;
    assert!(
        drive(&mut seen[0], secs(scaled(60, 180) as u64), due),
        "with room for it, everything arrives"
    );
    assert_eq!(losses(&seen[0], &attempts).n_missing, 0);
    assert_eq!(roomy.metric_sum("hubbub_gaps_total"), 0.0);
    for (hub, seen) in [&mailbox, &inbox].iter().zip(&mut seen[1..]) {
        let n_handled = || {
            let metrics = hub.metrics();
            let n_dropped = metrics.get("hubbub_drops_total{reason=\"inbox_full\"}");
            (metrics.sum("hubbub_publications_total") + n_dropped) as usize
        };
        assert!(eventually(secs(60), || n_handled() >= n), "{} of {n} handled", n_handled());
        // Nothing is under way any more once the next one is there.
        healthy(&redis, &[hub], seen, Instant::now(), HEALTHY);
    }
    assert_counted(&mailbox, &seen[1], &attempts, "mailbox_full");
    assert_counted(&inbox, &seen[2], &attempts, "inbox_full");
}
