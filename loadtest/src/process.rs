//! What /proc says of the server and of this process.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

/// CPU time of a process, all its living threads together.
#[derive(Copy, Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cpu {
    /// From schedstat: exact.
    pub run_ns: u64,
    /// From stat: in ticks, sampled; good for the ratio of the two.
    pub user_ticks: u64,
    pub system_ticks: u64,
}

impl Cpu {
    /// Of several processes; a process that is gone has used nothing.
    pub fn of(pids: &[u32]) -> Self {
        pids.iter().map(|&pid| Self::of_one(pid)).fold(Self::default(), |a, b| Self {
            run_ns: a.run_ns + b.run_ns,
            user_ticks: a.user_ticks + b.user_ticks,
            system_ticks: a.system_ticks + b.system_ticks,
        })
    }

    fn of_one(pid: u32) -> Self {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name, in brackets, may hold spaces.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let ticks = |idx: usize| fields.get(idx).and_then(|it| it.parse().ok()).unwrap_or(0);
        Self { run_ns: run_ns(pid), user_ticks: ticks(11), system_ticks: ticks(12) }
    }

    pub fn since(self, before: Self) -> Self {
        Self {
            run_ns: self.run_ns.saturating_sub(before.run_ns),
            user_ticks: self.user_ticks.saturating_sub(before.user_ticks),
            system_ticks: self.system_ticks.saturating_sub(before.system_ticks),
        }
    }

    pub fn seconds(self) -> f64 {
        self.run_ns as f64 / 1e9
    }

    /// The share of [`seconds`](Self::seconds) spent in user space, as far as ticks tell.
    pub fn user_seconds(self) -> f64 {
        let ticks = self.user_ticks + self.system_ticks;
        if ticks == 0 { 0.0 } else { self.seconds() * self.user_ticks as f64 / ticks as f64 }
    }
}

fn run_ns(pid: u32) -> u64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let of_thread = |path: &Path| -> Option<u64> {
        let text = fs::read_to_string(path.join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    };
    threads.flatten().filter_map(|thread| of_thread(&thread.path())).sum()
}

/// Memory of a process, in bytes.
#[derive(Copy, Clone, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    pub rss: u64,
    /// Private, written memory: what connections cost.
    pub anon: u64,
}

impl Memory {
    pub fn of(pids: &[u32]) -> Self {
        pids.iter()
            .map(|&pid| Self::of_one(pid))
            .fold(Self::default(), |a, b| Self { rss: a.rss + b.rss, anon: a.anon + b.anon })
    }

    fn of_one(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
            kib.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
        };
        Self { rss: bytes("VmRSS:"), anon: bytes("RssAnon:") }
    }
}

/// How many file descriptors a process has open.
pub fn n_fds(pids: &[u32]) -> usize {
    // Since Linux 6.2 it is the folder's size; before, there is nothing but to count.
    let of_one = |pid: &u32| {
        let folder = format!("/proc/{pid}/fd");
        let size = fs::metadata(&folder).map_or(0, |it| it.len() as usize);
        if size > 0 { size } else { fs::read_dir(folder).map_or(0, Iterator::count) }
    };
    pids.iter().map(of_one).sum()
}

pub fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/stat")).exists()
}

/// As many descriptors as the kernel lets us have; an error if that is too few.
pub fn raise_fd_limit(n_needed: usize) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("raising the limit of open files")?;
    match limit.maximum {
        Some(maximum) if (maximum as usize) < n_needed => {
            bail!("{n_needed} descriptors needed, the limit (`ulimit -Hn`) is {maximum}")
        }
        _ => Ok(()),
    }
}

/// A list of CPUs: `0`, `0,2`, `0-3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus(pub Vec<usize>);

impl std::str::FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            let n = text.trim().parse::<usize>().map_err(|_| format!("no CPU number: {text:?}"))?;
            if n < CpuSet::MAX_CPU { Ok(n) } else { Err(format!("CPU {n}: too high a number")) }
        };
        let mut cpus = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                Some((from, to)) => cpus.extend(number(from)?..=number(to)?),
                None => cpus.push(number(part)?),
            }
        }
        if cpus.is_empty() { Err("no CPUs".to_owned()) } else { Ok(Self(cpus)) }
    }
}

impl std::fmt::Display for Cpus {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(usize::to_string).collect();
        formatter.write_str(&numbers.join(","))
    }
}

/// Pins the calling thread, and what it starts from now on.
pub fn pin(cpus: &Cpus) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    for &cpu in &cpus.0 {
        set.set(cpu);
    }
    sched_setaffinity(None, &set).with_context(|| format!("pinning to the CPUs {cpus}"))
}

/// The CPUs that a process may use, or the calling thread.
pub fn cpus_of(pid: Option<u32>) -> anyhow::Result<Cpus> {
    let pid = match pid {
        Some(pid) => Some(i32::try_from(pid).ok().and_then(Pid::from_raw).context("a pid")?),
        None => None,
    };
    let set = sched_getaffinity(pid).context("asking for CPUs")?;
    Ok(Cpus((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()))
}

/// Only works for processes that are ours to signal.
pub fn terminate(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

/// Lowers the calling thread's priority to the least.
pub fn be_nice() {
    let thread = Some(rustix::thread::gettid());
    let _ = rustix::process::setpriority_process(thread, 19);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        let check = |text: &str, cpus: &[usize]| assert_eq!(text.parse(), Ok(Cpus(cpus.to_vec())));
        check("0", &[0]);
        check("0,2-4", &[0, 2, 3, 4]);
        for bad in ["", "a", "1-", "3-1", "99999"] {
            assert!(bad.parse::<Cpus>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn cpu_and_memory_of_this_process_show() {
        let pid = [std::process::id()];
        let before = Cpu::of(&pid);
        let mut grown = vec![1u8; 32 << 20];
        while Cpu::of(&pid).since(before).seconds() < 0.05 {
            grown.iter_mut().for_each(|byte| *byte = byte.wrapping_mul(3));
        }
        assert!(Memory::of(&pid).anon >= 32 << 20, "{:?} {}", Memory::of(&pid), grown[7]);
        assert!(n_fds(&pid) >= 3);
    }
}
