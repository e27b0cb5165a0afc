use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use super::*;

const TICK_MS: u64 = 50;

/// A Redis that answers at once, or after `took_ms`, and knows when each entry was written.
struct Bench {
    registry: Registry,
    now_ms: u64,
    took_ms: u64,
    written_ms: HashMap<Uuid, u64>,
    /// Of the longest wait between two writes of one entry.
    longest_ms: u64,
    /// Writes by second.
    by_second: HashMap<u64, usize>,
    batch_largest: usize,
}

impl Bench {
    fn new() -> Self {
        Self {
            registry: Registry::new(0),
            now_ms: 0,
            took_ms: 0,
            written_ms: HashMap::new(),
            longest_ms: 0,
            by_second: HashMap::new(),
            batch_largest: 0,
        }
    }

    fn connect(&mut self, n: usize) -> Vec<Uuid> {
        let connections: Vec<Uuid> = (0..n).map(|_| Uuid::new_v4()).collect();
        connections.iter().for_each(|it| self.registry.on_connected(0, connected(*it)));
        connections
    }

    fn disconnect(&mut self, connections: &[Uuid]) {
        connections.iter().for_each(|it| self.registry.on_disconnected(*it));
    }

    fn run_for(&mut self, ms: u64) {
        let end_ms = self.now_ms + ms;
        while self.now_ms < end_ms {
            self.now_ms += TICK_MS;
            if let Some(batch) = self.registry.poll_batch(self.now_ms) {
                self.on_batch(&batch);
                self.now_ms += self.took_ms;
                let (took_ms, now_ms) = (self.took_ms, self.now_ms);
                self.registry.on_batch_end(batch, Outcome::Answered, took_ms, now_ms);
            }
        }
    }

    fn on_batch(&mut self, batch: &Batch) {
        self.batch_largest = self.batch_largest.max(batch.writes.len());
        *self.by_second.entry(self.now_ms / 1000).or_default() += batch.writes.len();
        for connection in &batch.writes {
            assert!(self.registry.get(*connection).is_some(), "who has left isn't written");
            if let Some(before_ms) = self.written_ms.insert(*connection, self.now_ms) {
                self.longest_ms = self.longest_ms.max(self.now_ms - before_ms);
            }
        }
        for connection in &batch.removals {
            assert!(self.written_ms.remove(connection).is_some(), "it was never written");
        }
    }

    fn most_a_second(&self) -> usize {
        self.by_second.values().copied().max().unwrap_or(0)
    }
}

fn connected(connection: Uuid) -> Connected {
    Connected {
        connection,
        user: "".into(),
        address: Ipv4Addr::LOCALHOST.into(),
        transport: Transport::WebSocket,
        connected_at_s: 0,
    }
}

#[test]
fn twenty_thousand_at_once_are_a_paced_pipeline_and_then_a_trickle() {
    let mut bench = Bench::new();
    bench.connect(20_000);
    bench.run_for(12_000);
    assert_eq!(bench.written_ms.len(), 20_000, "all within 12 s");
    assert!(bench.batch_largest <= BATCH_MAX, "{}", bench.batch_largest);
    assert!(bench.most_a_second() <= 2_000, "{}", bench.most_a_second());
    bench.by_second.clear();
    bench.run_for(4 * LAP_MS);
    let most = bench.most_a_second();
    assert!(most <= 20_000 / 75 * 3 / 2, "no storm comes back: {most} in one second");
    assert!(bench.longest_ms <= LAP_MS + 15_000, "{} ms", bench.longest_ms);
}

#[test]
fn a_lap_is_even_whenever_they_came() {
    let mut bench = Bench::new();
    for _ in 0..15 {
        bench.connect(1_000);
        bench.run_for(3_000);
    }
    bench.run_for(LAP_MS);
    (bench.by_second, bench.longest_ms) = (HashMap::new(), 0);
    bench.run_for(2 * LAP_MS);
    let total: usize = bench.by_second.values().sum();
    assert!((29_900..=30_100).contains(&total), "{total} in two laps");
    assert!(bench.most_a_second() <= 270, "{}", bench.most_a_second());
    assert!(bench.longest_ms <= LAP_MS + 2 * TICK_MS, "{} ms", bench.longest_ms);
}

#[test]
fn a_redis_that_lost_all_gets_all_again_at_the_same_pace() {
    let mut bench = Bench::new();
    bench.connect(15_000);
    bench.run_for(LAP_MS);
    bench.written_ms.clear();
    bench.by_second.clear();
    bench.registry.write_all_again();
    bench.run_for(9_000);
    assert_eq!(bench.written_ms.len(), 15_000);
    assert!(bench.most_a_second() <= 2_000, "{}", bench.most_a_second());
    bench.longest_ms = 0;
    bench.run_for(3 * LAP_MS);
    assert!(bench.longest_ms <= LAP_MS + 2 * TICK_MS, "{} ms", bench.longest_ms);
}

#[test]
fn a_hundred_thousand_get_their_laps_too() {
    let mut bench = Bench::new();
    bench.connect(150_000);
    bench.run_for(2 * LAP_MS);
    assert_eq!(bench.written_ms.len(), 150_000);
    assert!(bench.longest_ms < LIFE_MS - 10_000, "{} ms", bench.longest_ms);
    assert!(bench.batch_largest <= 150, "{}", bench.batch_largest);
}

