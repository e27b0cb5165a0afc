//! Promise: a node that is stopped at work hands its clients over: told one after the other, each with
//! all that was published for it before, and every publish answered truly. (Scenario 51; recovery on the
//! other node and the registry come with history.)

mod common;

use common::http::Kept;
use common::traffic::{numbered, seqs};
use common::ws::{Dial, raw_path};
use common::{
    Cf, Close, Hub, Pump, Redis, SOON, Viewer, cf, drive, eventually, ms, scaled, secs, sys,
};
use serde_json::json;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

fn shutdown() -> Option<Close> {
    Some(Close { code: 3001, reason: "shutdown".to_owned() })
}

/// A client that knows when it was told to go.
struct Watcher {
    viewer: Viewer,
    closed_at: Option<Instant>,
}

impl Watcher {
    fn open(hub: &Hub, n: usize, channel: &str) -> Self {
        let viewer = if n.is_multiple_of(2) { Viewer::cf } else { Viewer::raw };
        Self { viewer: viewer(hub, &[channel]), closed_at: None }
    }

    fn assert_no_hole(&self) {
        let got = seqs(&self.viewer);
        assert!(got.windows(2).all(|pair| pair[1] == pair[0] + 1), "{got:?}");
    }
}

impl Pump for Watcher {
    fn fd(&self) -> RawFd {
        self.viewer.fd()
    }

    fn pump(&mut self) -> bool {
        let open = self.viewer.pump();
        if self.closed_at.is_none() && self.viewer.is_closed() {
            self.closed_at = Some(Instant::now());
            // As the SDKs do: who keeps its end open is waited for, a while.
            let (Viewer::Cf { cf: Cf { raw, .. }, .. } | Viewer::Raw { raw, .. }) = &self.viewer;
            raw.half_close();
        }
        open
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    Accepted,
    Refused,
    /// The connection ended instead.
    None,
}

struct Attempt {
    seq: usize,
    channel: String,
    ended: Instant,
    answer: Answer,
}

/// Publishes `{"seq": n}` steadily, round the channels, until told to stop or the node is gone.
fn publish_until_gone(addr: SocketAddr, channels: &[String], stop: &AtomicBool) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let mut kept = None;
    for (seq, channel) in channels.iter().cycle().enumerate() {
        sys::pause(ms(20));
        let Some(mut open) = kept.take().or_else(|| Kept::open(addr).ok()) else { break };
        if stop.load(SeqCst) {
            break;
        }
        let body = json!({ "channel": channel, "data": { "seq": seq } }).to_string();
        let answer = match open.post("/api/publish", &body) {
            Ok(response) => {
                // A node that drains ends each connection with its answer.
                kept = (response.header("connection") != Some("close")).then_some(open);
                let accepted = response.is_result();
                assert!(accepted || response.status == 503, "{} {response:?}", response.text());
                if accepted { Answer::Accepted } else { Answer::Refused }
            }
            Err(_) => Answer::None,
        };
        attempts.push(Attempt { seq, channel: channel.clone(), ended: Instant::now(), answer });
    }
    attempts
}

struct Publisher {
    stop: Arc<AtomicBool>,
    worker: JoinHandle<Vec<Attempt>>,
}

impl Publisher {
    fn start(hub: &Hub, channels: &[String]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (addr, channels, told) = (hub.addr, channels.to_vec(), Arc::clone(&stop));
        let worker = thread::spawn(move || publish_until_gone(addr, &channels, &told));
        Self { stop, worker }
    }

    fn finish(self) -> Vec<Attempt> {
        self.stop.store(true, SeqCst);
        self.worker.join().expect("every answer is a result or a 503")
    }
}

/// What arrived on one channel, in order.
fn of_channel(witness: &Cf, channel: &str) -> Vec<usize> {
    let of_it = witness.pubs.iter().filter(|publication| publication.channel == channel);
    let numbers = of_it.map(|publication| publication.body["data"]["seq"].as_u64());
    numbers.map(|number| number.expect("a number") as usize).collect()
}

