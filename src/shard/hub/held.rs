//! Sessions whose subscriptions their clients don't know of yet: what is published is collected behind
//! the answer that tells them.

use super::{CLOSING, HELD, Hub, Own, Queued, SessionId, own};

impl Hub {
    /// Writes nothing more until [`Hub::release`].
    pub fn hold(&mut self, id: SessionId) {
        if let Some(seat) = self.seat_mut(id).filter(|seat| !seat.is(CLOSING)) {
            seat.flags |= HELD;
        }
    }

    /// Queues frames ahead of what was collected since [`Hub::hold`], or instead of it, and goes on to
    /// write.
    pub fn release(&mut self, id: SessionId, frames: &[u8], collected: Queued) {
        if self.is_closing(id) {
            return;
        }
        if collected == Queued::Drop {
            self.drop_queued(id.idx);
        }
        let seat = &mut self.seats[id.idx as usize];
        seat.flags &= !HELD;
        let before = seat.own.take();
        let outbox = &mut own(seat).outbox;
        if let Some(Own { outbox: before, position }) = before.as_deref() {
            // What was written in part goes on first.
            let boundary = before.boundary_from(*position);
            outbox.append(before, *position, boundary);
            outbox.push_copy(frames);
            outbox.append(before, boundary, before.end());
        } else {
            outbox.push_copy(frames);
        }
        self.dirty.insert(id.idx);
    }

    /// A session that is closed is written to again. True: its client was told of no subscription, so
    /// what was collected would tell it nothing.
    pub(super) fn end_hold(&mut self, idx: u32) -> bool {
        let seat = &mut self.seats[idx as usize];
        // Without a socket there is no hold to end: it isn't attached yet.
        let is_held = seat.is(HELD) && seat.fd >= 0;
        if is_held {
            seat.flags &= !HELD;
        }
        is_held
    }
}
