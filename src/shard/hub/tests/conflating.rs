//! Conflation under random operations: whatever a socket takes and when, each client sees a channel's
//! publications in order, the last one always, all of them where the channel doesn't conflate, and what
//! it didn't see is counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::{Hub, Queued, Sent, SessionId, Totals, Visit};
use super::model::Checked;
use super::{channel_id, check_inside};
use crate::channel::Channel;
use crate::frame;
use crate::publication::{Body, Format, Publication};

const N_SLOTS: u32 = 4;
/// The first two conflate.
const N_CONFLATING: u32 = 2;
/// Those publish with a delay, one that conflates and one that doesn't.
const DELAYED: [u32; 2] = [1, 3];
const DELAY: Duration = Duration::from_millis(3);
const FRAME_BYTES_MAX: usize = 40;

#[derive(Clone, Debug)]
enum Op {
    Publish {
        slot: u32,
        n: usize,
    },
    /// The socket has room for so many bytes.
    Visit {
        who: usize,
        room: usize,
    },
    /// Everybody's has, and they are visited in a run, as far as they can.
    Run {
        room: usize,
    },
    Writable {
        who: usize,
    },
    Subscribe {
        who: usize,
        slot: u32,
    },
    Unsubscribe {
        who: usize,
        slot: u32,
    },
    PushOwn {
        who: usize,
    },
    Close {
        who: usize,
        drops: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let who = || 0..5usize;
    prop_oneof![
        10 => (0..N_SLOTS, 1..6usize).prop_map(|(slot, n)| Op::Publish { slot, n }),
        8 => (who(), 0..120usize).prop_map(|(who, room)| Op::Visit { who, room }),
        4 => (0..120usize).prop_map(|room| Op::Run { room }),
        6 => who().prop_map(|who| Op::Writable { who }),
        3 => (who(), 0..N_SLOTS).prop_map(|(who, slot)| Op::Subscribe { who, slot }),
        2 => (who(), 0..N_SLOTS).prop_map(|(who, slot)| Op::Unsubscribe { who, slot }),
        2 => who().prop_map(|who| Op::PushOwn { who }),
        1 => (who(), any::<bool>()).prop_map(|(who, drops)| Op::Close { who, drops }),
    ]
}

#[derive(Default)]
struct Client {
    received: Vec<u8>,
    /// By channel: the numbers that were published while it was subscribed.
    published: BTreeMap<u32, Vec<u32>>,
    is_closed: bool,
    dropped: bool,
    visits: Vec<Began>,
    /// By channel: up to here it may get what was queued when it changed its channels.
    settled: [u32; N_SLOTS as usize],
}

/// How things stood when a visit began.
struct Began {
    received_bytes: usize,
    is_conflating: bool,
    latest: [u32; N_SLOTS as usize],
    settled: [u32; N_SLOTS as usize],
}

impl Client {
    /// What a conflating session got, from the byte `at` on, was the newest when the socket took its
    /// first byte.
    fn check_newest(&self, at: usize, slot: u32, number: u32) -> Checked<()> {
        let began = self.visits.partition_point(|visit| visit.received_bytes <= at);
        let began = &self.visits[began - 1];
        if slot < N_CONFLATING && began.is_conflating && number > began.settled[slot as usize] {
            prop_assert_eq!(number, began.latest[slot as usize], "stale");
        }
        Ok(())
    }
}

struct Rig {
    hub: Hub,
    ids: Vec<SessionId>,
    clients: Vec<Client>,
    latest: [u32; N_SLOTS as usize],
    /// A millisecond goes by with each operation.
    now: Instant,
}

impl Rig {
    fn new() -> Self {
        let mut hub = Hub::new(1 << 20, Totals::default());
        for slot in 0..N_SLOTS {
            hub.open_channel(channel_id(slot), Arc::new(Channel::new("any")));
            hub.pin(slot);
            if slot < N_CONFLATING {
                hub.conflate(slot);
            }
            if DELAYED.contains(&slot) {
                hub.set_delay(slot, DELAY);
            }
        }
        let ids: Vec<SessionId> = (0..5).map(|_| hub.add_session(Format::Raw)).collect();
        ids.iter().for_each(|id| hub.attach(*id, id.idx as i32));
        let clients = ids.iter().map(|_| Client::default()).collect();
        let latest = [0; N_SLOTS as usize];
        let mut rig = Self { hub, ids, clients, latest, now: Instant::now() };
        for who in 0..5 {
            for slot in 0..N_SLOTS {
                rig.hub.subscribe(rig.ids[who], slot);
            }
        }
        rig
    }

    fn publish(&mut self, slot: u32) {
        let number = &mut self.latest[slot as usize];
        *number += 1;
        let payload = format!("{slot} {number} ").into_bytes();
        let channel = Arc::new(Channel::new("any"));
        let publication = Arc::new(Publication::new(channel, Body::plain(payload)));
        for (id, client) in self.ids.iter().zip(&mut self.clients) {
            if self.hub.is_subscribed(*id, slot) {
                client.published.entry(slot).or_default().push(*number);
            }
        }
        self.hub.publish(channel_id(slot), &publication);
        self.hub.delay(channel_id(slot), || self.now);
    }

