//! Against a naive Redis that does what the scripts do, in any order, with failures of every kind.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::fuzz::Rng;

type Key = (String, String);

#[derive(Default)]
struct Server {
    /// By number, those that are believed.
    lives: BTreeMap<u32, BTreeMap<Key, Vec<u8>>>,
    reaped: BTreeSet<u32>,
    /// What was told, oldest first.
    told: Vec<(char, Key)>,
}

/// One call of the write script.
struct Sent {
    life: u32,
    before: Vec<u32>,
    args: Vec<Vec<u8>>,
}

impl Server {
    fn write(&mut self, sent: &Sent) -> bool {
        let Some(mut own) = self.lives.remove(&sent.life) else { return false };
        let lives = &mut self.lives;
        let mut take_from_before = |key: &Key| {
            let of = sent.before.iter().filter(|life| {
                lives.get_mut(life).is_some_and(|entries| entries.remove(key).is_some())
            });
            of.count() > 0
        };
        for change in sent.args.chunks(4) {
            let text = |at: usize| String::from_utf8(change[at].clone()).expect("text");
            let (what, key, value) = (text(0), (text(1), text(2)), change[3].clone());
            assert_eq!(value[0], b'1', "its coming and going is told");
            match &*what {
                "e" | "j" => {
                    let was_there = take_from_before(&key);
                    let is_new = own.insert(key.clone(), value).is_none();
                    if is_new && !was_there && what == "j" {
                        self.told.push(('j', key));
                    }
                }
                _ => {
                    let was_there = take_from_before(&key);
                    let found = own.remove(&key).is_some() || was_there;
                    if found || what == "f" {
                        self.told.push(('l', key));
                    }
                }
            }
        }
        self.lives.insert(sent.life, own);
        true
    }

    fn reap(&mut self, life: u32) {
        for key in self.lives.remove(&life).unwrap_or_default().into_keys() {
            if !self.lives.values().any(|entries| entries.contains_key(&key)) {
                self.told.push(('l', key));
            }
        }
        self.reaped.insert(life);
    }

    fn state(&self, life: u32) -> Before {
        match life {
            life if self.lives.contains_key(&life) => Before::There,
            life if self.reaped.contains(&life) => Before::Reaped,
            _ => Before::Lost,
        }
    }
}

/// How far it is from what the rest promises.
#[derive(Clone, Copy, PartialEq)]
enum Weather {
    /// Links fail, answers get lost, lives are taken for dead.
    Fair,
    /// Redis loses everything too, and does late what a link of before had sent.
    Foul,
}

struct Rig {
    ledger: Ledger,
    server: Server,
    weather: Weather,
    life: u32,
    before: Vec<u32>,
    /// In order, and whether the server did it.
    in_flight: VecDeque<(Batch, bool)>,
    late: Vec<Sent>,
    channels: Vec<Arc<Channel>>,
    truth: BTreeMap<Key, usize>,
}

fn member(client: u128) -> Box<Member> {
    let info = format!("{{\"user\":\"u\",\"client\":\"{client}\"}}").into_bytes().into();
    Box::new(Member { client: Uuid::from_u128(client), user: "u".into(), info, is_told: true })
}

impl Rig {
    fn new(weather: Weather) -> Self {
        let bounds = Bounds { entries_max: 1_000, bytes_max: 1 << 20 };
        let channels = ["a", "b"].iter().map(|name| Arc::new(Channel::new(name))).collect();
        let mut rig = Self {
            ledger: Ledger::new(bounds),
            server: Server::default(),
            weather,
            life: 0,
            before: Vec::new(),
            in_flight: VecDeque::new(),
            late: Vec::new(),
            channels,
            truth: BTreeMap::new(),
        };
        rig.begin();
        rig
    }

    fn begin(&mut self) {
        let what = self.before.last().map_or(Before::There, |life| self.server.state(*life));
        self.life += 1;
        self.server.lives.insert(self.life, BTreeMap::new());
        self.ledger.begin(what);
    }

