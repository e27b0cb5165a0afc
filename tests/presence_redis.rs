//! Promise: over several nodes on one Redis, who is here stays right whatever dies: a node, Redis, or the
//! connection between them; and each join and leave is told once. (Scenarios 43, 44 and 45, as far as
//! presence goes.)

mod common;

use common::cf::Cf;
use common::crowd::{Crowd, Guest, counts, here, member, try_counts, watcher};
use common::past::code;
use common::redis::Reply;
use common::{Hub, QUIET, Redis, SOON, drive, eventually, scaled, secs};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

const RUNS: &str = "ws:presence-runs";

fn texts(reply: Reply) -> Vec<String> {
    match reply {
        Reply::Array(items) => items.iter().map(Reply::text).collect(),
        other => panic!("{other:?}"),
    }
}

/// The lives that are believed, or were.
fn lives(redis: &Redis) -> Vec<String> {
    texts(redis.command(&["ZRANGE", RUNS, "0", "-1"]))
}

/// Lives of one node; a life's name begins with its run's.
fn lives_of(redis: &Redis, run_id: &str) -> Vec<String> {
    lives(redis).into_iter().filter(|life| life.starts_with(run_id)).collect()
}

/// As the lives of its members show it.
fn run_id(redis: &Redis, hub: &Hub) -> String {
    let channel = format!("p:{}", hub.addr.port());
    let _member = member(hub, "probe", &channel);
    assert_eq!(counts(hub, &channel), (1, 1));
    let lives = texts(redis.command(&["SMEMBERS", &format!("ws:presence:{{{channel}}}")]));
    lives[0].split_once(':').expect("a run and a number").0.to_owned()
}

/// Takes a node for dead before its time.
fn bury(redis: &Redis, run_id: &str) {
    let lives = lives_of(redis, run_id);
    assert!(!lives.is_empty(), "{run_id} has no life");
    for life in lives {
        redis.command(&["ZADD", RUNS, "XX", "1", &life]);
    }
}

/// How often each client joined and left, as somebody was told until nothing more came.
fn told_of(watches: &mut Guest) -> BTreeMap<String, (usize, usize)> {
    let mut told: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    while let Some((what, info)) = watches.told(QUIET) {
        let (joins, leaves) =
            told.entry(info["client"].as_str().expect("a client").to_owned()).or_default();
        *(if what == "join" { joins } else { leaves }) += 1;
    }
    told
}

fn keys(redis: &Redis, pattern: &str) -> Vec<String> {
    texts(redis.command(&["KEYS", pattern]))
}

/// Scenario 43.
#[test]
fn whom_a_dead_node_had_is_gone_and_the_others_stay() {
    let crowd = Crowd::redis();
    let redis = crowd.redis.as_ref().expect("Redis");
    let (b, c) = (crowd.b(), crowd.another());
    // A thousand together are told of.
    let n = scaled(30, 900);
    let dies = crowd.another();
    let dead_run = run_id(redis, &dies);
    let mut watches = [watcher(b, "w", "all:a"), watcher(&c, "w", "all:a")];
    let of_dead: Vec<Guest> =
        (0..n).map(|user| member(&dies, &user.to_string(), "all:a")).collect();
    // Half of the users are on a node that lives, too.
    let of_alive: Vec<Guest> =
        (n / 2..n + n / 2).map(|user| member(b, &user.to_string(), "all:a")).collect();
    assert!(eventually(SOON, || counts(&c, "all:a") == (2 * n as u64 + 2, (n + n / 2) as u64 + 1)));
    watches.iter_mut().for_each(|watches| drop(told_of(watches)));
    let died = Instant::now();
    dies.signal(libc::SIGKILL);
    // Believed for 30 s, and looked for every 3.
    let expected = (n as u64 + 2, n as u64 + 1);
    let is_right = eventually(secs(45), || counts(&crowd.a, "all:a") == expected);
    assert!(is_right, "{:?}", counts(&crowd.a, "all:a"));
    println!("counted right after {:?}", died.elapsed());
    let alive: BTreeSet<&str> = of_alive
        .iter()
        .map(|guest| &*guest.client)
        .chain(watches.iter().map(|watches| &*watches.client))
        .collect();
    assert_eq!(here(&c, "all:a").keys().map(|key| &**key).collect::<BTreeSet<_>>(), alive);
    let expected: BTreeMap<String, (usize, usize)> =
        of_dead.iter().map(|guest| (guest.client.clone(), (0, 1))).collect();
    for watches in &mut watches {
        watches.cf.wait(SOON, |cf| cf.pushes.len() >= n);
        assert_eq!(told_of(watches), expected, "each leave once");
    }
    assert_eq!(keys(redis, &format!("ws:presence*{dead_run}*")), Vec::<String>::new());
    let reaped: f64 =
        [&crowd.a, b, &c].iter().map(|hub| hub.metric_sum("hubbub_presence_reaped_total")).sum();
    assert!(reaped <= n as f64, "a reader may have removed some: {reaped}");
}

