//! When sessions are marked, and that waiting ends at its bounds. That nothing is lost, doubled or
//! forgotten by it, the hub's model says.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::*;
use crate::channel::Channel;
use crate::publication::{Body, Format, Publication};
use crate::shard::hub::{Queued, Sent, SessionId, Totals};

const DELAY_MS: u64 = 50;

impl Hub {
    /// The module's invariants, for the hub's tests too.
    pub fn check_delays(&self) -> Result<(), TestCaseError> {
        let mut bytes = 0;
        for (idx, cohort) in &self.cohorts.cohorts {
            let Some(wait) = &cohort.wait else { continue };
            bytes += wait.bytes;
            prop_assert!(wait.bytes == 0 || wait.until.is_some(), "it waits for nothing");
            let has_due = |until| self.delays.dues.iter().any(|it| it.0 == (until, idx as u32));
            prop_assert!(wait.until.is_none_or(has_due), "nobody would look");
            prop_assert!(wait.bytes <= WRITE_BYTES_MAX);
        }
        prop_assert_eq!(self.delays.bytes, bytes);
        prop_assert!(bytes <= self.delays.bytes_max);
        Ok(())
    }
}

/// A hub whose channels 0 and 1 have a delay, and 2 hasn't; and a clock.
struct Rig {
    hub: Hub,
    start: Instant,
    now_ms: u64,
}

fn channel_id(slot: u32) -> ChannelId {
    ChannelId { slot, generation: 1 }
}

impl Rig {
    fn new() -> Self {
        let mut hub = Hub::new(1 << 20, Totals::default());
        for slot in 0..3 {
            hub.open_channel(channel_id(slot), Arc::new(Channel::new("any")));
            hub.pin(slot);
        }
        (0..2).for_each(|slot| hub.set_delay(slot, Duration::from_millis(DELAY_MS)));
        Self { hub, start: Instant::now(), now_ms: 0 }
    }

    fn subscriber(&mut self, slots: &[u32]) -> SessionId {
        let id = self.hub.add_session(Format::Raw);
        self.hub.attach(id, 0);
        slots.iter().for_each(|slot| assert!(self.hub.subscribe(id, *slot)));
        self.read(id);
        id
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.now_ms)
    }

    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        self.hub.mark_due(self.now());
    }

    fn publish(&mut self, slot: u32, payload: &[u8]) {
        let body = Body::plain(payload.to_vec());
        let publication = Arc::new(Publication::new(Arc::new(Channel::new("any")), body));
        self.hub.publish(channel_id(slot), &publication);
        let now = self.now();
        self.hub.delay(channel_id(slot), || now);
    }

    fn is_marked(&self, id: SessionId) -> bool {
        self.hub.next_dirty(id.idx, id.idx + 1).is_some()
    }

    /// What the session gets if it is marked, in payloads of one byte.
    fn read(&mut self, id: SessionId) -> String {
        let mut taken = Vec::new();
        if self.is_marked(id) {
            self.hub.visit(id.idx, &mut |_, parts| {
                taken.extend_from_slice(&parts.concat());
                Sent::Bytes(parts.concat().len())
            });
        }
        taken.chunks(3).map(|frame| char::from(frame[2])).collect()
    }
}

#[test]
fn the_first_leaves_at_once_and_those_within_the_delay_together() {
    let mut rig = Rig::new();
    let id = rig.subscriber(&[0]);
    rig.publish(0, b"a");
    assert_eq!(rig.read(id), "a");
    for payload in [b"b", b"c", b"d"] {
        rig.pass(10);
        rig.publish(0, payload);
        assert_eq!(rig.read(id), "");
    }
    assert_eq!(rig.hub.next_due(), Some(rig.start + Duration::from_millis(DELAY_MS)));
    rig.pass(19);
    assert_eq!(rig.read(id), "");
    rig.pass(1);
    assert_eq!(rig.read(id), "bcd");
    assert_eq!(rig.hub.totals.delayed, 3);
    // The delay counts from that write on; after a rest there is nothing to wait for.
    rig.pass(DELAY_MS - 1);
    rig.publish(0, b"e");
    assert_eq!(rig.read(id), "");
    rig.pass(1);
    assert_eq!(rig.read(id), "e");
    rig.pass(DELAY_MS);
    rig.publish(0, b"f");
    assert_eq!(rig.read(id), "f");
    assert_eq!((rig.hub.next_due(), rig.hub.totals.delays_cut), (None, 0));
}

#[test]
fn channels_of_a_session_wait_together() {
    let mut rig = Rig::new();
    let (both, one) = (rig.subscriber(&[0, 1]), rig.subscriber(&[1]));
    rig.publish(0, b"a");
    assert_eq!((rig.read(both), rig.read(one)), ("a".to_owned(), String::new()));
    rig.pass(30);
    rig.publish(1, b"b");
    assert_eq!(rig.read(both), "", "since its last write");
    assert_eq!(rig.read(one), "b", "it rested");
    rig.pass(20);
    assert_eq!(rig.read(both), "b");
    assert!(rig.hub.is_clean());
}

