//! Unit tests of the hub: named promises here, everything else against a naive model.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::frame::{Opcode, put_frame};
use crate::publication::Body;
use model::Checked;

mod conflating;
mod delta;
mod model;
mod ops;
mod peer;
mod random;
mod tell;

fn frame(opcode: Opcode, mark: u8, payload_bytes: usize) -> Bytes {
    let mut out = Vec::new();
    put_frame(&mut out, opcode, &vec![mark; payload_bytes]);
    out.into()
}

fn channel_id(slot: u32) -> ChannelId {
    ChannelId { slot, generation: 1 }
}

/// A hub with the channels 0 and 1.
fn hub(outbox_bytes_max: usize) -> Hub {
    let mut hub = Hub::new(outbox_bytes_max, Totals::default());
    for slot in 0..2 {
        hub.open_channel(channel_id(slot), Arc::new(Channel::new("any")));
    }
    hub
}

fn subscriber(hub: &mut Hub, slot: u32) -> SessionId {
    let id = hub.add_session(Format::Raw);
    hub.attach(id, id.idx as i32);
    assert!(hub.subscribe(id, slot));
    id
}

fn publication(mark: u8, payload_bytes: usize) -> Arc<Publication> {
    let payload = vec![mark; payload_bytes];
    Arc::new(Publication::new(Arc::new(Channel::new("any")), Body::plain(payload)))
}

/// Publishes `payload_bytes` times `mark`.
fn publish(hub: &mut Hub, slot: u32, mark: u8, payload_bytes: usize) {
    hub.publish(channel_id(slot), &publication(mark, payload_bytes));
}

/// Visits a session whose socket has room for so many bytes, then says `end`.
fn read(hub: &mut Hub, id: SessionId, room: usize, end: Sent) -> Vec<u8> {
    let mut taken = Vec::new();
    hub.visit(id.idx, &mut |_, parts| {
        let bytes = parts.concat();
        let n = bytes.len().min(room - taken.len());
        taken.extend_from_slice(&bytes[..n]);
        if n > 0 { Sent::Bytes(n) } else { end }
    });
    taken
}

fn read_all(hub: &mut Hub, id: SessionId) -> Vec<u8> {
    hub.on_writable(id);
    read(hub, id, usize::MAX, Sent::Full)
}

/// The invariants of this file and of `cohort`, looked up where they hold or don't.
fn check_inside(hub: &Hub) -> Checked<()> {
    hub.cohorts.check_inside()?;
    hub.check_delays()?;
    let mut n_members = 0;
    for (cohort_idx, cohort) in &hub.cohorts.cohorts {
        let mut n_behind = 0;
        for (at, idx) in cohort.members.iter().enumerate() {
            let seat = &hub.seats[*idx as usize];
            prop_assert!(seat.is(TAKEN));
            prop_assert_eq!((seat.cohort, seat.member_at), (cohort_idx as u32, at as u32));
            prop_assert!(cohort.log.start() <= seat.position);
            prop_assert!(seat.position <= cohort.log.end());
            n_behind += usize::from(seat.position < cohort.log.end());
            let is_dirty = hub.dirty.next(*idx, idx + 1).is_some();
            prop_assert!(is_dirty || !cohort.all_dirty, "the next publication won't mark it");
        }
        prop_assert_eq!(cohort.n_behind, n_behind);
        prop_assert!(n_behind > 0 || cohort.log.bytes() == 0, "a log that nobody needs");
        n_members += cohort.members.len();
    }
    prop_assert_eq!(n_members, hub.n_sessions, "a session is in exactly one cohort");
    Ok(())
}

/// One session gets a frame once, however many cohorts have it.
#[test]
fn a_fanout_tells_a_frame_from_its_copies() {
    let mut hub = hub(1_000);
    let both = subscriber(&mut hub, 0);
    assert!(hub.subscribe(both, 1));
    subscriber(&mut hub, 0);
    subscriber(&mut hub, 0);
    let mut round = Fanout::default();
    round += hub.publish(channel_id(0), &publication(b'a', 98));
    let counts = |round: Fanout| (round.frame_bytes, round.queued_bytes, round.deliveries);
    assert_eq!(counts(round), (100, 200, 3), "two cohorts");
    round += hub.publish(channel_id(1), &publication(b'b', 98));
    assert_eq!(counts(round), (200, 300, 4));
}

