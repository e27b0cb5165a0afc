//! hubbub as a child process, found by the line it prints, and its eyes: HTTP, metrics, /proc.

use super::http::{self, Response};
use super::redis::Redis;
use super::{SOON, eventually, secs, sys};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

/// Log lines shown of a failed test's node; the rest is rarely the reason.
const LOG_LINES_SHOWN: usize = 60;

/// The shard count of this run; the whole suite runs with 1, 2 and 4.
pub fn n_shards() -> usize {
    let set = std::env::var("HUBBUB_TEST_SHARDS").ok();
    set.map_or(2, |text| text.parse().expect("HUBBUB_TEST_SHARDS is a number"))
}

/// A hubbub command line with no knob of the surroundings; of another build, if `HUBBUB_BIN` names one.
pub fn command() -> Command {
    let program = std::env::var_os("HUBBUB_BIN");
    let mut command = Command::new(program.unwrap_or_else(|| env!("CARGO_BIN_EXE_hubbub").into()));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HUB_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    sys::raise_fd_limit();
    sys::die_with_parent(&mut command);
    command
}

pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs hubbub with these arguments and knobs to its end; killed and failed after ten seconds.
pub fn run(args: &[&str], knobs: &[(&str, &str)]) -> Finished {
    let mut command = command();
    command.args(args).envs(knobs.iter().copied());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stdout = read_in_background(child.stdout.take().unwrap());
    let stderr = read_in_background(child.stderr.take().unwrap());
    let ended = eventually(SOON, || child.try_wait().unwrap().is_some());
    let _ = child.kill();
    let status = child.wait().unwrap();
    let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
    assert!(ended, "hubbub {args:?} {knobs:?} goes on running:\n{stdout}\n{stderr}");
    Finished { code: status.code(), stdout, stderr }
}

fn read_in_background(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The knobs of a node to be started.
pub struct Builder {
    knobs: BTreeMap<String, String>,
    n_files: Option<u64>,
    log_to: Option<Stdio>,
}

impl Builder {
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.knobs.insert(name.to_owned(), value.to_string());
        self
    }

    pub fn redis(self, redis: &Redis) -> Self {
        self.env("HUB_REDIS_URL", redis.url())
    }

    /// Not a laptop's node: what a client or the API may do has to be granted.
    pub fn without_dev(mut self) -> Self {
        self.knobs.remove("HUB_DEV");
        self
    }

    /// `ulimit -n` of the node, hard as well as soft.
    pub fn n_files(mut self, n_files: u64) -> Self {
        self.n_files = Some(n_files);
        self
    }

    /// Where the log goes, instead of into `Hub::log`.
    pub fn log_to(mut self, log_to: impl Into<Stdio>) -> Self {
        self.log_to = Some(log_to.into());
        self
    }

    pub fn start(self) -> Hub {
        self.start_within(SOON)
    }

    /// Starts a node that may take its time before it listens.
    pub fn start_within(self, deadline: Duration) -> Hub {
        let mut command = command();
        command.envs(&self.knobs).stdout(Stdio::piped());
        command.stderr(self.log_to.unwrap_or_else(Stdio::piped));
        if let Some(n_files) = self.n_files {
            sys::limit_files(&mut command, n_files);
        }
        let mut child = command.spawn().expect("hubbub starts");
        let log = Arc::new(Mutex::new(Vec::new()));
        if let Some(stderr) = child.stderr.take() {
            let lines = Arc::clone(&log);
            thread::spawn(move || {
                for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                    lines.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
                }
            });
        }
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(addr) = line.strip_prefix("hubbub listening on http://") {
                    let _ = sender.send(addr.parse::<SocketAddr>().expect("an address"));
                }
            }
        });
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut hub = Hub { child, addr: nowhere, printed: Mutex::new(receiver), log };
        hub.addr = hub.next_addr_within(deadline);
        hub
    }
}

/// States of a socket, as `/proc/net/tcp` numbers them.
pub const CLOSE_WAIT: u8 = 8;
pub const TIME_WAIT: u8 = 6;
const LISTEN: u8 = 10;

#[derive(Clone, Copy, Debug)]
pub struct KernelSocket {
    pub state: u8,
    /// Written and not yet acknowledged by the peer.
    pub queued_bytes: u64,
}

pub struct Hub {
    child: Child,
    pub addr: SocketAddr,
    printed: Mutex<mpsc::Receiver<SocketAddr>>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    pub fn builder() -> Builder {
        let builder = Builder { knobs: BTreeMap::new(), n_files: None, log_to: None };
        builder.env("HUB_DEV", true).env("HUB_LISTEN", "127.0.0.1:0").env("HUB_SHARDS", n_shards())
    }

    /// With the embedded broker, ready.
    pub fn start() -> Self {
        Self::builder().start().wait_ready()
    }

    /// A node of this Redis, ready.
    pub fn on(redis: &Redis) -> Self {
        Self::builder().redis(redis).start().wait_ready()
    }

    /// Where it listens too: the address behind the last one that was taken.
    pub fn next_addr(&self) -> SocketAddr {
        self.next_addr_within(SOON)
    }

    fn next_addr_within(&self, deadline: Duration) -> SocketAddr {
        self.printed.lock().unwrap().recv_timeout(deadline).expect("the line that names the port")
    }