/// Accepted is delivered, refused is not; on the other node, which lives on.
fn assert_true_answers(witness: &Cf, attempts: &[Attempt], last_close: Instant) {
    let is_seen = |attempt: &Attempt| of_channel(witness, &attempt.channel).contains(&attempt.seq);
    for attempt in attempts {
        match attempt.answer {
            Answer::Accepted => assert!(is_seen(attempt), "{} was accepted", attempt.seq),
            Answer::Refused => assert!(!is_seen(attempt), "{} was refused", attempt.seq),
            // While it still has clients it is there to answer.
            Answer::None => assert!(attempt.ended > last_close, "{} has no answer", attempt.seq),
        }
    }
}

/// All that was published before its close, from the first on, in order and without a hole.
fn assert_served(watcher: &mut Watcher, witness: &Cf, attempts: &[Attempt]) {
    assert_eq!(watcher.viewer.close(), shutdown());
    let channel = watcher.viewer.channels()[0].clone();
    let (got, all) = (seqs(&watcher.viewer), of_channel(witness, &channel));
    assert!(all.starts_with(&got), "{channel}: {got:?} of {all:?}");
    // What was accepted a moment before its close has been queued by then.
    let closed_at = watcher.closed_at.expect("closed");
    let early = attempts.iter().filter(|attempt| {
        attempt.channel == channel
            && attempt.answer == Answer::Accepted
            && attempt.ended + ms(500) < closed_at
    });
    assert!(got.len() >= early.count(), "{channel}: {} of {all:?}", got.len());
}

fn assert_spread(mut closes: Vec<Duration>, drain: Duration) {
    closes.sort_unstable();
    let tenth = |at: u32| {
        let (from, to) = (drain * at / 10, drain * (at + 1) / 10);
        closes.iter().filter(|close| (from..to).contains(*close)).count()
    };
    let tenths: Vec<usize> = (0..10).map(tenth).collect();
    println!("closes in each tenth of {drain:?}: {tenths:?}");
    assert!(tenths.iter().all(|n| *n <= closes.len() / 2), "not in one burst: {tenths:?}");
    assert!(closes[closes.len() / 2] > drain / 10 && closes[closes.len() - 1] > drain / 2);
}

#[test]
fn at_work_everyone_is_told_in_turn_and_every_publish_is_answered_truly() {
    let redis = Redis::start();
    let drain = secs(scaled(3, 20) as u64);
    let node = || Hub::builder().redis(&redis).env("HUB_DRAIN_TIMEOUT", format!("{drain:?}"));
    let (mut a, b) = (node().start().wait_ready(), node().start().wait_ready());
    let channels: Vec<String> = (0..scaled(4, 40)).map(|n| format!("c{n}")).collect();
    let names: Vec<&str> = channels.iter().map(String::as_str).collect();
    let mut witness = Cf::subscribed(&b, &names);
    witness.subscribe("last");
    let n_clients = scaled(200, 10_000);
    let mut clients: Vec<Watcher> =
        (0..n_clients).map(|n| Watcher::open(&a, n, &channels[n / 2 % channels.len()])).collect();
    let (own, others) = channels.split_at(channels.len() / 2);
    let (with_a, with_b) = (Publisher::start(&a, own), Publisher::start(&b, others));
    assert!(drive(&mut clients, SOON, |client| client.viewer.n_received() >= 5), "at work");

    let began = Instant::now();
    a.signal(libc::SIGTERM);
    assert!(eventually(secs(1), || !a.ready()), "readiness fails first");
    let n_told = a.metrics().get("hubbub_closes_total{code=\"3001\"}");
    assert!(n_told < n_clients as f64 / 4.0, "{n_told} were told before");
    for path in [cf::PATH.to_owned(), raw_path(&["c0"])] {
        assert_eq!(Dial::new(&a, &path).try_open().err().expect("draining").status, 503);
    }
    assert!(drive(&mut clients, drain + secs(5), |client| client.closed_at.is_some()));
    let status = a.wait_exit((drain + secs(5)).saturating_sub(began.elapsed()));
    assert_eq!(status.expect("within the drain time and five seconds").code(), Some(0));
    println!("{n_clients} clients: gone after {:?}", began.elapsed());
    assert!(b.ready());

    assert!(eventually(SOON, || with_a.worker.is_finished()), "it has noticed");
    let mut attempts = with_a.finish();
    attempts.extend(with_b.finish());
    let n_of = |answer| attempts.iter().filter(|attempt| attempt.answer == answer).count();
    let (n_accepted, n_refused) = (n_of(Answer::Accepted), n_of(Answer::Refused));
    println!("{n_accepted} accepted, {n_refused} refused, {} unanswered", n_of(Answer::None));
    // Behind all of it; an unanswered one may have been published, or not.
    b.publish("last", 0);
    let has_last = |witness: &Cf| witness.pubs.back().is_some_and(|last| last.channel == "last");
    witness.wait(SOON, has_last);
    assert!(has_last(&witness));
    let closes: Vec<Instant> = clients.iter().filter_map(|client| client.closed_at).collect();
    assert_true_answers(&witness, &attempts, *closes.iter().max().expect("clients"));
    clients.iter_mut().for_each(|client| assert_served(client, &witness, &attempts));
    assert_spread(closes.iter().map(|close| *close - began).collect(), drain);
}

