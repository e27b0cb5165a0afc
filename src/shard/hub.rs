//! The hub: who is subscribed to what on this shard, and what each session still has to get.
//!
//! Owned by one shard thread, reached only through its state. Sans-I/O: the write function is
//! handed in, so the whole fan-out runs in tests without a socket.
//!
//! Sessions with the same wire format and the same set of subscriptions form a *cohort*. A
//! publication is copied once into the log of each cohort that has its channel; a session holds
//! a position in its cohort's log, so what it hasn't got is one slice. The cost of a publication
//! is cohorts, not subscribers; per subscriber it costs one bit in the dirty set, and that only
//! if no session of the cohort was visited since the last publication.
//! What is one session's alone (replies, what was pending when it changed cohorts) goes to its
//! own outbox, which is always written first.
//!
//! Who has just subscribed with delta gets the next publication as a whole, and moves to the cohort
//! of those who get patches behind it: that once a session is copied what is pending for it.
//!
//! **Invariant:** a session is in exactly one cohort; its position is within the cohort's log.
//! **Invariant:** a channel is open here while it has a cohort.
//! **Invariant:** bytes reach a socket as whole frames in order: a frame that was written in
//! part goes to the own outbox before anything else may.
//! **Invariant:** all who get a channel's patches got its publication `last_serial` last.
//! Deliberately absent: channel names, clocks, log lines, atomics.

mod held;
mod moves;
mod run;

use std::ops::AddAssign;
use std::sync::Arc;

use bytes::Bytes;

use super::cohort::{Cohort, CohortRef, Cohorts, Mark};
pub use super::cohort::{Share, Variant};
use super::conflate::Behind;
use super::delay::Delays;
use super::dirty::DirtySet;
use super::outbox::Outbox;
use super::spares::Spares;
use crate::channel::{Channel, ChannelId};
use crate::publication::{Format, N_FORMATS, Patches, Publication};
pub use run::Run;

/// A session of this shard: index and generation. A stale id matches nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SessionId {
    pub idx: u32,
    pub generation: u32,
}

/// What one write did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// The socket took so many bytes.
    Bytes(usize),
    /// The socket is full.
    Full,
    /// The socket is broken.
    Gone,
}

/// What publications, joins and leaves put into the logs.
#[derive(Clone, Copy, Default, Debug)]
pub struct Fanout {
    /// Their frames: one session has no more of them pending.
    pub frame_bytes: usize,
    /// Counted once per cohort.
    pub queued_bytes: usize,
    /// Frames, counted once per session.
    pub deliveries: usize,
}

impl Fanout {
    /// Another cohort's, of the same publication.
    pub(super) fn queue(&mut self, frame_bytes: usize, n_members: usize) {
        self.frame_bytes = self.frame_bytes.max(frame_bytes);
        self.queued_bytes += frame_bytes;
        self.deliveries += n_members;
    }
}

impl AddAssign for Fanout {
    fn add_assign(&mut self, next: Self) {
        self.frame_bytes += next.frame_bytes;
        self.queued_bytes += next.queued_bytes;
        self.deliveries += next.deliveries;
    }
}

/// How a visit to a session ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Visit {
    /// Nothing is left to write.
    CaughtUp,
    /// The socket just became full: wait until it is writable.
    Full,
    /// It was full before and still waits.
    Waiting,
    /// It waits (for its socket, too, as a raw session does for its channels), and more than the
    /// bound was queued for it before the newest publication: a slow consumer.
    OverBound,
    /// The close frame, and everything before it, was written.
    Closed,
    /// The socket is broken.
    Gone,
}

/// What happens to queued bytes when a session is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Queued {
    /// They are written before the close frame.
    Flush,
    /// They are dropped, but for the rest of a frame that was written in part.
    Drop,
}

