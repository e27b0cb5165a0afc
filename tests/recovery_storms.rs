//! Promise: however many come back at once, and however much each has missed, all recover, nobody is cut for
//! it, and the node's memory stays within what outboxes may hold.

mod common;

use common::follower::{Follower, follow, tops};
use common::past::Place;
use common::ws::Dial;
use common::{Cf, SOON, scaled, secs};
use serde_json::json;

const OUTBOX_TOTAL_BYTES: u64 = 64 << 20;

#[test]
fn everybody_missed_a_lot() {
    let place = Place::memory_with(|builder| {
        let builder = builder.env("HUB_OUTBOX_TOTAL_BYTES", OUTBOX_TOTAL_BYTES);
        let builder = builder.env("HUB_OUTBOX_BYTES_MAX", "2MiB");
        // One thread reads for all: on a busy machine each round of it takes longer than a pong may.
        let builder = builder.env("HUB_PING_INTERVAL", "10m").env("HUB_PONG_TIMEOUT", "9m");
        builder.env("HUB_WRITE_TIMEOUT", "5m").env("HUB_PUBLICATION_BYTES_MAX", "64KiB")
    });
    let channels = ["long:a".to_owned()];
    let mut followers: Vec<Follower> =
        (0..scaled(200, 2_000)).map(|_| Follower::open(&place.a, &channels)).collect();
    assert!(follow(&mut followers, SOON, Follower::is_live));
    followers.iter_mut().for_each(Follower::cut);
    let pad = "x".repeat(20_000);
    (0..40).for_each(|_| place.a.publish("long:a", pad.as_str()));
    let tops = tops(&place.a, &channels);

    let idle_bytes = place.a.anon_bytes();
    for follower in &mut followers {
        let mut cf = Cf::over(Dial::new(&place.a, common::cf::PATH).rcvbuf(16_384).open());
        let reply = cf.command(json!({ "connect": {} }));
        assert!(reply["connect"].is_object(), "{reply}");
        follower.come_back_over(cf);
    }
    let mut peak_bytes = 0;
    let end = std::time::Instant::now() + secs(scaled(30, 300) as u64);
    while !followers.iter().all(|follower| follower.has_all(&tops)) {
        peak_bytes = peak_bytes.max(place.a.anon_bytes());
        assert!(std::time::Instant::now() < end, "they don't get there");
        follow(&mut followers, common::ms(5), |_| false);
        let gone = followers.iter_mut().filter(|follower| follower.is_gone());
        let codes: Vec<Option<u16>> = gone.map(Follower::close_code).collect();
        assert!(codes.is_empty(), "cut for what it missed: {codes:?}");
    }
    let grown_bytes = peak_bytes.saturating_sub(idle_bytes);
    println!("{} clients, {} MiB more at the peak", followers.len(), grown_bytes >> 20);
    let n_lost: usize = followers.iter().map(Follower::n_lost).sum();
    assert_eq!(n_lost, 0, "of {}", followers.len());
    assert!(grown_bytes < 2 * OUTBOX_TOTAL_BYTES, "{} MiB", grown_bytes >> 20);
}
