//! How long a shard pauses after a turn of the ring, and the timer for it.
//!
//! Its precision is microseconds: tokio's steps of 1 ms would double a pause of 0.5 ms.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::unix::AsyncFd;

/// A pause is this part of what the turn cost: a busy shard takes two thirds of a core, and saves the
/// rest. Long turns pause a little more, but not as long as they took: with 10,000 sessions at 20/s, beside
/// uWebSockets, × 1.44 deliveries per CPU-second, p50 × 0.68 and p99 × 0.90 at 0.6, × 1.65, 0.88 and 0.94
/// at 0.7, × 1.77, 0.98 and 1.08 at 0.8, and p99 × 1.32 at 1. And so high a step, where turns happen to take
/// about as long (1,000 sessions on some machines), makes p99 half as long again: 22 instead of 15 ms.
const ALPHA_SHORT: f64 = 0.5;
const ALPHA_LONG: f64 = 0.7;
const LONG_TURN: Duration = Duration::from_millis(20);
/// Publications per session, beyond the first, that a long turn has if it deserves the whole pause.
const LONG_TURN_MERGES: f64 = 0.25;
/// A turn and its pause together take so long, as far as that pays: see [`floor_after`].
pub const FLOOR: Duration = Duration::from_micros(500);
/// It costs about as much as to be woken for it.
const TINY_TURN: Duration = Duration::from_micros(50);

/// The pause after a turn that cost so much and left something pending.
///
/// It pays by what it merges: a second publication for a session before the first was written. So it is
/// for the sessions that are written to turn after turn, their share of the turn being `again`; and a turn
/// that is long, as pauses too make it, must merge by itself: `group` is the publications per session.
/// Else 10,000 sessions on 1,000 channels at 4,000/s, who have 4 publications a second each, would fill
/// their two thirds of a core, and wait 100 ms for groups that hardly come. They have theirs after 0.3 ms,
/// for 4 to 12 % more CPU per delivery.
pub fn pause_after(cost: Duration, again: f64, group: f64) -> Duration {
    if cost >= LONG_TURN {
        let merges = ((group - 1.0) / LONG_TURN_MERGES).clamp(0.0, 1.0);
        cost.mul_f64(ALPHA_LONG * merges.min(again))
    } else {
        cost.mul_f64(ALPHA_SHORT * again)
    }
}

/// How long a turn that cost so much and its pause take at least.
///
/// What comes meanwhile shares a wake-up, and a write if it is for the sessions of the turn before:
/// `again` is their share. So it pays for those, and for turns of a write or two. It doesn't for ten
/// others: 10,000 sessions on 1,000 channels at 2,000/s have × 1.12 deliveries per CPU-second without it,
/// and half the p50, as the timer's wake-up comes on top of the broker's.
pub fn floor_after(cost: Duration, again: f64) -> Duration {
    let tiny = (2.0 - cost.div_duration_f64(TINY_TURN)).min(1.0);
    FLOOR.mul_f64(again.max(tiny))
}

pub struct PauseTimer(AsyncFd<OwnedFd>);

impl PauseTimer {
    pub fn new() -> Self {
        // SAFETY: a plain system call; the descriptor is checked, then owned by nobody else.
        let fd = unsafe {
            let fd =
                libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC);
            assert!(fd >= 0, "the kernel has a timer descriptor for each shard");
            OwnedFd::from_raw_fd(fd)
        };
        // SAFETY: `OwnedFd` keeps its descriptor open and the same for as long as it lives.
        let timer = unsafe { AsyncFd::register(fd) };
        Self(timer.expect("invariant: the shard's runtime has a reactor"))
    }

    /// Fires once after `after`.
    pub fn set(&self, after: Duration) {
        let value = libc::timespec {
            tv_sec: after.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(after.subsec_nanos().max(1)),
        };
        let spec = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: value,
        };
        // SAFETY: the descriptor is open and `spec` outlives the call.
        unsafe {
            libc::timerfd_settime(self.0.get_ref().as_raw_fd(), 0, &spec, std::ptr::null_mut())
        };
    }

    /// Ready once it fired.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Poll::Ready(Ok(mut guard)) = self.0.poll_read_ready(cx) else {
                return Poll::Pending;
            };
            let mut count = 0u64;
            // SAFETY: reads at most the eight bytes of `count`.
            let n = unsafe { libc::read(self.0.get_ref().as_raw_fd(), (&raw mut count).cast(), 8) };
            guard.clear_ready();
            if n == 8 {
                return Poll::Ready(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_merged_is_paused_for() {
        let [short, long] = [5, 100].map(Duration::from_millis);
        for cost in [short, long] {
            let whole = pause_after(cost, 1.0, 2.0);
            assert!(whole >= cost / 2 && whole < cost);
            assert_eq!(pause_after(cost, 0.25, 2.0), whole / 4);
            assert_eq!(pause_after(cost, 0.0, 2.0), Duration::ZERO);
        }
        assert_eq!(pause_after(short, 1.0, 1.0), pause_after(short, 1.0, 2.0));
        assert_eq!(pause_after(long, 1.0, 1.125), pause_after(long, 1.0, 2.0) / 2);
        assert_eq!(pause_after(long, 1.0, 1.0), Duration::ZERO);
        assert_eq!(pause_after(long, 1.0, 0.9), Duration::ZERO, "the rest is of the turn before");
    }

    #[test]
    fn a_floor_is_for_what_merges_and_for_tiny_turns() {
        let [tiny, between, small] = [10, 75, 200].map(Duration::from_micros);
        assert_eq!(floor_after(small, 1.0), FLOOR);
        assert_eq!(floor_after(small, 0.5), FLOOR / 2);
        assert_eq!(floor_after(small, 0.0), Duration::ZERO);
        assert_eq!(floor_after(tiny, 1.0), FLOOR);
        assert_eq!(floor_after(tiny, 0.0), FLOOR);
        assert_eq!(floor_after(between, 0.0), FLOOR / 2);
    }
}