/// Totals since the shard started; the shard copies them to its metrics once a turn.
#[derive(Clone, Copy, Default, Debug)]
pub struct Totals {
    pub deliveries: u64,
    pub writes: u64,
    pub sent_bytes: u64,
    /// Publications and replies dropped at a close with [`Queued::Drop`].
    pub dropped_frames: u64,
    /// Publications a format couldn't carry, one per cohort.
    pub skipped: u64,
    /// Publications that a session will never get, because a newer one of the channel took their place.
    pub conflated: u64,
    /// Publications that waited for their channel's `write_delay`, one per cohort.
    pub delayed: u64,
    /// Waits that ended before, at a bound in bytes.
    pub delays_cut: u64,
    /// Patches that were made here.
    pub patches: Patches,
}

const TAKEN: u8 = 1;
/// Not yet attached to a socket, or its connect isn't answered: collects, isn't written.
const HELD: u8 = 2;
/// The socket was full at the last write.
pub(super) const LAGGING: u8 = 4;
/// The close frame is queued: nothing may follow.
const CLOSING: u8 = 8;
/// The last visit couldn't write everything: the log's next frame may be written in part. Unlike
/// [`LAGGING`] this outlasts `on_writable` and a broken write.
const CUT_SHORT: u8 = 16;

/// Bytes of one write at the most: a long backlog must not keep the shard from the others.
pub(super) const WRITE_BYTES_MAX: usize = 64 * 1024;

pub(super) struct Own {
    pub outbox: Outbox,
    pub position: u64,
}

/// The hot part of a session.
pub(super) struct Seat {
    pub position: u64,
    own: Option<Box<Own>>,
    /// While it is in a conflating cohort.
    pub behind: Option<Box<Behind>>,
    pub fd: i32,
    pub cohort: u32,
    member_at: u32,
    generation: u32,
    pub flags: u8,
}

impl Seat {
    fn empty(generation: u32) -> Self {
        Self {
            position: 0,
            own: None,
            behind: None,
            fd: -1,
            cohort: u32::MAX,
            member_at: 0,
            generation,
            flags: 0,
        }
    }

    fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The socket took so many bytes of each.
    fn advance(&mut self, from_own: usize, from_log: usize) {
        if let Some(own) = self.own.as_mut() {
            own.position += from_own as u64;
            if own.position == own.outbox.end() {
                self.own = None;
            } else {
                own.outbox.trim(own.position);
            }
        }
        self.position += from_log as u64;
    }
}

#[derive(Default)]
pub(super) struct ChannelSlot {
    pub generation: u32,
    pub key: u64,
    /// Open without a cohort too: somebody is about to subscribe.
    pub n_pins: u32,
    /// See `conflate`.
    pub conflates: bool,
    /// See `delay`; 0: none.
    pub delay_ms: u32,
    /// While it conflates: the newest that was fanned out in each format. What a format can't carry
    /// takes no other's place.
    pub newest: [Option<Arc<Publication>>; N_FORMATS],
    /// Of the last publication that went to subscribers with delta.
    pub last_serial: u64,
    /// The broker knows that there are such.
    pub is_chained: bool,
    /// Cohorts that are told of joins and leaves.
    pub n_told: u32,
    pub cohorts: Vec<CohortRef>,
    pub channel: Option<Arc<Channel>>,
}

impl ChannelSlot {
    /// For a session of that format that is behind on this channel.
    pub(super) fn newest_frame(&self, format: Format) -> &Bytes {
        let newest = self.newest[format as usize].as_ref().and_then(|newest| newest.frame(format));
        newest.expect("invariant: who is behind on a channel missed a frame of it")
    }
}

/// See the module.
pub struct Hub {
    pub(super) seats: Vec<Seat>,
    free: Vec<u32>,
    n_sessions: usize,
    n_subscriptions: usize,
    pub(super) cohorts: Cohorts,
    pub(super) dirty: DirtySet,
    pub(super) delays: Delays,
    pub(super) outbox_bytes_max: usize,
    pub totals: Totals,
}

