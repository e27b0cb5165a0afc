//! Promise: a node that was stopped for a while, and its machine with it, blames no client for it.

mod common;

use common::{Cf, Hub, SOON, drive, eventually, ms, scaled, secs};

/// Pongs that came meanwhile count, however long they had to wait to be read.
#[test]
fn who_answered_in_time_stays() {
    let builder = Hub::builder().env("HUB_PING_INTERVAL", "2s").env("HUB_PONG_TIMEOUT", "1900ms");
    let hub = builder.start().wait_ready();
    let mut clients = Vec::new();
    while clients.len() < 1_500 {
        clients.extend((0..50).map(|_| Cf::connect(&hub)));
        drive(&mut clients, ms(1), |_| false);
    }
    let n_cut = |clients: &mut Vec<Cf>, how_long| {
        drive(clients, how_long, |_| false);
        clients.iter_mut().filter_map(|cf| cf.next_close(ms(0))).count()
    };
    for round in 0..scaled(2, 6) as u64 {
        // Some are pinged right before the stop, and their pongs wait for its end.
        assert_eq!(n_cut(&mut clients, ms(1_000 + 170 * round)), 0, "round {round}: no test");
        hub.signal(libc::SIGSTOP);
        assert_eq!(n_cut(&mut clients, secs(3)), 0);
        hub.signal(libc::SIGCONT);
        assert!(eventually(SOON, || hub.ready()));
        assert_eq!(n_cut(&mut clients, ms(500)), 0, "round {round}: cut, though they answered");
    }
}
