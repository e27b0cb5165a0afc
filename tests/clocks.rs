//! Promise: what the clocks of the nodes say, and how they jump, changes neither the order of a history
//! nor how long it is kept, nor which nodes and connections are taken to live, nor who is here.

mod common;

use common::crowd::{self, counts, member, watcher};
use common::past::{history, namespaces, offsets, publish, result};
use common::registry::{connect, connections, left_ms, nodes};
use common::{Cf, Hub, QUIET, Redis, SOON, eventually, ms, scaled, secs, sys};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Preloaded into a node: its calendar is off by as many seconds as a file says, which may change at any
/// time. How time passes stays as it is.
const SHIM: &str = r#"
use std::ffi::{c_char, c_int, c_long, c_void};
#[repr(C)]
pub struct Timespec { sec: i64, nsec: c_long }
unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn getenv(name: *const c_char) -> *const c_char;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn read(fd: c_int, into: *mut c_void, n: usize) -> isize;
    fn close(fd: c_int) -> c_int;
}
#[cfg(target_arch = "x86_64")]
const CLOCK_GETTIME: c_long = 228;
#[cfg(target_arch = "aarch64")]
const CLOCK_GETTIME: c_long = 113;
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, into: *mut Timespec) -> c_int {
    unsafe {
        let code = syscall(CLOCK_GETTIME, clock as c_long, into) as c_int;
        let path = getenv(c"TEST_CLOCK_OFF_BY".as_ptr());
        if code != 0 || clock != 0 || path.is_null() { return code; }
        let fd = open(path, 0);
        let mut text = [0u8; 20];
        let n = read(fd, text.as_mut_ptr().cast(), text.len());
        close(fd);
        let (mut off_by, mut sign) = (0i64, 1);
        for byte in &text[..n.max(0) as usize] {
            if *byte == b'-' { sign = -1 }
            if byte.is_ascii_digit() { off_by = off_by * 10 + i64::from(byte - b'0') }
        }
        (*into).sec += sign * off_by;
        code
    }
}
"#;

/// Compiled by what compiled this test.
fn build_shim(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("clock.rs"), dir.join("libclock.so"));
    std::fs::write(&source, SHIM).expect("written");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "--crate-type", "cdylib", "-C", "panic=abort", "-o"]);
    let built = command.arg(&library).arg(&source).output().expect("rustc runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    library
}

struct Clock(PathBuf);

impl Clock {
    fn set(&self, off_by_secs: i64) {
        let next = self.0.with_extension("next");
        std::fs::write(&next, off_by_secs.to_string()).expect("written");
        std::fs::rename(next, &self.0).expect("renamed");
    }
}

#[test]
fn the_calendars_of_the_nodes_differ_and_jump() {
    let (redis, file) = (Redis::start(), namespaces());
    let dir = tempfile::tempdir().expect("a temporary directory");
    let shim = build_shim(dir.path());
    let node = |name: &str, off_by: i64| {
        let clock = Clock(dir.path().join(name));
        clock.set(off_by);
        let hub = Hub::builder().redis(&redis).env("HUB_CONFIG", file.path().display());
        let hub = hub.env("LD_PRELOAD", shim.display()).env("TEST_CLOCK_OFF_BY", clock.0.display());
        (hub.start().wait_ready(), clock)
    };
    let ((a, clock_a), (b, clock_b)) = (node("a", 300), node("b", -300));
    let shifted = |hub: &Hub| {
        assert!(eventually(SOON, || !hub.log().is_empty()), "it logs");
        hub.log()[0].clone()
    };
    assert_ne!(shifted(&a)[..16], shifted(&b)[..16], "the calendars do differ");
    let mut live = [&a, &b].map(|hub| Cf::subscribed(hub, &["big:a"]));
    let n = scaled(100, 450) as u64;
    for offset in 1..=2 * n {
        if offset == n {
            clock_a.set(-300);
            clock_b.set(86_400);
        }
        let hub = if offset % 2 == 0 { &a } else { &b };
        assert_eq!(publish(hub, "big:a", offset).offset, offset);
    }
    for live in &mut live {
        for offset in 1..=2 * n {
            assert_eq!(live.next_pub(SOON).expect("delivered").body["offset"], offset);
        }
    }
    // The newest of them: a page has no more than `HUB_HISTORY_MAX`.
    let ask = json!({ "channel": "big:a", "limit": -1, "reverse": true });
    let newest = offsets(&result(&a, "history", ask));
    assert_eq!(newest, (1..=2 * n).rev().take(300).collect::<Vec<u64>>());
    for (hub, other) in [(&a, &b), (&b, &a)] {
        keeps_for_a_second(hub, other, || {
            clock_a.set(3_600);
            clock_b.set(-3_600);
        });
        clock_a.set(-300);
        clock_b.set(86_400);
    }
}

