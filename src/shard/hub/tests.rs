//! Unit tests of the hub.

use super::*;
use crate::publication::Body;

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

fn publication(mark: u8, payload_bytes: usize) -> Publication {
    let payload = vec![mark; payload_bytes];
    Publication::new(Arc::new(Channel::new("any")), Body::plain(payload))
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
