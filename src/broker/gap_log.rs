//! One line for all gaps of a second: whoever lost something finds it in the log, and a hub in
//! trouble doesn't drown in it. On the broker thread.

use crate::metrics::BrokerMetrics;

const INTERVAL_MS: u64 = 1_000;

#[derive(Default)]
pub struct GapLog {
    n_logged: u64,
    logged_ms: u64,
}

impl GapLog {
    pub fn on_tick(&mut self, metrics: &BrokerMetrics, now_ms: u64) {
        let n_gaps = metrics.n_gaps();
        if n_gaps > self.n_logged && now_ms >= self.logged_ms + INTERVAL_MS {
            let n_new = n_gaps - self.n_logged;
            tracing::warn!(gaps = n_new, "publications were lost inside or before the node");
            (self.n_logged, self.logged_ms) = (n_gaps, now_ms);
        }
    }
}
