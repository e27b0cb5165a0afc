//! A timer of microsecond precision: tokio's steps of 1 ms would double a pause of 0.5 ms.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::unix::AsyncFd;

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
