//! What clients and the broker can do at the worst moment.

use std::time::Duration;

use super::*;
use crate::config::Namespaces;
use crate::publication::Body;

#[test]
fn a_page_of_an_earlier_life_of_the_channel_proves_nothing() {
    let mut rig = Rig::new("stream", 2);
    rig.step(&Op::Publish(5)).expect("kept");
    rig.clients[0].at = Some(Position { offset: 3, ..rig.truth.top });
    rig.clients[1].at = Some(rig.truth.top);
    steps(&mut rig, &[Op::Join { n: 0, recovers: true }, Op::Deliver(1), Op::CarryOut(0)]);
    // The page is on its way; its client has what it wants now from another one, and goes.
    rig.step(&Op::Change { n: 0, recovers: false }).expect("another wish");
    rig.carry_out(1);
    rig.answer(1, false);
    rig.read_all().expect("subscribed");
    assert_eq!(rig.clients[0].stand, Stand::Subscribed);
    rig.step(&Op::Leave(0)).expect("goes");
    // Nobody hears this; then somebody comes.
    steps(&mut rig, &[Op::Publish(3), Op::Join { n: 1, recovers: true }, Op::Deliver(1)]);
    rig.answer(0, false);
    steps(&mut rig, &ANSWER);
    steps(&mut rig, &[Op::Deliver(9), ANSWER[0].clone(), ANSWER[1].clone()]);
    assert_eq!(rig.clients[1].at, Some(rig.truth.top));
    rig.settle().expect("settled");
}

/// Subscribes and unsubscribes that wait for one read are answered together.
#[test]
fn a_catch_up_is_not_sent_for_every_change_of_mind() {
    for stays in [true, false] {
        let outbox_bytes_max = 8_192;
        let mut rig = Rig::with("stream", 2, |config| config.outbox_bytes_max = outbox_bytes_max);
        steps(&mut rig, &[Op::Join { n: 0, recovers: false }, Op::Deliver(1)]);
        steps(&mut rig, &ANSWER);
        steps(&mut rig, &[Op::Publish(8), Op::Deliver(8)]);
        rig.clients[1].at = Some(Position { offset: 0, ..rig.truth.top });
        rig.step(&Op::Join { n: 1, recovers: true }).expect("waits");
        for _ in 0..30 {
            rig.step(&Op::Change { n: 1, recovers: true }).expect("waits");
        }
        if !stays {
            rig.leave(1, Stand::Waits);
        }
        let before = rig.clients[1].n_bytes;
        steps(&mut rig, &ANSWER);
        let n_bytes = rig.clients[1].n_bytes - before;
        assert!(n_bytes < outbox_bytes_max, "{n_bytes} bytes");
        rig.settle().expect("settled");
    }
}

/// Who missed the same is answered with the same page, but every one has an outbox of its own.
#[test]
fn a_storm_of_catch_ups_is_served_in_steps() {
    let outbox_total_bytes = 64 << 10;
    let mut rig = Rig::with("stream", 301, |config| {
        config.outbox_total_bytes = outbox_total_bytes;
    });
    steps(&mut rig, &[Op::Join { n: 0, recovers: false }, Op::Deliver(1)]);
    steps(&mut rig, &ANSWER);
    steps(&mut rig, &[Op::Publish(8), Op::Deliver(8)]);
    for n in 1..=300 {
        rig.clients[n].at = Some(Position { offset: 0, ..rig.truth.top });
        rig.join(n, true);
    }
    rig.take_commands();
    let mut n_rounds = 0;
    while rig.clients.iter().any(|client| client.stand == Stand::Waits) {
        for _ in 0..rig.reads.len() {
            rig.carry_out(0);
            rig.answer(0, false);
        }
        let queued_bytes = rig.state.hub.outbox_bytes();
        assert!(queued_bytes < outbox_total_bytes / 2, "{queued_bytes} bytes are queued");
        rig.read_all().expect("as it should be");
        // Delivery goes on meanwhile.
        steps(&mut rig, &[Op::Pass(1), Op::Publish(1), Op::Deliver(1)]);
        n_rounds += 1;
        assert!(n_rounds < 1_000, "some are never served");
    }
    assert!(n_rounds > 1);
    rig.settle().expect("settled");
}

/// What `max_rate` holds is older than a gap: shown behind it, it would pass for the newest.
#[test]
fn what_is_held_does_not_outlive_a_gap() {
    let mut rig = Rig::with("cache", 1, |config| {
        let text = "[namespaces.s]\nrecovery = \"cache\"\nmax_rate = 1\nsubscribe = \"anyone\"\n";
        config.namespaces = Arc::new(Namespaces::parse(text).expect("a namespace"));
    });
    rig.join(0, false);
    rig.take_commands();
    rig.deliver();
    let id = rig.live.expect("live");
    let mut publish = |mark: u8| {
        let body = Body::plain(vec![b'0' + mark]);
        let publication = Arc::new(Publication::new(rig.channel.clone(), body));
        rig.state.on_publication(id, &publication);
    };
    publish(1);
    publish(2);
    assert_eq!(rig.state.hub.totals.deliveries, 1, "the second is held");
    rig.state.on_gap(Gapped::Channel(id));
    assert_eq!(rig.state.hub.totals.deliveries, 2, "and comes all the same");
    assert!(rig.state.stream(0).expect("open").newest().is_none(), "but isn't the newest");
    rig.state.show_due(Instant::now() + Duration::from_secs(1));
    assert!(rig.state.stream(0).expect("open").newest().is_none());
}

/// Those who read nothing leave no room: whoever waits for it is told, and not left waiting.
#[test]
fn where_no_room_comes_free_who_waits_is_told() {
    let mut rig = Rig::with("stream", 101, |config| config.outbox_total_bytes = 16 << 10);
    steps(&mut rig, &[Op::Join { n: 0, recovers: false }, Op::Deliver(1)]);
    steps(&mut rig, &ANSWER);
    steps(&mut rig, &[Op::Publish(8), Op::Deliver(8)]);
    for n in 1..=100 {
        rig.clients[n].at = Some(Position { offset: 0, ..rig.truth.top });
        rig.join(n, true);
    }
    rig.take_commands();
    let patience_ms = rig.state.node.config.redis_timeout.as_millis() as u64;
    let began_ms = rig.state.now_ms;
    while rig.state.now_ms < began_ms + 2 * patience_ms {
        for _ in 0..rig.reads.len() {
            rig.carry_out(0);
            rig.answer(0, false);
        }
        rig.tick();
        rig.take_commands();
    }
    rig.read_all().expect("as it should be");
    // Error 100 for the others, and nothing is said to be lost.
    assert!(rig.clients.iter().all(|client| client.stand != Stand::Waits));
    let n_away = rig.clients.iter().filter(|client| client.stand == Stand::Away).count() as u64;
    let recoveries = &rig.state.node.metrics.shards[0].recoveries;
    let n = |outcome: Recovery| recoveries[outcome as usize].get();
    assert!(n_away > 0 && n_away < 100 && n(Recovery::Lost) == 0);
    assert_eq!(n(Recovery::Recovered) + n_away, 100);
    rig.settle().expect("settled");
}