#[test]
fn a_session_gets_what_is_published_while_it_is_subscribed() {
    let mut hub = hub(1_000);
    let first = subscriber(&mut hub, 0);
    publish(&mut hub, 0, b'a', 3);
    let second = subscriber(&mut hub, 0);
    publish(&mut hub, 0, b'b', 3);
    assert!(hub.unsubscribe(second, 0));
    publish(&mut hub, 0, b'c', 3);
    assert_eq!(read_all(&mut hub, first), b"\x81\x03aaa\x81\x03bbb\x81\x03ccc");
    assert_eq!(read_all(&mut hub, second), b"\x81\x03bbb");
    assert_eq!(hub.outbox_bytes(), 0);
}

/// A session that is held collects; then something goes ahead of that, or takes its place.
#[test]
fn what_is_held_comes_behind_the_answer() {
    for (collected, expected) in [
        (Queued::Flush, &b"\x8a\x03png\x81\x01!\x81\x01r\x81\x01a\x81\x01b\x81\x01c"[..]),
        (Queued::Drop, b"\x8a\x03png\x81\x01!\x81\x01c"),
    ] {
        let mut hub = hub(1_000);
        let id = hub.add_session(Format::Raw);
        hub.attach(id, 7);
        // Written in part before.
        assert!(hub.push_own(id, b"\x8a\x03png"));
        assert_eq!(read(&mut hub, id, 3, Sent::Full), b"\x8a\x03p");
        hub.hold(id);
        assert!(hub.subscribe(id, 0));
        publish(&mut hub, 0, b'a', 1);
        assert!(hub.push_own(id, b"\x81\x01r"));
        assert!(hub.subscribe(id, 1));
        publish(&mut hub, 1, b'b', 1);
        assert_eq!(read_all(&mut hub, id), b"");
        hub.release(id, b"\x81\x01!", collected);
        publish(&mut hub, 0, b'c', 1);
        assert_eq!(read_all(&mut hub, id), expected[3..], "{collected:?}");
        assert_eq!(hub.outbox_bytes(), 0);
        check_inside(&hub).unwrap();
    }
}

#[test]
fn who_is_held_is_closed_without_what_was_collected() {
    let mut hub = hub(1_000);
    let [held, raw] = [7, -1].map(|fd| {
        let id = hub.add_session(Format::Raw);
        if fd >= 0 {
            hub.attach(id, fd);
            hub.hold(id);
        }
        assert!(hub.subscribe(id, 0));
        id
    });
    publish(&mut hub, 0, b'a', 1);
    hub.close(held, b"\x88\x00", Queued::Flush);
    hub.close(raw, b"\x88\x00", Queued::Flush);
    assert_eq!(read_all(&mut hub, held), b"\x88\x00");
    // Not attached yet: it is told all once it is.
    assert_eq!(read_all(&mut hub, raw), b"");
    hub.attach(raw, 8);
    assert_eq!(read_all(&mut hub, raw), b"\x81\x01a\x88\x00");
    hub.release(held, b"\x81\x01!", Queued::Flush);
    assert_eq!(read_all(&mut hub, held), b"", "it is closed");
}

/// A publication of three bytes is written up to its second byte, then something happens. That
/// byte is also the last of the first write, so the second one may break there.
fn check_partial(then: impl Fn(&mut Hub, SessionId), expected_rest: &[u8]) {
    for (end, writable) in [(Sent::Full, false), (Sent::Full, true), (Sent::Gone, false)] {
        let mut hub = hub(1_000);
        let id = subscriber(&mut hub, 0);
        for payload_bytes in [13_000, 13_000, 13_000, 13_000, 13_514] {
            publish(&mut hub, 0, b'a', payload_bytes);
        }
        publish(&mut hub, 0, b'b', 3);
        let before = WRITE_BYTES_MAX - 2;
        assert_eq!(read(&mut hub, id, WRITE_BYTES_MAX, end)[before..], *b"\x81\x03");
        if writable {
            hub.on_writable(id);
        }
        then(&mut hub, id);
        assert_eq!(read_all(&mut hub, id), expected_rest, "{end:?}, {writable}");
        assert_eq!(hub.outbox_bytes(), 0);
    }
}

#[test]
fn a_frame_written_in_part_is_finished_before_anything_else() {
    let reply = |hub: &mut Hub, id| assert!(hub.push_own(id, b"\x81\x01r"));
    check_partial(reply, b"bbb\x81\x01r");
    check_partial(|hub, id| hub.close(id, b"\x88\x00", Queued::Flush), b"bbb\x88\x00");
    check_partial(|hub, id| hub.close(id, b"\x88\x00", Queued::Drop), b"bbb\x88\x00");
    let move_on = |hub: &mut Hub, id| {
        assert!(hub.subscribe(id, 1));
        publish(hub, 1, b'c', 1);
        assert!(hub.unsubscribe(id, 0));
        publish(hub, 1, b'd', 1);
        assert!(hub.push_own(id, b"\x81\x01r"));
    };
    check_partial(move_on, b"bbb\x81\x01c\x81\x01r\x81\x01d");
}

