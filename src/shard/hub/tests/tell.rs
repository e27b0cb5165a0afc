//! Joins and leaves: to whom they go, and where they stand among the publications.

use std::collections::BTreeMap;

use super::*;
use crate::fuzz::Rng;
use crate::shard::hub::{Sent, Share};

const TOLD: Share = Share { variant: Variant::Plain, is_told: true };

fn frame(text: &str) -> bytes::Bytes {
    let mut out = Vec::new();
    crate::frame::put_frame(&mut out, crate::frame::Opcode::Text, text.as_bytes());
    out.into()
}

fn subscriber(hub: &mut Hub, format: Format, share: Share) -> SessionId {
    let id = hub.add_session(format);
    hub.attach(id, id.idx as i32);
    assert!(hub.subscribe_as(id, 0, share));
    id
}

fn publish(hub: &mut Hub, n: usize) {
    let body = Body::plain(n.to_string().into_bytes());
    let publication = Publication::new(Arc::new(Channel::new("any")), body);
    hub.publish(channel_id(0), &Arc::new(publication));
}

/// What arrived, frame by frame: the number of a publication, or a push as it is.
fn texts(bytes: &[u8]) -> Vec<String> {
    let mut rest = bytes;
    let mut texts = Vec::new();
    while !rest.is_empty() {
        let (whole, behind) = rest.split_at(crate::frame::frame_len(rest).unwrap());
        rest = behind;
        // All are small.
        let text = std::str::from_utf8(&whole[2..]).unwrap();
        let data = text.split_once("\"data\":").map(|(_, data)| data.trim_end_matches('}'));
        texts.push(data.unwrap_or(text).to_owned());
    }
    texts
}

#[test]
fn those_who_asked_are_told_in_order() {
    let mut hub = hub(100_000);
    let plain = subscriber(&mut hub, Format::Json, Share::default());
    assert!(!hub.tells(channel_id(0)));
    assert_eq!(hub.tell(channel_id(0), &frame("nobody")).queued_bytes, 0);
    let told = subscriber(&mut hub, Format::Json, TOLD);
    let fresh = Share { variant: Variant::Fresh, is_told: true };
    let patched = subscriber(&mut hub, Format::Json, fresh);
    assert!(hub.tells(channel_id(0)));
    publish(&mut hub, 1);
    hub.tell(channel_id(0), &frame("join"));
    publish(&mut hub, 2);
    hub.tell(channel_id(0), &frame("leave"));
    assert_eq!(texts(&read_all(&mut hub, told)), ["1", "join", "2", "leave"]);
    assert_eq!(texts(&read_all(&mut hub, plain)), ["1", "2"]);
    // Still told, although it takes patches now.
    assert_eq!(texts(&read_all(&mut hub, patched)), ["\"1\"", "join", "\"2\"", "leave"]);
    assert!(hub.unsubscribe(told, 0) && hub.unsubscribe(patched, 0));
    assert!(!hub.tells(channel_id(0)));
    check_inside(&hub).unwrap();
}

#[test]
fn a_stale_channel_is_nobodys() {
    let mut hub = hub(100_000);
    let told = subscriber(&mut hub, Format::Json, TOLD);
    let stale = ChannelId { generation: channel_id(0).generation + 1, ..channel_id(0) };
    assert_eq!(hub.tell(stale, &frame("join")).queued_bytes, 0);
    assert_eq!(texts(&read_all(&mut hub, told)), [""; 0]);
}

/// Who conflates loses publications for newer ones, never a push that came while it kept up, and no
/// frame is cut.
#[test]
fn who_conflates_is_told_while_it_keeps_up() {
    let seed = std::env::var("HUBBUB_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(crate::node::unix_ms);
    println!("HUBBUB_TEST_SEED={seed}");
    let mut rng = Rng::new(seed);
    for _ in 0..300 {
        let mut hub = Hub::new(100_000, Default::default());
        hub.open_channel(channel_id(0), Arc::new(Channel::new("any")));
        hub.conflate(0);
        let told = subscriber(&mut hub, Format::Json, TOLD);
        let (mut received, mut is_slow) = (Vec::new(), false);
        let mut expected = BTreeMap::new();
        for n in 1..60 {
            let room = rng.below(90);
            match rng.below(4) {
                0 => publish(&mut hub, n),
                1 => {
                    hub.tell(channel_id(0), &frame(&format!("join {n}")));
                    expected.insert(n, is_slow);
                }
                2 => {
                    hub.on_writable(told);
                }
                _ => {
                    let mut left = room;
                    hub.visit(told.idx, &mut |_, parts| {
                        let bytes = parts.concat();
                        let taken = bytes.len().min(left);
                        left -= taken;
                        received.extend_from_slice(&bytes[..taken]);
                        if taken == 0 { Sent::Full } else { Sent::Bytes(taken) }
                    });
                    is_slow = hub.is_lagging(told);
                }
            }
        }
        hub.on_writable(told);
        received.extend(read_all(&mut hub, told));
        let texts = texts(&received);
        let numbers = texts.iter().map(|text| text.trim_start_matches("join ").parse::<usize>());
        let numbers: Vec<usize> = numbers.map(|number| number.expect("whole frames")).collect();
        for (n, was_slow) in expected {
            assert!(was_slow || numbers.contains(&n), "{n} of {texts:?}");
        }
        let publications: Vec<usize> = texts.iter().filter_map(|text| text.parse().ok()).collect();
        assert!(publications.is_sorted(), "{publications:?}");
        check_inside(&hub).unwrap();
    }
}
