//! The embedded broker's streams against a model that keeps everything and thinks slowly.

use std::collections::HashMap;

use super::*;
use crate::broker::Version;
use crate::broker::history::Order;
use crate::fuzz::Rng;
use crate::position::Epoch;
use crate::publication::Body;

const BOUNDS: Bounds =
    Bounds { streams_max: 1_000, bytes_max: 1 << 20, keys_max: 1_000, unused_max: 100 };
const KEEP: Keep = Keep { size: 5, ttl_ms: 1_000 };

fn publish(channel: &str, payload: &str, keep: Option<Keep>) -> Publish {
    Publish { keep, ..Publish::plain(channel, Body::plain(payload.into())) }
}

fn ask(channel: &str) -> HistoryAsk {
    HistoryAsk {
        channel: channel.into(),
        since: None,
        order: Order::Forward,
        limit: usize::MAX,
        bytes_max: usize::MAX,
    }
}

#[track_caller]
fn new(outcome: Outcome) -> Position {
    match outcome {
        Outcome::New(position) => position,
        old => panic!("not delivered: {old:?}"),
    }
}

fn offsets(page: &HistoryPage) -> Vec<u64> {
    page.publications.iter().map(|stored| stored.offset).collect()
}

#[track_caller]
fn check(memory: &mut Memory, now_ms: u64, expected: &[u64]) -> Position {
    let page = memory.read(&ask("a"), now_ms).expect("any epoch");
    assert_eq!(offsets(&page), expected, "at {now_ms}");
    page.top
}

#[test]
fn publications_go_by_number_and_age_and_the_position_stays() {
    let mut memory = Memory::new(BOUNDS);
    let empty = check(&mut memory, 0, &[]);
    assert_eq!(empty.offset, 0);
    for offset in 1..=7 {
        let position = new(memory.publish(&publish("a", "x", Some(KEEP)), offset));
        assert_eq!(
            position,
            Position { offset, epoch: empty.epoch },
            "the epoch of the first read"
        );
    }
    check(&mut memory, 1_006, &[3, 4, 5, 6, 7]);
    let top = check(&mut memory, 1_007, &[]);
    assert_eq!(top, Position { offset: 7, epoch: empty.epoch });
    assert_eq!(memory.bytes(), 0);
    let position = new(memory.publish(&publish("a", "x", Some(KEEP)), 2_000));
    assert_eq!(position, Position { offset: 8, epoch: empty.epoch }, "offsets go on");
    memory.remove("a");
    memory.remove("unknown");
    assert_eq!(check(&mut memory, 2_000, &[]), position);
    assert_eq!(new(memory.publish(&publish("a", "x", Some(KEEP)), 2_000)).offset, 9);
    check(&mut memory, 2_000, &[9]);
}

#[test]
fn a_position_is_forgotten_at_last_and_then_another_stream_begins() {
    let mut memory = Memory::new(BOUNDS);
    let old = new(memory.publish(&publish("a", "x", Some(KEEP)), 0));
    memory.on_tick(KEEP.ttl_ms);
    assert_eq!((memory.n_streams(), memory.bytes()), (1, 0), "the sweep takes what is over");
    memory.on_tick(KEEP.ttl_ms + META_MS - 1);
    assert_eq!(memory.n_streams(), 1);
    memory.on_tick(KEEP.ttl_ms + META_MS);
    assert_eq!(memory.n_streams(), 0);
    let fresh = check(&mut memory, KEEP.ttl_ms + META_MS, &[]);
    assert_ne!(fresh.epoch, old.epoch);
    let since = HistoryAsk { since: Some(old), ..ask("a") };
    assert_eq!(memory.read(&since, KEEP.ttl_ms + META_MS), Err(HistoryError::OtherEpoch));
    assert_eq!(memory.n_evicted(), 0);
}

#[test]
fn a_smaller_size_takes_effect_with_the_next_publication() {
    let mut memory = Memory::new(BOUNDS);
    for _ in 0..5 {
        new(memory.publish(&publish("a", "x", Some(KEEP)), 0));
    }
    new(memory.publish(&publish("a", "x", Some(Keep { size: 2, ..KEEP })), 0));
    check(&mut memory, 0, &[5, 6]);
}

#[test]
fn what_is_delivered_only_leaves_no_trace() {
    let mut memory = Memory::new(BOUNDS);
    assert_eq!(new(memory.publish(&publish("a", "x", None), 0)), Position::default());
    assert_eq!(memory.n_streams(), 0);
}

