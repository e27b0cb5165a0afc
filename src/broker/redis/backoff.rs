//! When to dial again: at once after a link that held, ever later after ones that didn't.

use std::time::Duration;

use tokio::time::sleep;

/// Between dials, milliseconds: doubled up to the maximum, each with full jitter in its upper
/// half, so that the nodes of one Redis don't come back in step.
const MS_MIN: u64 = 50;
const MS_MAX: u64 = 1_500;
/// A link that held for so long was a good one. One that Redis cuts sooner (a full output buffer,
/// `maxclients`) would be cut again: to dial at once each time would be a tight loop.
const HELD: Duration = Duration::from_secs(10);

pub struct Backoff {
    link: &'static str,
    next_ms: u64,
    logged: bool,
}

impl Backoff {
    pub fn new(link: &'static str) -> Self {
        Self { link, next_ms: MS_MIN, logged: false }
    }

    /// A link was lost that had held for `held`.
    pub fn on_lost(&mut self, held: Duration) {
        self.logged = false;
        if held >= HELD {
            self.next_ms = MS_MIN;
        }
    }

    /// A dial failed: worth one line until a link is there again.
    pub fn on_failed(&mut self, error: &redis::RedisError) {
        if !std::mem::replace(&mut self.logged, true) {
            tracing::warn!(link = self.link, %error, "can't connect to Redis, will keep trying");
        }
    }

    pub async fn wait(&mut self) {
        sleep(self.take_delay(ahash::RandomState::new().hash_one(self.next_ms))).await;
    }

    fn take_delay(&mut self, random: u64) -> Duration {
        let jitter = random % (self.next_ms / 2 + 1);
        let delay = Duration::from_millis(self.next_ms / 2 + jitter);
        self.next_ms = (self.next_ms * 2).min(MS_MAX);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shortest(backoff: &mut Backoff, n: usize) -> Vec<u128> {
        (0..n).map(|_| backoff.take_delay(0).as_millis()).collect()
    }

    #[test]
    fn delays_double_to_a_maximum_and_start_over_only_after_a_link_that_held() {
        let mut backoff = Backoff::new("pub/sub");
        assert_eq!(shortest(&mut backoff, 7), [25, 50, 100, 200, 400, 750, 750]);
        backoff.on_lost(HELD - Duration::from_millis(1));
        assert_eq!(shortest(&mut backoff, 1), [750]);
        backoff.on_lost(HELD);
        assert_eq!(shortest(&mut backoff, 2), [25, 50]);
    }

    #[test]
    fn jitter_fills_the_upper_half_of_each_delay() {
        let delays: Vec<u64> = (0..=750)
            .map(|random| {
                let mut backoff = Backoff { next_ms: MS_MAX, ..Backoff::new("pub/sub") };
                backoff.take_delay(random).as_millis() as u64
            })
            .collect();
        assert_eq!(delays, (750..=1_500).collect::<Vec<_>>());
    }
}
