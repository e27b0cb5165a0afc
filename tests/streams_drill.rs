//! Promise: a thousand clients that are cut at random moments while Redis is restarted twice see every
//! publication once and in order, or are told of the gap; and beside the restarts nothing is lost.

mod common;

use common::follower::{Accepted, Follower, follow, tops};
use common::past::namespaces;
use common::{Hub, Redis, Rng, Traffic, ms, scaled, secs};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// How long after a restart a recovery may fail.
const AFTERMATH: Duration = Duration::from_secs(10);

/// Clients of one thread, each of which is cut when its time has come, and comes back a little later.
struct Crowd {
    followers: Vec<Follower>,
    /// When what happens next to each does.
    next: Vec<Instant>,
    rng: Rng,
    n_cuts: usize,
}

impl Crowd {
    fn open(hubs: &[Hub; 2], channels: &[String], n: usize) -> Self {
        let mut rng = Rng::quiet();
        let name = |rng: &mut Rng| &channels[rng.between(0, channels.len() as u64 - 1) as usize];
        let open = |i: usize| Follower::open(&hubs[i % 2], &[name(&mut rng)]);
        let followers: Vec<Follower> = (0..n).map(open).collect();
        let next = followers.iter().map(|_| Instant::now() + ms(rng.between(0, 5_000))).collect();
        Self { followers, next, rng, n_cuts: 0 }
    }

    fn step(&mut self, hubs: &[Hub; 2]) {
        follow(&mut self.followers, ms(10), |_| false);
        for (follower, next) in self.followers.iter_mut().zip(&mut self.next) {
            if *next > Instant::now() {
                continue;
            }
            let until = if follower.is_gone() {
                follower.come_back(&hubs[self.rng.between(0, 1) as usize]);
                self.rng.between(100, 10_000)
            } else {
                follower.cut();
                self.n_cuts += 1;
                self.rng.between(0, 1_000)
            };
            *next = Instant::now() + ms(until);
        }
    }

    fn run(mut self, hubs: &[Hub; 2], stop: &AtomicBool) -> Self {
        while !stop.load(SeqCst) {
            self.step(hubs);
        }
        let gone = self.followers.iter_mut().filter(|follower| follower.is_gone());
        gone.for_each(|follower| follower.come_back(&hubs[0]));
        self
    }
}

#[test]
fn clients_are_cut_at_random_moments_while_redis_restarts() {
    let (n_clients, n_channels, per_second) =
        (scaled(60, 1_000), scaled(10, 50), scaled(200, 1_000));
    let (how_long, n_restarts) = (secs(scaled(16, 300) as u64), scaled(1, 2));
    let (mut redis, file) = (Redis::start(), namespaces());
    let node = || {
        let hub = Hub::builder().redis(&redis).env("HUB_CONFIG", file.path().display());
        hub.env("HUB_REDIS_TIMEOUT", "1s").start().wait_ready()
    };
    let hubs = [node(), node()];
    let channels: Vec<String> = (0..n_channels).map(|i| format!("long:{i}")).collect();
    let n_threads = scaled(2, 4);
    let crowds: Vec<Crowd> =
        (0..n_threads).map(|_| Crowd::open(&hubs, &channels, n_clients / n_threads)).collect();
    let traffic = Traffic::start(&hubs.each_ref(), &channels, scaled(8, 25), per_second);
    let stop = AtomicBool::new(false);
    let (mut crowds, restarts) = std::thread::scope(|scope| {
        let (hubs, stop) = (&hubs, &stop);
        let running: Vec<_> =
            crowds.into_iter().map(|crowd| scope.spawn(move || crowd.run(hubs, stop))).collect();
        let (mut restarts, began) = (Vec::new(), Instant::now());
        while began.elapsed() < how_long && running.iter().all(|crowd| !crowd.is_finished()) {
            let due = how_long * (restarts.len() as u32 + 1) / (n_restarts as u32 + 3);
            if restarts.len() < n_restarts && began.elapsed() >= due {
                let down = Instant::now();
                redis.restart();
                restarts.push(down..Instant::now() + AFTERMATH);
            }
            common::sys::pause(ms(50));
        }
        stop.store(true, SeqCst);
        let ended = running.into_iter().map(|crowd| crowd.join().expect("all is in order"));
        (ended.collect::<Vec<Crowd>>(), restarts)
    });
    let attempts = traffic.finish();
    let tops = tops(&hubs[0], &channels);
    let all_there =
        |crowd: &mut Crowd| follow(&mut crowd.followers, secs(30), |it| it.has_all(&tops));
    assert!(crowds.iter_mut().all(all_there), "everyone is up to date in the end");
    let followers = || crowds.iter().flat_map(|crowd| &crowd.followers);
    let accepted = Accepted::of(&attempts);
    followers().for_each(|follower| follower.assert_complete(&accepted));
    let recoveries: Vec<_> = followers().flat_map(|follower| &follower.recoveries).collect();
    let lost: Vec<_> = recoveries.iter().filter(|recovery| !recovery.recovered).collect();
    let excused = |asked: &Instant| restarts.iter().any(|restart| restart.contains(asked));
    let n_unexcused = lost.iter().filter(|recovery| !excused(&recovery.at)).count();
    for recovery in lost.iter().filter(|recovery| !excused(&recovery.at)) {
        println!("{recovery:?}, restarts {restarts:?}");
    }
    println!(
        "{} publishes, {} accepted, {} seen by {} clients; {} cuts, told {} times; {} recoveries, \
         {} announced gaps, {n_unexcused} of them beside the restarts",
        attempts.len(),
        attempts.iter().filter(|attempt| attempt.accepted).count(),
        followers().map(Follower::n_seen).sum::<usize>(),
        followers().count(),
        crowds.iter().map(|crowd| crowd.n_cuts).sum::<usize>(),
        followers().map(|follower| follower.n_told).sum::<usize>(),
        recoveries.len(),
        lost.len(),
    );
    assert_eq!(restarts.len(), n_restarts);
    assert!(!lost.is_empty(), "Redis came back empty, and nobody was told");
    assert_eq!(n_unexcused, 0, "recoveries failed beside the restarts");
}
