//! Random operations on the hub and on the model; after each one both have to say the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::RngAlgorithm;

use super::model::{Checked, End, Model};
use super::ops::{Chained, N_SLOTS, Op, Payload, Room, Socket, Who, op};
use super::peer::Peer;
use super::{check_inside, frame};
use crate::channel::{Channel, ChannelId};
use crate::frame::{Opcode, put_close};
use crate::publication::{Base, Body, Format, Link, Publication};
use crate::shard::hub::{Hub, Queued, Run, SessionId, Totals, Variant, Visit};

const STALE_IDS_MAX: usize = 8;

/// Hub and model side by side.
struct Rig {
    hub: Hub,
    model: Model,
    start: Instant,
    /// All sets of channels get the same hash.
    collide: bool,
    stale: Vec<SessionId>,
    generation: u32,
    n_made: usize,
    /// By slot: what the next publication's patch is against.
    bases: BTreeMap<u32, Base>,
}

impl Rig {
    fn new(bound: usize, collide: bool) -> Self {
        let model = Model::new(bound);
        let hub = Hub::new(bound, Totals::default());
        let (stale, bases) = (Vec::new(), BTreeMap::new());
        let start = Instant::now();
        Self { hub, model, start, collide, stale, generation: 0, n_made: 0, bases }
    }

    fn pick(&self, who: &Who) -> SessionId {
        let live = &self.model.clients;
        match who {
            Who::Live(n) if !live.is_empty() => live[n % live.len()].id,
            Who::Stale(n) if !self.stale.is_empty() => self.stale[n % self.stale.len()],
            _ => SessionId { idx: 9_999, generation: 1 },
        }
    }

    fn next(&mut self) -> usize {
        self.n_made += 1;
        self.n_made
    }

    fn add(&mut self, format: Format) -> SessionId {
        let id = self.hub.add_session(format);
        self.model.add(id, format);
        id
    }

    fn attach(&mut self, id: SessionId) {
        let fd = self.next() as i32;
        let client = self.model.client(id);
        if client.as_ref().is_none_or(|client| client.fd.is_none()) {
            self.hub.attach(id, fd);
            client.into_iter().for_each(|client| (client.fd, client.wait_ms) = (Some(fd), None));
        }
    }

    fn open(&mut self, slot: u32) {
        if self.model.open_id(slot).is_some() {
            return;
        }
        self.generation += 1;
        let id = ChannelId { slot, generation: self.generation };
        self.hub.open_channel(id, Arc::new(Channel::new(&format!("channel-{slot}"))));
        if self.collide {
            self.hub.cohorts.channels[slot as usize].key = 0;
        }
        self.model.open(id);
    }

    fn publication(&mut self, slot: u32, payload: &Payload, chained: Chained) -> Arc<Publication> {
        let mark = format!("\"{:06}", self.next());
        let (Payload::Text(len) | Payload::Binary(len)) = *payload;
        let mut bytes = vec![b'.'; len];
        bytes.iter_mut().zip(mark.bytes()).for_each(|(byte, mark)| *byte = mark);
        match payload {
            Payload::Text(_) => bytes.iter_mut().skip(1).last().into_iter().for_each(|b| *b = b'"'),
            Payload::Binary(_) => bytes.insert(0, 0xFF),
        }
        let channel = Arc::new(Channel::new("any"));
        let mut publication = Publication::new(channel, Body::plain(bytes));
        if chained != Chained::No {
            let link = Link { serial: self.next() as u64, base: self.bases.get(&slot).cloned() };
            let base = publication.chain(link);
            if matches!(payload, Payload::Text(_)) {
                self.bases.insert(slot, base);
            }
        }
        Arc::new(publication)
    }