/// Three nodes find at the same time what five left.
#[test]
fn several_nodes_bury_together_and_tell_once() {
    let crowd = Crowd::redis();
    let redis = crowd.redis.as_ref().expect("Redis");
    let living = [&crowd.a, crowd.b(), &crowd.another()];
    let mut watches = living.map(|hub| watcher(hub, "w", "all:a"));
    let n = scaled(60, 300);
    let dying: Vec<Hub> = (0..3).map(|_| crowd.another()).collect();
    let mut gone = Vec::new();
    for hub in &dying {
        // In channels of their own, too, that nobody else is in.
        gone.extend((0..n).map(|at| {
            let mut guest = member(hub, "x", "all:a");
            guest.cf.subscribe(&format!("all:{at}"));
            guest
        }));
    }
    assert!(eventually(SOON, || counts(&crowd.a, "all:a") == (3 * n as u64 + 3, 2)));
    watches.iter_mut().for_each(|watches| drop(told_of(watches)));
    let runs: Vec<String> = dying.iter().map(|hub| run_id(redis, hub)).collect();
    dying.iter().for_each(|hub| hub.signal(libc::SIGKILL));
    runs.iter().for_each(|run| bury(redis, run));
    let expected: BTreeMap<String, (usize, usize)> =
        gone.iter().map(|guest| (guest.client.clone(), (0, 1))).collect();
    for watches in &mut watches {
        watches.cf.wait(SOON, |cf| cf.pushes.len() >= 3 * n);
        assert_eq!(told_of(watches), expected, "each leave once");
    }
    for run in &runs {
        assert!(
            eventually(SOON, || keys(redis, &format!("ws:presence*{run}*")).is_empty()),
            "{run}"
        );
    }
    assert_eq!(counts(crowd.b(), "all:0"), (0, 0));
}

#[test]
fn a_node_that_was_taken_for_dead_comes_back() {
    let crowd = Crowd::redis();
    let redis = crowd.redis.as_ref().expect("Redis");
    let mut watches = watcher(crowd.b(), "w", "all:a");
    let members: Vec<Guest> =
        (0..20).map(|user| member(&crowd.a, &user.to_string(), "all:a")).collect();
    assert!(eventually(SOON, || counts(crowd.b(), "all:a") == (21, 21)));
    drop(told_of(&mut watches));
    bury(redis, &run_id(redis, &crowd.a));
    // Whoever reads finds them gone, tells of it, and the node's next word is that they aren't.
    assert!(eventually(SOON, || counts(crowd.b(), "all:a") == (1, 1)));
    assert!(eventually(secs(15), || counts(crowd.b(), "all:a") == (21, 21)));
    let expected: BTreeMap<String, (usize, usize)> =
        members.iter().map(|guest| (guest.client.clone(), (1, 1))).collect();
    assert_eq!(told_of(&mut watches), expected);
    assert_eq!(crowd.a.metric_sum("hubbub_presence_restarts_total"), 1.0);
    drop(members);
    assert!(eventually(SOON, || counts(crowd.b(), "all:a") == (1, 1)));
}

#[test]
fn a_redis_that_starts_empty_is_told_again() {
    let mut crowd = Crowd::redis();
    let n = scaled(300, 2_000);
    let (mut of_a, of_b) = (Vec::new(), member(crowd.b(), "b", "all:a"));
    for user in 0..n {
        of_a.push(member(&crowd.a, &user.to_string(), &format!("p:{}", user % 10)));
    }
    let mut watches = watcher(&crowd.a, "w", "all:a");
    assert!(eventually(SOON, || counts(crowd.b(), "p:3") == (n as u64 / 10, n as u64 / 10)));
    let own = watches.client.clone();
    watches.is_told("join", &own);
    crowd.server().kill();
    assert!(eventually(SOON, || code(&crowd.a, "presence", json!({ "channel": "p:3" })) == 100));
    // One comes, and one goes meanwhile.
    let gone = of_a.swap_remove(3);
    drop(gone.cf);
    crowd.server().restart();
    assert!(eventually(SOON, || crowd.a.ready() && crowd.b().ready()));
    let comes = member(&crowd.a, "new", "p:3");
    let expected = n as u64 / 10;
    assert!(eventually(SOON, || {
        [&crowd.a, crowd.b()].iter().all(|hub| try_counts(hub, "p:3") == Some((expected, expected)))
    }));
    assert!(here(crowd.b(), "p:3").contains_key(&comes.client));
    assert!(!here(crowd.b(), "p:3").contains_key(&gone.client));
    assert!(eventually(SOON, || counts(&crowd.a, "all:a") == (2, 2)));
    assert!(watches.told(QUIET).is_none(), "nobody came or went");
    drop(of_b);
    let (what, info) = watches.told(SOON).expect("told");
    assert_eq!((&*what, &info["user"]), ("leave", &json!("b")));
}