impl Hub {
    pub fn new(outbox_bytes_max: usize, totals: Totals) -> Self {
        Self {
            seats: Vec::new(),
            free: Vec::new(),
            n_sessions: 0,
            n_subscriptions: 0,
            cohorts: Cohorts::default(),
            dirty: DirtySet::default(),
            delays: Delays::new(usize::MAX),
            outbox_bytes_max,
            totals,
        }
    }

    // --- the hot path

    /// Fans a publication out to its subscribers' logs. Where the channel has a delay, [`Hub::delay`]
    /// marks them.
    pub fn publish(&mut self, id: ChannelId, publication: &Arc<Publication>) -> Fanout {
        let Cohorts { cohorts, channels, spares, .. } = &mut self.cohorts;
        let Some(slot) =
            channels.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation)
        else {
            return Fanout::default();
        };
        let (mut fanout, mut is_carried) = (Fanout::default(), [false; N_FORMATS]);
        let (last_serial, mut has_fresh) = (slot.last_serial, false);
        for cohort_ref in &slot.cohorts {
            let cohort = &mut cohorts[cohort_ref.cohort as usize];
            let frame = match cohort_ref.variant {
                Variant::Plain => publication.frame(cohort.format),
                Variant::Delta if publication.follows(last_serial) => {
                    publication.patch_frame(&mut self.totals.patches)
                }
                Variant::Fresh | Variant::Delta => publication.whole_frame(),
            };
            let Some(frame) = frame else {
                self.totals.skipped += 1;
                continue;
            };
            is_carried[cohort.format as usize] = true;
            if cohort_ref.variant != Variant::Plain {
                slot.last_serial = publication.serial();
                has_fresh |= cohort_ref.variant == Variant::Fresh;
            }
            if cohort.is_conflating && slot.conflates {
                self.totals.deliveries += cohort.members.len() as u64;
                for member in &cohort.members {
                    let behind = self.seats[*member as usize].behind.get_or_insert_default();
                    self.totals.conflated += u64::from(!behind.note(id.slot));
                }
                continue;
            }
            queue(&self.seats, spares, cohort, id.slot, frame);
            fanout.queue(frame.len(), cohort.members.len());
            if !cohort.all_dirty && slot.delay_ms == 0 {
                cohort.mark(&mut self.dirty);
            }
        }
        self.totals.deliveries += fanout.deliveries as u64;
        if slot.conflates {
            let newest = slot.newest.iter_mut().zip(is_carried).filter(|(_, carried)| *carried);
            newest.for_each(|(newest, _)| *newest = Some(publication.clone()));
        }
        if has_fresh {
            self.end_fresh(id.slot);
        }
        fanout
    }

    /// The first session in `from..to` that has something to write.
    pub fn next_dirty(&self, from: u32, to: u32) -> Option<u32> {
        self.dirty.next(from, to)
    }

    pub fn is_clean(&self) -> bool {
        self.dirty.is_empty()
    }

    /// Session indexes are below this.
    pub fn seats_len(&self) -> u32 {
        self.seats.len() as u32
    }

    /// Writes everything that is pending for a session. Where that is one slice for each of many,
    /// [`Hub::visit_run`] costs less.
    pub fn visit(&mut self, idx: u32, write: &mut impl FnMut(i32, &[&[u8]]) -> Sent) -> Visit {
        self.dirty.remove(idx);
        let seat = &mut self.seats[idx as usize];
        if seat.flags & (TAKEN | HELD | LAGGING) != TAKEN {
            return self.visit_later(idx);
        }
        let cohort = &mut self.cohorts.cohorts[seat.cohort as usize];
        cohort.all_dirty = false;
        let (is_conflating, may_conflate) = (cohort.is_conflating, cohort.has_marks);
        let end = cohort.log.end();
        let was_behind = seat.position < end;
        let visit = loop {
            let own: &[u8] = seat.own.as_ref().map_or(&[], |own| own.outbox.chunk(own.position));
            let log: &[u8] =
                if seat.position < end { cohort.log.chunk(seat.position) } else { &[] };
            if own.is_empty() && log.is_empty() {
                seat.flags &= !CUT_SHORT;
                break if seat.is(CLOSING) { Visit::Closed } else { Visit::CaughtUp };
            }
            let own_rest =
                seat.own.as_ref().map_or(0, |own| own.outbox.end() - own.position) as usize;
            let own = &own[..own.len().min(WRITE_BYTES_MAX)];
            let log = &log[..log.len().min(WRITE_BYTES_MAX)];
            let sent = if own.is_empty() {
                write(seat.fd, &[log])
            } else if own.len() == own_rest && !log.is_empty() {
                write(seat.fd, &[own, log])
            } else {
                write(seat.fd, &[own])
            };
            self.totals.writes += 1;
            let (own_bytes, log_bytes) = (own.len(), log.len());
            match sent {
                Sent::Bytes(n) => {
                    self.totals.sent_bytes += n as u64;
                    seat.advance(n.min(own_bytes), n.saturating_sub(own_bytes));
                    let wanted =
                        if own_bytes == own_rest { own_bytes + log_bytes } else { own_bytes };
                    if n < wanted {
                        seat.flags |= LAGGING | CUT_SHORT;
                        break Visit::Full;
                    }
                }
                Sent::Full => {
                    seat.flags |= LAGGING | CUT_SHORT;
                    break Visit::Full;
                }
                Sent::Gone => {
                    seat.flags |= CUT_SHORT;
                    break Visit::Gone;
                }
            }
        };
        if was_behind && seat.position == end {
            cohort.on_caught_up(&mut self.cohorts.spares);
        }
        match visit {
            Visit::Full if may_conflate => self.start_conflating(idx),
            Visit::CaughtUp if is_conflating => return self.write_newest(idx, write),
            _ => {}
        }
        visit
    }

    #[cold]
    fn visit_later(&mut self, idx: u32) -> Visit {
        let seat = &self.seats[idx as usize];
        let over = seat.is(LAGGING | HELD) && !seat.is(CLOSING) && self.was_over_bound(idx);
        if let Some(cohort) =
            self.cohorts.cohorts.get_mut(seat.cohort as usize).filter(|_| seat.is(TAKEN))
        {
            // Its bit is gone, so the next publication has to mark it again for the bound.
            cohort.all_dirty = false;
        }
        if over { Visit::OverBound } else { Visit::Waiting }
    }

    /// The socket of a session.
    pub fn fd(&self, id: SessionId) -> Option<i32> {
        self.seat(id).map(|seat| seat.fd)
    }

    /// The socket took bytes again: the next visit writes.
    pub fn on_writable(&mut self, id: SessionId) -> bool {
        let Some(seat) = self.seat_mut(id) else { return false };
        let lagging = seat.is(LAGGING);
        seat.flags &= !LAGGING;
        lagging
    }

    // --- sessions

    /// Takes a seat for a session that isn't attached to its socket yet: what its channels
    /// publish is collected, not written.
    pub fn add_session(&mut self, format: Format) -> SessionId {
        let cohort = self.cohorts.empty_set(format);
        let idx = self.free.pop().unwrap_or_else(|| {
            self.seats.push(Seat::empty(0));
            self.seats.len() as u32 - 1
        });
        self.dirty.grow(self.seats.len());
        let generation = self.seats[idx as usize].generation.wrapping_add(1);
        self.seats[idx as usize] = Seat { flags: TAKEN | HELD, ..Seat::empty(generation) };
        self.n_sessions += 1;
        self.join(idx, cohort);
        SessionId { idx, generation }
    }

    /// Gives the session its socket. What was collected is written from now on.
    pub fn attach(&mut self, id: SessionId, fd: i32) {
        if let Some(seat) = self.seat_mut(id) {
            seat.fd = fd;
            seat.flags &= !HELD;
            self.dirty.insert(id.idx);
        }
    }

    /// Ends a session: leaves its channels, frees the seat. Call before the socket is dropped.
    pub fn remove_session(&mut self, id: SessionId) {
        if self.seat_mut(id).is_none() {
            return;
        }
        self.leave(id.idx);
        self.dirty.remove(id.idx);
        self.seats[id.idx as usize] = Seat::empty(id.generation);
        self.free.push(id.idx);
        self.n_sessions -= 1;
    }

    pub fn n_sessions(&self) -> usize {
        self.n_sessions
    }

    /// The id of the session at an index, if one is there.
    pub fn id_at(&self, idx: u32) -> Option<SessionId> {
        let seat = self.seats.get(idx as usize).filter(|seat| seat.is(TAKEN))?;
        Some(SessionId { idx, generation: seat.generation })
    }

    pub fn is_closing(&self, id: SessionId) -> bool {
        self.seat(id).is_none_or(|seat| seat.is(CLOSING))
    }

    pub fn is_lagging(&self, id: SessionId) -> bool {
        self.seat(id).is_some_and(|seat| seat.is(LAGGING))
    }

    /// Bytes that are queued for a session.
    pub fn queued_bytes(&self, id: SessionId) -> usize {
        if self.seat(id).is_some() { self.queued_at(id.idx) } else { 0 }
    }

    /// Whether the own outbox (replies, pings) still holds bytes.
    pub fn own_is_empty(&self, id: SessionId) -> bool {
        self.seat(id).is_none_or(|seat| seat.own.is_none())
    }

    /// Queues frames for this session alone. False: the session is gone or closing, or was
    /// over its bound before this.
    pub fn push_own(&mut self, id: SessionId, frames: &[u8]) -> bool {
        let Some(seat) = self.seat(id).filter(|seat| !seat.is(CLOSING)) else { return false };
        if seat.is(LAGGING | HELD) && self.queued_at(id.idx) > self.outbox_bytes_max {
            return false;
        }
        self.keep_partial(id.idx);
        let seat = &mut self.seats[id.idx as usize];
        own(seat).outbox.push_copy(frames);
        self.dirty.insert(id.idx);
        true
    }

    /// Queues the close frame behind, or instead of, what is queued, and leaves all channels.
    pub fn close(&mut self, id: SessionId, close_frame: &[u8], queued: Queued) {
        if self.is_closing(id) {
            return;
        }
        match queued {
            _ if self.end_hold(id.idx) => self.drop_queued(id.idx),
            Queued::Drop => self.drop_queued(id.idx),
            Queued::Flush => self.settle_all_behind(id.idx),
        }
        let format = self.cohort_of(id.idx).format;
        let empty = self.cohorts.empty_set(format);
        self.move_to(id.idx, empty);
        let seat = &mut self.seats[id.idx as usize];
        own(seat).outbox.push_copy(close_frame);
        seat.flags |= CLOSING;
        self.dirty.insert(id.idx);
    }

    // --- channels

    /// Opens a channel: from now on sessions can subscribe to its slot.
    pub fn open_channel(&mut self, id: ChannelId, channel: Arc<Channel>) {
        self.cohorts.open_channel(id, channel);
    }

    /// Channels whose last subscriber left since the last call; each is closed with it.
    pub fn take_emptied(&mut self) -> Vec<(ChannelId, Arc<Channel>)> {
        std::mem::take(&mut self.cohorts.emptied)
    }

    pub fn has_emptied(&self) -> bool {
        !self.cohorts.emptied.is_empty()
    }

    /// The channel of an id, while it is open here.
    pub fn channel(&self, id: ChannelId) -> Option<Arc<Channel>> {
        let slot = self.cohorts.channels.get(id.slot as usize)?;
        slot.channel.clone().filter(|_| slot.generation == id.generation)
    }

    /// The channel that is open at a slot.
    pub fn channel_at(&self, slot: u32) -> Option<Arc<Channel>> {
        self.cohorts.channels.get(slot as usize)?.channel.clone()
    }

    pub fn open_channels(&self) -> Vec<ChannelId> {
        let slots = self.cohorts.channels.iter().enumerate();
        let open = slots.filter(|(_, slot)| slot.channel.is_some());
        open.map(|(at, slot)| ChannelId { slot: at as u32, generation: slot.generation }).collect()
    }

    /// All sessions that are subscribed to a channel. For rare events: it walks them.
    pub fn subscribers(&self, id: ChannelId) -> Vec<SessionId> {
        let Some(slot) = self.cohorts.channels.get(id.slot as usize) else { return Vec::new() };
        let cohorts = slot.cohorts.iter().filter(|_| slot.generation == id.generation);
        let members = cohorts.flat_map(|at| &self.cohorts.cohorts[at.cohort as usize].members);
        members.filter_map(|idx| self.id_at(*idx)).collect()
    }

    /// Keeps an open channel open, whoever leaves, until [`Hub::unpin`].
    pub fn pin(&mut self, slot: u32) {
        self.cohorts.channels[slot as usize].n_pins += 1;
    }

    pub fn unpin(&mut self, slot: u32) {
        self.cohorts.channels[slot as usize].n_pins -= 1;
        self.cohorts.close_if_unused(slot);
    }

    /// Closes an open channel that never got a subscriber.
    pub fn close_if_unused(&mut self, slot: u32) {
        self.cohorts.close_if_unused(slot);
    }

    /// The channel at a slot if it has to be chained; once.
    pub fn to_be_chained(&mut self, slot: u32) -> Option<ChannelId> {
        let entry = self.cohorts.channels.get_mut(slot as usize)?;
        let is_new = !std::mem::replace(&mut entry.is_chained, true);
        is_new.then_some(ChannelId { slot, generation: entry.generation })
    }

    /// Subscribes. False: it was subscribed already, the session is gone or closing, or the
    /// channel isn't open (its last subscriber may have left since the slot was looked up).
    pub fn subscribe(&mut self, id: SessionId, slot: u32) -> bool {
        self.subscribe_as(id, slot, Variant::Plain)
    }

    /// Subscribes with a share; without a base its variant is [`Variant::Fresh`].
    pub fn subscribe_as(&mut self, id: SessionId, slot: u32, share: impl Into<Share>) -> bool {
        if self.is_closing(id) || self.is_subscribed(id, slot) || !self.cohorts.is_open(slot) {
            return false;
        }
        let cohort = self.cohorts.with(self.seats[id.idx as usize].cohort, slot, share);
        self.move_to(id.idx, cohort);
        if self.is_lagging(id) && self.cohort_of(id.idx).has_marks {
            self.start_conflating(id.idx);
        }
        true
    }

    /// Unsubscribes. What was published before stays queued. False: it wasn't subscribed.
    pub fn unsubscribe(&mut self, id: SessionId, slot: u32) -> bool {
        if self.seat(id).is_none() || !self.is_subscribed(id, slot) {
            return false;
        }
        self.settle_behind(id.idx, slot);
        let cohort = self.cohorts.without(self.seats[id.idx as usize].cohort, slot);
        self.move_to(id.idx, cohort);
        true
    }

    pub fn is_subscribed(&self, id: SessionId, slot: u32) -> bool {
        self.seat(id).is_some() && self.cohort_of(id.idx).share(slot).is_some()
    }

    /// The slots of the channels that a session is subscribed to.
    pub fn channels_of(&self, id: SessionId) -> impl Iterator<Item = u32> {
        let cohort = self.seat(id).map(|_| self.cohort_of(id.idx));
        cohort.into_iter().flat_map(|cohort| &cohort.channels).map(|channel| channel.slot)
    }

    /// How many they are.
    pub fn n_channels_of(&self, id: SessionId) -> usize {
        if self.seat(id).is_some() { self.cohort_of(id.idx).channels.len() } else { 0 }
    }

    /// Subscribers of a channel on this shard.
    pub fn n_subscribers(&self, slot: u32) -> usize {
        self.cohorts.n_subscribers(slot)
    }

    /// Slots of channels are below this.
    pub fn n_slots(&self) -> u32 {
        self.cohorts.channels.len() as u32
    }

    pub fn n_channels(&self) -> usize {
        self.cohorts.n_open
    }

    pub fn n_subscriptions(&self) -> usize {
        self.n_subscriptions
    }

    pub fn n_cohorts(&self) -> usize {
        self.cohorts.cohorts.len()
    }

    /// Bytes kept in all logs and own outboxes. Walks every cohort and session: for reports.
    pub fn outbox_bytes(&self) -> usize {
        let logs: usize = self.cohorts.cohorts.iter().map(|(_, cohort)| cohort.log.bytes()).sum();
        let own: usize = self
            .seats
            .iter()
            .filter_map(|seat| seat.own.as_ref())
            .map(|own| own.outbox.bytes())
            .sum();
        logs + own
    }

    /// Frees memory that the last publications didn't need. To be called now and then.
    pub fn free_unused(&mut self) {
        self.cohorts.spares.free_unused();
    }

    /// Sessions whose sockets are full, the one with the most queued first.
    pub fn lagging_by_size(&self) -> Vec<(usize, SessionId)> {
        let lagging = (0..self.seats.len() as u32).filter(|idx| {
            let seat = &self.seats[*idx as usize];
            seat.is(TAKEN) && seat.is(LAGGING) && !seat.is(CLOSING)
        });
        let mut all: Vec<(usize, SessionId)> =
            lagging.filter_map(|idx| Some((self.queued_at(idx), self.id_at(idx)?))).collect();
        all.sort_unstable_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        all
    }

    // --- inside

    fn seat(&self, id: SessionId) -> Option<&Seat> {
        self.seats
            .get(id.idx as usize)
            .filter(|seat| seat.is(TAKEN) && seat.generation == id.generation)
    }

    fn seat_mut(&mut self, id: SessionId) -> Option<&mut Seat> {
        self.seats
            .get_mut(id.idx as usize)
            .filter(|seat| seat.is(TAKEN) && seat.generation == id.generation)
    }

    pub(super) fn cohort_of(&self, idx: u32) -> &Cohort {
        &self.cohorts.cohorts[self.seats[idx as usize].cohort as usize]
    }

    /// Whether a session was over its bound before the newest publication was queued: one that
    /// is merely busy isn't cut for one large publication.
    fn was_over_bound(&self, idx: u32) -> bool {
        let seat = &self.seats[idx as usize];
        let cohort = self.cohort_of(idx);
        let in_log = (cohort.log.end() - seat.position) as usize;
        let before = self.queued_at(idx) - cohort.last_frame_bytes.min(in_log);
        before > self.outbox_bytes_max
    }

    fn queued_at(&self, idx: u32) -> usize {
        let seat = &self.seats[idx as usize];
        let own = seat.own.as_ref().map_or(0, |own| own.outbox.end() - own.position);
        (own + self.cohort_of(idx).log.end() - seat.position) as usize
    }
}

/// Puts a frame of a channel into a cohort's log. Its members are not marked for it.
#[inline]
pub(super) fn queue(
    seats: &[Seat],
    spares: &mut Spares,
    cohort: &mut Cohort,
    slot: u32,
    frame: &Bytes,
) {
    if cohort.has_marks {
        cohort.marks.push_back(Mark { position: cohort.log.end(), slot });
    }
    if !cohort.log.has_buffer() {
        cohort.log.set_buffer(spares.take());
    }
    cohort.log.push(frame);
    cohort.last_frame_bytes = frame.len();
    cohort.n_behind = cohort.members.len();
    if cohort.log.bytes() > cohort.trim_at {
        let oldest = cohort.members.iter().map(|idx| seats[*idx as usize].position).min();
        cohort.trim(oldest.expect("invariant: a cohort has members"));
    }
}

pub(super) fn own(seat: &mut Seat) -> &mut Own {
    seat.own.get_or_insert_with(|| Box::new(Own { outbox: Outbox::default(), position: 0 }))
}

#[cfg(test)]
mod tests;