#[test]
fn the_shortest_delay_counts() {
    let mut rig = Rig::new();
    rig.hub.set_delay(1, Duration::from_millis(20));
    let id = rig.subscriber(&[0, 1]);
    rig.publish(0, b"a");
    assert_eq!(rig.read(id), "a");
    rig.pass(5);
    rig.publish(0, b"b");
    assert_eq!(rig.read(id), "");
    rig.publish(1, b"c");
    assert!(rig.hub.take_new_due(), "earlier than all others");
    rig.pass(15);
    assert_eq!(rig.read(id), "bc");
    rig.pass(30);
    assert!(rig.hub.is_clean() && rig.hub.next_due().is_none(), "the other due counts no more");
}

#[test]
fn whatever_else_is_written_takes_along_what_waits() {
    let reasons: [fn(&mut Rig, SessionId); 4] = [
        |rig, _| rig.publish(2, b"x"),
        |rig, id| assert!(rig.hub.push_own(id, b"\x81\x01x")),
        |rig, id| assert!(rig.hub.unsubscribe(id, 0)),
        |rig, id| rig.hub.close(id, b"\x88\x01x", Queued::Flush),
    ];
    for (at, reason) in reasons.into_iter().enumerate() {
        let mut rig = Rig::new();
        let id = rig.subscriber(&[0, 2]);
        rig.publish(0, b"a");
        rig.read(id);
        rig.publish(0, b"b");
        assert_eq!(rig.read(id), "");
        reason(&mut rig, id);
        assert!(rig.read(id).contains('b'), "{at}");
        assert_eq!(rig.hub.outbox_bytes(), 0);
        rig.pass(DELAY_MS);
        assert!(rig.hub.is_clean(), "{at}: nothing is due any more");
        assert_eq!((rig.hub.delays.bytes, rig.hub.next_due()), (0, None), "{at}");
    }
}

#[test]
fn more_than_a_write_takes_does_not_wait() {
    for (outbox_bytes_max, bytes_max) in [(1 << 20, WRITE_BYTES_MAX), (10_000, 5_000)] {
        let mut rig = Rig::new();
        rig.hub.outbox_bytes_max = outbox_bytes_max;
        let id = rig.subscriber(&[0]);
        rig.publish(0, b"a");
        rig.read(id);
        let mut n_bytes = 0;
        while !rig.is_marked(id) {
            rig.publish(0, &[b'b'; 120]);
            n_bytes += 122;
        }
        assert!((bytes_max..bytes_max + 122).contains(&n_bytes), "{n_bytes} of {bytes_max}");
        assert_eq!((rig.hub.totals.delays_cut, rig.hub.delays.bytes), (1, 0));
    }
}

#[test]
fn what_waits_in_all_cohorts_is_bounded() {
    let mut rig = Rig::new();
    rig.hub.delays.bytes_max = 10_000;
    for slot in 3..103 {
        rig.hub.open_channel(channel_id(slot), Arc::new(Channel::new("any")));
    }
    let ids: Vec<SessionId> = (3..103).map(|slot| rig.subscriber(&[0, slot])).collect();
    rig.publish(0, b"a");
    ids.iter().for_each(|id| assert_eq!(rig.read(*id), "a"));
    rig.publish(0, &[b'b'; 95]);
    assert!(rig.hub.is_clean(), "97 bytes for each of a hundred");
    rig.publish(0, b"c");
    rig.publish(0, b"c");
    assert!(ids.iter().all(|id| rig.is_marked(*id)));
    assert_eq!((rig.hub.totals.delays_cut, rig.hub.delays.bytes), (100, 0));
    assert_eq!(rig.hub.next_due(), None);
}

/// Cohorts that come, wait and go leave their dues behind, but not for ever.
#[test]
fn dues_are_bounded_by_cohorts() {
    let mut rig = Rig::new();
    for _ in 0..10_000 {
        let id = rig.subscriber(&[0]);
        rig.publish(0, b"a");
        rig.read(id);
        rig.publish(0, b"b");
        rig.hub.remove_session(id);
        assert!(rig.hub.delays.dues.len() <= IDLE_DUES_MAX + 5);
        assert_eq!(rig.hub.delays.bytes, 0);
    }
    rig.pass(DELAY_MS);
    assert!(rig.hub.is_clean() && rig.hub.next_due().is_none());
}

#[test]
fn at_the_end_nothing_waits() {
    let mut rig = Rig::new();
    let id = rig.subscriber(&[0]);
    for payload in [b"a", b"b"] {
        rig.publish(0, payload);
        rig.read(id);
    }
    rig.hub.end_delays(rig.now());
    assert_eq!(rig.read(id), "b");
    rig.publish(0, b"c");
    assert_eq!(rig.read(id), "c");
    assert_eq!(rig.hub.next_due(), None);
}

/// A slow consumer is one by what was queued for it, waiting or not; it is seen when that is marked.
#[test]
fn what_waits_counts_for_the_bound() {
    let mut rig = Rig::new();
    rig.hub.outbox_bytes_max = 100;
    let id = rig.subscriber(&[0]);
    rig.publish(0, &[b'a'; 98]);
    assert_eq!(rig.hub.visit(id.idx, &mut |_, _| Sent::Full), super::super::hub::Visit::Full);
    for _ in 0..2 {
        rig.pass(1);
        rig.publish(0, b"b");
    }
    assert_eq!(rig.hub.queued_bytes(id), 106);
    rig.pass(DELAY_MS);
    let visit = rig.hub.visit(id.idx, &mut |_, _| Sent::Full);
    assert_eq!(visit, super::super::hub::Visit::OverBound);
}