#[test]
fn an_idempotency_key_counts_for_its_channel_and_five_minutes() {
    let mut memory = Memory::new(BOUNDS);
    let keyed = |channel, keep| Publish {
        idempotency_key: Some("k".into()),
        ..publish(channel, "x", keep)
    };
    let first = new(memory.publish(&keyed("a", Some(KEEP)), 0));
    assert_eq!(memory.publish(&keyed("a", Some(KEEP)), 299_999), Outcome::Old(first));
    assert_eq!(new(memory.publish(&keyed("b", None), 0)), Position::default());
    assert_eq!(memory.publish(&keyed("b", None), 299_999), Outcome::Old(Position::default()));
    assert_eq!(new(memory.publish(&keyed("a", Some(KEEP)), 300_000)).offset, 2);
    assert_eq!(memory.n_keys(), 1);
}

#[test]
fn keys_over_the_bound_are_counted_and_the_newest_stay() {
    let mut memory = Memory::new(Bounds { keys_max: 3, ..BOUNDS });
    let keyed = |key: usize| Publish {
        idempotency_key: Some(key.to_string().into()),
        ..publish("a", "x", Some(KEEP))
    };
    for key in 0..5 {
        new(memory.publish(&keyed(key), 0));
    }
    assert_eq!((memory.n_keys(), memory.n_evicted()), (3, 2));
    for key in 2..5 {
        assert!(matches!(memory.publish(&keyed(key), 0), Outcome::Old(_)), "{key}");
    }
}

#[test]
fn an_older_version_is_not_delivered() {
    let mut memory = Memory::new(BOUNDS);
    let mut check = |number: u64, epoch: &str, expected: Result<u64, u64>| {
        let version = Some(Version { number, epoch: epoch.into() });
        let publish = Publish { version, ..publish("a", "x", Some(KEEP)) };
        let outcome = match memory.publish(&publish, 0) {
            Outcome::New(position) => Ok(position.offset),
            Outcome::Old(position) => Err(position.offset),
        };
        assert_eq!(outcome, expected, "{number} of {epoch:?}");
    };
    check(u64::MAX - 1, "", Ok(1));
    check(u64::MAX - 1, "", Err(1));
    check(u64::MAX - 2, "", Err(1));
    check(u64::MAX, "", Ok(2));
    check(1, "other", Ok(3));
    check(1, "other", Err(3));
}

#[test]
fn streams_over_a_bound_go_with_their_epochs() {
    let mut memory = Memory::new(Bounds { streams_max: 10, ..BOUNDS });
    let first = new(memory.publish(&publish("0", "x", Some(KEEP)), 0));
    for n in 1..20u64 {
        new(memory.publish(&publish(&n.to_string(), "x", Some(KEEP)), n));
    }
    assert_eq!((memory.n_streams(), memory.n_evicted()), (10, 10));
    let again = new(memory.publish(&publish("0", "x", Some(KEEP)), 20));
    assert_eq!(again.offset, 1);
    assert_ne!(again.epoch, first.epoch, "never the same position for something else");
}

#[test]
fn reading_takes_no_streams_place() {
    let mut memory = Memory::new(Bounds { streams_max: 2, unused_max: 3, ..BOUNDS });
    let kept = new(memory.publish(&publish("kept", "x", Some(KEEP)), 0));
    let mut epochs = Vec::new();
    for n in 0..10 {
        epochs.push(memory.read(&ask(&n.to_string()), 1).expect("any epoch").top.epoch);
    }
    assert_eq!((memory.n_streams(), memory.n_evicted()), (1, 0));
    assert_eq!(memory.read(&ask("kept"), 1).expect("any epoch").top, kept);
    let mut epoch_of =
        |n: usize| memory.read(&ask(&n.to_string()), 1).expect("any epoch").top.epoch;
    assert_eq!([epoch_of(7), epoch_of(8), epoch_of(9)], [epochs[7], epochs[8], epochs[9]]);
    let first = new(memory.publish(&publish("9", "x", Some(KEEP)), 1));
    assert_eq!(first, Position { offset: 1, epoch: epochs[9] }, "the one that was read");
    let again = memory.read(&ask("0"), 1).expect("any epoch").top;
    assert_ne!(again.epoch, epochs[0], "drawn anew, as another one");
}

#[test]
fn bytes_over_the_bound_go_and_one_publication_always_fits() {
    let mut memory = Memory::new(Bounds { bytes_max: 10_000, ..BOUNDS });
    let large = "x".repeat(4_000);
    for n in 0..6 {
        new(memory.publish(&publish(&format!("c{n}"), &large, Some(KEEP)), n));
        assert!(memory.bytes() <= 10_000, "{}", memory.bytes());
    }
    assert_eq!((memory.n_streams(), memory.n_evicted()), (2, 4));
    for _ in 0..4 {
        new(memory.publish(&publish("a", &large, Some(KEEP)), 9));
    }
    assert_eq!(check(&mut memory, 9, &[3, 4]).offset, 4);
    new(memory.publish(&publish("a", &"x".repeat(20_000), Some(KEEP)), 9));
    check(&mut memory, 9, &[5]);
}

