//! Many clients at once: one `poll` over all of them, nobody is read out of turn.

use super::ledger::Viewer;
use super::{Cf, Raw, sys};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

pub trait Pump {
    fn fd(&self) -> RawFd;
    /// Takes what is there; false once the stream has ended.
    fn pump(&mut self) -> bool;
}

impl Pump for Raw {
    fn fd(&self) -> RawFd {
        Raw::fd(self)
    }
    fn pump(&mut self) -> bool {
        Raw::pump(self)
    }
}

impl Pump for Cf {
    fn fd(&self) -> RawFd {
        self.raw.fd()
    }
    fn pump(&mut self) -> bool {
        Cf::pump(self)
    }
}

impl Pump for Viewer {
    fn fd(&self) -> RawFd {
        Viewer::fd(self)
    }
    fn pump(&mut self) -> bool {
        Viewer::pump(self)
    }
}

/// Reads all clients until each is done or has ended, or the deadline passes. True if all are done.
pub fn drive<C: Pump>(clients: &mut [C], deadline: Duration, done: impl Fn(&C) -> bool) -> bool {
    let end = Instant::now() + deadline;
    let mut open: Vec<usize> = (0..clients.len()).filter(|i| !done(&clients[*i])).collect();
    let mut ready = Vec::new();
    while !open.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let fds: Vec<RawFd> = open.iter().map(|i| clients[*i].fd()).collect();
        sys::wait_many(&fds, &mut ready, left);
        let mut finished = Vec::new();
        for at in &ready {
            let client = &mut clients[open[*at]];
            if !client.pump() || done(client) {
                finished.push(*at);
            }
        }
        finished.iter().rev().for_each(|at| _ = open.swap_remove(*at));
    }
    clients.iter().all(done)
}
