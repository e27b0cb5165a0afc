//! Flags, and what follows from them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};

use crate::ceiling::{CeilingArgs, ShareArgs};
use crate::guard::GuardArgs;
use crate::payload;
use crate::process::Cpus;
use crate::protocol::{Centrifuge, Protocol, ProtocolName, Raw, Tokens};
use crate::publish::{Http, Publisher, PublisherName, Redis, WebSocket, WebSocketArgs};
use crate::puppet::Dice;
use crate::registry::RegistryArgs;
use crate::report::OutputArgs;
use crate::server::{Start, Target};
use crate::soak::SoakArgs;
use crate::storm::StormArgs;
use crate::sweep::SweepArgs;

#[derive(Parser)]
#[command(
    name = "loadtest",
    about = "Open-loop load on a WebSocket hub",
    after_help = "LOADTEST_API_KEY: the key of the publish API; LOADTEST_TOKEN_SECRET: signs a \
                  connection token (HS256) for each client.\nExit codes: 0 all as it must be, 1 \
                  not, 2 can't tell (the client was the bottleneck), 64 could not run."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Subscribers, a steady rate or a burst: latency, losses, server CPU
    Run(RunArgs),
    /// Good clients with and without attackers beside them
    #[command(
        mut_arg("connections", |arg| arg.visible_alias("good")),
        mut_arg("rate", |arg| arg.default_value("50")),
        mut_arg("seconds", |arg| arg.default_value("60"))
    )]
    Abuse(AbuseArgs),
    /// A share reads slowly or never: what do the others notice?
    Slow(SlowArgs),
    /// Clients come and go in every way: does anything stay behind?
    Churn(ChurnArgs),
    /// Everybody drops and comes back at once, again and again
    #[command(
        mut_arg("rate", |arg| arg.default_value("50")),
        mut_arg("seconds", |arg| arg.hide(true)),
        mut_arg("warm_up", |arg| arg.hide(true))
    )]
    Storm(StormArgs),
    /// A fresh server for each of many settings: how many shards, which write delay?
    Sweep(SweepArgs),
    /// A run of hours: does anything grow?
    #[command(mut_arg("seconds", |arg| arg.default_value("3600")))]
    Soak(SoakArgs),
    /// With and without the connection registry: what does it cost?
    #[command(
        mut_arg("connections", |arg| arg.default_value("15000")),
        mut_arg("channels", |arg| arg.default_value("1500")),
        mut_arg("rate", |arg| arg.default_value("200")),
        mut_arg("seconds", |arg| arg.default_value("30"))
    )]
    Registry(RegistryArgs),
    /// The same load without a hub: what the kernel charges
    Ceiling(CeilingArgs),
    /// Two builds of hubbub in pairs: does the second cost more?
    Guard(GuardArgs),
    /// The process that `ceiling` measures
    #[command(hide = true)]
    CeilingServer,
}

#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub share: ShareArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args, Clone, Debug)]
pub struct AbuseArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub load: LoadArgs,
    /// Of all twelve kinds in turn
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub attackers: usize,
    /// What each attacker does a second: a connect, a byte, 16 KiB of a flood
    #[arg(long, value_name = "N", default_value_t = 50.0)]
    pub attack_rate: f64,
    /// Of windows without and with attackers
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub pairs: usize,
    /// Between windows
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    pub rest: f64,
    /// Writes everything measured here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl AbuseArgs {
    pub fn check(&self) -> anyhow::Result<()> {
        self.load.check()?;
        self.load.refuse_burst()?;
        if self.attackers == 0 || self.pairs == 0 {
            bail!("--attackers, --pairs: at least 1");
        }
        if !(self.attack_rate > 0.0 && self.attack_rate <= 100_000.0) {
            bail!("--attack-rate: above 0, at most 100000");
        }
        check_wait("--rest", self.rest)
    }
}

#[derive(Args, Clone, Debug)]
pub struct SlowArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub load: LoadArgs,
    /// Of the connections, so many never read
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub stalled: usize,
    /// So many read slowly
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub slow: usize,
    #[arg(long, value_name = "N", default_value_t = 5000)]
    pub slow_bytes_per_second: u64,
    /// SO_RCVBUF of these; default: the kernel's
    #[arg(long, value_name = "BYTES")]
    pub rcvbuf: Option<usize>,
    /// Of runs without and with them
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub pairs: usize,
    #[command(flatten)]
    pub output: OutputArgs,
}

impl SlowArgs {
    pub fn check(&self) -> anyhow::Result<()> {
        self.load.check()?;
        self.load.refuse_burst()?;
        let n_slow = self.stalled.saturating_add(self.slow);
        if self.pairs == 0 || n_slow == 0 {
            bail!("--pairs, --stalled or --slow: at least 1");
        }
        if n_slow.saturating_mul(2) > self.load.connections {
            bail!("--stalled, --slow: at most half of the --connections");
        }
        Ok(())
    }
}

