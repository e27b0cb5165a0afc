//! `write_delay`: publications of a channel wait for others, so that several go out in one write.
//!
//! Part of the hub; reads no clock, time comes in. Such a publication goes to the logs at once, like any
//! other, so order, bounds, recovery and conflation know nothing of it: what waits is the mark by which the
//! walk finds the sessions. A session that is visited for another reason (a reply, another channel, a
//! socket with room again) gets all that it has, earlier than it had to.
//! The wait is a cohort's, not a channel's: a dashboard of fifty delayed channels has one write each delay,
//! not fifty. It counts from the cohort's last write for a delayed channel, so the first publication after a
//! rest leaves at once, as it does with `HUB_WRITE_DELAY`: waiting alone, it would be late for nothing.
//!
//! **Invariant:** a cohort with something that isn't marked has a due, at most the delay away.
//! **Invariant:** after a publication, what waits in a cohort is less than one write takes and than half an
//! outbox; in all cohorts together it is at most `bytes_max`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use slab::Slab;

use super::cohort::{Cohort, Cohorts};
use super::dirty::DirtySet;
use super::hub::{Hub, WRITE_BYTES_MAX};
use crate::channel::ChannelId;

/// Dues are swept of those that count no longer when there are so many more than two for each cohort: a
/// sweep looks at each.
const IDLE_DUES_MAX: usize = 64;

/// A cohort's.
#[derive(Default)]
pub struct Wait {
    /// When its members were last marked for a delayed channel.
    last: Option<Instant>,
    until: Option<Instant>,
    /// In the log since the wait began.
    bytes: usize,
}

/// The waits of a shard.
#[derive(Default)]
pub struct Delays {
    /// One for each cohort that waits, and some that count no longer: their cohort is gone, or waits until
    /// another time.
    dues: BinaryHeap<Reverse<(Instant, u32)>>,
    bytes: usize,
    pub bytes_max: usize,
    has_new_due: bool,
    has_ended: bool,
}

impl Delays {
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, ..Self::default() }
    }

    fn add(&mut self, due: Instant, cohort: u32) {
        self.has_new_due |= self.dues.peek().is_none_or(|Reverse((first, _))| due < *first);
        self.dues.push(Reverse((due, cohort)));
    }

    fn sweep(&mut self, cohorts: &Slab<Cohort>) {
        if self.dues.len() > 2 * cohorts.len() + IDLE_DUES_MAX {
            self.dues.retain(|Reverse((due, idx))| {
                cohorts.get(*idx as usize).is_some_and(|cohort| waits_until(cohort, *due))
            });
        }
    }

    /// Whatever waits in a cohort is to be written now.
    fn end_wait(&mut self, cohort: &mut Cohort, dirty: &mut DirtySet, now: Instant) {
        let Some(wait) = cohort.wait.as_mut() else { return };
        self.bytes -= std::mem::take(&mut wait.bytes);
        wait.until = None;
        // Everything may have been written for other reasons.
        if cohort.n_behind > 0 {
            wait.last = Some(now);
            cohort.mark(dirty);
        }
    }

    /// A cohort ends.
    pub fn forget(&mut self, cohort: &Cohort) {
        self.bytes -= cohort.wait.as_ref().map_or(0, |wait| wait.bytes);
    }
}

fn waits_until(cohort: &Cohort, due: Instant) -> bool {
    cohort.wait.as_ref().is_some_and(|wait| wait.until == Some(due))
}

impl Hub {
    /// What an open channel's publications wait at most, whole milliseconds. Who waits already does so until
    /// it was due before.
    pub fn set_delay(&mut self, slot: u32, delay: Duration) {
        self.cohorts.channels[slot as usize].delay_ms = delay.as_millis() as u32;
    }

    /// Goes on with a publication that was fanned out just now: marks the sessions that have it, or lets
    /// them wait. Does nothing where the channel has no delay.
    pub fn delay(&mut self, id: ChannelId, now: impl FnOnce() -> Instant) {
        let Self { cohorts, dirty, delays, totals, outbox_bytes_max, .. } = self;
        let Cohorts { cohorts, channels, .. } = cohorts;
        let channel = channels.get(id.slot as usize);
        let channel = channel.filter(|it| it.delay_ms > 0 && it.generation == id.generation);
        let Some(channel) = channel else { return };
        let delay_ms = if delays.has_ended { 0 } else { channel.delay_ms };
        let delay = Duration::from_millis(delay_ms.into());
        let bytes_max = WRITE_BYTES_MAX.min(*outbox_bytes_max / 2);
        let now = now();
        for cohort_ref in &channel.cohorts {
            let cohort = &mut cohorts[cohort_ref.cohort as usize];
            // Marked already; or their sockets are full and they get the newest only.
            if cohort.all_dirty || cohort.n_behind == 0 {
                continue;
            }
            let wait = cohort.wait.get_or_insert_default();
            let due = wait.last.map_or(now, |last| last + delay);
            if due <= now {
                delays.end_wait(cohort, dirty, now);
                continue;
            }
            totals.delayed += 1;
            wait.bytes += cohort.last_frame_bytes;
            delays.bytes += cohort.last_frame_bytes;
            if wait.bytes >= bytes_max {
                totals.delays_cut += 1;
                delays.end_wait(cohort, dirty, now);
            } else if wait.until.is_none_or(|until| due < until) {
                wait.until = Some(due);
                delays.add(due, cohort_ref.cohort);
            }
        }
        delays.sweep(cohorts);
        if delays.bytes > delays.bytes_max {
            self.cut_delays(now);
        }
    }

    /// All that waits is to be written now.
    fn cut_delays(&mut self, now: Instant) {
        let cohorts = &mut self.cohorts.cohorts;
        for Reverse((due, idx)) in std::mem::take(&mut self.delays.dues) {
            let cohort = cohorts.get_mut(idx as usize).filter(|cohort| waits_until(cohort, due));
            if let Some(cohort) = cohort {
                self.totals.delays_cut += 1;
                self.delays.end_wait(cohort, &mut self.dirty, now);
            }
        }
    }

    /// From now on nothing waits.
    pub fn end_delays(&mut self, now: Instant) {
        self.delays.has_ended = true;
        self.cut_delays(now);
    }

    /// Whether somebody has to look at [`next_due`](Self::next_due) again.
    pub fn take_new_due(&mut self) -> bool {
        std::mem::take(&mut self.delays.has_new_due)
    }

    pub fn next_due(&self) -> Option<Instant> {
        self.delays.dues.peek().map(|Reverse((due, _))| *due)
    }

    /// Marks those whose time has come.
    pub fn mark_due(&mut self, now: Instant) {
        while self.next_due().is_some_and(|due| due <= now) {
            let Some(Reverse((due, idx))) = self.delays.dues.pop() else { return };
            let cohort = self.cohorts.cohorts.get_mut(idx as usize);
            if let Some(cohort) = cohort.filter(|cohort| waits_until(cohort, due)) {
                self.delays.end_wait(cohort, &mut self.dirty, now);
            }
        }
    }
}

#[cfg(test)]
mod tests;