    fn begin_visit(&mut self, who: usize) {
        let client = &mut self.clients[who];
        client.visits.push(Began {
            received_bytes: client.received.len(),
            is_conflating: self.hub.cohort_of(self.ids[who].idx).is_conflating,
            latest: self.latest,
            settled: client.settled,
        });
    }

    fn run(&mut self, room: usize) -> Checked<()> {
        (0..self.clients.len()).for_each(|who| self.begin_visit(who));
        let Self { hub, clients, .. } = self;
        // Descriptors are the clients' numbers here.
        let mut write = |fd, slice: &[u8]| {
            let n = slice.len().min(room);
            clients[fd as usize].received.extend_from_slice(&slice[..n]);
            if n > 0 { Sent::Bytes(n) } else { Sent::Full }
        };
        let mut visits = Vec::new();
        let mut on_visited = |idx, visit| visits.push((idx as usize, visit));
        hub.visit_run(0, hub.seats_len(), usize::MAX, &mut write, &mut on_visited);
        visits.into_iter().try_for_each(|(who, visit)| self.check_visit(who, visit))
    }

    /// Who is behind gets the newest from now on, where it may; who isn't gets everything.
    fn check_visit(&self, who: usize, visit: Visit) -> Checked<()> {
        let id = self.ids[who];
        let is_conflating = self.hub.cohort_of(id.idx).is_conflating;
        if visit == Visit::Full {
            let may = (0..N_CONFLATING).any(|slot| self.hub.is_subscribed(id, slot));
            prop_assert!(is_conflating || !may);
        }
        let is_behind = self.hub.seats[id.idx as usize].behind.is_some();
        prop_assert!(visit != Visit::CaughtUp || !is_conflating && !is_behind);
        Ok(())
    }

    fn visit(&mut self, who: usize, mut room: usize) -> Checked<()> {
        self.begin_visit(who);
        let received = &mut self.clients[who].received;
        let visit = self.hub.visit(self.ids[who].idx, &mut |_, parts| {
            let bytes = parts.concat();
            let n = bytes.len().min(room);
            room -= n;
            received.extend_from_slice(&bytes[..n]);
            if n > 0 { Sent::Bytes(n) } else { Sent::Full }
        });
        self.clients[who].is_closed |= visit == Visit::Closed;
        self.check_visit(who, visit)
    }

    fn step(&mut self, op: &Op) -> Checked<()> {
        self.now += Duration::from_millis(1);
        self.hub.mark_due(self.now);
        if let Op::Subscribe { who, .. } | Op::Unsubscribe { who, .. } | Op::Close { who, .. } = *op
        {
            self.clients[who].settled = self.latest;
        }
        match *op {
            Op::Publish { slot, n } => (0..n).for_each(|_| self.publish(slot)),
            Op::Visit { who, room } => self.visit(who, room)?,
            Op::Run { room } => self.run(room)?,
            Op::Writable { who } => {
                if self.hub.on_writable(self.ids[who]) {
                    self.visit(who, FRAME_BYTES_MAX)?;
                }
            }
            Op::Subscribe { who, slot } => {
                self.hub.subscribe(self.ids[who], slot);
            }
            Op::Unsubscribe { who, slot } => {
                self.hub.unsubscribe(self.ids[who], slot);
            }
            Op::PushOwn { who } => {
                let mut out = Vec::new();
                frame::put_frame(&mut out, frame::Opcode::Text, b"own");
                self.hub.push_own(self.ids[who], &out);
            }
            Op::Close { who, drops } => {
                if !self.hub.is_closing(self.ids[who]) {
                    self.clients[who].dropped |= drops;
                    let mut out = Vec::new();
                    frame::put_close(&mut out, 3000, "");
                    let queued = if drops { Queued::Drop } else { Queued::Flush };
                    self.hub.close(self.ids[who], &out, queued);
                }
            }
        }
        check_inside(&self.hub)
    }