#[test]
fn over_the_bound_is_one_byte_more_than_the_bound() {
    let mut hub = hub(100);
    let id = subscriber(&mut hub, 0);
    let mut refuse = |_: i32, _: &[&[u8]]| Sent::Full;
    publish(&mut hub, 0, b'a', 48);
    assert_eq!(hub.visit(id.idx, &mut refuse), Visit::Full);
    publish(&mut hub, 0, b'a', 48);
    assert_eq!(hub.next_dirty(0, 1), Some(0), "a slow consumer has to be seen");
    assert_eq!(hub.visit(id.idx, &mut refuse), Visit::Waiting);
    // At the bound, not over it: this one is still taken, the next isn't.
    assert!(hub.push_own(id, b"\x81\x00"));
    assert!(!hub.push_own(id, b"\x81\x00"));
    // Over it now, but it wasn't before the newest publication; it is before the next.
    assert_eq!(hub.visit(id.idx, &mut refuse), Visit::Waiting);
    publish(&mut hub, 0, b'a', 48);
    assert_eq!(hub.visit(id.idx, &mut refuse), Visit::OverBound);
    hub.close(id, b"\x88\x00", Queued::Drop);
    assert_eq!(hub.totals.dropped_frames, 4);
    assert_eq!(hub.visit(id.idx, &mut refuse), Visit::Waiting);
    assert_eq!(read_all(&mut hub, id), b"\x88\x00");
}

#[test]
fn nobody_subscribes_to_a_channel_that_was_closed() {
    let mut hub = hub(1_000);
    let id = subscriber(&mut hub, 0);
    let late = subscriber(&mut hub, 1);
    assert!(hub.unsubscribe(id, 0));
    assert!(!hub.subscribe(late, 0), "the slot's channel is closed");
    assert!(!hub.subscribe(late, 9), "the slot never had a channel");
    assert_eq!(hub.n_subscriptions(), 1);
    let again = ChannelId { slot: 0, generation: 2 };
    hub.open_channel(again, Arc::new(Channel::new("another")));
    assert!(hub.subscribe(late, 0));
    publish(&mut hub, 0, b'a', 1);
    assert_eq!(hub.queued_bytes(late), 0, "a publication of the slot's channel before");
    hub.publish(again, &publication(b'b', 1));
    assert_eq!(read_all(&mut hub, late), b"\x81\x01b");
}

#[test]
fn a_log_is_freed_behind_its_slowest_reader() {
    let mut hub = hub(1_000_000);
    let ids = [0; 3].map(|slot| subscriber(&mut hub, slot));
    // Someone is always behind, so only trimming frees anything.
    for n in 0..3_000usize {
        publish(&mut hub, 0, b'a', 10_000);
        read_all(&mut hub, ids[n % 3]);
        assert!(hub.outbox_bytes() < 1_000_000, "{} bytes kept", hub.outbox_bytes());
    }
    assert_eq!(hub.n_cohorts(), 2);
}

#[test]
fn an_own_outbox_is_freed_as_it_is_read() {
    let mut hub = hub(1_000_000);
    let id = subscriber(&mut hub, 0);
    (0..20).for_each(|_| publish(&mut hub, 0, b'a', 20_000));
    assert!(hub.unsubscribe(id, 0), "what is pending goes to the own outbox");
    for left in (0..20usize).rev() {
        hub.on_writable(id);
        read(&mut hub, id, 20_004, Sent::Full);
        assert_eq!(hub.queued_bytes(id), left * 20_004);
        assert_eq!(hub.outbox_bytes(), left * 20_004);
    }
}

#[test]
fn a_large_publication_is_shared_by_all_cohorts() {
    let mut hub = hub(1_000_000);
    let ids = [0; 2].map(|slot| subscriber(&mut hub, slot));
    assert!(hub.subscribe(ids[1], 1));
    let publication = publication(b'a', 20_000);
    hub.publish(channel_id(0), &publication);
    let shared = publication.frame(Format::Raw).unwrap().as_ptr();
    for id in ids {
        let visit = hub.visit(id.idx, &mut |_, parts| {
            assert_eq!(parts[0].as_ptr(), shared);
            Sent::Bytes(parts[0].len())
        });
        assert_eq!(visit, Visit::CaughtUp);
    }
}
