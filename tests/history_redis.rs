//! Promise: offsets from any number of nodes and other Redis clients are gapless and in order, and
//! a Redis that lost part of a stream is found out: it starts anew, and never goes on as if nothing
//! had been. (Scenarios 12, 13, 19, 21, 22 and 27, as far as history goes.)

mod common;

use common::cf::Cf;
use common::http::Kept;
use common::past::{At, Place, code, history, offsets, publish, publish_each, result};
use common::redis::Reply;
use common::{Hub, QUIET, Rng, SOON, eventually, hub, scaled};
use serde_json::json;
use std::collections::BTreeMap;
use std::process::Command;

const STREAM: &str = "ws:stream:{h:a}";
const META: &str = "ws:meta:{h:a}";

/// Publishes of one thread: what it sent, and the offset that it was told.
fn publish_many(hub: &Hub, who: usize, n: usize) -> Vec<(String, usize)> {
    let mut kept = Kept::open(hub.addr).expect("connects");
    let mut told = Vec::new();
    for seq in 0..n {
        let data = format!("{who}-{seq}");
        let mut body = json!({ "channel": "big:a", "data": data });
        // One in ten is refused, or suppressed: it must use no number.
        match seq % 10 {
            3 => body["data"] = json!("x".repeat(3_000)),
            7 => body["idempotency_key"] = json!("all the same"),
            _ => {}
        }
        let answer = kept.post("/api/publish", &body.to_string()).expect("answered").json();
        match seq % 10 {
            3 => assert_eq!(answer["error"]["code"], 107, "{answer}"),
            7 => assert!(answer["result"]["offset"].is_u64(), "{answer}"),
            _ => {
                told.push((data, answer["result"]["offset"].as_u64().expect("an offset") as usize))
            }
        }
    }
    told
}

/// Sees so many publications and not one more, with offsets from 1 on; returns their data.
fn watch(mut viewer: Cf, n_expected: usize) -> Vec<String> {
    let mut data = Vec::new();
    for offset in 1..=n_expected {
        let seen = viewer.next_pub(SOON).expect("delivered").body;
        assert_eq!(seen["offset"], offset, "{seen}");
        data.push(seen["data"].as_str().expect("text").to_owned());
    }
    assert!(viewer.stays_quiet(QUIET), "{:?}", viewer.pubs);
    data
}

/// Scenario 22.
#[test]
fn offsets_of_many_publishers_on_two_nodes_are_gapless_and_in_order_on_both() {
    let place = Place::redis_with(|builder| builder.env("HUB_PUBLICATION_BYTES_MAX", "2KiB"));
    let nodes = [&place.a, place.b()];
    let viewers: Vec<Cf> =
        nodes.iter().flat_map(|hub| (0..3).map(|_| Cf::subscribed(hub, &["big:a"]))).collect();
    let (n_publishers, n_each) = (2 * scaled(4, 16), scaled(60, 2_000));
    // Each accepted one, and the first of those with a key.
    let n_expected = n_publishers * n_each * 8 / 10 + 1;
    let (told, seen) = std::thread::scope(|scope| {
        let publish = |who: usize| scope.spawn(move || publish_many(nodes[who % 2], who, n_each));
        let publishing: Vec<_> = (0..n_publishers).map(publish).collect();
        let watch = |viewer| scope.spawn(move || watch(viewer, n_expected));
        let watching: Vec<_> = viewers.into_iter().map(watch).collect();
        let told = publishing.into_iter().flat_map(|thread| thread.join().expect("published"));
        let told: BTreeMap<String, usize> = told.collect();
        let seen = watching.into_iter().map(|thread| thread.join().expect("watched"));
        (told, seen.collect::<Vec<Vec<String>>>())
    });
    assert_eq!(told.len(), n_expected - 1);
    for data in &seen {
        assert_eq!(*data, seen[0], "the same for all");
        for (data, offset) in data.iter().zip(1..) {
            assert_eq!(told.get(data).copied().unwrap_or(offset), offset, "what {data} was told");
        }
    }
    let at = At::of(&history(&place.a, "big:a"));
    assert_eq!(at.offset, n_expected as u64);
    assert_eq!(place.a.metric_sum("hubbub_history_resets_total"), 0.0);
}