#[test]
fn the_calendar_of_a_node_without_redis_jumps() {
    let file = namespaces();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (shim, clock) = (build_shim(dir.path()), Clock(dir.path().join("a")));
    clock.set(300);
    let hub = Hub::builder().env("HUB_CONFIG", file.path().display());
    let hub = hub.env("LD_PRELOAD", shim.display()).env("TEST_CLOCK_OFF_BY", clock.0.display());
    let hub = hub.start().wait_ready();
    for off_by in [-300, 86_400, 0] {
        keeps_for_a_second(&hub, &hub, || clock.set(off_by));
    }
}

/// `history_ttl` of `short:` holds within a tenth, whatever `jump` does to the calendars. The delays of a
/// busy machine count for neither: it was kept too long if a look that began too late still finds it, and not long
/// enough if one that ended too early doesn't.
fn keeps_for_a_second(hub: &Hub, other: &Hub, jump: impl FnOnce()) {
    let asked = Instant::now();
    publish(hub, "short:a", 1);
    let answered = Instant::now();
    jump();
    loop {
        let looked = Instant::now();
        let is_there = !offsets(&history(other, "short:a")).is_empty();
        if !is_there {
            println!("kept for {:?} to {:?}", looked - answered, asked.elapsed());
            assert!(asked.elapsed() >= ms(900), "gone after {:?}", asked.elapsed());
            return;
        }
        assert!(looked - answered <= ms(1_100), "still there after {:?}", looked - answered);
        sys::pause(ms(5));
    }
}

/// Scenario 45, for the registry: life is judged by Redis's clock alone.
#[test]
fn a_node_lives_whatever_its_calendar_says() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let shim = build_shim(dir.path());
    let node = |name: &str, off_by: i64| {
        let clock = Clock(dir.path().join(name));
        clock.set(off_by);
        let hub = Hub::builder().redis(&redis).env("HUB_NODE_ID", name);
        let hub = hub.env("LD_PRELOAD", shim.display()).env("TEST_CLOCK_OFF_BY", clock.0.display());
        (hub.start().wait_ready(), clock)
    };
    let ((mut a, clock_a), (b, clock_b)) = (node("a", 600), node("b", -600));
    let ((_on_a, id_a), (_on_b, id_b)) = (connect(&a, ""), connect(&b, ""));
    assert!(eventually(SOON, || connections(&redis).len() == 2));
    clock_a.set(4_200);
    clock_b.set(-4_200);
    // Over a heartbeat of both.
    let end = Instant::now() + secs(12);
    while Instant::now() < end {
        assert_eq!(nodes(&redis).keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(connections(&redis).len(), 2);
        common::sys::pause(ms(100));
    }
    for (id, home) in [(&id_a, "a"), (&id_b, "b")] {
        let found = b.api("where", &serde_json::json!({ "client": id })).json();
        assert_eq!(found["result"]["node"]["instance_id"], home, "{found}");
        let uptime = found["result"]["node"]["uptime"].as_u64();
        assert!(uptime.is_some_and(|s| s < 600), "{found}");
    }
    a.signal(libc::SIGKILL);
    assert!(a.wait_exit(SOON).is_some());
    for (kind, life_ms) in [("ws:instance:", 30_000), ("ws:conn:", 120_000)] {
        let left = left_ms(&redis, kind);
        assert!(left.values().all(|left| (1..=life_ms).contains(left)), "{left:?}");
    }
}

/// Scenario 45: a node lives by Redis's clock.
#[test]
fn whom_clocks_would_bury_is_here_and_whom_they_would_keep_is_gone() {
    let (redis, file) = (Redis::start(), crowd::namespaces());
    let dir = tempfile::tempdir().expect("a temporary directory");
    let shim = build_shim(dir.path());
    let node = |name: &str, off_by: i64| {
        let clock = Clock(dir.path().join(name));
        clock.set(off_by);
        let hub = crowd::builder(&file).redis(&redis).env("LD_PRELOAD", shim.display());
        (hub.env("TEST_CLOCK_OFF_BY", clock.0.display()).start().wait_ready(), clock)
    };
    let ((a, clock_a), (b, clock_b)) = (node("a", 600), node("b", -600));
    let _members = [member(&a, "1", "all:a"), member(&a, "2", "all:a")];
    let mut watches = watcher(&b, "w", "all:a");
    assert!(eventually(SOON, || counts(&b, "all:a") == (3, 3)));
    while watches.told(QUIET).is_some() {}
    clock_a.set(4_200);
    clock_b.set(-4_200);
    // Past a beat, or in full past the time for which one is believed.
    let told = watches.told(secs(scaled(12, 40) as u64));
    assert!(told.is_none(), "{told:?}");
    for hub in [&a, &b] {
        assert_eq!(counts(hub, "all:a"), (3, 3));
    }
    a.signal(libc::SIGKILL);
    let died = Instant::now();
    assert!(eventually(secs(45), || counts(&b, "all:a") == (1, 1)));
    println!("gone after {:?}", died.elapsed());
    for _ in 0..2 {
        assert_eq!(watches.told(SOON).expect("told").0, "leave");
    }
    assert!(watches.told(QUIET).is_none(), "once each");
}
