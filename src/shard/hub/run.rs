//! A run: sessions next to each other that each get one slice of their cohort's log. That is nearly all
//! of a fan-out, and it's written as the bare loop of `send(2)` that the kernel's limit is measured by:
//! first all slices are looked up, then all are written, then all is noted.
//!
//! A write evicts the caches nearest to the core, the instructions' too. With a whole visit between two
//! of them the deliveries per CPU-second were a sixth fewer (1,000 sessions, 50 publications a second).

use smallvec::SmallVec;

use super::{CUT_SHORT, Hub, LAGGING, Sent, TAKEN, Visit, WRITE_BYTES_MAX};

/// Longer runs make room on the heap.
const RUN_INLINE: usize = 64;

/// How far a run went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    pub n_visited: usize,
    /// The session that has something to write and wasn't visited: there was no more room in the run, or
    /// it takes a [`Hub::visit`].
    pub next: Option<u32>,
}

impl Hub {
    /// Does what [`Hub::visit`] would to each session in `from..to`, in order, up to the first that has
    /// more to get than one slice, and to `n_max` at most. Tells how each ended.
    pub fn visit_run(
        &mut self,
        from: u32,
        to: u32,
        n_max: usize,
        write: &mut impl FnMut(i32, &[u8]) -> Sent,
        on_visited: &mut impl FnMut(u32, Visit),
    ) -> Run {
        let mut slices: SmallVec<[(u32, i32, &[u8]); RUN_INLINE]> = SmallVec::new();
        let mut next = self.dirty.next(from, to);
        while let Some(idx) = next
            && slices.len() < n_max
            && let Some((fd, slice)) = self.only_slice(idx)
        {
            slices.push((idx, fd, slice));
            next = self.dirty.next(idx + 1, to);
        }
        let mut written: SmallVec<[(u32, usize, Sent); RUN_INLINE]> = SmallVec::new();
        for (idx, fd, slice) in &slices {
            written.push((*idx, slice.len(), write(*fd, slice)));
        }
        drop(slices);
        let n_visited = written.len();
        self.totals.writes += n_visited as u64;
        for (idx, n_bytes, sent) in written {
            on_visited(idx, self.on_written(idx, n_bytes, sent));
        }
        Run { n_visited, next }
    }

    /// The socket of a session and all that is pending for it, if one slice is and may be written.
    #[inline]
    fn only_slice(&self, idx: u32) -> Option<(i32, &[u8])> {
        let seat = &self.seats[idx as usize];
        if seat.flags != TAKEN || seat.own.is_some() {
            return None;
        }
        let cohort = &self.cohorts.cohorts[seat.cohort as usize];
        let pending = cohort.log.end() - seat.position;
        if cohort.is_conflating || pending == 0 || pending > WRITE_BYTES_MAX as u64 {
            return None;
        }
        let slice = cohort.log.chunk(seat.position);
        (slice.len() as u64 == pending).then_some((seat.fd, slice))
    }

    /// Notes what became of a session's only slice.
    #[inline]
    fn on_written(&mut self, idx: u32, n_bytes: usize, sent: Sent) -> Visit {
        self.dirty.remove(idx);
        let seat = &mut self.seats[idx as usize];
        let cohort = &mut self.cohorts.cohorts[seat.cohort as usize];
        cohort.all_dirty = false;
        if let Sent::Bytes(n) = sent {
            self.totals.sent_bytes += n as u64;
            seat.position += n as u64;
            if n == n_bytes {
                cohort.on_caught_up(&mut self.cohorts.spares);
                return Visit::CaughtUp;
            }
        }
        seat.flags |= CUT_SHORT;
        if sent == Sent::Gone {
            return Visit::Gone;
        }
        seat.flags |= LAGGING;
        if cohort.has_marks {
            self.start_conflating(idx);
        }
        Visit::Full
    }
}