/// Each write takes Redis 20 ms: the registry slows down rather than fill the link.
#[test]
fn a_slow_redis_is_left_most_of_its_time() {
    let mut registry = Registry::new(0);
    for _ in 0..15_000 {
        registry.on_connected(0, connected(Uuid::new_v4()));
    }
    let (mut now_ms, mut busy_ms, mut longest_ms) = (0, 0, 0);
    while now_ms < 60_000 {
        now_ms += TICK_MS;
        if let Some(batch) = registry.poll_batch(now_ms) {
            let took_ms = batch.writes.len() as u64 * 20;
            (now_ms, busy_ms) = (now_ms + took_ms, busy_ms + took_ms);
            longest_ms = longest_ms.max(took_ms);
            registry.on_batch_end(batch, Outcome::Answered, took_ms, now_ms);
        }
    }
    assert!(busy_ms <= now_ms * 3 / 10, "{busy_ms} of {now_ms} ms");
    assert!(longest_ms <= 160, "{longest_ms} ms at a time");
}

#[test]
fn who_leaves_is_removed_once_and_only_if_written() {
    let mut bench = Bench::new();
    let stay = bench.connect(50);
    let written = bench.connect(50);
    bench.run_for(1_000);
    let unwritten = bench.connect(50);
    bench.disconnect(&[written, unwritten.clone()].concat());
    bench.disconnect(&unwritten);
    bench.run_for(1_000);
    let left: HashSet<Uuid> = bench.written_ms.keys().copied().collect();
    assert_eq!(left, stay.into_iter().collect());
    assert_eq!((bench.registry.len(), bench.registry.n_waiting()), (50, 0));
}

#[test]
fn what_got_no_answer_is_tried_again_and_never_comes_back_once_gone() {
    let mut bench = Bench::new();
    let mut all = bench.connect(8);
    let batch = bench.registry.poll_batch(50).expect("there is something");
    assert_eq!(batch.writes.len(), 8);
    assert!(bench.registry.poll_batch(100).is_none(), "one at a time");
    let gone = all.pop().unwrap();
    bench.registry.on_disconnected(gone);
    bench.registry.on_batch_end(batch, Outcome::Lost, 100, 200);
    assert!(bench.registry.poll_batch(450).is_none(), "it rests for three times as long");
    let batch = bench.registry.poll_batch(500).expect("again");
    assert_eq!(batch.removals, [gone], "it may have been written");
    assert_eq!(batch.writes.iter().collect::<HashSet<_>>(), all.iter().collect());
}

#[test]
fn a_shard_that_started_afresh_has_nobody() {
    let mut registry = Registry::new(0);
    for shard in [0, 1, 1] {
        registry.on_connected(shard, connected(Uuid::new_v4()));
    }
    let batch = registry.poll_batch(50).expect("all of it");
    registry.on_batch_end(batch, Outcome::Answered, 1, 51);
    registry.forget_shard(1);
    assert_eq!(registry.poll_batch(100).expect("two to remove").removals.len(), 2);
    assert_eq!(registry.len(), 1);
}

#[test]
fn removals_are_bounded_while_redis_is_away() {
    let mut bench = Bench::new();
    let connections = bench.connect(REMOVALS_MAX + 10);
    bench.registry.rows.values_mut().for_each(|row| row.is_sent = true);
    bench.disconnect(&connections);
    assert_eq!(bench.registry.n_waiting(), REMOVALS_MAX);
    assert_eq!(bench.registry.n_given_up(), 10);
}

/// Random comings, goings, losses: in the end Redis has who is there, and nobody else.
#[test]
fn a_model_agrees() {
    let seed = std::env::var("HUBBUB_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| Uuid::new_v4().as_u64_pair().0);
    println!("HUBBUB_TEST_SEED={seed}");
    let mut state = seed | 1;
    let mut random = move |below: u64| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D) % below
    };
    let mut registry = Registry::new(0);
    let (mut here, mut redis) = (Vec::new(), HashSet::new());
    let mut now_ms = 0;
    for step in 0..20_000 {
        let is_over = step >= 15_000;
        now_ms += random(120);
        match random(10) {
            0..=3 if !is_over => {
                let connection = Uuid::new_v4();
                here.push(connection);
                registry.on_connected(0, connected(connection));
            }
            4..=6 if !is_over && !here.is_empty() => {
                let gone = here.swap_remove(random(here.len() as u64) as usize);
                registry.on_disconnected(gone);
            }
            7 if random(100) == 0 => registry.write_all_again(),
            _ => {}
        }
        let Some(batch) = registry.poll_batch(now_ms) else { continue };
        let is_lost = !is_over && random(4) == 0;
        let n_done =
            if is_lost { random(batch.writes.len() as u64 + 1) as usize } else { usize::MAX };
        if !is_lost || random(2) == 0 {
            batch.removals.iter().for_each(|it| _ = redis.remove(it));
        }
        redis.extend(batch.writes.iter().take(n_done));
        let outcome = if is_lost { Outcome::Lost } else { Outcome::Answered };
        registry.on_batch_end(batch, outcome, random(40), now_ms);
    }
    assert_eq!(redis, here.into_iter().collect());
    assert_eq!(registry.n_waiting(), 0);
}
