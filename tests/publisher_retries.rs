//! Promise: a publisher that never saw its answer tries again with the same idempotency key, wherever it
//! likes, and everyone gets the publication once.

mod common;

use common::past::{At, Place, publish, result};
use common::{Cf, Direction, Proxy, QUIET, SOON, eventually, scaled};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;

/// The answer is cut off on its way, after the node has accepted; then again at the other node, and at
/// both at once.
#[test]
fn an_answer_that_is_lost_is_had_again_without_a_second_publication() {
    let place = Place::redis();
    let (proxy_a, proxy_b) = (Proxy::start(place.a.addr), Proxy::start(place.b().addr));
    let mut live = [&place.a, place.b()].map(|hub| Cf::subscribed(hub, &["h:a"]));
    for round in 1..=scaled(20, 500) {
        let body = json!({ "channel": "h:a", "data": round, "idempotency_key": round.to_string() });
        let lose = |proxy: &Proxy| {
            // The first byte of the answer ends the connection.
            proxy.cut_after(Direction::Down, 1);
            let text = body.to_string();
            let head =
                format!("POST /api/publish HTTP/1.1\r\nHost: a\r\nContent-Length: {}", text.len());
            let mut stream = TcpStream::connect(proxy.addr()).expect("connects");
            stream.write_all(format!("{head}\r\n\r\n{text}").as_bytes()).expect("sent");
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            assert!(answer.len() <= 1, "round {round} was answered");
            assert!(eventually(SOON, || !proxy.will_cut(Direction::Down)));
        };
        lose(&proxy_a);
        if round % 2 == 0 {
            lose(&proxy_b);
        }
        let (first, second) = std::thread::scope(|scope| {
            let other = scope.spawn(|| result(place.b(), "publish", body.clone()));
            (result(&place.a, "publish", body.clone()), other.join().expect("answered"))
        });
        assert_eq!(first, second, "round {round}");
        assert_eq!(At::of(&first).offset, round as u64, "each round took one number");
        for live in &mut live {
            let seen = live.next_pub(SOON).expect("delivered");
            assert_eq!((&seen.body["offset"], &seen.body["data"]), (&json!(round), &json!(round)));
        }
    }
    live.iter_mut().for_each(|live| assert!(live.stays_quiet(QUIET), "once: {:?}", live.pubs));
    // Without a key it is another one.
    let (first, second) = (publish(&place.a, "h:a", "again"), publish(&place.a, "h:a", "again"));
    assert_eq!(second.offset, first.offset + 1);
}