#[derive(Args, Clone, Debug)]
pub struct ChurnArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// Of one round
    #[arg(long, value_name = "S", default_value_t = 600.0)]
    pub seconds: f64,
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub rounds: usize,
    /// At a time
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub visitors: usize,
    /// Steps of all visitors together, a second; a visit is about eight
    #[arg(long, value_name = "N", default_value_t = 5000.0)]
    pub rate: f64,
    /// Between two looks at the server
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub every: f64,
    /// Writes everything measured here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl ChurnArgs {
    pub fn check(&self) -> anyhow::Result<()> {
        if self.rounds == 0 || self.visitors == 0 {
            bail!("--rounds, --visitors: at least 1");
        }
        if !(self.rate > 0.0 && self.rate <= 1e6) {
            bail!("--rate: above 0, at most 1000000");
        }
        check_wait("--every", self.every)?;
        check_wait("--seconds", self.seconds)
    }
}

/// What to load.
#[derive(Args, Clone, Debug)]
pub struct TargetArgs {
    /// A server that runs already
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8000")]
    pub address: SocketAddr,
    /// Its processes, to measure them
    #[arg(long = "pid", value_name = "PID")]
    pub pids: Vec<u32>,
    /// Its Redis
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:6379")]
    pub redis: SocketAddr,
    /// Before every channel's name in Redis
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub redis_prefix: String,
    /// Starts this hubbub instead, and a redis-server if that is what publishes
    #[arg(long, value_name = "PATH")]
    pub server: Option<PathBuf>,
    /// CPUs of the started server; HUB_SHARDS is their number
    #[arg(long, value_name = "LIST", requires = "server")]
    pub server_cpus: Option<Cpus>,
    /// CPUs of subscribers, publisher and the started Redis
    #[arg(long, value_name = "LIST")]
    pub client_cpus: Option<Cpus>,
    /// For the started server
    #[arg(long, value_name = "NAME=VALUE", requires = "server", value_parser = name_and_value)]
    pub server_env: Vec<(String, String)>,
}

/// How much of what.
#[derive(Args, Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct LoadArgs {
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub connections: usize,
    /// Channels, published to in turn
    #[arg(long, value_name = "M", default_value_t = 1)]
    pub channels: usize,
    /// Each connection's, at random, but spread evenly
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub channels_per_connection: usize,
    /// The channels' names are this and a number
    #[arg(long, value_name = "TEXT", default_value = "load-")]
    pub channel_prefix: String,
    /// Publications a second over all channels
    #[arg(long, value_name = "R", default_value_t = 500.0)]
    pub rate: f64,
    /// Instead: so many publications, as fast as they go out
    #[arg(long, value_name = "N", conflicts_with_all = ["rate", "seconds", "warm_up"])]
    pub burst: Option<u64>,
    /// Bytes of a payload
    #[arg(long, value_name = "S", default_value_t = 128)]
    pub size: usize,
    #[arg(long, value_enum, default_value_t = ProtocolName::Centrifuge)]
    pub protocol: ProtocolName,
    /// Path and query to connect to; default: hubbub's for the protocol
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
    /// Sent once connected (raw only)
    #[arg(long, value_name = "TEXT")]
    pub first_message: Option<String>,
    #[arg(long, value_enum, default_value_t = PublisherName::Redis)]
    pub publisher: PublisherName,
    /// Keep-alive connections to the publish API
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub http_connections: usize,
    /// Requests in flight on each of them
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub http_in_flight: usize,
    #[command(flatten)]
    pub websocket: WebSocketArgs,
    /// Load before the window, not measured
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    pub warm_up: f64,
    /// The measured window
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub seconds: f64,
    /// How long after the last delivery to wait for one more
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    pub drain: f64,
    /// Between the last connect and the first publication
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub settle: f64,
    /// Source addresses: 127.0.0.1 and so on [default: one per 10,000 connections]
    #[arg(long, value_name = "N")]
    pub sources: Option<u8>,
    /// Connections being opened at a time
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub connect_concurrency: usize,
    /// Gives up on connecting after this
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    pub connect_timeout: f64,
}

pub fn check_wait(flag: &str, seconds: f64) -> anyhow::Result<()> {
    if (0.0..86_400.0).contains(&seconds) {
        Ok(())
    } else {
        bail!("{flag}: 0 seconds or more, below a day")
    }
}

pub(crate) fn name_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

impl TargetArgs {
    pub fn open(&self, with_redis: bool) -> anyhow::Result<Target> {
        if let Some(server) = &self.server {
            return Target::start(&Start {
                server,
                server_cpus: self.server_cpus.as_ref(),
                client_cpus: self.client_cpus.as_ref(),
                env: &self.server_env,
                with_redis,
            });
        }
        if let Some(cpus) = &self.client_cpus {
            crate::process::pin(cpus)?;
        }
        let api_key = std::env::var("LOADTEST_API_KEY").ok();
        Target::running(self.address, self.pids.clone(), with_redis.then_some(self.redis), api_key)
    }
}

