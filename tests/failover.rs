//! Promise: where a Redis is made the replica of another and cuts nobody, hubbub leaves it; no
//! publication is accepted by the one and awaited on the other. (Scenario 8 a.)

mod common;

use common::cf::subscribe;
use common::follower::{Accepted, follow, tops};
use common::hub::Builder;
use common::past;
use common::traffic::{healthy, losses};
use common::{
    Attempt, Cf, Follower, Hub, Proxy, Redis, SOON, Traffic, Viewer, drive, eventually, hub, ms,
};
use serde_json::json;
use std::io::Write;
use std::time::{Duration, Instant};

/// How soon after the change everything must work, or be known not to.
const HEALTHY: Duration = Duration::from_secs(15);

/// A replica that has caught up.
fn replica_of(primary: &Redis) -> Redis {
    let replica = Redis::start();
    primary.config_set("repl-diskless-sync-delay", "0");
    follows(&replica, primary);
    assert!(eventually(SOON, || replica.command(&["ROLE"]).is_connected_replica()), "it follows");
    replica
}

fn follows(replica: &Redis, primary: &Redis) {
    let reply = replica.command(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
    assert_eq!(reply.text(), "OK");
}

fn promote(replica: &Redis) {
    assert_eq!(replica.command(&["REPLICAOF", "NO", "ONE"]).text(), "OK");
}

fn names(kind: &str) -> Vec<String> {
    (0..4).map(|n| format!("{kind}:{n}")).collect()
}

/// Those of `past`, and channels without.
fn namespaces() -> tempfile::NamedTempFile {
    let mut file = past::namespaces();
    writeln!(file, "[namespaces.\"\"]").expect("written");
    file
}

fn node(file: &tempfile::NamedTempFile, url: String) -> Builder {
    Hub::builder().env("HUB_CONFIG", file.path().display()).env("HUB_REDIS_URL", url)
}

fn n_gaps(hub: &Hub) -> usize {
    hub.metric_sum("hubbub_gaps_total") as usize
}

#[test]
fn the_old_primary_lives_on_as_a_replica_with_all_links_open() {
    let (old, file) = (Redis::start(), namespaces());
    let (proxy, new) = (Proxy::start(old.addr()), replica_of(&old));
    let hubs = [(); 2].map(|()| node(&file, proxy.url()).start().wait_ready());
    let (kept, plain) = (names("long"), names("off"));
    let mut followers: Vec<Follower> =
        (0..12).map(|at| Follower::open(&hubs[at % 2], &[&kept[at % 4]])).collect();
    assert!(follow(&mut followers, SOON, Follower::is_live));
    let plain_names: Vec<&str> = plain.iter().map(String::as_str).collect();
    let mut viewers = hubs.each_ref().map(|hub| vec![Viewer::cf(hub, &plain_names)]);
    let both = hubs.each_ref();
    let traffic = Traffic::start(&both, &[kept.clone(), plain.clone()].concat(), 4, 200);
    follow(&mut followers, ms(500), |_| false);

    proxy.retarget(new.addr());
    promote(&new);
    let elsewhere = node(&file, new.url()).start().wait_ready();
    let mut seen_elsewhere = vec![Viewer::cf(&elsewhere, &plain_names)];
    follows(&old, &new);
    let demoted = Instant::now();
    let have_moved = || old.numsub("off:0") == 0 && new.numsub("off:0") == 3;
    while !have_moved() {
        assert!(demoted.elapsed() < HEALTHY, "they stay with the old one");
        follow(&mut followers, ms(20), |_| false);
        viewers.iter_mut().for_each(|it| _ = drive(it, ms(5), |_| false));
    }
    println!("moved after {:?}", demoted.elapsed());
    for (hub, viewers) in hubs.iter().zip(&mut viewers) {
        healthy(&new, &[hub], viewers, demoted, HEALTHY);
    }
    follow(&mut followers, ms(500), |_| false);
    let attempts = traffic.finish();
    let tops = tops(&elsewhere, &kept);
    assert!(follow(&mut followers, SOON, |follower| follower.has_all(&tops)), "all follow the new");
    followers.iter().for_each(|follower| follower.assert_complete(&Accepted::of(&attempts)));
    assert!(!followers.iter().any(Follower::is_gone), "nobody was cut off");

    let is_after = |it: &&Attempt| it.began > demoted;
    let after: Vec<Attempt> = attempts.iter().filter(is_after).cloned().collect();
    let n_accepted = after.iter().filter(|it| it.accepted).count();
    println!("{n_accepted} of {} accepted after the change", after.len());
    assert!(after.last().is_some_and(|last| last.accepted), "it publishes again");
    drive(&mut seen_elsewhere, ms(300), |_| false);
    let lost = losses(&seen_elsewhere, &after_known(&attempts, demoted));
    assert_eq!(lost.n_missing, 0, "accepted by one Redis, awaited on the other");
    for (hub, viewers) in hubs.iter().zip(&mut viewers) {
        drive(viewers, ms(300), |_| false);
        let n_rows = losses(viewers, &attempts).n_rows();
        assert!(n_rows <= n_gaps(hub), "{n_rows} rows missing, {} gaps", n_gaps(hub));
    }
}

/// All attempts, of which those from before this are not awaited.
fn after_known(attempts: &[Attempt], since: Instant) -> Vec<Attempt> {
    let mark = |it: &Attempt| Attempt { accepted: it.accepted && it.began > since, ..it.clone() };
    attempts.iter().map(mark).collect()
}

/// With nowhere else to go, a node says so until its Redis is a primary again.
#[test]
fn nothing_is_published_to_a_replica() {
    let (old, file) = (Redis::start(), namespaces());
    let new = replica_of(&old);
    let hub = node(&file, old.url()).start().wait_ready();
    let mut viewers = vec![Viewer::cf(&hub, &["off:a", "off:b"])];
    promote(&new);
    let elsewhere = node(&file, new.url()).start().wait_ready();
    let mut seen_elsewhere = Cf::subscribed(&elsewhere, &["off:a"]);
    follows(&old, &new);
    // From the first moment on, whatever the node has noticed.
    while hub.ready() {
        for channel in ["off:a", "long:a"] {
            let answer = hub.api("publish", &json!({ "channel": channel, "data": 1 }));
            assert!(answer.is_retryable(), "{channel}: {} {}", answer.status, answer.text());
        }
    }
    assert!(eventually(SOON, || hub.log_has("replica")), "the log says why");
    assert_eq!(hub.get("/health").status, 200);
    assert!(eventually(SOON, || n_gaps(&hub) >= 2), "what may be missing is counted");
    let error = Cf::connect(&hub).error(subscribe("off:new"));
    assert_eq!((&error["code"], &error["temporary"]), (&json!(100), &json!(true)), "{error}");
    assert!(seen_elsewhere.stays_quiet(ms(300)), "{:?}", seen_elsewhere.pubs);

    let late = node(&file, old.url()).start();
    assert!(eventually(SOON, || late.log_has("replica")), "nor does one start on a replica");
    assert!(!late.ready());

    let script = hub::run(&["script"], &[]).stdout;
    let args =
        ["EVAL", &script, "2", "ws:stream:{off:a}", "ws:meta:{off:a}", "off:a", "1", "0", "0"];
    let reply = old.command(&args);
    assert!(format!("{reply:?}").contains("READONLY"), "{reply:?}");

    promote(&old);
    let back = Instant::now();
    healthy(&old, &[&hub, &late], &mut viewers, back, HEALTHY);
    println!("healthy after {:?}", back.elapsed());
    assert!(hub.api("publish", &json!({ "channel": "long:a", "data": 1 })).is_result());
}