    fn publish(&mut self, id: ChannelId, publication: &Arc<Publication>, n: usize) -> Checked<()> {
        for _ in 0..n {
            let expected = self.model.publish(id, publication);
            prop_assert_eq!(self.hub.publish(id, publication).queued_bytes, expected);
            let now = self.now();
            self.hub.delay(id, || now);
        }
        Ok(())
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.model.now_ms)
    }

    fn pass(&mut self, ms: u64) {
        self.model.now_ms += ms;
        self.hub.mark_due(self.now());
    }

    fn push_own(&mut self, id: SessionId, sizes: &[usize]) -> Checked<()> {
        let mark = self.next() as u8;
        let frames: Vec<Bytes> =
            sizes.iter().map(|size| frame(Opcode::Text, mark, *size)).collect();
        let expected = self.model.push_own(id, &frames);
        prop_assert_eq!(self.hub.push_own(id, &frames.concat()), expected);
        Ok(())
    }

    fn close(&mut self, id: SessionId, queued: Queued) {
        let mut close_frame = Vec::new();
        put_close(&mut close_frame, 3000 + self.next() as u16 % 1000, "");
        self.hub.close(id, &close_frame, queued);
        self.model.close(id, close_frame.into(), queued);
    }

    fn remove(&mut self, id: SessionId) {
        self.hub.remove_session(id);
        self.model.remove(id);
        if !self.stale.contains(&id) {
            self.stale.insert(0, id);
            self.stale.truncate(STALE_IDS_MAX);
        }
    }

    fn visit(&mut self, idx: u32, socket: &Socket) -> Checked<()> {
        let mut peer = Peer::new(&self.model, idx, socket);
        let visit = self.hub.visit(idx, &mut |to, parts: &[&[u8]]| peer.write(to, parts));
        self.on_visited(peer, visit)
    }

    fn on_visited(&mut self, peer: Peer, visit: Visit) -> Checked<()> {
        let Peer { idx, queued, room, writes_left, taken, n_writes, end, refused, .. } = peer;
        prop_assert_eq!(refused, None, "a write to another socket, after the end, or too large");
        self.model.writes += n_writes;
        let expected = if let Some(later) = self.model.visit_later(idx) {
            prop_assert_eq!(n_writes, 0, "a write that had to wait");
            later
        } else {
            if writes_left > 0 {
                prop_assert_eq!(taken.len(), room);
            }
            if end == End::TookAll {
                prop_assert_eq!(taken.len(), queued);
            }
            self.model.on_visited(idx, &taken, end)?
        };
        prop_assert_eq!(visit, expected);
        Ok(())
    }

    /// As a shard walks: in runs, and a visit for who isn't in one.
    fn walk(&mut self, socket: &Socket, run_max: usize) -> Checked<()> {
        let n_seats = self.hub.seats_len();
        let mut next = self.hub.next_dirty(0, n_seats);
        while let Some(at) = next {
            let run = self.visit_run(at, n_seats, run_max, socket)?;
            next = run.next;
            if let Some(idx) = run.next.filter(|_| run.n_visited < run_max) {
                self.visit(idx, socket)?;
                next = self.hub.next_dirty(idx + 1, n_seats);
            }
        }
        prop_assert!(self.hub.is_clean(), "a walk leaves nobody out and marks nobody");
        Ok(())
    }

    fn visit_run(&mut self, from: u32, to: u32, n_max: usize, socket: &Socket) -> Checked<Run> {
        let dirty: Vec<u32> =
            (from..to).filter_map(|idx| self.hub.next_dirty(idx, idx + 1)).collect();
        let (mut peers, mut visits) = (Vec::new(), Vec::new());
        let mut write = |fd, slice: &[u8]| {
            let mut peer = Peer::new(&self.model, dirty[peers.len()], socket);
            let sent = peer.write(fd, &[slice]);
            peers.push(peer);
            sent
        };
        let mut on_visited = |idx, visit| visits.push((idx, visit));
        let run = self.hub.visit_run(from, to, n_max, &mut write, &mut on_visited);
        let n_visited = run.n_visited;
        prop_assert!(n_visited <= n_max && peers.len() == n_visited && visits.len() == n_visited);
        prop_assert_eq!(run.next, dirty.get(n_visited).copied());
        for (peer, (idx, visit)) in peers.into_iter().zip(visits) {
            prop_assert_eq!(peer.idx, idx, "in order");
            self.on_visited(peer, visit)?;
        }
        Ok(run)
    }

    fn on_writable(&mut self, id: SessionId) -> Checked<()> {
        let client = self.model.client(id);
        let expected = client.is_some_and(|client| {
            client.unmarked |= client.lagging;
            std::mem::take(&mut client.lagging)
        });
        prop_assert_eq!(self.hub.on_writable(id), expected);
        Ok(())
    }

    fn take_emptied(&mut self) -> Checked<()> {
        let mut taken: Vec<ChannelId> = Vec::new();
        for (id, channel) in self.hub.take_emptied() {
            prop_assert_eq!(&*channel.name, format!("channel-{}", id.slot));
            taken.push(id);
        }
        let mut expected = std::mem::take(&mut self.model.emptied);
        taken.sort_by_key(|id| id.generation);
        expected.sort_by_key(|id| id.generation);
        prop_assert_eq!(taken, expected);
        Ok(())
    }

    fn step(&mut self, op: &Op) -> Checked<()> {
        match op {
            Op::Add(format) => {
                self.add(*format);
            }
            Op::Attach(who) => self.attach(self.pick(who)),
            Op::Open(slot) => self.open(*slot),
            Op::Subscribe(who, slot, variant) => {
                let id = self.pick(who);
                let is_raw = self.model.client(id).is_some_and(|it| it.format == Format::Raw);
                let variant = if is_raw { Variant::Plain } else { *variant };
                let expected = self.model.subscribe(id, *slot, variant);
                prop_assert_eq!(self.hub.subscribe_as(id, *slot, variant), expected);
            }
            Op::Unsubscribe(who, slot) => {
                let id = self.pick(who);
                let expected = self.model.unsubscribe(id, *slot);
                prop_assert_eq!(self.hub.unsubscribe(id, *slot), expected);
            }
            Op::Publish { slot, payload, n, chained } => {
                if let Some(id) = self.model.open_id(*slot) {
                    if *chained == Chained::AfterLoss {
                        self.publication(*slot, payload, Chained::Yes);
                    }
                    let publication = self.publication(*slot, payload, *chained);
                    self.publish(id, &publication, *n)?;
                }
            }
            Op::Delay(slot, ms) => {
                if self.model.open_id(*slot).is_some() {
                    self.hub.set_delay(*slot, Duration::from_millis(*ms));
                    self.model.set_delay(*slot, *ms);
                }
            }
            Op::Pass(ms) => self.pass(*ms),
            Op::PublishStale { slot, generation } => {
                let id = ChannelId { slot: *slot, generation: *generation };
                let publication = self.publication(*slot, &Payload::Text(10), Chained::No);
                self.publish(id, &publication, 1)?;
            }
            Op::PushOwn(who, sizes) => self.push_own(self.pick(who), sizes)?,
            Op::Visit(who, socket) => self.visit_if_known(self.pick(who).idx, socket)?,
            Op::Walk(socket, run_max) => self.walk(socket, *run_max)?,
            Op::OnWritable { who, visit } => {
                let id = self.pick(who);
                self.on_writable(id)?;
                if let Some(socket) = visit {
                    self.visit_if_known(id.idx, socket)?;
                }
            }
            Op::Close(who, queued) => self.close(self.pick(who), *queued),
            Op::Remove(who) => self.remove(self.pick(who)),
            Op::CloseIfUnused(slot) => {
                if self.model.open_id(*slot).is_some() {
                    self.hub.close_if_unused(*slot);
                    self.model.close_if_unused(*slot);
                }
            }
            Op::TakeEmptied => self.take_emptied()?,
            Op::Bound(who, less) => {
                let client = self.model.client(self.pick(who));
                let bound = client.map_or(0, |client| client.queued_bytes().saturating_sub(*less));
                (self.model.bound, self.hub.outbox_bytes_max) = (bound, bound);
            }
        }
        self.check()
    }

    fn visit_if_known(&mut self, idx: u32, socket: &Socket) -> Checked<()> {
        if idx < self.hub.seats_len() { self.visit(idx, socket) } else { Ok(()) }
    }

    /// Whatever can be asked is what the model says.
    fn check(&self) -> Checked<()> {
        let Self { hub, model, .. } = self;
        for slot in 0..N_SLOTS + 1 {
            prop_assert_eq!(hub.n_subscribers(slot), model.n_subscribers(slot));
        }
        prop_assert_eq!(hub.n_sessions(), model.clients.len());
        prop_assert_eq!(hub.n_subscriptions(), model.n_subscriptions());
        prop_assert_eq!(hub.n_channels(), model.n_open());
        prop_assert_eq!(hub.n_cohorts(), model.n_cohorts());
        prop_assert_eq!(hub.has_emptied(), !model.emptied.is_empty());
        prop_assert_eq!(hub.totals.deliveries, model.deliveries);
        prop_assert_eq!(hub.totals.dropped_frames, model.dropped_frames);
        prop_assert_eq!(hub.totals.skipped, model.skipped);
        prop_assert_eq!(hub.totals.writes, model.writes);
        prop_assert_eq!(hub.totals.sent_bytes, model.sent_bytes);
        if model.clients.iter().all(|client| client.queued_bytes() == 0) {
            prop_assert_eq!(hub.outbox_bytes(), 0, "kept for nobody");
        }
        let next_dirty = hub.next_dirty(0, hub.seats_len());
        prop_assert_eq!(hub.is_clean(), next_dirty.is_none());
        self.check_clients()?;
        for id in &self.stale {
            prop_assert!(hub.id_at(id.idx) != Some(*id));
            prop_assert_eq!(hub.fd(*id), None);
            prop_assert!(hub.is_closing(*id) && hub.own_is_empty(*id) && !hub.is_lagging(*id));
            prop_assert_eq!(hub.queued_bytes(*id) + hub.n_channels_of(*id), 0);
            prop_assert!(!(0..N_SLOTS).any(|slot| hub.is_subscribed(*id, slot)));
            let is_marked = hub.next_dirty(id.idx, id.idx + 1).is_some();
            prop_assert!(!is_marked || hub.id_at(id.idx).is_some(), "nobody is there");
        }
        check_inside(hub)
    }

    fn check_clients(&self) -> Checked<()> {
        let hub = &self.hub;
        let outbox_bytes = hub.outbox_bytes();
        for client in &self.model.clients {
            let id = client.id;
            prop_assert_eq!(hub.id_at(id.idx), Some(id));
            prop_assert_eq!(hub.fd(id), Some(client.fd.unwrap_or(-1)));
            prop_assert_eq!(hub.is_closing(id), client.closing);
            prop_assert_eq!(hub.is_lagging(id), client.lagging);
            prop_assert_eq!(hub.own_is_empty(id), client.own_is_empty());
            prop_assert_eq!(hub.n_channels_of(id), client.channels.len());
            for slot in 0..N_SLOTS + 1 {
                prop_assert_eq!(hub.is_subscribed(id, slot), client.channels.contains_key(&slot));
            }
            let queued_bytes = client.queued_bytes();
            prop_assert_eq!(hub.queued_bytes(id), queued_bytes);
            prop_assert!(outbox_bytes >= queued_bytes);
            let must_be_marked =
                queued_bytes > 0 && client.fd.is_some() && !client.lagging && !client.unmarked;
            let is_due = client.wait_ms.is_none_or(|until_ms| until_ms <= self.model.now_ms);
            if must_be_marked && is_due {
                prop_assert_eq!(hub.next_dirty(id.idx, id.idx + 1), Some(id.idx), "forgotten");
            }
        }
        Ok(())
    }

    /// Everyone reads again: everyone gets all that is due, and nothing is left of it.
    fn drain(&mut self) -> Checked<()> {
        let all = Socket { room: Room::All, breaks: false };
        self.pass(30);
        let ids: Vec<SessionId> = self.model.clients.iter().map(|client| client.id).collect();
        for id in &ids {
            self.attach(*id);
            self.on_writable(*id)?;
            if self.model.client(*id).is_some_and(|client| client.unmarked) {
                self.visit(id.idx, &all)?;
            }
        }
        self.walk(&all, 2)?;
        self.check()?;
        let left: usize = self.model.clients.iter().map(|client| client.queued_bytes()).sum();
        prop_assert_eq!(left + self.hub.outbox_bytes(), 0);
        for id in ids {
            self.remove(id);
            self.check()?;
        }
        for slot in 0..N_SLOTS {
            self.step(&Op::CloseIfUnused(slot))?;
        }
        self.take_emptied()?;
        prop_assert_eq!(self.hub.n_channels(), 0);
        prop_assert!(self.hub.n_cohorts() <= 2, "only the empty sets are kept");
        Ok(())
    }
}

