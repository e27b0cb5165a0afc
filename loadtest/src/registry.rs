//! `loadtest registry`: what the connection registry costs, beside the same node without it.
//!
//! Each side has a fresh server and a fresh Redis. Once everybody is connected and registered, the
//! window: Redis commands a second (those inside scripts count too, publications don't), the server's
//! CPU time, latency. A lap of renewals takes 75 s, and is even: a window of any length sees its share.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;

use crate::cli::{LoadArgs, TargetArgs};
use crate::clock::SECOND_NS;
use crate::fleet::Fleet;
use crate::measure;
use crate::pairs::{self, Pair};
use crate::process;
use crate::publish::PublisherName;
use crate::report::{
    ClientReport, Environment, GroupReport, OutputArgs, ServerReport, Table, median,
};
use crate::run;
use crate::server::Target;
use crate::slow::is_within;
use crate::verdict::{Comparison, Verdict, is_client_bound};

const OTHER_FDS: usize = 64;
/// At 15,000 connections; in proportion with more or fewer.
const COMMANDS_PER_S_MAX: f64 = 300.0;
const CPU_SHARE_MAX: f64 = 0.03;
const CONNECTIONS: f64 = 15_000.0;
/// For everybody to be registered.
const REGISTERED_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Args, Clone, Debug)]
pub struct RegistryArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub load: LoadArgs,
    /// Of runs without and with a registry
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub pairs: usize,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Clone, Debug, Serialize)]
pub struct RegistryReport {
    pub environment: Environment,
    pub load: LoadArgs,
    pub pairs: Vec<Pair<Side, Side>>,
    pub cost: Cost,
    pub verdict: Verdict,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// Redis's own count, by name.
    pub commands_per_s: BTreeMap<String, f64>,
    pub subscribers: GroupReport,
    pub server: ServerReport,
    pub client: ClientReport,
}

/// Medians: what the registry adds.
#[derive(Copy, Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// All that Redis did but for publications, the node's probes included.
    pub commands_per_s: f64,
    /// Of a core.
    pub cpu_share: f64,
    pub p99_without_ms: f64,
    pub p99_with_ms: f64,
}

impl RegistryArgs {
    pub fn check(&self) -> anyhow::Result<()> {
        self.load.check()?;
        self.load.refuse_burst()?;
        if self.target.server.is_none() {
            bail!("--server: one is started for each side");
        }
        if self.pairs == 0 || self.load.publisher != PublisherName::Redis {
            bail!("--pairs: at least 1; --publisher: redis");
        }
        Ok(())
    }

    fn side(&self, registry: &str) -> anyhow::Result<Side> {
        let mut target = self.target.clone();
        target.server_env.push(("HUB_REGISTRY".to_owned(), registry.to_owned()));
        let target = target.open(true)?;
        let redis = target.redis.context("invariant: it was started with a Redis")?;
        let mut fleet = Fleet::new(run::shared(&self.load, &target)?, run::plans(&self.load))?;
        run::connect(&mut fleet, &self.load, &target)?;
        if registry == "on" {
            wait_registered(&mut fleet, &target)?;
        }
        let publisher = self.load.publisher(&target, &self.target.redis_prefix)?;
        let spec = run::spec(&self.load, &format!("registry {registry}"));
        let (before, began) = (commands(redis)?, Instant::now());
        let measured = measure::measure(&mut fleet, &target.pids, publisher, &spec)?;
        let (after, took_s) = (commands(redis)?, began.elapsed().as_secs_f64());
        Ok(Side {
            commands_per_s: rates(&before, &after, took_s),
            subscribers: GroupReport::of(&measured.groups[0]),
            server: ServerReport::of(&measured),
            client: ClientReport::of(&measured, false),
        })
    }
}

impl Side {
    fn commands_per_s(&self) -> f64 {
        self.commands_per_s.values().sum()
    }

    fn cpu_share(&self) -> f64 {
        self.server.cpu_s / self.server.window_s
    }

    fn is_good(&self) -> bool {
        self.subscribers.is_good() && self.client.is_good()
    }
}

impl Cost {
    fn of(pairs: &[Pair<Side, Side>]) -> Self {
        let of = |value: &dyn Fn(&Pair<Side, Side>) -> f64| {
            median(&pairs.iter().map(value).collect::<Vec<_>>())
        };
        Self {
            commands_per_s: of(&|pair| pair.b.commands_per_s()),
            cpu_share: of(&|pair| pair.b.cpu_share() - pair.a.cpu_share()),
            p99_without_ms: of(&|pair| pair.a.subscribers.latency_ms.p99),
            p99_with_ms: of(&|pair| pair.b.subscribers.latency_ms.p99),
        }
    }

    fn is_small(&self, connections: usize) -> bool {
        let scale = connections as f64 / CONNECTIONS;
        self.commands_per_s <= COMMANDS_PER_S_MAX * scale.max(0.1)
            && self.cpu_share <= CPU_SHARE_MAX * scale.max(1.0)
    }
}

/// Steady state: the first writes are done.
fn wait_registered(fleet: &mut Fleet, target: &Target) -> anyhow::Result<()> {
    let deadline = Instant::now() + REGISTERED_TIMEOUT;
    loop {
        measure::idle(fleet, SECOND_NS / 2)?;
        let metric = |name: &str| target.metric(name).with_context(|| format!("no {name}"));
        let n_written = metric("hubbub_registry_writes_total")?;
        let connections = metric("hubbub_connections")?;
        if n_written >= connections && metric("hubbub_registry_waiting")? == 0.0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{n_written} of {connections} are registered after {REGISTERED_TIMEOUT:?}");
        }
    }
}

