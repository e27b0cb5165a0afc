use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::*;
use crate::fuzz::Rng;

fn member(client: u128, user: &str) -> Box<Member> {
    let info = format!("{{\"user\":\"{user}\",\"client\":\"{client}\"}}").into_bytes().into();
    let client = Uuid::from_u128(client);
    Box::new(Member { client, user: user.into(), info, is_told: true })
}

fn counts(attendance: &Attendance, channel: &str) -> (u64, u64) {
    match attendance.read(channel, Wanted::Counts) {
        Ok(Presence::Counts(counts)) => (counts.n_clients, counts.n_users),
        other => panic!("{other:?}"),
    }
}

fn members(attendance: &Attendance, channel: &str) -> BTreeMap<String, Value> {
    match attendance.read(channel, Wanted::Members { bytes_max: 1 << 20 }) {
        Ok(Presence::Members(json)) => serde_json::from_slice(&json).expect("an object"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_user_counts_once() {
    let mut attendance = Attendance::new(Bounds { entries_max: 10, bytes_max: 1 << 20 });
    let channel = Arc::new(Channel::new("a"));
    for (client, user) in [(1, "42"), (2, "42"), (3, ""), (4, "")] {
        assert!(attendance.enter(0, &channel, member(client, user)));
    }
    assert_eq!(counts(&attendance, "a"), (4, 2));
    assert_eq!(counts(&attendance, "b"), (0, 0));
    assert!(attendance.leave("a", Uuid::from_u128(1)).is_some());
    assert!(attendance.leave("a", Uuid::from_u128(1)).is_none(), "once");
    assert_eq!(counts(&attendance, "a"), (3, 2));
    assert!(attendance.leave("a", Uuid::from_u128(2)).is_some());
    assert_eq!(counts(&attendance, "a"), (2, 1));
    let shown = members(&attendance, "a");
    assert_eq!(shown[&Uuid::from_u128(3).to_string()]["client"], "3");
    assert_eq!(members(&attendance, "b").len(), 0);
}

#[test]
fn bounds_refuse_and_count() {
    let one_bytes = member(1, "u").bytes();
    let channel = Arc::new(Channel::new("a"));
    for bounds in [
        Bounds { entries_max: 2, bytes_max: usize::MAX },
        Bounds { entries_max: usize::MAX, bytes_max: 2 * one_bytes },
    ] {
        let mut attendance = Attendance::new(bounds);
        let came = (1..=3).map(|client| attendance.enter(0, &channel, member(client, "u")));
        assert_eq!(came.collect::<Vec<bool>>(), [true, true, false], "{bounds:?}");
        assert_eq!((attendance.n_entries(), attendance.n_refused()), (2, 1));
        attendance.leave("a", Uuid::from_u128(3));
        attendance.leave("a", Uuid::from_u128(1));
        assert!(attendance.enter(0, &channel, member(3, "u")), "there is room again");
    }
    let mut attendance = Attendance::new(Bounds { entries_max: 9, bytes_max: usize::MAX });
    for client in 1..=3 {
        assert!(attendance.enter(0, &channel, member(client, "u")));
    }
    let too_many = attendance.read("a", Wanted::Members { bytes_max: 100 });
    assert_eq!(too_many, Err(PresenceError::TooMany));
}

/// Against a set of everything that was noted and not taken back.
#[test]
fn any_order_ends_as_in_the_model() {
    let seed = std::env::var("HUBBUB_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(crate::node::unix_ms);
    println!("HUBBUB_TEST_SEED={seed}");
    let mut rng = Rng::new(seed);
    let channels: Vec<Arc<Channel>> =
        ["a", "b", "c"].iter().map(|name| Arc::new(Channel::new(name))).collect();
    let mut attendance = Attendance::new(Bounds { entries_max: 1_000, bytes_max: 1 << 20 });
    let mut model = BTreeMap::new();
    for _ in 0..5_000 {
        let (at, client) = (rng.below(3), 1 + rng.below(12) as u128);
        let (channel, shard) = (&channels[at], rng.below(2));
        match rng.below(20) {
            0 => {
                let gone = attendance.forget_shard(shard).len();
                let before = model.len();
                model.retain(|_, (of, _)| *of != shard);
                assert_eq!(gone, before - model.len());
            }
            1..=9 => {
                let was_here = attendance.leave(&channel.name, Uuid::from_u128(client)).is_some();
                assert_eq!(was_here, model.remove(&(at, client)).is_some());
            }
            _ => {
                let user = format!("u{}", client % 4);
                assert!(attendance.enter(shard, channel, member(client, &user)));
                model.insert((at, client), (shard, user));
            }
        }
        let here: Vec<_> = model.iter().filter(|((of, _), _)| *of == at).collect();
        let users: BTreeSet<&String> = here.iter().map(|(_, (_, user))| user).collect();
        let expected = (here.len() as u64, users.len() as u64);
        assert_eq!(counts(&attendance, &channel.name), expected);
        assert_eq!(attendance.n_in(&channel.name), here.len());
        assert_eq!(members(&attendance, &channel.name).len(), here.len());
    }
    model.keys().for_each(|(at, client)| {
        attendance.leave(&channels[*at].name, Uuid::from_u128(*client));
    });
    let left = (attendance.rolls.len(), attendance.n_entries(), attendance.bytes);
    assert_eq!(left, (0, 0, 0), "nothing is left over");
}
