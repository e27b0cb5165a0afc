//! Promise: a shard that panics takes only its own connections with it, and starts anew.
//!
//! Debug builds have a command that panics, under `HUB_DEV` only.

mod common;

use common::{Cf, Hub, Redis, SOON, drive, eventually};
use serde_json::json;

const N_CLIENTS: usize = 40;

/// Makes one client's shard panic, and waits until it is up again.
fn break_shard_of(client: &mut Cf, hub: &Hub, n_before: u32) {
    client.send(vec![json!({ "rpc": { "method": "hubbub.panic" } })]);
    assert!(client.raw.wait_eof(SOON), "cut");
    assert!(hub.has_panicked(n_before + 1), "counted");
}

fn hear(clients: &mut [Cf], hub: &Hub, data: u32) {
    hub.publish("a", data);
    for client in clients {
        assert_eq!(client.next_pub(SOON).expect("delivered").data, data.to_string());
    }
}

fn a_panic_takes_its_own_connections_only(hub: &Hub) {
    let mut clients: Vec<Cf> = (0..N_CLIENTS).map(|_| Cf::subscribed(hub, &["a"])).collect();
    hear(&mut clients, hub, 1);
    break_shard_of(&mut clients[0], hub, 0);
    assert!(eventually(SOON, || connections(hub) < N_CLIENTS as f64), "its gauge starts anew");
    let n_left = connections(hub) as usize;
    assert!((1..N_CLIENTS).contains(&n_left), "{n_left} of {N_CLIENTS} are on another shard");
    let cut = |clients: &[Cf]| clients.iter().filter(|cf| cf.raw.eof).count();
    let all_cut = N_CLIENTS - n_left;
    while cut(&clients) < all_cut {
        assert!(!drive(&mut clients, common::ms(50), |cf| cf.raw.eof), "only its own");
    }
    clients.retain(|cf| !cf.raw.eof);
    assert_eq!(clients.len(), n_left);
    hear(&mut clients, hub, 2);
    clients.extend((0..N_CLIENTS).map(|_| Cf::subscribed(hub, &["a"])));
    hear(&mut clients, hub, 3);
    assert!(eventually(SOON, || hub.get("/ready").status == 200));
    assert_eq!(connections(hub), (n_left + N_CLIENTS) as f64, "none counted twice");
    drop(clients);
    assert!(eventually(SOON, || connections(hub) == 0.0));
    assert_eq!(hub.metric_sum("hubbub_subscriptions"), 0.0);
    assert_eq!(hub.metric_sum("hubbub_shard_panics_total"), 1.0);
}

fn connections(hub: &Hub) -> f64 {
    hub.metric_sum("hubbub_connections")
}

#[test]
fn with_the_memory_broker() {
    let hub = Hub::builder().env("HUB_SHARDS", 2).start().wait_ready();
    a_panic_takes_its_own_connections_only(&hub);
}

#[test]
fn with_redis() {
    let redis = Redis::start();
    let hub = Hub::builder().redis(&redis).env("HUB_SHARDS", 2).start().wait_ready();
    a_panic_takes_its_own_connections_only(&hub);
    assert!(eventually(SOON, || redis.channels("a").is_empty()), "no subscription is left behind");
}

#[test]
fn the_limit_of_connections_survives_panics() {
    let hub =
        Hub::builder().env("HUB_SHARDS", 2).env("HUB_CONNECTIONS_MAX", 10).start().wait_ready();
    for round in 0..3 {
        let mut clients: Vec<Cf> = (0..10).map(|_| Cf::subscribed(&hub, &["a"])).collect();
        break_shard_of(&mut clients[0], &hub, round);
        drop(clients);
        assert!(eventually(SOON, || connections(&hub) == 0.0), "round {round}");
    }
    let clients: Vec<Cf> = (0..10).map(|_| Cf::subscribed(&hub, &["a"])).collect();
    assert_eq!(clients.len(), 10);
}
