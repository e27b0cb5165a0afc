//! Conflation: a session whose socket is full gets, of channels with `slow_consumer = "conflate"`, only
//! the newest publication, chosen when the socket takes it.
//!
//! Part of the hub; sans-I/O. When a socket fills, its session moves to the *conflating* twin of its
//! cohort, the one with the same format and channels; what was pending there for it of those channels is
//! given up for their newest. In the twin a publication of such a channel is not copied to the log: the
//! channel keeps it as its newest, and each member notes that it is behind on that channel. Once the
//! socket has taken all, the newest of each such channel included, the session moves back.
//! So who keeps up pays nothing, and who doesn't holds a number a channel, however much is published.
//! Publications of other channels go to the twin's log, under the outbox's bound.
//!
//! With history, `recovery = "stream"` is refused for such a channel: leaving publications out is what
//! it is for. `recovery = "cache"` fits: who comes back gets the newest, as who is slow does.
//!
//! **Invariant:** a channel's publications reach a session in their order, each at most once.
//! **Invariant:** what a session will never get is counted, in [`Totals::conflated`](super::hub::Totals).

use smallvec::SmallVec;

use super::hub::{Hub, LAGGING, Sent, Visit, WRITE_BYTES_MAX, own};

/// The channels of which a session has yet to get the newest, in the order in which it fell behind.
#[derive(Default)]
pub struct Behind(SmallVec<[u32; 4]>);

impl Behind {
    /// False: it was behind already, so a publication was replaced.
    pub fn note(&mut self, slot: u32) -> bool {
        let is_new = !self.0.contains(&slot);
        if is_new {
            self.0.push(slot);
        }
        is_new
    }

    fn first(&self) -> Option<u32> {
        self.0.first().copied()
    }

    fn pop(&mut self) -> Option<u32> {
        (!self.0.is_empty()).then(|| self.0.remove(0))
    }

    /// False: it isn't behind on that channel.
    fn move_to_front(&mut self, slot: u32) -> bool {
        let found = self.0.iter().position(|other| *other == slot);
        found.map(|at| self.0[..=at].rotate_right(1)).is_some()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl Hub {
    /// Makes an open channel without subscribers one whose slow subscribers get the newest only.
    pub fn conflate(&mut self, slot: u32) {
        self.cohorts.channels[slot as usize].conflates = true;
    }

    pub fn conflates(&self, slot: u32) -> bool {
        self.cohorts.channels.get(slot as usize).is_some_and(|channel| channel.conflates)
    }

    /// The session's socket is full, or was when it subscribed.
    #[cold]
    pub(super) fn start_conflating(&mut self, idx: u32) {
        self.keep_partial(idx);
        let seat = &mut self.seats[idx as usize];
        let from = seat.cohort;
        let cohort = &mut self.cohorts.cohorts[from as usize];
        let (position, end) = (seat.position, cohort.log.end());
        let mut behind = Box::<Behind>::default();
        let first = cohort.marks.partition_point(|mark| mark.position < position);
        for at in first..cohort.marks.len() {
            let mark = cohort.marks[at];
            let next = cohort.marks.get(at + 1).map_or(end, |next| next.position);
            let channel = self.cohorts.channels.get(mark.slot as usize);
            if channel.is_none_or(|channel| !channel.conflates) {
                own(seat).outbox.append(&cohort.log, mark.position, next);
            } else if !behind.note(mark.slot) {
                self.totals.conflated += 1;
            }
        }
        seat.behind = Some(behind);
        if position < end {
            seat.position = end;
            cohort.on_caught_up(&mut self.cohorts.spares);
        }
        let twin = self.cohorts.twin(from);
        self.move_to(idx, twin);
    }

    /// Nothing else is pending: writes the newest of each channel that the session is behind on, and
    /// when the socket has taken all, ends conflating. A value of which it takes no byte isn't chosen
    /// yet: it would be an old one by the time there is room.
    #[cold]
    pub(super) fn write_newest(
        &mut self,
        idx: u32,
        write: &mut impl FnMut(i32, &[&[u8]]) -> Sent,
    ) -> Visit {
        let Self { seats, cohorts, totals, .. } = self;
        let seat = &mut seats[idx as usize];
        let format = cohorts.cohorts[seat.cohort as usize].format;
        while let Some(slot) = seat.behind.as_ref().and_then(|behind| behind.first()) {
            let frame = cohorts.channels[slot as usize].newest_frame(format);
            let (mut at, mut last) = (0, Sent::Full);
            while at < frame.len() {
                let part = &frame[at..frame.len().min(at + WRITE_BYTES_MAX)];
                last = write(seat.fd, &[part]);
                totals.writes += 1;
                let Sent::Bytes(n) = last else { break };
                totals.sent_bytes += n as u64;
                at += n;
                if n < part.len() {
                    break;
                }
            }
            if at > 0 {
                seat.behind.as_mut().and_then(|behind| behind.pop());
            }
            if at == frame.len() {
                continue;
            }
            if at > 0 {
                let own = own(seat);
                own.outbox.push(frame);
                own.position += at as u64;
            }
            if last == Sent::Gone {
                return Visit::Gone;
            }
            seat.flags |= LAGGING;
            return Visit::Full;
        }
        seat.behind = None;
        let twin = cohorts.twin(seat.cohort);
        self.move_to(idx, twin);
        Visit::CaughtUp
    }

    /// Queues the newest of a channel that the session leaves.
    pub(super) fn settle_behind(&mut self, idx: u32, slot: u32) {
        let is_behind = |behind: &mut Box<Behind>| behind.move_to_front(slot);
        if self.seats[idx as usize].behind.as_mut().is_some_and(is_behind) {
            self.keep_partial(idx);
            self.queue_newest(idx);
        }
    }

    /// The same for all channels.
    pub(super) fn settle_all_behind(&mut self, idx: u32) {
        if self.seats[idx as usize].behind.is_some() {
            self.keep_partial(idx);
            while self.queue_newest(idx) {}
        }
    }

    /// Queues the newest of the next channel that it is behind on. False: of none.
    fn queue_newest(&mut self, idx: u32) -> bool {
        let format = self.cohort_of(idx).format;
        let seat = &mut self.seats[idx as usize];
        let Some(slot) = seat.behind.as_mut().and_then(|behind| behind.pop()) else { return false };
        own(seat).outbox.push(self.cohorts.channels[slot as usize].newest_frame(format));
        true
    }
}