#[test]
fn a_page_ends_at_its_bytes_but_not_before_the_first() {
    let mut memory = Memory::new(BOUNDS);
    for _ in 0..5 {
        new(memory.publish(&publish("a", &"x".repeat(1_000), Some(KEEP)), 0));
    }
    let mut n_of = |bytes_max| {
        let page = memory.read(&HistoryAsk { bytes_max, ..ask("a") }, 0).expect("any epoch");
        page.publications.len()
    };
    assert_eq!((n_of(1), n_of(2_000), n_of(1 << 20)), (1, 2, 5));
}

/// One channel of the model.
struct Model {
    epoch: Epoch,
    top: u64,
    all: Vec<u64>,
    version: u64,
    due_ms: u64,
}

impl Model {
    fn page(&self, ask: &HistoryAsk, now_ms: u64) -> Vec<u64> {
        let kept: Vec<u64> = match now_ms < self.due_ms {
            true => self.all.iter().rev().take(KEEP.size).rev().copied().collect(),
            false => Vec::new(),
        };
        let since = ask.since.map(|since| since.offset);
        let mut page: Vec<u64> = match ask.order {
            Order::Forward => {
                kept.into_iter().filter(|at| since.is_none_or(|it| *at > it)).collect()
            }
            Order::Reverse => {
                kept.into_iter().rev().filter(|at| since.is_none_or(|it| *at < it)).collect()
            }
        };
        page.truncate(ask.limit);
        page
    }
}

fn step(memory: &mut Memory, models: &mut HashMap<String, Model>, rng: &mut Rng, now_ms: u64) {
    let channel = format!("c{}", rng.below(4));
    let model = models.entry(channel.clone()).or_insert_with(|| {
        let top = memory.read(&HistoryAsk { limit: 0, ..ask(&channel) }, now_ms).unwrap().top;
        Model { epoch: top.epoch, top: 0, all: Vec::new(), version: 0, due_ms: 0 }
    });
    match rng.below(10) {
        0..=4 => {
            let number = if rng.below(3) == 0 { 1 + rng.below(50) as u64 } else { 0 };
            let version = (number > 0).then(|| Version { number, epoch: "".into() });
            let publish = Publish { version, ..publish(&channel, "x", Some(KEEP)) };
            let is_new = number == 0 || number > model.version;
            let top = model.top + u64::from(is_new);
            let position = Position { offset: top, epoch: model.epoch };
            let expected = if is_new { Outcome::New(position) } else { Outcome::Old(position) };
            assert_eq!(memory.publish(&publish, now_ms), expected);
            if is_new {
                if now_ms >= model.due_ms {
                    model.all.clear();
                }
                model.top = top;
                model.all.push(top);
                model.due_ms = now_ms + KEEP.ttl_ms;
                model.version = model.version.max(number);
            }
        }
        5 => {
            memory.remove(&channel);
            model.all.clear();
        }
        6 => memory.on_tick(now_ms),
        _ => {
            let since = (rng.below(3) > 0).then(|| Position {
                offset: (model.top + 2).saturating_sub(rng.below(12) as u64),
                epoch: [Epoch::NONE, model.epoch, Epoch::FOREIGN][rng.below(3)],
            });
            let order = [Order::Forward, Order::Reverse][rng.below(2)];
            let ask = HistoryAsk { since, order, limit: rng.below(8), ..ask(&channel) };
            let read = memory.read(&ask, now_ms);
            if since.is_some_and(|since| since.epoch == Epoch::FOREIGN) {
                assert_eq!(read, Err(HistoryError::OtherEpoch));
            } else {
                let page = read.expect("its own epoch, or any");
                assert_eq!(page.top, Position { offset: model.top, epoch: model.epoch });
                assert_eq!(offsets(&page), model.page(&ask, now_ms), "{ask:?} at {now_ms}");
            }
        }
    }
    let kept: usize = memory.streams.iter().map(|(_, stream)| stream.bytes()).sum();
    assert_eq!(memory.bytes(), kept, "bytes are counted right");
}

/// Publishes, reads, removals and sweeps in any order and at any time.
#[test]
fn random_interleavings_agree_with_the_model() {
    let seed = std::env::var("HUBBUB_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(crate::node::unix_ms);
    println!("HUBBUB_TEST_SEED={seed}");
    let mut rng = Rng::new(seed);
    for _ in 0..200 {
        let (mut memory, mut models, mut now_ms) = (Memory::new(BOUNDS), HashMap::new(), 0);
        for _ in 0..200 {
            now_ms += [0, 1, 90, 400, 1_100][rng.below(5)];
            step(&mut memory, &mut models, &mut rng, now_ms);
        }
    }
}
