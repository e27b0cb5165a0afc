//! Promise: an idle connection costs user memory by the byte, not by the buffer.

mod common;

use common::{Cf, Hub, drive, scaled, secs};

/// User memory per idle connection (JSON session, one subscription), bytes.
const BYTES_PER_CONNECTION_MAX: u64 = 1_500;

fn bytes_per_idle_connection(n_channels: usize) -> u64 {
    let n_connections = scaled(2_000, 10_000);
    let hub = Hub::start();
    // What a first session, and a first publication, make the process allocate for good.
    drop(Cf::subscribed(&hub, &["warm-up"]));
    let before = hub.anon_bytes();
    let channels: Vec<String> = (0..n_channels).map(|n| format!("channel-{n}")).collect();
    let mut idle: Vec<Cf> =
        (0..n_connections).map(|n| Cf::subscribed(&hub, &[&channels[n % n_channels]])).collect();
    drive(&mut idle, secs(scaled(2, 30) as u64), |_| false);
    let grown = hub.anon_bytes().saturating_sub(before);
    let per_connection = grown / n_connections as u64;
    println!("{n_connections} connections over {n_channels} channels: {per_connection} bytes each");
    hub.publish(&channels[0], "still here");
    let viewers = idle.iter_mut().step_by(n_channels).take(10);
    for cf in viewers {
        assert_eq!(cf.next_pub(secs(10)).expect("alive after the wait").data, "\"still here\"");
    }
    per_connection
}

#[test]
fn idle_connections_are_small() {
    for n_channels in [1, scaled(200, 1_000)] {
        let bytes = bytes_per_idle_connection(n_channels);
        assert!(
            bytes <= BYTES_PER_CONNECTION_MAX,
            "{bytes} bytes per idle connection over {n_channels} channels"
        );
    }
}
