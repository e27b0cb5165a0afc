//! Promise: out of descriptors the hub neither spins nor fills the log, and those it keeps in reserve
//! serve its API, its eyes and its way back to Redis. (Scenario 49.)

mod common;

use common::cf::{self, Cf};
use common::hub::n_shards;
use common::ws::{Dial, Refused};
use common::{Hub, Redis, SOON, drive, eventually, scaled, secs, sys};
use std::net::TcpStream;
use std::time::Instant;

/// Of one core, while the node is full: a spin takes all of one, and what these tests ask of it some
/// hundredths.
const SHARE_MAX: f64 = 0.5;
/// A flood has thousands; Redis' going and coming has eight.
const LINES_MAX: f64 = 20.0;
/// The listener rests for 100 ms after each.
const ACCEPT_ERRORS_A_SECOND_MAX: f64 = 50.0;

fn n_files() -> u64 {
    scaled(300, 1_024) as u64
}

/// Clients until one is refused, and how it is.
fn fill(hub: &Hub) -> (Vec<Cf>, Refused) {
    let mut clients = Vec::new();
    loop {
        match Dial::new(hub, cf::PATH).try_open() {
            Ok(raw) => clients.push(Cf::over(raw)),
            Err(refused) => break (clients, refused),
        }
        assert!(clients.len() < n_files() as usize, "there is a limit");
    }
}

fn connect(cf: &mut Cf) {
    assert!(cf.command(serde_json::json!({ "connect": {} }))["connect"].is_object());
    cf.subscribe("a");
}

/// Processor share and log lines, while `during` runs.
fn watch<T>(hub: &Hub, during: impl FnOnce() -> T) -> T {
    let (began, cpu, n_lines) = (Instant::now(), hub.cpu(), hub.log().len());
    let result = during();
    let seconds = began.elapsed().as_secs_f64();
    let share = (hub.cpu() - cpu).as_secs_f64() / seconds;
    let lines = (hub.log().len() - n_lines) as f64;
    println!("{seconds:.1} s: {:.1} % of a core, {lines} log lines", share * 100.0);
    assert!(share < SHARE_MAX, "{share} of a core");
    assert!(lines < LINES_MAX + 2.0 * seconds, "{lines} lines in {seconds} s: {:?}", hub.log());
    result
}

#[test]
fn full_of_clients_everything_else_works_on() {
    let mut redis = Redis::start();
    let builder = Hub::builder().redis(&redis).n_files(n_files());
    let hub = builder.env("HUB_STALE_TIMEOUT", "60s").start().wait_ready();
    let began = Instant::now();
    let (mut clients, refused) = fill(&hub);
    println!("{} clients of {} descriptors", clients.len(), n_files());
    // All but the reserve, what the shards have open themselves, and an eleventh for handshakes.
    let most = n_files() as usize - 64 - 6 * n_shards();
    assert!(clients.len() > most * 8 / 10, "{}", clients.len());
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    let (first, last) = (0, clients.len() - 1);
    [first, last].into_iter().for_each(|at| connect(&mut clients[at]));

    // Many more stand at the door and say nothing: what is left of the descriptors is theirs.
    let n_waiting = 2 * n_files() as usize;
    let waiting: Vec<TcpStream> =
        (0..n_waiting).filter_map(|_| TcpStream::connect(hub.addr).ok()).collect();
    assert!(waiting.len() > n_waiting / 2, "the queue takes them");
    watch(&hub, || drive(&mut clients, secs(scaled(2, 60) as u64), |_| false));
    let is_up = |path: &str| hub.try_get(path).is_ok_and(|response| response.status == 200);
    assert!(is_up("/health") && is_up("/ready") && is_up("/metrics"));
    let metrics = hub.metrics();
    assert!(metrics.get("hubbub_refused_total{reason=\"connections_max\"}") >= 1.0);
    let gauge = |name: &str| metrics.get(&format!("hubbub_{name}"));
    assert_eq!(gauge("connections_max"), clients.len() as f64, "the limit is there to be seen");
    assert!(gauge("sockets") >= gauge("connections_max"));
    assert!(gauge("sockets_max") >= gauge("connections_max"));
    assert!(hub.n_fds() <= n_files() as usize);
    redis.publish("a", "1");
    for at in [first, last] {
        assert_eq!(clients[at].next_pub(SOON).expect("served at the limit").data, "1");
    }

    // Redis goes and comes back while nothing is free.
    redis.kill();
    assert!(eventually(SOON, || !hub.ready()), "noticed");
    assert!(is_up("/health"), "and alive");
    watch(&hub, || {
        drive(&mut clients, secs(1), |_| false);
        redis.restart();
        assert!(eventually(SOON, || is_up("/ready")), "back: there are descriptors for it");
    });
    assert!(eventually(SOON, || redis.publish("a", "2") == 1), "subscribed again");
    for at in [first, last] {
        let mut heard = || clients[at].next_pub(SOON).expect("served").data;
        assert!(eventually(SOON, || heard() == "2"));
    }

    // Room for the next one as soon as some go.
    drop(waiting);
    clients.drain(1..40);
    let welcome = || Dial::new(&hub, cf::PATH).try_open().is_ok();
    assert!(eventually(SOON, welcome), "there is room");
    let (errors, seconds) =
        (hub.metric_sum("hubbub_accept_errors_total"), began.elapsed().as_secs_f64());
    assert!(errors < ACCEPT_ERRORS_A_SECOND_MAX * seconds, "{errors} in {seconds} s");
}

/// More listeners' sockets than descriptors: accept itself fails, again and again.
#[test]
fn when_accept_fails_the_hub_rests_and_recovers() {
    let hub = Hub::builder().env("HUB_HANDSHAKE_TIMEOUT", "60s").start().wait_ready();
    let mut good = Cf::subscribed(&hub, &["a"]);
    // The limit falls under a running hub, below what it has open.
    let fell = Instant::now();
    sys::set_files_of(hub.pid(), 8);
    let waiting: Vec<TcpStream> =
        (0..50).map(|_| TcpStream::connect(hub.addr).expect("queued")).collect();
    watch(&hub, || assert!(good.stays_quiet(secs(2)), "kept"));
    sys::set_files_of(hub.pid(), 1_024);
    let failing = fell.elapsed().as_secs_f64();
    hub.publish("a", 1);
    assert_eq!(good.next_pub(SOON).expect("accepts again").data, "1");
    let errors = hub.metric_sum("hubbub_accept_errors_total");
    println!("{errors} failed accepts in {failing:.1} s, {} waiting", waiting.len());
    assert!(errors >= 1.0 && errors < ACCEPT_ERRORS_A_SECOND_MAX * failing, "{errors}");
    assert!(hub.log().len() < 20, "{:?}", hub.log());
}

/// A limit that is too low for a server is said at start, with the way out.
#[test]
fn more_clients_than_descriptors_is_a_mistake_at_start() {
    let mut command = common::hub::command();
    sys::limit_files(&mut command, 300);
    command.env("HUB_DEV", "true").env("HUB_CONNECTIONS_MAX", "10000");
    let output = command.output().expect("it ends at once");
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("HUB_CONNECTIONS_MAX") && said.contains("ulimit -n"), "{said}");
}
