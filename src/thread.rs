//! What the kernel's scheduler is told about hubbub's threads.

use std::time::Duration;

/// Pins the calling thread to one core.
pub fn pin(core: usize) {
    // SAFETY: an all-zero cpu_set_t is a valid empty set, and the call only reads it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        if libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) != 0 {
            tracing::warn!(core, "can't pin the thread");
        }
    }
}

/// Asks for time slices of this length (100 µs to 100 ms) for the calling thread. It gets no more
/// of a core than before, but sooner: where it shares one with a thread of longer slices, it runs
/// as soon as it wakes. Kernels before 6.12 ignore it.
pub fn set_slice(slice: Duration) {
    // SAFETY: the calls read and fill one `sched_attr`, whose size they are told.
    unsafe {
        let mut attr: libc::sched_attr = std::mem::zeroed();
        attr.size = size_of::<libc::sched_attr>() as u32;
        if libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, attr.size, 0) != 0
            || attr.sched_policy != libc::SCHED_OTHER as u32
        {
            return;
        }
        attr.sched_runtime = slice.as_nanos() as u64;
        libc::syscall(libc::SYS_sched_setattr, 0, &raw mut attr, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_changes_neither_policy_nor_niceness() {
        let attr = || {
            // SAFETY: as above.
            unsafe {
                let mut attr: libc::sched_attr = std::mem::zeroed();
                let size = size_of::<libc::sched_attr>() as u32;
                let result = libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0);
                assert_eq!(result, 0);
                (attr.sched_policy, attr.sched_nice)
            }
        };
        std::thread::spawn(move || {
            // SAFETY: a plain system call about this thread.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 3) };
            let before = attr();
            assert!(before.1 >= 3);
            set_slice(Duration::from_micros(200));
            assert_eq!(attr(), before);
        })
        .join()
        .unwrap();
    }
}