/// Damages the stream of `h:a` after ten publications; the next one must start another.
#[track_caller]
fn starts_anew_after(place: &Place, what: &str, damage: impl Fn(&Place)) {
    result(&place.a, "history_remove", json!({ "channel": "h:a" }));
    let before = publish_each(&place.a, "h:a", 0..10);
    let resets = || {
        [&place.a, place.b()].iter().map(|hub| hub.metric_sum("hubbub_history_resets_total")).sum()
    };
    let resets_before: f64 = resets();
    damage(place);
    // Whoever reads first finds out, too; every other time it is a publish.
    if before.offset.is_multiple_of(2) {
        let page = history(place.b(), "h:a");
        assert_eq!((offsets(&page), page["offset"].as_u64()), (vec![], Some(0)), "{what}: {page}");
        assert_ne!(page["epoch"], json!(before.epoch), "{what}");
    }
    let after = publish(&place.a, "h:a", "after");
    assert_eq!(after.offset, 1, "{what}");
    assert_ne!(after.epoch, before.epoch, "{what}");
    let since = json!({ "channel": "h:a", "since": before.json(), "limit": -1 });
    assert_eq!(code(place.b(), "history", since), 112, "{what}: the old position fits nothing");
    let page = history(place.b(), "h:a");
    assert_eq!((offsets(&page), At::of(&page)), (vec![1], after.clone()), "{what}");
    publish(place.b(), "h:a", "and on");
    assert_eq!(offsets(&history(&place.a, "h:a")), [1, 2], "{what}");
    if what != "flushed" {
        assert_eq!(resets(), resets_before + 1.0, "{what}: counted");
    }
}

/// Scenarios 19 and 21.
#[test]
fn a_damaged_stream_starts_anew() {
    let place = Place::redis();
    let command = |args: &[&str]| drop(place.server().command(args));
    let check = |what: &str, damage: &[&[&str]]| {
        starts_anew_after(&place, what, |_| damage.iter().for_each(|args| command(args)));
        // Once more with the other of the two who may find out.
        publish(&place.a, "h:a", "odd");
        starts_anew_after(&place, what, |_| damage.iter().for_each(|args| command(args)));
    };
    check("flushed", &[&["FLUSHALL"]]);
    check("stream evicted", &[&["DEL", STREAM]]);
    check("meta evicted", &[&["DEL", META]]);
    check("epoch lost", &[&["HDEL", META, "e"]]);
    check("top behind", &[&["HINCRBY", META, "o", "-1"]]);
    check("top ahead", &[&["HINCRBY", META, "o", "3"]]);
    check("top garbage", &[&["HSET", META, "o", "many"]]);
    check("stream ahead", &[&["XADD", STREAM, "999-0", "p", "foreign"]]);
    check("stream cut", &[&["XTRIM", STREAM, "MAXLEN", "0"]]);
    check("another server's", &[&["HSET", META, "s", "0123456789abcdef"]]);
}

#[test]
fn the_newest_publication_gone_is_noticed() {
    let place = Place::redis();
    let first = publish(&place.a, "h:a", 1);
    publish(&place.a, "h:a", 2);
    place.server().command(&["XDEL", STREAM, "2-0"]);
    let page = history(&place.a, "h:a");
    assert_eq!((offsets(&page), page["offset"].as_u64()), (vec![], Some(0)), "{page}");
    assert_ne!(page["epoch"], json!(first.epoch));
}

/// A page has no hole: what lies before one is as good as gone.
#[test]
fn a_publication_gone_from_the_middle_hides_the_older_ones() {
    let place = Place::redis();
    let top = publish_each(&place.a, "h:a", 1..=6);
    place.server().command(&["XDEL", STREAM, "3-0"]);
    let page = history(&place.a, "h:a");
    assert_eq!((offsets(&page), At::of(&page)), (vec![4, 5, 6], top));
    let ask = json!({ "channel": "h:a", "limit": -1, "reverse": true });
    assert_eq!(offsets(&result(&place.a, "history", ask)), [6, 5, 4]);
}

/// Redis restarted from nothing, with the nodes staying.
#[test]
fn a_redis_that_comes_back_empty_starts_anew() {
    let mut place = Place::redis();
    let before = publish(&place.a, "h:a", 1);
    place.redis.as_mut().expect("a place with Redis").restart();
    let ask = json!({ "channel": "h:a", "data": 2 });
    assert!(eventually(SOON, || place.b().api("publish", &ask).is_result()));
    let page = history(place.b(), "h:a");
    assert_eq!(offsets(&page), [1], "{page}");
    assert_ne!(page["epoch"], json!(before.epoch));
}

