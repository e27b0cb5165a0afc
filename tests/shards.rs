//! Promise: connections spread evenly over the shards, and a publication reaches all of them.

mod common;

use common::{Hub, Raw, SOON, drive, eventually, scaled, secs};

#[test]
fn connections_spread_evenly() {
    let n_connections = scaled(1_000, 10_000);
    // 25 % of 250 are 4.5 standard deviations of a fair draw, 10 % of 2,500 are 5.8.
    let tolerance = scaled(25, 10) as f64 / 100.0;
    let hub = Hub::builder().env("HUB_SHARDS", 4).start().wait_ready();
    let mut raws: Vec<Raw> = (0..n_connections).map(|_| Raw::open(&hub, &["all"])).collect();
    let all = n_connections as f64;
    assert!(eventually(SOON, || hub.metric_sum("hubbub_subscriptions") == all));
    let metrics = hub.metrics();
    let mean = all / 4.0;
    for shard in 0..4 {
        let n = metrics.get(&format!("hubbub_connections{{shard=\"{shard}\"}}"));
        assert!((n - mean).abs() <= mean * tolerance, "shard {shard}: {n}, mean {mean}");
    }
    assert_eq!(metrics.all("hubbub_connections").len(), 4, "four shards and no more");
    hub.publish("all", "hello");
    assert!(drive(&mut raws, secs(30), |raw| !raw.frames.is_empty()), "on every shard");
    assert!(raws.iter().all(|raw| raw.frames.len() == 1 && raw.frames[0].text() == "\"hello\""));
    drop(raws);
    assert!(eventually(secs(30), || hub.metric_sum("hubbub_connections") == 0.0));
}
