//! What is loaded: a server that runs already, or one started here.
//!
//! Started servers are pinned (and so is this process, elsewhere), get ports of their own, and are
//! stopped by their pid when the [`Target`] is dropped.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::process::{self, Cpus};

const START_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Every channel is open to everyone, without tokens.
const NAMESPACES: &str =
    "[namespaces.\"\"]\nsubscribe = \"anyone\"\n[namespaces.\"*\"]\nsubscribe = \"anyone\"\n";

/// Where to connect and whom to measure.
#[derive(Debug)]
pub struct Target {
    pub address: SocketAddr,
    /// Empty: nothing is known about the server's process.
    pub pids: Vec<u32>,
    pub redis: Option<SocketAddr>,
    pub api_key: Option<String>,
    _started: Vec<Started>,
    _config: Option<tempfile::NamedTempFile>,
}

/// How to start a hubbub, and a Redis if need be.
#[derive(Clone, Debug)]
pub struct Start<'a> {
    pub server: &'a Path,
    pub server_cpus: Option<&'a Cpus>,
    /// For this process, and for Redis.
    pub client_cpus: Option<&'a Cpus>,
    /// Win over what is set here.
    pub env: &'a [(String, String)],
    pub with_redis: bool,
}

impl Target {
    pub fn running(
        address: SocketAddr,
        pids: Vec<u32>,
        redis: Option<SocketAddr>,
        api_key: Option<String>,
    ) -> anyhow::Result<Self> {
        if let Some(pid) = pids.iter().find(|&&pid| !process::exists(pid)) {
            bail!("there is no process {pid}");
        }
        Ok(Self { address, pids, redis, api_key, _started: Vec::new(), _config: None })
    }

    pub fn start(start: &Start<'_>) -> anyhow::Result<Self> {
        if let Some(cpus) = start.client_cpus {
            process::pin(cpus)?;
        }
        let mut started = Vec::new();
        let redis = start.with_redis.then(start_redis).transpose()?.map(|(child, address)| {
            started.push(child);
            address
        });
        let api_key = format!("loadtest-{}", std::process::id());
        let hub = on_cpus(start.server_cpus, || start_hub(start, redis, &api_key))?;
        let (address, pid) = (hub.address, hub.child.pid());
        // Dropped in this order: a hub whose Redis goes first has something to say about it.
        started.insert(0, hub.child);
        Ok(Self {
            address,
            pids: vec![pid],
            redis,
            api_key: Some(api_key),
            _started: started,
            _config: Some(hub.config),
        })
    }

    /// Sums a metric over its labels; `None` if the server has no such page or metric.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let page = get(self.address, "/metrics").ok()?;
        let values = page.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let is_it = rest.starts_with([' ', '{']);
            rest.rsplit(' ').next().filter(|_| is_it)?.parse::<f64>().ok()
        });
        values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }
}

/// Starts a server on its CPUs: it takes over this thread's, so that no thread of it is ever
/// elsewhere. Then this thread is back where it was.
pub(crate) fn on_cpus<T>(
    cpus: Option<&Cpus>,
    start: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let Some(cpus) = cpus else { return start() };
    let own = process::cpus_of(None)?;
    process::pin(cpus)?;
    let started = start();
    process::pin(&own)?;
    started
}

/// A child that is stopped, by pid, when dropped.
#[derive(Debug)]
pub(crate) struct Started(pub(crate) Child);

impl Started {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        process::terminate(self.0.id());
        let deadline = Instant::now() + STOP_TIMEOUT;
        while !self.has_ended() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> anyhow::Result<u16> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}

fn start_redis() -> anyhow::Result<(Started, SocketAddr)> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let child = Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"])
        .args(["--port", &address.port().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("starting redis-server")?;
    let mut child = Started(child);
    wait_for("redis-server", &mut child, || TcpStream::connect(address).is_ok())?;
    Ok((child, address))
}

struct Hub {
    child: Started,
    address: SocketAddr,
    config: tempfile::NamedTempFile,
}

fn start_hub(start: &Start<'_>, redis: Option<SocketAddr>, api_key: &str) -> anyhow::Result<Hub> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let mut config = tempfile::NamedTempFile::new()?;
    config.write_all(NAMESPACES.as_bytes())?;
    let n_shards = start.server_cpus.map_or(1, |cpus| cpus.0.len());
    let mut command = Command::new(start.server);
    command
        .env("HUB_LISTEN", address.to_string())
        .env("HUB_SHARDS", n_shards.to_string())
        .env("HUB_ALLOW_ANONYMOUS", "true")
        .env("HUB_CONFIG", config.path())
        .env("HUB_API_KEY", api_key)
        .env("HUB_DRAIN_TIMEOUT", "1s")
        .env("HUB_LOG", "warn")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    if let Some(redis) = redis {
        command.env("HUB_REDIS_URL", format!("redis://{redis}"));
    }
    command.envs(start.env.iter().map(|(name, value)| (name, value)));
    let child = command.spawn().with_context(|| format!("starting {}", start.server.display()))?;
    let mut child = Started(child);
    wait_for("the server", &mut child, || get(address, "/ready").is_ok())?;
    Ok(Hub { child, address, config })
}

fn wait_for(
    what: &str,
    child: &mut Started,
    mut is_there: impl FnMut() -> bool,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    while !is_there() {
        if child.has_ended() {
            bail!("{what} ended at once");
        }
        if Instant::now() > deadline {
            bail!("{what} is not ready after {START_TIMEOUT:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The body of a 200.
fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
        _ => bail!("{path}: {}", answer.lines().next().unwrap_or("no answer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_started_on_its_cpus_and_the_client_is_back_on_its_own() {
        let before = process::cpus_of(None).unwrap();
        let one = Cpus(before.0[..1].to_vec());
        assert_eq!(on_cpus(Some(&one), || process::cpus_of(None)).unwrap(), one);
        assert_eq!(process::cpus_of(None).unwrap(), before);
        assert!(on_cpus(Some(&one), || -> anyhow::Result<()> { bail!("no") }).is_err());
        assert_eq!(process::cpus_of(None).unwrap(), before);
    }
}