/// Clients behind a balancer: told to go they come again, at the node that is ready.
struct Caravan<'a> {
    redis: &'a Redis,
    clients: Vec<Watcher>,
    n_moves: Vec<usize>,
    n_published: usize,
}

impl Caravan<'_> {
    /// Steady publishing while those told to go move on, until the node has exited.
    fn move_on(&mut self, mut from: Hub, to: &Hub) {
        let began = Instant::now();
        from.signal(libc::SIGTERM);
        while from.is_running() {
            assert!(began.elapsed() < secs(scaled(1, 10) as u64 + 5), "it is still there");
            self.step(to);
        }
        assert_eq!(from.wait_exit(SOON).expect("exited").code(), Some(0));
        assert!(to.ready());
        self.step(to);
    }

    fn step(&mut self, to: &Hub) {
        self.redis.publish("a", numbered(self.n_published, 100));
        self.n_published += 1;
        drive(&mut self.clients, ms(10), |_| false);
        for (n, client) in self.clients.iter_mut().enumerate() {
            if client.closed_at.is_some() {
                assert_eq!(client.viewer.close(), shutdown());
                client.assert_no_hole();
                *client = Watcher::open(to, n, "a");
                self.n_moves[n] += 1;
            }
        }
    }

    /// Everyone gets the next one, at this node.
    fn settle(&mut self, at: &Hub) {
        self.step(at);
        let last = Some(self.n_published - 1);
        let has_last = |client: &Watcher| seqs(&client.viewer).last().copied() == last;
        assert!(drive(&mut self.clients, SOON, has_last), "everyone is served");
        self.clients.iter().for_each(Watcher::assert_no_hole);
        assert_eq!(at.metric_sum("hubbub_connections"), self.clients.len() as f64);
    }
}

#[test]
fn one_node_after_the_other() {
    let redis = Redis::start();
    let drain = format!("{}s", scaled(1, 10));
    let node =
        || Hub::builder().redis(&redis).env("HUB_DRAIN_TIMEOUT", &drain).start().wait_ready();
    let (a, b) = (node(), node());
    let n_clients = scaled(60, 2_000);
    let clients = (0..n_clients).map(|n| Watcher::open(&a, n, "a")).collect();
    let n_moves = vec![0; n_clients];
    let mut caravan = Caravan { redis: &redis, clients, n_moves, n_published: 0 };
    caravan.settle(&a);
    caravan.move_on(a, &b);
    caravan.settle(&b);
    let mut a = node();
    caravan.move_on(b, &a);
    caravan.settle(&a);
    assert!(caravan.n_moves.iter().all(|n| *n == 2), "each once a time: {:?}", caravan.n_moves);

    // Whoever is in a hurry says so twice.
    a.signal(libc::SIGTERM);
    assert!(eventually(secs(1), || !a.ready()));
    a.signal(libc::SIGTERM);
    assert_eq!(a.wait_exit(secs(2)).expect("the second is final").code(), Some(143));
    let all_cut = drive(&mut caravan.clients, SOON, |client| client.closed_at.is_some());
    assert!(all_cut);
}