/// Emptied in place, so that no link breaks: the next beat finds it out.
#[test]
fn a_redis_that_is_flushed_is_told_again() {
    let crowd = Crowd::redis();
    let _members: Vec<Guest> =
        (0..10).map(|user| member(&crowd.a, &user.to_string(), "p:a")).collect();
    assert!(eventually(SOON, || counts(crowd.b(), "p:a") == (10, 10)));
    crowd.redis.as_ref().expect("Redis").command(&["FLUSHALL"]);
    assert!(eventually(secs(15), || counts(crowd.b(), "p:a") == (10, 10)));
    assert_eq!(here(&crowd.a, "p:a").len(), 10);
}

/// The link breaks, again and again; nobody is told of anything.
#[test]
fn a_lost_link_changes_nothing() {
    let crowd = Crowd::redis();
    let redis = crowd.redis.as_ref().expect("Redis");
    let members: Vec<Guest> =
        (0..100).map(|user| member(&crowd.a, &user.to_string(), "all:a")).collect();
    let mut watches = watcher(crowd.b(), "w", "all:a");
    assert!(eventually(SOON, || counts(crowd.b(), "all:a") == (101, 101)));
    drop(told_of(&mut watches));
    for _ in 0..scaled(4, 40) {
        redis.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        assert!(eventually(SOON, || try_counts(&crowd.a, "all:a") == Some((101, 101))));
        assert_eq!(here(&crowd.a, "all:a").len(), 101);
    }
    assert!(told_of(&mut watches).is_empty());
    // What was written before is taken back.
    let run = run_id(redis, &crowd.a);
    assert!(eventually(SOON, || keys(redis, &format!("ws:presence-at:{run}*")).len() == 1));
    drop(members);
    assert!(eventually(SOON, || try_counts(crowd.b(), "all:a") == Some((1, 1))));
}

/// Redis stops to answer while many come and go, and goes on with what it had in its sockets.
#[test]
fn a_redis_that_hangs_makes_no_ghosts() {
    let crowd = Crowd::redis_with(|builder| builder.env("HUB_REDIS_TIMEOUT", "500ms"));
    let redis = crowd.redis.as_ref().expect("Redis");
    let mut guests: Vec<Guest> =
        (0..20).map(|user| member(&crowd.a, &user.to_string(), "p:a")).collect();
    assert!(eventually(SOON, || counts(crowd.b(), "p:a") == (20, 20)));
    for _ in 0..2 {
        redis.stop();
        for guest in guests.iter_mut().take(10) {
            guest.cf.unsubscribe("p:a");
        }
        let is_down = || code(&crowd.a, "presence_stats", json!({ "channel": "p:a" })) == 100;
        assert!(eventually(SOON, is_down));
        redis.cont();
        assert!(eventually(SOON, || try_counts(crowd.b(), "p:a") == Some((10, 10))));
        assert!(eventually(SOON, || crowd.a.ready()));
        for guest in guests.iter_mut().take(10) {
            guest.cf.subscribe("p:a");
        }
        assert!(eventually(SOON, || counts(crowd.b(), "p:a") == (20, 20)));
    }
}

#[test]
fn a_node_that_drains_takes_its_members_along() {
    let crowd = Crowd::redis();
    let redis = crowd.redis.as_ref().expect("Redis");
    let mut drains = crowd.another();
    let run = run_id(redis, &drains);
    let mut watches = watcher(crowd.b(), "w", "all:a");
    let gone: Vec<Guest> =
        (0..50).map(|user| member(&drains, &user.to_string(), "all:a")).collect();
    assert!(eventually(SOON, || counts(crowd.b(), "all:a") == (51, 51)));
    drop(told_of(&mut watches));
    drains.signal(libc::SIGTERM);
    assert_eq!(drains.wait_exit(SOON).expect("it ends").code(), Some(0));
    assert_eq!(counts(crowd.b(), "all:a"), (1, 1), "at once");
    assert_eq!(keys(redis, &format!("ws:presence-at:{run}*")), Vec::<String>::new());
    let expected: BTreeMap<String, (usize, usize)> =
        gone.iter().map(|guest| (guest.client.clone(), (0, 1))).collect();
    assert_eq!(told_of(&mut watches), expected);
}