/// At least so many; `PROPTEST_CASES` may ask for more. The default generator takes longer to
/// draw the operations than they take.
fn config() -> ProptestConfig {
    let asked = ProptestConfig::default();
    let rng_algorithm = RngAlgorithm::XorShift;
    ProptestConfig { cases: asked.cases.max(512), rng_algorithm, ..asked }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_hub_does_what_the_model_says(
        bound in prop::sample::select(vec![0usize, 20_000, 500_000, 5_000_000]),
        n_at_start in prop_oneof![7 => 0..5usize, 1 => 30..70usize],
        collide in any::<bool>(),
        delayed_bytes_max in prop::sample::select(vec![30_000, usize::MAX]),
        ops in prop::collection::vec(op(), 1..400),
    ) {
        let mut rig = Rig::new(bound, collide);
        (0..N_SLOTS).for_each(|slot| rig.open(slot));
        rig.hub.delays.bytes_max = delayed_bytes_max;
        for n in 0..n_at_start {
            let id = rig.add(if n % 8 == 0 { Format::Json } else { Format::Raw });
            rig.attach(id);
            rig.hub.subscribe(id, 0);
            rig.model.subscribe(id, 0, Variant::Plain);
        }
        for op in &ops {
            rig.step(op)?;
        }
        rig.drain()?;
    }
}