impl LoadArgs {
    /// What can't work is refused before anything is started.
    pub fn check(&self) -> anyhow::Result<()> {
        let at_least_one = [
            ("--connections", self.connections),
            ("--channels", self.channels),
            ("--channels-per-connection", self.channels_per_connection),
            ("--sources", usize::from(self.sources.unwrap_or(1))),
            ("--connect-concurrency", self.connect_concurrency),
            ("--http-connections", self.http_connections),
            ("--http-in-flight", self.http_in_flight),
        ];
        if let Some((flag, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
            bail!("{flag}: at least 1");
        }
        if self.size < payload::BYTES_MIN {
            bail!("--size: at least {} bytes", payload::BYTES_MIN);
        }
        if self.channels >= 1 << 24 {
            bail!("--channels: below {}", 1 << 24);
        }
        if self.channels_per_connection > self.channels {
            bail!("--channels-per-connection: only {} --channels", self.channels);
        }
        for (flag, value) in [("--rate", self.rate), ("--seconds", self.seconds)] {
            if !(value.is_finite() && value > 0.0) {
                bail!("{flag}: above 0");
            }
        }
        let seconds = self.warm_up + self.seconds;
        if seconds > payload::RUN_S_MAX {
            bail!("--seconds: at most {} with the warm-up", payload::RUN_S_MAX);
        }
        if self.rate * seconds / self.channels as f64 >= f64::from(u32::MAX) {
            bail!("--rate, --seconds: publications of a channel are numbered in 32 bits");
        }
        if self.publisher == PublisherName::WebSocket {
            self.websocket.check()?;
        }
        let waits = [
            ("--warm-up", self.warm_up),
            ("--drain", self.drain),
            ("--settle", self.settle),
            ("--connect-timeout", self.connect_timeout),
        ];
        waits.iter().try_for_each(|(flag, value)| check_wait(flag, *value))
    }

    /// For commands that compare windows of time.
    pub fn refuse_burst(&self) -> anyhow::Result<()> {
        if self.burst.is_some() { bail!("--burst is for `loadtest run`") } else { Ok(()) }
    }

    pub fn channel_names(&self) -> Vec<String> {
        (0..self.channels).map(|n| format!("{}{n}", self.channel_prefix)).collect()
    }

    /// The channels of the nth connection: one of all in turn, and others at random distances from it.
    /// Each channel gets as many subscribers as any other, give or take a few.
    pub fn channels_of(&self, nth: usize) -> Vec<u32> {
        let first = nth % self.channels;
        let mut dice = Dice::new((nth / self.channels) as u64);
        // R. Floyd's: as many numbers as are wanted, each other one as likely.
        let mut offsets = vec![0];
        for most in self.channels - self.channels_per_connection + 1..self.channels {
            let offset = 1 + dice.below(most as u64) as usize;
            offsets.push(if offsets.contains(&offset) { most } else { offset });
        }
        offsets.iter().map(|offset| ((first + offset) % self.channels) as u32).collect()
    }

    /// From 14,000 connections of one address on, half of its ports, the kernel searches milliseconds for
    /// each one more.
    pub fn sources(&self) -> Vec<Ipv4Addr> {
        let enough = || self.connections.div_ceil(10_000).min(254) as u8;
        (1..=self.sources.unwrap_or_else(enough)).map(|n| Ipv4Addr::new(127, 0, 0, n)).collect()
    }

    pub fn protocol(&self) -> Box<dyn Protocol> {
        match self.protocol {
            ProtocolName::Centrifuge => Box::new(Centrifuge::new(self.path.clone(), self.size)),
            ProtocolName::Raw => {
                Box::new(Raw { path: self.path.clone(), first_message: self.first_message.clone() })
            }
        }
    }

    pub fn publisher(
        &self,
        target: &Target,
        redis_prefix: &str,
    ) -> anyhow::Result<Box<dyn Publisher>> {
        Ok(match self.publisher {
            PublisherName::Redis => {
                let address = target.redis.context("no Redis to publish to")?;
                Box::new(Redis::connect(address, redis_prefix)?)
            }
            PublisherName::WebSocket => {
                Box::new(WebSocket::connect(target.address, &self.websocket)?)
            }
            PublisherName::Http => Box::new(Http::connect(
                target.address,
                target.api_key.as_deref(),
                self.http_connections,
                self.http_in_flight,
            )?),
        })
    }
}

/// Signs tokens if the environment has a secret.
pub fn tokens() -> anyhow::Result<Option<Tokens>> {
    std::env::var("LOADTEST_TOKEN_SECRET").ok().map(|secret| Tokens::new(&secret)).transpose()
}

#[cfg(test)]
mod tests;
