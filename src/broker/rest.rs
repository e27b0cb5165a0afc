//! When the broker thread rests between two reads of the pub/sub link, and for how long.
//!
//! Owned by the broker thread.

use std::time::{Duration, Instant};

use super::redis::Redis;
use crate::metrics::Metrics;

/// A rest is at most this part of the shortest turn that a shard takes: a publication waits for a turn
/// anyway, half of one on average. With 1,000 sessions on 5 of 50 channels each, at 5,000 publications a
/// second, the broker takes 6 % of a core instead of 15, and hubbub delivers × 1.03 per CPU-second. The p99
/// was × 1.26 of what one channel has with as many deliveries (32 rounds), instead of × 1.34 (10). Where
/// turns are short, as with 100 sessions (0.5 ms), a rest of 300 µs made the p50 × 1.3: they have none.
const TURN_PART: u32 = 8;
const REST_MAX: Duration = Duration::from_millis(1);
/// Publications to be expected in a rest: it costs a wake-up itself.
const GATHERED_MIN: u32 = 2;
/// The time from one publication to the next is a mean of about so many.
const GAPS_MEANT: u32 = 8;
/// A longer one says only that the link was idle.
const GAP_MAX: Duration = Duration::from_millis(10);

/// See the module.
pub struct Rest {
    gap: Duration,
    n_publications: u64,
    read_at: Instant,
}

impl Rest {
    pub fn new(now: Instant) -> Self {
        Self { gap: GAP_MAX, n_publications: 0, read_at: now }
    }

    /// Lets publications gather in the link, if there is nothing left of it to read.
    pub async fn take(&mut self, metrics: &Metrics, redis: &Redis) {
        let turn_ns = metrics.shards.iter().map(|shard| shard.turn_ns.get()).min().unwrap_or(0);
        let n_publications = metrics.broker.publications.get();
        let turn = Duration::from_nanos(turn_ns);
        let Some(rest) = self.due(Instant::now(), n_publications, turn) else { return };
        tokio::task::yield_now().await;
        if redis.inbox_bytes() == 0 {
            let began = Instant::now();
            // The thread itself: one that waited for a timer of the reactor would be woken by the socket.
            std::thread::sleep(rest);
            metrics.broker.rested_ns.add(began.elapsed().as_nanos() as u64);
        }
    }

    /// The rest to take now. `n_publications`: all that ever came; `turn`: what the shards' shortest took,
    /// nothing if one has nothing to write.
    fn due(&mut self, now: Instant, n_publications: u64, turn: Duration) -> Option<Duration> {
        let n_new = u32::try_from(n_publications - self.n_publications).unwrap_or(u32::MAX);
        if n_new == 0 {
            return None;
        }
        let gap = (now.duration_since(self.read_at) / n_new).min(GAP_MAX);
        self.gap = (self.gap * (GAPS_MEANT - 1) + gap) / GAPS_MEANT;
        (self.n_publications, self.read_at) = (n_publications, now);
        let rest = (turn / TURN_PART).min(REST_MAX);
        (self.gap * GATHERED_MIN <= rest).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG_TURN: Duration = Duration::from_millis(6);

    /// What is due after each of 100 publications that come so far apart.
    fn rests(
        rest: &mut Rest,
        start: Instant,
        gap_us: u64,
        turn: Duration,
    ) -> Vec<Option<Duration>> {
        let n_before = rest.n_publications;
        let at = |n: u64| start + Duration::from_micros(gap_us * n);
        (1..=100).map(|n| rest.due(at(n), n_before + n, turn)).collect()
    }

    #[test]
    fn it_rests_only_while_shards_are_longer_at_work_than_publications_are_apart() {
        let start = Instant::now();
        let last = |gap_us, turn| {
            let due = rests(&mut Rest::new(start), start, gap_us, turn);
            assert_eq!(due[0], None, "the first says nothing of the next");
            due[99]
        };
        assert_eq!(last(200, LONG_TURN), Some(LONG_TURN / TURN_PART));
        assert_eq!(last(200, LONG_TURN * 100), Some(REST_MAX));
        assert_eq!(last(200, Duration::from_micros(500)), None, "they would wait for the broker");
        assert_eq!(last(200, Duration::ZERO), None, "a shard that sleeps writes at once");
        assert_eq!(last(2_000, LONG_TURN), None, "one comes in a rest at the most");
    }

    #[test]
    fn a_publication_after_an_idle_time_is_alone_again() {
        let start = Instant::now();
        let mut rest = Rest::new(start);
        assert!(rests(&mut rest, start, 100, LONG_TURN)[99].is_some());
        let later = start + Duration::from_secs(1);
        assert_eq!(rest.due(later, rest.n_publications, LONG_TURN), None, "nothing came");
        assert_eq!(rest.due(later, rest.n_publications + 1, LONG_TURN), None);
    }
}
