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
    started_ms: u64,
    spread_ms: u64,
    n_at_start: usize,
    n_closed: usize,
    cursor: usize,
}

impl Drain {
    pub fn new(started_ms: u64, spread_ms: u64, n_at_start: usize) -> Self {
        Self { started_ms, spread_ms, n_at_start, n_closed: 0, cursor: 0 }
    }
}

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
        } else if lagging
            && session.stalled_ms > 0
            && now_ms >= session.stalled_ms + write_timeout_ms
        {
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

    /// Closes as many sessions as the drain time so far asks for.
    pub fn drain(&mut self) {
        let Some(mut drain) = self.drain.take() else { return };
        let elapsed_ms = self.now_ms - drain.started_ms;
        let due = if elapsed_ms >= drain.spread_ms {
            usize::MAX
        } else {
            (drain.n_at_start as u64 * elapsed_ms / drain.spread_ms.max(1)) as usize
        };
        while drain.n_closed < due && drain.cursor < self.sessions.len() {
            if let Some(id) = self.hub.id_at(drain.cursor as u32) {
                self.end(id, Disconnect::SHUTDOWN);
                drain.n_closed += 1;
            }
            drain.cursor += 1;
        }
        if due == usize::MAX {
            drain.cursor = 0;
        }
        self.drain = Some(drain);
    }
}
