//! What the machine allows: cores and open files. Asked once, at start, from the main thread.

const SHARDS_MAX: usize = 128;
/// Listeners, Redis links, timers, and the API requests that must get through when clients fill
/// the rest.
const RESERVED_FILES: usize = 64;
/// A shard's own: its reactor, wakers and timer (five), and one to spare.
const FILES_PER_SHARD: usize = 6;
/// Containers are often given a limit of a billion open files. This many connections would need
/// tens of gigabytes; a default beyond it says nothing.
const CONNECTIONS_CAP: usize = 1 << 24;

/// The facts that defaults depend on; tests bring their own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Machine {
    pub cores: usize,
    pub open_files_max: usize,
    /// Of the machine, or of the control group if that is less.
    pub memory_bytes: usize,
}

impl Machine {
    /// Asks the operating system, and raises the soft limit of open files to the hard one: it is
    /// low by default for the sake of programs that use `select`, which hubbub does not.
    pub fn detect() -> Machine {
        Machine {
            // Respects cgroup quotas and the affinity mask.
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            open_files_max: raise_open_files_max(),
            memory_bytes: memory_bytes(),
        }
    }

    pub fn default_shards(self) -> usize {
        self.cores.clamp(1, SHARDS_MAX)
    }

    /// Descriptors that may be sockets of listeners.
    pub fn files_for_sockets(self, shards: usize) -> usize {
        let reserved = RESERVED_FILES + FILES_PER_SHARD * shards;
        self.open_files_max.saturating_sub(reserved).max(2)
    }

    /// So many that a tenth more, the handshakes, still finds descriptors.
    pub fn connections_max(self, shards: usize) -> usize {
        (self.files_for_sockets(shards) / 11 * 10).clamp(1, CONNECTIONS_CAP)
    }

    pub fn handshakes_max(self, shards: usize) -> usize {
        (self.connections_max(shards) / 10).max(1)
    }
}

/// The soft limit after the attempt. A refusal is not an error: the lower limit then counts.
fn raise_open_files_max() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live, writable rlimit for the length of the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return RESERVED_FILES;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
    // SAFETY: the pointer is to a live rlimit, only read.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
        limit = raised;
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

/// What a machine that doesn't say is taken to have.
const MEMORY_BYTES_ASSUMED: usize = 1 << 30;

fn memory_bytes() -> usize {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let of_machine = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        Some(line.split_whitespace().nth(1)?.parse::<usize>().ok()? * 1024)
    });
    let files = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let of_group = files.iter().find_map(|path| read(path)?.trim().parse::<usize>().ok());
    let least = [of_machine, of_group].into_iter().flatten().min();
    least.unwrap_or(MEMORY_BYTES_ASSUMED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_follow_the_machine() {
        let check = |cores, open_files_max, shards, connections| {
            let machine = Machine { cores, open_files_max, memory_bytes: 1 << 30 };
            assert_eq!(machine.default_shards(), shards, "{machine:?}");
            assert_eq!(machine.connections_max(shards), connections, "{machine:?}");
        };
        check(2, 1024, 2, 860);
        check(64, 1024, 64, 520);
        check(0, 10, 1, 1);
        check(400, 1_073_741_816, 128, CONNECTIONS_CAP);
        check(1, usize::MAX, 1, CONNECTIONS_CAP);
    }

    #[test]
    fn raising_is_idempotent() {
        let once = Machine::detect();
        assert!(once.open_files_max > 0);
        assert_eq!(once, Machine::detect());
    }
}