    pub fn wait_ready(self) -> Self {
        assert!(eventually(SOON, || self.ready()), "{} is not ready", self.addr);
        self
    }

    pub fn ready(&self) -> bool {
        self.try_get("/ready").is_ok_and(|response| response.status == 200)
    }

    pub fn http(&self, method: &str, path: &str, body: impl AsRef<[u8]>) -> Response {
        self.http_with(method, path, &[], body)
    }

    pub fn http_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> Response {
        http::request(self.addr, method, path, headers, body.as_ref())
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    pub fn get(&self, path: &str) -> Response {
        self.http("GET", path, "")
    }

    pub fn try_get(&self, path: &str) -> std::io::Result<Response> {
        http::request(self.addr, "GET", path, &[], b"")
    }

    /// As a probe asks, which doesn't wait for long.
    pub fn try_get_within(&self, path: &str, patience: Duration) -> std::io::Result<Response> {
        http::request_within(patience, self.addr, "GET", path, &[], b"")
    }

    pub fn api(&self, method: &str, body: &Value) -> Response {
        self.http("POST", &format!("/api/{method}"), body.to_string())
    }

    /// Publishes through the API and insists that it was accepted.
    pub fn publish(&self, channel: &str, data: impl Into<Value>) {
        let data: Value = data.into();
        let response = self.api("publish", &json!({ "channel": channel, "data": data }));
        assert!(response.is_result(), "publish: {} {}", response.status, response.text());
    }

    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&self.get("/metrics").text())
    }

    pub fn metric_sum(&self, name: &str) -> f64 {
        self.metrics().sum(name)
    }

    /// Waits until so many shards have panicked and cut what they had: before that, they cut whoever
    /// asks them anything, too.
    pub fn has_panicked(&self, n: u32) -> bool {
        let n_panics = |page: &str| Metrics::parse(page).sum("hubbub_shard_panics_total");
        eventually(SOON, || {
            self.try_get("/metrics").is_ok_and(|page| n_panics(&page.text()) == f64::from(n))
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: i32) {
        sys::kill(self.pid(), signal);
    }

    /// The exit status, or none if the process is still there after so long.
    pub fn wait_exit(&mut self, deadline: Duration) -> Option<ExitStatus> {
        let mut status = None;
        let _ = eventually(deadline, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    pub fn log_has(&self, word: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(word))
    }

    /// Memory of its own that the process has touched.
    pub fn anon_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Processor time spent so far, in steps of 10 ms.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let (_, after_name) = stat.rsplit_once(')').unwrap();
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<u64>().unwrap();
        Duration::from_millis((ticks(11) + ticks(12)) * 10)
    }

    /// What the kernel keeps of connections to this node's port, whoever owns them: half-closed
    /// and orphaned ones too.
    pub fn sockets(&self) -> Vec<KernelSocket> {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let port = format!(":{:04X}", self.addr.port());
        let parse = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (unsent, _) = fields[4].split_once(':').unwrap();
            let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
            let socket = KernelSocket { state: hex(fields[3]) as u8, queued_bytes: hex(unsent) };
            (fields[1].ends_with(&port) && socket.state != LISTEN).then_some(socket)
        };
        table.lines().skip(1).filter_map(parse).collect()
    }

    pub fn n_sockets_in(&self, state: u8) -> usize {
        self.sockets().iter().filter(|socket| socket.state == state).count()
    }

    pub fn n_fds(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let ended = self.child.try_wait().ok().flatten();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            // The reader may still be on its way through the last lines.
            let _ = eventually(secs(1), || Arc::strong_count(&self.log) == 1);
            let log = self.log();
            let skipped = log.len().saturating_sub(LOG_LINES_SHOWN);
            println!("--- {} (exit {ended:?}), {skipped} earlier lines left out", self.addr);
            log[skipped..].iter().for_each(|line| println!("{line}"));
        }
    }
}

/// One scrape. Keys are the series as printed, labels sorted by name: `name{a="1",b="2"}`.
pub struct Metrics {
    series: BTreeMap<String, f64>,
}

impl Metrics {
    pub fn parse(text: &str) -> Self {
        let mut series = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((key, value)) = line.rsplit_once(' ') {
                let value = value.parse().unwrap_or_else(|_| panic!("metric line {line:?}"));
                series.insert(sort_labels(key), value);
            }
        }
        Self { series }
    }

    pub fn get(&self, series: &str) -> f64 {
        self.series.get(&sort_labels(series)).copied().unwrap_or(0.0)
    }

    /// Over all label values.
    pub fn sum(&self, name: &str) -> f64 {
        self.all(name).values().sum()
    }

    pub fn all(&self, name: &str) -> BTreeMap<&str, f64> {
        let of_name = |key: &str| key.split('{').next() == Some(name);
        let found = self.series.iter().filter(|(key, _)| of_name(key));
        found.map(|(key, value)| (key.as_str(), *value)).collect()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.series.keys().map(String::as_str)
    }
}

fn sort_labels(series: &str) -> String {
    let Some((name, labels)) = series.strip_suffix('}').and_then(|s| s.split_once('{')) else {
        return series.to_owned();
    };
    let mut labels: Vec<&str> = labels.split(',').collect();
    labels.sort_unstable();
    format!("{name}{{{}}}", labels.join(","))
}