    /// Everyone reads all; then what each saw is compared with what there was.
    fn end(&mut self) -> Checked<()> {
        for who in 0..5 {
            self.hub.on_writable(self.ids[who]);
            self.visit(who, usize::MAX)?;
            prop_assert_eq!(self.hub.queued_bytes(self.ids[who]), 0);
        }
        let mut n_seen = 0;
        for client in &self.clients {
            let mut seen: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
            let mut rest = &client.received[..];
            while !rest.is_empty() {
                let len = frame::frame_len(rest).filter(|len| *len <= rest.len());
                let (frame, after) = rest.split_at(len.expect("whole frames"));
                let at = client.received.len() - rest.len();
                rest = after;
                let text = String::from_utf8_lossy(&frame[2..]);
                let mut words = text.split(' ').map(str::parse);
                if let (Some(Ok(slot)), Some(Ok(number))) = (words.next(), words.next()) {
                    client.check_newest(at, slot, number)?;
                    seen.entry(slot).or_default().push(number);
                    n_seen += 1;
                }
            }
            for (slot, published) in &client.published {
                let seen = seen.remove(slot).unwrap_or_default();
                prop_assert!(seen.is_sorted_by(|a, b| a < b), "{slot}: {seen:?}");
                prop_assert!(seen.iter().all(|number| published.contains(number)));
                if !client.dropped {
                    prop_assert_eq!(seen.last(), published.last(), "the last one always comes");
                    prop_assert!(*slot < N_CONFLATING || seen == *published, "{} lost", slot);
                }
            }
            prop_assert!(seen.is_empty(), "not published to it: {seen:?}");
        }
        let totals = &self.hub.totals;
        let own_dropped = totals.dropped_frames; // Replies among them: an upper bound.
        let missing = totals.deliveries - n_seen;
        prop_assert!(totals.conflated <= missing && missing <= totals.conflated + own_dropped);
        if self.clients.iter().all(|client| !client.dropped) {
            prop_assert_eq!(missing, totals.conflated);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn who_is_slow_sees_the_newest(ops in prop::collection::vec(op(), 1..200)) {
        let mut rig = Rig::new();
        for op in &ops {
            rig.step(op)?;
        }
        rig.end()?;
    }
}

/// However much is published, a slow session holds one frame a channel at the most.
#[test]
fn what_a_slow_session_holds_is_bounded() {
    let mut rig = Rig::new();
    for slot in 2..N_SLOTS {
        rig.hub.unsubscribe(rig.ids[0], slot);
    }
    rig.publish(0);
    rig.visit(0, 3).expect("visited");
    for _ in 0..10_000 {
        (0..N_CONFLATING).for_each(|slot| rig.publish(slot));
    }
    assert!(rig.hub.queued_bytes(rig.ids[0]) <= FRAME_BYTES_MAX);
    rig.hub.on_writable(rig.ids[0]);
    rig.visit(0, usize::MAX).expect("visited");
    assert_eq!(rig.hub.totals.conflated, 2 * 9_999);
    assert!(rig.clients[0].received.ends_with(b"1 10000 "));
}

/// A socket that takes nothing of a value must not hold the choice to it: the next is newer by then.
#[test]
fn what_the_socket_did_not_take_is_chosen_again() {
    let mut rig = Rig::new();
    rig.publish(0);
    rig.publish(1);
    rig.visit(0, 0).expect("visited");
    rig.hub.on_writable(rig.ids[0]);
    let frame_bytes = 2 + "0 1 ".len();
    rig.visit(0, frame_bytes).expect("visited");
    assert!(rig.clients[0].received.ends_with(b"0 1 "));
    rig.publish(0);
    rig.publish(1);
    rig.hub.on_writable(rig.ids[0]);
    rig.visit(0, frame_bytes).expect("visited");
    assert!(
        rig.clients[0].received.ends_with(b"1 2 "),
        "the newest, of the one that waited longer"
    );
    rig.hub.on_writable(rig.ids[0]);
    rig.visit(0, usize::MAX).expect("visited");
    assert!(rig.clients[0].received.ends_with(b"0 2 "));
    assert_eq!(rig.hub.totals.conflated, 1);
}

/// Its socket was full before it subscribed: it conflates from the first publication on.
#[test]
fn who_subscribes_while_behind_is_not_too_slow() {
    let mut rig = Rig::new();
    let id = rig.ids[0];
    (0..N_CONFLATING).for_each(|slot| assert!(rig.hub.unsubscribe(id, slot)));
    rig.publish(2);
    rig.visit(0, 3).expect("visited");
    assert!(rig.hub.subscribe(id, 0));
    let before = rig.hub.queued_bytes(id);
    (0..10_000).for_each(|_| rig.publish(0));
    assert_eq!(rig.hub.queued_bytes(id), before);
    rig.hub.on_writable(id);
    rig.visit(0, usize::MAX).expect("visited");
    assert!(rig.clients[0].received.ends_with(b"0 10000 "));
    assert_eq!(rig.hub.totals.conflated, 9_999);
}

/// What a format can't carry takes no other's place.
#[test]
fn the_newest_is_the_newest_that_the_format_carries() {
    let mut rig = Rig::new();
    let id = rig.hub.add_session(Format::Json);
    rig.hub.attach(id, 9);
    rig.hub.subscribe(id, 0);
    let mut out = Vec::new();
    frame::put_frame(&mut out, frame::Opcode::Text, b"own");
    rig.hub.push_own(id, &out);
    assert_eq!(rig.hub.visit(id.idx, &mut |_, _| Sent::Full), Visit::Full);
    rig.publish(0);
    let channel = Arc::new(Channel::new("any"));
    let binary = Arc::new(Publication::new(channel, Body::plain(vec![0xFF])));
    rig.hub.publish(channel_id(0), &binary);
    rig.hub.on_writable(id);
    let mut received = Vec::new();
    let visit = rig.hub.visit(id.idx, &mut |_, parts| {
        let bytes = parts.concat();
        received.extend_from_slice(&bytes);
        Sent::Bytes(bytes.len())
    });
    assert_eq!(visit, Visit::CaughtUp);
    assert!(String::from_utf8_lossy(&received).contains("0 1 "), "the last that it can have");
    assert_eq!((rig.hub.totals.conflated, rig.hub.totals.skipped), (0, 1));
}