/// Redis restarted from a dump that lacks the end: nothing in it is wrong, but what comes would
/// repeat numbers that were delivered.
#[test]
fn a_redis_that_comes_back_without_its_newest_part_starts_anew() {
    let mut place = Place::redis();
    let saved = publish_each(&place.a, "h:a", 1..=5);
    place.server().command(&["SAVE"]);
    assert_eq!(publish_each(&place.a, "h:a", 6..=8).offset, 8);
    place.redis.as_mut().expect("a place with Redis").restart();
    assert_eq!(place.server().command(&["HGET", META, "o"]).text(), "5", "the dump was loaded");
    let ask = json!({ "channel": "h:a", "data": "other" });
    assert!(eventually(SOON, || place.b().api("publish", &ask).is_result()));
    let read = || place.a.api("history", &json!({ "channel": "h:a" })).is_result();
    assert!(eventually(SOON, read), "the other node comes back too");
    let page = history(&place.a, "h:a");
    assert_eq!((offsets(&page), page["offset"].as_u64()), (vec![1], Some(1)), "{page}");
    assert_ne!(page["epoch"], json!(saved.epoch));
    let since = json!({ "channel": "h:a", "limit": -1, "since": saved.json() });
    assert_eq!(code(place.b(), "history", since), 112);
}

/// A name that is only read is not kept for long, and a read keeps it.
#[test]
fn the_epoch_of_an_unused_channel_does_not_stay() {
    let place = Place::redis();
    let ttl = || place.server().command(&["PTTL", META]).int();
    let hour = 3_600_000;
    let epoch = At::of(&history(&place.a, "h:a")).epoch;
    assert!((1..=hour).contains(&ttl()), "{}", ttl());
    place.server().command(&["PEXPIRE", META, "100000"]);
    assert_eq!(At::of(&history(place.b(), "h:a")), At { offset: 0, epoch: epoch.clone() });
    assert!((hour / 2..=hour).contains(&ttl()), "{}", ttl());
    assert_eq!(publish(&place.a, "h:a", 1), At { offset: 1, epoch });
    assert!(ttl() > 29 * 24 * hour, "{}", ttl());
}

/// Scenario 21 (c): a Redis that evicts whatever it likes, streams and their metas alike.
#[test]
fn under_eviction_no_number_comes_twice() {
    let place = Place::redis();
    let mut rng = Rng::seeded();
    let used = match place.server().command(&["INFO", "memory"]) {
        Reply::Bytes(bytes) => String::from_utf8(bytes).expect("text"),
        other => panic!("{other:?}"),
    };
    let used = used.lines().find_map(|line| line.strip_prefix("used_memory:")).expect("a number");
    let used: u64 = used.parse().expect("a number");
    place.server().config_set("maxmemory-policy", "allkeys-random");
    place.server().config_set("maxmemory", &(used + 1_500_000).to_string());
    let filler = "x".repeat(4_000);
    let mut newest: BTreeMap<String, u64> = BTreeMap::new();
    let mut current: BTreeMap<u64, String> = BTreeMap::new();
    let (mut n_anew, mut kept) = (0, Kept::open(place.a.addr).expect("connects"));
    for _ in 0..scaled(1_500, 20_000) {
        let channel = rng.between(0, 60);
        let body = json!({ "channel": format!("h:{channel}"), "data": filler });
        let answer = kept.post("/api/publish", &body.to_string()).expect("answered").json();
        let at = At::of(&answer["result"]);
        match newest.insert(at.epoch.clone(), at.offset) {
            Some(before) => assert_eq!(at.offset, before + 1, "{channel}: {at:?}"),
            None => assert_eq!(at.offset, 1, "{channel}: {at:?}"),
        }
        let before = current.insert(channel, at.epoch.clone());
        n_anew += u64::from(before.is_some_and(|before| before != at.epoch));
    }
    println!("{n_anew} streams started anew");
    assert!(n_anew >= 20, "{n_anew}: Redis evicted");
    assert!(place.a.metric_sum("hubbub_history_resets_total") > 0.0);
    for (channel, epoch) in current {
        let page = history(place.b(), &format!("h:{channel}"));
        let (offsets, at) = (offsets(&page), At::of(&page));
        assert!(offsets.is_empty() || offsets.last() == Some(&at.offset), "{page}");
        assert!(offsets.is_empty() == (at.epoch != epoch), "{channel}: its newest, or nothing");
    }
}

/// Scenario 21 (c): a Redis without memory that evicts nothing.
#[test]
fn without_memory_publishers_get_an_error_and_nothing_is_half_done() {
    let place = Place::redis();
    let mut live = Cf::subscribed(place.b(), &["h:a"]);
    let first = publish(&place.a, "h:a", 1);
    place.server().config_set("maxmemory", "1");
    let body = json!({ "channel": "h:a", "data": 2, "idempotency_key": "k" });
    for _ in 0..3 {
        assert_eq!(code(&place.a, "publish", body.clone()), 100);
    }
    assert!(eventually(SOON, || place.a.log_has("OOM")), "the log names the cause");
    place.server().config_set("maxmemory", "0");
    assert_eq!(At::of(&result(&place.a, "publish", body)), At { offset: 2, ..first });
    let seen: Vec<_> = (0..2).map(|_| live.next_pub(SOON).expect("delivered").body).collect();
    assert_eq!((&seen[0]["offset"], &seen[1]["offset"]), (&json!(1), &json!(2)));
    assert!(live.stays_quiet(QUIET), "what was refused was not delivered");
}

