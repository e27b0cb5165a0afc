//! Promise: whatever clients and Redis do, the log stays small and clean, and a log that nobody reads,
//! or that can't be written, costs no delivery. (Scenario 69.)

mod common;

use common::cf::{Cf, subscribe};
use common::ws::{Dial, TEXT, encode, raw_path};
use common::{Hub, Raw, Redis, SOON, eventually, scaled, secs, sys};
use serde_json::json;
use std::fs::File;
use std::io::{PipeReader, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Nobody's log line may hold it.
const SECRET: &str = "SECRET\u{1b}[31m\r\nERROR forged";

/// What a case may log: 50 lines a second, 1 MB in all, and nothing of what clients said.
struct Quota {
    began: Instant,
    n_lines: usize,
}

impl Quota {
    fn start(hub: &Hub) -> Self {
        Self { began: Instant::now(), n_lines: hub.log().len() }
    }

    /// Lines of this case, checked. Ordinary ones are below warning.
    fn check(self, hub: &Hub, what: &str) -> Vec<String> {
        let lines = hub.log().split_off(self.n_lines);
        let n_bytes: usize = lines.iter().map(String::len).sum();
        let seconds = self.began.elapsed().as_secs_f64().max(1.0);
        println!("{what}: {} lines, {n_bytes} bytes in {seconds:.1} s", lines.len());
        assert!(lines.len() as f64 / seconds < 50.0, "{what}: {lines:#?}");
        assert!(n_bytes < 1 << 20, "{what}: {n_bytes} bytes");
        for line in &lines {
            let is_clean = !line.contains("SECRET") && !line.contains("forged");
            assert!(is_clean && !line.contains('\u{1b}'), "{what}: {line:?}");
        }
        lines
    }

    fn check_ordinary(self, hub: &Hub, what: &str) {
        let lines = self.check(hub, what);
        let loud = lines.iter().find(|line| line.contains("WARN") || line.contains("ERROR"));
        assert_eq!(loud, None, "{what} is ordinary");
    }
}

#[test]
fn clients_that_are_cut_or_go() {
    let hub = Hub::start();
    let quota = Quota::start(&hub);
    let n_slow = scaled(30, 1_000);
    let open = |_| Dial::new(&hub, &raw_path(&["a"])).rcvbuf(4096).open();
    let slow: Vec<Raw> = (0..n_slow).map(open).collect();
    let cut = || hub.metrics().get("hubbub_closes_total{code=\"3008\"}");
    let filler = "x".repeat(100_000);
    assert!(eventually(secs(30), || {
        hub.publish("a", filler.as_str());
        cut() == n_slow as f64
    }));
    drop(slow);
    quota.check_ordinary(&hub, "slow clients cut");

    let quota = Quota::start(&hub);
    let resets = (0..scaled(600, 5_000)).map(|i| match i % 3 {
        0 => Raw::open(&hub, &["a"]),
        1 => Cf::dial(&hub).raw,
        _ => Raw::over(Dial::new(&hub, "/").connect()),
    });
    let resets: Vec<Raw> = resets.collect();
    resets.into_iter().for_each(Raw::reset);
    assert!(eventually(SOON, || hub.metric_sum("hubbub_connections") == 0.0));
    quota.check_ordinary(&hub, "resets");
}

#[test]
fn clients_that_send_nonsense() {
    let hub = Hub::start();
    let quota = Quota::start(&hub);
    let n_each = scaled(100, 2_000);
    for i in 0..n_each {
        let mut bad = [Cf::connect(&hub).raw, Cf::connect(&hub).raw, Raw::open(&hub, &["a"])];
        bad[0].send_bytes(&[0x83, 0x80, 0, 0, 0, 0]);
        bad[1].send_text(SECRET);
        bad[2].send_bytes(&encode(TEXT, b"\xff\x1b[31m SECRET"));
        let mut cf = Cf::dial(&hub);
        cf.send(vec![json!({ "connect": { "token": SECRET, "name": SECRET, "version": SECRET } })]);
        cf.send(vec![subscribe(SECRET), json!({ "rpc": { "method": SECRET, "data": SECRET } })]);
        cf.wait(secs(1), |cf| cf.replies.len() == 3);
        if i % 10 == 0 {
            let body = json!({ "channel": SECRET, "data": SECRET });
            assert_eq!(hub.api("publish", &body).status, 200);
            assert_eq!(hub.http("POST", "/api/publish", format!("{{\"{SECRET}")).status, 400);
            assert_eq!(hub.get("/SECRET%0d%0aforged").status, 404);
            assert_eq!(
                Dial::new(&hub, &raw_path(&[SECRET])).try_open().err().map(|r| r.status),
                Some(400)
            );
            let mut stream = Dial::new(&hub, "/").connect();
            stream.write_all(SECRET.as_bytes()).expect("sent");
        }
    }
    quota.check_ordinary(&hub, "nonsense");
}

#[test]
fn refused_tokens() {
    let builder = Hub::builder().without_dev().env("HUB_ALLOW_ANONYMOUS", true);
    let hub = builder.start().wait_ready();
    assert!(eventually(SOON, || hub.log_has("HUB_ALLOW_ANONYMOUS")), "said once, at the start");
    let quota = Quota::start(&hub);
    for _ in 0..scaled(100, 5_000) {
        let mut cf = Cf::dial(&hub);
        cf.send(vec![json!({ "connect": { "token": SECRET } }), subscribe(SECRET)]);
        cf.wait(secs(1), |cf| cf.raw.is_closed() || cf.replies.len() == 2);
        let refused = Dial::new(&hub, "/ws?channel=a&token=SECRET").try_open().err();
        assert!(refused.is_some_and(|refused| [401, 403].contains(&refused.status)));
    }
    quota.check_ordinary(&hub, "refused tokens");
}

#[test]
fn redis_away_and_back() {
    let mut redis = Redis::start();
    let hub = Hub::on(&redis);
    let mut client = Cf::subscribed(&hub, &["a"]);
    let quota = Quota::start(&hub);
    for _ in 0..2 {
        redis.kill();
        assert!(eventually(SOON, || !hub.ready()));
        let end = Instant::now() + secs(scaled(1, 30) as u64);
        while Instant::now() < end {
            // Each fails; none is worth a line.
            hub.api("publish", &json!({ "channel": "a", "data": SECRET }));
            client.send(vec![subscribe(&format!("b{}", end.elapsed().as_nanos()))]);
            client.wait(Duration::from_millis(20), |_| false);
        }
        redis.restart();
        assert!(eventually(SOON, || hub.ready()));
    }
    let lines = quota.check(&hub, "Redis away");
    assert!(lines.iter().any(|line| line.contains("is down")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("is up")), "{lines:#?}");
    assert!(lines.len() < scaled(30, 300), "changes of state, not attempts: {lines:#?}");
}

/// A pipe as full as it gets, and its reading end, which must not be dropped.
fn full_pipe() -> (PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let junk = [b'.'; 4096];
    while sys::wait_fd(writer.as_raw_fd(), sys::For::Writing, Duration::ZERO) {
        writer.write_all(&junk).expect("room for a page");
    }
    (reader, writer)
}

/// All that makes a node log at all: Redis going and coming, and a drain.
fn serves_without_its_log(redis: &mut Redis, mut hub: Hub) {
    let mut client = Cf::subscribed(&hub, &["a"]);
    hub.publish("a", 1);
    assert_eq!(client.next_pub(SOON).expect("served").data, "1");
    redis.kill();
    assert!(eventually(SOON, || !hub.ready()), "noticed");
    assert_eq!(hub.get("/health").status, 200);
    redis.restart();
    assert!(eventually(SOON, || hub.ready()), "reconnected, with lines to write about it");
    assert!(eventually(SOON, || redis.publish("a", "2") == 1));
    assert_eq!(client.next_pub(SOON).expect("served").data, "2");
    hub.signal(libc::SIGTERM);
    assert_eq!(hub.wait_exit(SOON).map(|status| status.code()), Some(Some(0)), "drains");
}

#[test]
fn a_log_that_nobody_reads_blocks_nothing() {
    let mut redis = Redis::start();
    let (reader, writer) = full_pipe();
    let hub = Hub::builder().redis(&redis).log_to(writer).start().wait_ready();
    serves_without_its_log(&mut redis, hub);
    drop(reader);
}

#[test]
fn a_log_on_a_full_disk_ends_nothing() {
    let mut redis = Redis::start();
    let full = File::options().write(true).open("/dev/full").expect("Linux has it");
    let hub = Hub::builder().redis(&redis).log_to(full).start().wait_ready();
    serves_without_its_log(&mut redis, hub);
}

#[test]
fn a_log_whose_reader_has_gone_ends_nothing() {
    let mut redis = Redis::start();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let hub = Hub::builder().redis(&redis).log_to(writer).start().wait_ready();
    serves_without_its_log(&mut redis, hub);
}
