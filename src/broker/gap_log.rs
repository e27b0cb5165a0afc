//! One line for all gaps of a second: whoever lost something finds it in the log, and a hub in
//! trouble doesn't drown in it.
//!
//! Owned by the broker thread.

const INTERVAL_MS: u64 = 1_000;

#[derive(Default)]
pub struct GapLog {
    n_logged: u64,
    logged_ms: u64,
}

impl GapLog {
    /// Logs what is new since the last line, if that was long enough ago. `n_gaps`: all so far.
    pub fn on_tick(&mut self, n_gaps: u64, now_ms: u64) {
        if n_gaps > self.n_logged && now_ms >= self.logged_ms + INTERVAL_MS {
            let n_new = n_gaps - self.n_logged;
            tracing::warn!(gaps = n_new, "publications were lost inside or before the node");
            self.n_logged = n_gaps;
            self.logged_ms = now_ms;
        }
    }
}