/// Scenario 13: a Redis that hangs, and then finds the publishes in its sockets.
#[test]
fn a_publish_that_was_refused_takes_no_number_later() {
    let place = Place::redis_with(|builder| builder.env("HUB_REDIS_TIMEOUT", "500ms"));
    let mut live = Cf::subscribed(place.b(), &["h:a"]);
    publish(&place.a, "h:a", 1);
    assert!(live.next_pub(SOON).is_some());
    place.server().stop();
    let body = json!({ "channel": "h:a", "data": "late" });
    let answer = place.a.api("publish", &body);
    assert!(answer.is_retryable(), "{}", answer.text());
    place.server().cont();
    let ask = json!({ "channel": "h:a", "data": "new" });
    assert!(eventually(SOON, || place.a.api("publish", &ask).is_result()));
    let seen = live.next_pub(SOON).expect("delivered").body;
    assert_eq!((&seen["data"], &seen["offset"]), (&json!("new"), &json!(2)), "{seen}");
    assert!(live.stays_quiet(QUIET));
}

#[test]
fn flushed_scripts_come_back() {
    let place = Place::redis();
    let first = publish(&place.a, "h:a", 1);
    for _ in 0..3 {
        place.server().command(&["SCRIPT", "FLUSH"]);
        let ask = json!({ "channel": "h:a", "data": 2 });
        assert!(eventually(SOON, || place.a.api("publish", &ask).is_result()));
    }
    assert_eq!(At::of(&history(place.b(), "h:a")), At { offset: 4, ..first });
}

/// A storm of readers that ask the same costs Redis two reads, and each sees what was published
/// before it asked.
#[test]
fn equal_reads_are_shared() {
    let place = Place::redis();
    let top = publish_each(&place.a, "h:a", 1..=3);
    let mut readers: Vec<Cf> = (0..50).map(|_| Cf::connect(&place.a)).collect();
    let mut monitor = place.server().monitor();
    place.server().stop();
    let ask = json!({ "history": { "channel": "h:a", "limit": -1 } });
    let ids: Vec<u32> = readers.iter_mut().map(|cf| cf.send(vec![ask.clone()])[0]).collect();
    assert!(eventually(SOON, || place.a.metric_sum("hubbub_history_reads_total") == 50.0));
    place.server().cont();
    for (reader, id) in readers.iter_mut().zip(ids) {
        let reply = reader.reply(id, SOON).expect("answered");
        assert_eq!(offsets(&reply["history"]), [1, 2, 3], "{reply}");
        assert_eq!(At::of(&reply["history"]), top);
    }
    let commands = monitor.monitored(place.server());
    // Not the heartbeat, a script too.
    let is_read = |line: &&String| line.contains("\"EVALSHA\"") && line.contains("{h:a}");
    let n_reads = commands.iter().filter(is_read).count();
    assert!((1..=2).contains(&n_reads), "{n_reads} reads");
    assert!(place.a.metric_sum("hubbub_history_reads_shared_total") >= 48.0);
}

/// Scenario 12: what claims to be the hub's own and isn't.
#[test]
fn foreign_envelopes_reach_nobody() {
    let place = Place::redis();
    let mut live = Cf::subscribed(&place.a, &["h:a"]);
    let bad: [&[u8]; 6] = [
        b"\xff",
        b"\xffhub\x02",
        b"\xffhub\x02\0\0\0\0\0\0\0\x01abcdefgh\0\0\0\x05{}",
        b"\xffhub\x02\xff\xff\xff\xff\xff\xff\xff\xffabcdefgh\0\0\0\0\0\0\0\0\0\0\0\0{}",
        b"\xffhub\x02\0\0\0\0\0\0\0\x01ab\0defgh\0\0\0\0\0\0\0\0\0\0\0\0{}",
        b"\xffhub\x7f",
    ];
    for bytes in bad {
        place.server().publish("h:a", bytes);
    }
    publish(&place.a, "h:a", "good");
    assert_eq!(live.next_pub(SOON).expect("the next good one").data, "\"good\"");
    assert_eq!(place.a.metrics().get("hubbub_drops_total{reason=\"bad_envelope\"}"), 6.0);
    // Version 1 is still read.
    place.server().publish("h:a", b"\xffhub\x01\0\0\0\0\0\0\0\x09{\"k\":\"v\"}\"old\"");
    let seen = live.next_pub(SOON).expect("delivered").body;
    assert_eq!(seen, json!({ "data": "old", "tags": { "k": "v" } }));
}

