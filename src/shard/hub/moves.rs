//! Moves of sessions between cohorts, and what becomes of what is pending for them.

use super::{CUT_SHORT, Hub, Share, Variant, own};

impl Hub {
    /// Who was without a base has one now.
    #[cold]
    pub(super) fn end_fresh(&mut self, slot: u32) {
        let list = &self.cohorts.channels[slot as usize].cohorts;
        let fresh: Vec<u32> = list
            .iter()
            .filter(|cohort_ref| cohort_ref.variant == Variant::Fresh)
            .map(|cohort_ref| cohort_ref.cohort)
            .collect();
        for cohort in fresh {
            let is_told =
                self.cohorts.cohorts[cohort as usize].share(slot).unwrap_or_default().is_told;
            let share = Share { variant: Variant::Delta, is_told };
            let twin = self.cohorts.with(cohort, slot, share);
            for idx in self.cohorts.cohorts[cohort as usize].members.clone() {
                self.move_to(idx, twin);
            }
        }
    }

    /// Takes the rest of a log frame that was written in part to the own outbox.
    pub(in crate::shard) fn keep_partial(&mut self, idx: u32) {
        let seat = &mut self.seats[idx as usize];
        if seat.own.is_some() || !seat.is(CUT_SHORT) {
            return;
        }
        let cohort = &mut self.cohorts.cohorts[seat.cohort as usize];
        let boundary = cohort.log.boundary_from(seat.position);
        if boundary == seat.position {
            return;
        }
        let was_behind = seat.position < cohort.log.end();
        let position = seat.position;
        own(seat).outbox.append(&cohort.log, position, boundary);
        seat.position = boundary;
        if was_behind && boundary == cohort.log.end() {
            cohort.on_caught_up(&mut self.cohorts.spares);
        }
    }

    /// Moves a session to another cohort; what is pending in the old log goes along.
    pub(in crate::shard) fn move_to(&mut self, idx: u32, cohort: u32) {
        let seat = &mut self.seats[idx as usize];
        if seat.cohort == cohort {
            return;
        }
        let log = &self.cohorts.cohorts[seat.cohort as usize].log;
        if seat.position < log.end() {
            let position = seat.position;
            own(seat).outbox.append(log, position, log.end());
            self.dirty.insert(idx);
        }
        let old = (seat.cohort, seat.member_at, seat.position);
        self.join(idx, cohort);
        self.part(old.0, old.1, old.2);
    }

    pub(super) fn join(&mut self, idx: u32, cohort: u32) {
        let seat = &mut self.seats[idx as usize];
        let members = &mut self.cohorts.cohorts[cohort as usize];
        seat.cohort = cohort;
        seat.member_at = members.members.len() as u32;
        seat.position = members.log.end();
        members.members.push(idx);
        members.all_dirty = false;
        self.n_subscriptions += members.channels.len();
    }

    pub(super) fn leave(&mut self, idx: u32) {
        let seat = &self.seats[idx as usize];
        self.part(seat.cohort, seat.member_at, seat.position);
    }

    /// Takes a member out of a cohort; the last one takes the cohort with it.
    fn part(&mut self, cohort_idx: u32, member_at: u32, position: u64) {
        let cohort = &mut self.cohorts.cohorts[cohort_idx as usize];
        self.n_subscriptions -= cohort.channels.len();
        cohort.members.swap_remove(member_at as usize);
        if let Some(moved) = cohort.members.get(member_at as usize) {
            self.seats[*moved as usize].member_at = member_at;
        }
        if position < cohort.log.end() {
            cohort.on_caught_up(&mut self.cohorts.spares);
        }
        if cohort.members.is_empty() {
            self.delays.forget(cohort);
            self.cohorts.remove(cohort_idx);
        }
    }

    /// Drops what is queued, but for the rest of a frame that was written in part.
    pub(super) fn drop_queued(&mut self, idx: u32) {
        self.keep_partial(idx);
        let seat = &mut self.seats[idx as usize];
        self.totals.dropped_frames += seat.behind.take().map_or(0, |behind| behind.len()) as u64;
        if let Some(own) = seat.own.as_mut() {
            let boundary = own.outbox.boundary_from(own.position);
            self.totals.dropped_frames += own.outbox.cut(boundary) as u64;
            if own.position == own.outbox.end() {
                seat.own = None;
            }
        }
        let cohort = &mut self.cohorts.cohorts[seat.cohort as usize];
        if seat.position < cohort.log.end() {
            self.totals.dropped_frames += cohort.log.frames_from(seat.position) as u64;
            seat.position = cohort.log.end();
            cohort.on_caught_up(&mut self.cohorts.spares);
        }
    }
}