/// How often Redis ran what, by INFO commandstats; what runs inside a script counts too.
fn commands(redis: SocketAddr) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut stream = TcpStream::connect(redis).with_context(|| format!("Redis at {redis}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"INFO commandstats\r\n")?;
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    reader.read_line(&mut head)?;
    let n_bytes: usize = head.trim().trim_start_matches('$').parse().context("INFO's length")?;
    let mut text = vec![0; n_bytes];
    reader.read_exact(&mut text)?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

fn parse(info: &str) -> BTreeMap<String, u64> {
    let of_line = |line: &str| {
        let (name, stats) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        Some((name.to_owned(), stats.split(',').next()?.parse().ok()?))
    };
    info.lines().filter_map(of_line).collect()
}

/// Without publications, which are the load, and our own questions.
fn rates(
    before: &BTreeMap<String, u64>,
    after: &BTreeMap<String, u64>,
    took_s: f64,
) -> BTreeMap<String, f64> {
    let counts = after.iter().filter(|(name, _)| !["publish", "info"].contains(&name.as_str()));
    counts
        .map(|(name, n)| (name.clone(), (n - before.get(name).unwrap_or(&0)) as f64 / took_s))
        .filter(|(_, per_s)| *per_s > 0.0)
        .collect()
}

pub fn command(args: &RegistryArgs, command_line: &[String]) -> anyhow::Result<Verdict> {
    args.check()?;
    process::raise_fd_limit(args.load.connections + OTHER_FDS)?;
    let pairs = pairs::measure(
        &mut (),
        args.pairs,
        |_, label| {
            eprintln!("{label}: off");
            args.side("off")
        },
        |_, label| {
            eprintln!("{label}: on");
            args.side("on")
        },
    )?;
    let cost = Cost::of(&pairs);
    let sides = || pairs.iter().flat_map(|pair| [&pair.a, &pair.b]);
    let is_good = sides().all(Side::is_good) && cost.is_small(args.load.connections);
    let report = RegistryReport {
        environment: Environment::here(command_line),
        load: args.load.clone(),
        verdict: Verdict::from(is_good).and(Comparison {
            holds: is_within(cost.p99_without_ms, cost.p99_with_ms),
            is_client_bound: is_client_bound(sides().map(|side| &side.client)),
        }),
        cost,
        pairs,
    };
    table(&report).print();
    args.output.write(&report, |report| {
        let mut page =
            crate::html::Page::new("registry", report.verdict.word(), &report.environment);
        page.table(&table(report));
        page
    })?;
    Ok(report.verdict)
}

fn table(report: &RegistryReport) -> Table {
    let mut table = Table::default();
    table.row("pair, registry", "  p50      p99 ms   CPU %   Redis commands/s      lost");
    for (pair, nth) in report.pairs.iter().zip(1..) {
        for (side, what) in [(&pair.a, "off"), (&pair.b, "on")] {
            let latency = side.subscribers.latency_ms;
            table.row(
                &format!("{nth}, {what}"),
                format!(
                    "{:>6.2}  {:>7.2} {:>7.1} {:>10.1} {:>15}",
                    latency.p50,
                    latency.p99,
                    side.cpu_share() * 1e2,
                    side.commands_per_s(),
                    side.subscribers.lost
                ),
            );
        }
    }
    if let Some(pair) = report.pairs.first() {
        let names = pair.b.commands_per_s.iter().map(|(name, n)| format!("{name} {n:.1}"));
        table.row("of the first, on", names.collect::<Vec<_>>().join(", "));
    }
    let Cost { commands_per_s, cpu_share, p99_without_ms, p99_with_ms } = report.cost;
    table.verdict(
        report.verdict,
        format!(
            "medians: {commands_per_s:.0} Redis commands a second, {:.1} % of a core, p99 \
             {p99_without_ms:.2} -> {p99_with_ms:.2} ms",
            cpu_share * 1e2
        ),
    );
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_counted_by_name() {
        let before = parse("# Commandstats\r\ncmdstat_set:calls=10,usec=5\r\n");
        let after = parse(
            "cmdstat_set:calls=30,usec=5\r\ncmdstat_client|setinfo:calls=4,usec=1\r\n\
             cmdstat_publish:calls=500,usec=1\r\nother:calls=7\r\n",
        );
        assert_eq!(before["set"], 10);
        let rates = rates(&before, &after, 2.0);
        let expected = [("client|setinfo".to_owned(), 2.0), ("set".to_owned(), 10.0)];
        assert_eq!(rates, expected.into());
    }

    #[test]
    fn the_budget_goes_with_the_connections() {
        let cost = |commands_per_s, cpu_share| Cost {
            commands_per_s,
            cpu_share,
            p99_without_ms: 1.0,
            p99_with_ms: 1.0,
        };
        assert!(cost(300.0, 0.03).is_small(15_000) && cost(600.0, 0.06).is_small(30_000));
        assert!(!cost(301.0, 0.0).is_small(15_000) && !cost(0.0, 0.04).is_small(15_000));
        assert!(!cost(31.0, 0.0).is_small(100) && cost(29.0, 0.0).is_small(100));
    }
}