/// The README's example: the script that `hubbub script` prints, run by redis-cli.
#[test]
fn any_redis_client_publishes_with_history() {
    let place = Place::redis();
    let printed = hub::run(&["script"], &[]);
    assert_eq!(printed.code, Some(0), "{}", printed.stderr);
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::io::Write::write_all(&mut file, printed.stdout.as_bytes()).expect("written");
    let mut live = Cf::subscribed(&place.a, &["h:a"]);
    let run = |keys: &[&str], args: &[&str]| {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &place.server().port.to_string(), "--eval"]).arg(file.path());
        let output = command.args(keys).arg(",").args(args).output().expect("redis-cli runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
    };
    let first: Vec<String> = run(&[STREAM, META], &["h:a", "{\"n\":1}", "10", "60000"]);
    assert_eq!((first[1].as_str(), first[2].as_str()), ("1", "1"), "{first:?}");
    let seen = live.next_pub(SOON).expect("delivered").body;
    assert_eq!(seen, json!({ "data": { "n": 1 }, "offset": 1, "epoch": first[3] }));
    let second = publish(place.b(), "h:a", 2);
    assert_eq!(second, At { offset: 2, epoch: first[3].clone() }, "one stream for all");
    let keys = [STREAM, META, "ws:idem:{h:a}:order 7"];
    let args = ["h:a", "3", "10", "60000", "{\"k\":\"v\"}", "5"];
    let (third, again): (Vec<String>, Vec<String>) = (run(&keys, &args), run(&keys, &args));
    assert_eq!((third[1].as_str(), third[2].as_str()), ("1", "3"), "{third:?}");
    assert_eq!((again[1].as_str(), &again[2..4]), ("2", &third[2..4]), "{again:?}");
    let body = json!({ "channel": "h:a", "data": 3, "idempotency_key": "order 7" });
    assert_eq!(result(&place.a, "publish", body)["offset"], 3, "the same keys as the API's");
    let old: Vec<String> = run(&[STREAM, META], &["h:a", "0", "10", "60000", "", "4"]);
    assert_eq!((old[1].as_str(), old[2].as_str()), ("3", "3"), "{old:?}");
    assert_eq!(live.next_pub(SOON).expect("delivered").body["offset"], 2);
    let expected = json!({ "data": 3, "offset": 3, "tags": { "k": "v" }, "version": 5 });
    assert_eq!(live.next_pub(SOON).expect("delivered").body, expected);
    let wrong: Vec<String> = run(&[STREAM, META], &["h:a", "0"]);
    assert!(wrong[0].contains("expected"), "{wrong:?}");
    let plain: Vec<String> = run(&[STREAM, META], &["h:a", "plain", "0", "0"]);
    assert_eq!((plain[1].as_str(), plain[2].as_str()), ("1", "0"), "{plain:?}");
    assert_eq!(live.next_pub(SOON).expect("delivered").body, json!({ "data": "plain" }));
    assert_eq!(place.a.metric_sum("hubbub_history_resets_total"), 0.0);
}

/// What it may not do it is refused; nothing else suffers.
#[test]
fn a_redis_user_without_scripts_has_no_history() {
    let place = Place::redis();
    let mut monitor = place.server().monitor();
    publish(&place.a, "h:a", 1);
    let commands = monitor.monitored(place.server()).join("\n");
    assert!(commands.contains("\"EVALSHA\""), "{commands}");
    let own = ["on", ">secret", "+@all", "-eval", "-evalsha", "~*", "&*"];
    let reply = place.server().command(&[&["ACL", "SETUSER", "plain"], &own[..]].concat());
    assert_eq!(reply, Reply::Bytes(b"OK".to_vec()));
    let url = format!("redis://plain:secret@{}", place.server().addr());
    let confined = Place::memory_with(|builder| builder.env("HUB_REDIS_URL", &url));
    let mut live = Cf::subscribed(&place.a, &["off:a"]);
    confined.a.publish("off:a", 1);
    assert_eq!(live.next_pub(SOON).expect("plain ones work").data, "1");
    assert_eq!(code(&confined.a, "publish", json!({ "channel": "h:a", "data": 1 })), 100);
    assert_eq!(code(&confined.a, "history", json!({ "channel": "h:a", "limit": 1 })), 100);
}
