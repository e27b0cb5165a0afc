//! Promise: a client that vanishes without FIN is gone within a ping, its pong and five seconds, and
//! nobody else notices. (Scenario 39; presence and recovery come with history.)
//!
//! "Vanished" is a filter on the client's socket that drops what arrives before TCP sees it: the hub
//! gets no ACK and no RST. "Stopped" is a process that doesn't run: the kernel goes on answering.

mod common;

use common::{Cf, Hub, Raw, SOON, Viewer, drive, eventually, ms, scaled, secs, sys};
use std::time::{Duration, Instant};

fn ping() -> Duration {
    secs(scaled(2, 10) as u64)
}

fn pong() -> Duration {
    ms(scaled(1_500, 8_000) as u64)
}

/// Every other one on the busy channel, every other pair raw. Those already open answer their pings
/// meanwhile.
fn open(hub: &Hub, n: usize) -> Vec<Viewer> {
    let mut viewers: Vec<Viewer> = Vec::new();
    for i in 0..n {
        let channel = if i % 2 == 0 { "busy" } else { "quiet" };
        let viewer = if i % 4 < 2 { Viewer::cf } else { Viewer::raw };
        viewers.push(viewer(hub, &[channel]));
        if i % 50 == 49 {
            drive(&mut viewers, ms(1), |_| false);
        }
    }
    viewers
}

#[test]
fn who_vanishes_is_gone_in_time_and_nobody_else_notices() {
    let n_each = scaled(100, 1_000);
    let builder = Hub::builder().env("HUB_PING_INTERVAL", format!("{}s", ping().as_secs()));
    // By default it is less than the ping's interval, too.
    let patience = format!("{}ms", pong().as_millis());
    let builder = builder.env("HUB_PONG_TIMEOUT", &patience).env("HUB_WRITE_TIMEOUT", &patience);
    let hub = builder.start().wait_ready();
    let mut all = open(&hub, 2 * n_each + n_each / 10);
    let mut left = all.split_off(all.len() - n_each);
    let mut vanished = all.split_off(all.len() - n_each);
    let stopped = all;
    let n_gone = vanished.len() + stopped.len();
    assert_eq!(hub.metric_sum("hubbub_connections"), (n_each + n_gone) as f64);
    let base = hub.n_fds() - n_each - n_gone;
    vanished.iter().for_each(|viewer| sys::vanish(viewer.fd()));
    let began = Instant::now();
    let deadline = ping() + pong() + secs(5);
    let mut n_published = 0;
    while hub.metric_sum("hubbub_connections") > n_each as f64 {
        assert!(began.elapsed() < deadline, "{} still there", hub.metric_sum("hubbub_connections"));
        hub.publish("busy", "x".repeat(2_000));
        n_published += 1;
        drive(&mut left, ms(20), |_| false);
    }
    println!("{n_gone} of {} gone after {:?}", n_each + n_gone, began.elapsed());
    assert!(began.elapsed() > pong(), "not before a ping went unanswered");
    assert!(eventually(SOON, || hub.n_fds() <= base + n_each), "{} descriptors", hub.n_fds());
    // On the busy channel the write that is stuck may be noticed before the missing pong.
    let closes = |code| hub.metrics().get(&format!("hubbub_closes_total{{code=\"{code}\"}}"));
    assert_eq!(closes(3012) + closes(3009), n_gone as f64, "each counted");
    assert!(closes(3012) >= (n_gone / 2) as f64, "{}", closes(3012));
    assert_eq!(hub.metric_sum("hubbub_subscriptions"), n_each as f64);

    hub.publish("quiet", "still here");
    hub.publish("busy", "still here");
    let n_due = |viewer: &Viewer| if viewer.channels()[0] == "busy" { n_published + 1 } else { 1 };
    assert!(drive(&mut left, SOON, |viewer| viewer.n_received() >= n_due(viewer)));
    assert!(left.iter().all(|viewer| !viewer.is_closed() && viewer.n_received() == n_due(viewer)));

    // Back in the net, the first thing it says tells it that it was given up; it may come again.
    for viewer in &mut vanished {
        sys::come_back(viewer.fd());
        let (Viewer::Cf { cf: Cf { raw, .. }, .. } | Viewer::Raw { raw, .. }) = viewer;
        raw.send_text("{}");
    }
    assert!(drive(&mut vanished, SOON, Viewer::is_closed), "told");
    assert!(Cf::connect(&hub).raw.stays_quiet(ms(50)));
}

/// Everything in flight towards vanished clients, the kernel's part included.
#[test]
fn the_kernel_keeps_nothing_for_long_of_who_vanished() {
    let hub = Hub::builder().env("HUB_WRITE_TIMEOUT", "1s").start().wait_ready();
    let mut left = Raw::open(&hub, &["busy"]);
    let vanished: Vec<Viewer> = (0..50).map(|_| Viewer::raw(&hub, &["busy"])).collect();
    vanished.iter().for_each(|viewer| sys::vanish(viewer.fd()));
    for _ in 0..50 {
        hub.publish("busy", "x".repeat(10_000));
        left.pump();
    }
    let queued = |hub: &Hub| hub.sockets().iter().map(|socket| socket.queued_bytes).sum::<u64>();
    assert!(queued(&hub) > 0, "there is something in flight");
    let began = Instant::now();
    let all_gone = || {
        left.pump();
        hub.n_fds() < vanished.len() && queued(&hub) == 0
    };
    assert!(
        eventually(secs(12), all_gone),
        "{} bytes of {} sockets",
        queued(&hub),
        hub.sockets().len()
    );
    println!("nothing left after {:?}", began.elapsed());
}
