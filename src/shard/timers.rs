//! Time on a shard: pings, patience with clients, the drain.
//!
//! Runs on the shard thread, ten times a second.

use super::hub::{Queued, SessionId};
use super::session::Kind;
use super::state::State;
use crate::frame::{self, Opcode};
use crate::protocol::Disconnect;

/// How far closing all sessions is.
pub struct Drain {
    ends_ms: u64,
    seen_ms: u64,
    n_left: usize,
    /// Of the next session to close, the part that is due.
    owed: f64,
    cursor: usize,
}

impl Drain {
    /// Closes `n` sessions evenly until `ends_ms`, the first at once: a node with one needn't wait.
    pub fn new(now_ms: u64, ends_ms: u64, n: usize) -> Self {
        Self { ends_ms, seen_ms: now_ms, n_left: n, owed: 1.0, cursor: 0 }
    }

    /// How many are to be closed now. What a stall left undone is spread over the time that is left:
    /// closed at once it would stampede the other nodes.
    fn due(&mut self, now_ms: u64) -> usize {
        if now_ms >= self.ends_ms {
            return usize::MAX;
        }
        let since_ms = (now_ms - self.seen_ms).min(DRAIN_STEP_MAX_MS);
        self.seen_ms = now_ms;
        let left_ms = self.ends_ms - now_ms + since_ms;
        self.owed += self.n_left as f64 * since_ms as f64 / left_ms as f64;
        let n = (self.owed as usize).min(self.n_left);
        self.owed -= n as f64;
        self.n_left -= n;
        n
    }
}

/// One look of a drain closes no more than what is due in so long, milliseconds.
const DRAIN_STEP_MAX_MS: u64 = 250;
/// A sweep that comes so much after the one before is late, milliseconds: the process was stopped, or the
/// machine gave it no time.
const LATE_MS: u64 = 500;

impl State {
    pub fn sweep(&mut self) {
        let since_ms = self.now_ms - std::mem::replace(&mut self.swept_ms, self.now_ms);
        if since_ms >= LATE_MS {
            // What clients sent meanwhile may wait in their sockets: no time of theirs has passed.
            self.sessions.iter_mut().flatten().for_each(|session| session.excuse(since_ms));
        }
        for idx in 0..self.sessions.len() {
            if self.sessions[idx].is_some()
                && let Some(id) = self.hub.id_at(idx as u32)
            {
                self.check(id);
            }
        }
    }

    /// While all shards together hold more than `HUB_OUTBOX_TOTAL_BYTES`: closes those here with
    /// the most queued, until this shard's part of the excess is gone. Slow clients are cut so
    /// that the process, and everybody else with it, isn't.
    pub fn relieve(&mut self) {
        let total = self.node.metrics.sum(|shard| &shard.outbox_bytes) as usize;
        let excess = total.saturating_sub(self.node.config.outbox_total_bytes);
        if excess == 0 {
            return;
        }
        let own = self.hub.outbox_bytes();
        let mut left = (excess as u128 * own as u128 / total as u128) as usize;
        for (bytes, id) in self.hub.lagging_by_size() {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(bytes.max(1));
            self.close(id, Disconnect::SLOW, Queued::Drop);
            self.node.metrics.shards[self.idx].relieved.add(1);
        }
    }

    fn check(&mut self, id: SessionId) {
        let now_ms = self.now_ms;
        let config = &self.node.config;
        let write_timeout_ms = config.write_timeout.as_millis() as u64;
        let pong_timeout_ms = config.pong_timeout.as_millis() as u64;
        let ping_interval_ms = config.ping_interval.as_millis() as u64;
        let stale_timeout_ms = config.stale_timeout.as_millis() as u64;
        let lagging = self.hub.is_lagging(id);
        if let Some(disconnect) = self.overdue_end(id) {
            self.close(id, disconnect, Queued::Flush);
        }
        self.check_expiry(id);
        let Some(session) = self.session(id) else { return };
        if session.linger_until_ms > 0 {
            if now_ms >= session.linger_until_ms {
                session.kill();
            }
        } else if lagging && now_ms >= session.stalled_ms + write_timeout_ms {
            self.close(id, Disconnect::WRITE_ERROR, Queued::Drop);
        } else if matches!(session.kind, Kind::Fresh | Kind::Refused | Kind::Connecting)
            && now_ms >= session.born_ms + stale_timeout_ms
        {
            self.close(id, Disconnect::STALE, Queued::Flush);
        } else if session.pong_by_ms > 0 && now_ms >= session.pong_by_ms {
            if lagging && now_ms < session.stalled_ms + pong_timeout_ms {
                session.pong_by_ms = session.stalled_ms + pong_timeout_ms;
            } else {
                self.close(id, Disconnect::NO_PONG, Queued::Flush);
            }
        } else if matches!(session.kind, Kind::Connected | Kind::Raw)
            && now_ms >= session.ping_at_ms
        {
            session.ping_at_ms = now_ms + ping_interval_ms;
            session.ping_queued = session.pong_by_ms == 0;
            let (opcode, payload): (_, &[u8]) =
                if session.kind == Kind::Raw { (Opcode::Ping, b"") } else { (Opcode::Text, b"{}") };
            let mut out = Vec::with_capacity(4);
            frame::put_frame(&mut out, opcode, payload);
            self.hub.push_own(id, &out);
        }
    }

    /// Closes as many sessions as are due.
    pub fn drain(&mut self) {
        let Some(mut drain) = self.drain.take() else { return };
        let due = drain.due(self.now_ms);
        let mut n_closed = 0;
        while n_closed < due && drain.cursor < self.sessions.len() {
            if let Some(id) = self.hub.id_at(drain.cursor as u32) {
                self.end(id, Disconnect::SHUTDOWN);
                n_closed += 1;
            }
            drain.cursor += 1;
        }
        if due == usize::MAX {
            drain.cursor = 0;
        }
        self.drain = Some(drain);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is closed at each of these times.
    fn closed(n: usize, times: impl IntoIterator<Item = u64>) -> Vec<usize> {
        let mut drain = Drain::new(0, 20_000, n);
        times.into_iter().map(|ms| drain.due(ms)).collect()
    }

    #[test]
    fn a_drain_is_even_to_its_end() {
        for n in [0, 1, 7, 199, 200, 1_001, 20_000] {
            let closed = closed(n, (100..20_000).step_by(100));
            assert!(closed.iter().all(|&now| now.abs_diff(n / 200) <= 1), "{n}: {closed:?}");
            assert!(n - closed.iter().sum::<usize>() <= n / 200 + 1, "{n}: {closed:?}");
        }
        assert_eq!(closed(1, [0]), [1]);
        assert_eq!(closed(10, [20_000]), [usize::MAX]);
    }

    #[test]
    fn what_a_stall_left_undone_is_spread() {
        let closed = closed(2_000, (100..=5_000).step_by(100).chain((10_000..20_000).step_by(100)));
        assert!(closed[..50].iter().sum::<usize>().abs_diff(500) <= 1);
        assert!(closed[50] < 40 && closed[51..].iter().all(|&now| now <= 16), "{closed:?}");
        assert!(closed.iter().sum::<usize>() >= 1_980, "{closed:?}");
    }
}