    /// The link fails: nothing that is in flight is answered, and a new life begins.
    fn fail(&mut self) {
        while let Some((batch, _)) = self.in_flight.pop_front() {
            self.ledger.settle(batch, false);
        }
        self.before.push(self.life);
        self.begin();
    }

    fn send(&mut self, batch: Option<Batch>, rng: &mut Rng) {
        let Some(mut batch) = batch else { return };
        let args = std::mem::take(&mut batch.args);
        let sent = Sent { life: self.life, before: self.before.clone(), args };
        match rng.below(12) {
            // Lost on its way, with all that would follow.
            0 => {
                self.in_flight.push_back((batch, false));
                if self.weather == Weather::Foul {
                    self.late.push(sent);
                }
                self.fail();
            }
            // Refused, as by a Redis without memory.
            1 => self.ledger.settle(batch, false),
            _ => {
                let is_written = self.server.write(&sent);
                self.in_flight.push_back((batch, is_written));
            }
        }
    }

    fn answer(&mut self) {
        let Some((batch, is_written)) = self.in_flight.pop_front() else { return };
        self.ledger.settle(batch, is_written);
        if !is_written {
            self.fail();
        }
    }

    fn done(&mut self) {
        if self.ledger.is_settled() {
            for life in std::mem::take(&mut self.before) {
                self.server.reap(life);
            }
        }
    }

    fn step(&mut self, rng: &mut Rng) {
        let channel = self.channels[rng.below(2)].clone();
        let (client, shard) = (1 + rng.below(10) as u128, rng.below(2));
        let key = (channel.name.to_string(), Uuid::from_u128(client).to_string());
        match rng.below(40) {
            0..=11 if !self.truth.contains_key(&key) => {
                assert!(self.ledger.enter(shard, &channel, member(client)));
                self.truth.insert(key, shard);
            }
            0..=19 => {
                self.ledger.leave(&channel.name, Uuid::from_u128(client));
                self.truth.remove(&key);
            }
            20 if rng.one_in(4) => {
                self.ledger.forget_shard(shard);
                self.truth.retain(|_, of| *of != shard);
            }
            21..=26 => {
                let batch = self.ledger.take();
                self.send(batch, rng);
            }
            27..=29 => {
                let batch = self.ledger.take_of(&channel.name);
                self.send(batch, rng);
            }
            30..=36 => self.answer(),
            37 => self.done(),
            38 if rng.one_in(10) => self.fail(),
            38 if rng.one_in(10) => {
                self.server.reap(self.life);
                let old: Vec<u32> = self.before.clone();
                old.into_iter().for_each(|life| self.server.reap(life));
            }
            39 if self.weather == Weather::Foul && rng.one_in(10) => {
                (self.server.lives, self.server.reaped) = Default::default();
            }
            39 if !self.late.is_empty() => {
                let sent = self.late.swap_remove(rng.below(self.late.len()));
                self.server.write(&sent);
            }
            _ => {}
        }
        let here: Vec<usize> = self
            .channels
            .iter()
            .map(|channel| self.truth.keys().filter(|(name, _)| *name == *channel.name).count())
            .collect();
        let noted: Vec<usize> =
            self.channels.iter().map(|channel| self.ledger.n_in(&channel.name)).collect();
        assert_eq!(noted, here);
    }

    /// Everything is answered, and written.
    fn come_to_rest(&mut self) {
        loop {
            while !self.in_flight.is_empty() {
                self.answer();
            }
            let Some(mut batch) = self.ledger.take() else { break };
            let args = std::mem::take(&mut batch.args);
            let before = self.before.clone();
            let is_written = self.server.write(&Sent { life: self.life, before, args });
            self.in_flight.push_back((batch, is_written));
        }
        // A beat finds out.
        if self.server.state(self.life) != Before::There {
            self.fail();
            return self.come_to_rest();
        }
        assert!(self.ledger.is_settled());
        self.done();
        for life in 1..self.life {
            self.server.reap(life);
        }
    }
}

