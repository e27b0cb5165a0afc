//! The one clock: CLOCK_MONOTONIC in nanoseconds, the same for every thread.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

pub const SECOND_NS: u64 = 1_000_000_000;
pub const MS_NS: u64 = 1_000_000;

/// Nanoseconds since the machine started.
pub fn now_ns() -> u64 {
    read(ClockId::Monotonic)
}

/// What the calling thread has used of a CPU, in nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    read(ClockId::ThreadCPUTime)
}

fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * SECOND_NS + time.tv_nsec as u64
}

/// Sleeps until then, or not at all if that is past.
pub fn sleep_until(deadline_ns: u64) {
    let now = now_ns();
    if deadline_ns > now {
        std::thread::sleep(Duration::from_nanos(deadline_ns - now));
    }
}

pub fn seconds(duration_ns: u64) -> f64 {
    duration_ns as f64 / SECOND_NS as f64
}
