//! Subscribers with delta: what each of them makes of what it gets is what was published.

use serde_json::Value;

use super::*;
use crate::fossil;
use crate::publication::{Base, Link};

/// A hub with one channel, and the chain that the broker keeps of it.
struct Stage {
    hub: Hub,
    serial: u64,
    base: Option<Base>,
}

/// What a client keeps of the channel.
#[derive(Default)]
struct Reader {
    base: Vec<u8>,
    n_patches: usize,
}

impl Stage {
    fn new() -> Self {
        Self { hub: hub(100_000), serial: 0, base: None }
    }

    fn subscriber(&mut self, variant: Variant) -> SessionId {
        let id = self.hub.add_session(Format::Json);
        self.hub.attach(id, id.idx as i32);
        assert!(self.hub.subscribe_as(id, 0, variant));
        id
    }

    fn chained(&mut self, payload: &[u8]) -> Publication {
        let body = Body::plain(payload.to_vec());
        let mut publication = Publication::new(Arc::new(Channel::new("any")), body);
        self.serial += 1;
        let link = Link { serial: self.serial, base: self.base.take() };
        self.base = Some(publication.chain(link));
        publication
    }

    fn publish(&mut self, payload: &[u8]) {
        let publication = self.chained(payload);
        self.hub.publish(channel_id(0), &Arc::new(publication));
    }
}

impl Reader {
    /// The values of the publications that arrived.
    fn read(&mut self, hub: &mut Hub, id: SessionId) -> Vec<String> {
        let bytes = read_all(hub, id);
        let mut rest = &bytes[..];
        let mut values = Vec::new();
        while !rest.is_empty() {
            let (frame, behind) = rest.split_at(crate::frame::frame_len(rest).unwrap());
            rest = behind;
            let at = frame.iter().position(|byte| *byte == b'{').unwrap();
            let push: Value = serde_json::from_slice(&frame[at..]).unwrap();
            let publication = &push["push"]["pub"];
            let text = publication["data"].as_str().unwrap().as_bytes();
            self.base = if publication["delta"] == true {
                self.n_patches += 1;
                fossil::apply(&self.base, text).unwrap()
            } else {
                text.to_vec()
            };
            values.push(String::from_utf8(self.base.clone()).unwrap());
        }
        values
    }
}

/// Long enough for a patch to be shorter.
fn quote(n: usize) -> String {
    format!("{{\"symbol\":\"EURUSD\",\"name\":\"Euro and US dollar\",\"price\":{n}}}")
}

#[test]
fn the_first_is_whole_and_then_come_patches() {
    let mut stage = Stage::new();
    let plain = stage.subscriber(Variant::Plain);
    let early = stage.subscriber(Variant::Fresh);
    let (mut one, mut two) = (Reader::default(), Reader::default());
    (0..3).for_each(|n| stage.publish(quote(n).as_bytes()));
    let late = stage.subscriber(Variant::Fresh);
    (3..6).for_each(|n| stage.publish(quote(n).as_bytes()));
    let expected: Vec<String> = (0..6).map(quote).collect();
    assert_eq!(one.read(&mut stage.hub, early), expected);
    assert_eq!(two.read(&mut stage.hub, late), expected[3..]);
    assert_eq!((one.n_patches, two.n_patches), (5, 2));
    let whole: usize = expected.iter().map(|text| text.len() + 40).sum();
    assert!(read_all(&mut stage.hub, plain).len() > whole);
    assert_eq!(stage.hub.n_cohorts(), 3, "those with a base are one cohort: plain, delta, empty");
    assert_eq!(stage.hub.totals.patches.n, 5, "one a publication, but for the first");
    assert_eq!(stage.hub.totals.deliveries, 15);
}

#[test]
fn what_got_lost_is_nobodys_base() {
    let mut stage = Stage::new();
    let id = stage.subscriber(Variant::Fresh);
    let mut reader = Reader::default();
    stage.publish(quote(1).as_bytes());
    stage.chained(quote(2).as_bytes());
    stage.publish(quote(3).as_bytes());
    stage.publish(quote(4).as_bytes());
    assert_eq!(reader.read(&mut stage.hub, id), [quote(1), quote(3), quote(4)]);
    assert_eq!(reader.n_patches, 1);
}

#[test]
fn who_comes_again_starts_anew() {
    let mut stage = Stage::new();
    let stays = stage.subscriber(Variant::Fresh);
    let id = stage.subscriber(Variant::Fresh);
    stage.publish(quote(1).as_bytes());
    assert!(stage.hub.unsubscribe(id, 0));
    stage.publish(quote(2).as_bytes());
    assert!(stage.hub.subscribe_as(id, 0, Variant::Fresh));
    assert!(!stage.hub.subscribe_as(id, 0, Variant::Plain), "it is subscribed");
    stage.publish(quote(3).as_bytes());
    stage.publish(quote(4).as_bytes());
    let mut readers = [Reader::default(), Reader::default()];
    assert_eq!(readers[0].read(&mut stage.hub, id), [quote(1), quote(3), quote(4)]);
    assert_eq!(readers[1].read(&mut stage.hub, stays), [1, 2, 3, 4].map(quote));
    assert_eq!(readers.map(|reader| reader.n_patches), [1, 3]);
}

#[test]
fn a_payload_that_json_cannot_carry_makes_nobody_less_fresh() {
    let mut stage = Stage::new();
    let id = stage.subscriber(Variant::Fresh);
    let body = Body::plain(b"\xff".to_vec());
    let publication = Publication::new(Arc::new(Channel::new("any")), body);
    stage.hub.publish(channel_id(0), &Arc::new(publication));
    assert_eq!(stage.hub.totals.skipped, 1);
    stage.publish(quote(1).as_bytes());
    stage.publish(b"not JSON");
    stage.publish(b"[1,\n2]");
    let expected = [quote(1), "\"not JSON\"".to_owned(), "[1, 2]".to_owned()];
    assert_eq!(Reader::default().read(&mut stage.hub, id), expected);
}