fn check(weather: Weather) {
    let seed = std::env::var("HUBBUB_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(crate::node::unix_ms);
    println!("HUBBUB_TEST_SEED={seed}");
    let mut rng = Rng::new(seed);
    for _ in 0..400 {
        let mut rig = Rig::new(weather);
        for _ in 0..4 {
            for _ in 0..rng.below(120) {
                rig.step(&mut rng);
            }
            rig.come_to_rest();
            let listed: Vec<&Key> = rig.server.lives[&rig.life].keys().collect();
            assert_eq!(listed, rig.truth.keys().collect::<Vec<&Key>>());
            assert_eq!(rig.ledger.n_entries(), rig.truth.len(), "nothing is left over");
            let bytes: usize = rig.ledger.entries.iter().map(|(_, it)| it.member.bytes()).sum();
            assert_eq!((rig.ledger.bytes, rig.ledger.n_in_flight), (bytes, 0));
            let queued: usize = rig.ledger.rolls.values().map(|roll| roll.n_queued).sum();
            assert_eq!(queued, 0);
            if weather == Weather::Fair {
                check_told(&rig);
            }
        }
    }
}

/// Of each client of a channel a join, a leave and so on in turn, up to what is true.
fn check_told(rig: &Rig) {
    let mut here = BTreeSet::new();
    for (what, key) in &rig.server.told {
        let is_news = if *what == 'j' { here.insert(key) } else { here.remove(key) };
        assert!(is_news, "{what} {key:?} twice: {:?}", rig.server.told);
    }
    assert_eq!(here.into_iter().collect::<Vec<_>>(), rig.truth.keys().collect::<Vec<_>>());
}

#[test]
fn whatever_fails_each_join_and_leave_is_told_once() {
    check(Weather::Fair);
}

#[test]
fn whatever_redis_loses_or_does_late_it_lists_who_is_here() {
    check(Weather::Foul);
}

#[test]
fn a_full_ledger_refuses_and_counts() {
    let mut ledger = Ledger::new(Bounds { entries_max: 2, bytes_max: usize::MAX });
    let channel = Arc::new(Channel::new("a"));
    ledger.begin(Before::There);
    let came = (1..=3).map(|client| ledger.enter(0, &channel, member(client)));
    assert_eq!(came.collect::<Vec<bool>>(), [true, true, false]);
    assert_eq!((ledger.n_entries(), ledger.n_refused(), ledger.n_in("a")), (2, 1, 2));
    ledger.leave("a", Uuid::from_u128(3));
    // Redis was never told of it.
    ledger.leave("a", Uuid::from_u128(1));
    assert!(ledger.enter(0, &channel, member(3)), "there is room again");
    let batch = ledger.take().expect("two are new");
    assert_eq!(batch.args.len(), 8);
    ledger.leave("a", Uuid::from_u128(2));
    assert!(!ledger.enter(0, &channel, member(4)), "until Redis has removed it");
    ledger.settle(batch, true);
    let batch = ledger.take().expect("one left");
    ledger.settle(batch, true);
    assert!(ledger.enter(0, &channel, member(4)));
}

#[test]
fn batches_are_bounded() {
    let mut ledger = Ledger::new(Bounds { entries_max: 10_000, bytes_max: usize::MAX });
    let channel = Arc::new(Channel::new("a"));
    ledger.begin(Before::There);
    for client in 1..=1_000 {
        ledger.enter(0, &channel, member(client));
    }
    let first = ledger.take().expect("many");
    assert_eq!(first.args.len(), 4 * CHANGES_MAX);
    ledger.settle(first, true);
    // Everything anew, and no entry twice.
    ledger.begin(Before::There);
    let mut clients = BTreeSet::new();
    while let Some(batch) = ledger.take() {
        for change in batch.args.chunks(4) {
            assert!(clients.insert(change[2].clone()));
        }
        ledger.settle(batch, true);
    }
    assert_eq!(clients.len(), 1_000);
    assert!(ledger.is_settled() && ledger.is_whole());
    let kept: usize = (0..100).map(|_| ledger.take_kept(5_000, 1_000, 64).len()).sum();
    assert_eq!(kept, 1, "a channel once in its time");
}
