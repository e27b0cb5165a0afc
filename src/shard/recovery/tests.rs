//! A shard's streams: what went wrong once, and random interleavings of publications, losses, reads,
//! resets and clients that come and go.

use proptest::prelude::*;
use proptest::test_runner::RngAlgorithm;

use super::super::stream::AGAIN_MS;
use super::*;
use crate::shard::Gapped;
use rig::{Op, Rig, Stand, body, op};

mod rig;
mod worst;

const ANSWER: [Op; 2] = [Op::CarryOut(0), Op::Answer { n: 0, fails: false }];

/// One client that is subscribed, after so many publications.
fn subscribed(n: usize) -> Rig {
    let mut rig = Rig::new("stream", 2);
    steps(&mut rig, &[Op::Publish(n), Op::Join { n: 0, recovers: false }, Op::Deliver(1)]);
    steps(&mut rig, &ANSWER);
    assert_eq!(rig.clients[0].stand, Stand::Subscribed);
    rig
}

#[track_caller]
fn steps(rig: &mut Rig, ops: &[Op]) {
    ops.iter().for_each(|op| rig.step(op).expect("as it should be"));
}

#[test]
fn a_page_of_before_a_gap_is_read_again() {
    let mut rig = Rig::new("stream", 1);
    steps(&mut rig, &[Op::Join { n: 0, recovers: false }, Op::Deliver(1), Op::CarryOut(0)]);
    steps(&mut rig, &[Op::Lose { told: true }, Op::Deliver(1), ANSWER[1].clone()]);
    assert_eq!((rig.clients[0].stand, rig.reads.len()), (Stand::Waits, 1));
    steps(&mut rig, &ANSWER);
    assert_eq!(rig.clients[0].at, Some(rig.truth.top));
    rig.settle().expect("settled");
}

#[test]
fn what_came_since_the_page_was_read_is_added_to_it() {
    for n_live in [0, 1, 3] {
        let mut rig = subscribed(5);
        rig.clients[1].at = Some(Position { offset: 2, ..rig.truth.top });
        steps(&mut rig, &[Op::Join { n: 1, recovers: true }, Op::CarryOut(0)]);
        steps(&mut rig, &[Op::Publish(n_live), Op::Deliver(n_live), ANSWER[1].clone()]);
        assert_eq!(rig.clients[1].at, Some(rig.truth.top), "{n_live}");
        let recoveries = &rig.state.node.metrics.shards[0].recoveries;
        assert_eq!(recoveries[Recovery::Recovered as usize].get(), 1, "{n_live}");
    }
}

#[test]
fn what_is_ahead_has_its_time_to_arrive() {
    let mut rig = subscribed(3);
    rig.step(&Op::Lose { told: false }).expect("not seen");
    // 40 s of quiet, and the first look.
    while rig.reads.is_empty() {
        rig.step(&Op::Pass(1)).expect("quiet");
    }
    let began_ms = rig.state.now_ms;
    while rig.clients[0].stand == Stand::Subscribed {
        steps(&mut rig, &ANSWER);
        rig.step(&Op::Pass(1)).expect("quiet");
    }
    let took_ms = rig.state.now_ms - began_ms;
    assert!((AGAIN_MS..4 * AGAIN_MS).contains(&took_ms), "{took_ms} ms");
    assert_eq!(rig.state.node.metrics.shards[0].gaps_behind.get(), 1);
}

#[test]
fn who_is_ahead_waits_for_delivery_and_not_for_ever() {
    for arrives in [true, false] {
        let mut rig = subscribed(3);
        rig.step(&Op::Publish(1)).expect("on its way");
        steps(&mut rig, &[Op::Elsewhere(1), Op::Join { n: 1, recovers: true }]);
        steps(&mut rig, &ANSWER);
        assert_eq!(rig.clients[1].stand, Stand::Waits);
        let began_ms = rig.state.now_ms;
        if arrives {
            rig.step(&Op::Deliver(1)).expect("caught up");
        }
        while rig.clients[1].stand == Stand::Waits {
            rig.step(&Op::Pass(1)).expect("waits");
        }
        let took_ms = rig.state.now_ms - began_ms;
        let patience_ms = rig.state.node.config.redis_timeout.as_millis() as u64;
        assert_eq!(took_ms, if arrives { 0 } else { patience_ms }, "{arrives}");
        assert_eq!(rig.clients[1].stand, Stand::Subscribed);
        let outcome = if arrives { Recovery::Recovered } else { Recovery::Lost };
        let recoveries = &rig.state.node.metrics.shards[0].recoveries;
        assert_eq!(recoveries[outcome as usize].get(), 1, "{arrives}");
        rig.settle().expect("settled");
    }
}

#[test]
fn a_forged_offset_costs_a_gap_and_nothing_after_it() {
    let mut rig = subscribed(3);
    let at = Position { offset: u64::MAX, ..rig.truth.top };
    let forged = Arc::new(Publication::at(rig.channel.clone(), body(at), at));
    // Somebody joins meanwhile, so the channel stays.
    steps(&mut rig, &[Op::Elsewhere(1), Op::Publish(1), Op::Elsewhere(1)]);
    rig.step(&Op::Join { n: 1, recovers: true }).expect("joins");
    let id = rig.live.expect("live");
    rig.state.on_publication(id, &forged);
    rig.step(&Op::Deliver(1)).expect("the good one");
    steps(&mut rig, &[ANSWER[0].clone(), ANSWER[1].clone(), Op::Publish(2), Op::Deliver(2)]);
    assert_eq!(rig.clients[0].stand, Stand::Away, "told");
    assert_eq!(rig.clients[1].at, Some(rig.truth.top), "has the next ones");
    assert_eq!(rig.state.node.metrics.shards[0].repeated.get(), 0);
}

#[test]
fn a_stream_that_only_repeats_is_looked_up_soon() {
    let mut rig = subscribed(3);
    let at = rig.truth.top;
    // It lost its newest part, and goes on under the same epoch.
    (rig.truth.top.offset, rig.truth.n_kept) = (1, 1);
    let again = Position { offset: 2, ..at };
    let again = Arc::new(Publication::at(rig.channel.clone(), body(again), again));
    rig.state.on_publication(rig.live.expect("live"), &again);
    rig.step(&Op::Pass(1)).expect("looked up");
    assert_eq!(rig.reads.len(), 1);
    steps(&mut rig, &ANSWER);
    assert_eq!(rig.clients[0].stand, Stand::Away, "told");
}

#[test]
fn a_gap_of_all_channels_keeps_nothing_behind() {
    let mut rig = subscribed(3);
    rig.step(&Op::Publish(1)).expect("on its way");
    steps(&mut rig, &[Op::Elsewhere(1), Op::Join { n: 1, recovers: true }]);
    steps(&mut rig, &ANSWER);
    rig.state.on_gap(Gapped::All);
    rig.take_commands();
    assert_eq!(rig.reads.len(), 1, "who was ahead asks anew");
    rig.settle().expect("settled");
}

fn config() -> ProptestConfig {
    let asked = ProptestConfig::default();
    let rng_algorithm = RngAlgorithm::XorShift;
    ProptestConfig { cases: asked.cases.max(512), rng_algorithm, ..asked }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn nobody_misses_anything_silently(
        is_cache in any::<bool>(),
        n_clients in 1..6usize,
        ops in prop::collection::vec(op(), 1..250),
    ) {
        let mut rig = Rig::new(if is_cache { "cache" } else { "stream" }, n_clients);
        for op in &ops {
            rig.step(op)?;
        }
        rig.settle()?;
    }
}
