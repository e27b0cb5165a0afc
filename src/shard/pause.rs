//! How long a shard pauses after a turn of the ring, and the timer for it.
//!
//! Its precision is microseconds: tokio's steps of 1 ms would double a pause of 0.5 ms.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::unix::AsyncFd;

/// A pause is this part of what the turn cost: a busy shard, alone, takes two thirds of a core, and saves the
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
/// A turn and its pause together aren't made longer than so because there are other shards: short turns,
/// and any.
const SHARED_SHORT_MAX: Duration = Duration::from_millis(12);
const SHARED_MAX: Duration = Duration::from_millis(140);
/// From the one to the other: for each millisecond that a turn takes longer than the first.
const SHARED_SLOPE: f64 = 6.0;
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
///
/// Beside other shards it is twice as long for those, as the pause is: see [`beside`].
pub fn floor_after(cost: Duration, again: f64, n_shards: usize) -> Duration {
    let tiny = (2.0 - cost.div_duration_f64(TINY_TURN)).min(1.0);
    FLOOR.mul_f64((again * sharing(n_shards)).max(tiny))
}

/// The pause of a shard beside others, where one alone would pause for `pause`.
///
/// With half of the sessions its turns take half as long, and merge half as much: two shards cost × 1.35 per
/// delivery of what one did (1,000 sessions at 500/s), × 1.25 with 100 at 5,000/s, and × 1.45 with 10,000 at
/// 20/s or 100/s. Now a turn and its pause together are as long as one shard's would be, and the cost is
/// × 0.97, 1.00, 0.97 and 1.01, with × 1.17, 0.99, 1.12 and 0.95 of the one's p50, × 1.02, 1.01, 1.10 and 0.88
/// of its p99 (2 cores, the second shared with the subscribers). Short turns go no further than
/// [`SHARED_SHORT_MAX`]: without that bound the 1,000 had × 0.84 of the cost, but × 2.1 of the p99. Nor do
/// any go beyond [`SHARED_MAX`]: at 200 ms p99 was × 1.3 with 10,000. Of more than two shards each has
/// shorter turns than the one alone.
pub fn beside(cost: Duration, pause: Duration, again: f64, n_shards: usize) -> Duration {
    let longer = cost.saturating_sub(SHARED_SHORT_MAX).mul_f64(SHARED_SLOPE);
    let longest = (SHARED_SHORT_MAX + longer).min(SHARED_MAX);
    let period = (cost + pause).mul_f64(sharing(n_shards)).min(longest);
    pause.max(period.saturating_sub(cost).mul_f64(again))
}

/// How much longer a turn and its pause are than those of a shard alone.
fn sharing(n_shards: usize) -> f64 {
    if n_shards > 1 { 2.0 } else { 1.0 }
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
        for (cost, again, alone, shared) in [
            (small, 1.0, FLOOR, FLOOR * 2),
            (small, 0.5, FLOOR / 2, FLOOR),
            (small, 0.0, Duration::ZERO, Duration::ZERO),
            (tiny, 1.0, FLOOR, FLOOR * 2),
            (tiny, 0.0, FLOOR, FLOOR),
            (between, 0.0, FLOOR / 2, FLOOR / 2),
        ] {
            assert_eq!(floor_after(cost, again, 1), alone, "{cost:?} {again}");
            assert_eq!(floor_after(cost, again, 2), shared, "{cost:?} {again}");
        }
    }

    #[test]
    fn beside_another_shard_half_a_turn_pauses_for_the_other_half_too() {
        let ms = Duration::from_millis;
        assert_eq!(beside(ms(4), ms(2), 1.0, 1), ms(2), "alone");
        assert_eq!(beside(ms(2), ms(1), 1.0, 2), ms(4), "as often as one shard would with 4 ms");
        assert_eq!(beside(ms(2), ms(1), 1.0, 8), ms(4));
        assert_eq!(beside(ms(2), ms(0), 0.0, 2), ms(0), "nothing would be merged");
        assert_eq!(beside(ms(2), ms(0), 0.5, 2), ms(1));
        assert_eq!(beside(ms(7), ms(4), 1.0, 2), SHARED_SHORT_MAX - ms(7));
        assert_eq!(beside(ms(12), ms(6), 1.0, 2), ms(6), "long already");
        assert_eq!(beside(ms(15), ms(7), 1.0, 2), ms(15), "a little more");
        assert_eq!(beside(ms(30), ms(21), 1.0, 2), ms(72), "all of it");
        assert_eq!(beside(ms(60), ms(42), 1.0, 2), SHARED_MAX - ms(60));
        assert_eq!(beside(ms(100), ms(70), 1.0, 2), ms(70));
    }
}
