use super::*;

fn names(changes: &Changes) -> (Vec<&str>, Vec<&str>) {
    (
        changes.subscribe.iter().map(|name| &**name).collect(),
        changes.unsubscribe.iter().map(|name| &**name).collect(),
    )
}

#[test]
fn a_shard_is_confirmed_with_redis_and_let_go_after_the_delay() {
    let mut interest = Interest::new(1_000, 3_000);
    assert!(interest.acquire("a", 0, 0).is_none());
    assert!(interest.target(b"a").is_none());
    assert_eq!(names(&interest.take_changes(9, 0)), (vec!["a"], vec![]));
    let confirmed = interest.on_subscribed(b"a").unwrap();
    assert_eq!(interest.target(b"a").unwrap().shards, confirmed.shards);
    assert!(interest.acquire("a", 3, 5).is_some());
    interest.release(confirmed.id, 0, 10);
    interest.release(confirmed.id, 3, 10);
    interest.on_tick(500);
    assert_eq!(interest.take_changes(9, 500), Changes::default());
    interest.on_tick(1_010);
    assert_eq!(names(&interest.take_changes(9, 1_010)), (vec![], vec!["a"]));
    interest.on_unsubscribed(b"a");
    interest.take_changes(9, 1_011);
    assert!(interest.names.is_empty());
}

#[test]
fn a_subscriber_during_an_unsubscribe_waits_for_the_next_subscribe() {
    let mut interest = Interest::new(0, 3_000);
    interest.acquire("a", 0, 0);
    interest.take_changes(9, 0);
    let id = interest.on_subscribed(b"a").unwrap().id;
    interest.release(id, 0, 10);
    interest.on_tick(10);
    assert_eq!(names(&interest.take_changes(9, 10)), (vec![], vec!["a"]));
    assert!(interest.acquire("a", 1, 11).is_none());
    assert_eq!(interest.take_changes(9, 11), Changes::default());
    interest.on_unsubscribed(b"a");
    assert_eq!(names(&interest.take_changes(9, 12)), (vec!["a"], vec![]));
    assert!(interest.on_subscribed(b"a").is_some());
}

#[test]
fn a_lost_link_resubscribes_what_is_wanted_and_forgets_the_rest() {
    let mut interest = Interest::new(0, 3_000);
    for name in ["a", "b"] {
        interest.acquire(name, 0, 0);
    }
    interest.take_changes(9, 0);
    interest.on_subscribed(b"a");
    let b = interest.on_subscribed(b"b").unwrap().id;
    interest.release(b, 0, 1);
    assert_eq!(interest.on_link_down(), 2);
    assert_eq!(names(&interest.take_changes(9, 2)), (vec!["a"], vec![]));
    assert!(interest.target(b"a").is_some());
    assert!(interest.target(b"b").is_none());
    assert!(!interest.is_restored());
    interest.on_subscribed(b"a");
    assert!(interest.is_restored());
}

#[test]
fn a_channel_whose_last_subscriber_left_need_not_be_restored() {
    let mut interest = Interest::new(0, 3_000);
    interest.acquire("a", 0, 0);
    interest.acquire("a", 1, 0);
    interest.take_changes(9, 0);
    let id = interest.on_subscribed(b"a").unwrap().id;
    interest.on_link_down();
    interest.on_link_down();
    interest.release(id, 0, 1);
    assert!(!interest.is_restored());
    interest.release(id, 1, 1);
    assert!(interest.is_restored());
}

#[test]
fn names_that_nobody_waits_for_any_more_do_not_pile_up_while_the_link_is_down() {
    let mut interest = Interest::new(0, 3_000);
    for n in 0..1_000 {
        interest.acquire(&format!("c{n}"), 0, 10 * n);
        interest.on_tick(10 * n);
    }
    interest.acquire("kept", 0, 9_999);
    assert_eq!(interest.on_tick(12_990).len(), 300);
    assert_eq!((interest.names.len(), interest.changed.len()), (1, 1));
    assert!(interest.entries.len() <= 302, "{}", interest.entries.len());
}

#[test]
fn the_deadline_of_an_earlier_wait_does_not_end_a_later_one() {
    let mut interest = Interest::new(0, 3_000);
    interest.acquire("a", 2, 0);
    interest.take_changes(9, 0);
    let id = interest.on_subscribed(b"a").unwrap().id;
    interest.release(id, 2, 10);
    interest.on_tick(10);
    interest.take_changes(9, 10);
    interest.acquire("a", 2, 2_990);
    assert!(interest.on_tick(3_000).is_empty());
    assert_eq!(interest.on_tick(5_990).len(), 1);
}

#[test]
fn a_shard_that_waited_too_long_is_told_once() {
    let mut interest = Interest::new(0, 3_000);
    interest.acquire("a", 2, 0);
    interest.take_changes(9, 0);
    assert!(interest.on_tick(2_999).is_empty());
    let expired = interest.on_tick(3_000);
    assert_eq!(
        expired.iter().map(|(channel, shard)| (&*channel.name, *shard)).collect::<Vec<_>>(),
        [("a", 2)]
    );
    assert!(interest.on_tick(9_000).is_empty());
    assert!(interest.on_subscribed(b"a").is_none());
    assert_eq!(names(&interest.take_changes(9, 9_000)), (vec![], vec!["a"]));
}

#[test]
fn a_refused_channel_holds_up_nobody_and_is_asked_for_again() {
    let mut interest = Interest::new(0, 3_000);
    interest.acquire("a", 0, 0);
    interest.take_changes(9, 0);
    let id = interest.on_subscribed(b"a").unwrap().id;
    interest.on_link_down();
    assert!(!interest.is_restored());
    interest.acquire("a", 1, 1);
    interest.take_changes(9, 1);
    let (channel, shards) = interest.on_refused(b"a").unwrap();
    assert_eq!((&*channel.name, shards.iter().collect()), ("a", vec![1]));
    assert!(interest.is_restored());
    assert_eq!(interest.take_changes(9, 2), Changes::default());
    assert!(interest.on_subscribed(b"a").is_none());
    interest.acquire("a", 1, 3);
    assert!(!interest.is_restored());
    assert_eq!(names(&interest.take_changes(9, 3)), (vec!["a"], vec![]));
    interest.on_refused(b"a").unwrap();
    interest.release(id, 0, 4);
    interest.on_tick(4);
    interest.take_changes(9, 4);
    assert!(interest.names.is_empty() && interest.is_restored());
}

#[test]
fn a_burst_of_new_names_is_spread_and_what_was_lost_is_not() {
    let mut interest = Interest::new(0, 3_000);
    let n = 3 * CHANGES_PER_MS_MAX;
    for at in 0..n {
        interest.acquire(&format!("c{at}"), 0, 0);
    }
    let mut taken = Vec::new();
    for now_ms in 1..=3 {
        let changes = interest.take_changes(n, now_ms).subscribe;
        assert_eq!(changes.len(), CHANGES_PER_MS_MAX);
        assert!(interest.take_changes(n, now_ms).is_empty(), "in the same millisecond");
        taken.extend(changes);
    }
    assert!(!interest.has_changes());
    for name in &taken {
        interest.on_subscribed(name.as_bytes()).unwrap();
    }
    interest.on_link_down();
    assert_eq!(interest.take_changes(n, 4).subscribe.len(), n);
}