#[test]
fn ten_thousand_members_are_counted_without_being_read() {
    let crowd = Crowd::redis();
    let redis = crowd.redis.as_ref().expect("Redis");
    let (n, n_counts) = (scaled(1_000, 10_000), 50);
    let mut members: Vec<Cf> = Vec::new();
    for hub in [&crowd.a, crowd.b()] {
        for _ in 0..n / 2 {
            let mut cf = Cf::connect(hub);
            cf.send(vec![json!({ "subscribe": { "channel": "p:a" } })]);
            members.push(cf);
        }
    }
    assert!(drive(&mut members, secs(60), |cf| cf.replies.len() == 1));
    assert!(eventually(SOON, || counts(&crowd.a, "p:a") == (n as u64, 1)));
    redis.command(&["CONFIG", "RESETSTAT"]);
    for _ in 0..n_counts {
        assert_eq!(counts(&crowd.a, "p:a"), (n as u64, 1));
    }
    let stats = redis.command(&["INFO", "commandstats"]).text();
    let calls = |command: &str| -> u64 {
        let start = format!("cmdstat_{command}:calls=");
        let line = stats.lines().find_map(|line| line.strip_prefix(&start));
        line.map_or(0, |line| line.split(',').next().expect("a number").parse().expect("a number"))
    };
    for command in ["hgetall", "hscan", "hkeys", "hvals", "hget", "hrandfield"] {
        assert_eq!(calls(command), 0, "{command}: {stats}");
    }
    // A count looks at each life, not at each member.
    assert!(calls("hlen") <= 4 * n_counts as u64, "{stats}");
    // Who is here is read in steps.
    assert_eq!(here(&crowd.a, "p:a").len(), n);
    let stats = redis.command(&["INFO", "commandstats"]).text();
    assert!(!stats.contains("cmdstat_hgetall"), "{stats}");
}

/// Scenario 14.
#[test]
fn prefixes_keep_presence_apart() {
    let redis = Redis::start();
    let file = common::crowd::namespaces();
    let node = |prefix: &str| {
        let builder = common::crowd::builder(&file).redis(&redis);
        builder.env("HUB_REDIS_PREFIX", prefix).start().wait_ready()
    };
    let (one, other) = (node("p1:"), node("p2:"));
    let mut watches = watcher(&other, "w", "all:a");
    let own = watches.client.clone();
    watches.is_told("join", &own);
    let _members = [member(&one, "1", "all:a"), member(&one, "2", "all:{a}x}")];
    assert_eq!(counts(&one, "all:a"), (1, 1));
    assert_eq!(counts(&one, "all:{a}x}"), (1, 1));
    assert_eq!(counts(&other, "all:a"), (1, 1));
    assert_eq!(counts(&other, "all:{a}x}"), (0, 0));
    assert!(watches.told(QUIET).is_none());
    let foreign: Vec<String> = keys(&redis, "*")
        .into_iter()
        .filter(|key| !key.starts_with("p1:ws:") && !key.starts_with("p2:ws:"))
        .collect();
    assert_eq!(foreign, Vec::<String>::new());
    for key in keys(&redis, "*") {
        assert!(redis.command(&["PTTL", &key]).int() > 0, "{key} expires by itself");
    }
}

/// One that doesn't know what a message is drops and counts it.
#[test]
fn letters_of_later_versions_are_dropped_and_counted() {
    let crowd = Crowd::redis();
    let redis = crowd.redis.as_ref().expect("Redis");
    let mut watches = watcher(&crowd.a, "w", "all:a");
    let own = watches.client.clone();
    watches.is_told("join", &own);
    for bad in [&b"\xffhub\x05j{}"[..], b"\xffhub\x04x{}", b"\xffhub\x04j{"] {
        redis.publish("all:a", bad);
    }
    let dropped = "hubbub_drops_total{reason=\"bad_envelope\"}";
    assert!(eventually(SOON, || crowd.a.metrics().get(dropped) == 3.0));
    redis.publish("all:a", b"\xffhub\x04j{\"user\":\"x\",\"client\":\"forged\"}");
    watches.is_told("join", "forged");
}
